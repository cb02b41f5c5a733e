"""The training loop: steps of a strategy, evaluations between them, checkpoints to resume from exactly."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import torch

from distributed.strategy import StateLost, StepStats, Strategy
from nmt.config.schema import RunConfig
from nmt.config.seeds import drawn
from nmt.evaluation.catalogue import improves, key
from nmt.events import record_event
from nmt.runs import FORMAT_VERSION, RunStatus, RunStore
from nmt.training.agenda import Agenda
from nmt.training.checkpoint import (
    check_identity,
    checkpoint_name,
    digest_tensors,
    list_checkpoints,
    read_checkpoint,
    save_checkpoint,
)
from nmt.training.checkpoint_files import drop_unfinished
from nmt.training.energy import EnergyAccount
from nmt.training.faults import Faults
from nmt.training.journals import append_journals, cut_journals
from nmt.training.observers import Observer, Record
from nmt.training.probe import probe_metrics
from nmt.training.state import Best, RunState
from nmt.training.stop_signals import StopSignals
from nmt.training.strategy_report import report_metrics

Validate = Callable[[torch.nn.Module], dict[str, float]]


class Interrupted(Exception):
    """A signal, named by the text, asked the run to stop; a checkpoint of the last finished step is written.

    Unless the state of that step was lost meanwhile: then the newest checkpoint is an older one.
    """


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
    status: the run's status as training begins; progress is recorded on it, and events under its attempt.
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
        self.faults, self.drawn = Faults(config.faults), drawn(config)
        self.state = RunState()
        self.agenda = Agenda(config)
        self._since_log = (0, 0.0)

    def run(self) -> tuple[str, str]:
        """Train to the end of the budget; returns the final state and its reason.

        The state is `finished` (reason `budget` or `patience`) or `diverged` (reason in words). Raises Interrupted
        after a signal, LeaseLostError where another attempt has taken the run over, and what the strategy raises.
        """
        self._resume()
        if self.state.step:
            self.faults.resumed()
        self._energy = EnergyAccount(self.state, self.strategy.report())
        if self.timing == "shared":
            self.state.timing = "shared"
        state = self.state
        self.observer.started(state, self.config)
        try:
            with StopSignals() as stop:
                try:
                    self._train(stop)
                except StateLost as lost:
                    if not stop.requested:
                        raise
                    self._stop(stop, str(lost))  # who asked for a stop may have stopped the other processes too
        finally:
            self.observer.ended()
        if state.diverged:
            return "diverged", state.diverged
        return "finished", "patience" if self._out_of_patience() else "budget"

    def _train(self, stop: StopSignals) -> None:
        state = self.state
        while not self._is_over():
            self._advance()
            asked, due = stop.requested, self.agenda.is_evaluated(state)
            if asked or due or state.diverged:
                self._come_to_rest()
            if due or state.diverged or self.agenda.is_evaluated(state):
                self._evaluate()
            elif asked or self.agenda.is_saved(state.step):
                self._save()
            else:
                continue
            if stop.requested and not self._is_over():
                self._stop(stop)

    def _stop(self, stop: StopSignals, loss: str = "") -> NoReturn:
        self._event("stop", step=self.state.step, notice=f"{stop.requested}; {loss}" if loss else stop.requested)
        raise Interrupted(stop.requested)

    def _advance(self, last: int | None = None) -> None:
        """One step, its line in the log, and word of it; behind step `last` none is to be begun."""
        state = self.state
        self.store.check(self.run_id)
        horizon = self.agenda.horizon(state.step + 1)
        stats = self._step(horizon if last is None else min(horizon, last))
        logged = state.diverged or state.step % self.config.training.log_every_steps == 0
        self.observer.trained(state.step, self._log(stats) if logged else None)

    def _come_to_rest(self) -> None:
        """Make the steps that the strategy has begun already, so that nothing of it is under way."""
        last = self.strategy.halt()
        while self.state.step < last:
            self._advance(last)

    def _step(self, horizon: int) -> StepStats:
        begin = self.clock()
        index = self.state.step + 1
        stats = self.strategy.step(index, self.state.rate_scale, self.agenda.is_probed(index), horizon)
        self.state.seconds += self.clock() - begin
        self.state.step += 1
        self.state.target_tokens += stats.target_tokens
        if stats.probe is not None:
            line = {"kind": "probe", "step": stats.index, "seconds": self.state.seconds}
            self._write(line | probe_metrics(stats))
        if not (math.isfinite(stats.loss) and math.isfinite(stats.gradient_norm)):
            # The update was not applied, so the model as it was can still be scored.
            reason = f"loss {stats.loss}, gradient norm {stats.gradient_norm} at step {stats.index}"
            self.state.diverged = self.state.diverged or reason
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
        if self._energy.measurable:
            self._energy.add("training", self.strategy.report())
        with self.strategy.evaluation_model() as model:
            metrics = self.validate(model)
            beside = self.sample(model) if self.sample else {}
        self.faults.reach("evaluation", state.step)
        snapshot = self.strategy.state()
        digest = digest_tensors(snapshot["parameters"])
        best = self._rank(metrics, digest)
        self._check_collapse(metrics)
        report = self.strategy.report()
        self._energy.add("evaluation", report)
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
            **report_metrics(report),
            **self._energy.record(),
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
        state, schedule = self.state, self.drawn.schedule
        name = self.config.validation.metric
        metric = key("val", name)
        if state.best is None or improves(name, metrics[metric], state.best.metrics[metric]):
            state.best = Best(state.step, digest, dict(metrics), state.target_tokens, state.seconds)
            state.evaluations_since_best = state.evaluations_since_decay = 0
            return True
        state.evaluations_since_best += 1
        state.evaluations_since_decay += 1
        if schedule.name == "plateau" and state.evaluations_since_decay >= schedule.plateau_patience:
            floor = schedule.minimum_rate / self.drawn.optimizer.learning_rate
            state.rate_scale = max(floor, state.rate_scale * schedule.decay_rate)
            state.evaluations_since_decay = 0
        return False

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

    def _event(self, kind: str, **facts: Any) -> None:
        record_event(self.store, self.run_id, kind, self.status.attempts, **facts)

    def _save(self, snapshot: Mapping[str, Any] | None = None) -> None:
        state, begin = self.state, time.perf_counter()
        snapshot = snapshot or self.strategy.state()
        append_journals(self.store, self.run_id, self.strategy.journals(), state.journal_bytes)
        state.metrics_bytes = (self.store.directory(self.run_id) / "metrics.jsonl").stat().st_size
        save_checkpoint(
            self.store,
            self.run_id,
            self.config,
            state,
            snapshot,
            before_rename=lambda: self.faults.reach("checkpoint", state.step),
        )
        self._event("checkpoint", step=state.step, seconds=time.perf_counter() - begin)

    def _resume(self) -> None:
        """Go on from the newest checkpoint; without one, from the start."""
        past = self._recorded_evaluation_steps()
        drop_unfinished(self.store, self.run_id)
        steps = list_checkpoints(self.store, self.run_id)
        if not steps:
            self.store.delete(self.run_id, "metrics.jsonl")
            self._write({"kind": "header", "format_version": FORMAT_VERSION, "run_id": self.run_id})
        else:
            path = self.store.directory(self.run_id) / checkpoint_name(steps[-1])
            content = read_checkpoint(path, lazily=not self.config.distribution.whole_model)
            check_identity(content, self.config, path)
            self.state = RunState.from_dict(content["state"])
            self.strategy.load_state(content)
            self.store.truncate(self.run_id, "metrics.jsonl", self.state.metrics_bytes)
        cut_journals(self.store, self.run_id, self.state.journal_bytes)
        self.agenda = Agenda(self.config, past - set(self.state.evaluation_steps))
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
