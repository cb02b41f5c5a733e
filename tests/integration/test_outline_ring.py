"""A ring of stages trained from a process that never has the model: the bits of one that has, checkpoints in parts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from parameter_server_examples import assert_equal_states, started, train, undisturbed
from stage_ring_examples import STEPS, one_thread, options, process_ids
from staged_toy import staged_spec
from test_stage_ring_processes import translated, translation
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from distributed.errors import DistributedError
from distributed.ring_tmp import outline_coordinator, outline_strategy
from distributed.ring_tmp.outline_strategy import OutlineRingStrategy
from distributed.single import SingleStrategy
from distributed.strategy import StateLost, TensorsInFiles, WorkloadSpec
from nmt.cli import main
from nmt.config.schema import SearchConfig
from nmt.data.prepare import EncodedText
from nmt.evaluation.decode import decode, teacher_forced
from nmt.events import EVENTS, read_events
from nmt.models.parameters import count_parameters
from nmt.runs import LocalRunStore
from nmt.search.beam import Hypothesis
from nmt.search.distant import DistantModel
from nmt.training.checkpoint import digest_tensors, list_checkpoints, read_checkpoint
from nmt.training.workload import TranslationWorkload
from sweeps.tracking.model_package import write_data

# Evaluations at 4 and 8.
TINY = [
    *("scale=smoke", "model=attentional", "data.options={train_size: 96, validation_size: 8, test_size: 8}"),
    *("batch.micro_batches=2", "loss.vocab_chunks=2", "training.max_steps=8", "training.log_every_steps=1"),
    *("training.probe.every_steps=3", "training.probe.sentences=20"),
    *("validation.every_steps=4", "tracking=none", "device=cpu", "threads=1"),
]
RING = ["distribution=ring_tmp", "distribution.mode=stage", "distribution.whole_model=false"]


@contextmanager
def outlines(
    directory: Path, spec: WorkloadSpec, *words: str, faults: Sequence[str] = ()
) -> Iterator[OutlineRingStrategy]:
    """A ring with its processes, whose files are in a directory; afterwards no process is left."""
    own = options(*words, faults=faults) | {"run_directory": str(directory), "whole_model": False}
    with one_thread(), started(OutlineRingStrategy(own), spec) as strategy:
        yield strategy


def goes_on(spec: WorkloadSpec, state: dict[str, Any], first: int, last: int) -> Any:
    """Steps of one process that takes a state over, and what it ends with."""
    with one_thread():
        process = SingleStrategy({})
        process.start(spec)
        process.load_state(state)
        return train(process, first, last), process.state()


def validation_text(process: SingleStrategy) -> EncodedText:
    """What a translation workload validates with."""
    assert isinstance(process.workload, TranslationWorkload)
    return process.workload.prepared.validation


def outputs(model: Any, text: EncodedText, beam: int) -> list[list[Hypothesis]]:
    """Tokens and scores of all hypotheses of a search; some sentences fill a batch."""
    search = SearchConfig(beam=beam, n_best=beam, length_penalty=0.6, batch_size=4, max_length=9)
    searched = DistantModel(model) if isinstance(model, outline_strategy.DistantModel) else model
    return decode(searched, text.source[:6], search)


def test_it_trains_evaluates_decodes_and_writes_with_the_bits_of_one_process(tmp_path: Path) -> None:
    """A node is killed in the midst of decoding, another takes its place."""
    spec = translation("gru")
    process = SingleStrategy({})
    process.start(spec)
    text = validation_text(process)
    with outlines(tmp_path, spec, "nodes=2", faults=["kill@worker1.logits:3"]) as strategy:
        stats = [strategy.step(step, probe=step == 2) for step in (1, 2, 3)]
        state = strategy.state()
        translated("gru").assert_equal(stats, state)
        process.load_state(state)
        with strategy.evaluation_model() as model, process.evaluation_model() as whole:
            assert count_parameters(model) == count_parameters(whole)
            found = teacher_forced(model, text, batch_size=2)  # several are on their way round the ring at a time
            assert found == teacher_forced(whole, text, batch_size=2)
            for beam in (1, 4):
                assert outputs(model, text, beam) == outputs(whole, text, beam)
        lost = strategy.report()["lost"]
        assert lost["workers"] + lost["links"] >= 1
        assert train(strategy, 4, 4) == train(process, 4, 4)  # and the ring goes on from where it is
        assert_equal_states(strategy.state(), process.state())
    assert all(one.is_meta for one in strategy._outline.parameters())
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "step-00000003.parts",
        "step-00000004.parts",
    ]


class Held(TorchDispatchMode):
    """The most bytes that tensors had at a time which were made in its context."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0
        self._held: dict[int, tuple[StorageWeakRef, int]] = {}
        self._in_files: set[int] = set()

    def leave_out(self, tensors: TensorsInFiles) -> None:
        """These are mapped from files."""
        for name in tensors:
            self._in_files |= {piece.untyped_storage()._cdata for piece in tensors.pieces(name)}
            self._held = {key: held for key, held in self._held.items() if key not in self._in_files}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for one in tree_leaves(result):
            storage = one.untyped_storage() if isinstance(one, torch.Tensor) and one.device.type == "cpu" else None
            if storage is not None and storage._cdata not in self._in_files:
                self._held[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self._held = {key: held for key, held in self._held.items() if not held[0].expired()}
        self.most = max(self.most, sum(size for _, size in self._held.values()))
        return result


@pytest.mark.parametrize("shares_a_folder", [True, pytest.param(False, marks=pytest.mark.exhaustive)])
def test_the_trainer_never_has_more_than_a_few_buffers_of_a_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shares_a_folder: bool
) -> None:
    """Whether nodes see the run's directory, or send their stages to be written there.

    It is sent first values and a loaded state, and asked for its own. Two buffers wait at each of two links.
    """
    stages, units = 24, 256
    whole = 4 * (stages - 1) * units**2
    spec = staged_spec(stages=stages, units=units, words=units, groups=1)
    if not shares_a_folder:
        monkeypatch.setattr(outline_coordinator, "PROOF", ".unshared")
    held = Held()
    with outlines(tmp_path, spec, "nodes=2", "shadows=0") as strategy:
        with held:
            stats = train(strategy, 1, 2)
            strategy._at_work().save(2, tmp_path / "checkpoints" / "a.parts", strategy._slots)
        state = strategy.state()
        for tensors in (state["parameters"], *state["optimizer"].values()):
            held.leave_out(tensors)
        strategy.load_state(state)
        with held:
            stats += train(strategy, 3, 3)
    assert 4 * units**2 < held.most < whole / 2
    wanted = undisturbed(spec, 2)
    wanted.assert_equal(stats[:2], state)
    assert stats[2] == undisturbed(spec, 3).stats[2]


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["lstm", "transformer"])
def test_files_of_stages_are_of_no_number_of_nodes_and_of_no_strategy(tmp_path: Path, name: str) -> None:
    spec = translation(name)
    wanted = undisturbed(spec, STEPS)
    with outlines(tmp_path, spec, "nodes=3") as three:
        stats, first = train(three, 1, 2), three.state()
    with outlines(tmp_path, spec, "nodes=1") as one:
        one.load_state(first)
        stats += train(one, 3, 4)
        second = one.state()
    rest, end = goes_on(spec, second, 5, STEPS)
    wanted.assert_equal(stats + rest, end)
    with outlines(tmp_path, spec, "nodes=4") as four:
        four.load_state(goes_on(spec, first, 3, 4)[1])
        wanted.assert_equal(stats + train(four, 5, STEPS), four.state())


