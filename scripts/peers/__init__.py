"""What `scripts/bench_peers.py` is made of: the common work, a driver process for each system, and the coordinator.

`work`, `protocol`, `opennmt` and `joeynmt` run inside a peer's own environment too, so they import nothing of `nmt`.
"""
