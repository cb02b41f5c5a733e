"""Run directories: the truth about every run. The only module that renames or locks files of a run.

A run is `<root>/<train_id>/s<seed>/`. Files are written under a temporary name and renamed, so a reader sees a whole
file or none; a process that trains holds `flock` on the directory's `lock` file, which its death releases.
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

from nmt.errors import UserError

FORMAT_VERSION = 1
STATES = ("queued", "running", "interrupted", "failed", "diverged", "finished")
_RUN_ID = re.compile(r"[0-9a-f]{12}/s\d+")


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """Where a run stands.

    `heartbeat` is the Unix time of the last sign of life in seconds; `attempts` counts starts; `error` is the last
    failure in one line; `latest` holds the latest validation metrics by name.
    """

    state: str = "queued"
    pid: int = 0
    host: str = ""
    heartbeat: float = 0.0
    attempts: int = 0
    error: str = ""
    step: int = 0
    max_steps: int = 0
    tokens_per_second: float = 0.0
    latest: dict[str, float] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION


class RunBusyError(UserError):
    """Another living process is training this run."""


class RunStore(Protocol):
    """Puts, gets, lists and claims runs. Names are paths relative to the run, such as `decodes/<id>.json`."""

    def directory(self, run_id: str) -> Path:
        """Where the run's files can be read."""

    def write_bytes(self, run_id: str, name: str, data: bytes, before_rename: Callable[[], None] | None = None) -> None:
        """Put a file atomically: readers see the old content or the new.

        `before_rename` is called when the data is written but not yet under its name: the point where tests kill.
        """

    def write_text(self, run_id: str, name: str, text: str) -> None:
        """`write_bytes` of UTF-8 text."""

    def write_json(self, run_id: str, name: str, data: dict[str, Any]) -> None:
        """`write_text` of a JSON object; `format_version` is added."""

    def read_json(self, run_id: str, name: str) -> dict[str, Any] | None:
        """The JSON object, or None where the file is absent. Raises UserError for a damaged or newer file."""

    def append_line(self, run_id: str, name: str, line: str) -> None:
        """Append one line and hand it to the operating system."""

    def truncate(self, run_id: str, name: str, size: int) -> None:
        """Cut a file to its first `size` bytes."""

    def delete(self, run_id: str, name: str) -> None:
        """Remove a file if it is there."""

    def list_runs(self) -> list[str]:
        """Every run id in the store, sorted."""

    def resolve(self, text: str) -> str:
        """The run id meant by an id, a unique prefix of one, or a path of a run directory."""

    def claim(self, run_id: str) -> Any:
        """A context that holds the run for this process. Raises RunBusyError where another process holds it."""

    def is_claimed(self, run_id: str) -> bool:
        """Whether a living process holds the run."""

    def status(self, run_id: str) -> RunStatus:
        """The run's status; a running one whose process is gone reads as interrupted."""

    def set_status(self, run_id: str, status: RunStatus) -> None:
        """Record the status, with this process, host and time as its sign of life."""