@pytest.mark.exhaustive
def test_behind_two_neighbours_that_are_lost_at_once_others_go_on_from_the_parts(tmp_path: Path) -> None:
    spec = translation("gru")
    wanted = undisturbed(spec, STEPS)
    with outlines(tmp_path, spec, "nodes=3", "replace_lost=false") as three:
        stats, state = train(three, 1, 3), three.state()
        processes = process_ids(three)
        for sent in (signal.SIGSTOP, signal.SIGKILL):
            for number in (1, 2):
                os.kill(processes[number], sent)
        with pytest.raises(StateLost, match="on node 1 and on the next, and both are gone"):
            train(three, 4, STEPS)
    with outlines(tmp_path, spec, "nodes=2") as two:
        two.load_state(state)
        wanted.assert_equal(stats + train(two, 4, STEPS), two.state())


@pytest.mark.exhaustive
def test_sentences_whose_search_is_disturbed_too_often_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outline_coordinator, "DISTURBED", 0)
    spec = translation("gru")
    process = SingleStrategy({})
    process.start(spec)
    with outlines(tmp_path, spec, "nodes=2", faults=["kill@worker1.step:1"]) as strategy:
        train(strategy, 1, 1)
        with (
            strategy.evaluation_model() as model,
            pytest.raises(DistributedError, match="a batch of sentences was disturbed 1 times"),
        ):
            outputs(model, validation_text(process), 4)


