"""`nmt sweep`: rows × replicates of a sweep, what is missing of them, table and picture."""

from __future__ import annotations

import logging
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nmt import registry
from nmt.arguments import option, parse
from nmt.config import to_dict, train_id
from nmt.evaluation.catalogue import rank
from nmt.runs import runs_directory
from nmt.training.tracker import Tracker
from sweeps.plan import SweepPlan, make_plan
from sweeps.spec import available_sweeps, load_spec

if TYPE_CHECKING:
    from rich.console import Console

    from sweeps.aggregate import RowResult
    from sweeps.executors.placement import Executor
    from sweeps.report import Report

DONE, INCOMPLETE, INTERRUPTED = 0, 1, 75
WIDE = 240  # columns of output that is no terminal's
EXAMPLES = """\
Examples:
  nmt sweep sweep=quickstart                    # train what is missing, then table and picture
  nmt sweep sweep=quickstart replicates=4       # two more replicates of each row
  nmt sweep sweep=quickstart dry_run=true       # what would run
  nmt sweep sweep=quickstart executor=inline training.max_steps=100
"""


@dataclass(frozen=True, kw_only=True)
class SweepOptions:
    """What `nmt sweep` takes beside config overrides."""

    sweep: str = option(
        "", "name of a sweep in conf/sweep, or a YAML file of your own; without it, the sweeps are listed"
    )
    dry_run: bool = option(False, "print rows, runs and what would be done, and start nothing")


def main(argv: Sequence[str]) -> int:
    """Run a sweep as the command line asks; returns the exit code."""
    options, overrides = parse(
        SweepOptions,
        argv,
        verb="nmt sweep",
        summary="Train every row of a sweep in replicates, resuming and reusing what is there, and show the table "
        "mean ± sd (max). Other words are config overrides for all rows (`nmt train --help` lists them).",
        epilog=EXAMPLES,
        rest=True,
    )
    # Bound to the stream of this moment: an executor may silence sys.stdout while the table is alive.
    from rich.console import Console

    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else WIDE)
    if not options.sweep:
        list_sweeps(console)
        return DONE
    plan = make_plan(load_spec(options.sweep), overrides)
    if options.dry_run:
        from sweeps.dry_run import show_plan

        show_plan(plan, console)
        return DONE
    return run_sweep(plan, console, options.sweep)


def list_sweeps(console: Console) -> None:
    """Print the checked-in sweeps with their titles."""
    sweeps = available_sweeps()
    width = max(map(len, sweeps), default=0)
    console.print("nmt sweep sweep=<name>, one of", highlight=False)
    for name, title in sweeps.items():
        console.print(f"  {name:<{width}}  {title}", markup=False, highlight=False, soft_wrap=True)


def run_sweep(plan: SweepPlan, console: Console, name: str) -> int:
    """Run what is missing, then report; returns 0 with all replicates there, 1 with some failed, 75 interrupted."""
    interrupted = False
    items = plan.work_items()
    before_launch = _before_launch(plan) if items else []
    _log_to(console)
    executor = registry.lookup("executor", plan.config.executor.name, "executor.name")(plan.config.executor, plan.store)
    _say(console, f"{plan.name}: {plan.spec.title}")
    _say(console, _intention(plan, len(items)))
    for line in before_launch:
        _say(console, line)
    tracker = open_tracker(plan)
    try:
        if items:
            interrupted = _execute(plan, executor, tracker, console)
        results, report = _report(plan, tracker)
    finally:
        tracker.close()
    _show(plan, results, console)
    missing = sum(row.missing for row in results)
    if interrupted:
        _say(console, f"interrupted with {missing} replicates missing; the same command goes on where they stopped")
        return INTERRUPTED
    _next_steps(plan, results, report, console, name)
    return INCOMPLETE if missing else DONE


class RunTrackers:
    """Trackers that know single runs, as one."""

    def __init__(self, trackers: Sequence[Tracker]):
        self.trackers = trackers

    def poll(self) -> None:
        """Poll each."""
        for tracker in self.trackers:
            tracker.poll()

    def close(self) -> None:
        """Close each."""
        for tracker in self.trackers:
            tracker.close()


def open_tracker(plan: SweepPlan) -> Tracker:
    """What mirrors the sweep's runs elsewhere, as `tracking.name` says."""
    config = plan.config
    if config.tracking.name != "mlflow":
        open_for_run = registry.lookup("tracker", config.tracking.name, "tracking.name")
        return RunTrackers([open_for_run(run.config, plan.store) for run in plan.runs])
    from sweeps.tracking import ConfigurationGroup, open_for_sweep

    groups = [
        ConfigurationGroup(row.label, train_id(row.config), [run.run_id for run in row.runs], to_dict(row.config))
        for row in plan.rows
    ]
    return open_for_sweep(plan.name, config.scale.name, groups, plan.store, config.tracking.uri)


