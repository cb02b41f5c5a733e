"""Outputs of other systems beside our runs: kept, scored as ours are, and shown as rows of tables."""
