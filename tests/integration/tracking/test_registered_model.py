"""The best run of a sweep in MLflow's model registry: what is registered, when, and that it translates."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import shutil
import sys
import time
from pathlib import Path

import pytest

from nmt.cli import main
from nmt.config import compose, to_dict
from nmt.config.identity import decode_id, run_id
from nmt.config.schema import RunConfig
from nmt.runs import LocalRunStore
from sweeps.tracking.mirror import ConfigurationGroup
from sweeps.tracking.registered_model import RegisteredModel
from sweeps.tracking.store import StoreLock, default_uri, open_client
from sweeps.tracking.tracker import MlflowTracker

NAME = "tiny@smoke"
LINES = ["w3 w1 w4 w1", "w5 w9", "", "w2 w6 w5 w3 w5"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> list[RunConfig]:
    """Two replicates that have learned a little, in a directory that tests take copies of."""
    from nmt.train import train

    runs = tmp_path_factory.mktemp("trained") / "runs"
    words = ["data=toy_reverse", "data.options={train_size: 400, validation_size: 10, test_size: 10}", "scale=smoke"]
    words += ["search=beam5", "search.max_length=12", "validation.search.max_length=12", "training.max_steps=20"]
    words += ["validation.every_steps=20", "threads=1", "device=cpu", "tracking=none", f"paths.runs={runs}"]
    configs = [compose([*words, f"seed={seed}"]) for seed in (1, 2)]
    for config in configs:
        assert train(config).state == "finished"
    return configs


class Study:
    """Finished runs with the test BLEU that a test gives them, registered in a store as a sweep's end would."""

    def __init__(self, configs: list[RunConfig], root: Path, uri: str):
        self.root, self.uri, self.configs = root, uri, configs
        self.store = LocalRunStore(root)
        self.client = open_client(uri)

    def score(self, config: RunConfig, bleu: float) -> None:
        result = self.store.read_json(run_id(config), "result.json")
        result["best"]["metrics"]["val/decode/bleu"] = bleu  # what chooses
        self.store.write_json(run_id(config), "result.json", result)
        name = decode_id(result["best"]["checkpoint_digest"], config)
        record = self.store.read_json(run_id(config), f"decodes/{name}.json") or {"decode_id": name, "signatures": {}}
        record["metrics"] = {"test/decode/bleu": bleu}
        self.store.write_json(run_id(config), f"decodes/{name}.json", record)

    def group(self, label: str, *configs: RunConfig) -> ConfigurationGroup:
        ids = [run_id(config) for config in configs]
        return ConfigurationGroup(label, ids[0].partition("/")[0], ids, to_dict(configs[0]))

    def register(self, *groups: ConfigurationGroup) -> RegisteredModel | None:
        lock = StoreLock(self.uri, self.root)
        tracker = MlflowTracker(self.store, self.uri, NAME, groups or [self.group("plain", *self.configs)], lock)
        model = tracker.register_best()
        tracker.close()
        return model

    def versions(self) -> list:
        return sorted(self.client.search_model_versions(f"name='{NAME}'"), key=lambda version: int(version.version))

    def load(self, **settings: object):
        import mlflow

        before = mlflow.get_tracking_uri()
        mlflow.set_tracking_uri(self.uri)
        try:
            return mlflow.pyfunc.load_model(f"models:/{NAME}@best", **settings)
        finally:
            mlflow.set_tracking_uri(before)

    def artifacts(self) -> Path:
        """The files of the newest version, of a store whose artifacts are files here."""
        return Path(self.versions()[-1].source.removeprefix("file://").replace("%40", "@"))


@pytest.fixture
def study(trained: list[RunConfig], tmp_path: Path, empty_store: Path) -> Study:
    """The two replicates, the second of them better, and a store of files."""
    return make_study(trained, tmp_path, default_uri(tmp_path / "runs"), empty_store)


def make_study(trained: list[RunConfig], tmp_path: Path, uri: str, empty_store: Path) -> Study:
    root = tmp_path / "runs"
    shutil.copytree(trained[0].paths.runs, root)
    shutil.copy(empty_store, root / "mlflow.db")
    configs = [dataclasses.replace(one, paths=dataclasses.replace(one.paths, runs=str(root))) for one in trained]
    study = Study(configs, root, uri)
    for config, bleu in zip(configs, (20.0, 21.0), strict=True):
        study.score(config, bleu)
    return study


def translate(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> list[str]:
    """What `nmt translate` makes of LINES."""
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("".join(f"{line}\n" for line in LINES).encode())))
    capfd.readouterr()
    assert main(["translate", *words]) == 0
    return capfd.readouterr().out.splitlines()


