"""The page of `nmt report` in a real browser: what it shows, what numbers open, and that it asks for nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from report_runs import OVERRIDES, SPEC, TEST_TEXT, write_runs

from sweeps.aggregate import aggregate
from sweeps.plan import SweepPlan, make_plan
from sweeps.reporting import samples
from sweeps.reporting.report import write_report

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PATIENCE = 180_000  # milliseconds, on a loaded machine


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> SweepPlan:
    """Two rows of three have runs; two replicates each."""
    plan = make_plan(SPEC, [*OVERRIDES, f"paths.runs={tmp_path_factory.mktemp('runs') / 'here'}"])
    write_runs(plan)
    return plan


@pytest.fixture(scope="module")
def address(plan: SweepPlan, tmp_path_factory: pytest.TempPathFactory) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples, "load_test", lambda data: TEST_TEXT)
        report = write_report(plan, aggregate(plan), formats=["html"], to=tmp_path_factory.mktemp("report"))
    return report.page.as_uri()


class Watched:
    """A page, with what it asked for beside its own file and what it complained about."""

    def __init__(self, page: Page, address: str):
        self.page, self.asked, self.said = page, [], []
        page.set_default_timeout(PATIENCE)
        page.on("request", lambda request: self.asked.append(request.url))
        page.on("console", lambda message: self.said.append(message.text))
        page.on("pageerror", lambda error: self.said.append(str(error)))
        page.goto(address)
        assert self.asked == [address]


@pytest.fixture
def shown(browser: Browser, address: str, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Watched]:
    page = browser.new_page(**getattr(request, "param", {"viewport": {"width": 1280, "height": 900}}))
    shown = Watched(page, address)
    yield shown
    page.screenshot(path=tmp_path / "page.png", full_page=True)  # to look at where a test has failed
    assert shown.asked == [address] and shown.said == []
    page.close()


def widths(page: Page) -> tuple[int, int]:
    """Of what is shown, and of the window: equal where nothing sticks out at the side."""
    found = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    return found[0], found[1]


def test_every_row_is_there_and_the_missing_one_says_so(shown: Watched) -> None:
    rows = shown.page.locator(".results > tbody > tr")
    assert [row.get_attribute("data-label") for row in rows.all()] == ["A", "B", "C"]
    assert "21.50 ± 0.71 (22.00)" in rows.nth(0).inner_text()
    assert rows.nth(2).get_attribute("class") == "missing"
    mark = rows.nth(2).locator("sup a").first
    assert mark.get_attribute("title") == "2 of 2 replicates missing"
    assert "2 runs are missing" in shown.page.locator("header").inner_text()


def test_a_number_opens_its_runs_and_closes_them(shown: Watched, plan: SweepPlan) -> None:
    page = shown.page
    link = page.locator("tr[data-label='A'] a[data-column='test bleu']")
    link.click()
    opened = page.locator("tr.open")
    text = opened.inner_text()
    assert all(run.run_id in text for run in plan.rows[0].runs)
    assert opened.locator(".hit").all_inner_texts() == ["21.00", "22.00"]
    assert (link.get_attribute("aria-expanded"), opened.count()) == ("true", 1)
    page.locator("tr[data-label='A'] a[data-column='vs baseline']").press(
        "Enter"
    )  # by keyboard, and the baseline's too
    assert opened.locator(".hit").all_inner_texts() == ["21.00", "22.00", "31.00", "32.00"]
    page.keyboard.press("Escape")
    assert opened.count() == 0 and link.get_attribute("aria-expanded") == "false"


def test_curves_are_drawn_switched_and_read_off(shown: Watched) -> None:
    page = shown.page
    charts = page.locator(".charts svg.chart:visible")
    assert charts.count() == 2  # the metric and log-perplexity, against steps
    box = charts.first.locator(".curve .line").first.bounding_box()
    assert box and box["width"] > 300 and box["height"] > 10
    page.get_by_role("radio", name="target tokens").check()
    assert charts.count() == 2 and charts.first.get_attribute("data-x") == "target tokens"
    page.locator(".legend input").first.uncheck()
    assert charts.first.locator(".curve:visible").count() == 1
    charts.first.focus()
    page.keyboard.press("ArrowLeft")
    assert page.locator("#tip").inner_text().splitlines() == [
        "B",
        "target tokens: 2,000",
        "BLEU: 17.5",
        "15 to 20 in 2 replicates",
    ]


def test_scores_differences_samples_and_provenance_are_shown(shown: Watched) -> None:
    page = shown.page
    assert page.locator(".forest .run").count() == 4
    assert page.locator(".forest .diamond").count() == 1 and page.locator(".forest .published").count() >= 1
    assert "published +0.50" in page.locator("#scores-and-differences").inner_text()
    sample = page.locator(".sample").last.inner_text()
    assert "eins zwei drei" in sample and "one two three" in sample
    assert "nmt report sweep=test" in page.locator("pre").inner_text()


@pytest.mark.parametrize("shown", [{"viewport": {"width": 400, "height": 800}, "has_touch": True}], indirect=True)
def test_a_telephone_scrolls_down_only(shown: Watched) -> None:
    page = shown.page
    assert widths(page) == (400, 400)
    page.locator("tr[data-label='A'] a[data-column='test bleu']").tap()
    for part in page.locator("details").all():
        part.locator("summary").tap()
    assert widths(page) == (400, 400)


@pytest.mark.parametrize("shown", [{"color_scheme": "dark"}, {"color_scheme": "light"}], indirect=True)
def test_colours_follow_the_reader(shown: Watched) -> None:
    def paper() -> int:
        colour = shown.page.evaluate("getComputedStyle(document.body).backgroundColor")
        return int(colour.partition("(")[2].partition(",")[0])

    before = paper()
    shown.page.locator("#theme").click()
    assert sorted((before, paper())) == [18, 255]


@pytest.mark.parametrize("shown", [{"java_script_enabled": False}], indirect=True)
def test_without_scripts_a_number_leads_to_its_runs(shown: Watched) -> None:
    page = shown.page
    page.locator("tr[data-label='A'] a[data-column='test bleu']").click()
    page.wait_for_url("**#runs-0")  # a click does not wait for the address
    assert page.locator(".charts svg.chart:visible").count() == 2


def test_print_has_everything_open(shown: Watched, tmp_path: Path) -> None:
    shown.page.pdf(path=tmp_path / "report.pdf", format="A4")
    assert (tmp_path / "report.pdf").stat().st_size > 10_000
    shown.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert shown.page.locator("details:not([open])").count() == 0
