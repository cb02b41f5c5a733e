"""One run of MLflow, written to so that saying the same thing twice changes nothing."""

from __future__ import annotations

import hashlib
import math
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sweeps.tracking.curves import Point, plain

if TYPE_CHECKING:
    from mlflow.entities import Metric, Param, Run, RunTag
    from mlflow.tracking import MlflowClient

ENTRIES_A_REQUEST, PARAMS_A_REQUEST, TAGS_A_REQUEST = 1000, 100, 100  # MLflow's limits
POINTS_AT_HAND = 1000  # that wait to be written
LONGEST_PARAM, LONGEST_TAG = 6000, 8000  # characters
FILES = "nmt.files"  # tag: name=digest of each file that was stored
# A metric of every point of a kind.
FIRST_METRIC = {
    "train": "train/loss",
    "evaluation": "val/teacher_forced/log_perplexity",
    "probe": "probe/gradient/all",
}


@dataclass
class Pending:
    """What is to be written to a run: tags, parameters, single values, and the metrics of each point of its curves."""

    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)
    points: list[list[Metric]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.tags or self.params or self.values or self.points)

    def batches(self) -> Iterator[tuple[list[Metric], list[Param], list[RunTag]]]:
        """What `log_batch` takes, as often as needed. A point is never split: MLflow holds all of it, or nothing."""
        from mlflow.entities import Metric, Param, RunTag

        now = int(time.time() * 1000)  # the latest of several values at a step is that of the latest time
        all_tags = [RunTag(name, value) for name, value in self.tags.items()]
        all_params = [Param(name, value) for name, value in self.params.items()]
        points = deque([*self.points, *([Metric(name, value, now, 0)] for name, value in self.values.items())])
        while all_tags or all_params or points:
            metrics: list[Metric] = []
            tags, all_tags = all_tags[:TAGS_A_REQUEST], all_tags[TAGS_A_REQUEST:]
            params, all_params = all_params[:PARAMS_A_REQUEST], all_params[PARAMS_A_REQUEST:]
            while points and (len(metrics) + len(points[0]) <= ENTRIES_A_REQUEST - len(tags) - len(params)):
                metrics += points.popleft()
            if not (metrics or tags or params):
                metrics = points.popleft()  # larger than a request, so the client splits it
            yield metrics, params, tags


class MirroredRun:
    """A run that exists in MLflow, with what it is known to hold. What is set and added waits for `flush`."""

    def __init__(self, client: MlflowClient, run: Run):
        self.client, self.id = client, run.info.run_id
        self.name, self.status = run.info.run_name, run.info.status
        self.tags, self.params, self.latest = dict(run.data.tags), dict(run.data.params), dict(run.data.metrics)
        inputs = run.inputs.dataset_inputs if run.inputs else []
        self.datasets = {(entry.dataset.name, entry.dataset.digest) for entry in inputs}
        self._logged: dict[str, dict[int, float]] | None = None
        self._pending = Pending()

    def set_name(self, name: str) -> None:
        """Rename the run if it has another name."""
        if name != self.name:
            self.client.update_run(self.id, name=name)
            self.name = name

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Write the tags that are new or have another value."""
        cut = {name: value[:LONGEST_TAG] for name, value in tags.items()}
        new = {name: value for name, value in cut.items() if self.tags.get(name) != value}
        self._pending.tags |= new
        self.tags |= new

    def set_params(self, params: Mapping[str, str]) -> None:
        """Write the parameters that are not there yet; MLflow lets none be changed."""
        new = {name: value[:LONGEST_PARAM] for name, value in params.items() if name not in self.params}
        self._pending.params |= new
        self.params |= new

    def set_metrics(self, metrics: Mapping[str, float | None]) -> None:
        """Write single values whose latest value is another one; None means that there is no value.

        They stand at step 0, for which MLflow draws bars instead of curves.
        """
        values = {name: plain(value) for name, value in metrics.items() if value is not None}
        new = {name: value for name, value in values.items() if not _same(self.latest.get(name), value)}
        self._pending.values |= new
        self.latest |= new

    def add_points(self, points: Iterable[Point], start: float) -> int:
        """Append the points of curves whose step is not there yet; returns how many that were.

        `start` is the Unix time of the run's beginning in seconds. A point's time is start + training seconds.
        """
        from mlflow.entities import Metric

        logged = self._steps_logged()
        added = 0
        for point in points:
            steps = logged.setdefault(point.kind, {})
            if point.step in steps:
                continue
            when = int((start + point.seconds) * 1000)
            self._pending.points.append(
                [Metric(name, value, when, point.step) for name, value in point.metrics.items()]
            )
            steps[point.step] = point.metrics.get(FIRST_METRIC.get(point.kind, ""), math.nan)
            added += 1
            if len(self._pending.points) == POINTS_AT_HAND:
                self.flush()
        return added

    def flush(self) -> None:
        """Hand over what was set and added since the last call, in as few requests as MLflow's limits allow."""
        if self._pending:
            pending, self._pending = self._pending, Pending()
            for metrics, params, tags in pending.batches():
                self.client.log_batch(self.id, metrics, params, tags)

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

    def put(self, paths: Iterable[Path], folder: str | None = None) -> None:
        """Store copies of files as artifacts, unless what is stored has the same content; a tag keeps digests."""
        known = dict(entry.rsplit("=", 1) for entry in self.tags.get(FILES, "").split())
        before = dict(known)
        for path in paths:
            name = f"{folder}/{path.name}" if folder else path.name
            digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
            if known.get(name) != digest:
                self.client.log_artifact(self.id, str(path), folder)
                known[name] = digest
        if known != before:
            self.set_tags({FILES: " ".join(f"{name}={digest}" for name, digest in sorted(known.items()))})

    def end(self, status: str, when: int | None) -> None:
        """Record how the run ended, and when (Unix time in milliseconds; None: now)."""
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
