"""`nmt train -m`: a run for every combination of the values given, handed out by a launcher of Hydra.

The words are Hydra's: `experiment=a,b seed=1,2`, `choice()`, `range()`, `glob()`; Hydra's parser and basic sweeper make
the product. All jobs are composed and validated before the first one starts. A job is the ordinary `nmt train`: the
same run ids in the same directory of runs, so what is there already is not trained again and the same command goes on
after Ctrl-C. Jobs are trained one after the other; `hydra/launcher=<executor>` spreads them as a sweep's runs are.
"""

from __future__ import annotations

import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from nmt import registry
from nmt.config import RunConfig, compose
from nmt.config.compose import CONF, HYDRA, parse_overrides, permit_new_entry, refuse_unknown_keys
from nmt.config.identity import run_id as run_id_of
from nmt.errors import UserError, did_you_mean
from nmt.runs import LocalRunStore, RunBusyError
from nmt.train import EXIT_CODES, RunOutcome, train_in_foreground

if TYPE_CHECKING:
    from hydra._internal.hydra import Hydra
    from rich.console import Console

LAUNCHERS = "sweeps.launchers:register"
# Of Hydra's own keys, those that say where jobs run. Others name classes to be called, and no config of ours does that.
LAUNCHER, LAUNCHER_KEYS = "hydra/launcher", "hydra.launcher."
OUTPUT_KEYS = ("hydra.sweep.dir", "hydra.sweep.subdir")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One combination of values: its number from 0 on, its words as Hydra composes them, those that were varied."""

    number: int
    words: tuple[str, ...]
    varied: tuple[str, ...]
    config: RunConfig
    run_id: str

    @property
    def name(self) -> str:
        """What the job is about, as it was typed."""
        return " ".join(self.varied) or self.config.label or self.run_id


@dataclass
class TrainJobs:
    """The task function that a launcher calls for each job, with the job's number in Hydra's own configuration.

    A launcher that hands the jobs to others finds them in `jobs`. `outcomes` is filled as jobs end.
    """

    jobs: Sequence[Job]
    outcomes: dict[int, RunOutcome] = field(default_factory=dict)

    def __call__(self, composed: object) -> RunOutcome:
        """Train one job in this process. Raises KeyboardInterrupt where the run was interrupted: so is the rest."""
        from hydra.core.hydra_config import HydraConfig
        from rich.console import Console

        job = self.jobs[int(HydraConfig.get().job.num)]
        Console(stderr=True).rule(f"{job.number + 1}/{len(self.jobs)} {job.name}", align="left", style="bold")
        outcome = self.outcomes[job.number] = _train(job)
        if outcome.state == "interrupted":
            raise KeyboardInterrupt
        return outcome


def run_jobs(words: Sequence[str], *, dry_run: bool = False) -> int:
    """Train every combination that `words` mean; returns the exit code.

    0 where every run is finished, else the first that holds of: 75 interrupted, 1 some failed, 3 some diverged.
    Raises UserError, before anything starts, for words that do not parse and for a job that cannot be composed.
    """
    from rich.console import Console

    own = [word for word in words if word.startswith(HYDRA)]
    _check_own_words(own)
    hydra = _hydra()
    jobs = expand([word for word in words if word not in own], hydra)
    console = Console(file=sys.stdout, soft_wrap=True, highlight=False, markup=False)
    if dry_run:
        _show(jobs, {}, console)
        return 0
    task = TrainJobs(jobs)
    try:
        _launch(task, own, hydra)
    except KeyboardInterrupt:
        interrupted = True
    else:
        interrupted = False
    states = _show(jobs, task.outcomes, console)
    if interrupted:
        console.print("interrupted; the same command goes on where the runs stopped")
        return EXIT_CODES["interrupted"]
    return max((EXIT_CODES.get(state, 1) for state in states), key=[0, 3, 1, 75].index)


def expand(words: Sequence[str], hydra: Hydra | None = None) -> list[Job]:
    """The jobs that config overrides mean, in Hydra's order: the last key varies fastest.

    Raises UserError for words that do not parse, an unknown key, and a combination that makes no sense.
    """
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
    from hydra.errors import HydraException

    refuse_unknown_keys(words)
    loader = (hydra or _hydra()).config_loader
    overrides = parse_overrides([permit_new_entry(word) for word in words], loader)
    try:
        (combinations,) = BasicSweeper.split_arguments(overrides, max_batch_size=None)
    except HydraException as error:
        hint = "choice(a,b), range(1,4) and glob(t2_*) list values; nmt sweep search_space=... draws them"
        raise UserError(str(error), where="-m", hint=hint) from error
    sweeps = [override for override in overrides if override.is_sweep_override()]
    if not combinations:
        raise UserError("stands for no value at all", where=next(str(sweep.input_line) for sweep in sweeps))
    several = {sweep.get_key_element() for sweep in sweeps}
    return [_job(number, tuple(words), several, len(combinations)) for number, words in enumerate(combinations)]


def _job(number: int, words: tuple[str, ...], several: set[str], count: int) -> Job:
    varied = tuple(word.removeprefix("++") for word in words if word.partition("=")[0] in several)
    try:
        config = compose([word.removeprefix("++") for word in words])
        run_id = run_id_of(config)
    except UserError as error:
        where = f"job {number + 1} of {count} ({' '.join(varied)})" if varied else error.where
        raise UserError(
            f"{error.where}: {error.what}" if varied and error.where else error.what,
            where=where,
            allowed=error.allowed,
            hint=error.hint,
        ) from error
    return Job(number=number, words=words, varied=varied, config=config, run_id=run_id)


def _hydra() -> Hydra:
    """Hydra over our configuration files, as an application of its own would have it."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    compose()  # so that Hydra knows the schema
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), job_name="train", version_base="1.3"):
        hydra = GlobalHydra.instance().hydra
    assert hydra is not None
    return hydra