@pytest.mark.exhaustive
@pytest.mark.parametrize(("name", "words"), [
    ("gru", ["model/attention=additive", "model.embedding.tie_output=true"]), ("lstm", []), ("transformer", []),
])  # fmt: skip
def test_a_state_that_was_loaded_is_decoded_before_any_step(tmp_path: Path, name: str, words: list[str]) -> None:
    spec = translation(name, *words)
    process = SingleStrategy({})
    process.start(spec)
    text = validation_text(process)
    train(process, 1, 2)
    state = process.state()
    with outlines(tmp_path, spec, "nodes=2") as strategy:
        strategy.load_state(state)
        with strategy.evaluation_model() as model, process.evaluation_model() as whole:
            for beam in (1, 4):
                assert outputs(model, text, beam) == outputs(whole, text, beam)
        assert train(strategy, 3, 3) == train(process, 3, 3)
        assert_equal_states(strategy.state(), process.state())


@pytest.mark.exhaustive
@pytest.mark.parametrize("fault", [
    "kill@worker0.score:3", "kill@worker1.score:3", "kill@worker2.score:3", "drop@worker0.scored:3",
    "corrupt@worker1.scored:3", "kill@worker0.encode:3", "kill@worker2.step:3", "kill@worker0.logits:3",
    "kill@worker0.write:3", "kill@worker2.write:3",
])  # fmt: skip
def test_a_node_may_be_lost_while_it_evaluates_or_writes(tmp_path: Path, fault: str) -> None:
    spec = translation("gru")
    process = SingleStrategy({})
    process.start(spec)
    text = validation_text(process)
    process.load_state(translated("gru").state)
    with outlines(tmp_path, spec, "nodes=3", "replace_lost=false", faults=[fault]) as strategy:
        stats = [strategy.step(step, probe=step == 2) for step in (1, 2, 3)]
        with strategy.evaluation_model() as model, process.evaluation_model() as whole:
            assert teacher_forced(model, text, batch_size=2) == teacher_forced(whole, text, batch_size=2)
            assert outputs(model, text, 4) == outputs(whole, text, 4)
        translated("gru").assert_equal(stats, strategy.state())
        lost = strategy.report()["lost"]
    assert lost["workers"] + lost["links"] >= 1


def evaluations(directory: Path) -> list[dict[str, Any]]:
    """What a run recorded of each evaluation, but for times and what processes have."""
    records = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    names = ("step", "best", "parameters_sha256", "optimizer_sha256", "target_tokens")
    return [
        {name: value for name, value in one.items() if name in names or name.startswith(("val/", "sample/"))}
        for one in records
        if one["kind"] == "evaluation"
    ]


