"""Claims of a study as they are written down, `conf/claims/<study>/<id>.yaml`, and what the experiments say to them.

statement: what is claimed
place: where
experiment: idle               # whose points test it
figure: idle_mean              # which of its figures
rows: [RingTMP stage]          # rows that the claim is about …
against: [PS bsp, 1 server]    # … and those that they are compared with; absent where expect is a value
expect: less                   # less | greater | not_greater | same (to the bit) | differs, or the number that is meant
reading: why it is tested so   # optional
limits: what is true beside it # the honest limit, which the report always states; optional

Every row is compared with every other under every condition that both have a value for. All comparisons hold: *held*;
none: *not held*; some: *held only where*, and the report says where. Without any the claim is *not measured*, with the
reasons for which values were refused. These are comparisons of what was found, and no tests: one run a row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nmt.config.compose import CONF, read_yaml
from nmt.errors import UserError
from sweeps.spec import known_keys_only, read_text
from sweeps.studies.points import EMULATED, Findings, Point
from sweeps.studies.study import Study

KEYS = ("statement", "place", "experiment", "figure", "rows", "against", "expect", "reading", "limits")
HELD, NOT_HELD, ONLY_WHERE, NOT_MEASURED = "held", "not held", "held only where", "not measured"
VERDICTS = (HELD, ONLY_WHERE, NOT_HELD, NOT_MEASURED)
EXPECTATIONS: dict[str, Callable[[float, float], bool]] = {
    "less": lambda one, other: one < other,
    "greater": lambda one, other: one > other,
    "not_greater": lambda one, other: one <= other,
    "same": lambda one, other: one == other,
    "differs": lambda one, other: one != other,
}


@dataclass(frozen=True, kw_only=True)
class StudyClaim:
    """A claim and how it is tested. `expect` is a word of `EXPECTATIONS`, or a number as text."""

    id: str
    statement: str
    place: str
    experiment: str
    figure: str
    rows: tuple[str, ...]
    expect: str
    against: tuple[str, ...] = ()
    reading: str = ""
    limits: str = ""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A row beside another under a condition; `against` is empty where a value was expected."""

    row: str
    against: str
    condition: tuple[str, ...]
    value: float
    other: float
    holds: bool
    emulated: bool = False


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the points say. `where` says in words where it holds or why it was not measured; `refused` are reasons for
    values that are not there, each with how many there are."""

    claim: StudyClaim
    verdict: str
    where: str = ""
    comparisons: tuple[Comparison, ...] = ()
    refused: tuple[tuple[str, int], ...] = ()

    @property
    def emulated(self) -> bool:
        """Whether anything of it rests on emulated machines."""
        return any(one.emulated for one in self.comparisons)


def load_study_claims(study: Study, conf: Path | None = None) -> list[StudyClaim]:
    """All claims of a study, in the order of its experiments, then of file names.

    Raises UserError for whatever in a file cannot be meant.
    """
    folder = (conf or CONF) / "claims" / study.name
    claims = [_read(path, study) for path in sorted(folder.glob("*.yaml"))]
    order = [one.name for one in study.experiments]
    return sorted(claims, key=lambda claim: (order.index(claim.experiment), claim.id))


def _read(path: Path, study: Study) -> StudyClaim:
    data, where = read_yaml(path), str(path)
    known_keys_only(data, KEYS, where)
    experiment, known = read_text(data, "experiment", where), [one.name for one in study.experiments]
    if experiment not in known:
        raise UserError(f"unknown experiment '{experiment}'", where=f"{where}.experiment", allowed=known)
    expect = data.get("expect")
    number = isinstance(expect, int | float) and not isinstance(expect, bool)
    if not number and expect not in EXPECTATIONS:
        raise UserError(f"'{expect}' is no expectation", where=f"{where}.expect", allowed=[*EXPECTATIONS, "a number"])
    if number == ("against" in data):
        raise UserError("goes with a word in expect, and only there", where=f"{where}.against")
    return StudyClaim(
        id=path.stem,
        statement=read_text(data, "statement", where),
        place=read_text(data, "place", where),
        experiment=experiment,
        figure=read_text(data, "figure", where),
        rows=_texts(data, "rows", where),
        expect=str(expect),
        against=() if number else _texts(data, "against", where),
        reading=read_text(data, "reading", where, required=False),
        limits=read_text(data, "limits", where, required=False),
    )


def _texts(data: Mapping[str, Any], name: str, where: str) -> tuple[str, ...]:
    value = data.get(name)
    if not isinstance(value, list) or not value or not all(isinstance(one, str) for one in value):
        raise UserError("must be a list of text", where=f"{where}.{name}")
    return tuple(value)


def judge(claim: StudyClaim, findings: Findings | None) -> Verdict:
    """The verdict of a claim's experiment; None where the experiment was not asked for."""
    if findings is None:
        return Verdict(claim=claim, verdict=NOT_MEASURED, where="its experiment was not asked for")
    own = [one for one in findings.points if one.figure == claim.figure]
    comparisons = tuple(_compared(claim, own))
    refused = _refused(claim, own)
    if not comparisons:
        reasons = "; ".join(reason for reason, _ in refused)
        return Verdict(claim=claim, verdict=NOT_MEASURED, where=reasons or "no such value was found", refused=refused)
    holding = [one for one in comparisons if one.holds]
    if len(holding) == len(comparisons):
        return Verdict(claim=claim, verdict=HELD, comparisons=comparisons, refused=refused)
    if not holding:
        return Verdict(claim=claim, verdict=NOT_HELD, comparisons=comparisons, refused=refused)
    return Verdict(
        claim=claim, verdict=ONLY_WHERE, where=in_words(comparisons), comparisons=comparisons, refused=refused
    )


