"""The training of one run, from prepared data to result.json."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distributed.strategy import DistributedError, LinkError, Strategy
from nmt import registry
from nmt.config import training_identity
from nmt.config.compose import to_yaml
from nmt.config.schema import RunConfig
from nmt.config.seeds import draws
from nmt.data.prepare import TOKENIZER_FILES, PreparedData, prepare
from nmt.environment import available_cores, describe_environment
from nmt.errors import UserError
from nmt.events import AttemptLog
from nmt.models.parameters import count_parameters
from nmt.processes import worker_threads
from nmt.runs import RunStatus, RunStore
from nmt.training.checkpoint import checkpoint_name
from nmt.training.device import peak_memory_bytes, prepare_device
from nmt.training.energy import energy_figures
from nmt.training.observers import Observer
from nmt.training.probe import training_sample
from nmt.training.recovery import train_through_losses
from nmt.training.state import RunState
from nmt.training.trainer import Trainer
from nmt.training.validation import Validation
from nmt.training.workload import refuse_unsearchable, workload_spec


@dataclass(frozen=True, kw_only=True)
class Trained:
    """How training ended: state and reason as `Trainer.run` gives them, and what was asked of the strategy then."""

    state: str
    reason: str
    progress: RunState
    parameters: int
    report: dict[str, Any]


def fit(
    config: RunConfig,
    store: RunStore,
    run_id: str,
    status: RunStatus,
    log: AttemptLog,
    timing: str,
    observer: Observer,
) -> dict[str, Any]:
    """Train to the end and write result.json, which is returned."""
    device = prepare_device(config)
    prepared = prepare(config, observer.working)
    _check_fingerprint(store, run_id, prepared.fingerprint)
    if not config.distribution.whole_model:
        refuse_unsearchable(config, prepared)
    environment = describe_environment(device) | {"fingerprint": prepared.fingerprint, "data": prepared.report}
    for name in TOKENIZER_FILES:  # a run can translate without its corpus
        store.write_bytes(run_id, f"tokenizers/{name}", (prepared.directory / name).read_bytes())
    store.write_text(run_id, "config.yaml", to_yaml(config))
    store.write_json(run_id, "identity.json", training_identity(config))
    store.write_json(run_id, "env.json", environment)
    log.note("ready", device=environment["device"]["name"], threads=environment["threads"])
    options = strategy_options(config, run_id, store.directory(run_id), log.attempt.number)

    def train(again: bool) -> Trained:
        build = registry.lookup("strategy", config.distribution.name, "distribution.name")
        strategy: Strategy = build(options | {"faults": []} if again else options)  # an injected failure happens once
        try:
            strategy.start(workload_spec(config, device))
            trainer = Trainer(
                store,
                run_id,
                config,
                strategy,
                Validation(config, prepared, device),
                vocabulary=prepared.target_tokenizer.size,
                timing=timing,
                status=status,
                observer=observer,
                sample=training_sample(config, prepared, device),
            )
            state, reason = trainer.run()
            with strategy.evaluation_model() as model:
                parameters = count_parameters(model)
            report = dict(strategy.report())
            return Trained(state=state, reason=reason, progress=trainer.state, parameters=parameters, report=report)
        finally:
            strategy.close()

    try:
        trained = train_through_losses(train, store, run_id, log.note, retries=config.executor.retries)
    except LinkError:
        raise  # what becomes of processes and wires, nobody can mend by another word
    except DistributedError as error:
        raise UserError.of(error) from error
    result = _result(config, run_id, trained, prepared, device)
    store.write_json(run_id, "result.json", result)
    return result


def strategy_options(config: RunConfig, run_id: str, directory: Path, attempt: int) -> dict[str, Any]:
    """What a strategy is built from, as `distributed.strategy` lists it: plain data."""
    return dataclasses.asdict(config.distribution) | {
        "batch_per": config.batch.per,
        "run": run_id,
        "train_id": run_id.partition("/")[0],
        "seed": config.seed,
        "run_directory": str(directory),
        "attempt": attempt,
        "threads": worker_threads(config, available_cores()),
    }


def _result(config: RunConfig, run_id: str, trained: Trained, prepared: PreparedData, device: str) -> dict[str, Any]:
    end = trained.progress
    assert end.best is not None  # an evaluation falls on the last step of every run
    result = {
        "run_id": run_id,
        "label": config.label,
        "state": trained.state,
        "reason": trained.reason,
        "steps": end.step,
        "target_tokens": end.target_tokens,
        "seconds": end.seconds,
        "best": {
            "step": end.best.step,
            "checkpoint": checkpoint_name(end.best.step),
            "checkpoint_digest": end.best.digest,
            "metrics": end.best.metrics,
        },
        "convergence": {
            "steps": end.best.step,
            "target_tokens": end.best.target_tokens,
            "seconds": end.best.seconds,
        },
        "tokens_per_second": end.target_tokens / max(end.seconds, 1e-9),
        "timing": end.timing,
        "parameters": trained.parameters,
        "peak_memory_bytes": trained.report.get("memory", {}).get(
            "total_bytes" if device == "cpu" else "device_bytes", peak_memory_bytes(device)
        ),
        "energy": energy_figures(end, trained.report.get("energy", {})),
        "fingerprint": prepared.fingerprint,
    }
    told = {name: value for name, value in trained.report.items() if name != "energy"}
    if told:
        result["distribution"] = told
    if config.seeds.jittered:
        result["drawn"] = draws(config)
    return result


def _check_fingerprint(store: RunStore, run_id: str, fingerprint: str) -> None:
    """The runs of one train_id must have seen one text, or their spread means nothing."""
    for other in store.list_runs():
        if other.split("/")[0] == run_id.split("/")[0]:
            environment = store.read_json(other, "env.json") or {}
            if environment.get("fingerprint", fingerprint) != fingerprint:
                raise UserError(
                    f"the prepared text differs from that of run {other} of the same configuration",
                    where="data",
                    hint="the corpus or a tokenizer library changed: restore it, or raise data.version for new runs",
                )
