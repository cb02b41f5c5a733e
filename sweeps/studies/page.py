"""A study as one HTML page, with the styles and scripts of a sweep's report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from sweeps.reporting.charts import curve_picture, style_of
from sweeps.reporting.markup import Markup, element, join
from sweeps.reporting.page import PAGE
from sweeps.reporting.table import Table
from sweeps.studies.claims import HELD, NOT_HELD, ONLY_WHERE, Verdict
from sweeps.studies.points import Findings
from sweeps.studies.study import Experiment, Study

COLOURS = {HELD: "c2", NOT_HELD: "c4", ONLY_WHERE: "c6"}  # of the style sheet; others are grey
GREY = "c7"


def to_study_page(
    study: Study,
    experiments: Sequence[Experiment],
    found: Mapping[str, Findings],
    verdicts: Sequence[Verdict],
    honest: Sequence[str],
) -> str:
    """The whole page; `honest` are the rules of the report, one a line."""
    sections = {"Claims": _claims(verdicts, honest)}
    sections |= {one.title: _experiment(one, found[one.name], verdicts) for one in experiments}
    names = {title: title.lower().replace(" ", "-") for title in sections}
    links = [element("a", title, href=f"#{name}") for title, name in names.items()]
    switch = element("button", "light / dark", id="theme", type="button")
    body = join(
        element("header", element("h1", study.title), element("p", f"Claims of: {study.source}.", class_="lead")),
        element("nav", element("div", links, switch), aria_label="sections"),
        element(
            "main", [element("section", element("h2", title), sections[title], id=names[title]) for title in names]
        ),
        element(
            "footer", "Written by nmt reproduce. Every number comes from a run or from the emulation; none is typed."
        ),
    )
    page = PAGE.read_text(encoding="utf-8").replace("@TITLE@", join(study.title), 1)
    return page.replace("@BODY@", body, 1)


def _claims(verdicts: Sequence[Verdict], honest: Sequence[str]) -> Markup:
    from sweeps.studies.report import tally, verdict_words

    body = [
        element(
            "tr",
            element("th", element("a", one.claim.statement, href=f"#claim-{one.claim.id}"), scope="row", style=WRAPPED),
            element("td", _swatch(one), verdict_words(one)),
            element("td", one.claim.experiment),
        )
        for one in verdicts
    ]
    head = element("tr", [element("th", name, scope="col") for name in ("claim", "verdict", "experiment")])
    table = element("table", element("thead", head), element("tbody", body), class_="results")
    return join(
        element("p", tally(verdicts), class_="lead"),
        element("div", table, class_="scroll", tabindex="0"),
        element("ul", [element("li", line) for line in honest], class_="notes"),
    )


WRAPPED = "white-space: normal; min-width: 22rem"


def _swatch(verdict: Verdict) -> Markup:
    return element("span", class_=f"swatch {COLOURS.get(verdict.verdict, GREY)}")


def _experiment(experiment: Experiment, findings: Findings, verdicts: Sequence[Verdict]) -> Markup:
    return join(
        element("p", experiment.question, class_="lead"),
        [_claim(one) for one in verdicts if one.claim.experiment == experiment.name],
        [element("p", remark, class_="note") for remark in findings.remarks],
        [_table(table) for table in findings.tables],
        _pictures(findings),
    )


def _claim(verdict: Verdict) -> Markup:
    from sweeps.studies.report import claim_lines

    statement, said, *more = claim_lines(verdict)
    return element(
        "article",
        element("h3", _swatch(verdict), statement),
        element("p", element("b", said)),
        element("ul", [element("li", line) for line in more], class_="notes"),
        class_="sample",
        id=f"claim-{verdict.claim.id}",
    )


def _table(table: Table) -> Markup:
    def cells(name: str, texts: Sequence[str]) -> list[Markup]:
        return [
            element("th" if number == 0 else name, text, class_="num" if numeric else None, scope=_scope(name, number))
            for number, (text, numeric) in enumerate(zip(texts, table.numeric, strict=True))
        ]

    head = element("tr", cells("th", table.columns))
    body = [element("tr", cells("td", row)) for row in table.rows]
    inner = element("table", element("thead", head), element("tbody", body), class_="results")
    return join(
        element("h3", table.title, style="margin-top: 1.4rem"),
        element("div", inner, class_="scroll", tabindex="0"),
        element("ul", [element("li", note) for note in (*table.legend, *table.notes)], class_="notes"),
    )


def _scope(name: str, number: int) -> str | None:
    return "col" if name == "th" else "row" if number == 0 else None


def _pictures(findings: Findings) -> Markup:
    if not findings.pictures:
        return Markup()
    labels = list(dict.fromkeys(curve.label for picture in findings.pictures for curve in picture.curves))
    numbers = {label: number for number, label in enumerate(labels)}
    return element(
        "div", _legend(numbers), element("div", list(_figures(findings, numbers)), class_="charts"), class_="curves"
    )


def _figures(findings: Findings, numbers: Mapping[str, int]) -> Iterator[Markup]:
    for picture in findings.pictures:
        drawn = curve_picture(picture.curves, numbers, picture.x_title, picture.y_title, picture.title)
        yield element("figure", element("figcaption", picture.title), drawn)


def _legend(numbers: Mapping[str, int]) -> Markup:
    """Rows to switch on and off."""
    stroke = Markup('<svg width="20" height="8" aria-hidden="true"><line x1="0" x2="20" y1="4" y2="4"/></svg>')
    boxes = [
        element(
            "label", Markup(f'<input type="checkbox" value="{number}" checked>'), stroke, label, class_=style_of(number)
        )
        for label, number in numbers.items()
    ]
    button = element("button", "all / none", type="button")
    return element("div", boxes, button, class_="legend", role="group", aria_label="rows shown")
