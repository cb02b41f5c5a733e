"""Statistics over arrays of numbers: nothing here knows of runs, plans or tables.

Two questions are kept apart wherever a p value is named. "These systems": would the difference between these trained
models hold on other sentences? Sentences are resampled, the models stand still (`systems`). "These configurations":
would it hold if the models were trained again? Replicates are what varies (`contrasts`, `families`, `power`).
"""
