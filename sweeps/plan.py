"""From a sweep's YAML to runs: every row composed once, every replicate looked up in the run store."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path

from nmt.archives import ArchivedRunStore
from nmt.config import RunConfig, to_dict, train_id
from nmt.config.compose import groups
from nmt.config.schema import SearchConfig, SplitConfig
from nmt.errors import UserError
from sweeps.apart import folder_of, own_id, placed, store_of
from sweeps.conditions import differences_from_published
from sweeps.ledger import Question, Superseded, superseded
from sweeps.results import Replicate, read_replicate
from sweeps.reuse import PresentCode
from sweeps.rows import compose_row
from sweeps.spec import RowSpec, SweepSpec, refuse_row_owned
from sweeps.until import Decision, Until, decide, split_until
from sweeps.words import take
from sweeps.worker import WorkItem

SHARED_SECTIONS = ("executor", "paths", "tracking")  # where a sweep runs and reports: one answer for all rows


@dataclass(frozen=True, kw_only=True)
class PlannedRun:
    """One replicate of one row; `found` is what its run directory said when the plan was made.

    `set_aside` names the code that made a run which does not count, and is to be set aside before it is trained anew.
    """

    label: str
    replicate: int
    config: RunConfig
    found: Replicate
    set_aside: str | None = None

    @property
    def run_id(self) -> str:
        """`<train_id>/s<seed>`, in a sweep of runs apart with their store in front."""
        return self.found.run_id

    @property
    def train_id(self) -> str:
        """Identity of the training, without a seed."""
        return own_id(self.run_id).partition("/")[0]

    @property
    def todo(self) -> str:
        """What is left: `nothing`, `decode` (trained, not decoded with this search), `resume`, `train`, or `anew`."""
        if self.found.complete:
            return "nothing"
        if self.found.state in ("finished", "diverged"):
            return "decode"
        if self.set_aside is not None:
            return "anew"
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

    @property
    def train_id(self) -> str:
        """Identity of the row's training, without a seed."""
        return self.runs[0].train_id


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """All that a sweep consists of. `overrides` are the command line's; the runs live in `store`, or beside it.

    `left_out` holds rows that another corpus than the published one makes void: they ask for a further test set, which
    it does not have, of a configuration that stands in the plan already. `superseded` are earlier configurations of the
    rows, and `code` is what runs now, to compare with what made the runs. Where `replicates=until …` was asked for,
    `until` is the rule, and `decisions` say by label how far it has come: rows then have different numbers of runs.
    `references_sha256` is the digest of the test set's references, where it is known without the corpus
    (`sweeps.packs`).
    """

    spec: SweepSpec
    rows: tuple[PlannedRow, ...]
    store: ArchivedRunStore
    overrides: tuple[str, ...] = ()
    left_out: tuple[RowSpec, ...] = ()
    superseded: tuple[Superseded, ...] = ()
    code: PresentCode = field(default_factory=PresentCode)
    references_sha256: str = ""
    reuse: str = "any"
    until: Until | None = None
    decisions: Mapping[str, Decision] = field(default_factory=dict)

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
        # Replicates differ in their seed only: the rest, some hundred values, is there once a row.
        plain = {(row.label, row.train_id): to_dict(row.config) for row in self.rows}
        items: dict[str, list[PlannedRun]] = {}
        for run in self.missing:
            same_run = items.setdefault(run.run_id, [])
            if all(_decoding(run.config) != _decoding(other.config) for other in same_run):
                same_run.append(run)
        return [
            WorkItem(
                title=f"{runs[0].label} · seed {runs[0].config.seed}",
                run_ids=tuple(run.run_id for run in runs),
                configs=tuple(
                    placed(plain[run.label, run.train_id], store_of(run.run_id)) | {"seed": run.config.seed}
                    for run in runs
                ),
            )
            for runs in items.values()
        ]