def _check_own_words(words: Sequence[str]) -> None:
    for word in words:
        key = word.partition("=")[0]
        if key.startswith("hydra/sweeper") or key.startswith("hydra.sweeper"):
            raise UserError("is not for us", where=key, hint="nmt sweep search_space=... searches for a configuration")
        placed = key == LAUNCHER or key in OUTPUT_KEYS or key.startswith(LAUNCHER_KEYS)
        if not placed or "_target_" in word:
            raise UserError("is not taken", where=key, allowed=[LAUNCHER, f"{LAUNCHER_KEYS}<key>", *OUTPUT_KEYS])


def _launch(task: TrainJobs, own: Sequence[str], hydra: Hydra) -> None:
    """Hand the jobs to the launcher that `own` words name, Hydra's basic one without."""
    from hydra._internal.callbacks import Callbacks
    from hydra.core.plugins import Plugins
    from hydra.core.utils import JobStatus
    from hydra.errors import HydraException
    from hydra.types import HydraContext, RunMode

    registry.load(LAUNCHERS)()
    known = hydra.config_loader.get_group_options(LAUNCHER)
    for name in (word.partition("=")[2] for word in own if word.partition("=")[0] == LAUNCHER):
        if name not in known:
            raise UserError(f"unknown option '{name}'", where=LAUNCHER, allowed=known, hint=did_you_mean(name, known))
    with tempfile.TemporaryDirectory(prefix="nmt-multirun-") as directory:
        ours = [f"hydra.sweep.dir='{directory}'", "hydra.output_subdir=null"]  # a run writes into its own directory
        ours += ["hydra/job_logging=none", "hydra/hydra_logging=none", *own]
        try:
            config = hydra.compose_config("config", ours, run_mode=RunMode.MULTIRUN)
            context = HydraContext(config_loader=hydra.config_loader, callbacks=Callbacks())
            launcher = Plugins.instance().instantiate_launcher(context, task, config)
        except HydraException as error:
            raise UserError(" ".join(str(error).split()), where=LAUNCHER) from error
        returned = launcher.launch([job.words for job in task.jobs], initial_job_idx=0)
    for job, one in zip(task.jobs, returned, strict=True):
        if one.status is JobStatus.COMPLETED:
            task.outcomes[job.number] = one.return_value


def _train(job: Job) -> RunOutcome:
    """What became of the job; an error is an outcome too, told as it comes."""
    try:
        return train_in_foreground(job.config)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return RunOutcome(job.run_id, "running" if isinstance(error, RunBusyError) else "failed", str(error))
    except Exception as error:
        traceback.print_exc()
        return RunOutcome(job.run_id, "failed", f"{type(error).__name__}: {error}".splitlines()[0])


def _show(jobs: Sequence[Job], outcomes: dict[int, RunOutcome], console: Console) -> list[str]:
    """Print how many jobs there are of each state, and a line for each; returns the states.

    A job that nobody reported on is what its run directory says.
    """
    from nmt.evaluate import kept_decoding
    from nmt.evaluation.catalogue import key

    lines: list[tuple[str, ...]] = []
    first: dict[str, int] = {}
    for job in jobs:
        store = LocalRunStore(job.config.paths.runs)
        status = store.status(job.run_id)
        outcome = outcomes.get(job.number) or RunOutcome(job.run_id, status.state, status.error)
        result = outcome.error
        if outcome.state == "finished":
            metric = job.config.validation.metric
            score = ((kept_decoding(store, job.run_id, job.config) or {}).get("metrics") or {}).get(key("test", metric))
            result = "" if score is None else f"{metric} {score:.2f}"
        elsewhere = first.setdefault(job.run_id, job.number)
        same = f" (the run of job {elsewhere + 1})" if elsewhere != job.number else ""
        lines.append((f"{job.number + 1}/{len(jobs)}", job.run_id, outcome.state, job.name + same, result))
    counts = Counter(state for _, _, state, _, _ in lines)
    summary = ", ".join(f"{count} {state}" for state, count in counts.items())
    console.print(f"{len(jobs)} job{'s' if len(jobs) > 1 else ''}: {summary}")
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        console.print("  ".join(f"{text:<{width}}" for text, width in zip(line, widths, strict=True)).rstrip())
    return [state for _, _, state, _, _ in lines]
