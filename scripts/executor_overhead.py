"""What an executor costs beside training: the time between one replicate's end and the next one's start.

    python scripts/executor_overhead.py                          # six replicates through each executor
    python scripts/executor_overhead.py executors=ray_tune replicates=12

Tiny replicates of one row are trained one after the other. When a run began and ended it has written down itself
(`events.jsonl`): what lies between two runs is the executor's. What a fresh process costs inside a run (imports, first
calls) is not seen there, so the same replicates are trained in this process too, which is warm after the first, and a
replicate's overhead is the time from end to end less what it takes here. The first replicate, which waits for a cluster
or a fork server, is shown for itself. Times of a busy machine mean little: its load is printed.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from nmt import registry
from nmt.arguments import exit_code, option, parse
from nmt.environment import available_cores
from nmt.errors import UserError
from nmt.events import BEGINNINGS, ENDS, EVENTS, read_events
from sweeps.plan import SweepPlan, make_plan
from sweeps.spec import RowSpec, SweepSpec

DATA = ["data=toy_reverse", "data.options={train_size: 400, validation_size: 20, test_size: 20}"]
TINY = [*DATA, "tokenizer.vocab_size=24", "scale=smoke", "search=greedy", "tracking=none", "threads=1", "device=cpu"]
HERE = "this process"
COLUMNS = ("executor", "runs", "wall s", "to the first s", "a run s", "between s", "overhead s", "after the last s")


@dataclass(frozen=True, kw_only=True)
class OverheadOptions:
    """What the script takes."""

    executors: str = option("inline,ray_tune", "executors to measure, with commas between them")
    replicates: int = option(6, "replicates that are trained, one after the other", minimum=2)
    steps: int = option(20, "steps of a replicate", minimum=1)
    address: str = option("local", "executor.address of ray_tune")


@dataclass(frozen=True, kw_only=True)
class Overhead:
    """One executor's times, in seconds.

    inside: of each run, from its first event to its last; between: from each run's end to the next one's start; paces:
    from each run's end to the next one's.
    """

    executor: str
    wall: float
    before: float
    inside: tuple[float, ...]
    between: tuple[float, ...]
    paces: tuple[float, ...]
    after: float

    def cells(self, training: float) -> tuple[str, ...]:
        """As a line of the table, medians where there are several; `training` is what a run takes by itself."""
        seconds = (
            self.wall,
            self.before,
            statistics.median(self.inside),
            statistics.median(self.between),
            statistics.median(self.paces) - training,
            self.after,
        )
        return (self.executor, str(len(self.inside)), *(f"{one:.2f}" for one in seconds))


def main(argv: Sequence[str]) -> int:
    """Measure, and print a table; returns the exit code."""
    options = parse(
        OverheadOptions,
        argv,
        verb="python scripts/executor_overhead.py",
        summary="What an executor costs a replicate beside its training.",
    )
    for name in options.executors.split(","):
        registry.location("executor", name, "executors")
    measured = [measure(name, options) for name in (HERE, *options.executors.split(","))]
    load = ", ".join(f"{one:.2f}" for one in os.getloadavg())
    print(f"{options.replicates} replicates of {options.steps} steps one after the other; medians")
    print(f"{available_cores()} cores, load of the last 1, 5 and 15 minutes {load}")
    training = statistics.median(measured[0].paces)
    lines = [COLUMNS, *(one.cells(training) for one in measured)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(COLUMNS))]
    for line in lines:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
    return 0


def measure(executor: str, options: OverheadOptions) -> Overhead:
    """Train the replicates through `executor`, in a store of their own. Raises UserError where one does not finish."""
    name = "inline" if executor == HERE else executor
    with tempfile.TemporaryDirectory(prefix="nmt-overhead-", ignore_cleanup_errors=True) as folder:
        words = [f"executor={name}", "executor.workers=1", f"paths.runs={folder}"]
        if executor == "ray_tune":
            words.append(f"executor.address={options.address}")
        row = RowSpec(label="row", overrides=(f"training.max_steps={options.steps}",))
        spec = SweepSpec(name="overhead", title="Overhead", rows=(row,), replicates=options.replicates)
        plan = make_plan(spec, [*TINY, *words])
        how = {"in_process": True} if executor == HERE else {}
        at_work = registry.lookup("executor", name, "executors")(plan.config.executor, plan.store, **how)
        begin = time.time()
        at_work.execute(plan.work_items(), lambda: None)
        end = time.time()
        spans = sorted(span(plan, run.run_id) for run in plan.runs)
    return Overhead(
        executor=executor,
        wall=end - begin,
        before=spans[0][0] - begin,
        inside=tuple(last - first for first, last in spans),
        between=tuple(start - stop for (_, stop), (start, _) in pairwise(spans)),
        paces=tuple(later - stop for (_, stop), (_, later) in pairwise(spans)),
        after=end - spans[-1][1],
    )


def span(plan: SweepPlan, run_id: str) -> tuple[float, float]:
    """When a run began and ended. Raises UserError where it did not finish."""
    events = read_events(Path(plan.store.directory(run_id)) / EVENTS)
    times = {event["kind"]: float(event["time"]) for event in events}
    if "finished" not in times:
        raise UserError(f"did not finish: {plan.store.status(run_id).error or 'see its directory'}", where=run_id)
    begun = min(at for kind, at in times.items() if kind in BEGINNINGS)
    return begun, max(at for kind, at in times.items() if kind in ENDS)


if __name__ == "__main__":
    sys.exit(exit_code(main, sys.argv[1:]))
