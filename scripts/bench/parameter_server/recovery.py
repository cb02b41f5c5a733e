"""How long a run stands still when one of its processes is killed."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from bench.children import Job, Report
from bench.machine import Spread
from bench.parameter_server.exchange import shown
from bench.tables import Part, table

STEPS_BEFORE, STEPS_AFTER = 10, 20
DEADLINE = 3.0  # seconds of silence, where a process is stopped instead of killed
CASES = {
    "worker killed": ("worker", signal.SIGKILL),
    "server killed": ("server", signal.SIGKILL),
    "worker stopped": ("worker", signal.SIGSTOP),
    "server stopped": ("server", signal.SIGSTOP),
}


def recovery_jobs(parameters: int, rounds: int) -> list[Job]:
    """A job for each case."""
    return [Job(f"recovery, {case}", measure_recovery, (case, parameters, rounds), units=rounds) for case in CASES]


def measure_recovery(report: Report, case: str, parameters: int, rounds: int) -> dict[str, Any]:
    """Seconds of a usual step, from the signal to its notice, from there to the new epoch, and of the longest step."""
    from bench.parameter_server.arm import WORKERS, Arm
    from bench.parameter_server.workloads import empty_spec
    from bench.turns import load

    role, number = CASES[case]
    found = []
    for _ in range(rounds):
        spec = empty_spec(parameters, WORKERS)
        with Arm(spec, shadows=1, deadline_seconds=DEADLINE, heartbeat_seconds=0.5) as arm:
            found.append(_one(arm, role, number) | {"load": load()})
        report()
    return {"case": case, "parameters": parameters, "deadline_seconds": DEADLINE, "rounds": found}


def _one(arm: Any, role: str, number: int) -> dict[str, float]:
    victim = arm.pids[role][-1]
    total = STEPS_BEFORE + STEPS_AFTER
    ends: list[float] = []
    sent: list[float] = []  # on the clock of `ends`
    struck: list[float] = []  # the same moment, on the clock of the report

    def strike() -> None:
        sent.append(time.perf_counter())
        struck.append(time.time())
        os.kill(victim, number)

    try:
        for index in range(1, total + 1):
            if index == STEPS_BEFORE + 1:  # while the next steps are under way
                threading.Timer((ends[-1] - ends[0]) / len(ends) / 2, strike).start()
            arm.strategy.step(index, horizon=total)
            ends.append(time.perf_counter())
    finally:
        if number == signal.SIGSTOP:
            with contextlib.suppress(ProcessLookupError):  # whoever started it has killed it already
                os.kill(victim, signal.SIGKILL)
    steps = [(end, end - begin) for begin, end in pairwise(ends)]
    (recovery,) = arm.strategy.report()["recoveries"]
    return {
        "usual_step": Spread.of([length for end, length in steps[: STEPS_BEFORE - 1]]).median,
        "longest_step": max(length for end, length in steps if end > sent[0]),
        "detection": max(0.0, recovery["at"] - struck[0]),
        "regrouping": recovery["seconds"],
    }


def recovery_part(found: Sequence[dict[str, Any]]) -> Part:
    """Times by case."""
    rows, ratios, seconds = [], {}, {}
    for one in found:
        cells = {
            kind: Spread.of([1e3 * a[kind] for a in one["rounds"]])
            for kind in ("usual_step", "detection", "regrouping", "longest_step")
        }
        ratios[f"recovery/{one['case']}/longest_over_usual_step"] = Spread.of(
            [a["longest_step"] / a["usual_step"] for a in one["rounds"]]
        ).median
        seconds |= {f"recovery/{one['case']}/{kind}": cell.median / 1e3 for kind, cell in cells.items()}
        rows.append([one["case"], *(cell.shown() for cell in cells.values())])
    return Part(
        "Recovery",
        [
            f"{shown(found[0]['parameters'])} parameters, two workers, two servers with shadows, signs of life every "
            f"0.5 s, a deadline of {DEADLINE:g} s. Detection: from the signal to the coordinator's notice; regrouping: "
            "from there to the new epoch's start; the longest step has both in it, and what had to be computed again. "
            "No step that any server had applied is done again.",
            table(["case", "usual step, ms", "detection, ms", "regrouping, ms", "longest step, ms"], rows),
        ],
        list(found),
        ratios,
        seconds,
    )
