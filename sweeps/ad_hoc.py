"""`nmt sweep experiment=baseline grid='model.attention.units=128,256'`: a sweep made of words instead of a file.

A grid is a list of factors, each a config key or group with the values it takes; the rows are their product, the last
factor varying fastest. Everything else on the command line goes for all rows. What comes out is an ordinary
`SweepSpec`: it is planned, run and reported like one that was read from a file, and `sweeps.saved` writes it as one.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

from nmt.config.compose import NOT_CONFIG, group_keys, groups, known_keys, refuse_unknown_keys
from nmt.config.identity import digest
from nmt.errors import UserError
from sweeps.spec import ROW_OWNED, RowSpec, SweepSpec, refuse_shared_labels
from sweeps.until import read_until
from sweeps.words import is_place, read_replicates, split_places, take

_OPENING, _CLOSING, _QUOTES = "([{", ")]}", "'\""


@dataclass(frozen=True)
class Factor:
    """A config key or group, and the values that rows give it, as they were typed."""

    key: str
    values: tuple[str, ...]


def read_factors(texts: Sequence[str]) -> tuple[Factor, ...]:
    """The factors of `grid=` words: `key=value,value` each, several in one word with `;` between them.

    Raises UserError for what `read_assignments` refuses, for an unknown key, and for one that no row may have of its
    own.
    """
    factors = [Factor(key, values) for key, values in read_assignments(texts, "grid")]
    for factor in factors:
        refuse_factor(factor.key, factor.values, "grid")
    return tuple(factors)


def read_assignments(texts: Sequence[str], where: str) -> list[tuple[str, tuple[str, ...]]]:
    """Keys with the values listed for each, in order. Commas inside brackets and quotes separate nothing.

    Raises UserError where a part names no key, has no or empty values, or repeats a key.
    """
    found: list[tuple[str, tuple[str, ...]]] = []
    for part in (part.strip() for text in texts for part in _split(text, ";", where)):
        key, equals, listed = part.partition("=")
        if not key or not equals:
            hint = f"write {where}='model.attention.units=128,256', keys apart by ;"
            raise UserError(f"'{part}' {'gives no values' if key else 'names no key'}", where=where, hint=hint)
        values = tuple(value.strip() for value in _split(listed, ",", where))
        if not all(values):
            raise UserError("has an empty value" if any(values) else "has no values", where=f"{where}: {key}")
        found.append((key, values))
    for key, count in Counter(key for key, _ in found).items():
        if count > 1:
            raise UserError(f"'{key}' stands there {count} times", where=where, hint="give its values once")
    return found


@cache
def short_name(key: str) -> str:
    """The shortest end of a config key that no other key shares: `attention.units` of `model.attention.units`."""
    if "/" in key:
        return key.rpartition("/")[2]
    parts, known = key.split("."), known_keys()
    for start in range(len(parts) - 1, 0, -1):
        end = ".".join(parts[start:])
        if not any(other != key and (other == end or other.endswith(f".{end}")) for other in known):
            return end
    return key


def row_label(assignments: Sequence[tuple[str, str]]) -> str:
    """What tells a row from the others: the varied keys by their short names, an experiment by its name alone."""
    said = [value if key == "experiment" else f"{short_name(key)}={value}" for key, value in assignments]
    return ", ".join(said)


def ad_hoc_spec(grid: Sequence[str], words: Sequence[str], name: str = "") -> tuple[SweepSpec, list[str]]:
    """The sweep that `grid=` words and the command line's config overrides mean, and the overrides that only say where.

    `name` is the sweep's, made of experiment, factors and overrides where it is empty: so a grid that grows keeps its
    report, and another question does not overwrite it.
    Raises UserError for a grid that `read_factors` refuses, for no experiment, and for overrides that contradict it.
    """
    factors = read_factors(grid)
    varied = [factor.key for factor in factors]
    here, shared = split_places(words)
    experiment, shared = take(shared, "experiment")
    replicates, shared = take(shared, "replicates")
    until = replicates if read_until(replicates) else ""
    if not experiment and "experiment" not in varied:
        allowed = groups()["experiment"]
        raise UserError("is needed with a grid", where="experiment", allowed=allowed, hint="experiment=baseline")
    if experiment:
        refuse_unknown_keys([f"experiment={experiment}"])
    for word in [*shared, *([f"experiment={experiment}"] if experiment else [])]:
        if word.partition("=")[0] in varied:
            raise UserError(f"'{word}' stands beside a factor of the same key", where="grid", hint="keep one of them")
    rows = [
        row_of(list(zip(varied, values, strict=True)), experiment)
        for values in itertools.product(*(factor.values for factor in factors))
    ]
    refuse_shared_labels([row.label for row in rows], "grid")
    title = "; ".join(f"{factor.key}={','.join(factor.values)}" for factor in factors)
    return (
        SweepSpec(
            name=name or _name(experiment, varied, shared),
            title=f"{experiment}: {title}" if experiment else title,
            rows=tuple(rows),
            replicates=None if until else read_replicates(replicates),
            until=until,
            overrides=tuple(shared),
        ),
        here,
    )


def _name(experiment: str, varied: Sequence[str], shared: Sequence[str]) -> str:
    overrides = [digest({"overrides": sorted(shared)})[:6]] if shared else []
    return "-".join([experiment or "grid", *map(short_name, varied), *overrides])


def row_of(assignments: Sequence[tuple[str, str]], experiment: str) -> RowSpec:
    """The row with these values; an assigned experiment takes the place of the given one."""
    own = dict(assignments)
    return RowSpec(
        label=row_label(assignments),
        experiment=own.pop("experiment", experiment),
        overrides=tuple(f"{key}={value}" for key, value in own.items()),
    )


def refuse_factor(key: str, values: Sequence[str], where: str) -> None:
    """Raise UserError where rows cannot differ in `key`, or one of these options of a group does not exist."""
    if is_place(key) or key in NOT_CONFIG:
        raise UserError("is one for all rows", where=f"{where}: {key}", hint="give it beside the grid")
    if key in ("seed", "replicates"):
        raise UserError("is what replicates differ in", where=f"{where}: {key}", hint="replicates=4, and seed=<first>")
    if (key in group_keys() and key not in groups()) or key in set(ROW_OWNED) - {"experiment"}:
        raise UserError("is no key of a single value", where=f"{where}: {key}")
    for value in values:
        if re.fullmatch(r"\w+\(.*\)", value):
            raise UserError(f"'{value}' is one value here", where=f"{where}: {key}", hint="write the values out: a,b,c")
    try:
        refuse_unknown_keys([f"{key}={value}" for value in values])
    except UserError as error:
        raise UserError(error.what, where=f"{where}: {error.where}", allowed=error.allowed, hint=error.hint) from error


def _split(text: str, separator: str, where: str) -> list[str]:
    """`text` at each separator that stands outside of brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in _QUOTES:
            quote = character
        elif character in _OPENING:
            depth += 1
        elif character in _CLOSING:
            depth -= 1
        if character == separator and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += character
        if depth < 0:
            break
    if depth or quote:
        raise UserError(f"'{text}' has a bracket or quote without its other half", where=where)
    return parts
