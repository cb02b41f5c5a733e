"""`dry_run=true`: what a sweep consists of and what it would run, without starting anything."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from sweeps.conditions import shared_differences
from sweeps.counts import check_counts, count_rows
from sweeps.plan import SweepPlan
from sweeps.table import NOTHING

WHAT = {
    "nothing": "nothing: complete",
    "decode": "decode the test split",
    "resume": "resume",
    "train": "train",
}


def show_plan(plan: SweepPlan, console: Console) -> None:
    """Print rows, run ids, states, budgets, sizes and what is left to do. Imports torch, to count parameters.

    Raises UserError where a row's parameters at published size are not those that were published.
    """
    from nmt.models.parameters import planned_parameters

    _say(console, f"{plan.name}: {plan.spec.title}")
    table = Table()
    for name in ("row", "run", "state", "would"):
        table.add_column(name, no_wrap=True)
    for name in ("step", "parameters", "at published size", "published M"):
        table.add_column(name, justify="right", no_wrap=True)
    shown: dict[str, str] = {}
    counts = count_rows([row.spec for row in plan.rows])
    for row, count in zip(plan.rows, counts, strict=True):
        sizes = [f"{planned_parameters(row.config):,}", NOTHING, NOTHING]
        if count is not None:
            sizes[1] = f"{count.parameters:,}"
            sizes[2] = NOTHING if count.published_M is None else f"{count.published_M:.2f}"
        for run in row.runs:
            step = plan.store.status(run.run_id).step
            would = f"same run as {shown[run.run_id]}" if run.run_id in shown else WHAT[run.todo]
            shown.setdefault(run.run_id, row.label)
            steps = f"{step}/{run.config.training.max_steps}"
            table.add_row(row.label, run.run_id, run.found.state, would, steps, *sizes)
    console.print(table)
    for line in (check_counts(counts), left_out(plan)):
        if line:
            _say(console, line)
    for line in _conditions(plan):
        _say(console, line)
    items = plan.work_items()
    runs = {run.run_id for run in plan.runs}
    executor = plan.config.executor.name
    _say(console, f"{len(runs)} runs, {len(items)} to do through executor={executor}; nothing was started")


def left_out(plan: SweepPlan) -> str:
    """One line on the rows that another corpus makes void, empty where there are none."""
    if not plan.left_out:
        return ""
    rows = "; ".join(f"{row.label} (needs test set {row.test})" for row in plan.left_out)
    return f"left out with data={plan.config.data.name}: {rows}"


def _conditions(plan: SweepPlan) -> list[str]:
    """In what the rows differ from their publication: what all of them do, then what some do besides."""
    published = [row for row in plan.rows if row.spec.published]
    shared = shared_differences([row.differs for row in published])
    lines = [f"not as published: {'; '.join(shared)}"] if shared else []
    besides: dict[str, list[str]] = {}
    for row in published:
        rest = "; ".join(difference for difference in row.differs if difference not in shared)
        if rest:
            besides.setdefault(rest, []).append(row.label)
    return lines + [f"{', '.join(labels)} besides: {rest}" for rest, labels in besides.items()]


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
