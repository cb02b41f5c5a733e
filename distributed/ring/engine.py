"""`ring_allreduce` with torch's engines: all-reduce of the same buckets over gloo or NCCL, no recovery in place."""

from __future__ import annotations

from distributed.ddp.strategy import DdpStrategy


class EngineStrategy(DdpStrategy):
    """As `ring_allreduce`, with sums by torch.distributed; beside `ddp`, without DistributedDataParallel.

    When a worker is lost the others cannot go on, and only a checkpoint can: StateLost.
    """

    role = "ring.engine"
