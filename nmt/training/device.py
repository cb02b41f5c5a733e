"""Where a run computes, and the switches that make its arithmetic repeatable there."""

from __future__ import annotations

import os

import torch

from nmt.config.schema import RunConfig
from nmt.environment import available_cores
from nmt.errors import UserError

CUBLAS_WORKSPACES = "CUBLAS_WORKSPACE_CONFIG"
DETERMINISTIC_WORKSPACES = (":4096:8", ":16:8")  # what torch accepts of it under deterministic algorithms


def prepare_device(config: RunConfig) -> str:
    """Set threads and determinism for this process and return the device to use, `cpu` or `cuda`.

    Raises UserError where CUDA is asked for and absent.
    """
    available = torch.cuda.is_available()
    if config.device == "cuda" and not available:
        raise UserError("no CUDA device is visible to this process", where="device", allowed=["cpu", "auto"])
    device = "cuda" if available and config.device != "cpu" else "cpu"
    torch.set_num_threads(config.threads or available_cores())
    prepare_arithmetic(device, config.deterministic)
    return device


def prepare_arithmetic(device: str, deterministic: bool) -> None:
    """Set the switches of this process that decide bits, for whatever computes on `device` in it."""
    torch.set_float32_matmul_precision("highest")
    # Every length of a batch is a shape of its own to oneDNN, which keeps a compiled kernel for each of the last 1,024:
    # gigabytes after an hour of bf16 on the CPU. It reads the variable when it compiles its first.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    if device == "cuda":
        _prepare_cuda(deterministic)


def _prepare_cuda(deterministic: bool) -> None:
    """True fp32 everywhere, and kernels that repeat their bits where that is asked for.

    Raises UserError where the environment forbids the latter.
    """
    # "highest" goes for products alone: convolutions would still be computed in TF32.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = deterministic
    # torch looks at the variable once, at the first product, and later refuses deterministic products if it was missing
    # then: so it is set even for a run that does not need it, for the sake of the next one in this process.
    workspaces = os.environ.setdefault(CUBLAS_WORKSPACES, DETERMINISTIC_WORKSPACES[0])
    if deterministic and workspaces not in DETERMINISTIC_WORKSPACES:
        raise UserError(
            f"'{workspaces}' allows no deterministic products",
            where=CUBLAS_WORKSPACES,
            allowed=DETERMINISTIC_WORKSPACES,
            hint="unset the variable, or deterministic=false",
        )
    torch.use_deterministic_algorithms(deterministic)
    # It would launch a kernel for every new tensor to find reads of memory that nobody has written. We have none.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def peak_memory_bytes(device: str) -> int:
    """The largest memory that this process held: on the GPU where it computes there, else resident."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
