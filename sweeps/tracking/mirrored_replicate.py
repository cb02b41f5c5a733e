"""A training's run in MLflow, a sweep's replicate or a search's trial: curves, end, and what the numbers are of."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nmt.config.schema import RunConfig
from nmt.evaluation.catalogue import key, rank
from nmt.runs import RunStatus, RunStore
from sweeps.results import Replicate, read_replicate
from sweeps.tracking.curves import CurveReader, Point
from sweeps.tracking.mirrored_run import MirroredRun
from sweeps.tracking.names import (
    CONFIGURATION,
    DIRECTORY,
    OVER,
    RUN_ID,
    STATE,
    STATUS,
    begin_of,
    create_run,
)
from sweeps.tracking.parameters import parameters_of

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

WATCHED = ("config.yaml", "env.json", "status.json", "metrics.jsonl", "result.json", "decodes")
COPIED = ("config.yaml", "env.json", "metrics.jsonl", "result.json")
AVERAGED = ("train/loss", "train/teacher_forced/", "val/decode/", "val/teacher_forced/", "probe/")


@dataclass(frozen=True, kw_only=True)
class Card:
    """How a training is shown: whose it is (with its run id, that tells it from all others), its name, and more.

    `params` and `factors` (numbers to sort by) stand beside what every training shows; `tags` may change later.
    """

    key: str
    name: str
    tags: Mapping[str, str]
    params: Mapping[str, str] = field(default_factory=dict)
    factors: Mapping[str, float] = field(default_factory=dict)


class ReplicateMirror:
    """The run of one training."""

    def __init__(
        self,
        client: MlflowClient,
        store: RunStore,
        experiment_id: str,
        card: Card,
        run_id: str,
        config: RunConfig,
        known: Mapping[tuple[str, str], Run],
    ):
        self.client, self.store, self.run_id = client, store, run_id
        self.directory = store.directory(run_id)
        self.status = RunStatus()
        self.result: Replicate | None = None
        self.points: dict[tuple[str, int], Point] = {}
        self.stopped = False
        self.changed = self.replaced = False
        self._experiment_id, self._card = experiment_id, card
        self._config = dataclasses.replace(config, seed=int(run_id.rpartition("/s")[2]))
        self._reader = CurveReader(self.directory / "metrics.jsonl", strict=False)
        self._run = MirroredRun(client, known[card.key, run_id]) if (card.key, run_id) in known else None
        self._checked = False
        self._seen: tuple[Any, ...] = ()
        self._stored: tuple[Any, ...] = ()

    @property
    def heartbeat(self) -> int:
        """Unix time of the run's last sign of life, in milliseconds."""
        return int(self.status.heartbeat * 1000)

    @property
    def damage(self) -> str:
        """What is wrong with the run's curves; empty where nothing is."""
        return str(self._reader.damage or "")

    @property
    def state(self) -> str:
        """The run's state, or `stopped` where a search has stopped it (which sets `stopped`) before its end."""
        return "stopped" if self.stopped and self.status.state in ("interrupted", "queued") else self.status.state

    def update(self) -> int:
        """Write what is new; returns the number of points of curves. Raises UserError for a damaged directory.

        Damaged lines of the curves are left out, and told by `damage`.
        """
        self.changed = self.replaced = False
        self.status = self.store.status(self.run_id)
        seen = (self.state, *_stamps(self.directory))
        if seen == self._seen:
            return 0
        self.changed = True
        if not (self.directory / "config.yaml").exists():
            self._give_up()
            return 0
        try:
            return self._write(seen)
        except FileNotFoundError:
            if self.directory.exists():
                raise
            self._give_up()
            return 0

    def retag(self, tags: Mapping[str, str]) -> None:
        """Change tags of the card, and of the run if there is one."""
        self._card = dataclasses.replace(self._card, tags={**self._card.tags, **tags})
        if self._run is not None:
            self._run.set_tags(tags)
            self._run.flush()

    def _write(self, seen: tuple[Any, ...]) -> int:
        self.result = read_replicate(self.store, self._config, self.run_id)
        result = self.store.read_json(self.run_id, "result.json") or {}
        points = self._reader.read()
        run = self._current(points, over=bool(result), whole=self._reader.damage is None)
        added = run.add_points(points, start=begin_of(self.directory))
        for point in points:
            averaged = {name: value for name, value in point.metrics.items() if name.startswith(AVERAGED)}
            self.points[point.kind, point.step] = dataclasses.replace(point, metrics=averaged)
        self._describe(run)
        self._conclude(run, result)
        run.flush()
        self._seen = seen
        return added

    def _give_up(self) -> None:
        """The directory was removed: what MLflow believes to go on does not."""
        if self._run is not None and self._run.status not in OVER:
            self._run.set_tags({STATE: "removed"})
            self._run.flush()
            self._run.end("KILLED", self.heartbeat or None)

    def _current(self, points: Sequence[Point], over: bool, whole: bool) -> MirroredRun:
        """The run to write to; one that mirrors another training under the same id goes to MLflow's trash."""
        if self._run is not None and whole and not self._checked and self._run.contradicts(points, complete=over):
            self.client.delete_run(self._run.id)
            self._run, self.replaced = None, True
        if self._run is None:
            tags = {CONFIGURATION: self._card.key, RUN_ID: self.run_id, DIRECTORY: str(self.directory)}
            start, name = begin_of(self.directory), self._card.name
            tags |= self._card.tags
            self._run = create_run(self.client, self._experiment_id, start, name, tags, "nmt train")
            params = parameters_of(self._config) | {"seed": str(self._config.seed)}
            self._run.set_params({**self._card.params, **params})
        self._run.set_metrics(self._card.factors)
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
        status = STATUS[self.state]
        tags = {**self._card.tags, STATE: self.state, DIRECTORY: str(self.directory)}
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
            run.put([path for name in COPIED if (path := self.directory / name).exists()])
            self._stored = stamps

    def _final_metrics(self, result: Mapping[str, Any]) -> dict[str, float | None]:
        # Without a slash: MLflow makes a section of charts of what stands before one.
        best = {name.rpartition("/")[2]: value for name, value in (result.get("best") or {}).get("metrics", {}).items()}
        metrics = {f"best_val_{name}": best.get(name) for name in (self._config.validation.metric, "log_perplexity")}
        if not best and STATUS[self.state] in OVER:
            metrics |= self._best_so_far()
        metrics |= {key("test", name): value for name, value in (self.result.metrics if self.result else {}).items()}
        metrics |= {f"convergence_{name}": value for name, value in (result.get("convergence") or {}).items()}
        metrics |= {name: result.get(name) for name in ("parameters", "tokens_per_second", "peak_memory_bytes")}
        metrics["joules_per_1000_tokens"] = (result.get("energy") or {}).get("joules_per_1000_tokens")
        return {name: value for name, value in metrics.items() if isinstance(value, int | float)}

    def _best_so_far(self) -> dict[str, float | None]:
        """The best evaluation of a run that was stopped before its end."""
        name = self._config.validation.metric
        values = [point.metrics.get(key("val", name), math.nan) for point in self.points.values()]
        finite = [value for value in values if math.isfinite(value)]
        return {f"best_val_{name}": max(finite, key=lambda value: rank(name, value), default=None)}


def _stamps(directory: Path) -> tuple[tuple[int, int] | None, ...]:
    return tuple(_stamp(directory / name) for name in WATCHED)


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size
