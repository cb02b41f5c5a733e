"""The runs that claims need: each sweep planned once, with those of its rows that some claim names."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nmt.passwords import without_password
from sweeps.claims.claim import Claim, sweep_spec
from sweeps.plan import PlannedRow, make_plan
from sweeps.results import Replicate
from sweeps.reuse import PresentCode
from sweeps.spec import SweepSpec
from sweeps.wording import counted


@dataclass(frozen=True)
class Source:
    """A sweep, and what a claim changes in all its rows."""

    sweep: str
    overrides: tuple[str, ...] = ()

    def spec(self, labels: Collection[str] = ()) -> SweepSpec:
        """The sweep's file with the overrides laid over its own, below the command line's.

        With `labels`, these rows alone and nothing published: conditions are compared by the table's own report.
        """
        spec = sweep_spec(self.sweep)
        spec = dataclasses.replace(spec, overrides=(*spec.overrides, *self.overrides))
        if not labels:
            return spec
        rows = [dataclasses.replace(row, published=None) for row in spec.rows if row.label in labels]
        return dataclasses.replace(spec, rows=tuple(rows), baseline=None)

    def words(self, words: Sequence[str]) -> list[str]:
        """What `nmt sweep` is told to make these runs."""
        return [f"sweep={self.sweep}", *self.overrides, *words]


def sources_of(claim: Claim) -> list[Source]:
    """The sweeps whose runs a claim is tested on; none where it follows from a configuration."""
    contrast = claim.contrast
    if contrast.measure == "output_share":
        return []
    sources = [Source(contrast.sweep, contrast.overrides)]
    if contrast.measure == "rank_correlation":
        sources.append(Source(contrast.sweep, contrast.other_overrides))
    return sources


def rows_needed(claims: Iterable[Claim]) -> dict[Source, set[str]]:
    """The rows of each sweep that some of the claims name."""
    labels: dict[Source, set[str]] = {}
    for claim in claims:
        for source in sources_of(claim):
            labels.setdefault(source, set()).update((*claim.contrast.rows, *claim.contrast.against))
    return labels


class ClaimRuns:
    """Run directories as they stand now, looked up for a list of claims.

    `words` are config overrides for all of them, `archives` further directories of finished runs.
    """

    def __init__(self, claims: Sequence[Claim], words: Sequence[str], archives: Sequence[Path] = ()):
        self.words = list(words)
        code = PresentCode()
        self.plans = {
            source: make_plan(source.spec(labels), words, code=code, archives=archives)
            for source, labels in rows_needed(claims).items()
        }

    def row(self, source: Source, label: str) -> PlannedRow | None:
        """The row with its replicates, None where the corpus makes it void."""
        return next((row for row in self.plans[source].rows if row.label == label), None)

    def replicates(self, source: Source, label: str) -> list[Replicate]:
        """What the row's run directories say."""
        row = self.row(source, label)
        return [run.found for run in row.runs] if row else []

    def command(self, source: Source, elsewhere: bool = False) -> str:
        """A line to type that makes the source's runs; `elsewhere`, in a directory of runs beside this one."""
        runs = self.plans[source].config.paths.runs
        words = source.words([*self.words, *([f"paths.runs={runs}-anew"] if elsewhere else [])])
        return " ".join(["nmt sweep", *map(shlex.quote, map(without_password, words))])

    def cost(self, source: Source) -> str:
        """What the missing runs of the rows that are needed would take, from runs of like shape. Imports torch."""
        from sweeps.cost import estimate
        from sweeps.dry_run import duration

        if not self.plans[source].missing:
            return "as many runs as are there already, trained anew"
        rows = [row for row in estimate(self.plans[source]).rows if row.runs]
        number = sum(row.runs for row in rows)
        text = f"{counted(number, 'run')} to train, {sum(row.steps for row in rows):,} steps"
        if not rows:
            return "nothing to train, only to decode"
        seconds = [row.seconds for row in rows]
        if any(one is None for one in seconds):
            return f"{text}; time unknown: no run of like shape has ended here"
        return f"{text}, {duration(sum(one or 0.0 for one in seconds))} of training"

    def metric(self, source: Source) -> str:
        """The score that the sweep's table shows."""
        return self.plans[source].config.validation.metric
