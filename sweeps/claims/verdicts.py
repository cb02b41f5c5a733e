"""From a claim and the runs that are there to its verdict, with every number's run ids."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from sweeps.claims.claim import Claim, sweep_spec
from sweeps.claims.judging import ALPHA, HELD, NOT_RUN, REVERSED, UNDECIDED, Judgement, judge, judge_collapse
from sweeps.claims.quantities import NotMeasuredError, one_machine, value_of
from sweeps.claims.runs import ClaimRuns, Source, sources_of
from sweeps.claims.sides import comparisons, published_effect
from sweeps.results import Replicate
from sweeps.statistics.ranks import rank_correlation
from sweeps.wording import counted


@dataclass(frozen=True, kw_only=True)
class MeasuredRow:
    """A row that a claim needs: its runs, and the value of each on the scale that is tested (none where not read)."""

    source: Source
    label: str
    run_ids: tuple[str, ...]
    states: tuple[str, ...]
    missing: int
    values: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Assessment:
    """A claim's verdict.

    published: its effect in the printed numbers, in the claim's unit (ratios as such); None where there is none.
    metric: the score that is compared, empty where none is.
    commands: what makes the missing runs, by sweep; empty where none are missing.
    remark: what a reader must know about the figures.
    """

    claim: Claim
    judgement: Judgement
    published: float | None
    metric: str = ""
    rows: tuple[MeasuredRow, ...] = ()
    commands: Mapping[Source, str] = field(default_factory=dict)
    remark: str = ""

    @property
    def verdict(self) -> str:
        """held, reversed, undecided or not run."""
        return self.judgement.verdict

    def natural(self, value: float) -> float:
        """An effect in the claim's unit: ratios are computed with as logarithms."""
        return math.exp(value) if self.claim.contrast.kind.log else value


def assess(claims: Iterable[Claim], runs: ClaimRuns) -> list[Assessment]:
    """A verdict for every claim, from the runs as they stand."""
    return [assess_one(claim, runs) for claim in claims]


def assess_one(claim: Claim, runs: ClaimRuns) -> Assessment:
    """The verdict of one claim. A claim whose planned replicates are not all there has none: it is `not run`."""
    contrast = claim.contrast
    published = published_effect(contrast, sweep_spec(contrast.sweep))
    if contrast.measure == "output_share":
        return Assessment(claim=claim, judgement=_of_configuration(claim), published=published)
    sources = sources_of(claim)
    metric = runs.metric(sources[0]) if contrast.kind.scored else ""
    labels = dict.fromkeys((*contrast.rows, *contrast.against))
    found = [(source, label, runs.replicates(source, label)) for source in sources for label in labels]
    rows = tuple(_row(*one) for one in found)
    absent = [row for row in rows if row.missing or not row.run_ids]
    problem, values = _missing(absent), []
    if not absent:
        try:
            values = [tuple(value_of(one, contrast, metric) for one in replicates) for _, _, replicates in found]
        except NotMeasuredError as error:
            problem = str(error)
        if contrast.kind.timed:
            problem = problem or one_machine([one for _, _, replicates in found for one in replicates])
    if problem:
        # Runs that are complete, and not as they are needed, can only be made anew in another place.
        made = {row.source: runs.command(row.source) for row in absent} or {
            source: runs.command(source, elsewhere=True) for source in sources
        }
        return Assessment(
            claim=claim,
            judgement=Judgement(verdict=NOT_RUN, reason=problem),
            published=published,
            metric=metric,
            rows=rows,
            commands=made,
        )
    measured = tuple(dataclasses.replace(row, values=of_row) for row, of_row in zip(rows, values, strict=True))
    return Assessment(
        claim=claim,
        judgement=_judgement(claim, measured),
        published=published,
        metric=metric,
        rows=measured,
        remark=_remark([one for _, _, replicates in found for one in replicates], contrast.measure),
    )


def _judgement(claim: Claim, rows: Sequence[MeasuredRow]) -> Judgement:
    contrast = claim.contrast
    if contrast.measure == "rank_correlation":
        return _correlation(rows, contrast.effect)
    sides = comparisons(contrast, {row.label: row.values for row in rows})
    if contrast.measure == "collapsed":
        return judge_collapse(sides[0], contrast.effect)
    return judge(sides, contrast.expect, contrast.log_effect, contrast.paired)


def _correlation(rows: Sequence[MeasuredRow], minimum: float) -> Judgement:
    first = rows[0].source
    here = [row.values for row in rows if row.source == first]
    there = [row.values for row in rows if row.source != first]
    found = rank_correlation(here, there)
    if found.rho is None or found.p_positive is None or found.p_negative is None:
        return Judgement(verdict=UNDECIDED, reason="all rows are equal, and have no order")
    verdict, reason = UNDECIDED, "neither direction is significant"
    if found.p_positive <= ALPHA and found.rho >= minimum:
        verdict, reason = HELD, ""
    elif found.p_negative <= ALPHA:
        verdict, reason = REVERSED, ""
    elif found.p_positive <= ALPHA:
        reason = "significant, and below the minimum effect"
    return Judgement(
        verdict=verdict,
        effect=found.rho,
        interval=found.interval,
        p=found.p_positive,
        p_opposite=found.p_negative,
        reason=reason,
    )


def _of_configuration(claim: Claim) -> Judgement:
    """A verdict that follows from arithmetic alone, the same however often it is counted, so without a p."""
    from sweeps.claims.operations import output_share

    share = min(output_share(claim.contrast.sweep, label) for label in claim.contrast.rows)
    return Judgement(verdict=HELD if share >= claim.contrast.effect else REVERSED, effect=share)


def _row(source: Source, label: str, replicates: Sequence[Replicate]) -> MeasuredRow:
    return MeasuredRow(
        source=source,
        label=label,
        run_ids=tuple(one.run_id for one in replicates),
        states=tuple(one.state for one in replicates),
        missing=sum(not one.complete for one in replicates),
    )


def _missing(rows: Sequence[MeasuredRow]) -> str:
    """In words how many replicates are not there, and of which rows; empty where all are."""
    if not rows:
        return ""
    void = ", ".join(row.label for row in rows if not row.run_ids)
    labels = list(dict.fromkeys(row.label for row in rows if row.missing))
    number = sum(row.missing for row in rows)
    parts = [f"{counted(number, 'replicate')} missing, of {', '.join(labels)}"] if labels else []
    return "; ".join([*parts, *([f"no such row with this corpus: {void}"] if void else [])])


def _remark(replicates: Sequence[Replicate], measure: str) -> str:
    diverged = sum(one.state == "diverged" for one in replicates)
    if not diverged or measure == "collapsed":
        return ""
    return f"{diverged} of {len(replicates)} runs diverged, and count with what they reached"
