"""Why two runs differ, from run directories written by hand."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from nmt.config import RunConfig, compose, to_dict, training_identity
from nmt.config.identity import run_id
from nmt.errors import UserError
from nmt.provenance.evidence import read_evidence
from nmt.provenance.trace import AFTER, Mark, compare, marks_of
from nmt.runs import LocalRunStore
from nmt.why import explain, lines_of, record_of

CODE = {"version": "0.1.0", "commit": "a" * 40, "dirty": False, "patch_sha256": None}
ENVIRONMENT = {
    "code": CODE,
    "packages": {"torch": "2.13.0", "rich": "14"},
    "cpu": {"capability": "AVX512", "model": "x"},
    "threads": 1,
    "device": {"type": "cpu"},
    "fingerprint": "f" * 64,
    "data": {"train": {"read": 100, "kept": 90}},
    "host": "one",
}
LOSSES = {50: "0x1.8p+1", 100: "0x1.4p+1", 150: "0x1.1p+1"}


def write_run(root: Path, config: RunConfig, losses: dict[int, str] | None = None, **changes: Any) -> Path:
    """A run directory with a loss at each of these steps, and an evaluation behind the last."""
    store, name = LocalRunStore(root), run_id(config)
    losses = LOSSES if losses is None else losses
    store.write_text(name, "config.yaml", yaml.safe_dump(to_dict(config)))
    store.write_json(name, "identity.json", training_identity(config) | changes.get("identity", {}))
    store.write_json(name, "env.json", ENVIRONMENT | changes.get("environment", {}))
    lines: list[dict[str, Any]] = [{"kind": "header", "run_id": name}]
    lines += [
        {"kind": "train", "step": step, "loss_hex": loss, "gradient_norm": 1.0, "seconds": 3.0}
        for step, loss in losses.items()
    ]
    sums = {"parameters_sha256": str(losses), "optimizer_sha256": "o" + str(losses)}
    last = max(losses, default=0)
    lines.append({"kind": "evaluation", "step": last, "seconds": 9.0, "val/decode/bleu": 20.0, **sums})
    store.write_text(name, "metrics.jsonl", "".join(f"{json.dumps(line)}\n" for line in lines))
    best = {"step": last, "checkpoint_digest": sums["parameters_sha256"]}
    store.write_json(name, "result.json", {"state": "finished", "steps": last, "best": best})
    record = {"search": {"beam": config.search.beam}, "metrics": {"test/decode/bleu": changes.get("bleu", 30.0)}}
    store.write_json(name, "decodes/0123456789ab.json", record)
    store.write_text(name, "decodes/0123456789ab.txt", changes.get("hypotheses", "ein Satz\n"))
    return store.directory(name)


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return compose(["scale=smoke"])


def conclusion(a: Path, b: Path) -> str:
    return explain(read_evidence(a), read_evidence(b)).conclusion


def test_two_runs_of_the_same_bits(config: RunConfig, tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a", config), write_run(tmp_path / "b", config, environment={"host": "two"})
    found = explain(read_evidence(a), read_evidence(b))
    assert found.trace.first is None
    assert found.trace.equal == {
        "loss": 6,  # three losses and three norms of the gradient
        "parameters": 1,
        "optimizer state": 1,
        "validation scores": 1,
        "end of training": 4,
        "hypotheses": 1,
        "test scores": 1,
    }
    assert found.conclusion.startswith("bit-equal in everything that both recorded")
    assert not found.differences.environment


def test_other_sizes_are_named_with_the_step_at_which_the_runs_part(config: RunConfig, tmp_path: Path) -> None:
    other = dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, learning_rate=0.5), label="x")
    a = write_run(tmp_path / "a", config)
    b = write_run(tmp_path / "b", other, LOSSES | {100: "0x1.5p+1"})
    found = explain(read_evidence(a), read_evidence(b))
    assert found.differences.training == {"optimizer.learning_rate": (config.optimizer.learning_rate, 0.5)}
    assert not found.differences.placement  # a label is no difference
    assert found.trace.first == (Mark(100, 0, ""), "0x1.4p+1", "0x1.5p+1")
    assert "other configuration (optimizer.learning_rate" in found.conclusion
    assert found.conclusion.endswith("the runs part in loss at step 100, equal up to step 50")


def test_roles_are_kept_apart(config: RunConfig, tmp_path: Path) -> None:
    search = dataclasses.replace(config.search, beam=3, batch_size=7)
    other = dataclasses.replace(config, search=search, threads=5)
    a, b = write_run(tmp_path / "a", config), write_run(tmp_path / "b", other)
    found = explain(read_evidence(a), read_evidence(b)).differences
    assert not found.training
    assert found.decoding == {"search.beam": (config.search.beam, 3)}
    assert found.placement == {"threads": (config.threads, 5), "search.batch_size": (256, 7)}


def test_what_counts_of_a_distribution_is_training_and_the_rest_placement(config: RunConfig, tmp_path: Path) -> None:
    def distributed(**keys: Any) -> RunConfig:
        section = dataclasses.replace(config.distribution, name="parameter_server", **keys)
        return dataclasses.replace(config, distribution=section)

    exact, free = distributed(workers=2, link="tcp"), distributed(mode="asp", workers=2, link="shm")
    one, two, three = (write_run(tmp_path / name, c) for name, c in zip("abc", (config, exact, free), strict=True))
    sizes = {"distribution.name": ("single", "parameter_server"), "distribution.workers": (1, 2)}
    same = explain(read_evidence(one), read_evidence(two)).differences
    assert not same.training
    assert same.placement == sizes | {"distribution.link": ("auto", "tcp")}
    other = explain(read_evidence(two), read_evidence(three)).differences
    assert {name: pair[1] for name, pair in other.training.items()} == {
        "distribution.name": "parameter_server",
        "distribution.mode": "asp",
        "distribution.workers": 2,
        "distribution.servers": 1,
    }
    assert other.placement == {"distribution.link": ("tcp", "shm")}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"environment": {"fingerprint": "e" * 64}}, "other data (fingerprint)"),
        ({"environment": {"data": {"train": {"read": 100, "kept": 89}}}}, "other data (train.kept)"),
        ({"environment": {"code": CODE | {"commit": "b" * 40}}}, "other code (commit aaaaaaaaaaaa | bbbbbbbbbbbb)"),
        ({"identity": {"numerics_version": 1}}, "other code (numerics_version"),
        ({"environment": {"cpu": {"capability": "AVX2", "model": "x"}}}, "other arithmetic (cpu.capability"),
        ({"environment": {"packages": {"torch": "2.12.0", "rich": "14"}}}, "other arithmetic (packages.torch"),
        ({"environment": {"packages": {"torch": "2.13.0", "rich": "13"}}}, "ran elsewhere (packages.rich"),
        ({}, "nothing on record explains it"),
    ],
)
def test_what_explains_other_losses(config: RunConfig, tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    a = write_run(tmp_path / "a", config)
    b = write_run(tmp_path / "b", config, LOSSES | {50: "0x1.7p+1"}, **changes)
    text = conclusion(a, b)
    assert words in text and text.endswith("part in loss at step 50")


def test_a_seed_explains_before_code_does(config: RunConfig, tmp_path: Path) -> None:
    a = write_run(tmp_path, config)
    b = write_run(
        tmp_path, dataclasses.replace(config, seed=2), {50: "0x1p+1"}, environment={"code": CODE | {"commit": "b" * 40}}
    )
    assert conclusion(a, b).startswith("other seed (seed 1 | 2): the runs part in loss at step 50")


def test_the_same_training_scored_or_decoded_otherwise(config: RunConfig, tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", config)
    scored = write_run(tmp_path / "b", config, bleu=31.0)
    assert conclusion(a, scored).startswith("same training and outputs, scored otherwise: the runs part in test")
    beam = dataclasses.replace(config, search=dataclasses.replace(config.search, beam=3))
    decoded = write_run(tmp_path / "c", beam, bleu=31.0)
    assert conclusion(a, decoded).startswith("same training, other decoding (search.beam 10 | 3): bit-equal")


def test_other_outputs_of_the_same_search_are_explained_by_what_computes(config: RunConfig, tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", config)
    b = write_run(tmp_path / "b", config, hypotheses="x\n", environment={"cpu": {"capability": "AVX2", "model": "x"}})
    text = conclusion(a, b)
    assert "other arithmetic (cpu.capability AVX512 | AVX2)" in text and "part in hypotheses of beam 10" in text


def test_what_only_one_run_says_is_no_other_data(config: RunConfig, tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", config)
    b = write_run(tmp_path / "b", config, environment={"fingerprint": None, "data": {}})
    assert not explain(read_evidence(a), read_evidence(b)).differences.data


def test_equal_bits_of_other_code_say_so(config: RunConfig, tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", config)
    b = write_run(tmp_path / "b", config, environment={"code": CODE | {"patch_sha256": "c" * 64, "dirty": True}})
    assert conclusion(a, b).endswith("although another code made them")


def test_a_run_without_lines_of_losses_is_compared_by_its_evaluations(config: RunConfig, tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a", config), write_run(tmp_path / "b", config)
    lines = (b / "metrics.jsonl").read_text().splitlines()
    (b / "metrics.jsonl").write_text("\n".join(line for line in lines if '"train"' not in line) + "\n")
    found = explain(read_evidence(a), read_evidence(b)).trace
    assert found.first is None and found.only_a == {"loss": 6} and "loss" not in found.equal


def test_the_screen_and_the_record_say_the_same(config: RunConfig, tmp_path: Path) -> None:
    a = write_run(tmp_path / "a", config)
    b = write_run(tmp_path / "b", config, LOSSES | {100: "0x1.5p+1"}, environment={"threads": 2})
    found = explain(read_evidence(a), read_evidence(b))
    lines = list(lines_of(found))
    assert "environment differs" in lines and "  threads  1 | 2" in lines
    assert any(line.startswith("  first difference: loss at step 100: 0x1.4p+1 | 0x1.5p+1") for line in lines)
    assert lines[-1] == f"conclusion: {found.conclusion}"
    record = json.loads(json.dumps(record_of(found)))
    assert record["first_difference"] == {"at": "loss at step 100", "step": 100, "a": "0x1.4p+1", "b": "0x1.5p+1"}
    assert record["environment"] == {"threads": [1, 2]}


def test_reading_moves_no_damaged_file(config: RunConfig, tmp_path: Path) -> None:
    a = write_run(tmp_path, config)
    (a / "result.json").write_text("{torn")
    with pytest.raises(UserError, match="is damaged"):
        read_evidence(a)
    assert (a / "result.json").read_text() == "{torn"
    with pytest.raises(UserError, match="holds no run"):
        read_evidence(tmp_path)


def test_marks_come_in_the_order_of_a_training() -> None:
    lines = [
        {"kind": "evaluation", "step": 10, "parameters_sha256": "p", "val/decode/bleu": 1.5, "timing": "shared"},
        {"kind": "train", "step": 10, "loss_hex": "0x1p+0", "seconds": 1.0},
        {"kind": "probe", "step": 5, "probe/x": 2.0},
    ]
    marks = {mark: value for line in lines for mark, value in marks_of(line).items()}
    assert [str(mark) for mark in sorted(marks)] == [
        "norms probe/x at step 5",
        "loss at step 10",
        "parameters at step 10",
        "validation scores val/decode/bleu at step 10",
    ]
    assert str(Mark(AFTER, 6, "of beam 5")) == "hypotheses of beam 5"
    nan = {Mark(1, 0, "x"): "nan"}
    assert compare(nan, dict(nan)).first is None  # a NaN that comes again is the same
