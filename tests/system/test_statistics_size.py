"""scripts/statistics_size.py, and the benchmark file that docs/statistics.md quotes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BENCHMARK = ROOT / "docs" / "benchmarks" / "statistics_size.json"


def test_a_first_look_prints_every_case_and_writes_them(tmp_path: Path) -> None:
    command = [
        sys.executable,
        str(ROOT / "scripts" / "statistics_size.py"),
        "effort=0.001",
        f"to={tmp_path / 'a.json'}",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found, kept = json.loads((tmp_path / "a.json").read_text()), json.loads(BENCHMARK.read_text())
    names = [(one["quantity"], one["of"], one["case"]) for one in found["cases"]]
    assert names == [(one["quantity"], one["of"], one["case"]) for one in kept["cases"]]
    assert len(re.findall(r"\d\.\d{3} ± \d\.\d{3}$", done.stdout, re.MULTILINE)) == len(names)
    assert found["commit"] and found["versions"]["scipy"]


def test_the_page_quotes_the_benchmark_file() -> None:
    rates = {(one["of"], one["case"]): f"{one['value']:.3f}" for one in json.loads(BENCHMARK.read_text())["cases"]}
    page = (ROOT / "docs" / "statistics.md").read_text()
    tables = {
        "| exact permutation, normal |": ("exact permutation test, two-sided", "{}, normal"),
        "| exact permutation, skewed |": ("exact permutation test, two-sided", "{}, skewed (exponential)"),
        "| Welch, equal sds |": ("Welch's t test, two-sided", "{}, sds 1 to 1"),
        "| Welch, sds 3 to 1 |": ("Welch's t test, two-sided", "{}, sds 3 to 1"),
    }
    for beginning, (test, case) in tables.items():
        (line,) = (line for line in page.splitlines() if line.startswith(beginning))
        expected = [rates[test, case.format(size)] for size in ("2 v 2", "3 v 3", "4 v 4", "6 v 6", "8 v 8", "4 v 8")]
        assert [f"{float(cell):.3f}" for cell in line.split("|")[2:-1]] == expected, beginning
    for beginning, test, size in (
        ("| paired bootstrap, 1 v 1 |", "paired bootstrap", "1 v 1"),
        ("| stratified randomisation, 4 v 4 |", "stratified randomisation", "4 v 4"),
        ("| 4 v 4 |", "replicates, then sentences: 95 % interval", "4 v 4"),
    ):
        (line,) = (line for line in page.splitlines() if line.startswith(beginning))
        expected = [rates[test, f"{size}, rho {rho}"] for rho in ("0", "0.5", "1", "2", "4")]
        assert [cell.strip() for cell in line.split("|")[2:-1]] == expected, beginning
    assert rates["exact permutation test, two-sided", "4 v 8, sds 3 to 1"] in page