def losses(directory: Path) -> list[tuple[int, str, float]]:
    records = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [(one["step"], one["loss_hex"], one["gradient_norm"]) for one in records if one["kind"] == "train"]


def test_a_command_line_trains_loses_its_state_and_goes_on_from_the_parts(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A node is lost without shadows: the run goes back to the newest parts, and ends as one process does."""
    (run_id,) = {train_here(tmp_path / "single"), train_here(tmp_path / "ring", *RING, *LOST)}
    single, ring = tmp_path / "single" / run_id, tmp_path / "ring" / run_id
    said = capfd.readouterr()
    assert said.out.count("test split: ") == 2
    assert losses(ring) == losses(single)
    assert evaluations(ring) == evaluations(single)
    assert [one["step"] for one in evaluations(ring)] == [4, 8]
    lost = [event for event in read_events(ring / EVENTS) if event["kind"] == "lost"]
    assert [event["back_to"] for event in lost] == [4]
    steps = list_checkpoints(LocalRunStore(tmp_path / "ring"), run_id)
    assert {path.stem for path in (ring / "checkpoints").glob("*.parts")} == {f"step-{step:08d}" for step in steps}
    for step in steps:
        name = f"checkpoints/step-{step:08d}.pt"
        assert_equal_states(read_checkpoint(ring / name), read_checkpoint(single / name))
    # A ring decodes the test split, too.
    assert decodings(ring) == decodings(single)
    # And a model that is packed for others is one file.
    best = (LocalRunStore(tmp_path / "ring").read_json(run_id, "result.json") or {})["best"]
    write_data(ring / best["checkpoint"], best["checkpoint_digest"], "row", SearchConfig(), tmp_path / "package")
    packed = torch.load(tmp_path / "package" / "checkpoints" / "best.pt", weights_only=True)["parameters"]
    assert digest_tensors(packed) == best["checkpoint_digest"]


def decodings(directory: Path) -> dict[str, tuple[str, dict[str, float]]]:
    """By identity, the outputs and scores of a run's decodings of the test split."""
    found = {
        one.stem: (one.read_text(), json.loads(one.with_suffix(".json").read_text()))
        for one in directory.glob("decodes/*.txt")
    }
    return {name: (text, record["metrics"]) for name, (text, record) in found.items()}


LOST = ["distribution.nodes=2", "distribution.shadows=0", "distribution.faults=[kill@worker1.forward:6]"]


def train_here(runs: Path, *words: str) -> str:
    """Train as a command line does; the run's id."""
    with one_thread():
        assert main(["train", *TINY, f"paths.runs={runs}", *words]) == 0
    (run_id,) = LocalRunStore(runs).list_runs()
    return run_id


@pytest.mark.exhaustive
@pytest.mark.parametrize("words", [[*RING, "distribution.nodes=3"], ["distribution=single"]], ids=["ring", "single"])
def test_a_kill_between_the_parts_and_their_index_leaves_the_checkpoint_before(
    tmp_path: Path, words: list[str]
) -> None:
    runs = tmp_path / "ring"
    first = ["train", *TINY, f"paths.runs={runs}", *RING, "distribution.nodes=2"]
    killed = subprocess.run([sys.executable, "-m", "nmt.cli", *first, "faults=[kill@checkpoint:8:once]"], check=False)
    assert killed.returncode == -signal.SIGKILL
    (run_id,) = LocalRunStore(runs).list_runs()
    checkpoints = runs / run_id / "checkpoints"
    assert list_checkpoints(LocalRunStore(runs), run_id) == [4]
    assert (checkpoints / "step-00000008.parts").is_dir()
    read_checkpoint(checkpoints / "step-00000004.pt")
    train_here(runs, *words, "faults=[kill@checkpoint:8:once]")
    assert train_here(tmp_path / "single") == run_id
    assert evaluations(runs / run_id) == evaluations(tmp_path / "single" / run_id)
    assert losses(runs / run_id) == losses(tmp_path / "single" / run_id)
