"""A claim of the paper as it is written down: `conf/claims/<id>.yaml`, read strictly.

statement: what is claimed, in our words
table: 5                       # the table it belongs to, by which claims are grouped and reproduced
place: table 5; section 4.5    # where it stands in the paper
reading: why it is tested so   # where the words allow several readings: the one that is tested; optional
notes: [...]                   # inconsistencies of the paper, conditions, traps; optional
printed_otherwise: why         # where the printed numbers themselves do not carry the claim; optional
contrast:
  sweep: table5_attention      # conf/sweep/<name>.yaml, whose rows are compared
  overrides: []                # of all its rows, where the claim needs other runs than the table; optional
  measure: score               # what is compared; see MEASURES
  rows: [Mul-512, Add-512]     # rows that are claimed to have more of it …
  against: [None-Input]        # … than these
  combine: each                # see COMBINATIONS; optional where both sides are one row
  expect: greater              # see EXPECTATIONS
  minimum: 1.0                 # greater: the smallest effect that counts
  margin: 0.5                  # not_less, equal: the largest difference that does not count

Numbers of an effect are in the unit of its measure: points of the score, shares from 0 to 1, or for everything that is
compared on a log scale ratios (1.5: half as much again). What was published for rows stands in the sweep's file and is
worked out from there (`sweeps.claims.published`); `published` in a contrast holds only what the text alone says.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from nmt.config.compose import CONF, read_yaml
from nmt.errors import UserError, did_you_mean
from sweeps.spec import SweepSpec, known_keys_only, load_spec, read_override_list, read_text


@dataclass(frozen=True, kw_only=True)
class Measure:
    """What a replicate is measured by.

    log: compared as a ratio. timed: a time, which depends on the machine. scored: made of test scores.
    """

    title: str
    log: bool = False
    timed: bool = False
    scored: bool = False


MEASURES = {
    "score": Measure(title="test score", scored=True),  # the table's metric, `validation.metric`
    "collapsed": Measure(title="share of collapsed runs", scored=True),  # diverged, or a score under `below`
    "tokens_per_second": Measure(title="tokens/s of training", log=True, timed=True),
    "convergence_steps": Measure(title="steps until the chosen checkpoint", log=True),
    "probe": Measure(title="median of a probe over training", log=True),  # of the curves that `probe` names
    "output_share": Measure(title="share of the output layer in the arithmetic"),  # of a configuration, without runs
    "rank_correlation": Measure(
        title="rank correlation of the rows", scored=True
    ),  # of a sweep under two lists of overrides
}
EXPECTATIONS = {  # of the rows, compared with those they stand against
    "greater": "above",
    "not_less": "not below",  # by more than a margin
    "equal": "the same as",  # within a margin
}
COMBINATIONS = {  # of several rows on a side
    "mean": "each side averaged over its rows, replicate by replicate",
    "each": "every row against every other, and all must hold",
    "pairs": "row against row in this order, and all must hold",
}
CLAIM_KEYS = ("statement", "table", "place", "reading", "notes", "printed_otherwise", "contrast")
CONTRAST_KEYS = (
    "sweep",
    "overrides",
    "measure",
    "rows",
    "against",
    "combine",
    "expect",
    "minimum",
    "margin",
    "below",
    "probe",
    "paired",
    "other_overrides",
    "published",
)
OWN_KEYS = {"below": "collapsed", "probe": "probe", "other_overrides": "rank_correlation"}  # of one measure alone
ALONE = ("output_share", "rank_correlation")  # measures that have no other side


@dataclass(frozen=True, kw_only=True)
class PlannedContrast:
    """What is compared with what, fixed before the runs are looked at.

    `effect` is the minimum (`greater`) or the margin. `below` is the score under which a run counts as collapsed,
    `probe` names curves of metrics.jsonl whose norms are joined. `paired` says that the rows decode the same trainings.
    `published` is an effect that the paper's text names and no table prints.
    """

    sweep: str
    measure: str
    rows: tuple[str, ...]
    expect: str
    effect: float
    against: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    combine: str = "mean"
    below: float | None = None
    probe: tuple[str, ...] = ()
    paired: bool = False
    other_overrides: tuple[str, ...] = ()
    published: float | None = None

    @property
    def kind(self) -> Measure:
        """The measure's properties."""
        return MEASURES[self.measure]

    @property
    def log_effect(self) -> float:
        """`effect` on the scale that is computed on."""
        return math.log(self.effect) if self.kind.log else self.effect


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim of the paper and its test. `printed_otherwise` says why printed numbers disagree with it, else empty."""

    id: str
    statement: str
    table: str
    place: str
    contrast: PlannedContrast
    reading: str = ""
    notes: tuple[str, ...] = ()
    printed_otherwise: str = ""


def available_claims(conf: Path | None = None) -> list[str]:
    """The ids of the checked-in claims, sorted."""
    return sorted(path.stem for path in ((conf or CONF) / "claims").glob("*.yaml"))


def load_claims(ids: list[str] | None = None, conf: Path | None = None) -> list[Claim]:
    """The claims with these ids, or all; by table, then by file name.

    Raises UserError for an unknown id and for whatever in a file cannot be meant.
    """
    known = available_claims(conf)
    for name in ids or ():
        if name not in known:
            raise UserError(f"unknown claim '{name}'", where="claims", allowed=known, hint=did_you_mean(name, known))
    chosen = dict.fromkeys(ids or known)
    claims = [read_claim((conf or CONF) / "claims" / f"{name}.yaml", conf) for name in chosen]
    return sorted(claims, key=lambda claim: (claim.table, claim.id))


def read_claim(path: Path, conf: Path | None = None) -> Claim:
    """One file. Raises UserError for unknown keys, rows that the sweep does not have, and parts that do not fit."""
    data, where = read_yaml(path), str(path)
    known_keys_only(data, CLAIM_KEYS, where)
    table = data.get("table")
    if not isinstance(table, int) or isinstance(table, bool):
        raise UserError(f"'{table}' is not the number of a table", where=f"{where}: table")
    contrast = data.get("contrast")
    if not isinstance(contrast, dict):
        raise UserError("must be a mapping", where=f"{where}: contrast", allowed=list(CONTRAST_KEYS))
    return Claim(
        id=path.stem,
        statement=read_text(data, "statement", where),
        table=str(table),
        place=read_text(data, "place", where),
        contrast=_read_contrast(contrast, f"{where}: contrast", conf),
        reading=read_text(data, "reading", where, required=False),
        notes=_texts(data, "notes", where),
        printed_otherwise=read_text(data, "printed_otherwise", where, required=False),
    )


def _read_contrast(data: Mapping[str, Any], where: str, conf: Path | None) -> PlannedContrast:
    known_keys_only(data, CONTRAST_KEYS, where)
    measure = _choice(data, "measure", where, list(MEASURES))
    for key, owner in OWN_KEYS.items():
        if (key in data) != (measure == owner):
            problem = "is missing" if measure == owner else "has no meaning here"
            raise UserError(f"'{key}' {problem}", where=where, hint=f"it goes with measure: {owner}, and only there")
    alone = measure in ALONE
    expect = _choice(data, "expect", where, list(EXPECTATIONS), default="greater" if alone else "")
    if alone and (expect != "greater" or "against" in data or "paired" in data or "combine" in data):
        raise UserError("takes one list of rows and a minimum", where=f"{where}: measure {measure}")
    rows, against = _texts(data, "rows", where, required=True), _texts(data, "against", where, required=not alone)
    single = len(rows) == len(against) == 1
    if measure == "collapsed" and (expect != "greater" or not single):
        raise UserError("takes one row a side, and expect: greater", where=f"{where}: measure collapsed")
    if measure == "rank_correlation" and len(rows) < 3:
        raise UserError(f"{len(rows)} rows have no order to compare", where=f"{where}.rows")
    combine = _choice(data, "combine", where, list(COMBINATIONS), default="mean" if single or alone else "")
    if combine == "pairs" and len(rows) != len(against):
        raise UserError(f"{len(rows)} rows cannot be paired with {len(against)}", where=f"{where}.against")
    sweep = read_text(data, "sweep", where)
    _check_rows(sweep, (*rows, *against), where, conf)
    paired = data.get("paired", False)
    if not isinstance(paired, bool):
        raise UserError(f"'{paired}' is neither true nor false", where=f"{where}.paired")
    return PlannedContrast(
        sweep=sweep,
        measure=measure,
        rows=rows,
        against=against,
        expect=expect,
        effect=_effect(data, expect, measure, where),
        overrides=read_override_list(data, where),
        combine=combine,
        below=_number(data, "below", where),
        probe=_texts(data, "probe", where),
        paired=paired,
        other_overrides=read_override_list({"overrides": data.get("other_overrides")}, f"{where}.other"),
        published=_number(data, "published", where),
    )


def _effect(data: Mapping[str, Any], expect: str, measure: str, where: str) -> float:
    name, other = ("minimum", "margin") if expect == "greater" else ("margin", "minimum")
    value = _number(data, name, where)
    if value is None or other in data:
        raise UserError(f"needs {name} and no {other}", where=f"{where}: expect {expect}")
    least = 1.0 if MEASURES[measure].log else 0.0
    if value <= least:
        what = "is no ratio above 1" if least else "is not above 0"
        raise UserError(f"{value:g} {what}", where=f"{where}.{name}")
    return value


def sweep_spec(name: str, conf: Path | None = None) -> SweepSpec:
    """The sweep with exactly this name, read once in a process as long as its file stays as it is.

    Raises UserError where there is none.
    """
    path = (conf or CONF) / "sweep" / f"{name}.yaml"
    if not path.is_file():
        known = sorted(other.stem for other in path.parent.glob("*.yaml"))
        raise UserError(f"unknown sweep '{name}'", where="sweep", hint=did_you_mean(name, known))
    stat = path.stat()
    return _read_once(path, (stat.st_mtime_ns, stat.st_size))


@lru_cache(maxsize=64)
def _read_once(path: Path, state: tuple[int, int]) -> SweepSpec:
    return load_spec(str(path))


def _check_rows(sweep: str, rows: tuple[str, ...], where: str, conf: Path | None) -> None:
    labels = [row.label for row in sweep_spec(sweep, conf).rows]
    for label in rows:
        if label not in labels:
            hint = did_you_mean(label, labels)
            raise UserError(f"{sweep} has no row '{label}'", where=where, allowed=labels, hint=hint)


def _choice(data: Mapping[str, Any], name: str, where: str, known: list[str], default: str = "") -> str:
    value = data.get(name, default)
    if value not in known:
        what = f"'{value}' is not a choice" if value else "is missing"
        raise UserError(what, where=f"{where}.{name}", allowed=known, hint=did_you_mean(str(value), known))
    return str(value)


def _number(data: Mapping[str, Any], name: str, where: str) -> float | None:
    value = data.get(name)
    if value is not None and (not isinstance(value, int | float) or isinstance(value, bool)):
        raise UserError(f"'{value}' is not a number", where=f"{where}.{name}")
    return None if value is None else float(value)


def _texts(data: Mapping[str, Any], name: str, where: str, required: bool = False) -> tuple[str, ...]:
    value = data.get(name, [])
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value) or (required and not value):
        hint = "write numbers in quotes" if isinstance(value, list) and value else None
        raise UserError("must be a list of text", where=f"{where}.{name}", hint=hint)
    return tuple(value)
