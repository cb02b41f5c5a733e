"""One experiment of MLflow kept equal to run directories: a run a configuration, below it one a replicate.

An experiment is a sweep at a scale. Its top-level runs are configurations, with mean, sample standard deviation and
maximum over their replicates; those are the child runs, with curves. (A third level, the sweep itself, would hide all
charts: MLflow 3.17 draws top-level runs only.)
"""

from __future__ import annotations

import dataclasses
import getpass
import json
import math
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nmt.config import from_dict
from nmt.config.identity import canonical, digest
from nmt.config.schema import DECODE, PLACEMENT, TRAIN, RunConfig
from nmt.errors import UserError
from nmt.evaluation.catalogue import best_form, key
from nmt.runs import RunStatus, RunStore
from sweeps.aggregate import describe
from sweeps.curves import CurveReader, Point
from sweeps.mirrored_run import MirroredRun
from sweeps.results import Replicate, read_replicate
from sweeps.tracking_store import VIEW

if TYPE_CHECKING:
    from mlflow.entities import Experiment, Run
    from mlflow.tracking import MlflowClient

KIND, CONFIGURATION, RUN_ID, STATE = "nmt.kind", "nmt.configuration", "nmt.run_id", "nmt.state"
MEMBERS = "nmt.replicates"
STATUS = {
    "queued": "SCHEDULED",
    "running": "RUNNING",
    "interrupted": "KILLED",
    "failed": "FAILED",
    "diverged": "FINISHED",  # it counts in the statistics; the tag nmt.state tells it from a finished one
    "finished": "FINISHED",
}
OVER = ("KILLED", "FAILED", "FINISHED")
WATCHED = ("config.yaml", "env.json", "status.json", "metrics.jsonl", "result.json", "decodes")
COPIED = ("config.yaml", "env.json", "metrics.jsonl", "result.json")
AVERAGED = ("train/loss", "train/teacher_forced/", "val/decode/", "val/teacher_forced/", "probe/")
LONGEST_NOTE = 5000  # characters of an experiment's tag


@dataclass(frozen=True)
class ConfigurationGroup:
    """A row of a sweep: a configuration and the ids of its replicates' runs.

    `config` is what `nmt.config.to_dict` made of it; its seed does not matter.
    """

    label: str
    train_id: str
    run_ids: Sequence[str]
    config: Mapping[str, Any]

    @property
    def key(self) -> str:
        """Tells configurations of an experiment apart: training, label, and how the test split is decoded."""
        config = from_dict(self.config)
        decoding = {"search": canonical(config.search, {TRAIN}), "test": canonical(config.data.test, {TRAIN})}
        return digest({"train_id": self.train_id, "label": self.label} | decoding)


class ExperimentMirror:
    """Everything of one experiment. Raises what MLflow raises; damaged run directories are left out and noted.

    Parameters
    ----------
    artifacts: where a new experiment's artifacts go; None leaves it to the server.
    """

    def __init__(
        self,
        client: MlflowClient,
        store: RunStore,
        name: str,
        groups: Sequence[ConfigurationGroup],
        artifacts: Path | None,
    ):
        self.client, self.name = client, name
        self.damaged: dict[str, str] = {}
        self.points = 0
        self.experiment = _experiment(client, name, artifacts)
        known = _known_runs(client, self.experiment.experiment_id)
        self.configurations = [
            _ConfigurationMirror(client, store, self.experiment.experiment_id, group, known) for group in groups
        ]
        self._choose_columns()

    def update(self) -> None:
        """Write what is new."""
        for configuration in self.configurations:
            self.points += configuration.update(self.damaged)

    def attach(self, path: Path, label: str | None = None) -> None:
        """Store a report's file with the configuration called `label`, or with each (Markdown: as description too)."""
        if label is None and path.suffix == ".md":
            text = path.read_text(encoding="utf-8")[:LONGEST_NOTE]
            self.client.set_experiment_tag(self.experiment.experiment_id, "mlflow.note.content", text)
        for configuration in self.configurations:
            if label in (None, configuration.group.label):
                configuration.run.put(path, "report")

    def _choose_columns(self) -> None:
        # MLflow hides every metric from its table until somebody picks it. This tag is what its "Share" button writes.
        metric = self.configurations[0].metric if self.configurations else "bleu"
        metrics = (*(f"{metric}_{form}" for form in ("mean", "sd", best_form(metric))), "n", "parameters")
        columns = [f"tags.`{metric}`", *(f"metrics.`{name}`" for name in metrics)]
        widths = dict(zip(columns, (190, 110, 110, 110, 60, 120), strict=True))
        # Any other order than by time would take the replicates out of their configurations.
        order = {"orderByKey": "attributes.start_time", "orderByAsc": True}
        view = {"selectedColumns": columns, "columnOrder": columns, "columnWidths": widths, **order}
        key, value = f"mlflow.sharedViewState.{VIEW}", json.dumps(view)
        if self.experiment.tags.get(key) != value:
            self.client.set_experiment_tag(self.experiment.experiment_id, key, value)


