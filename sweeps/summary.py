"""What a sweep says at its end: the table, runs that need attention, where everything lies, what to do next."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nmt.passwords import without_password
from nmt.runs import runs_directory
from sweeps.apart import own_id, store_of
from sweeps.plan import SweepPlan
from sweeps.screen import near, say

if TYPE_CHECKING:
    from rich.console import Console

    from sweeps.aggregate import RowResult
    from sweeps.reporting.report import Report
    from sweeps.significance import Significance


def show(
    plan: SweepPlan, results: Sequence[RowResult], console: Console, columns: Sequence[str], tests: Significance
) -> None:
    """Print the table, and below it the runs that failed or that another process is training.

    `tests` are those against the baseline.
    """
    from sweeps.reporting.table import fitted, make_table, to_markdown, to_screen

    table = make_table(plan, results, columns, tests)
    console.print()
    if console.is_terminal:
        console.print(to_screen(table if columns else fitted(table, console.width)))
    else:
        say(console, to_markdown(table))
    for row in results:
        for replicate in row.replicates:
            if replicate.state == "failed":
                where = near(plan.store.directory(replicate.run_id))
                say(console, f"{row.label} failed: {replicate.error} ({where})")
            elif replicate.state == "running":
                status = plan.store.status(replicate.run_id)
                say(console, f"{row.label}: process {status.pid} on {status.host} is training {replicate.run_id}")


def next_steps(
    plan: SweepPlan, results: Sequence[RowResult], report: Report, model: str, console: Console, words: Sequence[str]
) -> None:
    """Print where report, table and runs lie, and how to browse, go on and translate; `model` is in a registry."""
    from sweeps.aggregate import preference

    metric = plan.config.validation.metric
    best = [run for row in results if (run := row.best_run(metric)) and not plan.store.is_archived(run.run_id)]
    again = " ".join(["nmt sweep", *map(shlex.quote, map(without_password, words))])
    runs = "" if plan.store.root == runs_directory() else f" {shlex.quote(f'paths.runs={plan.config.paths.runs}')}"
    missing = sum(row.missing for row in results)
    if missing:
        say(console, f"{missing} replicates are missing; the same command tries them again")
    lines = [
        ("report", near(report.page)),
        ("table", f"{near(report.table)}, {report.csv.name}, and {report.data.name} with every run id"),
        ("picture", f"{near(report.figure)}, {report.vector_figure.name}"),
        ("runs", near(plan.store.directory(""))),
    ]
    if plan.config.tracking.name == "mlflow":
        lines.append(("browse", _browse(plan.config.tracking.uri, runs)))
    if not missing and plan.until is None:
        lines.append(("add replicates", f"{again} replicates={plan.config.replicates + 1}"))
    if best:
        winner = max(best, key=lambda run: preference(metric, run))
        if own := store_of(winner.run_id):
            runs = f" {shlex.quote(f'paths.runs={plan.config.paths.runs}/{own}')}"
        lines.append(("translate", f"nmt translate run={own_id(winner.run_id)}{runs} < text"))
    if model:
        lines.append(("model", model))
    for what, how in lines:
        say(console, f"{what:<16}{how}")


def _browse(uri: str, runs: str) -> str:
    """How to look at the runs in MLflow: an address to open, or a command."""
    shown = without_password(uri)
    if uri.startswith("http"):
        return shown
    return f"nmt ui{runs} " + shlex.quote(f"uri={shown}") if uri else f"nmt ui{runs}"
