"""The pages that the links of `nmt ui` lead to, in a real browser: the table, its replicates, the curves."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Locator, LocatorAssertions, Page

PATIENCE = 180_000  # milliseconds until a page must show what is waited for, on a loaded machine
# Of a new browser MLflow takes a quarter of the page for its assistant, once.
NO_ASSISTANT = "localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')"


@pytest.fixture
def page(browser: Browser, tmp_path: Path) -> Iterator[Page]:
    page = browser.new_page(viewport={"width": 1500, "height": 1000})
    page.set_default_timeout(PATIENCE)
    page.add_init_script(NO_ASSISTANT)
    yield page
    page.screenshot(path=tmp_path / "page.png")  # to look at where a test has failed
    page.close()


def row_of(page: Page, name: str) -> Locator:
    """All parts of the table's row of that run: what scrolls is not in one element with what does not."""
    row = page.locator(".ag-row", has=page.get_by_text(name, exact=True)).first
    row.wait_for()
    return page.locator(f".ag-row[row-index='{row.get_attribute('row-index')}']")


def expect(locator: Locator) -> LocatorAssertions:
    """Playwright's assertions, which look again until they hold: a page is drawn in many parts."""
    from playwright.sync_api import expect

    expect.set_options(timeout=PATIENCE)
    return expect(locator)


def test_the_table_shows_configurations_with_their_means_and_opens_them(page: Page, served) -> None:
    page.goto(served.links["table"])
    for label, mean, form in (("additive", "30.5", "30.50 ± 0.71 (31.00)"), ("none", "10.5", "10.50 ± 0.71 (11.00)")):
        row = row_of(page, label)
        for column, text in (("tags.`bleu`", form), ("metrics.`bleu_mean`", mean), ("metrics.`bleu_sd`", "0.7071"),
                             ("metrics.`n`", "2")):  # fmt: skip
            expect(row.locator(f'[role=gridcell][col-id="{column}"]').first).to_have_text(text, use_inner_text=True)
    replicate = page.get_by_text("additive · seed 2", exact=True)
    assert replicate.count() == 0
    row_of(page, "additive").get_by_role("button").first.click()
    replicate.wait_for()
    expect(page.get_by_text("additive · seed 1", exact=True)).to_have_count(1)
    assert page.get_by_text("none · seed 1", exact=True).count() == 0


def test_the_charts_draw_a_curve_and_a_bar_a_configuration(page: Page, served) -> None:
    page.goto(served.links["charts"])

    def chart(name: str) -> Locator:
        page.get_by_placeholder("Search metric charts").fill(name)  # what lies below the window is not drawn
        cards = page.get_by_test_id("experiment-view-compare-runs-card")
        return cards.filter(has=page.get_by_text(name, exact=True)).first

    curve = chart("train/loss").locator(".scatterlayer path.js-line").first
    expect(curve).to_have_attribute("d", re.compile("(L.*){3}"))
    points = [tuple(map(float, point.split(","))) for point in str(curve.get_attribute("d"))[1:].split("L")]
    assert len(points) > 3
    assert points == sorted(points) and points[0][1] < points[-1][1], "from left to right, and down"
    bars = chart("test/decode/bleu").locator(".barlayer text")
    for text in ("30.50", "10.50"):
        expect(bars.filter(has_text=text).first).to_be_attached()
    assert set(bars.all_text_contents()) == {"30.50", "10.50"}


def test_the_registered_model_has_a_page(page: Page, served) -> None:
    page.goto(served.links["model"])
    page.get_by_text("The best of them.").wait_for()
    expect(page.get_by_text("shown@local").first).to_be_attached()
