"""Checkpoints: written whole or not at all, loaded without executing anything, checked against the configuration."""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from distributed.strategy import StateFiles, StateIndex, TensorsInFiles
from nmt.config import explain_difference, from_dict, training_identity
from nmt.config.schema import RunConfig
from nmt.config.seeds import drawn
from nmt.errors import UserError
from nmt.runs import FORMAT_VERSION, RunStore, check_format
from nmt.training.checkpoint_files import checkpoint_name as checkpoint_name
from nmt.training.checkpoint_files import drop_checkpoint
from nmt.training.checkpoint_files import list_checkpoints as list_checkpoints
from nmt.training.state import RunState

if TYPE_CHECKING:
    from nmt.data.tokenizer import Tokenizer
    from nmt.models.seq2seq import Seq2Seq
    from nmt.search.ensemble import Ensemble


@dataclass(frozen=True)
class LoadedModel:
    """A trained model, or several as an ensemble, with all that translating needs."""

    model: Seq2Seq | Ensemble
    config: RunConfig
    source_tokenizer: Tokenizer
    target_tokenizer: Tokenizer
    step: int
    digest: str


def save_checkpoint(
    store: RunStore,
    run_id: str,
    config: RunConfig,
    state: RunState,
    strategy_state: Mapping[str, Any],
    before_rename: Callable[[], None] | None = None,
) -> None:
    """Write the checkpoint of `state.step`; then drop the older ones, but for `training.keep_last` and the best.

    Where the strategy's state lies in files already, the checkpoint is their index (see `distributed.state_files`).
    """
    from nmt.config import to_dict

    buffer = io.BytesIO()
    content = {
        "format_version": FORMAT_VERSION,
        "run_id": run_id,
        "config": to_dict(config),
        "identity": training_identity(config),
        "state": state.to_dict(),
        **(strategy_state if "files" not in strategy_state else _without_tensors(strategy_state)),
    }
    torch.save(content, buffer)
    store.write_bytes(run_id, checkpoint_name(state.step), buffer.getvalue(), before_rename)
    older = list_checkpoints(store, run_id)[: -config.training.keep_last]
    for step in older:
        if state.best is None or step != state.best.step:
            drop_checkpoint(store, run_id, step)


def _without_tensors(state: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in state.items() if name not in ("parameters", "optimizer")}


def find_checkpoint(store: RunStore, run_id: str, which: str = "best") -> Path:
    """The file of a run's `best` or `last` checkpoint. Raises UserError where there is none yet."""
    steps = list_checkpoints(store, run_id)
    if not steps:
        raise UserError(
            "has no checkpoint yet", where=f"run {run_id}", hint="one is written at each evaluation of its training"
        )
    step = steps[-1]
    result = store.read_json(run_id, "result.json")
    if which == "best" and result is not None:
        return store.directory(run_id) / str(result["best"]["checkpoint"])
    if which == "best":
        state = RunState.from_dict(read_checkpoint(store.directory(run_id) / checkpoint_name(step))["state"])
        step = state.best.step if state.best else step
    return store.directory(run_id) / checkpoint_name(step)


def read_checkpoint(path: Path, *, lazily: bool = False) -> dict[str, Any]:
    """A checkpoint's content on the CPU: tensors and plain data only, nothing in it is executed.

    Tensors that several processes have written are read from their files when they are looked at; with `lazily` those
    of one process are, too.

    Raises UserError for a missing, damaged or newer file.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=lazily)
        if isinstance(content, dict) and "files" in content:
            content |= _tensors_of(path, content["files"])
    except FileNotFoundError as error:
        what = f"lacks its file {error.filename}" if path.is_file() else "no such checkpoint"
        raise UserError(what, where=str(path), hint="choose another one") from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise UserError("is not a readable checkpoint", where=str(path), hint="choose another one") from error
    check_format(content, path)
    if not {"config", "identity", "state", "parameters"} <= content.keys():
        raise UserError("is not a checkpoint of this package", where=str(path))
    return dict(content)


def _tensors_of(path: Path, index: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint's files hold."""
    found = StateIndex.from_dict(index)
    files = StateFiles(path.parent / found.directory, found)
    return {"parameters": files.tensors(), "optimizer": {slot: files.tensors(slot) for slot in found.slots}}


def check_identity(content: Mapping[str, Any], config: RunConfig, path: Path) -> None:
    """Refuse a checkpoint that was trained under another configuration, naming the keys that differ."""
    differences = explain_difference(content["identity"], training_identity(config))
    if differences:
        raise UserError(
            f"belongs to another configuration: {', '.join(differences)}",
            where=str(path),
            hint="give that configuration, or remove the file",
        )


def load_model(path: Path, device: str = "cpu") -> LoadedModel:
    """The model of a checkpoint, with its tokenizers and configuration, ready to translate on `device`."""
    from nmt.data.prepare import load_tokenizers
    from nmt.models.seq2seq import build_model

    content = read_checkpoint(path)
    config = from_dict(content["config"])
    source_tokenizer, target_tokenizer = load_tokenizers(path.parents[1] / "tokenizers")
    trained = drawn(config)
    model = build_model(trained.model, source_tokenizer.size, target_tokenizer.size, trained.loss, seed=config.seed)
    model.load_state_dict(content["parameters"], strict=False)
    missing = dict(model.named_parameters()).keys() - content["parameters"].keys()
    if missing:
        raise UserError(f"lacks parameters {', '.join(sorted(missing))}", where=str(path))
    return LoadedModel(
        model=model.to(device).eval(),
        config=config,
        source_tokenizer=source_tokenizer,
        target_tokenizer=target_tokenizer,
        step=content["state"]["step"],
        digest=digest_tensors(content["parameters"]),
    )


def digest_tensors(tensors: Mapping[str, Any]) -> str:
    """sha256 over names, shapes and bytes of (nested) tensors in the order of their names, as 64 hexadecimal digits."""
    sha = hashlib.sha256()

    def add(prefix: str, value: Any) -> None:
        if isinstance(value, torch.Tensor):
            sha.update(f"{prefix}:{value.dtype}:{tuple(value.shape)}\n".encode())
            sha.update(value.detach().cpu().contiguous().numpy().data)
        elif isinstance(value, TensorsInFiles):
            for name in sorted(value):
                pieces = list(value.pieces(name))
                sha.update(f"{prefix}/{name}:{pieces[0].dtype}:{value.shape(name)}\n".encode())
                for piece in pieces:
                    sha.update(piece.numpy().data)
        elif isinstance(value, Mapping):
            for name in sorted(value):
                add(f"{prefix}/{name}", value[name])
        else:
            sha.update(f"{prefix}:{value!r}\n".encode())

    add("", tensors)
    return sha.hexdigest()
