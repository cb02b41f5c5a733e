"""Run directories: the truth about every run. Whatever is published of a run goes through here.

A run is `<root>/<train_id>/s<seed>/`. Files are written under a temporary name and renamed, so a reader sees a whole
file or none. A process that trains holds the run (`nmt.leases`) and writes through a store that publishes nothing once
another attempt has taken the run over.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Protocol

from nmt.errors import UserError
from nmt.lease_file import Lease, read_lease
from nmt.lease_file import LeaseLostError as LeaseLostError
from nmt.lease_file import RunBusyError as RunBusyError
from nmt.leases import Attempt, is_held, outlives_holder, unheld
from nmt.records import FORMAT_VERSION, read_record
from nmt.records import check_format as check_format
from nmt.run_status import RunStatus, is_status, status_of, status_without_file

LEFTOVER_SECONDS = 3600.0  # so old, a temporary file of no attempt is a dead process's
_RUN_ID = re.compile(r"[0-9a-f]{12}/s\d+")


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
        """The JSON object, or None where the file is absent or damaged. Raises UserError for a newer file.

        A damaged file is set aside, with the reason, and named in the log: what it said can be found out again.
        """

    def append_line(self, run_id: str, name: str, line: str) -> None:
        """Append one line, below whatever a killed process left torn, and hand it to the operating system."""

    def append_bytes(self, run_id: str, name: str, data: bytes) -> None:
        """Append to a file as it is, and hand it to the operating system."""

    def truncate(self, run_id: str, name: str, size: int) -> None:
        """Cut a file to its first `size` bytes."""

    def delete(self, run_id: str, name: str) -> None:
        """Remove a file if it is there, or a directory with all that is in it."""

    def list_runs(self) -> list[str]:
        """Every run id in the store, sorted."""

    def resolve(self, text: str) -> str:
        """The run id meant by an id, a unique prefix of one, or a path of a run directory."""

    def claim(self, run_id: str) -> AbstractContextManager[HeldRunStore]:
        """A context that holds the run for this process. Raises RunBusyError where another process holds it."""

    def unclaimed(self, run_id: str) -> AbstractContextManager[Lease | None]:
        """A context in which nobody can claim the run. Raises RunBusyError where a living process holds it."""

    def is_claimed(self, run_id: str) -> bool:
        """Whether a living process holds the run."""

    def outlives_holder(self, run_id: str) -> bool:
        """Wait until it is known whether the process that holds the run lives; whether it does not."""

    def check(self, run_id: str) -> None:
        """Raise LeaseLostError where this process held the run and is known to have lost it. Costs nothing."""

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
        temporary = path.with_name(f".{path.name}.{self._writer()}.tmp")
        with _disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with temporary.open("wb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                if before_rename:
                    before_rename()
                with self._publication(run_id):
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
        """The JSON object, or None where the file is absent or damaged. Raises UserError for a newer file.

        A damaged file is set aside, with the reason, and named in the log: what it said can be found out again.
        """
        return read_record(self.directory(run_id), name)

    def append_line(self, run_id: str, name: str, line: str) -> None:
        """Append one line, below whatever a killed process left torn, and hand it to the operating system."""
        path = self.directory(run_id) / name
        with _disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with self._publication(run_id), path.open("ab+") as file:
                size = file.seek(0, os.SEEK_END)
                torn = size > 0 and os.pread(file.fileno(), 1, size - 1) != b"\n"
                file.write(b"\n" * torn + line.encode() + b"\n")

    def append_bytes(self, run_id: str, name: str, data: bytes) -> None:
        """Append to a file as it is, and hand it to the operating system."""
        path = self.directory(run_id) / name
        with _disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with self._publication(run_id), path.open("ab") as file:
                file.write(data)

    def truncate(self, run_id: str, name: str, size: int) -> None:
        """Cut a file to its first `size` bytes."""
        path = self.directory(run_id) / name
        if path.exists():
            with self._publication(run_id):
                os.truncate(path, size)

    def delete(self, run_id: str, name: str) -> None:
        """Remove a file if it is there, or a directory with all that is in it."""
        path = self.directory(run_id) / name
        with self._publication(run_id):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)  # a process that was given up may still write there
            else:
                path.unlink(missing_ok=True)

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
    def claim(self, run_id: str) -> Iterator[HeldRunStore]:
        """Hold the run for this process; yields the store to write it through.

        Raises RunBusyError where another process holds it.
        """
        directory = self.directory(run_id)
        with _disk_errors(directory):
            attempt = Attempt.take(directory, after=self.status(run_id).attempts)
        try:
            for leftover in directory.rglob(".*.tmp"):  # what a killed process was writing
                _remove_leftover(leftover)
            yield HeldRunStore(self.root, run_id, attempt)
        finally:
            attempt.release()

    @contextmanager
    def unclaimed(self, run_id: str) -> Iterator[Lease | None]:
        """Keep everyone from claiming the run, for what a bystander has to put down about it.

        Yields the newest attempt where it died without a word, else None; afterwards it counts as over. Raises
        RunBusyError where a living process holds the run.
        """
        with unheld(self.directory(run_id)) as dead:
            yield dead

    def is_claimed(self, run_id: str) -> bool:
        """Whether a process holds the run that lives on this host, or elsewhere with a lease that has not expired."""
        return is_held(self.directory(run_id))

    def outlives_holder(self, run_id: str) -> bool:
        """Wait until it is known whether the process that holds the run lives; whether it does not.

        At once on this host; for another machine's process until its next sign of life, or until its lease expires.
        """
        return outlives_holder(self.directory(run_id))

    def check(self, run_id: str) -> None:
        """Do nothing: this store holds no run."""

    def status(self, run_id: str) -> RunStatus:
        """The run's status; a running one whose process is gone reads as interrupted.

        Without a readable status.json it is what the other files tell.
        """
        directory = self.directory(run_id)
        before: tuple[int, float] | None = None
        while True:
            data = read_record(directory, "status.json", sound=is_status)
            if data is None:
                return status_without_file(directory)
            status = status_of(data)
            if status.state != "running":
                return status
            lease = read_lease(directory)
            heartbeat = max(status.heartbeat, lease.heartbeat if lease else 0.0)
            if is_held(directory):
                return dataclasses.replace(status, heartbeat=heartbeat)
            said = (status.attempts, status.heartbeat)
            if said == before:
                return dataclasses.replace(status, state="interrupted", heartbeat=heartbeat)
            before = said  # its holder may have come to its end, and said so, between the two looks

    def set_status(self, run_id: str, status: RunStatus) -> None:
        """Record the status, with this process, host and time as its sign of life."""
        alive = dataclasses.replace(status, pid=os.getpid(), host=socket.gethostname(), heartbeat=time.time())
        self.write_json(run_id, "status.json", dataclasses.asdict(alive))

    def _writer(self) -> str:
        """Marks the temporary files of this process."""
        return f"{socket.gethostname()}-{os.getpid()}"

    def _publication(self, run_id: str) -> AbstractContextManager[None]:
        """What encloses the moment in which something of a run becomes visible."""
        return nullcontext()


class HeldRunStore(LocalRunStore):
    """The store in the hands of the process that holds a run: what it writes to that run is its attempt's.

    Every write raises LeaseLostError, and changes nothing, once another attempt has taken the run over.
    """

    def __init__(self, root: Path, run_id: str, attempt: Attempt):
        super().__init__(root)
        self.run_id, self.attempt = run_id, attempt

    def check(self, run_id: str) -> None:
        """Raise LeaseLostError where it is known that another attempt has taken the run over."""
        if run_id == self.run_id:
            self.attempt.check()

    def _writer(self) -> str:
        return f"attempt{self.attempt.number}"

    def _publication(self, run_id: str) -> AbstractContextManager[None]:
        return self.attempt.publication() if run_id == self.run_id else nullcontext()


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


def _remove_leftover(path: Path) -> None:
    """Remove a temporary file of an earlier attempt, or of any other process that has long been dead."""
    with suppress(FileNotFoundError):
        if ".attempt" in path.name or time.time() - path.stat().st_mtime > LEFTOVER_SECONDS:
            path.unlink()


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
