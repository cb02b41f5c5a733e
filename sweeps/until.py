"""`replicates='until ci<0.3 max=12'`: each row gets replicates until its interval is narrow enough.

    until ci<0.3 max=12                the 95 % interval of a row's mean is to be ± 0.3 or less
    until ci_difference<0.5 max=12     the one of its difference to the baseline
    until ci<0.3 min=6 step=3 max=15   look at 6, 9, 12 and 15 replicates; unset: from 4 on, in steps of 2

A row is looked at when its first 4, 6, … replicates are complete. How many it gets is a function of their scores alone:
the same command comes to the same number after an interruption, on another executor, and where more replicates are
there than it needs. Looking repeatedly has its price, which `sweeps.statistics.sequential` pays.
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nmt.errors import UserError, did_you_mean
from sweeps.words import take

if TYPE_CHECKING:
    from sweeps.plan import PlannedRow, SweepPlan
    from sweeps.statistics.sequential import Outlook

KINDS = {"ci": "the interval of a row's mean", "ci_difference": "the interval of a row's difference to the baseline"}
SETTINGS = {"min": 4, "step": 2, "max": 0}
EXAMPLE = "replicates='until ci<0.3 max=12'"
Score = Callable[[int], float | None]  # of replicate i: None until it is complete, NaN where it has no finite score


@dataclass(frozen=True, kw_only=True)
class Until:
    """The rule: what is to be at most how wide (in units of the metric), and at which numbers of replicates to look."""

    kind: str
    width: float
    looks: tuple[int, ...]

    def __str__(self) -> str:
        low, high = self.looks[0], self.looks[-1]
        step = self.looks[1] - low if len(self.looks) > 1 else SETTINGS["step"]
        return f"until {self.kind}<{self.width:g} min={low} step={step} max={high}"

    @property
    def samples(self) -> int:
        """Samples that vary in what is to be narrow."""
        return 2 if self.kind == "ci_difference" else 1


@dataclass(frozen=True, kw_only=True)
class Decision:
    """How far a row has come.

    replicates: that it has to have, as far as is known. state: `waiting` for some of them, `narrow` enough, `wide` with
    all that are allowed, `undefined` where a score is not finite, `baseline` of the others.
    half_width: at the last look that was possible, None before the first.
    """

    replicates: int
    state: str
    half_width: float | None = None


def read_until(text: str) -> Until | None:
    """The rule that the value of `replicates=` means; None where it does not begin with `until`.

    Raises UserError, one line, for a rule that is not of the form that the module's docstring describes.
    """
    first, *words = text.split() or [""]
    if first != "until":
        return None
    if not words:
        raise UserError("'until' what?", where="replicates", hint=EXAMPLE)
    found = re.fullmatch(r"(\w+)<(.+)", words[0])
    if not found:
        raise UserError(f"'{words[0]}' is no condition", where="replicates", hint=EXAMPLE)
    kind, width = found[1], _positive(found[2])
    if kind not in KINDS:
        raise UserError(f"unknown '{kind}'", where="replicates", allowed=list(KINDS), hint=did_you_mean(kind, KINDS))
    settings = dict(SETTINGS)
    for word in words[1:]:
        name, _, value = word.partition("=")
        if name not in settings:
            hint = did_you_mean(name, settings)
            raise UserError(
                f"unknown '{word}'", where="replicates", allowed=[f"{one}=N" for one in settings], hint=hint
            )
        least = 1 if name == "step" else 2
        if not value.isdecimal() or int(value) < least:
            raise UserError(
                f"'{value}' is no number of replicates", where=f"replicates: {name}", allowed=[f">= {least}"]
            )
        settings[name] = int(value)
    if not settings["max"]:
        raise UserError("is missing: how many replicates are too many?", where="replicates: max", hint=EXAMPLE)
    if settings["max"] < settings["min"]:
        what = f"{settings['max']} is less than min={settings['min']}"
        raise UserError(what, where="replicates: max", hint="raise it, or lower min")
    looks = (*range(settings["min"], settings["max"], settings["step"]), settings["max"])
    return Until(kind=kind, width=width, looks=looks)


def split_until(words: Sequence[str]) -> tuple[Until | None, list[str]]:
    """The rule among a command line's overrides, and the overrides that are for a configuration.

    With a rule, these ask for the number of replicates of its first look.
    """
    text, others = take(words, "replicates")
    rule = read_until(text)
    return (None, list(words)) if rule is None else (rule, [*others, f"replicates={rule.looks[0]}"])


def decide(rule: Until, scores: Mapping[str, Score], baseline: str | None) -> dict[str, Decision]:
    """What each row needs, by label, from the scores of its replicates.

    For a difference, row and baseline are compared with equally many replicates, and the baseline has as many as the
    row with the most. Raises UserError for a difference without a baseline.
    """
    if rule.samples == 1:
        return {label: _decide(rule, score, None) for label, score in scores.items()}
    if baseline is None or baseline not in scores:
        raise UserError(
            "ci_difference needs a baseline", where="replicates", hint="name one in the sweep's YAML, or ask for ci<…"
        )
    others = {label: _decide(rule, score, scores[baseline]) for label, score in scores.items() if label != baseline}
    most = max((one.replicates for one in others.values()), default=rule.looks[0])
    return {label: others.get(label, Decision(replicates=most, state="baseline")) for label in scores}


def _decide(rule: Until, row: Score, baseline: Score | None) -> Decision:
    from sweeps.statistics.sequential import calibrate, half_width

    sides, width = [row] if baseline is None else [row, baseline], None
    error = calibrate(rule.looks, rule.samples).error
    for look in rule.looks:
        known = [[side(replicate) for replicate in range(look)] for side in sides]
        samples = [[score for score in side if score is not None] for side in known]
        if any(len(sample) < look for sample in samples):
            return Decision(replicates=look, state="waiting", half_width=width)
        if not all(math.isfinite(score) for sample in samples for score in sample):
            return Decision(replicates=look, state="undefined", half_width=width)
        width = half_width(samples[0], None if baseline is None else samples[1], error)
        if width <= rule.width:
            return Decision(replicates=look, state="narrow", half_width=width)
    return Decision(replicates=rule.looks[-1], state="wide", half_width=width)


def next_look(plan: SweepPlan) -> str:
    """One line on where the rows of a plan with a rule stand."""
    parts = []
    for row in plan.rows:
        one = plan.decisions[row.label]
        width = "" if one.half_width is None else f" ± {one.half_width:.2f}"
        words = {
            "waiting": f"{width} so far, {one.replicates} replicates next"
            if width
            else f": {one.replicates} replicates"
        }
        parts.append(row.label + words.get(one.state, f"{width} with {one.replicates}"))
    return f"{plan.until}: {'; '.join(parts)}"


def stopping_notes(plan: SweepPlan) -> list[str]:
    """What a reader of the table must know: each row's interval, how it was stopped, and how often it holds."""
    from sweeps.statistics.sequential import calibrate, welch_size

    rule = plan.until
    if rule is None:
        return []
    calibration = calibrate(rule.looks, rule.samples)
    notes = [
        f"replicates {rule}: {KINDS[rule.kind]}, at each look with {1 - calibration.error:.1%}, so that the one "
        f"reported is a 95 % interval; simulated coverage {calibration.coverage:.1%} at the worst true sd, of normal "
        "scores"
    ]
    for row in plan.rows:
        one = plan.decisions[row.label]
        if one.state == "baseline":
            continue
        text, sd = f"{row.label}: {_said(one, rule)}", _sd(plan, row)
        if one.state in ("narrow", "wide") and sd:
            text += (
                f"; simulated coverage {_outlook(rule, sd).coverage:.1%} were its true sd the {sd:.2f} that was seen"
            )
        notes.append(text)
    if plan.spec.baseline:
        size = welch_size(rule.looks, rule.samples, calibration.error)
        notes.append(
            "p values take the numbers of replicates as given, which here follow from the sds: uncorrected, Welch's is "
            f"at most 0.05 in up to {size:.1%} of rows that are like the baseline (simulated)"
        )
    return notes


