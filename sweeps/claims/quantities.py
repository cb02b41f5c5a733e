"""What a replicate is measured by, read from its run directory, on the scale that is tested."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from nmt.evaluation.catalogue import METRICS, rank
from nmt.records import read_record
from sweeps.claims.claim import PlannedContrast
from sweeps.results import Replicate


class NotMeasuredError(Exception):
    """A complete run that was trained without what a claim asks for; the text says what to do."""


def value_of(replicate: Replicate, contrast: PlannedContrast, metric: str) -> float:
    """The replicate's value of the claim's measure: larger is more; logarithms where ratios are compared.

    `metric` is the table's score. A run that diverged before its first checkpoint has translated nothing: its score is
    the worst there is, 0 for all scores that are better when higher. Raises NotMeasuredError.
    """
    if contrast.measure in ("score", "rank_correlation"):
        return rank(metric, _score(replicate, metric))
    if contrast.measure == "collapsed":
        assert contrast.below is not None
        return float(replicate.state == "diverged" or not _score(replicate, metric) >= contrast.below)
    if contrast.measure == "probe":
        return _log(_probe_median(replicate.directory, contrast.probe))
    value = getattr(replicate, contrast.measure)
    if value is None:
        raise NotMeasuredError(f"{replicate.run_id} has no {contrast.kind.title}: it ended before its first evaluation")
    return _log(float(value))


def one_machine(replicates: Sequence[Replicate]) -> str:
    """What keeps times of these runs from being compared, empty where nothing does.

    Only runs that had the machine to themselves are compared, all on one kind of processor with as many threads. What
    shared a machine was slowed down by neighbours that nobody recorded, so such times are compared with no others, not
    even among themselves.
    """
    shared = [one.run_id for one in replicates if one.timing != "exclusive"]
    if shared:
        return f"{len(shared)} of {len(replicates)} runs shared the machine, and their times are not comparable"
    machines = {_machine(one.directory) for one in replicates}
    return f"measured on {len(machines)} kinds of machine" if len(machines) > 1 else ""


def _score(replicate: Replicate, metric: str) -> float:
    worst = 100.0 if METRICS[metric].lower_is_better else 0.0
    return float(replicate.metrics.get(metric, worst))


def _log(value: float) -> float:
    """The logarithm; NaN of what has none, which a test then says."""
    return math.log(value) if value > 0 and math.isfinite(value) else math.nan


def _probe_median(directory: Path, names: Sequence[str]) -> float:
    """The median over probed steps of the joint norm of all curves whose names match one of `names` (`a/b*`)."""
    norms = []
    for line in _probe_lines(directory):
        matching = [value for key, value in line.items() if any(fnmatchcase(key, name) for name in names)]
        if matching:
            norms.append(math.hypot(*matching))
    if not norms:
        raise NotMeasuredError("the runs were trained without these probes, and can only be probed by training anew")
    return statistics.median(norms)


def _probe_lines(directory: Path) -> list[dict[str, Any]]:
    try:
        text = (directory / "metrics.jsonl").read_text(encoding="utf-8")
        records = [json.loads(line) for line in text.splitlines() if '"probe"' in line]
    except (OSError, ValueError):
        return []
    return [record for record in records if record.get("kind") == "probe"]


def _machine(directory: Path) -> tuple[str, int]:
    environment = read_record(directory, "env.json") or {}
    return str((environment.get("device") or {}).get("name")), int(environment.get("threads") or 0)
