"""What became of a run that was disturbed, compared with the one that trains the same and was left alone."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nmt.config import RunConfig
from sweeps.results import LOG_PERPLEXITY

if TYPE_CHECKING:
    from sweeps.aggregate import RowResult
    from sweeps.plan import SweepPlan

DIFFERENCE, SAME = "loss_difference", "same_bits"
FIGURES = (DIFFERENCE, SAME)


def is_disturbed(config: RunConfig) -> bool:
    """Whether failures are injected into a run."""
    return bool(config.faults or config.distribution.faults)


def compared(plan: SweepPlan, results: Sequence[RowResult]) -> list[RowResult]:
    """The rows, those that were disturbed with what became of them:

    loss_difference: the largest difference of validation log-perplexity, at any evaluation and of any replicate, from
        the undisturbed row of the same training; the first one, where there are several.
    same_bits: 1.0 where its parameters had the same bits at every evaluation, else 0.0.

    Rows without such a counterpart, and without evaluations in common with it, stay as they are.
    """
    left_alone: dict[str, RowResult] = {}
    for planned, row in zip(plan.rows, results, strict=True):
        if not is_disturbed(planned.config):
            left_alone.setdefault(planned.train_id, row)
    found = []
    for planned, row in zip(plan.rows, results, strict=True):
        other = left_alone.get(planned.train_id) if is_disturbed(planned.config) else None
        figures = difference(row, other) if other is not None else None
        found.append(row if figures is None else dataclasses.replace(row, processes={**row.processes, **figures}))
    return found


def difference(row: RowResult, other: RowResult) -> dict[str, Any] | None:
    """The figures of a row, replicate by replicate of the same seed; None where nothing can be compared."""
    from sweeps.aggregate import describe

    there = {one.seed: one for one in other.complete}
    gaps, same = [], []
    for one in row.complete:
        if one.seed not in there:
            continue
        mine, undisturbed = evaluations(one.directory), evaluations(there[one.seed].directory)
        common = sorted(mine.keys() & undisturbed.keys())
        if not common:
            continue
        gaps.append(max(abs(mine[step][LOG_PERPLEXITY] - undisturbed[step][LOG_PERPLEXITY]) for step in common))
        digests = [(mine[step]["parameters_sha256"], undisturbed[step]["parameters_sha256"]) for step in common]
        same.append(float(mine.keys() == undisturbed.keys() and all(a == b for a, b in digests)))
    described = {DIFFERENCE: describe(gaps), SAME: describe(same)}
    return None if described[DIFFERENCE] is None else described


def evaluations(directory: Path) -> dict[int, Mapping[str, Any]]:
    """The evaluation lines of a run by step, those of a step that was made again by their last."""
    found: dict[int, Mapping[str, Any]] = {}
    try:
        text = (directory / "metrics.jsonl").read_text(encoding="utf-8")
    except OSError:
        return found
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if record.get("kind") == "evaluation" and LOG_PERPLEXITY in record and "parameters_sha256" in record:
            found[record["step"]] = record
    return found
