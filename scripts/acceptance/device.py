"""What the device is, and what it can do at best."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch

from acceptance.outcome import NOT_ON_CPU, Outcome
from acceptance.setting import Setting
from nmt.environment import available_cores, cpu_model, describe_code, package_versions
from nmt.profiling.floors import bandwidth, square_rates

OLDEST_TORCH = (2, 11)


def precisions(setting: Setting) -> tuple[str, ...]:
    """Of products: `fp32` is torch's "highest", true fp32, with which results are made. A CPU has no `tf32`."""
    return ("fp32", "tf32", "bf16") if setting.on_gpu else ("fp32", "bf16")


def check_device(setting: Setting) -> Outcome:
    """Versions and names, and the best rates that matrix products and copies reach."""
    version = tuple(int(number) for number in re.findall(r"\d+", torch.__version__)[:2])
    rates = {f"products in {name}, TFLOP/s": best_rate(setting, name) / 1e12 for name in precisions(setting)}
    return Outcome(
        demands={f"torch is {'.'.join(map(str, OLDEST_TORCH))} or newer": version >= OLDEST_TORCH},
        figures={
            "torch": torch.__version__,
            "python": platform.python_version(),
            "packages": {name: found or "absent" for name, found in package_versions().items()},
            "code": describe_code().get("commit") or "no checkout",
            "cpu": f"{cpu_model()}, {available_cores()} cores, load {os.getloadavg()[0]:.1f}",
            **_gpu(setting),
            **rates,
            "copies, GB/s": bandwidth(setting.device) / 1e9,
        },
        note="One GPU shows one NCCL rank: nothing about several ranks can be shown on it. "
        "Rates are the best of square products; products of real shapes reach less.",
    )


@cache
def best_rate(setting: Setting, precision: str) -> float:
    """FLOP/s of the best square product."""
    sizes = (512,) if setting.tiny else (2048, 4096, 8192) if setting.on_gpu else (512, 1024, 2048)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    with products_in(precision):
        return max(square_rates(dtype, setting.device, sizes).values())


@contextmanager
def products_in(precision: str) -> Iterator[None]:
    """Lets fp32 products be computed in TF32 where that is the `precision`; truly otherwise."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _gpu(setting: Setting) -> dict[str, Any]:
    if not setting.on_gpu:
        return dict.fromkeys(("gpu", "cuda", "cudnn", "nccl"), NOT_ON_CPU)
    gpu = torch.cuda.get_device_properties(0)
    return {
        "gpu": f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, {gpu.multi_processor_count} multiprocessors, "
        f"compute capability {gpu.major}.{gpu.minor}",
        "cuda": torch.version.cuda or "none",
        "cudnn": torch.backends.cudnn.version() or 0,
        "nccl": ".".join(map(str, torch.cuda.nccl.version())),
    }
