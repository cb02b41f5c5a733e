"""The parts of `scripts/bench.py`: each measures in processes of its own and tells tables and ratios."""