def _compared(claim: StudyClaim, points: Sequence[Point]) -> Iterator[Comparison]:
    known = {(one.row, one.condition): one for one in points if one.value is not None}
    conditions = dict.fromkeys(one.condition for one in points)
    others = claim.against or ("",)
    for row in claim.rows:
        for against in others:
            for condition in conditions:
                mine, theirs = known.get((row, condition)), known.get((against, condition))
                if mine is None or mine.value is None or (against and (theirs is None or theirs.value is None)):
                    continue
                if theirs is None or theirs.value is None:
                    other = float(claim.expect)
                    holds = mine.value == other
                else:
                    other = theirs.value
                    holds = EXPECTATIONS[claim.expect](mine.value, other)
                yield Comparison(
                    row=row,
                    against=against,
                    condition=condition,
                    value=mine.value,
                    other=other,
                    holds=holds,
                    emulated=mine.kind == EMULATED,
                )


def _refused(claim: StudyClaim, points: Iterable[Point]) -> tuple[tuple[str, int], ...]:
    named = {*claim.rows, *claim.against}
    counts: dict[str, int] = {}
    for one in points:
        if one.refused and one.row in named:
            text = f"{one.row}: {one.refused}"
            counts[text] = counts.get(text, 0) + 1
    return tuple(counts.items())


def in_words(comparisons: Sequence[Comparison]) -> str:
    """Where comparisons hold: pair by pair, and within a pair by all but the last part of the conditions."""
    said: dict[str, list[str]] = {}
    pairs = dict.fromkeys((one.row, one.against) for one in comparisons)
    for row, against in pairs:
        mine = [one for one in comparisons if (one.row, one.against) == (row, against)]
        where = _conditions(mine)
        name = f"against {against}" if against else row
        if len({one.row for one in comparisons}) > 1 and against:
            name = f"{row} {name}"
        said.setdefault(where, []).append(name)
    return "; ".join(f"{', '.join(names)}: {where}" if where else ", ".join(names) for where, names in said.items())


def _conditions(comparisons: Sequence[Comparison]) -> str:
    """Of one pair: `everywhere` is said by nothing at all, nowhere by `nowhere`."""
    holding = [one for one in comparisons if one.holds]
    if not holding:
        return "nowhere"
    if len(holding) == len(comparisons):
        return "" if len(comparisons) == 1 else "everywhere"
    groups: dict[tuple[str, ...], list[Comparison]] = {}
    for one in comparisons:
        groups.setdefault(one.condition[:-1], []).append(one)
    parts = []
    labelled = not all(one.emulated for one in comparisons)  # where all are, the verdict says so
    for whole, members in groups.items():
        group = whole if labelled else tuple(part for part in whole if part != EMULATED)
        there = [one.condition[-1] if one.condition else "measured" for one in members if one.holds]
        if not there:
            continue
        name = ", ".join(group)
        some = "" if len(there) == len(members) else " and ".join(there)
        parts.append(f"{name} ({some})" if some and name else some or name or "measured")
    return " or ".join(parts)
