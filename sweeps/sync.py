"""`nmt sync`: MLflow's view rebuilt from the run directories, as often as one likes."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nmt.arguments import option, parse
from nmt.errors import UserError
from nmt.runs import LocalRunStore, check_format, runs_directory
from sweeps.tracking_store import (
    StoreLock,
    artifact_root,
    open_client,
    plain_words,
    reason,
    require_mlflow,
    resolve_uri,
    sqlite_path,
)

INCOMPLETE = 1  # exit code where something was left out
EXAMPLES = """\
Examples:
  nmt sync
  nmt sync sweep=quickstart runs=/data/runs
  nmt sync uri=http://127.0.0.1:5000
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


@dataclass(frozen=True)
class _Plan:
    """An experiment to mirror: its name, the groups in it, and a report's files to attach."""

    experiment: str
    groups: Sequence[Any]
    files: Sequence[Path] = ()


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
        f"{uri}: {len(counts.runs)} runs of {counts.configurations} configurations in {counts.experiments} "
        f"experiments, {counts.points} new points of curves, {len(counts.damaged)} left out\n"
    )
    return INCOMPLETE if counts.damaged else 0


def synchronise(runs: Path, uri: str, sweep: str = "") -> Counts:
    """Mirror every sweep that has a report in `runs`, and the runs that are in none; or one sweep alone.

    Raises UserError where another process writes to the store, where it cannot be reached, and for an unknown sweep.
    """
    from sweeps.mirror import ExperimentMirror

    store, counts = LocalRunStore(runs), Counts()
    plans = list(_sweeps(runs, sweep, counts))
    if sweep and not plans:
        known = sorted({path.parent.name for path in runs.glob("reports/*/sweep.json")})
        raise UserError(f"no report of a sweep '{sweep}'", where=str(runs / "reports"), allowed=known or None)
    if not sweep:
        plans += _lone_runs(store, plans, counts)
    lock = StoreLock(uri, runs)
    try:
        if not lock.acquire():
            raise UserError(f"{lock.holder()} is writing to it", where=uri, hint="try again when that has ended")
        client = open_client(uri)
        for plan in plans:
            mirror = ExperimentMirror(client, store, plan.experiment, plan.groups, artifact_root(uri))
            mirror.update()
            for path in plan.files:
                mirror.attach(path)
            counts.experiments += 1
            counts.configurations += len(plan.groups)
            counts.points += mirror.points
            counts.runs |= {run_id for group in plan.groups for run_id in group.run_ids} - mirror.damaged.keys()
            counts.damaged |= mirror.damaged
    except UserError:
        raise
    except Exception as error:  # a server, a database, a network: whatever they raise, there is one thing to say
        database = sqlite_path(uri)
        hint = f"it holds nothing that the runs do not: remove {database} and try again" if database else None
        raise UserError(f"cannot be written: {reason(error)}", where=uri, hint=hint) from error
    finally:
        lock.release()
    return counts


def _sweeps(runs: Path, only: str, counts: Counts) -> Iterator[_Plan]:
    from nmt.config import from_dict
    from sweeps.mirror import ConfigurationGroup
    from sweeps.tracking import sweep_experiment

    for path in sorted(runs.glob("reports/*/sweep.json")):
        try:
            record = _read(path)
            name = record["sweep"]["name"]
            groups = [
                ConfigurationGroup(
                    row["label"], row["train_id"], [one["run_id"] for one in row["replicates"]], row["config"]
                )
                for row in record["rows"]
            ]
            for group in groups:
                from_dict(group.config)  # a report that cannot be read is left out before anything is written
            experiment = sweep_experiment(name, record["scale"])
        except (UserError, KeyError, TypeError) as error:
            what = str(error) if isinstance(error, UserError) else "does not hold a sweep's rows"
            counts.damaged[str(path)] = f"{what}; the same `nmt sweep` writes it anew"
            continue
        if only in ("", name):
            names = ("table.md", "table.csv", "figure.png", "sweep.json")
            yield _Plan(experiment, groups, [path.with_name(one) for one in names if path.with_name(one).is_file()])


def _lone_runs(store: Any, plans: Sequence[_Plan], counts: Counts) -> list[_Plan]:
    """Runs that no sweep asked for, by scale and configuration."""
    from nmt.config import load_run_config, to_dict
    from sweeps.mirror import ConfigurationGroup
    from sweeps.tracking import lone_experiment

    claimed = {run_id for plan in plans for group in plan.groups for run_id in group.run_ids}
    experiments: dict[str, dict[str, list[str]]] = {}
    configs: dict[str, Any] = {}
    for run_id in store.list_runs():
        if run_id in claimed:
            continue
        try:
            config = load_run_config(store.directory(run_id) / "config.yaml")
        except UserError as error:
            counts.damaged[run_id] = str(error)
            continue
        train_id = run_id.partition("/")[0]
        configs.setdefault(train_id, config)
        rows = experiments.setdefault(lone_experiment(configs[train_id].scale.name), {})
        rows.setdefault(train_id, []).append(run_id)
    return [
        _Plan(
            experiment,
            [
                ConfigurationGroup(configs[name].label or name, name, ids, to_dict(configs[name]))
                for name, ids in rows.items()
            ],
        )
        for experiment, rows in experiments.items()
    ]


def _read(path: Path) -> Mapping[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot be read ({error})") from error
    check_format(record, path)
    return dict(record)
