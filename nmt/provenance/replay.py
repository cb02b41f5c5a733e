"""Doing a run again in a place of its own, and comparing its bits with what the first one recorded as they come."""

from __future__ import annotations

import dataclasses
import json
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nmt.config import RunConfig, explain_difference, training_identity
from nmt.config.identity import run_id as run_id_of
from nmt.config.schema import PathsConfig, SearchConfig
from nmt.environment import describe_code
from nmt.errors import UserError
from nmt.provenance.evidence import Decoding, Evidence, read_evidence, read_lines
from nmt.provenance.trace import END, KINDS, Comparison, Trace, compare, marks_of, trace_of
from nmt.runs import LocalRunStore, RunBusyError
from nmt.training.checkpoint_files import list_checkpoints
from nmt.training.observers import Observer, Record, SilentObserver
from nmt.training.state import RunState

MARKER = "rerun.json"  # says of which run, with which code, a directory holds the rerun
DURING = tuple(kind for kind in KINDS[: KINDS.index(END)])  # what is compared while it trains


@dataclass(frozen=True)
class Replay:
    """What came of doing a run again.

    `state` is that of the new run, `reached` its step, `comparison` with the original over what both recorded (up to
    `reached`, where it was stopped before its end).
    """

    run_id: str
    state: str
    reached: int
    comparison: Comparison


class OtherDataError(UserError):
    """The text, as it is prepared here, is not what the original run was trained on."""


class FirstDifference(SilentObserver):
    """Watches a training, and asks it to stop at the first record that differs, or once `steps` are done.

    A stop is asked for as Ctrl-C would: a checkpoint is written, and another call can go on.
    """

    def __init__(self, original: Evidence, environment: Path, steps: int | None):
        self.trace = trace_of(original)
        self.fingerprint = original.environment.get("fingerprint") or original.result.get("fingerprint")
        self.environment, self.steps = environment, steps
        self.parted = self.done = False

    def started(self, state: RunState, config: RunConfig) -> None:
        """Compare what was read; nothing need be trained on other data."""
        found = json.loads(self.environment.read_bytes())["fingerprint"]
        if self.fingerprint and found != self.fingerprint:
            raise OtherDataError(
                f"the prepared text has fingerprint {found[:12]}, and the run's had {str(self.fingerprint)[:12]}",
                where="data",
                hint="the corpus or a tokenizer library is another than the run's: see its env.json",
            )

    def trained(self, step: int, record: Record | None) -> None:
        """Look at a logged step."""
        self._look(record)
        if self.steps is not None and step >= self.steps and not self.done:
            self.done = True
            signal.raise_signal(signal.SIGINT)

    def evaluated(self, record: Record) -> None:
        """Look at an evaluation."""
        self._look(record)

    def _look(self, record: Record | None) -> None:
        if record is None or self.parted or compare(self.trace, marks_of(record)).first is None:
            return
        self.parted = True
        if not self.done:  # a second signal would end the process at once
            self.done = True
            signal.raise_signal(signal.SIGINT)


def replay(original: Evidence, config: RunConfig, place: Path, steps: int | None, observers: list[Observer]) -> Replay:
    """Train the run again in the directory of runs `place`, where `begin_at` was, from nothing or from a checkpoint.

    Parameters
    ----------
    config: the run's own, with the places that hold here; see `replayed_config`.
    steps: stop after so many; None: train to the end and decode the test split in each way on record.

    The original is only read. Raises OtherDataError where the data is not the original's.
    """
    from nmt.train import train
    from nmt.training.observers import Observers

    run_id = run_id_of(config)
    store = LocalRunStore(place)
    if config.validation.every_minutes:
        _evaluate_at_the_same_steps(original, store.directory(run_id) / "metrics.jsonl")
    watching = FirstDifference(original, store.directory(run_id) / "env.json", steps)
    state = train(config, observer=Observers([*observers, watching])).state
    if state in ("finished", "diverged"):
        _decode_again(original, config, store, run_id)
    made = read_evidence(store.directory(run_id))
    reached = int(made.result.get("steps", 0)) or _reached(store, run_id)
    asked = watching.done and steps is not None and not watching.parted
    return Replay(
        run_id=run_id,
        state="parted" if watching.parted else "stopped" if asked and state == "interrupted" else state,
        reached=reached,
        comparison=compare_up_to(trace_of(original), trace_of(made), reached if state == "interrupted" else None),
    )


def compare_up_to(original: Trace, made: Trace, step: int | None) -> Comparison:
    """Both traces to the end, or as far as `step`, beyond which the second does not go."""
    if step is None:
        return compare(original, made)
    cut = [{mark: value for mark, value in trace.items() if mark.step <= step} for trace in (original, made)]
    return compare(cut[0], cut[1], DURING)


