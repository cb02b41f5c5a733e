"""From YAML groups and `key=value` overrides to a validated `RunConfig`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from nmt.config.schema import RunConfig
from nmt.config.validation import validate
from nmt.errors import UserError, did_you_mean

CONF = Path(__file__).resolve().parents[2] / "conf"
SMALLEST_DIM = 8  # sizes never shrink below this, whatever the scale


def compose(overrides: Sequence[str] = (), conf: Path | None = None) -> RunConfig:
    """Compose `conf/config.yaml` with command-line overrides (later ones win) and validate the result.

    Raises UserError for an unknown group, name or key, a value of the wrong type or out of range, and for YAML that
    does not parse (with file and line).
    """
    conf = (conf or CONF).resolve()
    _register()
    _refuse_unknown_keys(overrides, conf)
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf), version_base="1.3"):
            composed = hydra_compose("config", overrides=[_permit_new_entry(text) for text in overrides])
        config = OmegaConf.to_object(composed)
    except yaml.YAMLError as error:
        raise yaml_error(error, conf) from error
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_first_sentence(error), where=_guilty_override(error, overrides)) from error
    assert isinstance(config, RunConfig)
    validate(config)
    return config


def to_dict(config: RunConfig) -> dict[str, Any]:
    """Plain nested data, as written to `config.yaml` and carried between processes."""
    return dataclasses.asdict(config)


def from_dict(data: Mapping[str, Any]) -> RunConfig:
    """The `RunConfig` of what `to_dict` returned; keys that are absent take their neutral or default value."""
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


def group_keys() -> frozenset[str]:
    """The dotted keys that are sections, not values."""
    return frozenset(name for name, field in _walk(RunConfig, "") if dataclasses.is_dataclass(field.default_factory))


def groups(conf: Path | None = None) -> dict[str, list[str]]:
    """Config groups and their options: `{"model/attention": ["additive", ...], ...}`."""
    found: dict[str, list[str]] = {}
    root = conf or CONF
    for path in sorted(root.rglob("*.yaml")):
        group = path.parent.relative_to(root).as_posix()
        if group != ".":
            found.setdefault(group, []).append(path.stem)
    return found


def _walk(cls: Any, prefix: str) -> Iterator[tuple[str, dataclasses.Field[Any]]]:
    for field in dataclasses.fields(cls):
        yield f"{prefix}{field.name}", field
        if dataclasses.is_dataclass(field.default_factory):
            yield from _walk(field.default_factory, f"{prefix}{field.name}.")


@cache
def _schema() -> DictConfig:
    # Hydra 1.3 cannot merge into nodes of frozen dataclasses: OmegaConf marks each of them read-only.
    node: DictConfig = OmegaConf.structured(RunConfig)
    _clear_read_only(node)
    return node


def _clear_read_only(node: DictConfig) -> None:
    OmegaConf.set_readonly(node, None)
    for name in node:
        child = node._get_node(name)
        if isinstance(child, DictConfig):
            _clear_read_only(child)


def _register() -> None:
    ConfigStore.instance().store("schema", _schema(), provider="nmt")
    OmegaConf.register_new_resolver("dim", _dim, replace=True)


def _dim(published: int, *, _root_: DictConfig) -> int:
    """A published size shrunk by the chosen scale: `${dim:512}`."""
    return max(SMALLEST_DIM, int(published) // int(_root_.scale.dim_divisor))


def _refuse_unknown_keys(overrides: Sequence[str], conf: Path) -> None:
    keys, known_groups = set(known_keys()), groups(conf)
    for override in overrides:
        match = re.match(r"^(?P<prefix>\+\+|\+|~)?(?P<key>[A-Za-z0-9_./@]+)(?:=(?P<value>.*))?$", override, re.DOTALL)
        if match is None or (match["value"] is None and match["prefix"] != "~"):
            raise UserError("is not of the form key=value", where=override)
        if match["prefix"]:
            raise UserError(f"'{match['prefix']}' adds or removes keys, and the schema is fixed", where=override)
        name = match["key"]
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
def _free_mappings() -> frozenset[str]:
    return frozenset(name for name, field in _walk(RunConfig, "") if field.default_factory is dict)


def _is_in_free_mapping(name: str) -> bool:
    return any(name == mapping or name.startswith(f"{mapping}.") for mapping in _free_mappings())


def _permit_new_entry(override: str) -> str:
    # Hydra adds an entry to a mapping only where told to; what these mappings may hold is their component's business.
    return f"++{override}" if _is_in_free_mapping(override.partition("=")[0]) else override


def _first_sentence(error: Exception) -> str:
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
