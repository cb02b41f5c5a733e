"""How gradients travel over real processes: exactly, rounded but the same whoever computes, or the largest alone."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from parameter_server_examples import IMPATIENT, STEPS, assert_equal_states, options, running, train, undisturbed
from test_parameter_server import smoke_spec
from toy_workload import workload_spec

from distributed.parameter_server.strategy import ParameterServerStrategy

SPEC = workload_spec(groups=5)
PUSHES = workload_spec(groups=16)
TOP_K = ["mode=asp", "servers=2", "top_k=0.02", "bucket_mib=1"]
SECONDS = 60.0  # far more than it takes until everybody has pushed something


def test_rows_that_were_not_touched_stay_at_home_and_nobody_can_tell() -> None:
    spec = smoke_spec()
    with running("workers=2", "servers=2", "sparse=true", "link=tcp", spec=spec) as strategy:
        stats = train(strategy, 1, 3)
        undisturbed(spec, 3).assert_equal(stats, strategy.state())
        report = strategy.report()
    assert 0.2 < report["wire"]["ratio"] < 0.95
    for name in ("worker 0", "worker 1"):
        sent = report["processes"][name]["wire"]
        assert sent["rows"] > 0
        assert sent["bytes"] == sent["head_bytes"] + 4 * sent["elements"] + sent["place_bytes"]


def rounded(*words: str, faults: Sequence[str] = ()) -> tuple[list[Any], dict[str, Any], dict[str, int]]:
    with running("wire=bf16", *IMPATIENT, *words, faults=faults, spec=SPEC) as strategy:
        stats = train(strategy, 1, STEPS)
        return stats, strategy.state(), strategy.report()["lost"]


def test_a_rounded_run_has_its_bits_whoever_dies() -> None:
    wanted = rounded("workers=2", "servers=1")
    found = rounded("workers=2", "servers=2", "link=tcp", faults=["kill@worker1.forward:3", "corrupt@worker0.push:5"])
    assert found[2]["workers"] == 1
    assert found[0] == wanted[0] != undisturbed(SPEC).stats
    assert_equal_states(found[1], wanted[1])


@pytest.mark.exhaustive
@pytest.mark.parametrize("words", [["sparse=true"], ["sparse=true", "link=shm", "bucket_mib=1"]], ids=str)
@pytest.mark.parametrize(
    "fault", ["kill@worker0.pushed:2", "kill@server1.apply:3", "corrupt@worker1.push:4", "kill@server0.reply:2"]
)
def test_rows_survive_what_whole_gradients_survive(fault: str, words: list[str]) -> None:
    with running("workers=2", "servers=2", "shadows=1", *IMPATIENT, *words, faults=[fault], spec=SPEC) as strategy:
        stats = train(strategy, 1, STEPS)
        undisturbed(SPEC).assert_equal(stats, strategy.state())


def pushing(directory: Path, *words: str, replay: str = "", faults: Sequence[str] = ()) -> ParameterServerStrategy:
    beside = {"batch_per": "push", "run_directory": str(directory), "replay": replay}
    return ParameterServerStrategy(options(*TOP_K, *IMPATIENT, *words, faults=faults) | beside)


def played(
    strategy: ParameterServerStrategy,
    first: int,
    last: int,
    journals: Path,
    state: Any = None,
    keeping: Sequence[str] = (),
) -> tuple[list[Any], dict[str, Any]]:
    """Steps up to a horizon, and the state there.

    keeping: workers that have kept something back then, and are the only ones. Who gets which step is chance, and a
        replacement comes when it comes: up to that moment there are further horizons.
    """
    try:
        strategy.start(PUSHES)
        if state is not None:
            strategy.load_state(state)
        stats, end = train(strategy, first, last), time.monotonic() + SECONDS
        strategy.synchronize()
        found = strategy.state()
        while keeping and keeping_back(found) != list(keeping) and time.monotonic() < end:
            stats += train(strategy, stats[-1].index + 1, stats[-1].index + 10)
            found = strategy.state()
        for name, content in strategy.journals().items():
            with (journals / name).open("ab") as file:
                file.write(content)
        return stats, found
    finally:
        strategy.close()


def keeping_back(state: dict[str, Any]) -> list[str]:
    """Workers with a memory, where there is something in each."""
    is_empty = [not view.any() for memory in state["kept_back"].values() for view in memory["residual"].values()]
    return [] if any(is_empty) else sorted(state["kept_back"])


def assert_equal_memories(one: dict[str, Any], other: dict[str, Any], names: Sequence[str]) -> None:
    for name in names:
        for parameter, view in one["kept_back"][name]["residual"].items():
            assert view.any()
            assert torch.equal(view, other["kept_back"][name]["residual"][parameter])


@pytest.fixture
def journals(tmp_path: Path) -> Path:
    (tmp_path / "journals").mkdir()
    (tmp_path / "again").mkdir()
    return tmp_path / "journals"


def test_a_run_that_keeps_values_back_repeats_to_the_bit(journals: Path, tmp_path: Path) -> None:
    wanted = played(pushing(tmp_path, "workers=3"), 1, 20, journals, keeping=["0", "1", "2"])
    replayed = pushing(tmp_path / "again", "workers=3", replay=str(journals))
    again = played(replayed, 1, wanted[0][-1].index, tmp_path / "again")
    assert again[0] == wanted[0]
    assert_equal_states(again[1], wanted[1])
    assert_equal_memories(wanted[1], again[1], ["0", "1", "2"])


@pytest.mark.exhaustive
def test_what_is_kept_back_is_in_a_checkpoint(journals: Path, tmp_path: Path) -> None:
    """One worker goes on as if nothing had been; three of whom one had died repeat to the bit across the resume."""
    first = played(pushing(tmp_path, "workers=1"), 1, 10, journals)
    whole = played(pushing(tmp_path / "again", "workers=1"), 1, 20, tmp_path / "again")
    resumed = played(pushing(tmp_path, "workers=1"), 11, 20, journals, first[1])
    assert first[0] + resumed[0] == whole[0]
    assert_equal_states(resumed[1], whole[1])
    assert_equal_memories(resumed[1], whole[1], ["0"])


def test_a_death_and_a_resume_are_repeated_too(journals: Path, tmp_path: Path) -> None:
    dying = [f"kill@worker1.pushed:{step}" for step in range(4, 1000)]
    first = played(pushing(tmp_path, "workers=3", faults=dying), 1, 20, journals, keeping=["0", "2", "3"])
    assert sorted(first[1]["kept_back"]) == ["0", "2", "3"]
    last = first[0][-1].index
    resumed = played(pushing(tmp_path, "workers=3"), last + 1, last + 20, journals, first[1])
    replayed = pushing(tmp_path / "again", "workers=3", replay=str(journals))
    again = played(replayed, 1, last + 20, tmp_path / "again")
    assert again[0] == first[0] + resumed[0]
    assert_equal_states(again[1], resumed[1])
