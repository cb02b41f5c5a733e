"""Run directories written by hand, as docs/architecture.md describes them, and tracking stores to mirror them into."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import logging
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from postgres_server import Server, binaries, serving

from nmt.config import compose, to_dict
from nmt.config.identity import decode_id, run_id, train_id
from nmt.config.schema import RunConfig
from nmt.runs import LocalRunStore, RunStatus
from sweeps.tracking.mirror import ConfigurationGroup
from sweeps.tracking.mirrored_configuration import with_factors
from sweeps.tracking.store import StoreLock, default_uri, open_client
from sweeps.tracking.tracker import MlflowTracker

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

    def tracker(self, *groups: ConfigurationGroup, experiment: str = "study@local", uri: str = "") -> MlflowTracker:
        uri = uri or default_uri(self.root)
        return MlflowTracker(self.store, uri, experiment, with_factors(groups), StoreLock(uri, self.root))


class View:
    """What MLflow holds of an experiment, read with a client of its own."""

    def __init__(self, uri: str, experiment: str = "study@local"):
        self.client = open_client(uri)
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

    def raw(self) -> dict:
        """All that MLflow knows, ids and times and how often each point is there included: what nobody may touch."""
        return {
            run.info.run_id: (
                dict(run.info),
                run.data.to_dictionary(),
                {
                    name: [dict(one) for one in self.client.get_metric_history(run.info.run_id, name)]
                    for name in run.data.metrics
                },
                [(item.path, item.file_size) for item in self.client.list_artifacts(run.info.run_id)],
                [dict(entry.dataset) for entry in run.inputs.dataset_inputs],
            )
            for run in self.runs
        }


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
    return lambda experiment="study@local", root=runs.root, uri="": View(uri or default_uri(root), experiment)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A PostgreSQL server; skips with a reason where none is installed, and fails there with CI=true."""
    programs = binaries()
    missing = "PostgreSQL's server is not installed" if programs is None else ""
    if not missing and importlib.util.find_spec("psycopg") is None:
        missing = "psycopg is not installed"
    if missing and os.environ.get("CI", "").lower() == "true":
        pytest.fail(f"{missing}, and this is CI: .ci/run installs it")
    if missing:
        pytest.skip(missing)
    with serving(programs) as server:
        server.execute("CREATE DATABASE empty")
        open_client(server.uri("empty"))
        server.execute(
            "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE datname = 'empty'"
        )  # a template may have no visitors
        yield server


@pytest.fixture
def postgres_uri(postgres: Server) -> str:
    """A database of its own with MLflow's tables, password included."""
    name = f"runs_{uuid.uuid4().hex[:8]}"
    postgres.execute(f"CREATE DATABASE {name} TEMPLATE empty")
    return postgres.uri(name)


@pytest.fixture(scope="session")
def http_uri(served: Served) -> str:
    """MLflow's server as `nmt ui` starts it."""
    return served.address


@pytest.fixture(params=["sqlite", "http", "postgres"])
def any_uri(request: pytest.FixtureRequest, tmp_path: Path, empty_store: Path) -> str:
    """Every kind of store there is, empty but for what earlier tests have told the http server."""
    if request.param == "sqlite":
        (tmp_path / "elsewhere").mkdir()
        shutil.copy(empty_store, tmp_path / "elsewhere" / "mlflow.db")
        return default_uri(tmp_path / "elsewhere")
    return str(request.getfixturevalue(f"{request.param}_uri"))


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets pytest hear our loggers, whatever a sweep of an earlier test has done with them."""
    monkeypatch.setattr(logging.getLogger("nmt"), "propagate", True)


class Served:
    """A store with a study in it, shown by `nmt ui` as a process of its own.

    `lines` are what it printed; `links` are those of the study, by what they lead to.
    """

    def __init__(self, runs: Runs, ui: subprocess.Popen[str]):
        self.runs, self.lines = runs, []
        assert ui.stdout is not None and ui.stderr is not None
        while not self.lines or "Ctrl-C" not in self.lines[-1]:
            line = ui.stdout.readline()
            assert line, f"nmt ui ended early: {ui.stderr.read()}"
            self.lines.append(line.rstrip())
        self.address = re.search(r"http://127\.0\.0\.1:\d+", "\n".join(self.lines))[0]
        assert self.lines[0] == "shown@local"
        self.links = dict(line.split() for line in self.lines if line.startswith("  "))


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Iterator[Served]:
    """One server for all tests that look at pages or track over HTTP: starting it takes seconds.

    Its experiment is `shown@local`, into which nobody else tracks. The configurations reach a test BLEU of 30.0 and
    31.0 (`additive`) and of 10.0 and 11.0 (`none`). A model is registered, without a version.
    """
    root = tmp_path_factory.mktemp("served")
    shutil.copy(empty_store, root / "mlflow.db")
    runs = Runs(root)
    groups = []
    for label, experiment, bleu in (("additive", "baseline", 30.0), ("none", "t5_none_state", 10.0)):
        for seed in (1, 2):
            config = runs.config(label, seed, experiment=experiment)
            runs.whole(config, bleu + seed - 1)
        groups.append(runs.group(config))
    runs.tracker(*groups, experiment="shown@local").close()
    open_client(default_uri(root)).create_registered_model("shown@local", description="The best of them.")
    command = [sys.executable, "-m", "nmt.cli", "ui", "port=0", f"runs={root}"]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as ui,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "120")  # seconds: the server may wait for a core before it answers
        try:
            yield Served(runs, ui)
            os.kill(ui.pid, signal.SIGINT)
            assert ui.wait(timeout=120) == 0
        finally:
            ui.kill()
