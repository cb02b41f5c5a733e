"""`dry_run=true`: what a sweep consists of, what it would run and what that costs, without starting anything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice

from rich.console import Console
from rich.table import Table

from nmt.config import RunConfig
from nmt.config.identity import canonical, digest
from nmt.config.schema import TRAIN
from sweeps.conditions import shared_differences
from sweeps.cost import Cost, estimate
from sweeps.counts import RowCount, check_counts, count_rows
from sweeps.plan import SweepPlan
from sweeps.screen import say
from sweeps.until import forecast
from sweeps.wording import NOTHING, counted

UNKNOWN = "unknown"
MAX_RUNS = 60  # runs that are listed one by one
WHAT = {
    "nothing": "nothing: complete",
    "decode": "decode the test split",
    "resume": "resume",
    "train": "train",
    "anew": "set aside what other code made, train anew",
}


def show_plan(plan: SweepPlan, console: Console) -> None:
    """Print rows, run ids, states, budgets, sizes, what is left to do and its cost. Imports torch, to count parameters.

    Raises UserError where a row's parameters at published size are not those that were published.
    """
    say(console, f"{plan.name}: {plan.spec.title}")
    counts = count_rows([row.spec for row in plan.rows])
    console.print(_runs_table(plan, counts))
    if len(plan.runs) > MAX_RUNS:
        say(console, f"… and {len(plan.runs) - MAX_RUNS:,} more runs")
    cost = estimate(plan)
    console.print(_cost_table(plan, cost))
    lines = [check_counts(counts), left_out(plan), shared_runs(plan)]
    lines += [f"superseded: {one}" for one in plan.superseded]
    for line in [*filter(None, lines), *_conditions(plan), *_cost_lines(cost), *forecast(plan)]:
        say(console, line)
    items = plan.work_items()
    runs = {run.run_id for run in plan.runs}
    executor = plan.config.executor.name
    say(console, f"{len(runs)} runs, {len(items)} to do through executor={executor}; nothing was started")


def _runs_table(plan: SweepPlan, counts: Sequence[RowCount | None]) -> Table:
    table = Table()
    for name in ("row", "run", "state", "would"):
        table.add_column(name, no_wrap=True)
    for name in ("step", "at published size", "published M"):
        table.add_column(name, justify="right", no_wrap=True)
    shown: dict[str, str] = {}
    lines = ((row, count, run) for row, count in zip(plan.rows, counts, strict=True) for run in row.runs)
    for row, count, run in islice(lines, MAX_RUNS):
        sizes = [NOTHING, NOTHING]
        if count is not None:
            sizes = [f"{count.parameters:,}", NOTHING if count.published_M is None else f"{count.published_M:.2f}"]
        step = plan.store.status(run.run_id).step if run.found.state != "queued" else 0
        would = f"same run as {shown[run.run_id]}" if run.run_id in shown else WHAT[run.todo]
        shown.setdefault(run.run_id, row.label)
        steps = f"{step}/{run.config.training.max_steps}"
        table.add_row(row.label, run.run_id, run.found.state, would, steps, *sizes)
    return table


def _cost_table(plan: SweepPlan, cost: Cost) -> Table:
    """A line a row: what is left to do, its size, and its time from what like runs measured."""
    table = Table()
    table.add_column("row", no_wrap=True)
    for name in ("runs left", "steps", "tokens", "parameters", "tok/s", "from", "time"):
        table.add_column(name, justify="right", no_wrap=True)
    known: dict[str, int] = {}
    for planned, row in zip(plan.rows, cost.rows, strict=True):
        parameters = f"{_parameters(planned.config, known):,}"
        speed, rests_on = UNKNOWN, "no run"
        if row.pace is not None:
            pace = row.pace.tokens_per_second
            speed, rests_on = _with_spread(pace.mean, pace.sd, "{:,.0f}".format), counted(pace.n, "run")
        time = UNKNOWN if row.seconds is None else _with_spread(row.seconds, row.spread, duration)
        tokens = UNKNOWN if row.tokens is None else f"{row.tokens:,.0f}"
        if not row.runs:
            tokens = time = NOTHING
        table.add_row(row.label, str(row.runs), f"{row.steps:,}", tokens, parameters, speed, rests_on, time)
    return table


def _cost_lines(cost: Cost) -> list[str]:
    """The total, what it rests on, and what it leaves out."""
    left = [row for row in cost.rows if row.runs]
    if not left:
        return []
    steps, runs = sum(row.steps for row in left), sum(row.runs for row in left)
    known = [row for row in left if row.pace is not None]
    total = f"total: {counted(runs, 'run')}, {steps:,} steps"
    if not known:
        return [f"{total}; tokens and time unknown: no run of like shape has ended here"]
    tokens, seconds = sum(row.tokens or 0.0 for row in known), sum(row.seconds or 0.0 for row in known)
    spread = sum(row.spread or 0.0 for row in known) if all(row.spread is not None for row in known) else None
    time = _with_spread(seconds, spread, duration)
    if len(known) < len(left):
        return [
            f"{total}; of {len(known)} of {len(left)} rows {tokens:,.0f} tokens, {time} of training; others unknown"
        ]
    wall = "" if cost.wall_seconds is None else f", {duration(cost.wall_seconds)} with {cost.workers} at a time"
    lines = [f"{total}, {tokens:,.0f} tokens: {time} of training{wall}; evaluations and decoding come on top"]
    return lines + [f"tok/s {note}" for note in dict.fromkeys(row.pace.note for row in known if row.pace) if note]


def duration(seconds: float) -> str:
    """Seconds in the largest unit that leaves at least two of it: `90 s`, `12 min`, `3.4 h`, `2.1 d`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.1f} d"


def _with_spread(value: float, spread: float | None, form: Callable[[float], str]) -> str:
    return form(value) if spread is None else f"{form(value)} ± {form(spread)}"


def _parameters(config: RunConfig, known: dict[str, int]) -> int:
    """The model's parameters at the size that will run, each distinct model built once."""
    from nmt.models.parameters import planned_parameters

    model = digest({"model": canonical(config.model, {TRAIN}), "vocabulary": config.tokenizer.vocab_size})
    if model not in known:
        known[model] = planned_parameters(config)
    return known[model]


def left_out(plan: SweepPlan) -> str:
    """One line on the rows that another corpus makes void, empty where there are none."""
    if not plan.left_out:
        return ""
    rows = "; ".join(f"{row.label} (needs test set {row.test})" for row in plan.left_out)
    return f"left out with data={plan.config.data.name}: {rows}"


def shared_runs(plan: SweepPlan) -> str:
    """One line on the rows that are one training under two names, empty where there are none."""
    twins: dict[str, list[str]] = {}
    for row in plan.rows:
        if row.same_runs_as:
            twins.setdefault(row.same_runs_as, [row.same_runs_as]).append(row.label)
    rows = "; ".join(" and ".join(labels) for labels in twins.values())
    return f"the same runs under several labels, trained once and shown with each: {rows}" if rows else ""


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
