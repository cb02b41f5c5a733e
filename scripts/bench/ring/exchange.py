"""An all-reduce of our own beside gloo's, in processes that do nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from bench.children import Job, Report
from bench.machine import Spread
from bench.tables import Part, table
from bench.turns import take_turns

SIZES = {"32 MB": 8_000_000, "256 MB": 64_000_000}  # elements of 4 bytes
MEMBERS = 2
RIVAL, LINKS = "gloo", ("shm", "tcp")
LOOPS = "bench.ring.loops"


def exchange_jobs(sizes: Sequence[str], rounds: int, seconds: float) -> list[Job]:
    """A job for each size."""
    return [Job(f"all-reduce, {size}", measure_exchange, (size, rounds, seconds), units=rounds) for size in sizes]


def measure_exchange(report: Report, size: str, rounds: int, seconds: float) -> dict[str, Any]:
    """Seconds of a sum by every way, one after the other in every round; each is timed for `seconds` of it, about."""
    from bench.parameter_server.gang import Gang

    with ExitStack() as running:
        gangs = {RIVAL: running.enter_context(Gang(MEMBERS, f"{LOOPS}:GlooAllReduce", SIZES[size]))}
        for link in LINKS:
            gangs[link] = running.enter_context(Gang(MEMBERS, f"{LOOPS}:OwnAllReduce", SIZES[size], link))
        steps = {name: max(3, min(100, round(seconds / gang.run(2)))) for name, gang in gangs.items()}
        runs = {name: gang.run for name, gang in gangs.items()}
        found = take_turns(report, runs, {name: {"worker": gang.pids} for name, gang in gangs.items()}, steps, rounds)
    return {"size": size, "members": MEMBERS, "steps_per_round": steps, "rounds": found}


def exchange_part(found: Sequence[dict[str, Any]]) -> Part:
    """Ratios to gloo in the same round; `ring_vs_gloo` is the worst over shared memory, `ring_tcp_vs_gloo` over TCP."""
    rows = []
    ratios: dict[str, float] = {}
    for one in found:
        for name, rounds in one["rounds"].items():
            over = Spread.of([a["step"] / b["step"] for a, b in zip(rounds, one["rounds"][RIVAL], strict=True)])
            if name in LINKS:
                ratios[f"all_reduce/{one['size']}/{name}/over_gloo"] = over.median
            rows.append(
                [
                    one["size"],
                    f"own, {name}" if name in LINKS else name,
                    Spread.of([1e3 * a["step"] for a in rounds]).shown("{:,.1f}".format),
                    over.shown("{:.2f}".format),
                    Spread.of([1e3 * a["cpu"] for a in rounds]).shown("{:,.1f}".format),
                    f"{Spread.of([a['load'] for a in rounds]).median:.1f}",
                ]
            )
    for link, name in zip(LINKS, ("ring_vs_gloo", "ring_tcp_vs_gloo"), strict=True):
        ratios[name] = max(ratios[f"all_reduce/{one['size']}/{link}/over_gloo"] for one in found)
    return Part(
        "Ring all-reduce",
        [
            f"{MEMBERS} processes of one thread each, which do nothing else: the sum of a gradient that is there, in "
            "buckets of 25 MiB; gloo is given all of it at once.",
            table(["gradient", "way", "ms a sum", "÷ gloo", "CPU ms, all processes", "load"], rows),
        ],
        list(found),
        ratios,
    )
