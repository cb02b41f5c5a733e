"""How all runs of a directory stand, and the sweeps that asked for them: read at once, without Hydra or torch."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nmt.archives import ArchivedRunStore
from nmt.errors import UserError
from nmt.runs import LocalRunStore, RunStatus
from sweeps.launches import Launch, read_launches

ORDER = ("running", "failed", "interrupted", "queued", "diverged", "finished")  # what asks for attention first


@dataclass(frozen=True)
class SurveyedRun:
    """A run: the label that a sweep or its own configuration gives it, and its status."""

    run_id: str
    label: str
    status: RunStatus


@dataclass(frozen=True)
class SurveyedSweep:
    """A sweep: how many of its runs are in which state, and how many steps they have made of all that they are to make.

    Runs that several rows share count once.
    """

    name: str
    title: str
    rows: int
    states: Mapping[str, int]
    steps: int
    max_steps: int

    @property
    def runs(self) -> int:
        """Distinct runs that the sweep consists of."""
        return sum(self.states.values())


@dataclass(frozen=True)
class Survey:
    """Sweeps by name; runs with those first that ask for attention."""

    sweeps: Sequence[SurveyedSweep]
    runs: Sequence[SurveyedRun]

    def record(self) -> dict[str, Any]:
        """As plain data, for `json=true`."""
        return {
            "sweeps": [dataclasses.asdict(sweep) | {"runs": sweep.runs} for sweep in self.sweeps],
            "runs": [
                {"run_id": run.run_id, "label": run.label}
                | {name: value for name, value in dataclasses.asdict(run.status).items() if name != "format_version"}
                for run in self.runs
            ],
        }


def survey(root: Path, sweep: str = "") -> Survey:
    """Look at every run in `root`, or at those of one sweep (`<name>`, or `<name>@<scale>`).

    Damaged files are set aside and named in the log (`nmt.records`); a run that cannot be read, say because a later
    version wrote it, counts as failed with that reason. Raises UserError for a directory that is not there and a sweep
    that was never started there.
    """
    if not root.is_dir():
        raise UserError("there is no such directory", where=str(root), hint="runs=DIR or NMT_RUNS says where runs are")
    launches = read_launches(root)
    if sweep:
        known = [launch.name for launch in launches]
        launches = [launch for launch in launches if sweep in (launch.name, launch.name.rpartition("@")[0])]
        if not launches:
            raise UserError("was not started here", where=f"sweep={sweep}", allowed=known or None)
    store = ArchivedRunStore(root, dict.fromkeys(path for launch in launches for path in launch.archives))
    labels: dict[str, str] = {}
    budgets: dict[str, int] = {}
    for launch in launches:
        for row in launch.rows:
            for run_id in row.run_ids:
                labels.setdefault(run_id, row.label)
                budgets.setdefault(run_id, row.max_steps)
    run_ids = list(labels) if sweep else list(dict.fromkeys([*labels, *store.list_runs()]))
    statuses = {run_id: _status(store, run_id, budgets.get(run_id, 0)) for run_id in run_ids}
    runs = [
        SurveyedRun(run_id, labels.get(run_id) or _own_label(store.directory(run_id)), statuses[run_id])
        for run_id in run_ids
    ]
    runs.sort(key=lambda run: ORDER.index(run.status.state))
    return Survey([_sweep(launch, statuses) for launch in launches], runs)


def _status(store: LocalRunStore, run_id: str, max_steps: int) -> RunStatus:
    try:
        status = store.status(run_id)
    except UserError as error:
        return RunStatus(state="failed", error=str(error), max_steps=max_steps)
    return status if status.max_steps else dataclasses.replace(status, max_steps=max_steps)


def _sweep(launch: Launch, statuses: Mapping[str, RunStatus]) -> SurveyedSweep:
    run_ids = dict.fromkeys(run_id for row in launch.rows for run_id in row.run_ids)
    own = [statuses[run_id] for run_id in run_ids]
    # One that stopped early, by patience or divergence, has nothing left to do.
    totals = [status.step if status.state in ("finished", "diverged") else status.max_steps for status in own]
    counts = Counter(status.state for status in own)
    return SurveyedSweep(
        name=launch.name,
        title=launch.title,
        rows=len(launch.rows),
        states={state: counts[state] for state in ORDER if counts[state]},
        steps=sum(status.step for status in own),
        max_steps=sum(totals),
    )


def _own_label(directory: Path) -> str:
    """The label in a run's configuration: its first line, since parsing 500 YAML files takes seconds."""
    try:
        with (directory / "config.yaml").open(encoding="utf-8") as file:
            key, _, value = file.readline().partition(":")
    except (OSError, ValueError):
        return ""
    return value.strip().strip("'\"") if key == "label" else ""
