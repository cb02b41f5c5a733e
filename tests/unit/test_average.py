"""The mean of checkpoints: exact numbers, honest metadata, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from nmt.average import average_checkpoints
from nmt.errors import UserError
from nmt.runs import FORMAT_VERSION, LocalRunStore
from nmt.training.checkpoint import digest_tensors, list_checkpoints, read_checkpoint

RUN = "0123456789ab/s1"


def write(root: Path, step: int, values: list[float], run_id: str = RUN, **identity: Any) -> Path:
    """A checkpoint of one parameter in a run directory."""
    path = root / run_id / "checkpoints" / f"step-{step:08d}.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    (root / run_id / "config.yaml").write_text("")
    content = {
        "format_version": FORMAT_VERSION,
        "run_id": run_id,
        "config": {"seed": 1},
        "identity": {"model": {"units": 3}} | identity,
        "state": {"step": step, "target_tokens": 7, "best": None},
        "parameters": {"weight": torch.tensor(values)},
        "optimizer": {"moment": torch.ones(2)},
    }
    torch.save(content, path)
    return path


def test_parameters_are_the_mean_and_the_rest_says_so(tmp_path: Path) -> None:
    paths = [write(tmp_path, step, [float(step), 1e8 + step]) for step in (30, 10, 20)]
    written = average_checkpoints(paths)
    content = read_checkpoint(written)
    mean = torch.tensor([20.0, sum(float(torch.tensor(1e8 + s)) for s in (10, 20, 30)) / 3])  # in double, rounded once
    assert torch.equal(content["parameters"]["weight"], mean)
    assert content["parameters"]["weight"].dtype == torch.float32
    assert [(member["file"], member["step"]) for member in content["averaged"]] == [
        ("step-00000010.pt", 10), ("step-00000020.pt", 20), ("step-00000030.pt", 30),
    ]  # fmt: skip
    assert content["averaged"][0]["digest"] == digest_tensors(read_checkpoint(paths[1])["parameters"])
    assert content["state"] == {"step": 30}
    assert (content["run_id"], content["config"]) == (RUN, {"seed": 1})
    assert "optimizer" not in content
    assert written.name == f"average-{digest_tensors(content['parameters'])[:12]}.pt"
    assert list_checkpoints(LocalRunStore(tmp_path), RUN) == [10, 20, 30]  # training never takes it up


def test_the_order_of_the_files_does_not_matter(tmp_path: Path) -> None:
    paths = [write(tmp_path, step, [0.1 * step, 1.0 / step]) for step in (1, 2, 3)]
    assert average_checkpoints(paths) == average_checkpoints(paths[::-1])


def test_only_checkpoints_of_one_run_have_a_mean(tmp_path: Path) -> None:
    one = write(tmp_path, 10, [1.0])
    with pytest.raises(UserError, match="needs two checkpoints"):
        average_checkpoints([one])
    with pytest.raises(UserError, match=r"belongs to another configuration: model.units: 3 != 4"):
        average_checkpoints([one, write(tmp_path, 20, [2.0], model={"units": 4})])
    with pytest.raises(UserError, match=r"belongs to run 0123456789ab/s2.*ensemble"):
        average_checkpoints([one, write(tmp_path, 20, [2.0], run_id="0123456789ab/s2")])
    with pytest.raises(UserError, match="the same parameters"):
        average_checkpoints([one, write(tmp_path, 30, [1.0])])
    mean = average_checkpoints([one, write(tmp_path, 40, [3.0])])
    with pytest.raises(UserError, match="is a mean already"):
        average_checkpoints([mean, write(tmp_path, 50, [5.0])])
    elsewhere = tmp_path / "elsewhere" / "step.pt"
    elsewhere.parent.mkdir()
    elsewhere.write_bytes(one.read_bytes())
    with pytest.raises(UserError, match="does not lie in a run's checkpoints"):
        average_checkpoints([elsewhere, one])
