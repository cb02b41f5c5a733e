"""Counting what a GPU is asked for, with a fake of torch's profiler and of its warnings: no test here needs a GPU."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Self

import pytest
import torch
import torch.profiler

from nmt.profiling.launches import count_launches, synchronisations


def event(key: str, count: int, device: str = "CPU", microseconds: float = 0.0, annotation: bool = False) -> Any:
    return SimpleNamespace(
        key=key,
        count=count,
        device_type=SimpleNamespace(name=device),
        self_device_time_total=microseconds,
        is_user_annotation=annotation,
    )


EVENTS = [
    event("aten::mm", 3, microseconds=300.0),  # of the host: its kernels are told below
    event("cudaLaunchKernel", 5),
    event("cudaLaunchKernelExC_v11060", 2),
    event("cuLaunchKernelEx", 1),
    event("cudaLaunchHostFunc", 9),
    event("cudaMemcpyAsync", 2),
    event("cudaMemsetAsync", 1),
    event("cudaStreamSynchronize", 2),
    event("cudaStreamWaitEvent", 7),
    event("cudaDeviceSynchronize", 1),
    event("ampere_sgemm_128x64_tn", 3, "CUDA", 300.0),
    event("vectorized_elementwise_kernel", 5, "CUDA", 50.0),
    event("Memcpy DtoH (Device -> Pageable)", 2, "CUDA", 4.0),
    event("Memset (Device)", 1, "CUDA", 1.0),
    event("forward", 1, "CUDA", 900.0, annotation=True),
]


class Profiler:
    """torch.profiler.profile, as far as it is used."""

    def __init__(self, activities: list[Any]):
        assert torch.profiler.ProfilerActivity.CUDA in activities

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def key_averages(self) -> list[Any]:
        return EVENTS


def test_calls_of_the_runtime_and_what_became_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(torch.profiler, "profile", Profiler)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: calls.append("synchronize"))
    found = count_launches(lambda: calls.append("run"))
    assert calls == ["synchronize", "run", "synchronize"]
    assert (found.launches, found.copies, found.kernels) == (8, 3, 8)
    assert found.waits == 2, "the last of three ends the measurement"
    assert found.busy == pytest.approx(355e-6)
    assert found.seconds > 0


@pytest.fixture
def modes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every debug mode that was set."""
    seen: list[Any] = []
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: 0)
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", seen.append)
    return seen


def wait(line: int, file: str = "/home/someone/checkout/nmt/search/loop.py") -> None:
    """What torch does where it waits; every time, though Python shows a warning of one place once."""
    text = "called a synchronizing CUDA operation (Triggered internally at ../c10/cuda/CUDAFunctions.cpp:150.)"
    warnings.warn_explicit(text, UserWarning, file, line, registry={})


def test_waits_are_counted_by_the_line_that_waits(modes: list[Any]) -> None:
    with synchronisations() as found:
        for _ in range(3):
            wait(77)
        wait(80)
        wait(12, "/opt/venv/lib/python3.12/site-packages/torch/optim/adam.py")
        warnings.warn("Synchronization debug mode is a prototype feature", stacklevel=1)
    assert found == {"nmt/search/loop.py:77": 3, "nmt/search/loop.py:80": 1, "torch/optim/adam.py:12": 1}
    assert modes == ["warn", 0]


def test_the_mode_is_put_back_after_an_error(modes: list[Any]) -> None:
    def fail() -> None:
        with synchronisations():
            raise KeyError

    run: Callable[[], None] = fail
    with pytest.raises(KeyError):
        run()
    assert modes == ["warn", 0]
