"""`nmt train`: one run, from configuration to test scores; the function that sweeps call too."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from nmt.arguments import option, parse
from nmt.config import compose
from nmt.config.compose import NOT_CONFIG, group_keys, groups, known_keys, to_yaml
from nmt.config.identity import run_id as run_id_of
from nmt.config.schema import RunConfig
from nmt.errors import UserError
from nmt.runs import HeldRunStore, LocalRunStore, RunBusyError, RunStatus

if TYPE_CHECKING:
    from nmt.events import AttemptLog
    from nmt.training.observers import Observer

EXIT_CODES = {"finished": 0, "diverged": 3, "interrupted": 75}
MULTIRUN = ("-m", "--multirun")  # Hydra's flags, the only words with dashes beside --help


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

    Raises UserError for what a person can mend, RunBusyError where another process trains the run, LeaseLostError where
    one took it over while this process was stopped. Any other exception is recorded in status.json as state `failed`
    and raised again.
    """
    from nmt.events import AttemptLog
    from nmt.training.observers import SilentObserver

    run_id = run_id_of(config)
    with LocalRunStore(config.paths.runs).claim(run_id) as store:
        log = AttemptLog(store, run_id)
        try:
            outcome = _train(config, store, run_id, log, timing, observer or SilentObserver())
        except RunBusyError:
            raise  # the run is another's now, and so is its directory
        except Exception as error:
            line = f"{type(error).__name__}: {error}" if not isinstance(error, UserError) else str(error)
            failed = dataclasses.replace(store.status(run_id), state="failed", error=line)
            store.set_status(run_id, dataclasses.replace(failed, attempts=log.attempt.number))
            log.end("failed", line)
            raise
        except BaseException as stop:
            log.end("interrupted", type(stop).__name__)
            raise
        log.end(outcome.state, outcome.error)
        return outcome


def _train(
    config: RunConfig, store: HeldRunStore, run_id: str, log: AttemptLog, timing: str, observer: Observer
) -> RunOutcome:
    from nmt.evaluate import evaluate_run, kept_decoding
    from nmt.training.fit import fit
    from nmt.training.trainer import Interrupted

    result = store.read_json(run_id, "result.json")
    trained = result is None
    if result is None:
        status = RunStatus(
            state="running",
            attempts=log.attempt.number,
            step=log.first_step,
            max_steps=config.training.max_steps,
            latest=store.status(run_id).latest,
        )
        store.set_status(run_id, status)
        log.begin("resume" if log.first_step else "start", timing=timing)
        try:
            result = fit(config, store, run_id, status, log, timing, observer)
        except Interrupted as stop:
            stopped = dataclasses.replace(store.status(run_id), state="interrupted")
            store.set_status(run_id, stopped)
            return RunOutcome(run_id, "interrupted", str(stop), trained=True)
    record = None
    if config.data.kind != "files" or config.data.test.source:
        if not trained and kept_decoding(store, run_id, config) is None:
            log.begin("decode", timing=timing)
        lend = None
        if not config.distribution.whole_model:
            from nmt.training.lent import lent_model

            lend = partial(lent_model, config, store, run_id, log.attempt.number)
        record = evaluate_run(
            store, run_id, config=config, progress=partial(observer.working, "decoding the test split"), lend=lend
        )
    state = str(result["state"])
    store.set_status(run_id, dataclasses.replace(store.status(run_id), state=state, error=""))
    return RunOutcome(run_id, state, str(result["reason"]), trained, record)


@dataclass(frozen=True, kw_only=True)
class TrainOptions:
    """What `nmt train` takes beside config overrides."""

    dry_run: bool = option(False, "print the resolved configuration and its identity, and train nothing")


def main(argv: Sequence[str]) -> int:
    """Train one run, or with `-m` several, as the command line asks; returns the exit code."""
    words = [word for word in argv if word not in MULTIRUN]
    options, overrides = parse(
        TrainOptions,
        words,
        verb="nmt train",
        summary="Train one run, resume it where it was interrupted, and decode the test split with its best "
        "checkpoint. A run that is finished is left as it is. With -m (--multirun), a key may have several values, "
        "a,b or choice(a,b) or range(1,4) or glob(t2_*), and every combination is trained.",
        epilog=_help_on_config(),
        rest=True,
    )
    if len(words) < len(argv):
        from nmt.multirun import run_jobs

        return run_jobs(overrides, dry_run=options.dry_run)
    config = compose(overrides)
    run_id = run_id_of(config)
    if options.dry_run:
        print(to_yaml(config), end="")
        print(f"# run {run_id}")
        return 0
    return EXIT_CODES[train_in_foreground(config).state]


def train_in_foreground(config: RunConfig) -> RunOutcome:
    """`train` before somebody's eyes: progress on stderr, test scores on stdout, and a tracker beside it."""
    from rich.console import Console

    from nmt import registry
    from nmt.environment import available_cores
    from nmt.processes import lone_timing
    from nmt.training.console import ConsoleObserver
    from nmt.training.observers import Observers, TrackerObserver

    console = Console(stderr=True)
    store = LocalRunStore(config.paths.runs)
    run_id = run_id_of(config)
    console.print(f"run {run_id} in {store.directory(run_id)}", highlight=False, soft_wrap=True)
    tracker = registry.lookup("tracker", config.tracking.name, "tracking.name")(config, store)
    try:
        outcome = train(
            config,
            timing=lone_timing(config, available_cores()),
            observer=Observers([ConsoleObserver(console), TrackerObserver(tracker)]),
        )
    finally:
        tracker.close()
    if outcome.state == "interrupted":
        console.print("interrupted; the same command goes on from the checkpoint that was just written")
        return outcome
    if not outcome.trained:
        console.print("already trained; nothing was done (another `seed` is another replicate)")
    if outcome.state == "diverged":
        console.print(f"[red]diverged[/]: {outcome.error}")
    record = outcome.record
    if record:
        print(_scores(record, config.validation.metric))
        further = f"nmt translate run={run_id}   nmt evaluate run={run_id} search=beam10"
        console.print(f"next: {further}", highlight=False, soft_wrap=True)
    return outcome


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
        if group not in NOT_CONFIG:
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
        "  nmt train -m experiment=baseline,t2_lstm seed=1,2",
    ]
    return "\n".join(lines)
