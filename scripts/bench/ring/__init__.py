"""The part of `scripts/bench_distributed.py` that measures rings, beside gloo, torch's DDP and torch's pipeline."""
