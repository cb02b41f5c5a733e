"""`nmt average`: the mean of a run's checkpoints, as a checkpoint that translates and is evaluated like any other."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nmt.arguments import option, parse
from nmt.errors import UserError
from nmt.runs import FORMAT_VERSION, RunStore, locate_run

if TYPE_CHECKING:
    from torch import Tensor

_EXAMPLES = """
The checkpoint is written into the run's checkpoints/ as average-<digest>.pt, beside those that it is made of, and says
which those are. A run keeps its newest training.keep_last checkpoints and the best one.

Examples:
  nmt average run=3f2a91c07be4/s2
  nmt average run=3f2a91c07be4/s2 last=5
  cd runs/3f2a91c07be4/s2/checkpoints && nmt average checkpoint=step-00001500.pt,step-00002000.pt
"""


@dataclass(frozen=True, kw_only=True)
class AverageOptions:
    """What `nmt average` takes."""

    run: str = option("", "run id, a unique beginning of one, or a run directory")
    last: int | None = option(None, "the newest so many checkpoints of the run; unset: all that it has", minimum=2)
    checkpoint: list[str] = option(list, "instead of a run: checkpoint files of one run")
    runs: str = option("", "directory of runs; unset: $NMT_RUNS, else runs", key="paths.runs")


def average_checkpoints(paths: Sequence[Path]) -> Path:
    """Write the mean of checkpoints of one run into that run, and return its path.

    Parameters are added in double precision in the order of the steps, divided once, and rounded once. The file holds
    no optimizer, so no training goes on from it; under `averaged` it names file, step and digest of each checkpoint
    that it is made of. The same checkpoints make the same file.

    Raises UserError for fewer than two, for a file that is no checkpoint, and for checkpoints of different
    configurations or runs.
    """
    import torch

    from nmt.evaluation.models import run_of
    from nmt.training.checkpoint import digest_tensors, read_checkpoint

    if len(paths) < 2:
        raise UserError("a mean needs two checkpoints at least", where="nmt average", hint="give more")
    store, run_id = run_of(paths[0])
    total: dict[str, Tensor] = {}
    members: list[dict[str, Any]] = []
    first: Mapping[str, Any] = {}
    for path in sorted(paths, key=lambda path: path.name):
        content = read_checkpoint(path)
        first = first or content
        _check_member(first, content, path)
        parameters: Mapping[str, Tensor] = content["parameters"]
        for name, tensor in parameters.items():
            total[name] = total[name].add_(tensor.double()) if name in total else tensor.double()
        about = {"file": path.name, "step": content["state"]["step"], "digest": digest_tensors(parameters)}
        if about["digest"] in [member["digest"] for member in members]:
            raise UserError("holds the same parameters as another one given", where=str(path))
        members.append(about)
    parameters = {name: (total[name] / len(members)).to(tensor.dtype) for name, tensor in first["parameters"].items()}
    buffer = io.BytesIO()
    torch.save(
        {
            "format_version": FORMAT_VERSION,
            "run_id": run_id,
            "config": first["config"],
            "identity": first["identity"],
            "state": {"step": members[-1]["step"]},
            "averaged": members,
            "parameters": parameters,
        },
        buffer,
    )
    name = f"checkpoints/average-{digest_tensors(parameters)[:12]}.pt"
    store.write_bytes(run_id, name, buffer.getvalue())
    return store.directory(run_id) / name


def main(argv: Sequence[str]) -> int:
    """Average as the command line asks, and say what to do with the result; returns the exit code."""
    options = parse(
        AverageOptions,
        argv,
        verb="nmt average",
        summary="Average the parameters of checkpoints of one run, which often translates better than each of them.",
        epilog=_EXAMPLES,
    )
    if bool(options.run) == bool(options.checkpoint):
        raise UserError("give one of run=... and checkpoint=...", where="nmt average", hint="see --help")
    if options.run:
        paths = _of_run(*locate_run(options.run, options.runs), options.last)
    elif options.last is not None:
        raise UserError("chooses among a run's checkpoints", where="last", hint="give run=...")
    else:
        from nmt.evaluation.models import find_checkpoints

        paths = find_checkpoints([], options.checkpoint, options.runs, "nmt average")
    written = average_checkpoints(paths)
    print(f"mean of {len(paths)} checkpoints: {', '.join(path.name for path in sorted(paths))}")
    print(f"next: nmt evaluate checkpoint={written}")
    return 0


def _of_run(store: RunStore, run_id: str, last: int | None) -> list[Path]:
    from nmt.training.checkpoint import checkpoint_name, list_checkpoints

    steps = list_checkpoints(store, run_id)
    if len(steps) < (last or 2):
        raise UserError(
            f"has {len(steps)} checkpoints, and {last or 2} are asked for",
            where=f"run {run_id}",
            hint="training.keep_last says how many a training keeps",
        )
    return [store.directory(run_id) / checkpoint_name(step) for step in steps[-(last or len(steps)) :]]


def _check_member(first: Mapping[str, Any], content: Mapping[str, Any], path: Path) -> None:
    from nmt.config import explain_difference

    differences = explain_difference(first["identity"], content["identity"])
    if differences:
        raise UserError(f"belongs to another configuration: {', '.join(differences)}", where=str(path))
    if content["run_id"] != first["run_id"]:
        raise UserError(
            f"belongs to run {content['run_id']}, and others to {first['run_id']}",
            where=str(path),
            hint="parameters of different runs have no mean, but they make an ensemble: nmt translate run=a,b",
        )
    if "averaged" in content:
        raise UserError("is a mean already", where=str(path), hint="give what it is made of")
