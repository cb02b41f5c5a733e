"""A sweep from what is missing to its table: executed, looked at again where a rule asks for it, and reported."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nmt import registry
from nmt.training.tracker import Tracker
from sweeps.launches import record_launch
from sweeps.ledger import Question, record_rows
from sweeps.plan import SweepPlan, plan_again
from sweeps.reuse import compare_with_set_aside, set_aside
from sweeps.screen import log_to, near, say
from sweeps.summary import next_steps, show
from sweeps.trackers import open_tracker
from sweeps.until import next_look

if TYPE_CHECKING:
    from rich.console import Console

    from sweeps.aggregate import RowResult
    from sweeps.executors.placement import Executor
    from sweeps.reporting.findings import Findings
    from sweeps.reporting.report import Report
    from sweeps.worker import WorkItem

DONE, INCOMPLETE, INTERRUPTED = 0, 1, 75


def run_sweep(plan: SweepPlan, console: Console, words: Sequence[str], columns: Sequence[str] = ()) -> int:
    """Run what is missing, then report; returns 0 with all replicates there, 1 with some failed, 75 interrupted.

    `words` of `nmt sweep` ask for this plan again, its number of replicates apart; `columns` are those of the table.
    """
    with log_to(console):
        return _run_sweep(plan, console, words, columns)


def _run_sweep(plan: SweepPlan, console: Console, words: Sequence[str], columns: Sequence[str]) -> int:
    interrupted = False
    items = plan.work_items()
    before_launch = _before_launch(plan) if items else []
    executor = registry.lookup("executor", plan.config.executor.name, "executor.name")(plan.config.executor, plan.store)
    say(console, f"{plan.name}: {plan.spec.title}")
    say(console, _intention(plan, len(items)))
    for line in [*before_launch, *map("superseded: {}".format, plan.superseded)]:
        say(console, line)
    anew = _put_down(plan, items, console)
    tracker = open_tracker(plan)
    try:
        tried: set[str] = set()
        while items:
            interrupted = _execute(plan, items, executor, tracker, console)
            if interrupted or plan.until is None:
                break
            tried.update(run_id for item in items for run_id in item.run_ids)
            plan = plan_again(plan)
            say(console, next_look(plan))
            items = [item for item in plan.work_items() if not tried.issuperset(item.run_ids)]
            if items:
                anew += _put_down(plan, items, console)
                tracker.close()
                tracker = open_tracker(plan)
        results, findings, report = _report(plan, tracker)
        show(plan, results, console, columns, findings.tests)
        model = "" if interrupted else _register(plan, tracker)
    finally:
        tracker.close()
    if compared := compare_with_set_aside(plan.store, anew):
        say(console, compared)
    missing = sum(row.missing for row in results)
    if interrupted:
        say(console, f"interrupted with {missing} replicates missing; the same command goes on where they stopped")
        return INTERRUPTED
    next_steps(plan, results, report, model, console, words)
    return INCOMPLETE if missing else DONE


def _put_down(plan: SweepPlan, items: Sequence[WorkItem], console: Console) -> list[str]:
    """Note what is about to run, and set aside what does not count any more; returns the runs that were."""
    record_rows(plan.store, Question.of(plan.name, plan.overrides), {row.label: row.train_id for row in plan.rows})
    record_launch(plan)
    plan.store.leave_archives(run_id for item in items for run_id in item.run_ids)
    anew = {run.run_id: run.set_aside for run in plan.runs if run.set_aside is not None}
    for run_id, code in anew.items():
        place = set_aside(plan.store, run_id, code)
        say(console, f"{run_id}, made by {code or 'unknown code'}, is set aside in {near(place)}")
    return list(anew)


def _execute(plan: SweepPlan, items: list[WorkItem], executor: Executor, tracker: Tracker, console: Console) -> bool:
    """Bring the missing runs to their end; whether a signal, or the loss of the cluster, cut that short."""
    from sweeps.executors.ray_process import ClusterLostError
    from sweeps.progress import show_progress

    progress = show_progress(plan, console)

    def on_poll() -> None:
        progress.update()
        tracker.poll()

    lost = ""
    try:
        executor.execute(items, on_poll, lambda line: say(console, line))
    except KeyboardInterrupt:
        return True
    except ClusterLostError as error:
        lost = f"error: {error}"
    finally:
        progress.close()
    if lost:
        say(console, lost)
    return bool(lost)


def _report(plan: SweepPlan, tracker: Tracker) -> tuple[list[RowResult], Findings, Report]:
    from sweeps.aggregate import aggregate
    from sweeps.reporting.findings import find
    from sweeps.reporting.report import write_report

    results = aggregate(plan)
    findings = find(plan, results)
    report = write_report(plan, results, findings=findings)
    if hasattr(tracker, "attach"):
        for path in (report.table, report.csv, report.figure, report.data):
            tracker.attach(path)
    return results, findings, report


def _register(plan: SweepPlan, tracker: Tracker) -> str:
    """Put the best run into the tracker's registry of models, if it has one; what came of it, for the last lines."""
    if plan.config.tracking.register != "best" or not hasattr(tracker, "register_best"):
        return ""
    model = tracker.register_best()
    return f"{model.uri} in MLflow, version {model.version}{', new' if model.new else ''}" if model else ""


def _intention(plan: SweepPlan, items: int) -> str:
    runs = {run.run_id for run in plan.runs}
    there = len(runs) - items
    rows = f"{len(plan.rows)} rows × {plan.config.replicates} replicates"
    if plan.until is not None:
        rows = f"{len(plan.rows)} rows, replicates {plan.until}"
    if not items:
        return f"{rows}: all {len(runs)} runs are there, nothing to train"
    reused = f", {there} there already" if there else ""
    return f"{rows}: {items} of {len(runs)} runs to do{reused}, executor={plan.config.executor.name}"


def _before_launch(plan: SweepPlan) -> list[str]:
    """What must hold, and be known, before anything is trained.

    Raises UserError where a row's parameters are not those that were published for it.
    """
    from sweeps.counts import check_counts, count_rows
    from sweeps.dry_run import left_out, shared_runs

    published = [row.spec for row in plan.rows if row.spec.published and row.spec.published.params_M is not None]
    counts = check_counts(count_rows(published)) if published else ""  # without, torch need not load
    lines = [counts, left_out(plan), shared_runs(plan)]
    return [line for line in lines if line]
