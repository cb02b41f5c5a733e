"""From a sweep's YAML to runs: every row composed once, every replicate looked up in the run store."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nmt.config import RunConfig, to_dict
from nmt.config.compose import groups
from nmt.config.schema import SearchConfig, SplitConfig
from nmt.errors import UserError
from nmt.runs import LocalRunStore, RunStore
from sweeps.conditions import differences_from_published
from sweeps.results import Replicate, read_replicate
from sweeps.rows import compose_row
from sweeps.spec import RowSpec, SweepSpec, refuse_row_owned
from sweeps.worker import WorkItem

SHARED_SECTIONS = ("executor", "paths", "tracking")  # where a sweep runs and reports: one answer for all rows


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One replicate of one row; `found` is what its run directory said when the plan was made."""

    label: str
    replicate: int
    config: RunConfig
    found: Replicate

    @property
    def run_id(self) -> str:
        """`<train_id>/s<seed>`."""
        return self.found.run_id

    @property
    def todo(self) -> str:
        """What is left: `nothing`, `decode` (trained, but not decoded with this search), `resume` or `train`."""
        if self.found.complete:
            return "nothing"
        if self.found.state in ("finished", "diverged"):
            return "decode"
        return "train" if self.found.state == "queued" else "resume"


@dataclass(frozen=True, kw_only=True)
class PlannedRow:
    """A row with its replicates.

    `config` has the first replicate's seed. `differs` lists in what the row's conditions differ from the published
    ones, empty where they are the same or nothing was published. `same_runs_as` is the label of an earlier row that
    resolves to the same runs, if any.
    """

    spec: RowSpec
    config: RunConfig
    runs: tuple[PlannedRun, ...]
    differs: tuple[str, ...] = ()
    same_runs_as: str | None = None

    @property
    def label(self) -> str:
        """The row's name."""
        return self.spec.label


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """All that a sweep consists of. `overrides` are the command line's; the runs live in `store`.

    `left_out` holds rows that another corpus than the published one makes void: they ask for a further test set, which
    it does not have, of a configuration that stands in the plan already.
    """

    spec: SweepSpec
    rows: tuple[PlannedRow, ...]
    store: LocalRunStore
    overrides: tuple[str, ...] = ()
    left_out: tuple[RowSpec, ...] = ()

    @property
    def name(self) -> str:
        """The sweep's name."""
        return self.spec.name

    @property
    def config(self) -> RunConfig:
        """A configuration whose `executor`, `paths` and `tracking` go for the whole sweep."""
        return self.rows[0].config

    @property
    def runs(self) -> list[PlannedRun]:
        """Every replicate of every row, first replicates first: a sweep cut short has something to show in each row."""
        planned = [run for row in self.rows for run in row.runs]
        return sorted(planned, key=lambda run: run.replicate)

    @property
    def reports(self) -> Path:
        """Directory of the sweep's table and picture."""
        paths = self.config.paths
        root = Path(paths.reports) if paths.reports else Path(paths.runs) / "reports"
        return root.expanduser().resolve() / self.name

    @property
    def missing(self) -> list[PlannedRun]:
        """The replicates that are not complete."""
        return [run for run in self.runs if not run.found.complete]

    def work_items(self) -> list[WorkItem]:
        """What an executor is to do: one item a run id, with a configuration for each decoding that is asked of it."""
        items: dict[str, list[PlannedRun]] = {}
        for run in self.missing:
            same_run = items.setdefault(run.run_id, [])
            if all(_decoding(run.config) != _decoding(other.config) for other in same_run):
                same_run.append(run)
        return [
            WorkItem(
                title=f"{runs[0].label} · seed {runs[0].config.seed}",
                run_ids=tuple(run.run_id for run in runs),
                configs=tuple(to_dict(run.config) for run in runs),
            )
            for runs in items.values()
        ]


def make_plan(spec: SweepSpec, overrides: Sequence[str], conf: Path | None = None) -> SweepPlan:
    """Compose each row, vary the seed, and look up every run in the store that the configuration names.

    Raises UserError, naming the row, for what does not compose.
    """
    refuse_row_owned(tuple(overrides), "command line")
    known_groups = set(groups(conf))
    composed = [(row, compose_row(spec, row, overrides, known_groups, conf)) for row in spec.rows]
    first_row, first = composed[0]
    for row, config in composed:
        _same_everywhere(first_row, first, row, config)
    left_out = [row for row, config in composed if _is_void(row, config, spec)]
    store = LocalRunStore(first.paths.runs)
    rows: list[PlannedRow] = []
    for row, config in composed:
        if row in left_out:
            continue
        runs = tuple(_planned_run(row, config, replicate, store) for replicate in range(config.replicates))
        differs = differences_from_published(row, config, spec, overrides, conf) if row.published else ()
        twin = next((other.label for other in rows if other.runs[0].run_id == runs[0].run_id), None)
        rows.append(PlannedRow(spec=row, config=config, runs=runs, differs=differs, same_runs_as=twin))
    return SweepPlan(spec=spec, rows=tuple(rows), store=store, overrides=tuple(overrides), left_out=tuple(left_out))


def _is_void(row: RowSpec, config: RunConfig, spec: SweepSpec) -> bool:
    """Whether an earlier row differs in nothing but a test set, and this corpus does not have the row's own."""
    if not row.test or row.test in config.data.tests:
        return False
    earlier = spec.rows[: spec.rows.index(row)]
    return any((r.experiment, r.overrides) == (row.experiment, row.overrides) and r.test != row.test for r in earlier)


def _decoding(config: RunConfig) -> tuple[SearchConfig, SplitConfig]:
    return config.search, config.data.test


def _planned_run(row: RowSpec, config: RunConfig, replicate: int, store: RunStore) -> PlannedRun:
    seeded = dataclasses.replace(config, seed=config.seed + replicate)
    return PlannedRun(label=row.label, replicate=replicate, config=seeded, found=read_replicate(store, seeded))


def _same_everywhere(first_row: RowSpec, first: RunConfig, row: RowSpec, config: RunConfig) -> None:
    for name in SHARED_SECTIONS:
        if getattr(first, name) != getattr(config, name):
            raise UserError(
                f"row '{row.label}' wants other settings than row '{first_row.label}'",
                where=name,
                hint="set it for all rows: in the sweep's overrides or on the command line",
            )
