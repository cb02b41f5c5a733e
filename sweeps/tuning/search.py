"""`nmt sweep search_space=...`: try configurations, stop those that fall behind, and train the best in replicates.

For people who look for a good configuration; a study of a factor takes a grid. A trial is a run like any other: its id
is the hash of its configuration, so it is shared with sweeps, and one that was stopped can be continued. The finalists
are rows of an ordinary sweep, with seeds that no trial has had: what chose them does not judge them too.
"""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from nmt.config import RunConfig, train_id
from nmt.config.compose import groups
from nmt.config.identity import digest
from nmt.errors import UserError
from nmt.runs import LocalRunStore, RunBusyError
from nmt.training.tracker import NoTracker, Tracker
from sweeps.ad_hoc import row_of
from sweeps.folder import FOLDER
from sweeps.rows import compose_row
from sweeps.saved import place_of, save_spec, to_yaml
from sweeps.screen import near, say
from sweeps.spec import RowSpec, SweepSpec
from sweeps.tuning.samplers import Assignments, make_sampler, text_of
from sweeps.tuning.space import Asha, Choice, SearchSpec, check_trial_words, load_space
from sweeps.tuning.trials import TrialResult, Trials, table_of
from sweeps.words import read_replicates, split_places, take

if TYPE_CHECKING:
    from rich.console import Console

RunSweep = Callable[[SweepSpec, list[str], list[str]], int]  # spec, overrides, words that ask for it again

SHOWN = 12  # lines of the table of trials on screen; trials.csv has all
STOPPING_STAGES = 2  # reductions between the first rung that is set where none is given and the end of the budget


@dataclass(frozen=True, kw_only=True)
class Search:
    """A search that was checked: its spec with all words of the command line laid over it.

    `here` are the words that only say where it runs. `config` is the configuration that the trials vary, and `asha` how
    they are stopped.
    """

    spec: SearchSpec
    here: tuple[str, ...]
    config: RunConfig
    asha: Asha | None

    @property
    def store(self) -> LocalRunStore:
        """Where the runs are."""
        return LocalRunStore(self.config.paths.runs)

    @property
    def trials_directory(self) -> Path:
        """Where the proposals are kept: another space, sampler or set of overrides has another."""
        spec = self.spec
        asked = {
            "space": {key: dataclasses.asdict(dimension) for key, dimension in spec.space.items()},
            "experiment": spec.experiment,
            "overrides": list(spec.overrides),
            "sampler": [spec.sampler, spec.seed],
            "asha": None if self.asha is None else dataclasses.asdict(self.asha),
            "base": train_id(self.config),  # whatever files and code make of it
        }
        return self.store.root / FOLDER / f"{spec.name}-{digest(asked)[:6]}.trials"

    @property
    def reports(self) -> Path:
        """Directory of the table of trials, and of the finalists as a sweep."""
        paths = self.config.paths
        root = Path(paths.reports) if paths.reports else Path(paths.runs) / "reports"
        return root.expanduser().resolve() / self.spec.name

    def trial_config(self, assignments: Assignments) -> RunConfig:
        """The configuration of a proposal. Raises UserError where it is none."""
        return _compose(self.spec, row_of(assignments, self.spec.experiment), self.here)

    def trials(self, say: Callable[[str], None]) -> Trials:
        """The trials so far, ready for more. Raises UserError where the sampler needs what is not installed."""
        return Trials(
            self.trials_directory,
            self.store,
            self.config.validation.metric,
            self.spec,
            make_sampler(self.spec),
            self.trial_config,
            say,
        )


