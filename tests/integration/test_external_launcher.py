"""`distribution.launcher=external`: processes that others start with `python -m distributed.launch`, now or later."""

from __future__ import annotations

import logging
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from distributed.ddp.strategy import DdpStrategy
from distributed.links.token import ENVIRONMENT, FILE_ENVIRONMENT
from distributed.parameter_server.messages import worker
from distributed.parameter_server.strategy import ParameterServerStrategy
from distributed.ring.strategy import RingStrategy
from distributed.ring_tmp.strategy import StageRingStrategy
from distributed.single import SingleStrategy
from nmt.config import compose
from nmt.training.fit import strategy_options
from nmt.training.workload import workload_spec

PATIENCE_SECONDS = 120.0
SMALL = [
    "scale=smoke",
    "tracking=none",
    "threads=1",
    "device=cpu",
    "data.options={train_size: 96, validation_size: 8, test_size: 8}",
    "batch.micro_batches=4",
]
SERVED = ["distribution=parameter_server", "distribution.launcher=external", "distribution.heartbeat_seconds=0.3"]


class Hosts:
    """Somebody who starts what the log of the coordinator asks for."""

    def __init__(self, said: list[str]):
        self._said, self._thread = said, threading.Thread(target=self._start_all)
        self.processes: list[subprocess.Popen[str]] = []
        self._thread.start()

    def _start_all(self) -> None:
        wait_until(lambda: bool(self._said))
        count = re.search(r"each of these (\d+) processes", self._said[0])
        assert count is not None
        for _ in range(int(count[1])):
            self.start()

    def start(self, *words: str) -> subprocess.Popen[str]:
        """One more process, with the printed command to the letter."""
        command = shlex.split(self._said[0].partition(" processes with: ")[2])
        variables = dict(word.split("=", 1) for word in command[: command.index("python")])
        process = subprocess.Popen(
            [sys.executable, *command[command.index("python") + 1 :], "threads=1", *words],
            env=os.environ | variables,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        return process

    def end(self) -> list[tuple[int, str]]:
        """Wait for all of them: exit codes, and what they said."""
        self._thread.join()
        ends = [(one, one.communicate(timeout=PATIENCE_SECONDS)[1]) for one in self.processes]
        return [(one.returncode, said) for one, said in ends]


def wait_until(what: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not what():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What the launcher logs."""
    for name in (ENVIRONMENT, FILE_ENVIRONMENT):
        monkeypatch.delenv(name, raising=False)
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("distributed.launchers.external")
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)


def test_what_others_have_started_trains_the_run_and_who_comes_later_takes_part(
    tmp_path: Path, said: list[str]
) -> None:
    words = [*SMALL, *SERVED, "distribution.workers=1"]
    reference = SingleStrategy()
    reference.start(workload_spec(compose(SMALL), "cpu"))
    strategy = ParameterServerStrategy(strategy_options(compose(words), "abc/s1", tmp_path, 1))
    hosts = Hosts(said)
    try:
        strategy.start(workload_spec(compose(words), "cpu"))
        assert "run abc/s1 waits for 1 worker and 1 server" in said[0]
        index = 0
        while index < 4:
            index += 1
            assert strategy.step(index) == reference.step(index)
        late = hosts.start("role=worker")

        def joined() -> bool:
            nonlocal index
            index += 1
            assert strategy.step(index) == reference.step(index)
            return "worker 1" in strategy.report()["processes"]

        wait_until(joined)
        assert strategy._coordinator is not None
        (first,) = [agent for member, agent in strategy._coordinator._agents.items() if member == worker(0)]
        os.kill((first.about or {})["pid"], signal.SIGKILL)  # the late one goes on alone
        for later in range(index + 1, index + 9):
            assert strategy.step(later) == reference.step(later)
        strategy.synchronize()
        one, other = strategy.state(), reference.state()
        assert all(torch.equal(tensor, other["parameters"][name]) for name, tensor in one["parameters"].items())
        assert strategy.report()["lost"]["workers"] == 1
        assert re.search(r"worker \S+:\d+ is lost; another may come: S2S_.* role=worker$", said[-1])
    finally:
        strategy.close()
        ends = hosts.end()
    assert late.returncode == 0
    assert sorted(code for code, _ in ends) == [-9, 0, 0]
    assert not (tmp_path / "link_token").exists()


@pytest.mark.exhaustive
def test_a_node_of_a_ring_that_comes_later_waits_for_a_seat(tmp_path: Path, said: list[str]) -> None:
    words = [*SMALL, "distribution=ring_allreduce", "distribution.launcher=external", "distribution.workers=2"]
    strategy = RingStrategy(strategy_options(compose(words), "abc/s1", tmp_path, 1))
    hosts = Hosts(said)
    try:
        strategy.start(workload_spec(compose(words), "cpu"))
        assert "run abc/s1 waits for 2 workers; " in said[0]
        hosts.start()
        coordinator, index = strategy._coordinator, 0
        assert coordinator is not None

        def seated(order: tuple[int, ...]) -> bool:
            nonlocal index
            index += 1
            strategy.step(index)
            return len(coordinator._ready) >= len(order) and coordinator._membership.ring.order == order

        wait_until(lambda: seated((0, 1)) and len(coordinator._ready) == 3)
        (first,) = [agent for member, agent in coordinator._agents.items() if member == worker(0)]
        os.kill((first.about or {})["pid"], signal.SIGKILL)
        wait_until(lambda: seated((1, 2)))
        losses = [strategy.step(later).loss for later in range(index + 1, index + 4)]
    finally:
        strategy.close()
        ends = hosts.end()
    assert all(map(math.isfinite, losses))
    assert sorted(code for code, _ in ends) == [-9, 0, 0]


@pytest.mark.exhaustive
def test_a_node_of_a_stage_ring_that_comes_later_takes_stages_of_a_lost_one(tmp_path: Path, said: list[str]) -> None:
    words = [*SMALL, "distribution=ring_tmp", "distribution.launcher=external", "distribution.nodes=2"]
    reference = SingleStrategy()
    reference.start(workload_spec(compose(SMALL), "cpu"))
    strategy = StageRingStrategy(strategy_options(compose(words), "abc/s1", tmp_path, 1))
    hosts = Hosts(said)
    try:
        strategy.start(workload_spec(compose(words), "cpu"))
        assert "run abc/s1 waits for 2 workers; " in said[0]
        assert strategy.step(1) == reference.step(1)
        coordinator = strategy._coordinator
        assert coordinator is not None
        ring = coordinator._membership
        (first,) = [agent for member, agent in coordinator._agents.items() if member == worker(0)]
        os.kill((first.about or {})["pid"], signal.SIGKILL)
        assert strategy.step(2) == reference.step(2)
        wait_until(lambda: ring.members == [1])
        hosts.start()
        wait_until(lambda: sorted(ring.members) == [1, 2] and ring.at_work)
        assert ring.placement.stages_of(2)
        for step in (3, 4, 5):
            assert strategy.step(step) == reference.step(step)
        one, other = strategy.state(), reference.state()
        assert all(torch.equal(tensor, other["parameters"][name]) for name, tensor in one["parameters"].items())
    finally:
        strategy.close()
        ends = hosts.end()
    assert sorted(code for code, _ in ends) == [-9, 0, 0]


@pytest.mark.exhaustive
def test_a_worker_of_ddp_from_elsewhere(tmp_path: Path, said: list[str]) -> None:
    words = [*SMALL, "distribution=ddp", "distribution.launcher=external", "distribution.workers=2"]
    strategy = DdpStrategy(strategy_options(compose(words), "abc/s1", tmp_path, 1))
    hosts = Hosts(said)
    try:
        strategy.start(workload_spec(compose(words), "cpu"))
        assert "run abc/s1 waits for 2 workers; " in said[0]
        spare, stranger = hosts.start(), hosts.start("run=other/s1")
        index = 0

        def is_turned_away() -> bool:
            nonlocal index
            index += 1
            strategy.step(index)
            return spare.poll() is not None

        wait_until(is_turned_away)
        assert (spare.returncode, stranger.wait(PATIENCE_SECONDS)) == (1, 1)
    finally:
        strategy.close()
        ends = hosts.end()
    assert [code for code, _ in ends] == [0, 0, 1, 1]
    assert "has no use for this process" in ends[2][1]
    assert "belongs to run other/s1, not to abc/s1" in ends[3][1]
