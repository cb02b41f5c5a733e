"""`nmt convert`: checkpoints in one file, or in several with an index; what is in them, and their names, stay."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nmt.arguments import option, parse
from nmt.errors import UserError
from nmt.runs import RunStore, locate_run

if TYPE_CHECKING:
    from torch import Tensor

FORMS = ("whole", "parts")
_EXAMPLES = """
A ring whose trainer has no whole model (distribution.whole_model=false) writes a checkpoint as files of stages in
step-<step>.parts/, and their index as step-<step>.pt. Every verb reads both forms, and so does a training that goes on.
`whole` is for copying a checkpoint away as one file, `parts` for reading a large one in pieces. Neither changes a bit.

Examples:
  nmt convert run=3f2a91c07be4/s2 form=whole
  nmt convert checkpoint=runs/3f2a91c07be4/s2/checkpoints/step-00002000.pt form=parts
"""


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """What `nmt convert` takes."""

    run: str = option("", "run id, a unique beginning of one, or a run directory: all its checkpoints")
    checkpoint: list[str] = option(list, "instead of a run: checkpoint files")
    form: str = option("whole", "one file, or files of parts and their index", choices=FORMS)
    runs: str = option("", "directory of runs; unset: $NMT_RUNS, else runs", key="paths.runs")


def convert(path: Path, form: str) -> bool:
    """Put a checkpoint of a run into another form, in its place; False where it has that already.

    The file is replaced at once, so that there is a whole checkpoint at any moment. Raises UserError for what is no
    checkpoint of a run, and for a run that is being trained.
    """
    from nmt.evaluation.models import run_of
    from nmt.training.checkpoint import read_checkpoint
    from nmt.training.checkpoint_files import directory_of

    store, run_id = run_of(path)
    if store.is_claimed(run_id):
        raise UserError("is being trained", where=f"run {run_id}", hint="convert its checkpoints when that is over")
    content = read_checkpoint(path, lazily=True)
    if ("files" in content) == (form == "parts"):
        return False
    name = f"checkpoints/{path.name}"
    if form == "whole":
        _write(store, run_id, name, _whole(content))
        store.delete(run_id, directory_of(name))
    else:
        directory = store.directory(run_id) / directory_of(name)
        _write(store, run_id, name, _in_parts(content, directory))
    return True


def main(argv: Sequence[str]) -> int:
    """Convert as the command line asks; returns the exit code."""
    options = parse(
        ConvertOptions,
        argv,
        verb="nmt convert",
        summary="Put checkpoints into one file each, or into several; what they hold stays the same.",
        epilog=_EXAMPLES,
    )
    if options.run and not options.checkpoint:
        from nmt.training.checkpoint import checkpoint_name, list_checkpoints

        store, run_id = locate_run(options.run, options.runs)
        paths = [store.directory(run_id) / checkpoint_name(step) for step in list_checkpoints(store, run_id)]
        if not paths:
            raise UserError("has no checkpoint", where=f"run {run_id}", hint="nmt train writes one at each evaluation")
    else:
        from nmt.evaluation.models import find_checkpoints

        paths = find_checkpoints([options.run] if options.run else [], options.checkpoint, options.runs, "nmt convert")
    for path in paths:
        done = convert(path, options.form)
        print(f"{path}: {'converted' if done else f'is of the form {options.form} already'}")
    return 0


def _whole(content: dict[str, Any]) -> dict[str, Any]:
    """The content of one file."""
    tensors = {
        "parameters": dict(content["parameters"]),
        "optimizer": {slot: dict(named) for slot, named in content["optimizer"].items()},
    }
    return {name: value for name, value in content.items() if name != "files"} | tensors


def _in_parts(content: dict[str, Any], directory: Path) -> dict[str, Any]:
    """Write a file for the parameters of each module; returns the content of the index."""
    from distributed.strategy import Piece, StateIndex, write_file
    from nmt.models.parameters import module_of

    parameters: dict[str, Tensor] = content["parameters"]
    optimizer: dict[str, dict[str, Tensor]] = content.get("optimizer", {})
    files: dict[str, list[str]] = {}
    for name in parameters:
        files.setdefault(f"{module_of(name) or name}.pt", []).append(name)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for file, names in files.items():
            own = {name: parameters[name].clone() for name in names}
            moments = {slot: {name: named[name].clone() for name in names} for slot, named in optimizer.items()}
            write_file(directory / file, {"parameters": own, "optimizer": moments})
    except OSError as error:
        raise UserError(f"cannot be written: {error.strerror}", where=str(directory), hint="make room") from error
    of = {name: file for file, names in files.items() for name in names}
    index = StateIndex(
        directory.name,
        {name: tuple(tensor.shape) for name, tensor in parameters.items()},
        {name: [Piece(0, tensor.numel(), of[name], name)] for name, tensor in parameters.items()},
        list(optimizer),
    )
    left = {name: value for name, value in content.items() if name not in ("parameters", "optimizer")}
    return left | {"files": index.to_dict()}


def _write(store: RunStore, run_id: str, name: str, content: dict[str, Any]) -> None:
    import torch

    buffer = io.BytesIO()
    torch.save(content, buffer)
    store.write_bytes(run_id, name, buffer.getvalue())
