"""Real runs over cables of a given rate: every process is a host of its own, in a network namespace.

links_mbit: [100, 1000]        # rate of every process's cable, each way
overrides: [...]               # of every run
rows:
  - {label: RingTMP stage, overrides: [...]}

Points of a row, under conditions such as `measured`, `100 Mbit/s`: `tokens_per_second` and `idle_mean`, unless times
are refused (`sweeps.process_figures`), and `node_bytes` and `busiest_bytes` of a step.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nmt.config import RunConfig, compose
from nmt.config.compose import groups
from nmt.errors import UserError
from nmt.records import read_record
from sweeps.process_figures import read_figures
from sweeps.rows import layered
from sweeps.spec import known_keys_only, read_override_list, read_text
from sweeps.studies.gang import run_gang
from sweeps.studies.limits import refusal_of_hosts
from sweeps.studies.points import Findings, Point, table_of
from sweeps.studies.study import read_numbers
from sweeps.wording import NOTHING

KEYS = ("links_mbit", "overrides", "rows")
SHOWN = {"tokens_per_second": (1.0, ",.0f"), "idle_mean": (0.01, ".0f"), "busiest_bytes": (1e6, ".2f")}


def run_on_hosts(spec: Mapping[str, Any], words: Sequence[str], where: str = "network") -> Findings:
    """Run every row over every rate, where this machine lets us. Raises UserError for what cannot be meant."""
    known_keys_only(spec, KEYS, where)
    rates, rows = read_numbers(spec, "links_mbit", where), spec.get("rows")
    if not isinstance(rows, list) or not rows:
        raise UserError("must be a list of at least one mapping", where=f"{where}.rows")
    labels = [read_text(row, "label", f"{where}.rows[{number}]") for number, row in enumerate(rows)]
    if refused := refusal_of_hosts():
        points = tuple(Point(row=label, figure="tokens_per_second", refused=refused) for label in labels)
        return Findings(points=points, remarks=(f"Not measured over real cables: {refused}.",))
    points = tuple(
        point
        for label, row in zip(labels, rows, strict=True)
        for rate in rates
        for point in _points(label, _config(spec, row, words, where), rate)
    )
    return Findings(points=points, tables=(_table(labels, rates, points),))


def _config(spec: Mapping[str, Any], row: Mapping[str, Any], words: Sequence[str], where: str) -> RunConfig:
    lower = [*read_override_list(spec, where), *read_override_list(row, where)]
    return compose(layered([["experiment=t5_add_512"], lower, list(words)], set(groups())))


def _points(label: str, config: RunConfig, rate: float) -> Iterator[Point]:
    end = run_gang(config, mbit=rate)
    condition = ("measured", f"{rate:g} Mbit/s")
    result = read_record(end.directory, "result.json")
    if end.ended != "trained" or result is None:
        why = f"the run was {end.ended} ({end.directory.parent.parent})"
        yield Point(row=label, figure="tokens_per_second", condition=condition, refused=why)
        return
    figures = read_figures(config, result, read_record(end.directory, "env.json") or {}, end.directory)
    values = dict(figures.values)
    if (rate_of_tokens := values.get("process_tokens_per_second")) is not None:
        values["tokens_per_second"] = rate_of_tokens
    for figure in ("tokens_per_second", "idle_mean", "node_bytes", "busiest_bytes"):
        if figure in values:
            yield Point(row=label, figure=figure, value=values[figure], condition=condition)
        else:
            yield Point(row=label, figure=figure, condition=condition, refused=figures.refused)


def _table(labels: Sequence[str], rates: Sequence[float], points: Sequence[Point]) -> Any:
    known = {(one.row, one.figure, one.condition[-1]): one for one in points}
    heads = ["row", *(f"{figure.replace('_', ' ')}, {rate:g} Mbit/s" for figure in SHOWN for rate in rates)]
    rows = []
    for label in labels:
        cells = []
        for figure, (unit, form) in SHOWN.items():
            for rate in rates:
                point = known.get((label, figure, f"{rate:g} Mbit/s"))
                cells.append(NOTHING if point is None or point.value is None else format(point.value / unit, form))
        rows.append([label, *cells])
    refused = dict.fromkeys(f"{one.row}: times refused: {one.refused}" for one in points if one.refused)
    notes = (
        "idle in %, busiest bytes in MB a step; each process is a host of its own on a cable of this rate",
        *refused,
    )
    return table_of("Measured over cables of a given rate", heads, rows, notes)
