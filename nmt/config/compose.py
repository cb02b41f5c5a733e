"""From YAML groups and `key=value` overrides to a validated `RunConfig`.

Hydra and OmegaConf are imported where they are used: what keys and groups there are is answered without them, as help
and completion do.
"""

from __future__ import annotations

import dataclasses
import os
import pickle
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from nmt.config.schema import RunConfig
from nmt.config.validation import validate
from nmt.errors import UserError, did_you_mean
from nmt.passwords import without_password

if TYPE_CHECKING:
    from hydra.core.config_loader import ConfigLoader
    from hydra.core.override_parser.types import Override
    from omegaconf import DictConfig

CONF = Path(__file__).resolve().parents[2] / "conf"
NOT_CONFIG = ("sweep", "search_space", "claims", "study")  # folders of conf/ that are no part of a run's configuration
State = tuple[tuple[str, int, int], ...]
SMALLEST_DIM = 8  # sizes never shrink below this, whatever the scale
HYDRA = ("hydra/", "hydra.")  # beginnings of Hydra's own keys


def compose(overrides: Sequence[str] = (), conf: Path | None = None) -> RunConfig:
    """Compose `conf/config.yaml` with command-line overrides (later ones win) and validate the result.

    Raises UserError for an unknown group, name or key, a value of the wrong type or out of range, and for YAML that
    does not parse (with file and line).
    """
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    conf = (conf or CONF).resolve()
    state = _state_of(conf)
    known_groups = _groups(conf, state)
    _refuse_unknown_keys(overrides, known_groups)
    choices = tuple(text for text in overrides if text.partition("=")[0] in known_groups)
    for override in parse_overrides([text for text in choices if re.search("[,(]", text)]):
        _refuse_several(override)
    values = [text for text in overrides if text.partition("=")[0] not in known_groups]
    try:
        composed = pickle.loads(_compose_files(choices, conf, state))
        _apply(values, composed)
        config = OmegaConf.to_object(composed)
    except yaml.YAMLError as error:
        raise yaml_error(error, conf) from error
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_first_sentence(error), where=_guilty_override(error, overrides)) from error
    assert isinstance(config, RunConfig)
    validate(config)
    return config


@lru_cache(maxsize=256)  # of 20 kB each
def _compose_files(choices: tuple[str, ...], conf: Path, state: State) -> bytes:
    """What the files say with these options of groups; the rows of a sweep that differ in values only share it.

    `state` is that of the files, so that an edit counts. It is kept pickled, inside this process: everyone who composes
    needs a copy to change, and reading one back takes a sixth of what `copy.deepcopy` takes.
    """
    laid_over = _lay_experiment_over(choices, conf, state)
    return pickle.dumps(_compose_by_hydra(choices, conf) if laid_over is None else laid_over)


def _compose_by_hydra(choices: Sequence[str], conf: Path) -> DictConfig:
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    ConfigStore.instance().store("schema", _schema(), provider="nmt")
    OmegaConf.register_new_resolver("dim", _dim, replace=True)
    OmegaConf.register_new_resolver("alone", lambda count: int(count == 1), replace=True)
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf), version_base="1.3"):
        return hydra_compose("config", overrides=list(choices))


def _lay_experiment_over(choices: Sequence[str], conf: Path, state: State) -> DictConfig | None:
    """The same, with the experiment's values laid over what Hydra composes without it; None where that may differ.

    Experiments stand last, so the forty of the published study share a handful of compositions, which take Hydra a
    quarter of a second each. Done where an experiment exchanges parts of the model at most, and nobody else does.
    """
    from omegaconf import DictConfig, OmegaConf, open_dict
    from omegaconf.errors import OmegaConfBaseException

    named = [choice.partition("=")[2] for choice in choices if choice.startswith("experiment=")]
    others = [choice for choice in choices if not choice.startswith("experiment=")]
    path = conf / "experiment" / f"{named[0] if named else ''}.yaml"
    if len(named) != 1 or any(choice.startswith("model") for choice in others) or not path.is_file():
        return None
    if not path.read_text(encoding="utf-8").startswith("# @package _global_\n"):
        return None
    values = OmegaConf.load(path)
    assert isinstance(values, DictConfig)
    exchanged: Any = OmegaConf.to_container(values.pop("defaults", OmegaConf.create([])))
    if not all(
        isinstance(part, dict) and len(part) == 1 and str(*part).startswith("override /model/") for part in exchanged
    ):
        return None
    parts = [f"{key.removeprefix('override /')}={option}" for part in exchanged for key, option in part.items()]
    without = (*others, *parts, "~experiment")
    composed: DictConfig = pickle.loads(_compose_files(without, conf, state))
    try:
        with open_dict(composed):  # of the mappings of options, which may get entries; sections keep to their types
            composed.merge_with(values)
    except OmegaConfBaseException:
        return None  # Hydra says it in its own words
    return composed


