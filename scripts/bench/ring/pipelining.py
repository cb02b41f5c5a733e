"""A step of the ring of stages, beside torch's own pipeline of the same stages with the same cut."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from bench.children import Job, Report
from bench.machine import Spread
from bench.parameter_server.exchange import shown
from bench.parameter_server.steps import beside
from bench.ring.steps import step_cells
from bench.tables import Part, table
from nmt.config import RunConfig

RIVAL, OURS = "torch's 1F1B", "shm"
NODES, SLOTS, LENGTH = 2, 8, 16
# The arm that counts has what torch's has: no second copies.
ARMS: dict[str, dict[str, Any]] = {
    OURS: {"link": "shm", "shadows": 0},
    "tcp": {"link": "tcp", "shadows": 0},
    "shm, copies": {"link": "shm", "shadows": 1},
}
# width, layers of encoder and decoder, sentences a step, words
MODELS = {"8M": (256, 2, 128, 8_000), "66M": (512, 6, 128, 16_000), "tiny": (16, 2, 16, 200)}


def pipeline_config(size: str) -> RunConfig:
    """A Transformer with dropout, clipping and Adam; eight micro-batches, whose gradients are added in one buffer."""
    from nmt.config import compose

    width, layers, sentences, words = MODELS[size]
    return compose(
        [
            *("experiment=transformer", "scale=multi30k", f"tokenizer.vocab_size={words}", "tracking=none"),
            *("threads=1", f"batch.size={sentences}", f"batch.micro_batches={SLOTS}", "batch.groups=1"),
            *(f"model.embedding.units={width}", f"model.attention.units={width}"),
            *(f"model.encoder.units={width}", f"model.encoder.options.feed_forward={4 * width}"),
            *(f"model.decoder.units={width}", f"model.decoder.options.feed_forward={4 * width}"),
            *(f"model.encoder.layers={layers}", f"model.decoder.layers={layers}"),
            *("model.embedding.share=false", "model.embedding.tie_output=false"),
        ]
    )


def pipeline_jobs(sizes: Sequence[str], rounds: int, seconds: float) -> list[Job]:
    """A job for each model."""
    return [Job(f"stages in a ring, {size}", measure_pipeline, (size, rounds, seconds), units=rounds) for size in sizes]


def measure_pipeline(report: Report, size: str, rounds: int, seconds: float) -> dict[str, Any]:
    """Seconds a step of torch's pipeline and of the ring over each kind of link, one after the other in every round.

    All take the same batches in every round, and torch's has the cut of the first arm. seconds: how long each is timed
    in a round, about.
    """
    import torch

    from bench.parameter_server.arm import Arm
    from bench.parameter_server.gang import Gang
    from bench.ring.workloads import even_spec

    torch.set_num_threads(1)
    spec = even_spec(pipeline_config(size), LENGTH)
    with ExitStack() as running:
        options = {"mode": "stage", "nodes": NODES, "speeds": "equal"}
        arms = {name: running.enter_context(Arm(spec, "ring_tmp", **options, **own)) for name, own in ARMS.items()}
        for arm in arms.values():
            arm.run(1)
        cuts = {name: list(map(len, arm.strategy.report()["cut"]["stages"])) for name, arm in arms.items()}
        gang = running.enter_context(Gang(NODES, "bench.ring.rivals:TorchPipeline", spec, cuts[OURS]))
        about = {"size": size, "nodes": NODES, "micro_batches": SLOTS, "cuts": cuts | {RIVAL: cuts[OURS]}}
        return about | beside(report, spec, RIVAL, gang, arms, rounds, seconds)


def pipeline_part(found: Sequence[dict[str, Any]]) -> Part:
    """Ratios to torch's of the same round; `ring_tmp_vs_torch_pipelining` is that of shared memory, the first model."""
    rows = []
    ratios: dict[str, float] = {}
    for one in found:
        for name, rounds in one["rounds"].items():
            over = Spread.of([a["step"] / b["step"] for a, b in zip(rounds, one["rounds"][RIVAL], strict=True)])
            if name in ARMS:
                ratios[f"ring_tmp_step/{one['size']}/{name}/over_torch_pipelining"] = over.median
                if name == OURS:
                    ratios.setdefault("ring_tmp_vs_torch_pipelining", over.median)
            rows.append(
                [
                    shown(one["parameters"]),
                    f"ring_tmp, {name}" if name in ARMS else name,
                    " + ".join(map(str, one["cuts"][name])),
                    *step_cells(rounds, over),
                ]
            )
    return Part(
        "Steps of a ring of stages",
        [
            f"{found[0]['nodes']} processes of one thread each, {SLOTS} micro-batches of a Transformer on sentences of "
            f"{LENGTH} tokens; dropout, clipping, Adam. `{RIVAL}` is torch.distributed.pipelining over gloo with the "
            f"same stages, batches and the cut of `ring_tmp, {OURS}`; `copies`: with the second copies that a node may "
            "be lost for, which torch's has not.",
            table(
                ["parameters", "pipeline", "stages", "ms a step", "÷ torch's", "CPU ms a step, all processes", "load"],
                rows,
            ),
        ],
        list(found),
        ratios,
    )
