"""Two sides in one metric: what can be said of these configurations, of these systems, and of both kinds of chance."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from nmt.errors import UserError
from nmt.evaluation.catalogue import METRICS
from sweeps.aggregate import Statistics, best_replicate, describe
from sweeps.sentences import hypotheses, references, statistics_of
from sweeps.sides import Side
from sweeps.significance import contrast_of, scores_of
from sweeps.statistics.contrasts import Contrast
from sweeps.statistics.families import VarianceCheck, variance_check
from sweeps.statistics.power import pairs_needed, replicates_needed
from sweeps.statistics.simulation import (
    Rate,
    paired_size,
    resampling_coverage,
    stratified_size,
    welch_coverage,
    welch_size,
)

_RHO_STEP = 0.25  # rho is rounded to it before anything is simulated


@dataclass(frozen=True, kw_only=True)
class Configurations:
    """What replicates say. `unanswerable` says why they say nothing, else it is empty.

    needed_welch, needed_exact: replicates a side for a power of 0.8 at the level 0.05, were the true difference and sds
        those observed; of pairs, `needed_welch` are pairs. None: more than 1000.
    size, coverage: of Welch's test and interval, simulated at these numbers of replicates and this ratio of sds.
    variance_ratio: of a over b.
    """

    contrast: Contrast
    needed_welch: int | None = None
    needed_exact: int | None = None
    size: Rate | None = None
    coverage: Rate | None = None
    variance_ratio: float | None = None
    variances: VarianceCheck | None = None
    unanswerable: str = ""


@dataclass(frozen=True, kw_only=True)
class Systems:
    """What sentences say of the trained models. `unanswerable` says why they say nothing, else it is empty.

    runs: the replicate of either side that the paired tests are of: the best by validation, or the first.
    bootstrap, randomisation: p of sacrebleu's paired tests of these two; None of a metric that it does not have.
    bootstrap_size: how often the paired bootstrap rejects systems that differ by the sentences' chance alone; the other
        two keep to their level there.
    stratified: p of the stratified test over all replicates.
    rho, rho_interval: how much more scores vary with the training than the choice of sentences explains, see
        `resampling.Resampling`; None without replicates.
    stratified_size: how often the stratified test rejects two trainings of one configuration, simulated at this rho.
    interval, coverage: of the replicates-then-sentences bootstrap, and its simulated coverage.
    """

    runs: tuple[str, str] = ("", "")
    sentences: int = 0
    bootstrap: float | None = None
    randomisation: float | None = None
    bootstrap_size: Rate | None = None
    stratified: float | None = None
    rho: float | None = None
    rho_interval: tuple[float, float] | None = None
    stratified_size: Rate | None = None
    interval: tuple[float, float] | None = None
    coverage: Rate | None = None
    unanswerable: str = ""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """a minus b in one metric."""

    metric: str
    a: Statistics
    b: Statistics
    configurations: Configurations
    systems: Systems = field(default_factory=Systems)

    @property
    def better(self) -> str:
        """`a` or `b`, whichever has the better mean; empty where they are equal or not finite."""
        difference = self.configurations.contrast.difference
        if not math.isfinite(difference) or difference == 0:
            return ""
        return "b" if (difference > 0) == METRICS[self.metric].lower_is_better else "a"


def compare(a: Side, b: Side, metric: str) -> Comparison:
    """Compare both sides. Raises UserError where one has no score in this metric."""
    scores = [scores_of(side.replicates, metric) for side in (a, b)]
    for side, found in zip((a, b), scores, strict=True):
        if not found:
            known = dict.fromkeys(name for one in side.replicates for name in one.metrics)
            raise UserError(f"'{side.name}' has no {metric}", where="metric", allowed=list(known))
    described = [describe(found.values()) for found in scores]
    assert described[0] is not None and described[1] is not None
    return Comparison(
        metric=metric,
        a=described[0],
        b=described[1],
        configurations=_configurations(contrast_of(*scores), [list(found.values()) for found in scores]),
        systems=_systems(a, b, metric),
    )


def _configurations(contrast: Contrast, scores: list[list[float]]) -> Configurations:
    if not math.isfinite(contrast.difference):
        return Configurations(contrast=contrast, unanswerable="a score is not finite")
    variances = variance_check(scores)
    if contrast.paired:
        return Configurations(
            contrast=contrast, needed_welch=pairs_needed(contrast.difference, contrast.sd_pairs), variances=variances
        )
    if contrast.sd_a is None or contrast.sd_b is None:
        single = " and ".join(name for name, sd in (("a", contrast.sd_a), ("b", contrast.sd_b)) if sd is None)
        return Configurations(
            contrast=contrast,
            unanswerable=f"{single} has one replicate, and another training might differ by as much: train more",
        )
    needed = partial(replicates_needed, contrast.difference, contrast.sd_a, contrast.sd_b)
    if contrast.p_welch is None:  # no spread on either side
        return Configurations(contrast=contrast, needed_welch=needed(), needed_exact=needed(test="exact"))
    # A ratio beyond a hundred has long reached the limit where one side's variance is all there is.
    ratio = min(100.0, max(0.01, contrast.sd_a / contrast.sd_b)) if contrast.sd_b else 100.0
    return Configurations(
        contrast=contrast,
        needed_welch=needed(),
        needed_exact=needed(test="exact"),
        size=welch_size(contrast.n_a, contrast.n_b, ratio),
        coverage=welch_coverage(contrast.n_a, contrast.n_b, ratio),
        variance_ratio=(contrast.sd_a / contrast.sd_b) ** 2 if contrast.sd_b else None,
        variances=variances,
    )


def _systems(a: Side, b: Side, metric: str) -> Systems:
    from nmt.evaluation.sentence_statistics import corpus_scores, has_sentence_statistics

    if not has_sentence_statistics(metric):
        return Systems(unanswerable=f"{metric} does not come apart into sentences")
    config = a.config or b.config
    if config is None:
        return Systems(unanswerable="both sides are imported, and their references are not kept")
    try:
        correct, language = references(config), config.data.target_language
        scored = [[one for one in side.replicates if metric in one.metrics] for side in (a, b)]
        sides = [np.stack([statistics_of(one, correct, language, metric) for one in side]) for side in scored]
        chosen = [best_replicate(side, metric) or side[0] for side in scored]
        texts = [hypotheses(one) for one in chosen]
    except UserError as error:
        return Systems(unanswerable=str(error))
    from sweeps.statistics.resampling import resample
    from sweeps.statistics.systems import stratified_p

    score = partial(corpus_scores, metric)
    resampled = resample(sides[0], sides[1], score)
    sizes = len(sides[0]), len(sides[1])
    rho = None if resampled.rho is None else round(resampled.rho / _RHO_STEP) * _RHO_STEP
    bootstrap, randomisation = _paired(texts[0], texts[1], tuple(correct), language, metric)
    return Systems(
        runs=(chosen[0].run_id, chosen[1].run_id),
        sentences=len(correct),
        bootstrap=bootstrap,
        randomisation=randomisation,
        bootstrap_size=None if bootstrap is None else paired_size("bootstrap", 0.0),
        stratified=stratified_p(sides[0], sides[1], score),
        rho=resampled.rho,
        rho_interval=resampled.rho_interval,
        stratified_size=None if rho is None else stratified_size(*sizes, rho),
        interval=resampled.interval if min(sizes) > 1 else None,
        coverage=None if rho is None or min(sizes) < 2 else resampling_coverage(*sizes, rho),
    )


def _paired(
    a: list[str], b: list[str], correct: tuple[str, ...], language: str, metric: str
) -> tuple[float | None, float | None]:
    """p of the paired bootstrap and of approximate randomisation; sacrebleu has no ROUGE."""
    from nmt.evaluation.metrics import sacrebleu_metric, tokenise_all
    from sweeps.statistics.systems import paired_test

    if metric.startswith("rouge"):
        return None, None
    if metric.startswith("bleu_tok"):
        a, b = (list(tokenise_all(tuple(lines), language)) for lines in (a, b))
        correct = tokenise_all(correct, language)
    judge = sacrebleu_metric(metric, correct)
    return paired_test(a, b, judge, "bootstrap"), paired_test(a, b, judge, "randomisation")