def make_search(
    text: str, words: Sequence[str], trials: int | None, finalists: int | None, sampler: str | None
) -> Search:
    """The search that `search_space=<text>` and the rest of the command line mean.

    Raises UserError for what is unknown or contradicts itself, before anything is started.
    """
    spec = load_space(text)
    here, shared = split_places(words)
    experiment, shared = take(shared, "experiment")
    replicates, shared = take(shared, "replicates")
    if "=" in text and not experiment and "experiment" not in spec.space:
        allowed = groups()["experiment"]
        raise UserError("is needed with an inline search space", where="experiment", allowed=allowed)
    check_trial_words([*shared, *([f"experiment={experiment}"] if experiment else [])], spec)
    spec = dataclasses.replace(
        spec,
        experiment=experiment or spec.experiment,
        overrides=(*spec.overrides, *shared),
        trials=spec.trials if trials is None else trials,
        finalists=spec.finalists if finalists is None else finalists,
        sampler=sampler or spec.sampler,
        replicates=read_replicates(replicates) or spec.replicates,
    )
    first = tuple((key, dimension.at(0.0)) for key, dimension in spec.space.items())
    config = _compose(spec, row_of(first, spec.experiment), here)
    if config.executor.name != "ray_tune":
        raise UserError(
            "trials are stopped by Ray Tune's scheduler", where=f"executor={config.executor.name}", allowed=["ray_tune"]
        )
    return Search(spec=spec, here=tuple(here), config=config, asha=_asha(spec, config, inline="=" in text))


def run_search(search: Search, save: str, console: Console, run: RunSweep) -> int:
    """Train the trials that are missing, show them, and hand the finalists to `run`; returns its exit code.

    `save` names a file for the finalists' sweep, besides the one among the reports. Returns 75 where a signal cut the
    trials short. Raises UserError where another process is at the same search.
    """
    spec = search.spec
    make_sampler(spec)  # what is not installed, and a name that is none, are told now
    if save:
        place_of(save)

    tell = partial(say, console)
    tell(f"{spec.name}: {spec.title}")
    try:
        with search.store.claim(search.trials_directory.relative_to(search.store.root).as_posix()):
            trials = search.trials(tell)
            tell(_intention(search, trials))
            interrupted = _complete(search, trials, tell)
            trials = search.trials(tell)  # as the process that ran them left them
    except RunBusyError as error:
        hint = "wait for it, or stop it; the same command then goes on"
        raise UserError("another process is at this search", where=f"search_space={spec.name}", hint=hint) from error
    results = trials.results()
    _report(search, results)
    console.print(_table(results, trials.metric))
    tell(f"trials          {near(search.reports / 'trials.csv')}, with every run id")
    if interrupted:
        tell("interrupted; the same command goes on where the trials stopped")
        return 75
    best = trials.best(spec.finalists)
    return _run_finalists(search, best, save, tell, run) if best else 0


def _complete(search: Search, trials: Trials, say: Callable[[str], None]) -> bool:
    """Train what is missing of the trials; whether a signal, or the loss of the cluster, cut that short."""
    from sweeps.executors.ray_process import ClusterLostError
    from sweeps.executors.ray_search import execute

    if len(trials.trials) >= trials.count and all(map(trials.is_over, trials.trials)):
        return False
    tracker = _open_tracker(search)
    try:
        execute(search, say, tracker.poll)
    except KeyboardInterrupt:
        return True
    except ClusterLostError as error:
        say(f"error: {error}")
        return True
    finally:
        tracker.close()
    return False


def _open_tracker(search: Search) -> Tracker:
    """What mirrors the trials while they run; only MLflow knows how to show a search."""
    tracking = search.config.tracking
    if tracking.name != "mlflow":
        return NoTracker()
    from sweeps.tracking.tracker import open_for_search

    spec, scale = search.spec, search.config.scale.name
    return open_for_search(spec.name, scale, search.trials_directory, search.store, tracking.uri)


def _run_finalists(
    search: Search, best: Sequence[TrialResult], save: str, say: Callable[[str], None], run: RunSweep
) -> int:
    sweep = finalists_sweep(search, best)
    path = search.reports / f"{sweep.name}.yaml"
    path.write_text(f"# nmt sweep sweep={path.name}\n{to_yaml(sweep)}", encoding="utf-8")
    if save:
        path = place_of(save)
        sweep = dataclasses.replace(sweep, name=path.stem)
        save_spec(path, sweep, [f"search_space={search.spec.name}"])
    again, seed = save or near(path), search.config.seed
    say(f"finalists       nmt sweep sweep={again}, with seeds from {seed + 1} on: every trial had seed {seed}")
    return run(sweep, list(search.here), [f"sweep={again}", *search.here])