@pytest.mark.parametrize(
    "any_uri", ["sqlite", "http", pytest.param("postgres", marks=pytest.mark.exhaustive)], indirect=True
)
def test_it_translates_as_nmt_translate_does_wherever_it_is_kept(
    trained, any_uri, tmp_path, empty_store, capfd, monkeypatch
) -> None:
    import pandas

    study = make_study(trained, tmp_path, any_uri, empty_store)
    best = run_id(study.configs[1])
    model = study.register()
    assert model is not None and (model.name, model.new) == (NAME, True)
    run = str(study.store.directory(best))
    expected = translate(capfd, monkeypatch, f"run={run}", "threads=1")
    greedy = translate(capfd, monkeypatch, f"run={run}", "threads=1", "beam=1", "search.max_length=3")
    assert expected[0] and expected[2] == "" and greedy != expected
    shutil.rmtree(study.root / best.partition("/")[0])  # the model holds all that it needs

    loaded = study.load(model_config={"threads": 1})
    assert loaded.predict(LINES) == expected
    assert loaded.predict(pandas.DataFrame({"any name": LINES})) == expected
    assert loaded.predict(LINES[0]) == expected[:1]
    assert loaded.predict(LINES, params={"beam": 1, "max_length": 3}) == greedy
    assert loaded.predict(LINES) == expected  # a caller's parameters are that call's
    for params, complaint in (({"beam": 0}, "search.beam: 0 is out of range"), ({"stop": "soon"}, "not a choice")):
        with pytest.raises(Exception, match=complaint):
            loaded.predict(LINES, params=params)
    with pytest.raises(Exception, match="text 1: is no text"):
        loaded.predict(["w1", None])


def test_a_checkpoint_is_registered_once_and_the_alias_follows_the_best(study: Study) -> None:
    one, two = study.configs
    assert study.register() == RegisteredModel(NAME, "1", True)
    assert study.register() == RegisteredModel(NAME, "1", False)
    study.score(one, 22.0)
    assert study.register() == RegisteredModel(NAME, "2", True)
    assert study.client.get_model_version_by_alias(NAME, "best").tags["nmt.run_id"] == run_id(one)
    study.score(one, 20.0)
    assert study.register() == RegisteredModel(NAME, "1", False)
    assert [version.tags["nmt.run_id"] for version in study.versions()] == [run_id(two), run_id(one)]
    assert study.client.get_model_version_by_alias(NAME, "best").version == 1


def test_a_version_says_what_it_is(study: Study) -> None:
    study.register()
    (version,) = study.versions()
    result = study.store.read_json(run_id(study.configs[1]), "result.json")
    assert version.tags == {
        "bleu": "21.00",
        "nmt.checkpoint_sha256": result["best"]["checkpoint_digest"],
        "nmt.label": "plain",
        "nmt.run_id": run_id(study.configs[1]),
        "nmt.search": '{"beam": 5, "length_penalty": 1.0, "max_length": 12}',
    }
    assert "step 20: BLEU 21.00 on the test split with beam 5" in version.description
    run = study.client.get_run(version.run_id)
    assert run.data.tags["nmt.run_id"] == run_id(study.configs[1])
    (made,) = run.outputs.model_outputs
    logged = study.client.get_logged_model(made.model_id)
    assert json.loads(logged.tags["mlflow.modelVersions"]) == [{"name": NAME, "version": 1}]


def test_a_row_that_decodes_the_same_run_better_is_a_version_of_its_own(study: Study) -> None:
    config = study.configs[1]
    greedy = dataclasses.replace(config, search=dataclasses.replace(config.search, beam=1))
    study.score(greedy, 23.0)
    rows = [study.group("beam 5", config), study.group("greedy", greedy)]
    study.register(rows[0])
    assert study.register(*rows) == RegisteredModel(NAME, "2", True)
    tags = study.client.get_model_version_by_alias(NAME, "best").tags
    assert (tags["nmt.label"], tags["bleu"], tags["nmt.search"]) == (
        "greedy",
        "23.00",
        '{"beam": 1, "length_penalty": 1.0, "max_length": 12}',
    )
    defaults = {spec.name: spec.default for spec in study.load().metadata.signature.params.params}
    assert (defaults["beam"], defaults["max_length"]) == (1, 12)