def replayed_config(original: Evidence, config: RunConfig, place: Path) -> RunConfig:
    """`config`, that of the original with what a person overrides, to be trained in `place` as the original was.

    Device and number of threads are those that the original ran on, unless `config` names others: both can decide
    bits. Prepared data is made anew in `place`; injected failures are left out. Raises UserError where present code
    takes the configuration for another one than the original was.
    """
    environment, own = original.environment, original.config
    device = (environment.get("device") or {}).get("type", "auto") if config.device == own.device else config.device
    threads = int(environment.get("threads") or 0) if config.threads == own.threads else config.threads
    config = dataclasses.replace(
        config, device=device, threads=threads, faults=[], paths=PathsConfig(runs=str(place), cache="")
    )
    if not original.identity:
        return config
    now = training_identity(config)
    recorded = {name: value for name, value in original.identity.items() if name != "format_version"}
    if recorded == now:
        return config
    there = recorded.get("numerics_version")
    made_by = (environment.get("code") or {}).get("commit")
    if there != now["numerics_version"]:
        raise UserError(
            f"was trained with numerics version {there}, and this code has {now['numerics_version']}: it gives other "
            "bits on purpose",
            where=f"run {original.run_id}",
            hint=f"check out commit {made_by[:12]} and run it there" if made_by else None,
        )
    raise UserError(
        f"is another configuration to this code: {', '.join(explain_difference(recorded, now)[:3])}",
        where=f"run {original.run_id}",
        hint="data.dir=... says where the run's own text lies"
        + (f"; the code that trained it is commit {made_by[:12]}" if made_by else ""),
    )


def begin_at(place: Path, original: Evidence, *, disposable: bool = False) -> None:
    """Make `place`, or check that it holds an interrupted replay of this very run by this very code, to go on with.

    Any other replay that is there is removed where `place` is `disposable`. Raises UserError for what is not to be
    removed: a rerun that takes over what is there shows nothing. Raises RunBusyError where a process is at it.
    """
    about = {"run_id": original.run_id, "of": str(original.directory), "code": describe_code()}
    marker = place / MARKER
    if marker.is_file():
        if json.loads(marker.read_bytes()) == about and not _is_over(place, original):
            return
        if disposable:
            abandon(place)
    if place.exists() and any(place.iterdir()):
        raise UserError(
            "is not empty, and a rerun starts from nothing", where=str(place), hint="remove it, or give another to=..."
        )
    place.mkdir(parents=True, exist_ok=True)
    marker.write_text(json.dumps(about) + "\n", encoding="utf-8")


def _is_over(place: Path, original: Evidence) -> bool:
    """Whether nothing is left to go on with: the replay has ended, or has parted from the original."""
    store = LocalRunStore(place)
    for run_id in store.list_runs():
        made = read_evidence(store.directory(run_id))
        comparison = compare_up_to(trace_of(original), trace_of(made), _reached(store, run_id))
        if made.result or comparison.first is not None:
            return True
    return False


def _reached(store: LocalRunStore, run_id: str) -> int:
    """The step of the newest checkpoint."""
    return max(list_checkpoints(store, run_id), default=0)


def abandon(place: Path) -> None:
    """Remove what a rerun wrote, and nothing that is no rerun's. Raises RunBusyError where it is under way."""
    store = LocalRunStore(place)
    for run_id in store.list_runs():
        if store.is_claimed(run_id):
            raise RunBusyError("is being trained by another process", where=str(store.directory(run_id)))
    if (place / MARKER).is_file():
        shutil.rmtree(place)


def _evaluate_at_the_same_steps(original: Evidence, path: Path) -> None:
    """Let a training whose evaluations fall by the clock evaluate where the original did.

    The trainer replays the evaluations that it finds in metrics.jsonl beyond its newest checkpoint, and cuts the lines
    off: after a crash it must not depend on how fast it is the second time. To a replay the original is such a past.
    """
    lines = [json.dumps(record) for record in original.records if record.get("kind") == "evaluation"]
    there = {record.get("step") for record in read_lines(path) if record.get("kind") == "evaluation"}
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines if json.loads(line)["step"] not in there)


def _decode_again(original: Evidence, config: RunConfig, store: LocalRunStore, run_id: str) -> None:
    """Decode the test split in every way that the original has a record of, with the checkpoint chosen here."""
    from nmt.evaluate import evaluate_run

    for decoding in original.decodings.values():
        if search := _search_of(decoding, config):
            evaluate_run(store, run_id, search, config=config)


def _search_of(decoding: Decoding, config: RunConfig) -> SearchConfig | None:
    """The search of a decoding of the best checkpoint; None for one of other checkpoints or of older searches."""
    known: dict[str, Any] = {field.name: None for field in dataclasses.fields(SearchConfig)}
    values = decoding.record.get("search") or {}
    if not values or "checkpoints" in decoding.record or set(values) - set(known):
        return None
    return dataclasses.replace(config.search, **values)
