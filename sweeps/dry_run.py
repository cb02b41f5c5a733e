"""`dry_run=true`: what a sweep consists of and what it would run, without starting anything."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from sweeps.plan import SweepPlan

WHAT = {
    "nothing": "nothing: complete",
    "decode": "decode the test split",
    "resume": "resume",
    "train": "train",
}


def show_plan(plan: SweepPlan, console: Console) -> None:
    """Print rows, run ids, states, budgets, sizes and what is left to do. Imports torch, to count parameters."""
    from nmt.models.parameters import planned_parameters

    _say(console, f"{plan.name}: {plan.spec.title}")
    table = Table()
    for name in ("row", "run", "state", "would"):
        table.add_column(name, no_wrap=True)
    for name in ("step", "params M"):
        table.add_column(name, justify="right", no_wrap=True)
    shown: dict[str, str] = {}
    for row in plan.rows:
        millions = f"{planned_parameters(row.config) / 1e6:.2f}"
        for run in row.runs:
            step = plan.store.status(run.run_id).step
            would = f"same run as {shown[run.run_id]}" if run.run_id in shown else WHAT[run.todo]
            shown.setdefault(run.run_id, row.label)
            steps = f"{step}/{run.config.training.max_steps}"
            table.add_row(row.label, run.run_id, run.found.state, would, steps, millions)
    console.print(table)
    for differs in dict.fromkeys(row.differs for row in plan.rows if row.differs):
        labels = ", ".join(row.label for row in plan.rows if row.differs == differs)
        _say(console, f"other conditions than published ({labels}): {'; '.join(differs)}")
    items = plan.work_items()
    runs = {run.run_id for run in plan.runs}
    executor = plan.config.executor.name
    _say(console, f"{len(runs)} runs, {len(items)} to do through executor={executor}; nothing was started")


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
