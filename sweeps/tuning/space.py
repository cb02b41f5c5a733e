"""A search space as it is written down: `conf/search_space/<name>.yaml`, or `key=low..high;key=a,b` on a command line.

`conf/search_space/rate_and_dropout.yaml` explains every key. A dimension is a config key or group. Values are texts, as
a person would type them in an override; numbers are drawn to three significant digits, so that what is shown of a trial
is what was trained.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nmt.config.compose import CONF, groups, read_yaml
from nmt.errors import UserError, did_you_mean
from sweeps.ad_hoc import read_assignments, refuse_factor, short_name
from sweeps.spec import known_keys_only, read_override_list, read_replicates_key, read_text

SPACE_KEYS = (
    "title", "experiment", "overrides", "space", "trials", "sampler", "seed", "asha", "finalists", "replicates",
)  # fmt: skip
RANGE_KEYS = ("from", "to", "scale", "step")
ASHA_KEYS = ("first_rung", "reduction")
SCALES = ("linear", "log")
SAMPLERS = ("random", "tpe")
DIGITS = 3  # significant digits of a drawn number
_NUMBER = r"-?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_RANGE = re.compile(rf"(?P<log>log:)?(?P<low>{_NUMBER})\.\.(?P<high>{_NUMBER})")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """A dimension that takes one of these values."""

    values: tuple[str, ...]

    @property
    def size(self) -> float:
        """Number of values."""
        return len(self.values)

    def all(self) -> list[str]:
        """Every value."""
        return list(self.values)

    def at(self, position: float) -> str:
        """The value at a position in [0, 1)."""
        return self.values[int(position * len(self.values))]


@dataclass(frozen=True, kw_only=True)
class Range:
    """A dimension of numbers from `low` to `high`, both included; `step` above 0 leaves only its multiples above low.

    On a logarithmic scale every factor is as likely as every other.
    """

    low: float
    high: float
    log: bool = False
    step: float = 0.0
    whole: bool = False

    @property
    def size(self) -> float:
        """Number of values, infinite without a step."""
        return math.floor((self.high - self.low) / self.step + 1e-9) + 1 if self.step else math.inf

    def all(self) -> list[str]:
        """Every value of a range with a step; none of another, which has no end of them."""
        return [self.text(self.low + self.step * number) for number in range(int(self.size))] if self.step else []

    def at(self, position: float) -> str:
        """The value at a position in [0, 1)."""
        if self.step:
            return self.text(self.low + self.step * int(position * self.size))
        if self.log:
            return self.text(self.low * (self.high / self.low) ** position)
        return self.text(self.low + (self.high - self.low) * position)

    def text(self, value: float) -> str:
        """A number of the range as an override says it."""
        if self.whole:
            return str(min(max(round(value), round(self.low)), round(self.high)))
        if self.step:
            return f"{value:.10g}"
        return f"{min(max(float(f'{value:.{DIGITS}g}'), self.low), self.high):.10g}"


Dimension = Choice | Range


@dataclass(frozen=True, kw_only=True)
class Asha:
    """Asynchronous successive halving: the rungs at `first_rung` × `reduction`^k steps."""

    first_rung: int
    reduction: int = 3

    def rungs(self, max_steps: int) -> list[int]:
        """Steps at which a trial may be stopped, ascending."""
        steps, found = self.first_rung, []
        while steps < max_steps:
            found.append(steps)
            steps *= self.reduction
        return found


@dataclass(frozen=True, kw_only=True)
class SearchSpec:
    """A search: what is varied, how trials are proposed and stopped, and what becomes of the best."""

    name: str
    title: str
    space: Mapping[str, Dimension]
    experiment: str = "baseline"
    overrides: tuple[str, ...] = ()
    trials: int = 16
    sampler: str = "random"
    seed: int = 1
    asha: Asha | None = None
    finalists: int = 3
    replicates: int | None = None

    @property
    def size(self) -> float:
        """How many configurations the space holds; infinite with a range that has no step."""
        return math.prod(dimension.size for dimension in self.space.values())


def available_spaces(conf: Path | None = None) -> dict[str, str]:
    """Names and titles of the checked-in search spaces, sorted by name."""
    paths = sorted(((conf or CONF) / "search_space").glob("*.yaml"))
    return {path.stem: str(read_yaml(path).get("title", "")) for path in paths}


def load_space(text: str, conf: Path | None = None) -> SearchSpec:
    """The search that `search_space=` means: a file that ends in `.yaml`, a space by name, or dimensions in line.

    Raises UserError for an unknown name, and for what a file or the words say wrongly.
    """
    if "=" in text:
        return _in_line(text)
    if text.endswith(".yaml"):
        return _read(Path(text).expanduser())
    path = (conf or CONF) / "search_space" / f"{text}.yaml"
    if not path.is_file():
        known = sorted(available_spaces(conf))
        raise UserError(
            f"unknown search space '{text}'", where="search_space", allowed=known, hint=did_you_mean(text, known)
        )
    return _read(path)


def _in_line(text: str) -> SearchSpec:
    """Dimensions as a command line gives them; the experiment and everything else come beside them."""
    space: dict[str, Dimension] = {}
    for key, values in read_assignments([text], "search_space"):
        ranges = [match for value in values if (match := _RANGE.fullmatch(value))]
        if len(ranges) == len(values) == 1:
            space[key] = _range_of(ranges[0], f"search_space: {key}")
            refuse_factor(key, [space[key].at(0.0)], "search_space")
        elif ranges or any(".." in value for value in values):
            raise UserError("is no range and no list of values", where=f"search_space: {key}", allowed=RANGE_FORMS)
        else:
            refuse_factor(key, values, "search_space")
            space[key] = Choice(values=values)
    return SearchSpec(name="-".join(["search", *map(short_name, space)]), title=text, space=space)


RANGE_FORMS = ["a,b,c", "1..8", "0.1..0.4", "log:1e-4..1e-2"]


def _range_of(match: re.Match[str], where: str) -> Range:
    whole = all(re.fullmatch(r"-?\d+", match[end]) for end in ("low", "high"))
    return _checked(
        Range(
            low=float(match["low"]),
            high=float(match["high"]),
            log=bool(match["log"]),
            step=1.0 if whole and not match["log"] else 0.0,
            whole=whole,
        ),
        where,
    )


def _read(path: Path) -> SearchSpec:
    data, where = read_yaml(path), str(path)
    known_keys_only(data, SPACE_KEYS, where)
    space = data.get("space")
    if not isinstance(space, dict) or not space:
        raise UserError("must be a mapping of config keys to values or ranges", where=f"{where}: space")
    sampler = read_text(data, "sampler", where, required=False) or "random"
    if sampler not in SAMPLERS:
        raise UserError(
            f"unknown sampler '{sampler}'",
            where=f"{where}.sampler",
            allowed=list(SAMPLERS),
            hint=did_you_mean(sampler, SAMPLERS),
        )
    experiment = read_text(data, "experiment", where, required=False) or "baseline"
    if experiment not in groups()["experiment"]:
        known = groups()["experiment"]
        hint = did_you_mean(experiment, known)
        raise UserError(f"unknown option '{experiment}'", where=f"{where}.experiment", allowed=known, hint=hint)
    return SearchSpec(
        name=path.stem,
        title=read_text(data, "title", where),
        space={str(key): _dimension(str(key), value, where) for key, value in space.items()},
        experiment=experiment,
        overrides=read_override_list(data, where),
        trials=_whole(data, "trials", 16, where, at_least=1),
        sampler=sampler,
        seed=_whole(data, "seed", 1, where),
        asha=_asha(data.get("asha"), f"{where}.asha"),
        finalists=_whole(data, "finalists", 3, where),
        replicates=read_replicates_key(data, where),
    )


def _dimension(key: str, data: Any, where: str) -> Dimension:
    place = f"{where}: space"
    if isinstance(data, list) and data:
        values = tuple(_plain(value, f"{place}.{key}") for value in data)
        refuse_factor(key, values, place)
        return Choice(values=values)
    if not isinstance(data, dict):
        raise UserError(
            "must be a list of values or a range", where=f"{place}.{key}", allowed=["[a, b]", "{from: 0, to: 1}"]
        )
    known_keys_only(data, RANGE_KEYS, f"{place}.{key}")
    numbers = {name: data.get(name) for name in ("from", "to", "step") if name != "step" or "step" in data}
    for name, value in numbers.items():
        if value is None:
            raise UserError("is needed", where=f"{place}.{key}.{name}")
        if not isinstance(value, int | float) or isinstance(value, bool):
            hint = f"write {name}: {float(value)}" if isinstance(value, str) and _is_number(value) else None
            raise UserError(f"'{value}' is not a number", where=f"{place}.{key}.{name}", hint=hint)
    scale = data.get("scale", "linear")
    if scale not in SCALES:
        raise UserError(f"'{scale}' is not a choice", where=f"{place}.{key}.scale", allowed=list(SCALES))
    whole = all(isinstance(value, int) for value in numbers.values())
    step = float(numbers.get("step") or (1.0 if whole and scale == "linear" else 0.0))
    dimension = Range(
        low=float(numbers["from"] or 0), high=float(numbers["to"] or 0), log=scale == "log", step=step, whole=whole
    )
    _checked(dimension, f"{place}.{key}")
    refuse_factor(key, [dimension.at(0.0)], place)
    return dimension


def _checked(dimension: Range, where: str) -> Range:
    if dimension.high <= dimension.low:
        raise UserError(f"goes from {dimension.low:g} to {dimension.high:g}", where=where, hint="from below to")
    if dimension.log and dimension.low <= 0:
        raise UserError(f"a logarithmic range cannot begin at {dimension.low:g}", where=where, hint="from above 0")
    if dimension.step < 0 or (dimension.log and dimension.step):
        raise UserError("a step is above 0, and on a linear scale", where=where)
    return dimension


def _asha(data: Any, where: str) -> Asha | None:
    if data is None:
        return None
    if not isinstance(data, dict):
        raise UserError("must be a mapping", where=where, allowed=list(ASHA_KEYS))
    known_keys_only(data, ASHA_KEYS, where)
    if "first_rung" not in data:
        raise UserError("is needed", where=f"{where}.first_rung", hint="steps after which a trial may be stopped")
    return Asha(
        first_rung=_whole(data, "first_rung", 1, where, at_least=1),
        reduction=_whole(data, "reduction", 3, where, at_least=2),
    )


def _whole(data: Mapping[str, Any], name: str, default: int, where: str, at_least: int = 0) -> int:
    value = data.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
        raise UserError(f"'{value}' is no number of this kind", where=f"{where}.{name}", allowed=[f">= {at_least}"])
    return value


def _plain(value: Any, where: str) -> str:
    """A YAML scalar as an override says it."""
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str | int | float):
        raise UserError(f"'{value}' is not a single value", where=where)
    return str(value)


def _is_number(text: str) -> bool:
    return re.fullmatch(_NUMBER, text) is not None


def check_trial_words(words: Sequence[str], spec: SearchSpec) -> None:
    """Raise UserError for an override that the space varies itself."""
    for word in words:
        if word.partition("=")[0] in spec.space:
            raise UserError(f"'{word}' stands beside a dimension of the same key", where="search_space")
