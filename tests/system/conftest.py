"""A run of a few steps that the command-line tests of decoding share, and commands as a user types them."""

from __future__ import annotations

import dataclasses
import io
import sys
from pathlib import Path

import pytest
from commands import Command

from nmt.cli import main
from nmt.config import compose
from nmt.config.schema import RunConfig


def tiny_run(runs: Path, *overrides: str) -> RunConfig:
    """The configuration of a run that trains in a second or two."""
    return compose(
        [
            "data=toy_reverse",
            "data.options={train_size: 400, validation_size: 20, test_size: 60}",
            "scale=smoke",
            "tokenizer.vocab_size=24",
            "search=greedy",
            "search.max_length=12",
            "validation.search.max_length=12",
            "threads=1",
            "device=cpu",
            "tracking=none",
            f"paths.runs={runs}",
            *overrides,
        ]
    )


@pytest.fixture(scope="session")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    return tiny_run(tmp_path_factory.mktemp("system") / "runs")


@pytest.fixture(scope="session")
def run_id(config: RunConfig) -> str:
    from nmt.train import train

    outcome = train(config)
    assert outcome.state == "finished"
    return outcome.run_id


@pytest.fixture(scope="session")
def second_config(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """Another replicate of the same configuration, elsewhere: with both in one place their common id is ambiguous."""
    runs = tmp_path_factory.mktemp("second") / "runs"
    return dataclasses.replace(config, seed=config.seed + 1, paths=dataclasses.replace(config.paths, runs=str(runs)))


@pytest.fixture(scope="session")
def second_run_id(second_config: RunConfig) -> str:
    from nmt.train import train

    outcome = train(second_config)
    assert outcome.state == "finished"
    return outcome.run_id


@pytest.fixture(scope="session")
def blind_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run whose model has no attention."""
    from nmt.train import train

    runs = tmp_path_factory.mktemp("blind") / "runs"
    outcome = train(tiny_run(runs, "model/attention=none_state", "model/bridge=projection"))
    assert outcome.state == "finished"
    return runs / outcome.run_id


@pytest.fixture
def runs(config: RunConfig, run_id: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NMT_RUNS", config.paths.runs)
    return Path(config.paths.runs)


@pytest.fixture
def nmt(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    def call(*words: str, stdin: bytes = b"") -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = main(list(words))
        shown = capfd.readouterr()
        return code, shown.out, shown.err

    return call