def _state_of(conf: Path) -> State:
    """Path, time and size of every YAML file, sorted."""
    found = []
    for folder, _, names in os.walk(conf):  # every composition asks, and pathlib takes three times as long
        for path in (f"{folder}/{name}" for name in names if name.endswith(".yaml")):
            stat = Path(path).stat()
            found.append((path, stat.st_mtime_ns, stat.st_size))
    return tuple(sorted(found))


def _apply(values: Sequence[str], composed: DictConfig) -> None:
    """Lay `key=value` words over a composed configuration, as Hydra does once its files are merged."""
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    for override in parse_overrides([permit_new_entry(text) for text in values]):
        _refuse_several(override)
        try:
            OmegaConf.update(
                composed, override.key_or_group, override.value(), merge=True, force_add=override.is_force_add()
            )
        except OmegaConfBaseException as error:
            raise HydraException(f"Error merging override {override.input_line}") from error


def parse_overrides(texts: Sequence[str], loader: ConfigLoader | None = None) -> list[Override]:
    """`key=value` words as Hydra reads them; `loader` knows the options that `glob()` chooses from.

    Raises UserError for the first that does not parse.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import OverrideParseException

    try:
        return list(OverridesParser.create(config_loader=loader).parse_overrides(list(texts)))
    except OverrideParseException as error:
        hint = "quotes go around a value with a comma, bracket or space of its own: label='\"a, b\"'"
        raise UserError("cannot be read as key=value", where=str(error.override), hint=hint) from error


def _refuse_several(override: Override) -> None:
    if not override.is_sweep_override():
        return
    name, value = override.key_or_group, str(override.input_line).partition("=")[2]
    hint = "`nmt train -m` trains a run for each, `nmt sweep grid=...` makes a table of them"
    if name in _lists():
        hint = f"a list is written {name}='[{value}]'"
    raise UserError(f"'{value}' means several values, and a run takes one", where=name, hint=hint)


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Plain nested data, as written to `config.yaml` and carried between processes: without passwords."""
    data = dataclasses.asdict(config)
    data["tracking"]["uri"] = without_password(config.tracking.uri)
    return data


def to_yaml(config: RunConfig) -> str:
    """`to_dict` as the text of a `config.yaml`."""
    return str(yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True))


def from_dict(data: Mapping[str, Any]) -> RunConfig:
    """The `RunConfig` of what `to_dict` returned; keys that are absent take their neutral or default value."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        config = OmegaConf.to_object(OmegaConf.merge(_schema(), OmegaConf.create(dict(data))))
    except OmegaConfBaseException as error:
        raise UserError(_first_sentence(error)) from error
    assert isinstance(config, RunConfig)
    return config


def load_run_config(path: Path) -> RunConfig:
    """Read a run directory's `config.yaml`."""
    return from_dict(read_yaml(path))


def read_yaml(path: Path) -> dict[str, Any]:
    """Parse a YAML mapping; a syntax error names file and line."""
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise yaml_error(error, path) from error
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=str(path)) from error
    if not isinstance(data, dict):
        raise UserError("must hold a mapping of keys to values", where=str(path))
    return data


