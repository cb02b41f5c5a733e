"""`nmt train`: one run, from configuration to test scores; the function that sweeps call too."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from nmt.arguments import option, parse
from nmt.config import compose, to_dict, training_identity
from nmt.config.compose import group_keys, groups, known_keys
from nmt.config.identity import run_id as run_id_of
from nmt.config.schema import RunConfig
from nmt.errors import UserError
from nmt.runs import LocalRunStore, RunStatus, RunStore

if TYPE_CHECKING:
    from nmt.training.observers import Observer

EXIT_CODES = {"finished": 0, "diverged": 3, "interrupted": 75}


@dataclass(frozen=True)
class RunOutcome:
    """How a call of `train` left a run: its state, and the error or reason in one line.

    `record` is that of the test split decoded with `config.search`, None where the run has not ended or has no test.
    """

    run_id: str
    state: str
    error: str = ""
    trained: bool = False
    record: dict[str, Any] | None = None


def train(config: RunConfig, *, timing: str = "exclusive", observer: Observer | None = None) -> RunOutcome:
    """Bring a run to its end: train what is missing, then decode the test split with the chosen checkpoint.

    A finished run is left as it is; an interrupted one goes on from its newest checkpoint and ends with the same bits.

    Parameters
    ----------
    timing: `exclusive` where no other run shares the machine, else `shared`; recorded with every time.
    observer: told of steps and evaluations, and of what else takes long.

    Raises UserError for what a person can mend, RunBusyError where another process trains the run. Any other exception
    is recorded in status.json as state `failed` and raised again.
    """
    from nmt.training.observers import SilentObserver

    store = LocalRunStore(config.paths.runs)
    run_id = run_id_of(config)
    with store.claim(run_id):
        before = store.status(run_id)
        status = RunStatus(
            state="running",
            attempts=before.attempts + 1,
            step=before.step,
            max_steps=config.training.max_steps,
            latest=before.latest,
        )
        try:
            return _train(config, store, run_id, status, timing, observer or SilentObserver())
        except Exception as error:
            line = f"{type(error).__name__}: {error}" if not isinstance(error, UserError) else str(error)
            failed = dataclasses.replace(store.status(run_id), state="failed", error=line, attempts=status.attempts)
            store.set_status(run_id, failed)
            raise


def _train(
    config: RunConfig, store: RunStore, run_id: str, status: RunStatus, timing: str, observer: Observer
) -> RunOutcome:
    from nmt.evaluate import evaluate_run
    from nmt.training.trainer import Interrupted

    result = store.read_json(run_id, "result.json")
    trained = result is None
    if result is None:
        store.set_status(run_id, status)
        try:
            result = _fit(config, store, run_id, status, timing, observer)
        except Interrupted:
            stopped = dataclasses.replace(store.status(run_id), state="interrupted")
            store.set_status(run_id, stopped)
            return RunOutcome(run_id, "interrupted", trained=True)
    record = None
    if config.data.kind != "files" or config.data.test.source:
        record = evaluate_run(
            store, run_id, config=config, progress=partial(observer.working, "decoding the test split")
        )
    state = str(result["state"])
    store.set_status(run_id, dataclasses.replace(store.status(run_id), state=state, error=""))
    return RunOutcome(run_id, state, str(result["reason"]), trained, record)


def _fit(
    config: RunConfig, store: RunStore, run_id: str, status: RunStatus, timing: str, observer: Observer
) -> dict[str, Any]:
    """Train to the end and write result.json."""
    from nmt import registry
    from nmt.data.prepare import TOKENIZER_FILES, prepare
    from nmt.environment import describe_environment
    from nmt.models.parameters import count_parameters
    from nmt.training.checkpoint import checkpoint_name
    from nmt.training.device import peak_memory_bytes, prepare_device
    from nmt.training.probe import training_sample
    from nmt.training.trainer import Trainer
    from nmt.training.validation import Validation
    from nmt.training.workload import workload_spec

    device = prepare_device(config)
    prepared = prepare(config, observer.working)
    _check_fingerprint(store, run_id, prepared.fingerprint)
    environment = describe_environment(device) | {"fingerprint": prepared.fingerprint, "data": prepared.report}
    for name in TOKENIZER_FILES:  # a run can translate without its corpus
        store.write_bytes(run_id, f"tokenizers/{name}", (prepared.directory / name).read_bytes())
    store.write_text(run_id, "config.yaml", _yaml(config))
    store.write_json(run_id, "identity.json", training_identity(config))
    store.write_json(run_id, "env.json", environment)

    strategy = registry.lookup("strategy", config.distribution.name, "distribution.name")()
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
    finally:
        strategy.close()
    end = trainer.state
    assert end.best is not None  # an evaluation falls on the last step of every run
    result = {
        "run_id": run_id,
        "label": config.label,
        "state": state,
        "reason": reason,
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
        "parameters": parameters,
        "peak_memory_bytes": peak_memory_bytes(device),
        "fingerprint": prepared.fingerprint,
    }
    store.write_json(run_id, "result.json", result)
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


def _yaml(config: RunConfig) -> str:
    import yaml

    return str(yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True))


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """What `nmt train` takes beside config overrides."""

    dry_run: bool = option(False, "print the resolved configuration and its identity, and train nothing")


def main(argv: Sequence[str]) -> int:
    """Train one run as the command line asks; returns the exit code."""
    options, overrides = parse(
        TrainOptions,
        argv,
        verb="nmt train",
        summary="Train one run, resume it where it was interrupted, and decode the test split with its best "
        "checkpoint. A run that is finished is left as it is.",
        epilog=_help_on_config(),
        rest=True,
    )
    config = compose(overrides)
    run_id = run_id_of(config)
    if options.dry_run:
        print(_yaml(config), end="")
        print(f"# run {run_id}")
        return 0
    return _train_in_foreground(config, run_id)


def _train_in_foreground(config: RunConfig, run_id: str) -> int:
    from rich.console import Console

    from nmt import registry
    from nmt.training.console import ConsoleObserver
    from nmt.training.observers import Observers, TrackerObserver

    console = Console(stderr=True)
    store = LocalRunStore(config.paths.runs)
    console.print(f"run {run_id} in {store.directory(run_id)}", highlight=False, soft_wrap=True)
    tracker = registry.lookup("tracker", config.tracking.name, "tracking.name")(config, store)
    try:
        outcome = train(config, observer=Observers([ConsoleObserver(console), TrackerObserver(tracker)]))
    finally:
        tracker.close()
    if outcome.state == "interrupted":
        console.print("interrupted; the same command goes on from the checkpoint that was just written")
        return EXIT_CODES["interrupted"]
    if not outcome.trained:
        console.print("already trained; nothing was done (another `seed` is another replicate)")
    if outcome.state == "diverged":
        console.print(f"[red]diverged[/]: {outcome.error}")
    record = outcome.record
    if record:
        print(_scores(record, config.validation.metric))
        console.print(f"next: nmt translate run={run_id}   nmt evaluate run={run_id} search=beam10", highlight=False)
    return EXIT_CODES[outcome.state]


def _scores(record: dict[str, Any], chosen: str) -> str:
    """The test scores that evaluations showed too, and how the one that chose the checkpoint came about."""
    from nmt.evaluation.catalogue import decoded_during_training, key

    names = dict.fromkeys((*decoded_during_training(chosen), chosen))
    known = {name: record["metrics"].get(key("test", name)) for name in names}
    scores = "  ".join(f"{name} {value:.2f}" for name, value in known.items() if value is not None)
    signature = record["signatures"].get(chosen)
    return f"test split: {scores}" + (f"\n{chosen}: {signature}" if signature else "")


def _help_on_config() -> str:
    lines = ["Config groups (override as group=option):"]
    for group, options in groups().items():
        if group != "sweep":
            lines += textwrap.wrap(f"{group}={'|'.join(options)}", 116, initial_indent="  ", subsequent_indent="      ")
    lines += ["", "Config keys (override as key=value; conf/ explains each):"]
    sections: dict[str, list[str]] = {}
    for key in sorted(set(known_keys()) - group_keys()):
        sections.setdefault(key.rpartition(".")[0], []).append(key.rpartition(".")[2])
    for section, names in sorted(sections.items()):
        text = f"{section + '.' if section else ''}{{{', '.join(names)}}}"
        lines += textwrap.wrap(text, 116, initial_indent="  ", subsequent_indent="      ")
    lines += [
        "",
        "Examples:",
        "  nmt train                                       # the baseline on a built-in corpus",
        "  nmt train experiment=t2_lstm seed=3 scale=smoke",
        "  nmt train data=multi30k_en_de data.dir=data/multi30k tokenizer=spm_bpe_4k",
    ]
    return "\n".join(lines)