class _ConfigurationMirror:
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
        self._experiment_id, self._config, self._key = experiment_id, from_dict(group.config), group.key
        self.metric = self._config.validation.metric
        self._members = ", ".join(sorted(group.run_ids))
        run = known.get((self._key, ""))
        self.run = self._create() if run is None else MirroredRun(client, run)
        self.run.set_name(group.label)
        self.replicates = [
            _ReplicateMirror(client, store, experiment_id, self.run, self._key, run_id, self._config, known)
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
                damaged.pop(replicate.run_id, None)
            except UserError as error:
                damaged[replicate.run_id] = str(error)
        if any(replicate.replaced for replicate in self.replicates):
            self._renew()
        if not self._summarised or any(replicate.changed for replicate in self.replicates):
            self._summarise()
            self._summarised = True
        return points

    def _create(self) -> MirroredRun:
        directories = [self.store.directory(run_id) for run_id in self.group.run_ids]
        start = min(map(_begin, directories), default=time.time())
        tags = {
            KIND: "configuration",
            CONFIGURATION: self._key,
            MEMBERS: self._members,
            "nmt.train_id": self.group.train_id,
            "mlflow.user": _user(),
        }
        run = _create_run(self.client, self._experiment_id, start, self.group.label, tags | _source("nmt sweep"))
        run.set_params(parameters_of(self._config))
        return run

    def _renew(self) -> None:
        """Put a fresh run in the place of the configuration's, for MLflow cannot change a point of its mean curves.

        They change when replicates are added, and when one was trained anew.
        """
        self.client.delete_run(self.run.id)
        self.run = self._create()
        for replicate in self.replicates:
            replicate.move_to(self.run)
        self._config_stored, self._summarised = False, False
        self._averaged.clear()

    def _summarise(self) -> None:
        self._summarise_curves()
        done = [one.result for one in self.replicates if one.result and one.result.complete]
        metrics: dict[str, float | None] = {"n": len(done)}
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
        self.run.add_points(means, start=min((_begin(one.directory) for one in self.replicates), default=0.0))
        self._averaged.update(new)

    def _store_config(self) -> bool:
        for replicate in self.replicates:
            path = replicate.directory / "config.yaml"
            if path.exists():
                self.run.put(path)
                return True
        return False


class _ReplicateMirror:
    """A replicate's run: curves, how it ended, and where its numbers come from."""

    def __init__(
        self,
        client: MlflowClient,
        store: RunStore,
        experiment_id: str,
        parent: MirroredRun,
        key: str,
        run_id: str,
        config: RunConfig,
        known: Mapping[tuple[str, str], Run],
    ):
        self.client, self.store, self.run_id = client, store, run_id
        self.directory = store.directory(run_id)
        self.status = RunStatus()
        self.result: Replicate | None = None
        self.points: dict[tuple[str, int], Point] = {}
        self._experiment_id, self._parent, self._key = experiment_id, parent, key
        self._config = dataclasses.replace(config, seed=int(run_id.rpartition("/s")[2]))
        self._reader = CurveReader(self.directory / "metrics.jsonl")
        self._run = MirroredRun(client, known[key, run_id]) if (key, run_id) in known else None
        self._checked = False
        self.changed = self.replaced = False
        self._seen: tuple[Any, ...] = ()
        self._stored: tuple[Any, ...] = ()

    @property
    def heartbeat(self) -> int:
        """Unix time of the run's last sign of life, in milliseconds."""
        return int(self.status.heartbeat * 1000)

    def update(self) -> int:
        """Write what is new; returns the number of points of curves. Raises UserError for a damaged directory."""
        self.status = self.store.status(self.run_id)
        seen = (self.status.state, *_stamps(self.directory))
        self.changed, self.replaced = seen != self._seen, False
        if not self.changed or not (self.directory / "config.yaml").exists():
            return 0
        self.result = read_replicate(self.store, self._config, self.run_id)
        result = self.store.read_json(self.run_id, "result.json") or {}
        points, damage = self._read_curves()
        run = self._current(points, over=bool(result), whole=damage is None)
        added = run.add_points(points, start=_begin(self.directory))
        for point in points:
            averaged = {name: value for name, value in point.metrics.items() if name.startswith(AVERAGED)}
            self.points[point.kind, point.step] = dataclasses.replace(point, metrics=averaged)
        self._describe(run)
        self._conclude(run, result)
        if damage is not None:
            raise damage  # the result stands all the same, as it does in the sweep's table
        self._seen = seen
        return added

    def move_to(self, parent: MirroredRun) -> None:
        """Become a child of another run."""
        self._parent = parent
        if self._run is not None:
            self._run.set_tags({"mlflow.parentRunId": parent.id})

    def _read_curves(self) -> tuple[list[Point], UserError | None]:
        try:
            return self._reader.read(), None
        except UserError as error:
            return [], error

    def _current(self, points: Sequence[Point], over: bool, whole: bool) -> MirroredRun:
        """The run to write to; one that mirrors another training under the same id goes to MLflow's trash."""
        if self._run is not None and whole and not self._checked and self._run.contradicts(points, complete=over):
            self.client.delete_run(self._run.id)
            self._run, self.replaced = None, True
        if self._run is None:
            tags = {
                KIND: "replicate",
                CONFIGURATION: self._key,
                RUN_ID: self.run_id,
                "mlflow.parentRunId": self._parent.id,
                "mlflow.user": _user(),
            }
            name = f"{self._parent.name} · seed {self._config.seed}"
            start = _begin(self.directory)
            self._run = _create_run(self.client, self._experiment_id, start, name, tags | _source("nmt train"))
            self._run.set_params(parameters_of(self._config) | {"seed": str(self._config.seed)})
        self._checked = True
        return self._run

    def _describe(self, run: MirroredRun) -> None:
        environment = self.store.read_json(self.run_id, "env.json")
        if environment is None:
            return
        code = environment.get("code") or {}
        tags = {
            "mlflow.source.git.commit": code.get("commit"),
            "mlflow.source.git.dirty": None if code.get("dirty") is None else str(code["dirty"]).lower(),
            "nmt.patch_sha256": code.get("patch_sha256"),
            "nmt.version": code.get("version"),
            "nmt.host": environment.get("host"),
            "nmt.device": (environment.get("device") or {}).get("name"),
        }
        run.set_tags({name: value for name, value in tags.items() if value})
        if environment.get("fingerprint"):
            run.add_dataset(self._config.data.name or self._config.data.generator, environment["fingerprint"])

    def _conclude(self, run: MirroredRun, result: Mapping[str, Any]) -> None:
        status = STATUS[self.status.state]
        tags = {STATE: self.status.state, "nmt.directory": str(self.directory)}
        run.set_tags(tags | ({"nmt.error": self.status.error} if self.status.error else {}))
        if result:
            run.set_tags({"nmt.timing": str(result.get("timing") or "")})
            run.set_metrics(self._final_metrics(result))
        if status not in OVER:
            run.go_on(status)
            return
        run.end(status, self.heartbeat)
        stamps = _stamps(self.directory)
        if stamps != self._stored:
            for name in COPIED:
                if (self.directory / name).exists():
                    run.put(self.directory / name)
            self._stored = stamps

    def _final_metrics(self, result: Mapping[str, Any]) -> dict[str, float | None]:
        # Without a slash: MLflow makes a section of charts of what stands before one.
        best = {name.rpartition("/")[2]: value for name, value in (result.get("best") or {}).get("metrics", {}).items()}
        metrics = {f"best_val_{name}": best.get(name) for name in (self._config.validation.metric, "log_perplexity")}
        metrics |= {key("test", name): value for name, value in (self.result.metrics if self.result else {}).items()}
        metrics |= {f"convergence_{name}": value for name, value in (result.get("convergence") or {}).items()}
        metrics |= {name: result.get(name) for name in ("parameters", "tokens_per_second", "peak_memory_bytes")}
        return {name: value for name, value in metrics.items() if isinstance(value, int | float)}


def parameters_of(config: RunConfig) -> dict[str, str]:
    """The keys that make a result, flattened, as text: of training and decoding, not of where it happens."""
    return dict(_flat(config, ""))


def _flat(config: Any, prefix: str) -> Iterator[tuple[str, str]]:
    for field in dataclasses.fields(config):
        role = field.metadata.get("role", TRAIN)
        if role == PLACEMENT or field.name == "checksums":
            continue
        assert role in (TRAIN, DECODE)
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _flat(value, f"{prefix}{field.name}.")
        elif isinstance(value, Mapping):
            yield from ((f"{prefix}{field.name}.{name}", str(inner)) for name, inner in value.items())
        else:
            text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
            if text:
                yield f"{prefix}{field.name}", text


def _experiment(client: MlflowClient, name: str, artifacts: Path | None) -> Experiment:
    found = client.get_experiment_by_name(name)
    if found is None:
        location = None if artifacts is None else (artifacts / name).absolute().as_uri()
        kind = {"mlflow.experimentKind": "custom_model_development"}
        return client.get_experiment(client.create_experiment(name, location, kind))
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return found


def _known_runs(client: MlflowClient, experiment_id: str) -> dict[tuple[str, str], Run]:
    """Runs of the experiment that are ours, by configuration and run id (empty for the configuration itself)."""
    known: dict[tuple[str, str], Run] = {}
    token: str | None = None
    while True:
        page = client.search_runs([experiment_id], order_by=["attributes.start_time DESC"], page_token=token)
        for run in page:
            if CONFIGURATION in run.data.tags:
                known[run.data.tags[CONFIGURATION], run.data.tags.get(RUN_ID, "")] = run  # the oldest of twins wins
        token = page.token
        if not token:
            return known


def _stamps(directory: Path) -> tuple[tuple[int, int] | None, ...]:
    return tuple(_stamp(directory / name) for name in WATCHED)


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def _create_run(client: MlflowClient, experiment: str, start: float, name: str, tags: dict[str, str]) -> MirroredRun:
    run = client.create_run(experiment, int(start * 1000), tags, name)
    return MirroredRun(client, client.get_run(run.info.run_id))


def _begin(directory: Path) -> float:
    """Unix time in seconds at which a run began; now where it has not."""
    try:
        return (directory / "config.yaml").stat().st_mtime
    except OSError:
        return time.time()


def _short(number: float | None) -> float | None:
    return None if number is None else round(number, 4)  # the width of a column; the directories have all digits


def _source(command: str) -> dict[str, str]:
    return {"mlflow.source.name": command, "mlflow.source.type": "LOCAL"}


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # no such user in the container
        return "unknown"
