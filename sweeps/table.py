"""The table of a sweep, the same on screen, as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Group
from rich.table import Table as ScreenTable
from rich.text import Text

from nmt.evaluation.catalogue import best_form
from sweeps.aggregate import TIMINGS, RowResult, Statistics
from sweeps.conditions import shared_differences
from sweeps.plan import SweepPlan

NOTHING = "–"
MAX_DIFFERENCES = 8  # from the published conditions, below the table; sweep.json has all


@dataclass(frozen=True)
class Table:
    """Text cells, row by row, and what stands below them.

    `conditions` says in what all published rows differ from their publication, empty where they do not. `numeric` says
    which columns are aligned to the right. `legend` explains the letters of the column of marks, `notes` the columns.
    """

    title: str
    conditions: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numeric: tuple[bool, ...]
    legend: tuple[str, ...]
    notes: tuple[str, ...]


def make_table(plan: SweepPlan, results: Sequence[RowResult]) -> Table:
    """Lay out the rows. Columns in which no row has anything to say are left out."""
    metric = plan.config.validation.metric
    shared = shared_differences([row.differs for row in results if row.published])
    texts = list(dict.fromkeys(text for row in results for text in marks(row, shared)))
    texts += [system.unconfirmed for system in plan.spec.systems if system.unconfirmed]
    letters = {text: _letter(number) for number, text in enumerate(texts)}
    columns: list[tuple[str, bool, list[str]]] = [
        ("row", False, [_label(plan, row) for row in results]),
        (f"test {metric}", True, [statistics_cell(row.metrics.get(metric), best_form(metric)) for row in results]),
        ("published", True, [_published(row) for row in results]),
        ("n", True, [str(len(row.complete)) for row in results]),
        ("params M", True, [_millions(row.parameters) for row in results]),
        ("log-ppl", True, [_mean(row.log_perplexity, ".3f") for row in results]),
        ("tok/s", True, [_mean(row.tokens_per_second.get(row.timing), ",.0f") for row in results]),
        ("conv. s", True, [_mean(row.convergence_seconds.get(row.timing), ",.0f") for row in results]),
        ("marks", False, [" ".join(letters[text] for text in marks(row, shared)) for row in results]),
    ]
    for name, _, cells in columns:
        cells += _other_systems(plan, name, letters)
    shown = [column for column in columns if column[0] in ("row", f"test {metric}", "n") or any(_says(column[2]))]
    return Table(
        title=plan.spec.title,
        conditions=f"Not as published: {'; '.join(shared)}." if shared else "",
        columns=tuple(name for name, _, _ in shown),
        rows=tuple(zip(*(cells for _, _, cells in shown), strict=True)),
        numeric=tuple(numeric for _, numeric, _ in shown),
        legend=tuple(f"{letters[text]}: {text}" for text in texts),
        notes=tuple(_notes(plan, results, metric)),
    )


def statistics_cell(values: Statistics | None, best: str = "max") -> str:
    """`mean ± sd (max)` with two decimals; without ± for a single value. `best` is `min` for an error rate."""
    if values is None:
        return NOTHING
    if values.sd is None:
        return f"{values.mean:.2f}"
    return f"{values.mean:.2f} ± {values.sd:.2f} ({getattr(values, best):.2f})"


def marks(row: RowResult, said: Sequence[str] = ()) -> list[str]:
    """What a reader must know before trusting the row's figures, a clause each; `said` stands above the table."""
    found = []
    n = len(row.complete)
    if row.missing:
        found.append(f"{row.missing} of {row.requested} replicates missing")
    if row.diverged:
        found.append(f"{row.diverged} of {n} diverged, counted with the best checkpoint before")
    differs = [difference for difference in row.differs if difference not in said] if row.published else []
    if differs:
        more = f"; and {len(differs) - MAX_DIFFERENCES} more" if len(differs) > MAX_DIFFERENCES else ""
        found.append(f"other conditions than published: {'; '.join(differs[:MAX_DIFFERENCES])}{more}")
    if row.still_improving:
        who = "best" if row.still_improving == n else f"{row.still_improving} of {n} best"
        found.append(f"{who} at the end of the budget: longer training would change the figure")
    if row.timing == "shared":
        found.append("tok/s and conv. s of runs that shared the machine with others")
    elif row.timing and row.tokens_per_second[row.timing].n < n:
        found.append(f"tok/s and conv. s of the {row.tokens_per_second[row.timing].n} of {n} runs alone on the machine")
    if row.same_runs_as:
        found.append(f"the same runs as row {row.same_runs_as}, trained once")
    return found


def to_screen(table: Table) -> Group:
    """The table for a terminal."""
    screen = ScreenTable(box=box.SIMPLE_HEAD, pad_edge=False)
    for name, numeric in zip(table.columns, table.numeric, strict=True):
        screen.add_column(name, justify="right" if numeric else "left")
    for row in table.rows:
        screen.add_row(*map(Text, row))
    above = [Text(table.title, style="bold"), *([Text(table.conditions)] if table.conditions else [])]
    return Group(*above, screen, *(Text(line, style="dim") for line in (*table.legend, *table.notes)))


