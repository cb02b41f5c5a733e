"""Peak memory of a training step, each in a process of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from bench.children import Job, Report
from bench.machine import prepare_machine, resident_bytes
from bench.settings import Settings
from bench.tables import Part, mega, table

SEARCHED = 200  # steps among which the one with the most tokens is looked for


def memory_jobs(settings: Settings) -> list[Job]:
    """A process for each shape and precision."""
    return [
        Job(f"memory {shape} {precision}", measure_memory, (settings, shape, precision))
        for shape in settings.shapes
        for precision in settings.precisions[: 1 if settings.quick else None]
    ]


def measure_memory(report: Report, settings: Settings, shape: str, precision: str) -> dict[str, Any]:
    """Bytes held once model and optimizer are built, and the most held in three steps, one of them the largest."""
    from distributed.single import SingleStrategy
    from nmt.profiling.phases import Given
    from nmt.training.device import peak_memory_bytes
    from nmt.training.workload import TranslationWorkload

    prepare_machine(settings)
    config = settings.config(shape, precision)
    workload = TranslationWorkload(config, settings.device, settings.data(config))
    strategy = SingleStrategy()
    strategy.start(Given("", {}, workload))
    largest = max(range(1, SEARCHED + 1), key=lambda index: _padded(workload, index))
    built = peak_memory_bytes("cuda") if settings.device == "cuda" else resident_bytes()
    for index in (1, largest, largest):
        strategy.step(index)
    report()
    return {
        "shape": shape,
        "precision": precision,
        "parameters": strategy.flat.values.numel(),
        "padded_tokens": _padded(workload, largest),
        "built_bytes": built,
        "peak_bytes": peak_memory_bytes(settings.device),
    }


def _padded(workload: Any, index: int) -> int:
    """Positions of a step, padding included."""
    train, found = workload.prepared.train, 0
    for numbers in workload.sampler.slots(index):
        found += len(numbers) * int(train.source_lengths[numbers].max() + train.target_lengths[numbers].max() + 2)
    return found


def memory_part(settings: Settings, found: Sequence[dict[str, Any]]) -> Part:
    """Bytes, and growth by what parameters, gradient and two moments take."""
    rows, ratios = [], {}
    for one in found:
        state = 4 * 4 * one["parameters"]
        growth = one["peak_bytes"] - one["built_bytes"]
        name = f"memory/{one['shape']}/{one['precision']}"
        ratios[f"{name}/growth_over_state"] = growth / state
        rows.append(
            [one["shape"], one["precision"], f"{one['parameters']:,}", f"{one['padded_tokens']:,}"]
            + [mega(size) for size in (state, one["built_bytes"], one["peak_bytes"], growth)]
        )
    heads = ["shape", "precision", "parameters", "positions of the largest step", "parameters + gradient + moments, MB"]
    return Part(
        "Memory of a training step",
        [
            "`built`: the process, libraries included, before its first step (on a GPU: allocated there). `growth`: "
            "what steps add to that.",
            table([*heads, "built, MB", "peak, MB", "growth, MB"], rows),
        ],
        list(found),
        ratios,
    )
