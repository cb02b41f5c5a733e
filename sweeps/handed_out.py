"""Jobs of `nmt train -m` trained by an executor: watched like a sweep, tracked like lone runs, and without a table."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from contextlib import ExitStack

from nmt import registry
from nmt.archives import ArchivedRunStore
from nmt.config import to_dict
from nmt.config.validation import validate
from nmt.errors import UserError
from nmt.multirun import Job
from nmt.train import RunOutcome
from nmt.training.tracker import Tracker
from sweeps.plan import SHARED_SECTIONS, PlannedRow, PlannedRun, SweepPlan
from sweeps.progress import show_progress
from sweeps.results import read_replicate
from sweeps.screen import log_to
from sweeps.spec import RowSpec, SweepSpec
from sweeps.trackers import RunTrackers


def hand_out(jobs: Sequence[Job], executor: str) -> list[RunOutcome]:
    """Train what is missing of the jobs' runs with the executor called `executor`; what became of each job.

    Raises UserError where jobs differ in what one executor has only one of, or want of it what it cannot do; and what
    `Executor.execute` raises.
    """
    # Bound to the stream of this moment: an executor may silence sys.stderr meanwhile.
    from rich.console import Console

    plan = plan_of(jobs)
    config = dataclasses.replace(plan.config.executor, name=executor)
    for job in jobs:
        validate(dataclasses.replace(job.config, executor=config))
    items = plan.work_items()
    if items:
        console = Console(file=sys.stderr)
        console.print(f"{len(items)} of {len({job.run_id for job in jobs})} runs to do, executor={executor}")
        at_work = registry.lookup("executor", executor, "hydra/launcher")(config, plan.store)
        with ExitStack() as stack:
            stack.enter_context(log_to(console))
            tracker = _open_tracker(plan)
            stack.callback(tracker.close)
            progress = show_progress(plan, console)
            stack.callback(progress.close)

            def on_poll() -> None:
                progress.update()
                tracker.poll()

            at_work.execute(items, on_poll)
    found = [read_replicate(plan.store, job.config, job.run_id) for job in jobs]
    return [RunOutcome(one.run_id, one.state, one.error or one.reason) for one in found]


def plan_of(jobs: Sequence[Job]) -> SweepPlan:
    """The jobs as a sweep: those that differ in their seed only are replicates of one row."""
    for job in jobs:
        for name in SHARED_SECTIONS:
            if getattr(job.config, name) != getattr(jobs[0].config, name):
                raise UserError("is one for all jobs of a launcher", where=name, hint=f"give each key of {name} once")
    store = ArchivedRunStore(jobs[0].config.paths.runs)
    rows: dict[str, list[PlannedRun]] = {}
    for job in jobs:
        label = " ".join(word for word in job.varied if not word.startswith("seed=")) or job.config.label or "run"
        row = rows.setdefault(label, [])
        found = read_replicate(store, job.config, job.run_id)
        row.append(PlannedRun(label=label, replicate=len(row), config=job.config, found=found))
    planned = [
        PlannedRow(spec=RowSpec(label=label), config=runs[0].config, runs=tuple(runs)) for label, runs in rows.items()
    ]
    spec = SweepSpec(name="train", title="nmt train -m", rows=tuple(row.spec for row in planned))
    return SweepPlan(spec=spec, rows=tuple(planned), store=store)


def _open_tracker(plan: SweepPlan) -> Tracker:
    """What mirrors the runs where `nmt train` does: each configuration with all its replicates that are there."""
    if plan.config.tracking.name != "mlflow":
        open_for_run = registry.lookup("tracker", plan.config.tracking.name, "tracking.name")
        return RunTrackers([open_for_run(run.config, plan.store) for run in plan.runs])
    from sweeps.tracking.tracker import ConfigurationGroup, open_for_sweep

    there = plan.store.list_runs()
    scales: dict[str, list[ConfigurationGroup]] = {}
    for row in plan.rows:
        run_ids = [run_id for run_id in there if run_id.startswith(f"{row.train_id}/")]
        run_ids += [run.run_id for run in row.runs if run.run_id not in there]
        group = ConfigurationGroup(row.config.label or row.train_id, row.train_id, run_ids, to_dict(row.config))
        scales.setdefault(row.config.scale.name, []).append(group)
    uri = plan.config.tracking.uri
    return RunTrackers([open_for_sweep("train", scale, groups, plan.store, uri) for scale, groups in scales.items()])
