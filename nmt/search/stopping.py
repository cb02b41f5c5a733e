"""When the search of a sentence may end while some of its hypotheses could still go on.

- `bound`: when no live hypothesis can any more enter the n best. Provably what running to the end would return: with L
  the log-probability of a live hypothesis, all that comes of it has at most L, divided by at most
  `LengthPenalty.largest`, and is charged by coverage at least what it is charged now (`nmt.search.scores`).
- `first_n`: when `n_best` hypotheses have finished.
- `patience`: when beam * patience have (Kasai et al. 2022); patience 1 is the common "as many as the beam".

The live ones are dropped then.
"""

from __future__ import annotations

import math

from nmt.config.schema import SearchConfig


def finished_needed(search: SearchConfig) -> int:
    """How many finished hypotheses end the search of a sentence under `first_n` and `patience`."""
    if search.stop == "first_n":
        return search.n_best
    return math.ceil(round(search.beam * search.patience, 9))  # 10 * 1.1 is a little more than 11
