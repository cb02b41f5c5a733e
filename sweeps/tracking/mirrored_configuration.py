"""A configuration's run in MLflow: what its replicates come to, and their mean curves."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from nmt.config import from_dict, to_dict
from nmt.config.identity import canonical, digest
from nmt.config.schema import TRAIN, RunConfig
from nmt.errors import UserError
from nmt.evaluation.catalogue import best_form, key
from nmt.runs import RunStore
from sweeps.aggregate import describe
from sweeps.tracking.curves import Point
from sweeps.tracking.mirrored_replicate import Card, ReplicateMirror
from sweeps.tracking.mirrored_run import MirroredRun
from sweeps.tracking.names import (
    CONFIGURATION,
    DIRECTORY,
    FACTOR,
    KIND,
    MEMBERS,
    PARENT,
    STATE,
    begin_of,
    create_run,
)
from sweeps.tracking.parameters import numeric_factors, parameters_of

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient


@dataclass(frozen=True)
class ConfigurationGroup:
    """A row of a sweep: a configuration and the ids of its replicates' runs.

    `config` is what `nmt.config.to_dict` made of it; its seed does not matter. `factors` are the numbers in which it
    differs from the sweep's other rows, by parameter.
    """

    label: str
    train_id: str
    run_ids: Sequence[str]
    config: Mapping[str, Any]
    factors: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, label: str, train_id: str, run_ids: Sequence[str], config: RunConfig) -> ConfigurationGroup:
        """The row of a configuration that is at hand."""
        return cls(label, train_id, run_ids, to_dict(config))._knowing(config)

    def _knowing(self, config: RunConfig) -> ConfigurationGroup:
        self.__dict__["run_config"] = config  # reading it takes 30 ms, and sweeps may have a thousand rows
        return self

    @cached_property
    def run_config(self) -> RunConfig:
        """`config` as an object. Raises UserError where it is none."""
        return from_dict(self.config)

    @property
    def key(self) -> str:
        """Tells configurations of an experiment apart: training, label, and how the test split is decoded."""
        config = self.run_config
        decoding = {"search": canonical(config.search, {TRAIN}), "test": canonical(config.data.test, {TRAIN})}
        return digest({"train_id": self.train_id, "label": self.label} | decoding)


def with_factors(groups: Sequence[ConfigurationGroup]) -> list[ConfigurationGroup]:
    """The rows of a sweep, told in which numbers they differ."""
    found = []
    for group, factors in zip(groups, numeric_factors([parameters_of(one.run_config) for one in groups]), strict=True):
        found.append(dataclasses.replace(group, factors=factors)._knowing(group.run_config))
    return found


class ConfigurationMirror:
    """A configuration's run and those of its replicates."""

    def __init__(
        self,
        client: MlflowClient,
        store: RunStore,
        experiment_id: str,
        group: ConfigurationGroup,
        known: Mapping[tuple[str, str], Run],
    ):
        self.client, self.store, self.group = client, store, group
        self._experiment_id, self._config, self._key = experiment_id, group.run_config, group.key
        self.metric = self._config.validation.metric
        self._members = ", ".join(sorted(group.run_ids))
        run = known.get((self._key, ""))
        self.run = self._create() if run is None else MirroredRun(client, run)
        self.run.set_name(group.label)
        self.replicates = [
            ReplicateMirror(client, store, experiment_id, self._card(run_id), run_id, self._config, known)
            for run_id in group.run_ids
        ]
        self._config_stored, self._summarised = False, False
        self._averaged: set[tuple[str, int]] = set()
        if self.run.tags.get(MEMBERS) != self._members:
            self._renew()

    def update(self, damaged: dict[str, str]) -> int:
        """Write what is new; returns the number of points of curves."""
        points = 0
        for replicate in self.replicates:
            try:
                points += replicate.update()
                damage = replicate.damage
            except UserError as error:
                damage = str(error)
            damaged.pop(replicate.run_id, None)
            if damage:
                damaged[replicate.run_id] = damage
        if any(replicate.replaced for replicate in self.replicates):
            self._renew()
        if not self._summarised or any(replicate.changed for replicate in self.replicates):
            self._summarise()
            self._summarised = True
        self.run.flush()
        return points

    def _card(self, run_id: str) -> Card:
        seed = run_id.rpartition("/s")[2]
        tags = {KIND: "replicate", PARENT: self.run.id}
        return Card(key=self._key, name=f"{self.run.name} · seed {seed}", tags=tags)

    def _create(self) -> MirroredRun:
        directories = [self.store.directory(run_id) for run_id in self.group.run_ids]
        start = min(map(begin_of, directories), default=time.time())
        tags = {
            KIND: "configuration",
            CONFIGURATION: self._key,
            MEMBERS: self._members,
            DIRECTORY: str(self.store.directory(self.group.train_id)),
            "nmt.train_id": self.group.train_id,
        }
        run = create_run(self.client, self._experiment_id, start, self.group.label, tags, "nmt sweep")
        run.set_params(parameters_of(self._config))
        return run

    def _renew(self) -> None:
        """Put a fresh run in the place of the configuration's, for MLflow cannot change a point of its mean curves.

        They change when replicates are added, and when one was trained anew.
        """
        self.client.delete_run(self.run.id)
        self.run = self._create()
        for replicate in self.replicates:
            replicate.retag({PARENT: self.run.id})
        self._config_stored, self._summarised = False, False
        self._averaged.clear()

    def _summarise(self) -> None:
        self._summarise_curves()
        done = [one.result for one in self.replicates if one.result and one.result.complete]
        metrics: dict[str, float | None] = {"n": len(done)}
        metrics |= {f"{FACTOR}{name}": value for name, value in self.group.factors.items()}
        for name in dict.fromkeys(name for result in done for name in result.metrics):
            found = describe(result.metrics.get(name) for result in done)
            assert found is not None
            metrics[key("test", name)] = found.mean
            if name == self.metric:
                best = getattr(found, best_form(name))
                numbers = {"mean": found.mean, "sd": found.sd, best_form(name): best}
                metrics |= {f"{name}_{form}": _short(number) for form, number in numbers.items()}
                spread = "" if found.sd is None else f" ± {found.sd:.2f}"
                self.run.set_tags({name: f"{found.mean:.2f}{spread} ({best:.2f})"})
        metrics["parameters"] = next((one.parameters for one in done if one.parameters is not None), None)
        end = max((one.heartbeat for one in self.replicates), default=0)
        self.run.set_metrics(metrics)
        self._config_stored = self._config_stored or self._store_config()
        states = {one.status.state for one in self.replicates}
        self.run.set_tags({STATE: ", ".join(sorted(states))})
        if "running" in states:
            self.run.go_on("RUNNING")
        elif states <= {"finished", "diverged"}:
            self.run.end("FINISHED", end)
        elif "failed" in states:
            self.run.end("FAILED", end)
        elif "interrupted" in states:
            self.run.end("KILLED", end)
        else:
            self.run.go_on("SCHEDULED")  # the rest has not begun

    def _summarise_curves(self) -> None:
        """The mean over replicates at each step that all of them have reached: what the charts draw at first sight."""
        reached = [one.points.keys() for one in self.replicates]
        common = sorted(set.intersection(*map(set, reached))) if reached else []
        new = [key for key in common if key not in self._averaged]
        means = []
        for kind, step in new:
            points = [one.points[kind, step] for one in self.replicates]
            names = points[0].metrics
            values = {name: statistics.fmean(point.metrics.get(name, math.nan) for point in points) for name in names}
            means.append(Point(kind, step, max(point.seconds for point in points), values))
        self.run.add_points(means, start=min((begin_of(one.directory) for one in self.replicates), default=0.0))
        self._averaged.update(new)

    def _store_config(self) -> bool:
        for replicate in self.replicates:
            path = replicate.directory / "config.yaml"
            if path.exists():
                self.run.put([path])
                return True
        return False


def _short(number: float | None) -> float | None:
    return None if number is None else round(number, 4)  # the width of a column; the directories have all digits