def make_plan(
    spec: SweepSpec,
    overrides: Sequence[str],
    conf: Path | None = None,
    *,
    reuse: str = "any",
    code: PresentCode | None = None,
    archives: Sequence[Path] = (),
) -> SweepPlan:
    """Compose each row, vary the seed, and look up every run in the store that the configuration names.

    `reuse` says whether runs that other code than `code`, the present one, has made count (`sweeps.reuse`). Runs that
    are complete in one of the `archives` count as if they were in the store. Work and memory grow with the rows and
    runs, and with nothing faster. With `replicates=until …` among the overrides, or in the sweep where they say nothing
    of replicates, each row has those that the results up to now ask for (`sweeps.until`). Raises UserError, naming the
    row, for what does not compose.
    """
    refuse_row_owned(tuple(overrides), "command line")
    known_groups = set(groups(conf))
    if spec.until and not take(overrides, "replicates")[0]:
        overrides = [f"replicates={spec.until}", *overrides]  # as if it had been typed: whoever asks again has it
    rule, words = split_until(overrides)
    composed = [(row, compose_row(spec, row, words, known_groups, conf)) for row in spec.rows]
    first_row, first = composed[0]
    for row, config in composed:
        _same_everywhere(first_row, first, row, config)
    left_out = _void_rows(composed)
    composed = [(row, config) for row, config in composed if row.label not in left_out]
    store, code = ArchivedRunStore(first.paths.runs, archives), code or PresentCode()
    known = code if reuse == "same_code" else None
    replicates = [_replicates(row, config, store, known, spec.apart) for row, config in composed]
    metric = first.validation.metric
    scores = {
        row.label: partial(_score, replicate, metric) for (row, _), replicate in zip(composed, replicates, strict=True)
    }
    decisions = {} if rule is None else decide(rule, scores, spec.baseline)
    rows: list[PlannedRow] = []
    labels: dict[str, str] = {}
    for (row, config), replicate in zip(composed, replicates, strict=True):
        count = decisions[row.label].replicates if rule else config.replicates
        runs = tuple(replicate(number) for number in range(count))
        differs = differences_from_published(row, config, spec, words, conf) if row.published else ()
        twin = labels.setdefault(runs[0].run_id, row.label)
        same_runs_as = None if twin == row.label else twin
        rows.append(PlannedRow(spec=row, config=config, runs=runs, differs=differs, same_runs_as=same_runs_as))
    now = {row.label: (row.train_id, row.config) for row in rows}
    return SweepPlan(
        spec=spec,
        rows=tuple(rows),
        store=store,
        overrides=tuple(overrides),
        left_out=tuple(row for row in spec.rows if row.label in left_out),
        superseded=superseded(store, Question.of(spec.name, overrides), now),
        code=code,
        reuse=reuse,
        until=rule,
        decisions=decisions,
    )


def plan_again(plan: SweepPlan) -> SweepPlan:
    """The same question asked of the runs as they are now."""
    return make_plan(plan.spec, plan.overrides, reuse=plan.reuse, code=plan.code, archives=plan.store.archives)


def _replicates(
    row: RowSpec, config: RunConfig, store: ArchivedRunStore, code: PresentCode | None, apart: bool
) -> Callable[[int], PlannedRun]:
    """Replicate i of a row, looked up once; with `code`, what other code made does not count."""
    name = f"{folder_of(config)}/{train_id(config)}" if apart else train_id(config)

    @cache
    def replicate(number: int) -> PlannedRun:
        run = _planned_run(row, config, name, number, store)
        return run if code is None else _unless_other_code(run, code, store)

    return replicate


def _score(replicate: Callable[[int], PlannedRun], metric: str, number: int) -> float | None:
    """Test score of a row's replicate: None until it is complete, NaN where it is and has none."""
    found = replicate(number).found
    return found.metrics.get(metric, math.nan) if found.complete else None


def _void_rows(composed: Sequence[tuple[RowSpec, RunConfig]]) -> set[str]:
    """Labels of rows that differ from an earlier one in nothing but a test set which this corpus does not have."""
    void: set[str] = set()
    tests: dict[tuple[str, tuple[str, ...]], set[str]] = {}
    for row, config in composed:
        earlier = tests.setdefault((row.experiment, row.overrides), set())
        if row.test and row.test not in config.data.tests and earlier - {row.test}:
            void.add(row.label)
        earlier.add(row.test)
    return void


def _unless_other_code(run: PlannedRun, code: PresentCode, store: ArchivedRunStore) -> PlannedRun:
    """The run, or where other code made what is there and nobody is at it, the same to be trained anew.

    A run in an archive stays there, and is trained anew beside it.
    """
    found = run.found
    if found.state in ("queued", "running") or code.made(found.code):
        return run
    nothing = Replicate(run_id=found.run_id, seed=found.seed, state="queued")
    return dataclasses.replace(run, found=nothing, set_aside=None if store.is_archived(run.run_id) else found.code)


def _decoding(config: RunConfig) -> tuple[SearchConfig, SplitConfig]:
    return config.search, config.data.test


def _planned_run(row: RowSpec, config: RunConfig, name: str, replicate: int, store: ArchivedRunStore) -> PlannedRun:
    seeded = dataclasses.replace(config, seed=config.seed + replicate)
    found = read_replicate(store, seeded, f"{name}/s{seeded.seed}")
    if not found.complete and store.is_archived(found.run_id):  # not decoded like this, and there is no checkpoint
        found = Replicate(run_id=found.run_id, seed=found.seed, state="queued")
    return PlannedRun(label=row.label, replicate=replicate, config=seeded, found=found)


def _same_everywhere(first_row: RowSpec, first: RunConfig, row: RowSpec, config: RunConfig) -> None:
    for name in SHARED_SECTIONS:
        if getattr(first, name) != getattr(config, name):
            raise UserError(
                f"row '{row.label}' wants other settings than row '{first_row.label}'",
                where=name,
                hint="set it for all rows: in the sweep's overrides or on the command line",
            )