def test_the_files_hold_data_only_and_nothing_of_this_machine(trained, study: Study, tmp_path: Path) -> None:
    import torch

    from nmt.training.checkpoint import digest_tensors

    study.register()
    folder = study.artifacts()
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    assert set(found) == {
        "MLmodel",
        "conda.yaml",
        "python_env.yaml",
        "requirements.txt",
        "data/model/config.yaml",
        "data/model/checkpoints/best.pt",
        "data/model/tokenizers/source.tokenizer.json",
        "data/model/tokenizers/target.tokenizer.json",
    }
    content = torch.load(found["data/model/checkpoints/best.pt"], weights_only=True)
    assert set(content) == {"format_version", "run_id", "identity", "parameters", "config", "state"}
    assert digest_tensors(content["parameters"]) == study.versions()[0].tags["nmt.checkpoint_sha256"]
    names = [line.partition("==")[0] for line in found["requirements.txt"].read_text().split()]
    assert names == ["seq2seq-studies", "torch", "mlflow"]
    for path in found.values():
        for trace in (trained[0].paths.runs, str(tmp_path)):  # where they were trained, and where they lie
            assert trace.encode() not in path.read_bytes(), path


def test_a_dictionary_goes_with_the_model(study: Study, tmp_path: Path) -> None:
    lexicon = tmp_path / "lexicon.txt"
    lexicon.write_text("unknownword\tWORT\n")
    config = study.configs[1]
    search = dataclasses.replace(config.search, replace_unknown=True, dictionary=str(lexicon))
    study.score(dataclasses.replace(config, search=search), 30.0)
    study.register(study.group("with a dictionary", dataclasses.replace(config, search=search)))
    lexicon.unlink()
    assert (study.artifacts() / "data/model/dictionary.txt").read_text() == "unknownword\tWORT\n"
    assert len(study.load().predict(LINES)) == len(LINES)


def test_what_cannot_be_registered_is_said_and_leaves_nothing(study: Study, heard, caplog) -> None:
    best = study.store.directory(run_id(study.configs[1])) / "checkpoints"
    (checkpoint,) = best.glob("step-*.pt")
    content = checkpoint.read_bytes()
    other = study.store.directory(run_id(study.configs[0])) / "checkpoints"

    checkpoint.write_bytes(content[: len(content) // 2])
    assert study.register() is None
    assert "is not a readable checkpoint" in caplog.text
    caplog.clear()
    shutil.copy(next(other.glob("step-*.pt")), checkpoint)
    assert study.register() is None
    assert "holds other parameters than those that were scored" in caplog.text
    caplog.clear()
    checkpoint.unlink()
    assert study.register() is None
    assert f"the checkpoint of run {run_id(study.configs[1])} is not kept" in caplog.text
    assert study.client.search_registered_models() == []
    experiment = study.client.get_experiment_by_name(NAME).experiment_id
    assert list(study.client.search_logged_models([experiment])) == []

    checkpoint.write_bytes(content)
    assert study.register() == RegisteredModel(NAME, "1", True)


def test_a_sweep_registers_its_best_run_and_sync_does_it_again(
    study: Study, tmp_path: Path, empty_store, capsys, monkeypatch
) -> None:
    from sweeps.tracking.sync import synchronise

    for name, value in (("handlers", []), ("propagate", True)):  # a sweep sets both, to write to this test's stdout
        monkeypatch.setattr(logging.getLogger("nmt"), name, value)
    path = tmp_path / "tiny.yaml"
    options = "data.options={train_size: 400, validation_size: 10, test_size: 10}"
    words = ["data=toy_reverse", options, "scale=smoke", "search=beam5", "search.max_length=12"]
    words += ["validation.search.max_length=12", "training.max_steps=20", "validation.every_steps=20", "threads=1"]
    overrides = "".join(f"  - {json.dumps(word)}\n" for word in [*words, "device=cpu"])
    path.write_text(f"title: One row\nreplicates: 2\noverrides:\n{overrides}rows:\n  - {{label: plain}}\n")
    sweep = ["sweep", f"sweep={path}", f"paths.runs={study.root}", "executor=inline"]
    assert main([*sweep, "tracking.register=none"]) == 0
    assert "models:/" not in capsys.readouterr().out
    assert main(sweep) == 0
    assert f"model           models:/{NAME}@best in MLflow, version 1, new" in capsys.readouterr().out
    assert main(sweep) == 0
    assert f"model           models:/{NAME}@best in MLflow, version 1\n" in capsys.readouterr().out

    once = study.versions()[0].tags
    shutil.copy(empty_store, study.root / "mlflow.db")
    for _ in range(2):
        assert synchronise(study.root, study.uri).damaged == {}
        (version,) = study.versions()
        assert version.tags == once


def test_nothing_new_costs_little(study: Study) -> None:
    from sweeps.tracking.registered_model import register_best

    study.register()
    groups = [study.group("plain", *study.configs)]
    began = time.thread_time()
    for _ in range(5):
        register_best(study.client, study.store, NAME, groups)
    assert (time.thread_time() - began) / 5 < 0.5