def to_markdown(table: Table) -> str:
    """The table as Markdown, its columns aligned in plain text too."""
    cells = [[_escape(cell) for cell in row] for row in (table.columns, *table.rows)]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(table.columns))]

    def line(row: Sequence[str]) -> str:
        padded = [
            cell.rjust(width) if numeric else cell.ljust(width)
            for cell, width, numeric in zip(row, widths, table.numeric, strict=True)
        ]
        return f"| {' | '.join(padded)} |"

    rule = [
        f"{'-' * (width - 1)}{':' if numeric else '-'}" for width, numeric in zip(widths, table.numeric, strict=True)
    ]
    above = [f"**{table.title}**", "", *([table.conditions, ""] if table.conditions else [])]
    lines = [*above, line(cells[0]), line(rule), *(line(row) for row in cells[1:])]
    lines += ["", *(f"- {note}" for note in (*table.legend, *table.notes))]
    return "\n".join(lines) + "\n"


def to_csv(plan: SweepPlan, results: Sequence[RowResult]) -> str:
    """All figures with full precision, a line for each row; times of either timing in columns of their own."""
    metrics = list(dict.fromkeys(name for row in results for name in row.metrics))
    records = [_record(row, metrics) for row in results]
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue()


def _record(row: RowResult, metrics: Sequence[str]) -> dict[str, object]:
    record: dict[str, object] = {
        "row": row.label,
        "n": len(row.complete),
        "requested": row.requested,
        "diverged": row.diverged,
        "parameters": row.parameters,
    }
    for name in metrics:
        values = row.metrics.get(name)
        for part in ("mean", "sd", "sd_over_n", "max", "median", "min"):
            record[f"{name}_{part}"] = getattr(values, part) if values else None
    for part in ("mean", "std", "max", "params_M"):
        record[f"published_{part}"] = getattr(row.published, part) if row.published else None
    for name in ("log_perplexity", "steps", "convergence_steps", "convergence_tokens"):
        values = getattr(row, name)
        record[f"{name}_mean"] = values.mean if values else None
    for timing in TIMINGS:
        for name in ("tokens_per_second", "convergence_seconds"):
            values = getattr(row, name).get(timing)
            record[f"{name}_{timing}_mean"] = values.mean if values else None
    record["notes"] = "; ".join(marks(row))
    record["runs"] = " ".join(replicate.run_id for replicate in row.replicates)
    return record


def _notes(plan: SweepPlan, results: Sequence[RowResult], metric: str) -> list[str]:
    notes = [f"mean ± sd ({best_form(metric)}) over n replicates; sd in the sample form (n - 1)"]
    signature = next((r.signatures[metric] for row in results for r in row.complete if metric in r.signatures), "")
    if signature:
        notes.append(f"{metric}: {signature}")
    if plan.spec.published_source and any(row.published for row in results):
        notes.append(f"published: {plan.spec.published_source}")
        if any(row.published and row.published.std is not None for row in results):
            notes.append("sd over n instead of n - 1, in case that was published: ours times sqrt((n - 1) / n)")
    if plan.spec.systems:
        notes.append(f"other systems: {'; '.join(f'{system.label}: {system.source}' for system in plan.spec.systems)}")
    if any(row.log_perplexity for row in results):
        notes.append("log-ppl: teacher-forced, nats per target token of the validation split, at the chosen checkpoint")
    if any(row.convergence_seconds for row in results):
        notes.append("conv. s: seconds of training until the chosen checkpoint, evaluation excluded")
    return notes


def _other_systems(plan: SweepPlan, column: str, letters: Mapping[str, str]) -> list[str]:
    """The column's cells for what was published beside the rows: a line for each system and test set."""
    cells = []
    for system in plan.spec.systems:
        for test, bleu in system.published.items():
            said = {"row": f"{system.label}, {test}", "published": f"{bleu:.2f}", "n": "", "marks": ""}
            if column == "marks" and system.unconfirmed:
                said["marks"] = letters[system.unconfirmed]
            cells.append(said.get(column, NOTHING))
    return cells


def _says(cells: Sequence[str]) -> list[bool]:
    return [cell not in ("", NOTHING) for cell in cells]


def _label(plan: SweepPlan, row: RowResult) -> str:
    return f"{row.label} (baseline)" if row.label == plan.spec.baseline else row.label


def _published(row: RowResult) -> str:
    published = row.published
    if published is None or published.mean is None:
        return NOTHING
    text = f"{published.mean:.2f}"
    text += f" ± {published.std:.2f}" if published.std is not None else ""
    return text + (f" ({published.max:.2f})" if published.max is not None else "")


def _millions(parameters: int | None) -> str:
    return NOTHING if parameters is None else f"{parameters / 1e6:.2f}"


def _mean(values: Statistics | None, form: str) -> str:
    return NOTHING if values is None else format(values.mean, form)


def _letter(number: int) -> str:
    """a, b, … z, then a1, b1, …"""
    return chr(ord("a") + number % 26) + (str(number // 26) if number >= 26 else "")


def _escape(cell: str) -> str:
    return cell.replace("|", "\\|")
