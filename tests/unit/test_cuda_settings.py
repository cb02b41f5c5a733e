"""What a run asks of a GPU before and between its steps, seen through fakes: no test here needs one."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from distributed import arithmetic, optimizers
from distributed.ddp.group import check_gpus, join_group
from distributed.errors import DistributedError
from nmt.config import compose
from nmt.config.schema import RunConfig
from nmt.data.batching import Batch, collate
from nmt.data.prepare import EncodedText
from nmt.errors import UserError
from nmt.training import device as device_module
from nmt.training import transfer
from nmt.training.device import CUBLAS_WORKSPACES, prepare_device


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine that says it has a GPU, and this process's settings as they were afterwards."""
    before = (
        torch.backends.cudnn.allow_tf32,
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.deterministic,
        torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
        torch.get_num_threads(),
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv(CUBLAS_WORKSPACES, "")
    monkeypatch.delenv(CUBLAS_WORKSPACES)
    yield
    torch.use_deterministic_algorithms(False)
    cudnn = torch.backends.cudnn
    cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic = before[:3]
    torch.utils.deterministic.fill_uninitialized_memory = before[3]  # type: ignore[attr-defined]
    torch.set_num_threads(before[4])


def config(*overrides: str) -> RunConfig:
    return compose(["scale=smoke", "tracking=none", "threads=1", *overrides])


@pytest.mark.parametrize("deterministic", [True, False])
def test_fp32_is_true_fp32_and_kernels_repeat_their_bits_where_asked(cuda: None, deterministic: bool) -> None:
    torch.backends.cudnn.allow_tf32 = True
    assert prepare_device(config(f"deterministic={str(deterministic).lower()}")) == "cuda"
    assert torch.get_float32_matmul_precision() == "highest"
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cudnn.benchmark
    assert torch.backends.cudnn.deterministic == deterministic
    assert torch.are_deterministic_algorithms_enabled() == deterministic
    assert not torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]


@pytest.mark.parametrize("deterministic", ["true", "false"])
def test_the_workspaces_are_set_for_later_runs_of_the_process_too(cuda: None, deterministic: str) -> None:
    prepare_device(config(f"deterministic={deterministic}"))
    assert os.environ[CUBLAS_WORKSPACES] == ":4096:8"


def test_workspaces_that_allow_no_deterministic_products_are_refused(
    cuda: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CUBLAS_WORKSPACES, ":16:8")
    prepare_device(config())
    assert os.environ[CUBLAS_WORKSPACES] == ":16:8"
    monkeypatch.setenv(CUBLAS_WORKSPACES, ":0:0")
    with pytest.raises(UserError, match="':0:0' allows no deterministic products; allowed: :4096:8, :16:8"):
        prepare_device(config())
    prepare_device(config("deterministic=false"))


def test_a_cpu_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module, "_prepare_cuda", lambda deterministic: pytest.fail("there is no GPU here"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert prepare_device(config("device=cpu")) == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert prepare_device(config("device=auto")) == "cpu"


def batch() -> Batch:
    rows = [np.arange(3, 3 + n, dtype=np.int32) for n in (1, 4, 2)]
    return collate(EncodedText(rows, rows[::-1]), [0, 2, 1])


def test_a_batch_goes_to_the_gpu_as_one_copy_from_pinned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[torch.Tensor] = []
    copies: list[tuple[object, bool]] = []
    real = torch.Tensor.to

    def allocate(elements: int) -> torch.Tensor:
        pinned.append(torch.empty(elements, dtype=torch.int64))
        return pinned[-1]

    def to(self: torch.Tensor, device: object, non_blocking: bool = False) -> torch.Tensor:
        assert any(self is tensor for tensor in pinned), "a copy from ordinary memory holds up the host"
        copies.append((device, non_blocking))
        return real(self, "cpu", copy=True)

    monkeypatch.setattr(transfer, "_pinned", allocate)
    monkeypatch.setattr(torch.Tensor, "to", to)
    expected, moved = batch(), transfer.to_device(batch(), "cuda")
    assert copies == [("cuda", True)]
    for name, tensor in expected._asdict().items():
        found = getattr(moved, name)
        assert found.shape == tensor.shape and torch.equal(found, tensor), name


def test_on_a_cpu_a_batch_stays_where_it_is() -> None:
    here = batch()
    assert transfer.to_device(here, "cpu") is here


class OnGpu:
    """As much of a tensor on a GPU as `chunks` asks for."""

    is_cuda = True


def test_a_gpu_updates_all_parameters_with_one_launch() -> None:
    buffers = OnGpu(), OnGpu()
    assert list(arithmetic.chunks(*buffers)) == [buffers]  # type: ignore[arg-type]


def test_adam_copies_no_number_from_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "tensor", lambda *_, **__: pytest.fail("the host would wait for the copy"))
    values, moments = torch.zeros(64), {slot: torch.zeros(64) for slot in optimizers.Adam.slots}
    optimizers.Adam().apply(values, torch.ones(64), moments, 1, 0.1)
    assert torch.allclose(values, torch.full((64,), -0.1))


def test_nccl_wants_a_gpu_for_each_worker_of_a_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_gpus("nccl", 2, share_host=True)
    check_gpus("gloo", 3, share_host=True)
    check_gpus("nccl", 3, share_host=False)  # they may be on several
    with pytest.raises(
        DistributedError, match=r"^distribution\.workers: .* has 2 for 3 workers; allowed: <= 2; .*gloo$"
    ):
        check_gpus("nccl", 3, share_host=True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(DistributedError, match=r"this host has 0 for 1 worker; distribution\.engine=gloo$"):
        check_gpus("nccl", 1, share_host=True)


def test_nccl_does_not_sum_on_a_cpu() -> None:
    with pytest.raises(DistributedError, match=r"^distribution\.engine: NCCL sums on GPUs.*'cpu'; allowed: gloo$"):
        join_group("nccl", "", 0, address="", rank=0, size=1, device=torch.device("cpu"), seconds=1.0)
