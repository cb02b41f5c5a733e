"""The process that drives Ray, as the sweep's process lives with it: results, errors, signals, deaths. Without Ray."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from nmt.errors import UserError
from sweeps.executors import ray_process
from sweeps.executors.ray_process import ClusterLostError, LateStartError, Line, with_ray

PATIENCE_SECONDS = 300.0


def adds(line: Line, first: int, second: int) -> int:
    line.say("adding")
    print("into the log", flush=True)
    return first + second


def mistaken(line: Line) -> None:
    raise UserError("is missing", where="data.dir", hint="look for it")


def breaks(line: Line) -> None:
    raise ZeroDivisionError("nothing to divide by")


def dies(line: Line) -> None:
    os.write(2, b"the last words of a library\n\n")
    os._exit(1)


def comes_up_late(line: Line, attempts: str, late: int) -> int:
    """Ray's node does not come up in time, the first few times."""
    with Path(attempts).open("a", encoding="utf-8") as file:
        file.write(f"{os.getpid()}\n")
    made = Path(attempts).read_text(encoding="utf-8").splitlines()
    if len(made) <= late:
        raise LateStartError("did not come up")
    return len(set(made))


def waits(line: Line, left: str) -> None:
    try:
        line.say(str(os.getpid()))
        threading.Event().wait()
    finally:
        Path(left).write_text("in order", encoding="utf-8")


def loses(line: Line, head: str) -> None:
    line.connected(head)
    threading.Event().wait()


def drive(work: Any, *arguments: Any, log: Path, said: list[str] | None = None, polls: list[int] | None = None) -> Any:
    on_poll = (lambda: None) if polls is None else (lambda: polls.append(1))
    say = (lambda line: None) if said is None else said.append
    return with_ray(work, arguments, log=log, on_poll=on_poll, say=say)


def test_what_it_says_and_returns_arrives_and_what_it_prints_goes_into_the_log(tmp_path: Path) -> None:
    said: list[str] = []
    polls: list[int] = []
    assert drive(adds, 2, 3, log=tmp_path / "log", said=said, polls=polls) == 5
    assert said == ["adding"]
    assert polls
    assert (tmp_path / "log").read_text() == "into the log\n"


def test_a_mistake_stays_one_and_anything_else_has_its_traceback(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^data.dir: is missing; look for it$"):
        drive(mistaken, log=tmp_path / "log")
    with pytest.raises(RuntimeError, match=r"(?s)in breaks.*ZeroDivisionError: nothing to divide by"):
        drive(breaks, log=tmp_path / "log")


def test_a_cluster_that_is_late_is_started_again_by_another_process(tmp_path: Path) -> None:
    attempts = tmp_path / "attempts"
    assert drive(comes_up_late, str(attempts), 2, log=tmp_path / "log") == 3
    attempts.unlink()
    with pytest.raises(LateStartError, match="did not come up"):
        drive(comes_up_late, str(attempts), 9, log=tmp_path / "log")
    assert len(attempts.read_text().splitlines()) == ray_process.STARTS


def test_its_death_is_one_line_with_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(ClusterLostError, match=r"died \(exit code 1\): the last words of a library; nothing that was"):
        drive(dies, log=tmp_path / "log")


def test_a_head_that_stops_answering_ends_the_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_process, "LOOK_SECONDS", 0.4)  # below the half second from one poll to the next
    monkeypatch.setattr(ray_process, "LOST_SECONDS", 2.0)  # several looks, so that one late answer is no loss
    begin = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        looks: list[int] = []

        def on_poll() -> None:
            looks.append(1)
            if len(looks) == 6:
                head.close()

        with pytest.raises(ClusterLostError, match=rf"the cluster is gone: its head at {address} has not answered for"):
            with_ray(loses, (address,), log=tmp_path / "log", on_poll=on_poll, say=lambda line: None)
    assert len(looks) >= 6  # not while it answered
    assert time.monotonic() - begin < PATIENCE_SECONDS


def test_a_signal_stops_it_in_order_and_comes_out_as_an_interrupt(tmp_path: Path) -> None:
    def say(pid: str) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    left = tmp_path / "left"
    with pytest.raises(KeyboardInterrupt):
        with_ray(waits, (str(left),), log=tmp_path / "log", on_poll=lambda: None, say=say)
    assert left.read_text() == "in order"
    assert signal.getsignal(signal.SIGTERM) is before


def test_it_ends_with_the_sweep_that_is_killed(tmp_path: Path) -> None:
    left = tmp_path / "left"
    program = tmp_path / "sweep.py"
    program.write_text(
        "import functools, sys\n"
        "from pathlib import Path\n"
        "import test_ray_process as t\n"
        "from sweeps.executors.ray_process import with_ray\n"
        "if __name__ == '__main__':\n"
        f"    with_ray(t.waits, ({str(left)!r},), log=Path({str(tmp_path / 'log')!r}), on_poll=lambda: None,\n"
        "             say=functools.partial(print, flush=True))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    process = subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    driver = int(process.stdout.readline())
    process.kill()
    process.wait()
    end = time.monotonic() + PATIENCE_SECONDS
    while Path(f"/proc/{driver}").exists() and time.monotonic() < end:
        time.sleep(0.02)
    assert not Path(f"/proc/{driver}").exists()
    assert left.read_text() == "in order"
