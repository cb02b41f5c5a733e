"""The test of a planned contrast: from two samples of replicates, or several that must all agree, to a verdict.

One-sided exact permutation tests at 0.05, not corrected for the number of claims: each claim was planned on its own,
and the scoreboard says how many there are. Where several comparisons must all hold, p is the largest of theirs (an
intersection-union test: Berger 1982); the opposite is shown where one comparison shows it at 0.05 over their number.

held: p <= 0.05 in the claimed direction. A claim of "more" must also reach its minimum effect by the estimate: that the
    effect is real is tested, that it is worth the name is read off. In "not less" and "equal" the margin is the null's.
reversed: the opposite is significant: less (claim: more), less by more than the margin (not less), or different by
    more than the margin, in either direction (equal).
undecided: neither. `needed` replicates a row would find the minimum effect, or show that there is none beyond the
    margin where there is none at all, with a probability of 0.8 (Welch's power at the measured standard deviations).
    Where an effect as large as the minimum is refuted, more replicates are no help, and the reason says so.

Rows that decode the same trainings are paired from `FEWEST_PAIRS` replicates on. Below, no sign-flip test can reach
0.05, while the unpaired one can (4 against 4: 1/70); as scores of one training rise and fall together it is
conservative there (docs/claims.md has its simulated rate).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sweeps.statistics.contrasts import contrast, exact_p, paired_p, smallest_p, smallest_paired_p
from sweeps.statistics.power import replicates_needed

ALPHA = 0.05
POWER = 0.8
HELD, REVERSED, UNDECIDED, NOT_RUN = "held", "reversed", "undecided", "not run"
VERDICTS = (HELD, REVERSED, UNDECIDED, NOT_RUN)
FEWEST, FEWEST_PAIRS = 3, 5  # replicates a side with which p can be 0.05: 1/20 unpaired, 1/32 in pairs


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Replicates' values of the side that is claimed to have more, and of the other, on the scale that is tested."""

    name: str
    a: tuple[float, ...]
    b: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one comparison came to.

    p, p_opposite: one-sided, of the claim and of its reverse; None where a value is not finite.
    p_short: that the effect is below the claim's minimum; None where the claim has none.
    needed: replicates a side, None where it cannot be said or is beyond 1000.
    """

    name: str
    n: tuple[int, int]
    difference: float
    sd: tuple[float | None, float | None]
    interval: tuple[float, float] | None
    p: float | None
    p_opposite: float | None
    p_short: float | None
    p_smallest: float
    paired: bool
    needed: int | None


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """A verdict with the figures it rests on; `effect` and `interval` are those of the comparison that holds least.

    `reason` says in a clause why it is undecided; `needed` is then the most of the comparisons, None where so many are
    there already.
    """

    verdict: str
    effect: float | None = None
    interval: tuple[float, float] | None = None
    p: float | None = None
    p_opposite: float | None = None
    needed: int | None = None
    reason: str = ""
    findings: tuple[Finding, ...] = ()


def judge(comparisons: Sequence[Comparison], expect: str, effect: float, paired: bool = False) -> Judgement:
    """Test that `a` of every comparison has more than `b` (`expect`: greater, not_less or equal, with `effect`)."""
    findings = tuple(_find(one, expect, effect, paired) for one in comparisons)
    weakest = _weakest(findings, expect)
    p_values = [one.p for one in findings if one.p is not None]
    if len(p_values) < len(findings):
        reason = "a value is not finite, so there is no test"
        return Judgement(verdict=UNDECIDED, effect=weakest.difference, reason=reason, findings=findings)
    p = max(p_values)
    p_opposite = min(1.0, len(findings) * min(one.p_opposite or 0.0 for one in findings))
    verdict, reason = _verdict(p, p_opposite, weakest, max(one.p_smallest for one in findings), expect, effect)
    needed = max((one.needed or 0 for one in findings), default=0) if all(one.needed for one in findings) else 0
    short = [one.p_short for one in findings if one.p_short is not None]
    if verdict == UNDECIDED and short and len(findings) * min(short) <= ALPHA:
        reason, needed = "an effect as large as the minimum is refuted, and no more replicates are needed for that", 0
    return Judgement(
        verdict=verdict,
        effect=weakest.difference,
        interval=weakest.interval,
        p=p,
        p_opposite=p_opposite,
        needed=needed if verdict == UNDECIDED and needed > max(weakest.n) else None,
        reason=reason,
        findings=findings,
    )


def judge_collapse(comparison: Comparison, minimum: float) -> Judgement:
    """Test that runs of `a` collapse (1.0) and those of `b` do not (0.0), by shares of collapsed runs.

    Held by the same exact test as every claim (for shares it is Fisher's). Where next to none of `a` collapses there is
    nothing to compare, so the reverse has a test of its own: so few collapses have a probability of at most 0.05 where
    the share is `minimum` (binomial).
    """
    finding = _find(comparison, "greater", minimum, False)
    n, collapsed = len(comparison.a), round(sum(comparison.a))
    so_few = sum(math.comb(n, k) * minimum**k * (1 - minimum) ** (n - k) for k in range(collapsed + 1))
    assert finding.p is not None
    verdict, reason = _verdict(finding.p, so_few, finding, finding.p_smallest, "greater", minimum)
    return Judgement(
        verdict=verdict,
        effect=finding.difference,
        p=finding.p,
        p_opposite=so_few,
        reason=reason,
        findings=(finding,),
    )


def _verdict(
    p: float, p_opposite: float, weakest: Finding, p_smallest: float, expect: str, effect: float
) -> tuple[str, str]:
    if p <= ALPHA and (expect != "greater" or weakest.difference >= effect):
        return HELD, ""
    if p_opposite <= ALPHA:
        return REVERSED, ""
    if p <= ALPHA:
        return UNDECIDED, "significant, and below the minimum effect"
    if p_smallest > ALPHA:
        return UNDECIDED, f"so few replicates cannot bring p below {p_smallest:.2g}"
    return UNDECIDED, "neither direction is significant"


def _find(one: Comparison, expect: str, effect: float, paired: bool) -> Finding:
    pairs = paired and len(one.a) == len(one.b)
    paired = pairs and len(one.a) >= FEWEST_PAIRS
    described = contrast(one.a, one.b, paired=paired)
    finite = described.p_exact is not None
    test = paired_p if paired else exact_p
    n = (len(one.a), len(one.b))
    return Finding(
        name=one.name,
        n=n,
        difference=described.difference,
        sd=(described.sd_a, described.sd_b),
        interval=described.interval,
        p=_p(one, expect, effect, paired) if finite else None,
        p_opposite=_p_opposite(one, expect, effect, paired) if finite else None,
        p_short=test(one.a, one.b, "less", effect) if finite and expect == "greater" else None,
        p_smallest=smallest_paired_p(n[0], "greater") if paired else smallest_p(*n, "greater"),
        paired=paired,
        needed=_needed(one, expect, effect, pairs) if finite else None,
    )


def _p(one: Comparison, expect: str, effect: float, paired: bool) -> float:
    test = paired_p if paired else exact_p
    if expect == "greater":
        return test(one.a, one.b, "greater", 0.0)
    above = test(one.a, one.b, "greater", -effect)
    return above if expect == "not_less" else max(above, test(one.a, one.b, "less", effect))


def _p_opposite(one: Comparison, expect: str, effect: float, paired: bool) -> float:
    test = paired_p if paired else exact_p
    if expect == "equal":  # beyond the margin on either side, and so two tests
        beyond = test(one.a, one.b, "greater", effect), test(one.a, one.b, "less", -effect)
        return min(1.0, 2 * min(beyond))
    return test(one.a, one.b, "less", -effect if expect == "not_less" else 0.0)


def _needed(one: Comparison, expect: str, effect: float, paired: bool) -> int | None:
    if paired and len(one.a) > 1:  # so they will be tested, once there are enough
        differences = np.subtract(one.a, one.b)
        sds = [float(np.std(differences, ddof=1)) / math.sqrt(2)] * 2  # of two samples whose difference spreads so
    else:
        sds = [float(np.std(side, ddof=1)) if len(side) > 1 else math.nan for side in (one.a, one.b)]
    # "Equal" takes two tests, both of which must be passed.
    power = (1 + POWER) / 2 if expect == "equal" else POWER
    needed = replicates_needed(effect, *sds, alpha=ALPHA, power=power, alternative="greater")
    return None if needed is None else max(needed, FEWEST_PAIRS if paired else FEWEST)


def _weakest(findings: Sequence[Finding], expect: str) -> Finding:
    """The comparison that holds least: the smallest difference, or where none is expected the largest."""

    def strength(one: Finding) -> float:
        value = -abs(one.difference) if expect == "equal" else one.difference
        return -math.inf if math.isnan(value) else value

    return min(findings, key=strength)
