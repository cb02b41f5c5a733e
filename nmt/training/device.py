"""Where a run computes, and the switches that make its arithmetic repeatable there."""

from __future__ import annotations

import os

import torch

from nmt.config.schema import RunConfig
from nmt.environment import available_cores
from nmt.errors import UserError


def prepare_device(config: RunConfig) -> str:
    """Set threads and determinism for this process and return the device to use, `cpu` or `cuda`.

    Raises UserError where CUDA is asked for and absent.
    """
    available = torch.cuda.is_available()
    if config.device == "cuda" and not available:
        raise UserError("no CUDA device is visible to this process", where="device", allowed=["cpu", "auto"])
    device = "cuda" if available and config.device != "cpu" else "cpu"
    torch.set_num_threads(config.threads or available_cores())
    torch.set_float32_matmul_precision("highest")
    # Every length of a batch is a shape of its own to oneDNN, which keeps a compiled kernel for each of the last 1,024:
    # gigabytes after an hour of bf16 on the CPU. It reads the variable when it compiles its first.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    if device == "cuda":
        if config.deterministic:
            # cuBLAS reads the variable when its first context is made; nothing warns where it is missing.
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(config.deterministic)
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = config.deterministic
    return device


def peak_memory_bytes(device: str) -> int:
    """The largest memory that this process held: on the GPU where it computes there, else resident."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