def _execute(plan: SweepPlan, executor: Executor, tracker: Tracker, console: Console) -> bool:
    """Bring the missing runs to their end; whether a signal cut that short."""
    from sweeps.progress import show_progress

    progress = show_progress(plan, console)

    def on_poll() -> None:
        progress.update()
        tracker.poll()

    try:
        executor.execute(plan.work_items(), on_poll)
    except KeyboardInterrupt:
        return True
    finally:
        progress.close()
    return False


def _report(plan: SweepPlan, tracker: Tracker) -> tuple[list[RowResult], Report]:
    from sweeps.aggregate import aggregate
    from sweeps.report import write_report

    results = aggregate(plan)
    report = write_report(plan, results)
    if hasattr(tracker, "attach"):
        for path in (report.table, report.csv, report.figure, report.data):
            tracker.attach(path)
    return results, report


def _intention(plan: SweepPlan, items: int) -> str:
    runs = {run.run_id for run in plan.runs}
    there = len(runs) - items
    rows = f"{len(plan.rows)} rows × {plan.config.replicates} replicates"
    if not items:
        return f"{rows}: all {len(runs)} runs are there, nothing to train"
    reused = f", {there} there already" if there else ""
    return f"{rows}: {items} of {len(runs)} runs to do{reused}, executor={plan.config.executor.name}"


def _before_launch(plan: SweepPlan) -> list[str]:
    """What must hold, and be known, before anything is trained.

    Raises UserError where a row's parameters are not those that were published for it.
    """
    from sweeps.counts import check_counts, count_rows
    from sweeps.dry_run import left_out

    published = [row.spec for row in plan.rows if row.spec.published and row.spec.published.params_M is not None]
    counts = check_counts(count_rows(published)) if published else ""  # without, torch need not load
    return [line for line in (counts, left_out(plan)) if line]


def _show(plan: SweepPlan, results: Sequence[RowResult], console: Console) -> None:
    from sweeps.table import make_table, to_markdown, to_screen

    table = make_table(plan, results)
    console.print()
    if console.is_terminal:
        console.print(to_screen(table))
    else:
        console.print(to_markdown(table), markup=False, highlight=False, soft_wrap=True)
    for row in results:
        for replicate in row.replicates:
            if replicate.state == "failed":
                where = _near(plan.store.directory(replicate.run_id))
                _say(console, f"{row.label} failed: {replicate.error} ({where})")


def _next_steps(plan: SweepPlan, results: Sequence[RowResult], report: Report, console: Console, name: str) -> None:
    metric = plan.config.validation.metric
    best = [run for row in results if (run := row.best_run(metric))]
    words = " ".join(
        ["nmt sweep", shlex.quote(f"sweep={name}"), *map(shlex.quote, _without_replicates(plan.overrides))]
    )
    runs = "" if plan.store.root == runs_directory() else f" {shlex.quote(f'paths.runs={plan.config.paths.runs}')}"
    missing = sum(row.missing for row in results)
    if missing:
        _say(console, f"{missing} replicates are missing; the same command tries them again")
    lines = [
        ("table", f"{_near(report.table)}, {report.csv.name}, and {report.data.name} with every run id"),
        ("picture", f"{_near(report.figure)}, {report.vector_figure.name}"),
        ("runs", _near(plan.store.directory(""))),
    ]
    if plan.config.tracking.name == "mlflow":
        lines.append(("browse", f"nmt ui{runs}"))
    if not missing:
        lines.append(("add replicates", f"{words} replicates={plan.config.replicates + 1}"))
    if best:
        winner = max(best, key=lambda run: rank(metric, run.metrics[metric]))
        lines.append(("translate", f"nmt translate run={winner.run_id}{runs} < text"))
    for what, how in lines:
        _say(console, f"{what:<16}{how}")


def _without_replicates(overrides: Sequence[str]) -> list[str]:
    return [word for word in overrides if not word.startswith("replicates=")]


def _near(path: os.PathLike[str]) -> str:
    """The path as one would type it here."""
    text = os.path.relpath(path)
    return os.fspath(path) if text.startswith("..") else text


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


class _ConsoleHandler(logging.Handler):
    """Log lines above the live table instead of through it."""

    def __init__(self, console: Console):
        super().__init__(logging.WARNING)
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        _say(self.console, self.format(record))


def _log_to(console: Console) -> None:
    logger = logging.getLogger("nmt")
    for handler in [handler for handler in logger.handlers if isinstance(handler, _ConsoleHandler)]:
        logger.removeHandler(handler)
    logger.addHandler(_ConsoleHandler(console))
    logger.propagate = False