def yaml_error(error: yaml.YAMLError, path: Path) -> UserError:
    """A one-line error with file and line for YAML that does not parse."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or "does not parse"
    if mark is None:
        return UserError(f"YAML syntax: {problem}", where=str(path))
    name = mark.name if Path(str(mark.name)).is_file() else str(path)
    return UserError(f"YAML syntax: {problem}", where=f"{name}:{mark.line + 1}")


def known_keys() -> list[str]:
    """Every dotted key of the schema, sections included."""
    return sorted(name for name, _ in _walk(RunConfig, ""))


def key_fields() -> dict[str, dataclasses.Field[Any]]:
    """Every dotted key of the schema with its field, sections included."""
    return dict(_walk(RunConfig, ""))


def group_keys() -> frozenset[str]:
    """The dotted keys that are sections, not values."""
    return frozenset(name for name, field in _walk(RunConfig, "") if dataclasses.is_dataclass(field.default_factory))


def groups(conf: Path | None = None) -> dict[str, list[str]]:
    """Config groups and their options: `{"model/attention": ["additive", ...], ...}`."""
    root = conf or CONF
    return {group: list(options) for group, options in _groups(root, _state_of(root)).items()}


@lru_cache(maxsize=8)
def _groups(root: Path, state: State) -> Mapping[str, Sequence[str]]:
    found: dict[str, list[str]] = {}
    for path in (Path(name).relative_to(root) for name, _, _ in state):
        if len(path.parts) > 1 and not (len(path.parts) > 2 and path.parts[0] in NOT_CONFIG):  # claims of a study
            found.setdefault(path.parent.as_posix(), []).append(path.stem)
    return {group: sorted(options) for group, options in sorted(found.items())}


def _walk(cls: Any, prefix: str) -> Iterator[tuple[str, dataclasses.Field[Any]]]:
    for field in dataclasses.fields(cls):
        yield f"{prefix}{field.name}", field
        if dataclasses.is_dataclass(field.default_factory):
            yield from _walk(field.default_factory, f"{prefix}{field.name}.")


@cache
def _schema() -> DictConfig:
    from omegaconf import OmegaConf

    # Hydra 1.3 cannot merge into nodes of frozen dataclasses: OmegaConf marks each of them read-only.
    node: DictConfig = OmegaConf.structured(RunConfig)
    _clear_read_only(node)
    return node


def _clear_read_only(node: DictConfig) -> None:
    from omegaconf import DictConfig, OmegaConf

    OmegaConf.set_readonly(node, None)
    for name in node:
        child = node._get_node(name)
        if isinstance(child, DictConfig):
            _clear_read_only(child)


def _dim(published: int, *, _root_: DictConfig) -> int:
    """A published size shrunk by the chosen scale: `${dim:512}`."""
    return max(SMALLEST_DIM, int(published) // int(_root_.scale.dim_divisor))


def refuse_unknown_keys(overrides: Sequence[str], conf: Path | None = None) -> None:
    """Raise UserError for the first override whose key, or option of a group, does not exist."""
    _refuse_unknown_keys(overrides, groups(conf))


def _refuse_unknown_keys(overrides: Sequence[str], known_groups: Mapping[str, Sequence[str]]) -> None:
    keys = _key_set()
    for override in overrides:
        match = re.match(r"^(?P<prefix>\+\+|\+|~)?(?P<key>[A-Za-z0-9_./@]+)(?:=(?P<value>.*))?$", override, re.DOTALL)
        if match is None or (match["value"] is None and match["prefix"] != "~"):
            raise UserError("is not of the form key=value", where=override)
        if match["prefix"]:
            raise UserError(f"'{match['prefix']}' adds or removes keys, and the schema is fixed", where=override)
        name = match["key"]
        if name.startswith(HYDRA):
            raise UserError("is about several jobs", where=name, hint="`nmt train -m` hands them out")
        if name in known_groups:
            value = match["value"].strip("'\"")
            if re.fullmatch(r"[\w.-]+", value) and value not in known_groups[name] and value != "null":
                raise UserError(
                    f"unknown option '{value}'",
                    where=name,
                    allowed=known_groups[name],
                    hint=did_you_mean(value, known_groups[name]),
                )
        elif name not in keys and not _is_in_free_mapping(name):
            hint = did_you_mean(name, keys | set(known_groups)) or "`nmt train --help` lists groups and keys"
            raise UserError("unknown key", where=name, hint=hint)


@cache
def _key_set() -> frozenset[str]:
    return frozenset(known_keys())


@cache
def _free_mappings() -> frozenset[str]:
    return frozenset(name for name, field in _walk(RunConfig, "") if field.default_factory is dict)


@cache
def _lists() -> frozenset[str]:
    return frozenset(name for name, field in _walk(RunConfig, "") if field.default_factory is list)


def _is_in_free_mapping(name: str) -> bool:
    return any(name == mapping or name.startswith(f"{mapping}.") for mapping in _free_mappings())


def permit_new_entry(override: str) -> str:
    """An override as Hydra wants it, which adds an entry to a mapping only where told to.

    What the mappings of options may hold is their component's business.
    """
    return f"++{override}" if _is_in_free_mapping(override.partition("=")[0]) else override


def _first_sentence(error: Exception) -> str:
    from omegaconf.errors import OmegaConfBaseException

    error = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(
        line for line in lines if not line.startswith(("full_key", "object_type", "reference_type", "See https"))
    )
    return text or type(error).__name__


def _guilty_override(error: Exception, overrides: Sequence[str]) -> str | None:
    full_key = getattr(error, "full_key", None)
    if full_key:
        return str(full_key)
    return next((override for override in overrides if override in str(error)), None)
