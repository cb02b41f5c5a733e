"""`distribution=ddp` in real processes: what `single` computes but for rounding, the same bits again, no orphans."""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from toy_workload import workload_spec as toy_workload

from distributed.ddp.strategy import DdpStrategy
from distributed.single import SingleStrategy
from distributed.strategy import StateLost, StepStats
from nmt.config import compose
from nmt.events import EVENTS, read_events
from nmt.train import train
from nmt.training.fit import strategy_options
from nmt.training.workload import workload_spec

SMALL = [
    "scale=smoke",
    "tracking=none",
    "threads=1",
    "device=cpu",
    "data.options={train_size: 96, validation_size: 8, test_size: 8}",
    "batch.size=12",
    "batch.micro_batches=6",
    "batch.groups=3",
    "model.decoder.cell.dropout_input=0.2",
]
CLIPPED = ["optimizer.clip_norm=0.5"]
STEPS = 6
# Workers' sums differ from the fixed tree in the order of a few additions a value, each of which is wrong by half an
# ulp of fp32 (6e-8 of the value); so a gradient's norm agrees to some 1e-7. Adam divides by the gradient's own size, so
# where a gradient is nearly zero its rounding moves a parameter by a share of the learning rate (1e-4 here) at a step.
LOSS, NORM, PARAMETER = 1e-6, 1e-6, 1e-5


@contextmanager
def ddp(tmp_path: Path, *words: str) -> Iterator[DdpStrategy]:
    config = compose([*SMALL, *CLIPPED, "distribution=ddp", *words])
    strategy = DdpStrategy(strategy_options(config, "abc/s1", tmp_path, 1))
    try:
        strategy.start(workload_spec(config, "cpu"))
        yield strategy
    finally:
        strategy.close()


def single(*words: str) -> SingleStrategy:
    strategy = SingleStrategy()
    strategy.start(workload_spec(compose([*SMALL, *CLIPPED, *words]), "cpu"))
    return strategy


def steps(strategy: SingleStrategy | DdpStrategy, first: int = 1, last: int = STEPS) -> list[StepStats]:
    return [strategy.step(index, horizon=last) for index in range(first, last + 1)]


def bits(strategy: SingleStrategy | DdpStrategy) -> dict[str, torch.Tensor]:
    state = strategy.state()
    return state["parameters"] | {
        f"{slot}/{n}": t for slot, named in state["optimizer"].items() for n, t in named.items()
    }


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_two_workers_do_what_one_process_does_and_the_same_bits_again(tmp_path: Path) -> None:
    reference = single()
    expected, expected_probe = steps(reference), reference.step(STEPS + 1, probe=True).probe
    seen = []
    for _ in range(2):
        with ddp(tmp_path, "distribution.workers=2") as strategy:
            got = steps(strategy)
            middle = bits(strategy)
            probe = strategy.step(STEPS + 1, probe=True).probe
            with strategy.evaluation_model() as model:
                shown = {name: value.clone() for name, value in model.named_parameters()}
            seen.append((got, middle, bits(strategy)))
            assert equal(shown, seen[-1][2])
            assert strategy.state()["updates"] == STEPS + 1
            report, journals = strategy.report(), strategy.journals()
    assert seen[0][0] == seen[1][0]
    assert equal(seen[0][1], seen[1][1])
    assert equal(seen[0][2], seen[1][2])
    for one, other in zip(got, expected, strict=True):
        assert math.isclose(one.loss, other.loss, rel_tol=LOSS)
        assert math.isclose(one.gradient_norm, other.gradient_norm, rel_tol=NORM)
        exact = ("index", "target_tokens", "source_tokens", "learning_rate")
        assert [getattr(one, name) for name in exact] == [getattr(other, name) for name in exact]
    for name, tensor in single_state(reference).items():
        torch.testing.assert_close(seen[0][2][name], tensor, rtol=0, atol=PARAMETER)
    assert probe is not None
    assert expected_probe is not None
    for kind in ("gradients", "updates", "inner"):
        mine, theirs = getattr(probe, kind), getattr(expected_probe, kind)
        assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-7), kind
    assert set(journals) == {"timeline-worker-0.jsonl", "timeline-worker-1.jsonl"}
    assert 0.0 <= report["idle"]["workers"] <= report["idle"]["workers_max"] < 1.0
    assert report["memory"]["total_bytes"] > 2 * report["memory"]["worker_bytes"] > 0
    assert "traffic" not in report and "energy" in report
    times = report["processes"]["worker 1"]["times"]
    assert 0.0 < times["busy"] < times["wall"]
    assert times["wait_recv"] > 0.0


def single_state(reference: SingleStrategy) -> dict[str, torch.Tensor]:
    return reference.state()["parameters"]


