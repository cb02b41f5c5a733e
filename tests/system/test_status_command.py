"""`nmt status` as a person runs it: in a pipe, on a terminal, kept on screen until Ctrl-C."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from nmt.runs import LocalRunStore, RunStatus

RUN, OTHER = "0123456789ab/s1", "0123456789ab/s2"
COMMAND = [sys.executable, "-m", "nmt.cli", "status"]


@pytest.fixture
def store(isolated_runs: Path) -> LocalRunStore:
    store = LocalRunStore(isolated_runs)
    for run_id, state in ((RUN, "finished"), (OTHER, "failed")):
        store.write_text(run_id, "config.yaml", "label: plain\n")
        store.set_status(run_id, RunStatus(state=state, step=5, max_steps=9, attempts=1))
    return store


def read_until(descriptor: int, *texts: str) -> str:
    """What comes until all of these texts have: a terminal hands on what was written in any pieces."""
    seen = b""
    while not all(text.encode() in seen for text in texts):
        seen += os.read(descriptor, 65536)
    return seen.decode(errors="replace")


def test_damage_is_told_on_stderr_and_the_rest_on_stdout(store: LocalRunStore) -> None:
    store.write_text(OTHER, "status.json", "{")
    done = subprocess.run(COMMAND, capture_output=True, text=True)
    assert done.returncode == 0
    (line,) = done.stderr.splitlines()
    assert f"{OTHER}/status.json is damaged" in line
    assert f"{store.directory(OTHER)}/quarantine/status.json." in line
    assert f"{RUN}  plain  finished   5/9" in done.stdout


def test_watched_on_a_terminal_until_ctrl_c(store: LocalRunStore) -> None:
    terminal, line = pty.openpty()
    process = subprocess.Popen([*COMMAND, "watch=true"], stdout=line, stderr=subprocess.PIPE)
    os.close(line)
    read_until(terminal, "finished", "failed")
    store.set_status(OTHER, RunStatus(state="finished", step=8, max_steps=9, attempts=2))
    read_until(terminal, "8/9")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=300)
    os.close(terminal)
    assert (process.returncode, errors) == (0, b"")


def test_watched_through_a_pipe_each_change_is_written_once(store: LocalRunStore) -> None:
    process = subprocess.Popen([*COMMAND, "watch=true"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    first = read_until(process.stdout.fileno(), "\n\n")
    assert "failed" in first and "\x1b" not in first
    store.set_status(OTHER, RunStatus(state="finished", step=8, max_steps=9, attempts=2))
    second = read_until(process.stdout.fileno(), "\n\n")
    assert "8/9" in second and "failed" not in second
    process.send_signal(signal.SIGINT)
    assert (process.wait(timeout=300), process.stdout.read()) == (0, b"")
    process.communicate()


def test_a_mistake_is_one_line(isolated_runs: Path) -> None:
    isolated_runs.mkdir()
    done = subprocess.run([*COMMAND, "sweep=absent"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: sweep=absent: was not started here\n"
