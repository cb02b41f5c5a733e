"""The table of a sweep, the same on screen and as Markdown; `sweeps.reporting.full_table` has all figures as CSV."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Group
from rich.table import Table as ScreenTable
from rich.text import Text

from nmt.evaluation.catalogue import best_form
from sweeps.aggregate import RowResult
from sweeps.conditions import shared_differences
from sweeps.imported.rows import imported_rows
from sweeps.plan import SweepPlan
from sweeps.process_figures import TIMED
from sweeps.reporting.columns import COLUMNS, DROPPED, MARKS, PUBLISHED, ROW, choose_columns
from sweeps.reporting.significance import significance_columns, significance_notes
from sweeps.significance import Significance, significance
from sweeps.until import stopping_notes
from sweeps.wording import NOTHING

MAX_DIFFERENCES = 8  # from the published conditions, below the table; sweep.json has all

MAX_CODES = 3  # versions of the code that a mark names; sweep.json has all


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


def baseline_tests(plan: SweepPlan, results: Sequence[RowResult]) -> Significance:
    """The tests of all rows, imported ones among them, against the sweep's baseline."""
    return significance([*results, *imported_rows(plan)], plan.spec.baseline, plan.config.validation.metric)


def make_table(
    plan: SweepPlan,
    results: Sequence[RowResult],
    columns: Sequence[str] = (),
    tests: Significance | None = None,
) -> Table:
    """Lay out the rows. Columns in which no row has anything to say are left out.

    `columns` are names of `sweeps.reporting.columns.COLUMNS`, without the row's label and its marks, which are always
    there; where it is empty those of the sweep's file, or the usual ones. `tests` are those of `baseline_tests`, where
    they have been made already.
    Raises UserError for a column that does not exist.
    """
    metric = plan.config.validation.metric
    ours, results = results, [*results, *imported_rows(plan)]
    shared = shared_differences([row.differs for row in results if row.published])
    names = choose_columns(columns or plan.spec.columns)
    refusals = any(name in TIMED for name in names)
    marked = [marks(row, shared, refusals) for row in results]
    texts = list(dict.fromkeys(text for own in marked for text in own))
    texts += [system.unconfirmed for system in plan.spec.systems if system.unconfirmed]
    letters = {text: letter(number) for number, text in enumerate(texts)}
    chosen = [COLUMNS[name] for name in names]
    tests = tests or baseline_tests(plan, ours)
    tested = {title: cells for title, _, cells in significance_columns(results, tests)}
    laid_out: list[tuple[str, bool, list[str]]] = [
        (ROW, False, [_label(plan, row) for row in results]),
        *(
            (
                one.title.format(metric=metric),
                True,
                [one.cell(row, metric) for row in results] if one.cell else tested[one.title],
            )
            for one in chosen
        ),
        (MARKS, False, [" ".join(letters[text] for text in own) for own in marked]),
    ]
    for name, _, cells in laid_out:
        cells += _other_systems(plan, name, letters)
    shown = [column for column in laid_out if column[0] in (ROW, f"test {metric}", "n") or any(_says(column[2]))]
    titles = [title for title, _, _ in shown]
    return Table(
        title=plan.spec.title,
        conditions=f"Not as published: {'; '.join(shared)}." if shared else "",
        columns=tuple(titles),
        rows=tuple(zip(*(cells for _, _, cells in shown), strict=True)),
        numeric=tuple(numeric for _, numeric, _ in shown),
        legend=tuple(f"{letters[text]}: {text}" for text in texts),
        notes=(
            *_notes(plan, results, metric),
            *(significance_notes(tests) if set(titles) & set(tested) else []),
            *(one.note for one in chosen if one.note and one.title in titles),
        ),
    )


def marks(row: RowResult, said: Sequence[str] = (), refusals: bool = False) -> list[str]:
    """What a reader must know before trusting the row's figures, a clause each; `said` stands above the table.

    refusals: whether the table has columns of times that may be refused.
    """
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
    if row.refused and refusals:
        found.append(f"times of processes refused: {row.refused}")
    if row.other_code:
        codes = list(dict.fromkeys(row.other_code))
        named = ", ".join(codes[:MAX_CODES]) + (", …" if len(codes) > MAX_CODES else "")
        found.append(f"{len(row.other_code)} of {n} trained by other code ({named}); reuse=same_code trains anew")
    if row.imported:
        found.append(row.imported)
    if row.same_runs_as:
        found.append(f"the same runs as row {row.same_runs_as}, trained once")
    return found


def fitted(table: Table, width: int) -> Table:
    """The table without the columns that a screen of `width` characters has no room for, and a note that names them."""
    kept, gone = list(range(len(table.columns))), []
    widths = [max(len(cell) for cell in cells) + 3 for cells in zip(table.columns, *table.rows, strict=True)]
    for title in (COLUMNS[name].title for name in DROPPED):
        if sum(widths[place] for place in kept) > width and title in table.columns:
            kept.remove(table.columns.index(title))
            gone.append(title)
    if not gone:
        return table
    explained = [note for note in table.notes if not note.startswith(tuple(f"{title}: " for title in gone))]
    return dataclasses.replace(
        table,
        columns=tuple(table.columns[place] for place in kept),
        rows=tuple(tuple(row[place] for place in kept) for row in table.rows),
        numeric=tuple(table.numeric[place] for place in kept),
        notes=(*explained, f"no room for {', '.join(gone)}: table.md has them, or choose columns=a,b,…"),
    )


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
    above = [f"**{table.title}**", "", *([table.conditions, ""] if table.conditions else [])]
    lines = [*above, in_columns(table.columns, table.rows, table.numeric)]
    lines += ["", *(f"- {note}" for note in (*table.legend, *table.notes))]
    return "\n".join(lines) + "\n"


def in_columns(columns: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[bool]) -> str:
    """Cells as a Markdown table, aligned in plain text too; numeric columns to the right."""
    cells = [[_escape(cell) for cell in row] for row in (columns, *rows)]
    widths = [max(3, *(len(row[i]) for row in cells)) for i in range(len(columns))]

    def line(row: Sequence[str]) -> str:
        padded = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ]
        return f"| {' | '.join(padded)} |"

    rule = [f"{'-' * (width - 1)}{':' if right else '-'}" for width, right in zip(widths, numeric, strict=True)]
    return "\n".join([line(cells[0]), line(rule), *(line(row) for row in cells[1:])])


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
    notes += [f"superseded: {one}" for one in plan.superseded]
    return notes + stopping_notes(plan)


def _other_systems(plan: SweepPlan, column: str, letters: Mapping[str, str]) -> list[str]:
    """The column's cells for what was published beside the rows: a line for each system and test set."""
    cells = []
    for system in plan.spec.systems:
        for test, bleu in system.published.items():
            said = {ROW: f"{system.label}, {test}", PUBLISHED: f"{bleu:.2f}", "n": "", MARKS: ""}
            if column == MARKS and system.unconfirmed:
                said[MARKS] = letters[system.unconfirmed]
            cells.append(said.get(column, NOTHING))
    return cells


def _says(cells: Sequence[str]) -> list[bool]:
    return [cell not in ("", NOTHING) for cell in cells]


def _label(plan: SweepPlan, row: RowResult) -> str:
    return f"{row.label} (baseline)" if row.label == plan.spec.baseline else row.label


def letter(number: int) -> str:
    """a, b, … z, then a1, b1, …"""
    return chr(ord("a") + number % 26) + (str(number // 26) if number >= 26 else "")


def _escape(cell: str) -> str:
    return cell.replace("|", "\\|")