def test_a_worker_with_nothing_to_do_clipped_parameters_and_a_state_that_is_loaded(tmp_path: Path) -> None:
    words = ["data.options.train_size=10", "batch.unit=tokens", "batch.size=60", "batch.groups=6"]
    words += ["optimizer.clip_embedding_norm=0.02"]
    reference = single(*words)
    assert {reference.workload.slot_tokens(step)[0] for step in range(4, 9)} == {0}  # all that worker 0 of 4 has
    steps(reference, last=3)
    with ddp(tmp_path, "distribution.workers=4", *words) as strategy:
        strategy.load_state(reference.state())
        assert equal(bits(strategy), bits(reference))
        expected, got = steps(reference, 4, 8), steps(strategy, 4, 8)
        assert [one.target_tokens for one in got] == [one.target_tokens for one in expected]
        assert [one.loss for one in got] == pytest.approx([one.loss for one in expected], rel=1e-5)
        state = strategy.state()
        assert state["updates"] == 8
        for name, tensor in single_state(reference).items():
            torch.testing.assert_close(state["parameters"][name], tensor, rtol=0, atol=PARAMETER)


def test_one_worker_is_one_process(tmp_path: Path) -> None:
    reference = single("batch.groups=1")
    with ddp(tmp_path, "batch.groups=1") as strategy:
        assert [one.loss for one in steps(strategy)] == pytest.approx([one.loss for one in steps(reference)], rel=LOSS)
        for name, tensor in single_state(reference).items():
            torch.testing.assert_close(strategy.state()["parameters"][name], tensor, rtol=0, atol=PARAMETER)


def test_an_update_that_is_not_finite_is_not_applied_and_none_is_begun_behind_it(tmp_path: Path) -> None:
    with ddp(tmp_path, "distribution.workers=2") as strategy:
        steps(strategy, last=2)
        state = strategy.state()
        next(iter(state["parameters"].values())).fill_(math.inf)
        strategy.load_state(state)
        stats = strategy.step(3, horizon=8)
        assert not math.isfinite(stats.loss)
        assert strategy.halt() == 3
        assert strategy.state()["updates"] == 2
        assert equal(strategy.state()["parameters"], state["parameters"])


def is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.exhaustive)])
def test_a_lost_worker_is_noticed_and_leaves_no_orphan(tmp_path: Path, number: signal.Signals) -> None:
    words = ["distribution.workers=3", "distribution.deadline_seconds=8", "distribution.heartbeat_seconds=0.5"]
    with ddp(tmp_path, *words) as strategy:
        steps(strategy, last=2)
        pids = [(agent.about or {})["pid"] for agent in strategy._members.values()]
        os.kill(pids[1], number)
        with pytest.raises(StateLost, match=r"worker 1 is lost|workers have lost each other"):
            steps(strategy, 3, 4000)
    assert all(map(is_gone, pids))


def evaluations(directory: Path) -> list[tuple[int, str]]:
    records = map(json.loads, (directory / "metrics.jsonl").read_text().splitlines())
    return [(one["step"], one["parameters_sha256"]) for one in records if one["kind"] == "evaluation"]


@pytest.mark.exhaustive
def test_a_run_whose_worker_dies_goes_back_to_its_checkpoint_and_ends_with_the_same_bits(tmp_path: Path) -> None:
    words = ["distribution=ddp", "distribution.workers=2", "training.max_steps=12", "validation.every_steps=5"]
    outcomes = {}
    for name, faults in (("undisturbed", ""), ("disturbed", "kill@worker1.backward:8")):
        config = compose([*SMALL, *words, f"paths.runs={tmp_path / name}", f"distribution.faults=[{faults}]"])
        outcomes[name] = train(config)
        assert outcomes[name].state == "finished"
    directories = {name: tmp_path / name / outcome.run_id for name, outcome in outcomes.items()}
    lost = [event for event in read_events(directories["disturbed"] / EVENTS) if event["kind"] == "lost"]
    assert [(event["back_to"], "worker" in event["notice"]) for event in lost] == [(5, True)]
    assert evaluations(directories["undisturbed"]) == evaluations(directories["disturbed"])
    assert sorted(path.name for path in (directories["disturbed"] / "journals").iterdir()) == [
        "timeline-worker-0.jsonl",
        "timeline-worker-1.jsonl",
    ]


@pytest.mark.parametrize(("fails", "why"), [("build", "this toy cannot be built here"), ("2", "breaks at step 2")])
def test_an_error_of_a_worker_ends_the_run_with_its_traceback(tmp_path: Path, fails: str, why: str) -> None:
    config = compose([*SMALL, "distribution=ddp", "distribution.workers=2"])
    strategy = DdpStrategy(strategy_options(config, "abc/s1", tmp_path, 1))
    try:
        with pytest.raises(RuntimeError, match=rf"(?s)worker \d failed:.*Traceback.*ValueError: .*{why}"):
            strategy.start(toy_workload(fails=fails))
            strategy.step(1)
            strategy.step(2)
    finally:
        strategy.close()
