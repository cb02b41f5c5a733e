"""The tables of a page: the sweep's results, whose numbers open the runs that they rest on, and those runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sweeps.reporting.charts import style_of
from sweeps.reporting.columns import COLUMNS, MARKS, PUBLISHED
from sweeps.reporting.findings import Findings
from sweeps.reporting.listing import TESTED, Listing, RowRuns
from sweeps.reporting.markup import Markup, element, join
from sweeps.wording import NOTHING


def results(findings: Findings) -> Markup:
    """The table with its marks, which stand beside the rows' names here, and notes."""
    table = findings.table
    head = [
        element("th", name, scope="col", class_=_side(numeric))
        for name, numeric in zip(table.columns, table.numeric, strict=True)
        if name != MARKS
    ]
    legend = dict(line.split(": ", 1) for line in table.legend)
    labels = [*findings.labels, *[""] * len(table.rows)]  # below our rows stand systems that are not ours to train
    body = [_row(findings, label, cells, legend) for label, cells in zip(labels, table.rows, strict=False)]
    notes = [element("li", element("b", letter), f" {text}", id=f"mark-{letter}") for letter, text in legend.items()]
    return join(
        element("p", "A number opens the runs that it rests on.", class_="lead"),
        _scrolled(element("table", element("thead", element("tr", head)), element("tbody", body), class_="results")),
        element("ul", notes, [element("li", note) for note in table.notes], class_="notes"),
    )


def runs(findings: Findings) -> Markup:
    """Every row's runs, folded."""
    said = "A run is named by the hash of its configuration and its seed. Runs in grey are in no figure."
    parts = [_runs_of(findings.listing, row, number) for number, row in enumerate(findings.listing.rows)]
    return join(element("p", said, class_="lead"), parts)


def _row(findings: Findings, label: str, cells: Sequence[str], legend: Mapping[str, str]) -> Markup:
    table = findings.table
    complete = next((row.complete for row in findings.scores if row.label == label), None)
    classes = ["baseline"] if label and label == findings.baseline else []
    classes += ["missing"] if complete == 0 else []
    (_, _, name), *others = zip(table.columns, table.numeric, cells, strict=True)
    named: Markup | str = name
    if label:
        number = findings.number(label)
        tag = element("span", name.removeprefix(label), class_="tag")
        named = element("a", element("span", class_=f"swatch {style_of(number)}"), label, tag, href=f"#runs-{number}")
    letters = [
        element("a", letter, href=f"#mark-{letter}", title=legend.get(letter))
        for column, _, text in others
        if column == MARKS
        for letter in text.split()
    ]
    head = element("th", named, element("sup", letters) if letters else "", scope="row")
    data = [
        element("td", _cell(findings, label, column, text), class_=_side(numeric))
        for column, numeric, text in others
        if column != MARKS
    ]
    return element("tr", head, data, class_=" ".join(classes) or None, data_label=label or None)


def _cell(findings: Findings, label: str, column: str, text: str) -> Markup | str:
    if text in ("", NOTHING):
        return text
    if column == PUBLISHED:
        return element("span", text, title=findings.published_source or None)
    if not label:
        return text
    rows = [findings.number(label)]
    if findings.baseline and column in {COLUMNS[name].title for name in TESTED}:
        rows.append(findings.number(findings.baseline))
    return element("a", text, href=f"#runs-{rows[0]}", data_rows=" ".join(map(str, rows)), data_column=column)


def _runs_of(listing: Listing, row: RowRuns, number: int) -> Markup:
    head = [
        element("th", name, scope="col", class_=_side(numeric))
        for name, numeric in zip(listing.columns, listing.numeric, strict=True)
    ]
    body = []
    for run in row.runs:
        cells = [element("td", element("code", run.run_id))]
        for value, numeric in zip(run.values[1:], listing.numeric[1:], strict=True):
            fed = "|".join(value.columns) or None
            cells.append(element("td", value.text, class_=_side(numeric), data_columns=fed))
        body.append(element("tr", cells, class_=None if run.complete else "out"))
    complete = sum(run.complete for run in row.runs)
    summary = element(
        "summary",
        element("span", class_=f"swatch {style_of(number)}"),
        f"{row.label} ",
        element("span", f"{complete} of {len(row.runs)} complete", class_="muted"),
    )
    table = element("table", element("thead", element("tr", head)), element("tbody", body), class_="runs")
    return element("details", summary, _scrolled(table), id=f"runs-{number}", data_label=row.label)


def _scrolled(table: Markup) -> Markup:
    """A table that scrolls by itself where the window is too narrow, by keyboard too."""
    return element("div", table, class_="scroll", tabindex="0")


def _side(numeric: bool) -> str | None:
    return "num" if numeric else None
