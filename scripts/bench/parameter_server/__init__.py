"""The parts of `scripts/bench_distributed.py` that measure the parameter server beside what it competes with."""
