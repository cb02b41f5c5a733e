"""A step of training with rings, beside torch's DDP with as many sentences a step.

The all-reduce and the ring of shards take DDP's two micro-batches. A ring of stages needs more of them, or its nodes
wait for each other, and an output layer that can be cut: it takes the same sentences in eight micro-batches, and the
words in two chunks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from bench.children import Job, Report
from bench.machine import Spread
from bench.parameter_server.exchange import shown
from bench.parameter_server.steps import RIVAL, beside_ddp, training_config
from bench.tables import Part, table

ARMS: dict[str, dict[str, Any]] = {
    "shm": {"engine": "own", "link": "shm"},
    "tcp": {"engine": "own", "link": "tcp"},
    "gloo": {"engine": "gloo"},
}
STAGE, ROTATE = "stages", "shards"
PARTS = (STAGE, ROTATE)  # of the model, on `ring_tmp`
STAGED = {"micro_batches": 8, "groups": 1}
CHUNKS = 2


def step_jobs(sizes: Sequence[str], rounds: int, seconds: float) -> list[Job]:
    """A job for each model."""
    return [Job(f"steps of a ring, {size}", measure_steps, (size, rounds, seconds), units=rounds) for size in sizes]


def measure_steps(report: Report, size: str, rounds: int, seconds: float) -> dict[str, Any]:
    """Seconds a step of DDP and of the ring over each kind of link, one after the other in every round.

    All take the same batches in every round. seconds: how long each is timed in a round, about.
    """
    from bench.parameter_server.arm import WORKERS, Arm
    from bench.parameter_server.workloads import translation_spec

    config = training_config(size)
    spec = translation_spec(config)
    staged = replace(config, batch=replace(config.batch, **STAGED), loss=replace(config.loss, vocab_chunks=CHUNKS))
    with ExitStack() as running:
        arms = {name: running.enter_context(Arm(spec, "ring_allreduce", **words)) for name, words in ARMS.items()}
        for name, mode, own in ((STAGE, "stage", translation_spec(staged)), (ROTATE, "rotate", spec)):
            arms[name] = running.enter_context(Arm(own, "ring_tmp", mode=mode, nodes=WORKERS, link="shm"))
        found = beside_ddp(report, spec, arms, rounds, seconds)
        return {"size": size} | found | {"times": {name: arm.times() for name, arm in arms.items()}}


def step_cells(rounds: Sequence[Mapping[str, float]], over: Spread) -> list[str]:
    """Of an arm's rounds: ms a step, the ratio to a rival's, CPU ms a step of all processes, and the load."""
    return [
        Spread.of([1e3 * a["step"] for a in rounds]).shown(),
        over.shown("{:.2f}".format),
        f"{1e3 * Spread.of([a['cpu'] for a in rounds]).median:,.0f}",
        f"{Spread.of([a['load'] for a in rounds]).median:.1f}",
    ]


def step_part(found: Sequence[dict[str, Any]]) -> Part:
    """Ratios to the DDP of the same round; `ring_step_vs_ddp` is that of shared memory with the first model."""
    rows = []
    ratios: dict[str, float] = {}
    for one in found:
        for name, rounds in one["rounds"].items():
            over = Spread.of([a["step"] / b["step"] for a, b in zip(rounds, one["rounds"][RIVAL], strict=True)])
            if name != RIVAL:
                ratios[f"ring_step/{one['size']}/{name}/over_ddp"] = over.median
                if name == "shm":
                    ratios.setdefault("ring_step_vs_ddp", over.median)
            rows.append(
                [
                    shown(one["parameters"]),
                    f"ring_allreduce, {name}" if name in ARMS else f"ring_tmp, {name}" if name in PARTS else name,
                    *step_cells(rounds, over),
                ]
            )
    return Part(
        "Steps of training with a ring",
        [
            f"{found[0]['workers']} processes compute in each, one thread each, on the same batches of 128 synthetic "
            f"sentences with the lengths of Multi30k's; dropout, clipping, Adam. `{RIVAL}` is the tutorials' loop "
            "with our model and batches; `ring_allreduce, gloo` is engine=gloo of the ring. `ring_tmp` has no second "
            f"copies here; `{STAGE}` (mode=stage) cuts the same sentences into {STAGED['micro_batches']} micro-batches "
            f"and the output layer's words into {CHUNKS} chunks, `{ROTATE}` is mode=rotate.",
            table(["parameters", "strategy", "ms a step", "÷ DDP", "CPU ms a step, all processes", "load"], rows),
        ],
        list(found),
        ratios,
    )
