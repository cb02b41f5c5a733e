"""One run of MLflow, written to so that saying the same thing twice changes nothing."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sweeps.curves import Point, plain

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

METRICS_A_REQUEST, PARAMS_A_REQUEST = 1000, 100  # MLflow's limits
LONGEST_PARAM, LONGEST_TAG = 6000, 8000  # characters
# A metric of every point of a kind.
FIRST_METRIC = {
    "train": "train/loss",
    "evaluation": "val/teacher_forced/log_perplexity",
    "probe": "probe/gradient/all",
}


class MirroredRun:
    """A run that exists in MLflow, with what it is known to hold."""

    def __init__(self, client: MlflowClient, run: Run):
        self.client, self.id = client, run.info.run_id
        self.name, self.status = run.info.run_name, run.info.status
        self.tags, self.params, self.latest = dict(run.data.tags), dict(run.data.params), dict(run.data.metrics)
        inputs = run.inputs.dataset_inputs if run.inputs else []
        self.datasets = {(entry.dataset.name, entry.dataset.digest) for entry in inputs}
        self._logged: dict[str, dict[int, float]] | None = None

    def set_name(self, name: str) -> None:
        """Rename the run if it has another name."""
        if name != self.name:
            self.client.update_run(self.id, name=name)
            self.name = name

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Write the tags that are new or have another value."""
        from mlflow.entities import RunTag

        cut = {name: value[:LONGEST_TAG] for name, value in tags.items()}
        new = {name: value for name, value in cut.items() if self.tags.get(name) != value}
        if new:
            self.client.log_batch(self.id, tags=[RunTag(name, value) for name, value in new.items()])
            self.tags |= new

    def set_params(self, params: Mapping[str, str]) -> None:
        """Write the parameters that are not there yet; MLflow lets none be changed."""
        from mlflow.entities import Param

        new = [Param(name, value[:LONGEST_PARAM]) for name, value in params.items() if name not in self.params]
        for start in range(0, len(new), PARAMS_A_REQUEST):
            self.client.log_batch(self.id, params=new[start : start + PARAMS_A_REQUEST])
        self.params |= {param.key: param.value for param in new}

    def set_metrics(self, metrics: Mapping[str, float | None]) -> None:
        """Write single values whose latest value is another one; None means that there is no value.

        They stand at step 0, for which MLflow draws bars instead of curves.
        """
        from mlflow.entities import Metric

        values = {name: plain(value) for name, value in metrics.items() if value is not None}
        new = {name: value for name, value in values.items() if not _same(self.latest.get(name), value)}
        if new:
            now = int(time.time() * 1000)  # the latest of several values at a step is that of the latest time
            self.client.log_batch(self.id, metrics=[Metric(name, new[name], now, 0) for name in new])
            self.latest |= new

    def add_points(self, points: Iterable[Point], start: float) -> int:
        """Append the points of curves whose step is not there yet; returns how many that were.

        `start` is the Unix time of the run's beginning in seconds. A point's time is start + training seconds.
        """
        from mlflow.entities import Metric

        logged = self._steps_logged()
        batch: list[Metric] = []
        added = 0
        for point in points:
            steps = logged.setdefault(point.kind, {})
            if point.step in steps:
                continue
            when = int((start + point.seconds) * 1000)
            metrics = [Metric(name, value, when, point.step) for name, value in point.metrics.items()]
            if len(batch) + len(metrics) > METRICS_A_REQUEST:
                self.client.log_batch(self.id, metrics=batch)
                batch = []
            batch += metrics
            steps[point.step] = point.metrics.get(FIRST_METRIC.get(point.kind, ""), math.nan)
            added += 1
        if batch:
            self.client.log_batch(self.id, metrics=batch)
        return added

    def contradicts(self, points: Iterable[Point], complete: bool) -> bool:
        """Whether curves are there that these points, the whole file's, do not contain: another training's.

        A run that still trains may have points beyond the file's end, which it writes again after a crash.
        """
        logged = self._steps_logged()
        truth: dict[str, dict[int, float]] = {kind: {} for kind in logged}
        for point in points:
            truth.setdefault(point.kind, {})[point.step] = point.metrics.get(FIRST_METRIC.get(point.kind, ""), math.nan)
        for kind, steps in logged.items():
            end = max(truth[kind], default=-1)
            for step, value in steps.items():
                if step > end and not complete:
                    continue
                if step not in truth[kind] or not _same(truth[kind][step], value):
                    return True
        return False

    def add_dataset(self, name: str, fingerprint: str) -> None:
        """Record the corpus that the run was trained on, by the sha256 of its prepared content."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        digest = fingerprint[:36]  # MLflow's longest
        if (name, digest) not in self.datasets:
            dataset = Dataset(name=name, digest=digest, source_type="local", source="{}")
            self.client.log_inputs(self.id, [DatasetInput(dataset, [InputTag("mlflow.data.context", "train")])])
            self.datasets.add((name, digest))

    def put(self, path: Path, folder: str | None = None) -> None:
        """Store a copy of a file as an artifact."""
        self.client.log_artifact(self.id, str(path), folder)

    def end(self, status: str, when: int) -> None:
        """Record how the run ended, and when (Unix time in milliseconds)."""
        if status != self.status:
            self.client.set_terminated(self.id, status, when)
            self.status = status

    def go_on(self, status: str) -> None:
        """Record that the run is not over: `RUNNING` or `SCHEDULED`."""
        if status != self.status:
            self.client.update_run(self.id, status=status)
            self.status = status

    def _steps_logged(self) -> dict[str, dict[int, float]]:
        if self._logged is None:
            self._logged = {
                kind: {metric.step: metric.value for metric in self.client.get_metric_history(self.id, name)}
                for kind, name in FIRST_METRIC.items()
                if name in self.latest
            }
        return self._logged


def _same(one: float | None, other: float) -> bool:
    return one is not None and (one == other or (math.isnan(one) and math.isnan(other)))