def finalists_sweep(search: Search, best: Sequence[TrialResult]) -> SweepSpec:
    """The best trials as rows of a sweep, whose first seed is the one after the trials'."""
    spec = search.spec
    overrides = [*take(spec.overrides, "seed")[1], f"seed={search.config.seed + 1}"]
    return SweepSpec(
        name=f"{spec.name}-finalists",
        title=f"{spec.title}: the best {len(best)} of {spec.trials} trials",
        rows=tuple(row_of(one.trial.assignments, spec.experiment) for one in best),
        replicates=spec.replicates,
        overrides=tuple(overrides),
    )


def show_search(search: Search, console: Console) -> None:
    """Print what the search would do, and start nothing."""
    spec, intention = search.spec, _intention(search, search.trials(lambda line: None))
    say(console, f"{spec.name}: {spec.title}")
    table = Table()
    for name in ("varied", "values", "how many"):
        table.add_column(name, no_wrap=True, justify="right" if name == "how many" else "left")
    for key, dimension in spec.space.items():
        if isinstance(dimension, Choice):
            values = ", ".join(dimension.values)
        else:
            scale = ", logarithmic" if dimension.log else f", step {dimension.step:g}" if dimension.step else ""
            values = f"{dimension.low:g} to {dimension.high:g}{scale}"
        table.add_row(key, values, f"{dimension.size:g}")
    console.print(table)
    steps = spec.trials * search.config.training.max_steps
    lines = [
        intention,
        f"at most {steps:,} steps in trials, then {spec.finalists} finalists in replicates; nothing was started",
    ]
    for line in lines:
        say(console, line)


def _compose(spec: SearchSpec, row: RowSpec, here: Sequence[str]) -> RunConfig:
    sweep = SweepSpec(name=spec.name, title=spec.title, rows=(row,), overrides=spec.overrides)
    return compose_row(sweep, row, here, set(groups()))


def _asha(spec: SearchSpec, config: RunConfig, inline: bool) -> Asha | None:
    """How trials are stopped; in line, from the first evaluation on or a ninth of the budget, whichever comes later."""
    every, budget = config.validation.every_steps, config.training.max_steps
    asha = spec.asha
    if inline:
        reduction = Asha(first_rung=1).reduction
        asha = Asha(first_rung=max(every, budget // reduction**STOPPING_STAGES, 1), reduction=reduction)
    if asha and not inline and (asha.first_rung >= budget or every >= budget):
        raise UserError(
            f"no trial could be stopped: first rung {asha.first_rung}, evaluations every {every} of {budget} steps",
            where="asha.first_rung",
            hint="lower it and validation.every_steps, or leave asha out",
        )
    return asha


def _intention(search: Search, trials: Trials) -> str:
    spec, asha = search.spec, search.asha
    there = sum(trials.is_over(trial) for trial in trials.trials)
    rungs = asha.rungs(search.config.training.max_steps) if asha else []
    stops = f"the best 1/{asha.reduction} go on at steps {', '.join(map(str, rungs))}" if asha and rungs else "no stops"
    known = f", {there} of them over" if there else ""
    number = max(trials.count, len(trials.trials))
    return f"{number} trials{known}, sampler={spec.sampler}, {stops}; {spec.finalists} finalists"


def _report(search: Search, results: Sequence[TrialResult]) -> None:
    records: list[dict[str, Any]] = table_of(results, search.config.validation.metric)
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(records[0]) if records else ["rank"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    try:
        search.reports.mkdir(parents=True, exist_ok=True)
        (search.reports / "trials.csv").write_text(out.getvalue(), encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot be written: {error.strerror}", where=str(search.reports)) from error


def _table(results: Sequence[TrialResult], metric: str) -> Table:
    table = Table()
    for name in ("trial", "step", f"val {metric}"):
        table.add_column(name, no_wrap=True, justify="right")
    for name in ("state", "values"):
        table.add_column(name, no_wrap=name == "state")
    for one in results[:SHOWN]:
        best = "" if one.best is None else f"{one.best:.2f}"
        table.add_row(str(one.trial.number), str(one.step), best, one.state, text_of(one.trial.assignments))
    return table
