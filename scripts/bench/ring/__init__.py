"""The part of `scripts/bench_distributed.py` that measures the ring all-reduce beside gloo's and torch's DDP."""
