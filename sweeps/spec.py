"""A sweep as it is written down: `conf/sweep/<name>.yaml`, read strictly.

title: what the sweep is about, in a few words
replicates: 2                  # of each row, or a rule: until ci<0.3 max=12 (`sweeps.until`); absent: as the scale says
apart: true                    # train rows that differ in nothing but `distribution` each (`sweeps.apart`); optional
columns: [score, idle_mean]    # of the table, where the command line names none; optional
baseline: additive             # label of the row that the others are compared with; optional
published_source: a paper      # where the published numbers stand, and what exactly they are; optional
overrides: [data=toy_copy]     # config overrides of all rows
test: newstest2013             # test set of all rows, where the corpus names one so (data.tests); optional
rows:
  - label: additive            # name in tables and pictures, unique
    experiment: t5_add_512     # conf/experiment/<name>.yaml; absent: baseline
    overrides: []              # config overrides of this row
    test: newstest2014         # test set of this row alone; optional
    published: {mean: 22.47, std: 0.27, max: 22.79, params_M: 66.33}  # each optional
systems:                       # what was published beside the rows, and is not ours to train; optional
  - label: BPE-Char
    published: {newstest2014: 21.5, newstest2015: 23.9}  # by test set
    source: Chung et al. 2016
    unconfirmed: why the figures may be another system's  # optional

`published.params_note` says why a row's parameter count is known to differ from the published figure; without it a
difference is an error before anything starts (see `sweeps.counts`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nmt.config.compose import CONF, read_yaml
from nmt.errors import UserError, did_you_mean
from sweeps.until import read_until

SWEEP_KEYS = (
    "title", "replicates", "apart", "columns", "baseline", "published_source", "overrides", "test", "rows", "systems",
)  # fmt: skip
ROW_KEYS = ("label", "experiment", "overrides", "test", "published")
SYSTEM_KEYS = ("label", "published", "source", "unconfirmed")
PUBLISHED_NUMBERS = ("mean", "std", "max", "params_M")
PUBLISHED_KEYS = (*PUBLISHED_NUMBERS, "params_note")
ROW_OWNED = ("experiment", "label")  # what a row says itself, and no override may say for all rows


@dataclass(frozen=True, kw_only=True)
class Published:
    """What a publication printed for a row: BLEU mean, standard deviation and maximum, parameters in millions.

    `params_note` documents a parameter count that is known not to agree, empty where it does.
    """

    mean: float | None = None
    std: float | None = None
    max: float | None = None
    params_M: float | None = None
    params_note: str = ""


@dataclass(frozen=True, kw_only=True)
class RowSpec:
    """A row: one configuration, as an experiment plus overrides.

    `test` names the test set that the row is scored on, where the corpus has one of this name (`data.tests`).
    """

    label: str
    experiment: str = "baseline"
    overrides: tuple[str, ...] = ()
    test: str = ""
    published: Published | None = None


@dataclass(frozen=True, kw_only=True)
class SystemSpec:
    """Another system of the published table: its BLEU by test set, and where it was described.

    `unconfirmed` says why the figures may not be this system's, empty where they are certain.
    """

    label: str
    published: Mapping[str, float]
    source: str
    unconfirmed: str = ""


@dataclass(frozen=True, kw_only=True)
class SweepSpec:
    """Rows that are trained in replicates and shown in one table.

    `replicates` is None where the scale decides, or the rule `until` (`sweeps.until`), which is empty without one.
    `apart` keeps the runs of each distribution in a store of their own (`sweeps.apart`); `columns` are those of the
    table, empty for the usual ones.
    """

    name: str
    title: str
    rows: tuple[RowSpec, ...]
    replicates: int | None = None
    until: str = ""
    baseline: str | None = None
    published_source: str = ""
    overrides: tuple[str, ...] = ()
    systems: tuple[SystemSpec, ...] = ()
    apart: bool = False
    columns: tuple[str, ...] = ()


def available_sweeps(conf: Path | None = None) -> dict[str, str]:
    """Names and titles of the checked-in sweeps, sorted by name."""
    paths = sorted(((conf or CONF) / "sweep").glob("*.yaml"))
    return {path.stem: str(read_yaml(path).get("title", "")) for path in paths}


def load_spec(name: str, conf: Path | None = None) -> SweepSpec:
    """The sweep called `name` (a unique beginning will do), or the one in the file `name` where it ends in `.yaml`.

    Raises UserError for an unknown name, unknown keys (with the nearest known ones), duplicate labels and values of the
    wrong kind.
    """
    if name.endswith(".yaml"):
        return _read_spec(Path(name).expanduser())
    folder = (conf or CONF) / "sweep"
    path = folder / f"{name}.yaml"
    meant = [path] if path.is_file() else sorted(folder.glob("*.yaml"))
    meant = [one for one in meant if one.stem.startswith(name)]
    if len(meant) != 1:
        known = sorted(available_sweeps(conf))
        what = f"'{name}' may mean {' or '.join(one.stem for one in meant)}" if meant else f"unknown sweep '{name}'"
        raise UserError(what, where="sweep", allowed=known, hint=did_you_mean(name, known))
    return _read_spec(meant[0])


def _read_spec(path: Path) -> SweepSpec:
    data = read_yaml(path)
    known_keys_only(data, SWEEP_KEYS, str(path))
    rows_data = data.get("rows")
    if not isinstance(rows_data, list) or not rows_data:
        raise UserError("must be a list of at least one row", where=f"{path}: rows")
    test = read_text(data, "test", str(path), required=False)
    rows = tuple(_read_row(row, f"{path}: rows[{number}]", test) for number, row in enumerate(rows_data))
    labels = [row.label for row in rows]
    refuse_shared_labels(labels, f"{path}: rows")
    baseline = read_text(data, "baseline", str(path), required=False)
    if baseline and baseline not in labels:
        raise UserError(
            f"no row is labelled '{baseline}'",
            where=f"{path}: baseline",
            allowed=labels,
            hint=did_you_mean(baseline, labels),
        )
    until = _read_rule(data, str(path))
    return SweepSpec(
        name=path.stem,
        title=read_text(data, "title", str(path)),
        rows=rows,
        replicates=None if until else read_replicates_key(data, str(path)),
        until=until,
        baseline=baseline or None,
        published_source=read_text(data, "published_source", str(path), required=False),
        overrides=read_override_list(data, str(path)),
        systems=_systems(data, f"{path}: systems"),
        apart=read_flag(data, "apart", str(path)),
        columns=_read_columns(data, str(path)),
    )


def _read_row(data: Any, where: str, test: str) -> RowSpec:
    if not isinstance(data, dict):
        raise UserError("must be a mapping", where=where, allowed=list(ROW_KEYS))
    known_keys_only(data, ROW_KEYS, where)
    return RowSpec(
        label=read_text(data, "label", where),
        experiment=read_text(data, "experiment", where, required=False) or "baseline",
        overrides=read_override_list(data, where),
        test=read_text(data, "test", where, required=False) or test,
        published=_published(data.get("published"), f"{where}.published"),
    )


def known_keys_only(data: Mapping[Any, Any], known: Sequence[str], where: str) -> None:
    """Raise UserError for the first key of a mapping that is not known."""
    for name in data:
        if name not in known:
            hint = did_you_mean(str(name), known)
            raise UserError(f"unknown key '{name}'", where=where, allowed=list(known), hint=hint)


def read_text(data: Mapping[str, Any], name: str, where: str, required: bool = True) -> str:
    """The text under `name`; empty where it is absent and not required. Raises UserError for anything else."""
    value = data.get(name)
    if value is None and not required:
        return ""
    if not isinstance(value, str) or not value.strip():
        hint = f"write {name}: '{value}'" if isinstance(value, int | float) else None
        raise UserError("must be text", where=f"{where}.{name}", hint=hint)
    return value


def read_replicates_key(data: Mapping[str, Any], where: str) -> int | None:
    """The number under `replicates`, None where it is absent. Raises UserError for what is no number above 0."""
    value = data.get("replicates")
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise UserError(f"'{value}' is not a number of replicates", where=f"{where}.replicates", allowed=[">= 1"])
    return value


def _read_rule(data: Mapping[str, Any], where: str) -> str:
    """The rule under `replicates`, empty where none stands there. Raises UserError for one that makes no sense."""
    value = data.get("replicates")
    try:
        return value if isinstance(value, str) and read_until(value) else ""
    except UserError as error:
        raise UserError(error.what, where=f"{where}.{error.where}", allowed=error.allowed, hint=error.hint) from error


def read_override_list(data: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """The `key=value` words under `overrides`. Raises UserError for what is none, or may not go for all rows."""
    value = data.get("overrides") or []
    if not isinstance(value, list) or not all(isinstance(item, str) and "=" in item for item in value):
        raise UserError(
            "must be a list of key=value", where=f"{where}.overrides", hint="such as [training.max_steps=400]"
        )
    refuse_row_owned(value, f"{where}.overrides")
    return tuple(value)


def refuse_row_owned(overrides: list[str] | tuple[str, ...], where: str) -> None:
    """Raise UserError for an override that would give all rows the same experiment or label."""
    for override in overrides:
        if override.partition("=")[0] in ROW_OWNED:
            raise UserError(
                f"'{override}' would apply to every row", where=where, hint="each row has its own key for it"
            )


def refuse_shared_labels(labels: Sequence[str], where: str) -> None:
    """Raise UserError where two rows have one label: nobody could tell them apart."""
    for label, count in Counter(labels).items():
        if count > 1:
            raise UserError(f"{count} rows are labelled '{label}'", where=where)


def read_flag(data: Mapping[str, Any], name: str, where: str) -> bool:
    """True or false under `name`, false where it is absent. Raises UserError for anything else."""
    value = data.get(name, False)
    if not isinstance(value, bool):
        raise UserError(f"'{value}' is neither true nor false", where=f"{where}.{name}")
    return value


def _read_columns(data: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """Names of columns; which there are is checked where they are laid out."""
    value = data.get("columns") or []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise UserError("must be a list of text", where=f"{where}.columns", hint="such as [score, steps]")
    return tuple(value)


def _published(data: Any, where: str) -> Published | None:
    if data is None:
        return None
    if not isinstance(data, dict):
        raise UserError("must be a mapping", where=where, allowed=list(PUBLISHED_KEYS))
    known_keys_only(data, PUBLISHED_KEYS, where)
    numbers = _numbers({name: data[name] for name in PUBLISHED_NUMBERS if name in data}, where)
    return Published(**numbers, params_note=read_text(data, "params_note", where, required=False))


def _systems(data: Mapping[str, Any], where: str) -> tuple[SystemSpec, ...]:
    value = data.get("systems") or []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise UserError("must be a list of mappings", where=where, allowed=list(SYSTEM_KEYS))
    return tuple(_read_system(item, f"{where}[{number}]") for number, item in enumerate(value))


def _read_system(data: Mapping[str, Any], where: str) -> SystemSpec:
    known_keys_only(data, SYSTEM_KEYS, where)
    published = data.get("published")
    if not isinstance(published, dict) or not published:
        raise UserError("must be a mapping of test sets to BLEU", where=f"{where}.published")
    return SystemSpec(
        label=read_text(data, "label", where),
        published=_numbers(published, f"{where}.published"),
        source=read_text(data, "source", where),
        unconfirmed=read_text(data, "unconfirmed", where, required=False),
    )


def _numbers(data: Mapping[str, Any], where: str) -> dict[str, float]:
    for name, value in data.items():
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise UserError(f"'{value}' is not a number", where=f"{where}.{name}")
    return {name: float(value) for name, value in data.items()}
