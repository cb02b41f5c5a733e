"""What each fine stage of a model costs on this machine, how nodes would share them, and what limits that.

    PYTHONPATH=scripts python -m bench.stage_costs experiment=t3_enc_4 batch.micro_batches=8 loss.vocab_chunks=4

Words are those of a configuration, laid over experiment=baseline scale=published; sentences are synthetic, with the
lengths of Multi30k's. One thread, its CPU time, medians. Nodes are equal, with links that cost nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import pairwise

from bench.tables import table

BASE = ["experiment=baseline", "scale=published", "device=cpu", "threads=1"]
SLOTS = 2
NODES = (2, 3, 4, 8)


def main(words: Sequence[str]) -> None:
    """Print the table of stages."""
    import torch

    from distributed.errors import DistributedError
    from distributed.ring_tmp.costs import NodeCapacity
    from distributed.ring_tmp.partition import partition
    from distributed.ring_tmp.stage_times import time_stages
    from nmt.config import compose
    from nmt.profiling.synthetic import synthetic_data
    from nmt.training.device import prepare_arithmetic
    from nmt.training.workload import TranslationWorkload

    config = compose([*BASE, *words])
    prepare_arithmetic("cpu", config.deterministic)
    torch.set_num_threads(1)
    workload = TranslationWorkload(config, "cpu", synthetic_data(vocabulary=config.tokenizer.vocab_size))
    model = workload.build_model(fine=True)
    slots = [workload.slot(1, number) for number in range(min(SLOTS, config.batch.micro_batches))]
    costs = time_stages(workload, model, workload.stages(model, fine=True), slots)
    total = sum(cost.seconds for cost in costs)
    rows = [
        [
            cost.name,
            f"{1e3 * cost.forward:.1f}",
            f"{1e3 * cost.backward:.1f}",
            f"{cost.seconds / total:.1%}",
            f"{sum(cost.parameters.values()) / 1e6:.2f}",
            f"{sum(cost.handed_on.values()) / 2**20:.2f}",
            f"{cost.kept_bytes / 2**20:.2f}",
        ]
        for cost in costs
    ]
    print(
        table(["stage", "forward, ms", "backward, ms", "share", "parameters, M", "handed on, MiB", "kept, MiB"], rows)
    )
    print(f"\none process: {1e3 * total:.0f} ms a micro-batch")
    for nodes in NODES:
        try:
            cut = partition([cost.cost() for cost in costs], [NodeCapacity()] * nodes, config.batch.micro_batches)
        except DistributedError as error:
            print(f"\n{nodes} nodes: {error}")
            break
        runs = (cut.names[start:stop] for start, stop in pairwise(cut.cuts))
        shares = " | ".join(run[0] if len(run) == 1 else f"{run[0]} … {run[-1]}" for run in runs)
        print(f"\n{nodes} nodes, {total / cut.bottleneck:.2f} x without the bubble: {shares}\n  {cut.limit}")


if __name__ == "__main__":
    main(sys.argv[1:])
