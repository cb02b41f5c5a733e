"""Figures in a page of docs, and what its sources hold: runs in docs/results and files in docs/benchmarks.

A figure is a number with a decimal point or a thousands separator, in a table or in the text. What stands between
backquotes, in a block of code or in a link is a name. The sources of a figure are the runs that its line of a table, or
its paragraph, names (where that names none, those of its section), and the benchmark files of its section.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
RESULTS, BENCHMARKS = ROOT / "docs" / "results", ROOT / "docs" / "benchmarks"
RUN = re.compile(r"`([0-9a-f]{12})(?:/s(\d+))?`((?:,? (?:and )?`s\d+`)*)")
BENCHMARK = re.compile(r"benchmarks/([\w.-]+\.(?:json|txt))")
FIGURE = re.compile(r"(?<![\w.,#-])[-−]?(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+\.\d+)(?![\w.]*\d)")
NAMES = re.compile(
    r"`[^`]*`|\]\([^)]*\)|\b(?:[Cc]ommit|torch|Python) [\w.]+|\b(?:section|equation|table|figure) [\d.]+"
)
UNITS = {  # what a stored number is multiplied by where a line, or the head of its table, says so
    r"\d M\b|\dM\b|parameters|millions": (1e-6,),
    r"%|percent": (100.0,),
    r"minute|\bmin\b": (1 / 60,),
    r"hour": (1 / 3600,),
    r"\bms\b": (1e3,),
    r"[MG]i?B\b": (1e-6, 1e-9, 2.0**-20, 2.0**-30),
}


@dataclass
class Section:
    """A part of a page under one heading: its lines with their numbers, without blocks of code."""

    title: str
    lines: list[tuple[int, str]] = field(default_factory=list)


def sections(text: str) -> list[Section]:
    """The sections of a page in Markdown; the first has no title."""
    found = [Section("")]
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("#"):
            found.append(Section(line.lstrip("# ")))
        elif not line.startswith("    "):
            found[-1].lines.append((number, line))
    return found


def figures(line: str) -> list[str]:
    """The figures of a line, as printed."""
    return FIGURE.findall(NAMES.sub(" ", line))


def runs_named(line: str) -> list[str]:
    """Run ids in a line: `<train_id>/s1`, with further seeds as `s2`; a train_id alone is all its archived seeds."""
    found = []
    for train_id, seed, more in RUN.findall(line):
        if not seed:
            found += [f"{train_id}/{path.name}" for path in sorted((RESULTS / train_id).glob("s*"))]
            continue
        found += [f"{train_id}/s{one}" for one in (seed, *re.findall(r"`s(\d+)`", more))]
    return found


def unfounded(page: Path) -> list[str]:
    """Every figure of the page that no source holds, and every source that is not there, as `line: what`."""
    return [f"{page.name}:{number}: {what}" for number, what in _unfounded(page.read_text(encoding="utf-8"))]


def _unfounded(text: str) -> Iterator[tuple[int, str]]:
    for section in sections(text):
        whole = " ".join(line for _, line in section.lines)
        yield from ((section.lines[0][0], what) for what in _absent(whole))
        for is_figures, block in itertools.groupby(section.lines, lambda line: bool(line[1].strip())):
            lines = list(block) if is_figures else []
            paragraph = " ".join(line for _, line in lines)
            head = lines[0][1] if paragraph.startswith("|") else ""
            for number, line in lines:
                near = line if head else paragraph
                sources = _numbers_of(tuple(runs_named(near) or runs_named(whole)), tuple(BENCHMARK.findall(whole)))
                for figure in figures(line):
                    if not holds(sources, figure, f"{head} {near}"):
                        yield number, f"{figure} is in no source of '{section.title}'"


def _absent(text: str) -> Iterator[str]:
    for run_id in runs_named(text):
        if not (RESULTS / run_id / "config.yaml").is_file():
            yield f"run {run_id} is not in docs/results"
    for name in BENCHMARK.findall(text):
        if not (BENCHMARKS / name).is_file():
            yield f"docs/benchmarks/{name} is not there"


def holds(numbers: Iterable[float], figure: str, context: str = "") -> bool:
    """Whether a number, in a unit that the context speaks of, is the figure to the digits that are printed."""
    plain = figure.replace(",", "").replace("−", "-")
    value, digits = abs(float(plain)), len(plain.partition(".")[2])
    half = 0.5 * 10.0**-digits * (1 + 1e-9)
    units = [1.0, *(unit for mark, found in UNITS.items() if re.search(mark, context) for unit in found)]
    return any(abs(abs(number) * unit - value) <= half for number in numbers for unit in units)


@cache
def _numbers_of(run_ids: tuple[str, ...], benchmarks: tuple[str, ...]) -> tuple[float, ...]:
    found: list[float] = []
    by_path: dict[str, dict[str, list[float]]] = {}
    for run_id in run_ids:
        for path, number in _run_numbers(run_id):
            found.append(number)
            by_path.setdefault(path, {}).setdefault(run_id.partition("/")[0], []).append(number)
    for groups in by_path.values():
        means = [statistics.fmean(values) for values in groups.values()]
        found += means
        if not path.startswith(("decode", "result")):
            continue
        found += [one - other for one, other in itertools.combinations(means, 2)]
        for values in groups.values():
            found += [statistics.stdev(values), statistics.pstdev(values)] if len(values) > 1 else []
            found.append(statistics.median(values))
    for name in benchmarks:
        found += _file_numbers(BENCHMARKS / name)
    return tuple(number for number in found if math.isfinite(number))


@cache
def _run_numbers(run_id: str) -> tuple[tuple[str, float], ...]:
    """Numbers of a run by where they stand: configuration, environment, result, evaluations, decodings."""
    folder = RESULTS / run_id
    if not folder.is_dir():
        return ()
    found = list(_numbers(yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")), "config"))
    for name in ("env.json", "result.json"):
        if (folder / name).is_file():
            found += _numbers(json.loads((folder / name).read_text(encoding="utf-8")), name)
    for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        found += _numbers(record, f"{record['kind']} {record.get('step')}")
    for path in sorted((folder / "decodes").glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        found += _numbers(record, f"decode {json.dumps(record.get('search'), sort_keys=True)}")
    return tuple(found)


def _file_numbers(path: Path) -> list[float]:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        return [number for _, number in _numbers(json.loads(text), "")]
    return [float(one.replace(",", "")) for one in re.findall(r"-?\d[\d,]*(?:\.\d+)?", text) if one.strip(",-")]


def _numbers(data: Any, path: str) -> Iterator[tuple[str, float]]:
    if isinstance(data, dict):
        for name, value in data.items():
            yield from _numbers(value, f"{path}/{name}")
    elif isinstance(data, list):
        for value in data:
            yield from _numbers(value, path)
    elif isinstance(data, int | float) and not isinstance(data, bool):
        yield path, float(data)
