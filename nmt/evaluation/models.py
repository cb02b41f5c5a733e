"""Which checkpoints a command line means, and the model that they make: one, or several as an ensemble."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from operator import attrgetter
from pathlib import Path
from typing import Any

from nmt.config import RunConfig, load_run_config
from nmt.config.widths import NO_ATTENTION
from nmt.errors import UserError
from nmt.runs import RunStore, locate_run
from nmt.search.ensemble import Ensemble
from nmt.training.checkpoint import LoadedModel, find_checkpoint, load_model

_SHARED_KEYS = (  # what turns lines into the tokens that all members read, and the arithmetic that they share
    "data.moses",
    "data.lowercase",
    "data.source_language",
    "data.target_language",
    "training.precision",
)


def find_checkpoints(runs: Sequence[str], checkpoints: Sequence[str], root: str, verb: str) -> list[Path]:
    """The checkpoint files that `run=a,b` (the best of each) or `checkpoint=file,file` mean.

    `root` is the directory of runs, see `locate_run`. Raises UserError where neither or both are given, for what is not
    there, and for a file named twice.
    """
    if bool(runs) == bool(checkpoints):
        raise UserError("give one of run=... and checkpoint=...", where=verb, hint="see --help")
    if runs:
        paths = [find_checkpoint(*locate_run(run, root)) for run in runs]
    else:
        paths = [Path(name).expanduser() for name in checkpoints]
        for path, name in zip(paths, checkpoints, strict=True):
            if not path.is_file():
                raise UserError("no such file", where=f"checkpoint={name}")
    resolved = [path.resolve() for path in paths]
    for number, path in enumerate(resolved):
        if path in resolved[:number]:
            given = (runs or checkpoints)[number]
            raise UserError("is given twice", where=f"{'run' if runs else 'checkpoint'}={given}")
    return resolved


def run_of(checkpoint: Path) -> tuple[RunStore, str]:
    """The store and run id that a checkpoint file lies in. Raises UserError where it lies in no run directory."""
    directory = checkpoint.resolve().parents[1]
    if not (directory / "config.yaml").is_file():
        raise UserError("does not lie in a run's checkpoints/", where=str(checkpoint))
    return locate_run(str(directory))


def configurations(checkpoints: Sequence[Path]) -> list[RunConfig]:
    """Of each checkpoint file the configuration of its run. Raises UserError where it lies in no run directory."""
    return [load_run_config(store.directory(run_id) / "config.yaml") for store, run_id in map(run_of, checkpoints)]


def load_models(paths: Sequence[Path], combination: str = "log_prob", device: str = "cpu") -> LoadedModel:
    """The model of one checkpoint, or several as one that averages their next-token distributions.

    `combination` is `log_prob` or `prob`: what is averaged. The members may differ in architecture; configuration,
    tokenizers and step are those of the first one. Raises UserError where they do not read the same source tokens or do
    not write the same target vocabulary.
    """
    members = [load_model(path, device) for path in paths]
    first = members[0]
    if len(members) == 1:
        return first
    for path, member in zip(paths[1:], members[1:], strict=True):
        _check_members(first, paths[0], member, path)
    return replace(
        first,
        model=Ensemble(
            [member.model for member in members],
            combination,
            [member.config.model.attention.name not in NO_ATTENTION for member in members],
        ),
        digest=ensemble_digest([member.digest for member in members], combination),
    )


def ensemble_digest(digests: Sequence[str], combination: str) -> str:
    """What stands for an ensemble in the place of a checkpoint's digest; their order counts, since sums are rounded."""
    text = json.dumps({"combination": combination, "checkpoints": list(digests)})
    return hashlib.sha256(text.encode()).hexdigest()


def _check_members(first: LoadedModel, first_path: Path, other: LoadedModel, path: Path) -> None:
    for side in ("source", "target"):
        mine, yours = (getattr(loaded, f"{side}_tokenizer").to_json() for loaded in (first, other))
        if mine != yours:
            raise UserError(
                f"has another {side} tokenizer than {first_path}: {_difference(mine, yours)}",
                where=str(path),
                hint="the members of an ensemble share both tokenizers",
            )
    for key in _SHARED_KEYS:
        mine, yours = map(attrgetter(key), (first.config, other.config))
        if mine != yours:
            raise UserError(
                f"{key} is {yours}, and in {first_path} {mine}",
                where=str(path),
                hint="the members of an ensemble share it",
            )


def _difference(mine: Mapping[str, Any], yours: Mapping[str, Any]) -> str:
    """The first thing in which two tokenizers differ, in a few words."""
    if mine["name"] != yours["name"]:
        return f"{yours['name']} instead of {mine['name']}"
    if mine.get("size") != yours.get("size"):
        return f"{yours.get('size')} rows instead of {mine.get('size')}"
    if mine.get("types") != yours.get("types"):
        missing = len(set(mine.get("types", ())) - set(yours.get("types", ())))
        return f"{missing} of {len(mine.get('types', ()))} types are not in it" if missing else "another order of types"
    return "it was learned from other text"
