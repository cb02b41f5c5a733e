"""Where and with what a run happened: the content of `env.json`.

Not part of a run's identity. It explains a difference between two runs of the same configuration (another commit,
another instruction set, another library), and a reused run is compared with the present environment by it.
"""

from __future__ import annotations

import hashlib
import os
import platform
import socket
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import nmt

PACKAGES = ("torch", "numpy", "sentencepiece", "sacrebleu", "omegaconf", "hydra-core", "ray", "mlflow")
SOURCES = ("nmt", "distributed", "sweeps", "conf")  # what can change a result; docs and tests cannot
_ROOT = Path(__file__).resolve().parents[1]


def describe_environment(device: str = "cpu") -> dict[str, Any]:
    """Code version, package versions, machine and arithmetic of this process, as plain JSON data.

    Imports torch. `device` is what the run computes on (`cpu`, `cuda`, `cuda:1`); `threads` is torch's present setting,
    so call this after setting it.
    """
    import torch

    processor = cpu_model()
    return {
        "code": describe_code(),
        "packages": package_versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": socket.gethostname(),
        "cpu": {
            "model": processor,
            "cores": os.cpu_count(),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "mkl_cbwr": os.environ.get("MKL_CBWR"),
        },
        "threads": torch.get_num_threads(),
        "device": _describe_device(device, processor),
    }


def available_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe_code(root: Path = _ROOT) -> dict[str, Any]:
    """The version of the code: `{"commit", "dirty", "patch_sha256", "version"}`.

    Inside a checkout `commit` is HEAD and `patch_sha256` covers all that `SOURCES` differ from it by, untracked files
    included (None where they do not differ). Elsewhere, or without git, these are None and `version` has to do.
    """
    code: dict[str, Any] = {"version": nmt.__version__, "commit": None, "dirty": None, "patch_sha256": None}
    top = _git(root, "rev-parse", "--show-toplevel")
    # An installed package may lie inside some other project's checkout, whose commit says nothing about it.
    if top is None or Path(os.fsdecode(top.strip())).resolve() != root.resolve():
        return code
    head = _git(root, "rev-parse", "HEAD")
    diff = _git(root, "diff", "HEAD", "--binary", "--no-ext-diff", "--no-textconv", "--no-color", "--", *SOURCES)
    untracked = _git(root, "ls-files", "--others", "--exclude-standard", "-z", "--", *SOURCES)
    if head is None or diff is None or untracked is None:
        return code
    names = sorted(name for name in untracked.split(b"\0") if name)
    dirty = bool(diff or names)
    code |= {"commit": head.decode().strip(), "dirty": dirty}
    if dirty:
        code["patch_sha256"] = _digest(root, diff, names)
    return code


def same_sources(commit: str, other: str, root: Path = _ROOT) -> bool:
    """Whether two commits of this checkout have the same `SOURCES`; False where git cannot tell."""
    return _git(root, "diff", "--quiet", commit, other, "--", *SOURCES) is not None


def package_versions() -> dict[str, str | None]:
    """Installed versions of `PACKAGES` from their metadata (none is imported); None for one that is absent."""
    return {name: _version(name) for name in PACKAGES}


def cpu_model() -> str:
    """The processor's name as the operating system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def _describe_device(device: str, processor: str) -> dict[str, Any]:
    import torch

    if not device.startswith("cuda"):
        return {"type": "cpu", "name": processor}
    return {
        "type": "cuda",
        "name": torch.cuda.get_device_name(device),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _digest(root: Path, diff: bytes, names: list[bytes]) -> str:
    sha = hashlib.sha256(diff)
    for name in names:
        path = root / os.fsdecode(name)
        content = path.read_bytes() if path.is_file() else b""
        sha.update(b"\0%b\0%d\0" % (name, len(content)))  # framed, so that no two sets of files look alike
        sha.update(content)
    return sha.hexdigest()


def _git(root: Path, *arguments: str) -> bytes | None:
    # Within a git hook these name the hook's repository instead of `root`'s.
    environment = {k: v for k, v in os.environ.items() if k not in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE")}
    environment["GIT_OPTIONAL_LOCKS"] = "0"  # reading must not touch a checkout that others work in
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            check=False,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