def _said(one: Decision, rule: Until) -> str:
    width = "" if one.half_width is None else f"± {one.half_width:.2f}"
    return {
        "narrow": f"{width} with {one.replicates} replicates",
        "wide": f"{width} with all {one.replicates} replicates allowed: wider than the {rule.width:g} asked for",
        "undefined": f"a score among the first {one.replicates} is not finite: no interval, and no more are run",
    }.get(one.state, f"{width or 'nothing'} so far, {one.replicates} replicates are asked for next")


def forecast(plan: SweepPlan) -> list[str]:
    """How many replicates may be needed, a line a row and the total: by the sd so far where there is one."""
    rule = plan.until
    if rule is None:
        return []
    lines, least, most = [f"replicates {rule}"], 0, 0
    for row in plan.rows:
        one, sd = plan.decisions[row.label], _sd(plan, row)
        high = rule.looks[-1] if one.state in ("waiting", "baseline") else one.replicates
        least, most = least + one.replicates, most + high
        text = f"{row.label}: {one.replicates}" + (f" to {high}" if high > one.replicates else "")
        if one.state == "baseline":
            text += ", as many as the row with the most"
        elif one.state == "waiting" and sd is None:
            text += "; nothing is known of its sd yet"
        elif one.state == "waiting" and sd:
            expected = _outlook(rule, sd)
            text += (
                f"; were its true sd the {sd:.2f} so far, about {max(expected.replicates, one.replicates):.0f}, and "
                f"narrow enough in {expected.reached:.0%} of such sweeps"
            )
        lines.append(text)
    return [*lines, f"{least} to {most} replicates in all"]


def _sd(plan: SweepPlan, row: PlannedRow) -> float | None:
    """Of the row's scores that are there; None for fewer than two."""
    metric = plan.config.validation.metric
    known = [score for run in row.runs if math.isfinite(score := run.found.metrics.get(metric, math.nan))]
    return statistics.stdev(known) if len(known) > 1 else None


def _outlook(rule: Until, sd: float) -> Outlook:
    """What the rule comes to at a true sd; of a difference, with the same on both sides."""
    from sweeps.statistics.sequential import calibrate, outlook

    error = calibrate(rule.looks, rule.samples).error
    return outlook(rule.looks, rule.samples, error, sd / rule.width, 1.0 if rule.samples == 2 else 0.0)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise UserError(f"'{text}' is no width", where="replicates", allowed=["> 0"], hint=EXAMPLE)
    return value
