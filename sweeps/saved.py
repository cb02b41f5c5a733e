"""A sweep written back as YAML, so that `nmt sweep sweep=<name>` runs it again: the same rows, the same run ids."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from nmt.config.compose import CONF
from nmt.errors import UserError
from sweeps.spec import SweepSpec


def place_of(save: str, conf: Path | None = None) -> Path:
    """The file that `save=` means: a path where it ends in `.yaml`, else `conf/sweep/<name>.yaml`."""
    if save.endswith(".yaml"):
        return Path(save).expanduser()
    if not re.fullmatch(r"\w[\w.-]*", save):
        hint = "letters, digits, _ . and -; or a path that ends in .yaml"
        raise UserError(f"'{save}' is no name of a sweep", where="save", hint=hint)
    return (conf or CONF) / "sweep" / f"{save}.yaml"


def refuse_other_file(path: Path, spec: SweepSpec, words: Sequence[str]) -> None:
    """Raise UserError where `path` holds something else than `save_spec` would write there."""
    if path.exists() and (not path.is_file() or path.read_text(encoding="utf-8") != _text(path, spec, words)):
        raise UserError(
            "exists and says something else", where=f"save={path}", hint="choose another name, or remove the file"
        )


def save_spec(path: Path, spec: SweepSpec, words: Sequence[str]) -> bool:
    """Write the sweep; whether the file is new. `words` are those of `nmt sweep` that made it, for its head.

    A file that says the same is left as it is; one that says something else is refused with UserError.
    """
    refuse_other_file(path, spec, words)
    if path.exists():
        return False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(_text(path, spec, words))
    except OSError as error:
        raise UserError(f"cannot be written: {error.strerror}", where=f"save={path}") from error
    return True


def to_yaml(spec: SweepSpec) -> str:
    """The text that `sweeps.spec.load_spec` reads back as the same sweep."""
    data: dict[str, Any] = {"title": spec.title}
    if replicates := spec.until or spec.replicates:
        data["replicates"] = replicates
    if spec.baseline:
        data["baseline"] = spec.baseline
    if spec.overrides:
        data["overrides"] = list(spec.overrides)
    data["rows"] = [
        {"label": row.label, "experiment": row.experiment}
        | ({"overrides": list(row.overrides)} if row.overrides else {})
        for row in spec.rows
    ]
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=116)


def _text(path: Path, spec: SweepSpec, words: Sequence[str]) -> str:
    name = path.stem if path.parent.name == "sweep" else path.name
    return f"# nmt sweep sweep={name}\n# Made by: {shlex.join(['nmt', 'sweep', *words])}\n{to_yaml(spec)}"
