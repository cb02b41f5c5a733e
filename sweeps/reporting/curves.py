"""Learning curves of rows: the mean over replicates at each evaluation, and the band from the lowest to the highest."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nmt.evaluation.catalogue import key
from sweeps.aggregate import RowResult
from sweeps.results import LOG_PERPLEXITY

AXES = {"steps": "steps", "tokens": "target_tokens", "seconds": "seconds"}  # and their names in metrics.jsonl
FEWEST, MOST = 8, 80  # points of a curve
POINTS = 4000  # of all curves of a picture together, which keeps a page of a thousand rows small


@dataclass(frozen=True, kw_only=True)
class Curve:
    """A quantity of one row against one axis.

    `x`, `mean`, `low` and `high` have a value for each point, `n` the replicates that were there: those that ended
    earlier are left out from then on. `run_ids` are the replicates, `timing` what their seconds were (`exclusive` or
    `shared`), empty where no seconds are involved.
    """

    label: str
    x: tuple[float, ...]
    mean: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    n: tuple[int, ...]
    run_ids: tuple[str, ...]
    timing: str = ""


@dataclass(frozen=True)
class Evaluations:
    """What one run measured while it trained, an array for each name in its evaluation lines, in order of steps."""

    run_id: str
    timing: str
    columns: Mapping[str, np.ndarray]

    def of(self, quantity: str) -> tuple[np.ndarray, np.ndarray]:
        """Where the quantity has a finite value, and its values there."""
        values = self.columns.get(quantity, np.empty(0))
        there = np.flatnonzero(np.isfinite(values))
        return there, values[there]


def make_curves(results: Sequence[RowResult], metric: str) -> dict[tuple[str, str], list[Curve]]:
    """Curves of all rows by (quantity, axis): the validation metric and the log-perplexity, against each of `AXES`.

    Rows without an evaluation have none. The axis of seconds has only the replicates whose seconds stand in the table,
    since times of different timing are never mixed.
    """
    quantities = (key("val", metric), LOG_PERPLEXITY)
    names = [*AXES.values(), *quantities]
    runs = [[read_evaluations(one.directory, one.run_id, names) for one in row.complete] for row in results]
    most = max(FEWEST, min(MOST, POINTS // max(1, len(results))))
    return {
        (quantity, axis): [
            curve
            for row, read in zip(results, runs, strict=True)
            if (curve := _curve(row, read, quantity, axis, most)) is not None
        ]
        for quantity in quantities
        for axis in AXES
    }


def read_evaluations(directory: Path, run_id: str, names: Sequence[str]) -> Evaluations:
    """The evaluation lines of a run's metrics.jsonl; a torn line counts as absent, an absent file as empty."""
    lines: dict[int, dict[str, object]] = {}
    timing = ""
    try:
        text = (directory / "metrics.jsonl").read_bytes()
    except OSError:
        text = b""
    for line in text.splitlines():
        if b'"evaluation"' not in line:
            continue  # most lines are of kind `train`
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and record.get("kind") == "evaluation" and isinstance(record.get("step"), int):
            lines[record["step"]] = record | {"steps": record["step"]}
            timing = record.get("timing") or timing
    ordered = [lines[step] for step in sorted(lines)]
    columns = {name: np.array([_number(line.get(name)) for line in ordered], dtype=np.float64) for name in names}
    return Evaluations(run_id, timing, columns)


def _curve(row: RowResult, runs: Sequence[Evaluations], quantity: str, axis: str, most: int) -> Curve | None:
    timing = ""
    if axis == "seconds":
        timing = row.timing or next((run.timing for run in runs if run.timing), "")
        runs = [run for run in runs if run.timing in (timing, "")]
    found = [(run, *run.of(quantity)) for run in runs]
    found = [(run, there, values) for run, there, values in found if len(there)]
    if not found:
        return None
    # Replicates are lined up by steps. Mostly they were evaluated at the same ones; where the clock decided, each is
    # read between its own evaluations, and nowhere beyond them.
    grid = np.unique(np.concatenate([run.columns["steps"][there] for run, there, _ in found]))
    if len(grid) > most:
        grid = grid[np.unique(np.linspace(0, len(grid) - 1, most).round().astype(int))]
    values = np.stack([_at(grid, run.columns["steps"][there], values) for run, there, values in found])
    places = np.stack(
        [_at(grid, run.columns["steps"][there], run.columns[AXES[axis]][there]) for run, there, _ in found]
    )
    known = np.isfinite(values) & np.isfinite(places)
    grid_has = known.any(axis=0)
    values, places, known = values[:, grid_has], places[:, grid_has], known[:, grid_has]
    if not known.size:
        return None
    return Curve(
        label=row.label,
        x=tuple(_mean(places, known)),
        mean=tuple(_mean(values, known)),
        low=tuple(np.where(known, values, math.inf).min(axis=0).tolist()),
        high=tuple(np.where(known, values, -math.inf).max(axis=0).tolist()),
        n=tuple(known.sum(axis=0).tolist()),
        run_ids=tuple(run.run_id for run, _, _ in found),
        timing=timing,
    )


def _at(grid: np.ndarray, steps: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The values at the steps of the grid, [points]; NaN before the first and after the last that there is."""
    read: np.ndarray = np.interp(grid, steps, values, left=math.nan, right=math.nan)
    return read


def _mean(values: np.ndarray, known: np.ndarray) -> list[float]:
    mean: list[float] = (np.where(known, values, 0.0).sum(axis=0) / known.sum(axis=0)).tolist()
    return mean


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan
