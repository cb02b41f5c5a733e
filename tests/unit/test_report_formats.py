"""The forms of a report: scales and their ticks, LaTeX, Markdown, and the page as text."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser

import pytest
from report_runs import OVERRIDES, SPEC, TEST_TEXT, write_runs

from sweeps.aggregate import aggregate
from sweeps.plan import SweepPlan, make_plan
from sweeps.reporting import samples as samples_module
from sweeps.reporting.axes import Scale, spanning, tick_labels
from sweeps.reporting.charts import difference_scale, difference_strip
from sweeps.reporting.differences import Difference
from sweeps.reporting.document import to_document
from sweeps.reporting.findings import Findings, find
from sweeps.reporting.latex import escaped, to_latex
from sweeps.reporting.markup import Markup, element
from sweeps.reporting.page import to_page
from sweeps.reporting.report import FORMATS, write_report


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> SweepPlan:
    plan = make_plan(SPEC, [*OVERRIDES, f"paths.runs={tmp_path_factory.mktemp('runs') / 'here'}"])
    write_runs(plan)
    return plan


@pytest.fixture(scope="module")
def findings(plan: SweepPlan) -> Findings:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples_module, "load_test", lambda data: TEST_TEXT)
        return find(plan, aggregate(plan))


@pytest.mark.parametrize(
    ("low", "high", "most", "ticks"),
    [
        (0.0, 100.0, 6, ["0", "20", "40", "60", "80", "100"]),
        (-0.4, 0.3, 5, ["−0.4", "−0.2", "0", "0.2"]),
        (0.0, 12000.0, 6, ["0", "2.5k", "5.0k", "7.5k", "10.0k"]),
        (19.93, 20.11, 4, ["19.95", "20.00", "20.05", "20.10"]),
        (0.0, 2400.0, 6, ["0", "500", "1,000", "1,500", "2,000"]),
        (0.0, 3.2e7, 4, ["0", "10M", "20M", "30M"]),
    ],
)
def test_ticks_are_round_and_few(low: float, high: float, most: int, ticks: list[str]) -> None:
    assert tick_labels(Scale(low, high, 0, 1).ticks(most)) == ticks


@pytest.mark.parametrize("values", [[], [3.0], [0.0, 0.0], [float("nan"), float("inf")], [-1e-9, 1e9]])
def test_every_set_of_values_has_a_scale(values: list[float]) -> None:
    scale = spanning(values, 0, 100)
    assert scale.low < scale.high and 1 <= len(scale.ticks(5)) <= 5


def test_an_interval_wider_than_the_picture_ends_in_an_arrow() -> None:
    rows = [Difference(label="a", measured=1.0, interval=(-80.0, 82.0)), Difference(label="b", measured=-2.0)]
    scale = difference_scale(rows)
    assert -10 < scale.low < -2 and 1 < scale.high < 10
    assert difference_strip(rows[0], scale).count('class="on"') == 2
    assert 'class="bar"' not in difference_strip(rows[1], scale)
    difference_strip(Difference(label="c", measured=float("nan")), scale)  # nothing to draw is no mistake


def test_latex_reads_no_command_out_of_our_text() -> None:
    assert escaped(r"50% & {x_1} #2 \alpha $ ~ ^") == (
        r"50\% \& \{x\_1\} \#2 \textbackslash{}alpha \$ \textasciitilde{} \textasciicircum{}"
    )
    assert escaped("20.50 ± 0.71 – −1.2 *[") == r"20.50 $\pm$ 0.71 -- $-$1.2 {*}{[}"


def test_the_latex_table_is_whole(findings: Findings) -> None:
    text = to_latex(findings.table, findings.name)
    lines = text.splitlines()
    begun, ended = (re.findall(rf"\\{word}{{(\w+)}}", text) for word in ("begin", "end"))
    assert sorted(begun) == sorted(ended) and lines.count(r"\toprule") == lines.count(r"\bottomrule") == 1
    assert text.count("{") == text.count("}")
    aligned = re.search(r"@\{\}([lr]+)@\{\}", text)
    assert aligned
    body = lines[lines.index(r"\toprule") + 1 : lines.index(r"\bottomrule")]
    rows = [line for line in body if line != r"\midrule"]
    assert len(rows) == 1 + len(findings.labels)
    assert all(line.count(" & ") == len(aligned[1]) - 1 and line.endswith(r" \\") for line in rows)
    assert rows[3].startswith(r"C\textsuperscript{")  # its marks say that it has no run
    assert r"\caption{A \textless{}b\textgreater{}bold" in text


def test_the_document_has_every_row_run_and_command(findings: Findings) -> None:
    text = to_document(findings)
    for row in findings.listing.rows:
        for run in row.runs:
            assert run.run_id in text
    assert re.search(r"^\| A +\| +−10\.00", text, re.MULTILINE)
    assert "nmt sweep sweep=test" in text and "`eins zwei drei`" in text


class Outline(HTMLParser):
    """Elements that are open, ids, and where links and sources lead."""

    VOID = ("meta", "input", "br", "link", "img")

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.leads: list[str] = []
        self.names: set[str] = set()
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(str(value))
            if name in ("href", "src", "srcset", "action", "data"):
                self.leads.append(str(value))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_sound_and_leads_nowhere_else(findings: Findings) -> None:
    page = to_page(findings)
    outline = Outline(page)
    assert outline.open == [] and len(outline.ids) == len(set(outline.ids))
    assert outline.leads and all(lead.startswith("#") and lead[1:] in outline.ids for lead in outline.leads)
    assert not outline.names & {"link", "img", "iframe", "object", "b" if "<b>bold" in page else "iframe"}
    assert "default-src 'none'" in page and "url(" not in page and "@import" not in page
    assert "A &lt;b&gt;bold&lt;/b&gt; question" in page


def test_every_number_of_the_table_leads_to_its_runs(findings: Findings) -> None:
    page = to_page(findings)
    row = re.search(r'<tr data-label="A">.*?</tr>', page, re.DOTALL)
    assert row
    links = {column: rows for rows, column in re.findall(r'data-rows="([\d ]+)" data-column="([^"]+)"', row[0])}
    assert links["test bleu"] == "0" and links["log-ppl"] == "0"
    assert links["vs baseline"] == "0 1"  # its own runs, and the baseline's
    assert re.search(r'<tr class="missing" data-label="C">', page)
    for one in findings.listing.of("A").runs:
        assert page.count(one.run_id) >= 1


def test_text_of_a_corpus_is_text() -> None:
    assert element("p", "<script>", Markup("<b>x</b>"), ["&", "y"], title='"', hidden=True, id=None) == (
        '<p title="&quot;" hidden>&lt;script&gt;<b>x</b>&amp;y</p>'
    )


def test_formats_and_place_are_chosen(plan: SweepPlan, findings: Findings, tmp_path) -> None:
    report = write_report(plan, aggregate(plan), formats=["html", "latex"], to=tmp_path / "here", findings=findings)
    assert {path.name for path in report.written} == {"report.html", "table.tex"}
    assert {path.name for path in (tmp_path / "here").iterdir()} == {"report.html", "table.tex"}
    assert len(FORMATS) == 7


def test_a_sweep_without_a_run_has_a_report_too(plan: SweepPlan) -> None:
    spec = dataclasses.replace(plan.spec, baseline=None)
    empty = dataclasses.replace(plan, spec=spec, rows=plan.rows[2:])
    found = find(empty, aggregate(empty))
    page = to_page(found)
    assert "0 of 2 complete" in page and "No row has a result yet" in page and "Learning curves" not in page
    assert r"\bottomrule" in to_latex(found.table, "x") and "0 of 2 runs" in to_document(found)
