"""Every figure in docs/results.md and docs/performance.md leads back to a run or to a benchmark file."""

from __future__ import annotations

from pathlib import Path

import pytest
from documented_figures import ROOT, figures, holds, runs_named, sections, unfounded


@pytest.mark.parametrize("page", ["results.md", "performance.md"])
def test_every_figure_has_a_source(page: str) -> None:
    assert unfounded(ROOT / "docs" / page) == []


def test_a_changed_digit_is_found(tmp_path: Path) -> None:
    page = ROOT / "docs" / "results.md"
    text = page.read_text(encoding="utf-8")
    assert "99.40 ± 0.62" in text
    changed = tmp_path / "changed.md"
    changed.write_text(text.replace("99.40 ± 0.62", "99.41 ± 0.62"), encoding="utf-8")
    assert [line.partition(": ")[2].split()[0] for line in unfounded(changed)] == ["99.41"]


def test_what_counts_as_a_figure() -> None:
    assert figures("| Add | 85.36 ± 0.59 (85.78) | 2 | 0.67 M | 10,420 | `2406de1fc5b4/s1` |") == [
        "85.36", "0.59", "85.78", "0.67", "10,420",
    ]  # fmt: skip
    assert figures("step 500 of [it](results/0.5.png), `x=0.3`, commit 0.1, torch 2.13, version 1.2.3") == []
    assert runs_named("`2406de1fc5b4/s1`, `s2`, and `ea332169e8fe/s1`") == [
        "2406de1fc5b4/s1", "2406de1fc5b4/s2", "ea332169e8fe/s1",
    ]  # fmt: skip


def test_a_figure_is_held_to_its_printed_digits() -> None:
    assert holds([85.364], "85.36")
    assert not holds([85.366], "85.36")
    assert holds([673_000], "0.67", "0.67 M")
    assert not holds([673_000], "0.67", "0.67")
    assert holds([-3.25], "−3.2") or holds([-3.25], "−3.3")
    assert not holds([], "1.0")


def test_sections_leave_code_out() -> None:
    first, second = sections("a 1.5\n# T\n    code 2.5\nb 3.5\n")
    assert [line for _, line in first.lines] == ["a 1.5"]
    assert second.title == "T"
    assert [line for _, line in second.lines] == ["b 3.5"]
