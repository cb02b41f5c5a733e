"""What the ring softmax brings to a ring of stages: the published baseline's stages are timed, nodes are emulated.

A step on N nodes is played on a clock on paper by the partitioner and the executors that decide in earnest
(`distributed.emulation`), with one stage of the whole output layer, and with chunks of its words as stages. As nobody
has to use all nodes that there are, each takes the best of 1 to N.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from bench.children import Job, Report
from bench.machine import Spread
from bench.tables import Part, table

NODES, NAMED = (2, 4, 8), 4
WHOLE, CHUNKS = 1, 8
SLOTS = 8
LINK = 1.25e9  # bytes a second, 10 Gbit/s
SENTENCES = 2000  # of synthetic text
TINY = [
    *("tokenizer.vocab_size=200", "batch.size=16", "model.embedding.units=16", "model.attention.units=16"),
    *("model.encoder.units=16", "model.decoder.units=16"),
]


def gain_jobs(size: str, rounds: int) -> list[Job]:
    """One job. size: `tiny`, or any other for the published shape."""
    return [Job("gain of the ring softmax", measure_gain, (size, rounds), units=rounds)]


def measure_gain(report: Report, size: str, rounds: int) -> dict[str, Any]:
    """Seconds a step, emulated, with and without the ring softmax, from stages that are timed in turn in every round.

    Times of stages are CPU seconds of one thread, medians over two micro-batches.
    """
    import torch

    from distributed.emulation import measure
    from nmt.config import compose
    from nmt.profiling.synthetic import synthetic_data
    from nmt.training.device import prepare_arithmetic
    from nmt.training.workload import TranslationWorkload

    base = ["experiment=baseline", "scale=published", "distribution=single", "device=cpu", "threads=1"]
    words = [*base, f"batch.micro_batches={SLOTS}", *(TINY if size == "tiny" else [])]
    configs = {chunks: compose([*words, f"loss.vocab_chunks={chunks}"]) for chunks in (WHOLE, CHUNKS)}
    prepare_arithmetic("cpu", configs[WHOLE].deterministic)
    torch.set_num_threads(1)
    text = synthetic_data(SENTENCES, vocabulary=configs[WHOLE].tokenizer.vocab_size, evaluated=10)
    workloads = {chunks: TranslationWorkload(config, "cpu", text) for chunks, config in configs.items()}
    found = []
    for _ in range(rounds):
        shapes = {chunks: measure(workload) for chunks, workload in workloads.items()}
        found.append({str(chunks): _seconds(shape) for chunks, shape in shapes.items()})
        report()
    return {
        "size": size,
        "micro_batches": SLOTS,
        "target_tokens": SLOTS * shapes[WHOLE].tokens,
        "parameters": shapes[WHOLE].elements,
        "link_bytes": LINK,
        "rounds": found,
    }


def _seconds(shape: Any) -> dict[str, Any]:
    """Of a step, by number of nodes (`nodes`: at most so many); and by stage, the time of a micro-batch."""
    from distributed.emulation import Machine, Work, emulate
    from distributed.errors import DistributedError

    work, best, taken = Work(SLOTS * shape.tokens, SLOTS), [], 0.0
    for nodes in range(1, max(NODES) + 1):
        try:
            taken = emulate("ring_tmp", shape, Machine(nodes, LINK), work).seconds
        except DistributedError:  # fewer stages than nodes
            break
        best.append(min([taken, *best[-1:]]))
    best += best[-1:] * (max(NODES) - len(best))
    times = [one + other for one, other in zip(shape.forward, shape.backward, strict=True)]
    return {
        "one_process": SLOTS * shape.seconds,
        "nodes": {str(nodes): best[nodes - 1] for nodes in NODES},
        "stages": dict(zip(shape.names, times, strict=True)),
    }


def gain_part(found: Sequence[dict[str, Any]]) -> Part:
    """`ring_softmax_gain`: the time of the best cut without over that with it on four nodes; emulated."""
    (one,) = found
    rows, ratios = [], {}
    for nodes in NODES:
        cells = []
        for chunks in (WHOLE, CHUNKS):
            own = [round_[str(chunks)] for round_ in one["rounds"]]
            cells.append(Spread.of([each["nodes"][str(nodes)] for each in own]).shown("{:.3g}".format))
            speed_up = statistics.median(each["one_process"] / each["nodes"][str(nodes)] for each in own)
            cells.append(f"{speed_up:.2f}")
        gain = Spread.of(
            [each[str(WHOLE)]["nodes"][str(nodes)] / each[str(CHUNKS)]["nodes"][str(nodes)] for each in one["rounds"]]
        )
        ratios[f"ring_softmax/{nodes}_nodes/gain"] = gain.median
        rows.append([str(nodes), *cells, gain.shown("{:.2f}".format)])
    ratios["ring_softmax_gain"] = ratios[f"ring_softmax/{NAMED}_nodes/gain"]
    return Part(
        "Gain of the ring softmax (emulated)",
        [
            f"Emulated: stages of the published baseline's model ({one['parameters'] / 1e6:.1f} million parameters) "
            f"are timed here, nodes and links of {LINK * 8 / 1e9:g} Gbit/s exist on paper; {one['micro_batches']} "
            f"micro-batches, {one['target_tokens']:,.0f} target tokens a step. Each takes the best cut over at most so "
            f"many nodes: without, the output layer is one stage; with, its words are {CHUNKS}.",
            table(
                ["nodes", "without, s a step", "× one process", "with, s a step", "× one process", "gain"],
                rows,
            ),
        ],
        list(found),
        ratios,
    )
