"""`nmt sync`: MLflow's view rebuilt from the run directories, as often as one likes."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nmt.archives import ArchivedRunStore
from nmt.arguments import option, parse
from nmt.errors import UserError
from nmt.passwords import without_password
from nmt.runs import LocalRunStore, runs_directory
from sweeps.tracking.store import StoreLock, artifact_root, open_client, plain_words, require_mlflow, resolve_uri
from sweeps.tracking.store_errors import reason, store_error

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

    from sweeps.tracking.mirror import ExperimentMirror
    from sweeps.tracking.mirrored_search import SearchMirror

INCOMPLETE = 1  # exit code where something was left out
EXAMPLES = """\
Examples:
  nmt sync
  nmt sync sweep=quickstart runs=/data/runs
  nmt sync uri=http://127.0.0.1:5000
  PGPASSWORD=... nmt sync uri=postgresql://ann@host/runs
"""


@dataclass(frozen=True, kw_only=True)
class SyncOptions:
    """Command line of `nmt sync`."""

    runs: str = option("", "directory of runs; unset: NMT_RUNS, or runs")
    uri: str = option("", "tracking store; unset: the sqlite file in the directory of runs")
    sweep: str = option("", "only this sweep, at every scale; unset: all sweeps and all other runs")


@dataclass
class Counts:
    """What a synchronisation did. `damaged` holds what was left out, and why."""

    experiments: int = 0
    configurations: int = 0
    runs: set[str] = field(default_factory=set)
    points: int = 0
    damaged: dict[str, str] = field(default_factory=dict)

    def add(self, mirror: ExperimentMirror | SearchMirror, run_ids: set[str]) -> None:
        """Count what a mirror has done with these runs."""
        self.experiments += 1
        self.points += mirror.points
        self.runs |= run_ids - mirror.damaged.keys()
        self.damaged |= mirror.damaged


@dataclass(frozen=True)
class _Plan:
    """An experiment to mirror: its name, the groups in it, a report's files, and whether to register its best run.

    `archives` are folders in which some of its runs may be.
    """

    experiment: str
    groups: Sequence[Any]
    files: Sequence[Path] = ()
    register: bool = False
    archives: Sequence[Path] = ()


def main(argv: Sequence[str]) -> int:
    """Synchronise as the command line asks; returns 0, or 1 where a damaged run or report was left out."""
    options = parse(
        SyncOptions,
        plain_words(argv),
        verb="nmt sync",
        summary="Bring MLflow up to date with the run directories. Doing it twice changes nothing.",
        epilog=EXAMPLES,
    )
    require_mlflow()
    runs = runs_directory(options.runs)
    if not runs.is_dir():
        raise UserError("there is no such directory", where=str(runs), hint="runs=DIR or NMT_RUNS says where runs are")
    uri = resolve_uri(options.uri, runs)
    counts = synchronise(runs, uri, options.sweep)
    for name, why in sorted(counts.damaged.items()):
        sys.stderr.write(f"left out {name}: {why}\n")
    sys.stdout.write(
        f"{without_password(uri)}: {len(counts.runs)} runs of {counts.configurations} configurations in "
        f"{counts.experiments} experiments, {counts.points} new points of curves, {len(counts.damaged)} left out\n"
    )
    return INCOMPLETE if counts.damaged else 0


def synchronise(runs: Path, uri: str, sweep: str = "") -> Counts:
    """Mirror every sweep and search that was started in `runs`, and all other runs; or one sweep alone.

    Raises UserError where another process writes to the store, where it cannot be reached, and for an unknown sweep.
    """
    from sweeps.tracking.reaping import reap

    counts = Counts()
    plans = list(_sweeps(runs, sweep, counts.damaged))
    store = ArchivedRunStore(runs, dict.fromkeys(path for plan in plans for path in plan.archives))
    lock = StoreLock(uri, runs)
    try:
        if not lock.acquire():
            hint = "try again when that has ended"
            raise UserError(f"{lock.holder()} is writing to it", where=without_password(uri), hint=hint)
        client, artifacts = open_client(uri), artifact_root(uri, runs)
        reap(client, store)  # before mirrors read statuses
        for plan in plans:
            _carry_out(plan, client, store, artifacts, counts)
        if not sweep:
            claimed = {run_id for plan in plans for group in plan.groups for run_id in group.run_ids}
            claimed |= _mirror_searches(client, store, artifacts, counts)
            for plan in _lone_runs(store, claimed, counts.damaged):
                _carry_out(plan, client, store, artifacts, counts)
    except UserError:
        raise
    except Exception as error:  # a server, a database, a network: whatever they raise, there is one thing to say
        raise store_error(error, uri) from error
    finally:
        lock.release()
    return counts


def _carry_out(plan: _Plan, client: MlflowClient, store: LocalRunStore, artifacts: Path | None, counts: Counts) -> None:
    from sweeps.tracking.mirror import ExperimentMirror

    mirror = ExperimentMirror(client, store, plan.experiment, plan.groups, artifacts)
    mirror.update()
    for path in plan.files:
        mirror.attach(path)
    counts.configurations += len(plan.groups)
    counts.add(mirror, {run_id for group in plan.groups for run_id in group.run_ids})
    if plan.register:
        _register(client, store, plan, counts)


def _mirror_searches(client: MlflowClient, store: LocalRunStore, artifacts: Path | None, counts: Counts) -> set[str]:
    """Mirror the trials of every search; returns their run ids."""
    from sweeps.tracking.mirrored_search import SearchMirror, searches

    trials: set[str] = set()
    for directory, experiment in searches(store):
        mirror = SearchMirror(client, store, directory, experiment, artifacts)
        mirror.update()
        counts.configurations += len(mirror.run_ids)
        counts.add(mirror, mirror.run_ids)
        trials |= mirror.run_ids
    return trials


def _register(client: MlflowClient, store: LocalRunStore, plan: _Plan, counts: Counts) -> None:
    from sweeps.tracking.registered_model import register_best

    try:
        register_best(client, store, plan.experiment, plan.groups)
    except Exception as error:  # a server may have no registry, and shows the runs all the same
        why = str(error) if isinstance(error, UserError) else reason(error)
        counts.damaged[f"the model of {plan.experiment}"] = why


def _sweeps(runs: Path, only: str, damaged: dict[str, str]) -> Iterator[_Plan]:
    from sweeps.tracking.tracked_sweeps import tracked_sweeps

    found = list(tracked_sweeps(runs, damaged))
    chosen = [sweep for sweep in found if only in ("", sweep.name, sweep.experiment)]
    if only and not chosen:
        known = [sweep.experiment for sweep in found]
        raise UserError(f"no sweep '{only}' was started here", where=str(runs), allowed=known or None)
    for sweep in chosen:
        register = bool(sweep.groups) and sweep.groups[0].run_config.tracking.register == "best"
        yield _Plan(sweep.experiment, sweep.groups, sweep.files, register, sweep.archives)


def _lone_runs(store: LocalRunStore, claimed: Collection[str], damaged: dict[str, str]) -> Iterator[_Plan]:
    """Runs that neither a sweep nor a search asked for, by scale and configuration."""
    from nmt.config import load_run_config
    from sweeps.tracking.mirror import ConfigurationGroup
    from sweeps.tracking.names import lone_experiment

    experiments: dict[str, dict[str, list[str]]] = {}
    configs: dict[str, Any] = {}
    for run_id in store.list_runs():
        if run_id in claimed:
            continue
        name = run_id.partition("/")[0]
        try:
            if name not in configs:
                configs[name] = load_run_config(store.directory(run_id) / "config.yaml")
        except UserError as error:
            damaged[run_id] = str(error)
            continue
        experiments.setdefault(lone_experiment(configs[name].scale.name), {}).setdefault(name, []).append(run_id)
    for experiment, rows in experiments.items():
        yield _Plan(
            experiment,
            [
                ConfigurationGroup.of(configs[name].label or name, name, run_ids, configs[name])
                for name, run_ids in rows.items()
            ],
        )
