"""Run directories written by hand, as docs/architecture.md describes them, and tracking stores to mirror them into."""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import shutil
from pathlib import Path

import pytest
import yaml

from nmt.config import compose, to_dict
from nmt.config.identity import decode_id, run_id, train_id
from nmt.config.schema import RunConfig
from nmt.runs import LocalRunStore, RunStatus
from sweeps.mirror import ConfigurationGroup
from sweeps.tracking import MlflowTracker
from sweeps.tracking_store import StoreLock, default_uri, open_client

COMMIT, FINGERPRINT, DIGEST = "0123456789abcdef0123456789abcdef01234567", "ab" * 32, "cd" * 32


class Runs:
    """Writes run directories into a store, in any state, without training anything."""

    def __init__(self, root: Path):
        self.store = LocalRunStore(root)
        self.root = self.store.root

    def config(self, label: str, seed: int = 1, **changes: object) -> RunConfig:
        words = [f"seed={seed}", f"paths.runs={self.root}", *(f"{name}={value}" for name, value in changes.items())]
        return dataclasses.replace(compose(words), label=label)

    def begin(self, config: RunConfig) -> str:
        name = run_id(config)
        self.store.write_text(name, "config.yaml", yaml.safe_dump(to_dict(config), sort_keys=False))
        code = {"version": "0", "commit": COMMIT, "dirty": True, "patch_sha256": "ef" * 32}
        environment = {"code": code, "host": "here", "device": {"name": "a processor"}, "fingerprint": FINGERPRINT}
        self.store.write_json(name, "env.json", environment)
        self.store.append_line(name, "metrics.jsonl", json.dumps({"kind": "header", "format_version": 1}))
        self.state(name, "running")
        return name

    def state(self, name: str, state: str, **fields: object) -> None:
        self.store.set_status(name, RunStatus(state=state, **fields))

    def train(self, name: str, steps: range, loss: object = None) -> None:
        """Lines of kind `train` for the given steps; the loss of a step is a function of the run and the step alone."""
        seed = int(name.rpartition("/s")[2])
        for step in steps:
            record = {
                "kind": "train",
                "step": step,
                "loss": 5.0 * math.exp(-step / 300) + seed / 100 if loss is None else loss,
                "learning_rate": 1e-3,
                "gradient_norm": 1.0 + 100 / step,
                "target_tokens": step * 1000,
                "seconds": step * 0.01,
                "tokens_per_second": 1e5,
                "timing": "exclusive",
            }
            self.store.append_line(name, "metrics.jsonl", json.dumps(record))

    def evaluate(self, name: str, step: int, bleu: float) -> None:
        record = {
            "kind": "evaluation",
            "step": step,
            "target_tokens": step * 1000,
            "seconds": step * 0.01,
            "evaluation_seconds": 0.5,
            "val/decode/bleu": bleu,
            "val/teacher_forced/log_perplexity": 5.0 - bleu / 20,
            "best": True,
            "parameters_sha256": "0" * 64,
        }
        self.store.append_line(name, "metrics.jsonl", json.dumps(record))

    def probe(self, name: str, steps: range) -> None:
        """Lines of kind `probe`."""
        for step in steps:
            norms = {"probe/gradient/all": step / 10, "probe/state_gradient/decoder.0": 1 / step}
            record = {"kind": "probe", "step": step, "seconds": step * 0.01, **norms}
            self.store.append_line(name, "metrics.jsonl", json.dumps(record))

    def finish(self, config: RunConfig, bleu: float, state: str = "finished", steps: int = 100) -> None:
        name = run_id(config)
        best = {"val/decode/bleu": bleu + 1, "val/teacher_forced/log_perplexity": 1.5}
        result = {
            "state": state,
            "reason": "budget",
            "steps": steps,
            "best": {"step": steps, "metrics": best, "checkpoint": "step.pt", "checkpoint_digest": DIGEST},
            "convergence": {"steps": steps, "target_tokens": steps * 1000, "seconds": steps * 0.01},
            "timing": "exclusive",
            "parameters": 12345,
            "tokens_per_second": 1e5,
            "fingerprint": FINGERPRINT,
        }
        self.store.write_json(name, "result.json", result)
        self.decode(config, bleu)
        self.state(name, state, step=steps)

    def decode(self, config: RunConfig, bleu: float) -> None:
        wanted = decode_id(DIGEST, config)
        metrics = {"test/decode/bleu": bleu, "test/decode/chrf": 2 * bleu}
        record = {"decode_id": wanted, "metrics": metrics, "signatures": {}, "sentences": 10}
        self.store.write_json(run_id(config), f"decodes/{wanted}.json", record)

    def whole(self, config: RunConfig, bleu: float, state: str = "finished", steps: int = 100) -> str:
        """A run that went through: curves, an evaluation and its end."""
        name = self.begin(config)
        self.train(name, range(10, steps + 1, 10))
        self.evaluate(name, steps, bleu + 1)
        self.finish(config, bleu, state, steps)
        return name

    def group(self, config: RunConfig, seeds: range = range(1, 3)) -> ConfigurationGroup:
        name = train_id(config)
        return ConfigurationGroup(config.label, name, [f"{name}/s{seed}" for seed in seeds], to_dict(config))

    def tracker(self, *groups: ConfigurationGroup, experiment: str = "study@local") -> MlflowTracker:
        uri = default_uri(self.root)
        return MlflowTracker(self.store, uri, experiment, groups, StoreLock(uri, self.root))


class View:
    """What MLflow holds of an experiment, read with a client of its own."""

    def __init__(self, root: Path, experiment: str = "study@local"):
        self.client = open_client(default_uri(root))
        self.experiment = self.client.get_experiment_by_name(experiment)
        assert self.experiment is not None, f"no experiment {experiment}"
        self.runs = list(self.client.search_runs([self.experiment.experiment_id]))

    def parents(self) -> dict:
        return {run.info.run_name: run for run in self.runs if "mlflow.parentRunId" not in run.data.tags}

    def children(self) -> dict:
        return {run.data.tags["nmt.run_id"]: run for run in self.runs if "mlflow.parentRunId" in run.data.tags}

    def curve(self, run: object, metric: str = "train/loss") -> list[tuple[int, float]]:
        return [(point.step, point.value) for point in self.client.get_metric_history(run.info.run_id, metric)]

    def everything(self) -> dict:
        """All that is comparable between two mirrors of the same directories, without MLflow's own ids and times."""
        found = {}
        for run in self.runs:
            tags = {name: value for name, value in run.data.tags.items() if name != "mlflow.parentRunId"}
            key = (tags["nmt.configuration"], tags.get("nmt.run_id", ""))
            curves = {name: sorted(self.curve(run, name)) for name in run.data.metrics}
            artifacts = sorted(item.path for item in self.client.list_artifacts(run.info.run_id))
            found[key] = (run.info.run_name, run.info.status, tags, dict(run.data.params), curves, artifacts)
        return found


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An sqlite store with its schema: creating one takes seconds, copying it none."""
    root = tmp_path_factory.mktemp("empty-store")
    open_client(default_uri(root)).search_experiments()
    return root / "mlflow.db"


@pytest.fixture
def runs(tmp_path: Path, empty_store: Path) -> Runs:
    root = tmp_path / "runs"
    root.mkdir()
    shutil.copy(empty_store, root / "mlflow.db")
    return Runs(root)


@pytest.fixture
def view(runs: Runs):
    return lambda experiment="study@local", root=runs.root: View(root, experiment)


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets pytest hear our loggers, whatever a sweep of an earlier test has done with them."""
    monkeypatch.setattr(logging.getLogger("nmt"), "propagate", True)
