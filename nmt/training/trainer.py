"""The training loop: steps of a strategy, evaluations between them, checkpoints to resume from exactly."""

from __future__ import annotations

import dataclasses
import json
import math
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch

from distributed.strategy import StepStats, Strategy
from nmt.config.schema import RunConfig
from nmt.evaluation.catalogue import improves, key
from nmt.runs import FORMAT_VERSION, RunStatus, RunStore
from nmt.training.checkpoint import (
    check_identity,
    checkpoint_name,
    digest_tensors,
    list_checkpoints,
    read_checkpoint,
    save_checkpoint,
)
from nmt.training.faults import Faults
from nmt.training.observers import Observer, Record
from nmt.training.probe import probe_metrics
from nmt.training.state import Best, RunState

Validate = Callable[[torch.nn.Module], dict[str, float]]


class Interrupted(Exception):
    """A signal asked the run to stop; a checkpoint of the last finished step is written."""


class Trainer:
    """One run's training.

    Parameters
    ----------
    store, run_id, config: where the run lives and what it is.
    strategy: started already.
    validate: scores the current model.
    sample: scores it on training text, beside each evaluation; None does not.
    vocabulary: target vocabulary size, for the collapse check.
    timing: `exclusive` where nothing else ran on the machine's cores, else `shared`.
    status: the run's status as training begins; progress is recorded on it.
    observer: told of every step and evaluation.
    clock: seconds from any origin.
    """

    def __init__(
        self,
        store: RunStore,
        run_id: str,
        config: RunConfig,
        strategy: Strategy,
        validate: Validate,
        *,
        vocabulary: int,
        timing: str,
        status: RunStatus,
        observer: Observer,
        sample: Callable[[torch.nn.Module], Mapping[str, float]] | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self.store, self.run_id, self.config, self.strategy = store, run_id, config, strategy
        self.validate, self.sample, self.vocabulary, self.timing = validate, sample, vocabulary, timing
        self.status, self.observer, self.clock = status, observer, clock
        self.faults = Faults(config.faults)
        self.state = RunState()
        self._replay: frozenset[int] = frozenset()
        self._since_log = (0, 0.0)

    def run(self) -> tuple[str, str]:
        """Train to the end of the budget; returns the final state and its reason.

        The state is `finished` (reason `budget` or `patience`) or `diverged` (reason in words). Raises Interrupted
        after a signal.
        """
        self._resume()
        if self.timing == "shared":
            self.state.timing = "shared"
        state, training = self.state, self.config.training
        log_every, save_every = training.log_every_steps, training.checkpoint_every_steps
        self.observer.started(state, self.config)
        try:
            with StopSignals() as stop:
                while not self._is_over():
                    stats = self._step()
                    record = self._log(stats) if state.diverged or state.step % log_every == 0 else None
                    self.observer.trained(state.step, record)
                    if state.diverged or self._evaluation_is_due():
                        self._evaluate()
                    elif stop.requested or (save_every and state.step % save_every == 0):
                        self._save()
                    if stop.requested and not self._is_over():
                        raise Interrupted
        finally:
            self.observer.ended()
        if state.diverged:
            return "diverged", state.diverged
        return "finished", "patience" if self._out_of_patience() else "budget"

    def _step(self) -> StepStats:
        begin = self.clock()
        index, every = self.state.step + 1, self.config.training.probe.every_steps
        stats = self.strategy.step(index, self.state.rate_scale, probe=bool(every) and index % every == 0)
        self.state.seconds += self.clock() - begin
        self.state.step += 1
        self.state.target_tokens += stats.target_tokens
        if stats.probe is not None:
            line = {"kind": "probe", "step": stats.index, "seconds": self.state.seconds}
            self._write(line | probe_metrics(stats))
        if not (math.isfinite(stats.loss) and math.isfinite(stats.gradient_norm)):
            # The update was not applied, so the model as it was can still be scored.
            self.state.diverged = f"loss {stats.loss}, gradient norm {stats.gradient_norm} at step {stats.index}"
        return stats

    def _log(self, stats: StepStats) -> Record:
        state = self.state
        tokens, seconds = self._since_log
        speed = (state.target_tokens - tokens) / max(state.seconds - seconds, 1e-9)
        self._since_log = (state.target_tokens, state.seconds)
        record: Record = {
            "kind": "train",
            "step": state.step,
            "loss": stats.loss,
            "loss_hex": float.hex(stats.loss),
            "learning_rate": stats.learning_rate,
            "gradient_norm": stats.gradient_norm,
            "target_tokens": state.target_tokens,
            "seconds": state.seconds,
            "tokens_per_second": speed,
            "timing": state.timing,
        }
        self._write(record)
        self._report(step=state.step, tokens_per_second=speed)
        return record

    def _evaluate(self) -> None:
        state = self.state
        begin = self.clock()
        self.strategy.synchronize()
        with self.strategy.evaluation_model() as model:
            metrics = self.validate(model)
            beside = self.sample(model) if self.sample else {}
        self.faults.reach("evaluation", state.step)
        snapshot = self.strategy.state()
        digest = digest_tensors(snapshot["parameters"])
        best = self._rank(metrics, digest)
        self._check_collapse(metrics)
        state.evaluation_steps.append(state.step)
        state.seconds_at_evaluation = state.seconds
        record: Record = {
            "kind": "evaluation",
            "step": state.step,
            "target_tokens": state.target_tokens,
            "seconds": state.seconds,
            "evaluation_seconds": self.clock() - begin,
            **metrics,
            **beside,
            "best": best,
            "parameters_sha256": digest,
            "optimizer_sha256": digest_tensors(snapshot["optimizer"]),
            "timing": state.timing,
        }
        self._write(record)
        self._report(step=state.step, latest=metrics)
        self.faults.reach("recorded", state.step)
        self._save(snapshot)
        self.observer.evaluated(record)

    def _rank(self, metrics: Mapping[str, float], digest: str) -> bool:
        state, schedule = self.state, self.config.schedule
        name = self.config.validation.metric
        metric = key("val", name)
        if state.best is None or improves(name, metrics[metric], state.best.metrics[metric]):
            state.best = Best(state.step, digest, dict(metrics), state.target_tokens, state.seconds)
            state.evaluations_since_best = state.evaluations_since_decay = 0
            return True
        state.evaluations_since_best += 1
        state.evaluations_since_decay += 1
        if schedule.name == "plateau" and state.evaluations_since_decay >= schedule.plateau_patience:
            floor = schedule.minimum_rate / self.config.optimizer.learning_rate
            state.rate_scale = max(floor, state.rate_scale * schedule.decay_rate)
            state.evaluations_since_decay = 0
        return False

    def _evaluation_is_due(self) -> bool:
        state, validation = self.state, self.config.validation
        if state.step == self.config.training.max_steps:
            return True
        if validation.every_steps and state.step % validation.every_steps == 0:
            return True
        if not validation.every_minutes:
            return False
        if state.step <= max(self._replay, default=0):
            # Steps done again after a crash: the clock already spoke, and the run must not depend on how often it dies.
            return state.step in self._replay
        return state.seconds - state.seconds_at_evaluation >= 60.0 * validation.every_minutes

    def _out_of_patience(self) -> bool:
        patience = self.config.validation.patience
        return bool(patience) and self.state.evaluations_since_best >= patience

    def _is_over(self) -> bool:
        state = self.state
        return bool(state.diverged) or state.step >= self.config.training.max_steps or self._out_of_patience()

    def _check_collapse(self, metrics: Mapping[str, float]) -> None:
        log_perplexity = metrics["val/teacher_forced/log_perplexity"]
        limit = math.log(self.vocabulary) + self.config.training.collapse_margin
        if not log_perplexity <= limit:
            self.state.diverged = (
                f"validation log-perplexity {log_perplexity:.2f} at step {self.state.step} is worse than guessing "
                f"(ln of {self.vocabulary} words + {self.config.training.collapse_margin:g} = {limit:.2f})"
            )

    def _report(self, **progress: Any) -> None:
        self.status = dataclasses.replace(self.status, **progress)
        self.store.set_status(self.run_id, self.status)

    def _write(self, record: Record) -> None:
        # Non-finite numbers are written as JSON's common extension; every reader of ours accepts it.
        self.store.append_line(self.run_id, "metrics.jsonl", json.dumps(record))

    def _save(self, snapshot: Mapping[str, Any] | None = None) -> None:
        state = self.state
        state.metrics_bytes = (self.store.directory(self.run_id) / "metrics.jsonl").stat().st_size
        save_checkpoint(
            self.store,
            self.run_id,
            self.config,
            state,
            snapshot or self.strategy.state(),
            before_rename=lambda: self.faults.reach("checkpoint", state.step),
        )

    def _resume(self) -> None:
        """Go on from the newest checkpoint; without one, from the start."""
        past = self._recorded_evaluation_steps()
        steps = list_checkpoints(self.store, self.run_id)
        if not steps:
            self.store.delete(self.run_id, "metrics.jsonl")
            self._write({"kind": "header", "format_version": FORMAT_VERSION, "run_id": self.run_id})
        else:
            path = self.store.directory(self.run_id) / checkpoint_name(steps[-1])
            content = read_checkpoint(path)
            check_identity(content, self.config, path)
            self.state = RunState.from_dict(content["state"])
            self.strategy.load_state(content)
            self.store.truncate(self.run_id, "metrics.jsonl", self.state.metrics_bytes)
        self._replay = frozenset(past - set(self.state.evaluation_steps))
        self._since_log = (self.state.target_tokens, self.state.seconds)

    def _recorded_evaluation_steps(self) -> set[int]:
        path = self.store.directory(self.run_id) / "metrics.jsonl"
        if not path.exists():
            return set()
        steps = set()
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue  # the last line of a killed process may be torn
            if record.get("kind") == "evaluation":
                steps.add(record["step"])
        return steps


class StopSignals(AbstractContextManager["StopSignals"]):
    """SIGINT and SIGTERM ask for a stop at the next step boundary; a second one stops the process at once.

    Outside the main thread, where Python allows no handlers, it never asks for anything.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self._previous[number] = signal.signal(number, self._handle)
            except ValueError:
                break
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: object) -> None:
        if self.requested:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        self.requested = True