class LocalRunStore:
    """A `RunStore` on a file system of this host."""

    def __init__(self, root: Path | str):
        self.root = Path(root).expanduser().resolve()

    def directory(self, run_id: str) -> Path:
        """Where the run's files can be read."""
        return self.root / run_id

    def write_bytes(self, run_id: str, name: str, data: bytes, before_rename: Callable[[], None] | None = None) -> None:
        """Put a file atomically: readers see the old content or the new. Raises UserError where the disk refuses."""
        path = self.directory(run_id) / name
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        with _disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with temporary.open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                if before_rename:
                    before_rename()
                temporary.replace(path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise

    def write_text(self, run_id: str, name: str, text: str) -> None:
        """`write_bytes` of UTF-8 text."""
        self.write_bytes(run_id, name, text.encode())

    def write_json(self, run_id: str, name: str, data: dict[str, Any]) -> None:
        """`write_text` of a JSON object; `format_version` is added."""
        text = json.dumps({"format_version": FORMAT_VERSION} | data, indent=1, ensure_ascii=False)
        self.write_text(run_id, name, text + "\n")

    def read_json(self, run_id: str, name: str) -> dict[str, Any] | None:
        """The JSON object, or None where the file is absent. Raises UserError for a damaged or newer file."""
        path = self.directory(run_id) / name
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (ValueError, OSError) as error:
            raise UserError(f"cannot be read ({error})", where=str(path), hint="remove it to start over") from error
        check_format(data, path)
        return dict(data)

    def append_line(self, run_id: str, name: str, line: str) -> None:
        """Append one line and hand it to the operating system."""
        path = self.directory(run_id) / name
        with _disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")

    def truncate(self, run_id: str, name: str, size: int) -> None:
        """Cut a file to its first `size` bytes."""
        path = self.directory(run_id) / name
        if path.exists():
            os.truncate(path, size)

    def delete(self, run_id: str, name: str) -> None:
        """Remove a file if it is there."""
        (self.directory(run_id) / name).unlink(missing_ok=True)

    def list_runs(self) -> list[str]:
        """Every run id in the store, sorted by configuration and seed number."""
        found = [
            f"{path.parent.parent.name}/{path.parent.name}"
            for path in self.root.glob("*/s*/config.yaml")
            if _RUN_ID.fullmatch(f"{path.parent.parent.name}/{path.parent.name}")
        ]
        return sorted(found, key=lambda run_id: (run_id.split("/")[0], int(run_id.split("/s")[1])))

    def resolve(self, text: str) -> str:
        """The run id meant by an id, a unique prefix of one, or a path of a run directory."""
        runs = self.list_runs()
        candidate = text.rstrip("/")
        path = Path(candidate).expanduser().resolve()
        if path.is_relative_to(self.root):
            candidate = path.relative_to(self.root).as_posix()
        if candidate in runs:
            return candidate
        config, _, seed = candidate.partition("/")
        matches = [run for run in runs if run.startswith(config) and (not seed or run.endswith(f"/{seed}"))]
        if len(matches) == 1 and config:
            return matches[0]
        raise UserError(
            f"{len(matches)} runs match" if matches and config else "no such run",
            where=f"run={text}",
            allowed=(matches if config and matches else runs)[:10],
            hint=None if runs else f"there are no runs in {self.root} (paths.runs, or NMT_RUNS, says where they live)",
        )

    @contextmanager
    def claim(self, run_id: str) -> Iterator[None]:
        """Hold the run for this process. Raises RunBusyError where another process holds it."""
        path = self.directory(run_id) / "lock"
        with _disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = path.open("a")
        with lock:
            if not _lock_patiently(lock):
                status = self.status(run_id)
                raise RunBusyError(
                    f"process {status.pid} on {status.host} is training this run",
                    where=run_id,
                    hint="wait for it, or stop it; the same command then resumes",
                )
            for leftover in path.parent.rglob(".*.tmp"):  # what a killed process was writing
                leftover.unlink(missing_ok=True)
            yield

    def is_claimed(self, run_id: str) -> bool:
        """Whether a living process of this host holds the run."""
        try:
            with (self.directory(run_id) / "lock").open("r") as lock:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        return False

    def status(self, run_id: str) -> RunStatus:
        """The run's status; a running one whose process is gone reads as interrupted."""
        data = self.read_json(run_id, "status.json")
        if data is None:
            return RunStatus()
        known = {field.name for field in dataclasses.fields(RunStatus)}
        status = RunStatus(**{name: value for name, value in data.items() if name in known})
        if status.state == "running" and not self.is_claimed(run_id):
            return dataclasses.replace(status, state="interrupted")
        return status

    def set_status(self, run_id: str, status: RunStatus) -> None:
        """Record the status, with this process, host and time as its sign of life."""
        alive = dataclasses.replace(status, pid=os.getpid(), host=socket.gethostname(), heartbeat=time.time())
        self.write_json(run_id, "status.json", dataclasses.asdict(alive))


def runs_directory(text: str = "") -> Path:
    """The directory of runs that a command line means: its own word, else $NMT_RUNS, else `runs`."""
    return Path(text or os.environ.get("NMT_RUNS", "runs")).expanduser().resolve()  # as conf/config.yaml has it


def locate_run(text: str, runs: str = "") -> tuple[RunStore, str]:
    """The store and run id that `run=<text>` means: an id, a unique beginning of one, or a run directory anywhere.

    `runs` names the directory of runs, see `runs_directory`. Raises UserError where no one run is meant.
    """
    path = Path(text).expanduser().resolve()
    if (path / "config.yaml").is_file():
        return LocalRunStore(path.parents[1]), f"{path.parent.name}/{path.name}"
    store = LocalRunStore(runs_directory(runs))
    return store, store.resolve(text)


def _lock_patiently(lock: IO[str], attempts: int = 25) -> bool:
    # A reader that asks `is_claimed` holds a shared lock for microseconds: only a lock that stays is a claim.
    for _ in range(attempts):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.01)
        else:
            return True
    return False


def check_format(data: Any, path: Path) -> None:
    """Refuse data that a newer version wrote."""
    version = data.get("format_version", FORMAT_VERSION) if isinstance(data, dict) else None
    if version is None:
        raise UserError("does not hold a JSON object", where=str(path), hint="remove it to start over")
    if not isinstance(version, int) or version > FORMAT_VERSION:
        raise UserError(
            f"was written in format {version}, and this version reads up to {FORMAT_VERSION}",
            where=str(path),
            hint="update this package, or choose another paths.runs",
        )


@contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        hints = {
            errno.ENOSPC: "free some space; the last good checkpoint is intact and the same command resumes",
            errno.EFBIG: "a file size limit was reached; the last good checkpoint is intact",
            errno.EACCES: "choose a writable paths.runs",
            errno.EROFS: "choose a writable paths.runs",
        }
        hint = hints.get(error.errno or 0, "check paths.runs")
        raise UserError(f"cannot be written: {error.strerror}", where=str(path), hint=hint) from error
