"""Links between processes: death, standing still, TLS, and what is left behind."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from multiprocessing.context import ForkServerContext, ForkServerProcess
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import pytest
import torch
from leftovers import Possessions, left_over, possessions
from link_examples import SECONDS, SERVER, TOKEN, WORKER, End, link_pair, membership, resources

from distributed.errors import DistributedError, HandshakeError, LinkClosed, LinkError, LinkTimeout
from distributed.links.addresses import Addresses, machine_identity
from distributed.links.faults import Fault, Faults
from distributed.links.frames import Frame, as_tensor
from distributed.links.link import LinkOptions
from distributed.links.listener import Listener, connect
from distributed.links.shared_memory import SharedArena
from distributed.links.tls import tls_context

both_kinds = pytest.mark.parametrize("kind", ["tcp", "shm"])
OPTIONS = LinkOptions(stall_seconds=SECONDS)


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["distributed.links.listener", "torch"])
    return context


class Hall:
    """A listener in this process that starts every link it is given."""

    def __init__(self, options: LinkOptions, place: Callable[[Frame], Any]):
        self.place = place
        self.ends: list[End] = []
        self.changed = threading.Condition()
        self.listener = Listener(lambda: membership(SERVER, options), self._accept)

    def _accept(self, link: Any) -> None:
        end = End(link, self.place).start()
        with self.changed:
            self.ends.append(end)
            self.changed.notify_all()

    def wait(self) -> End:
        with self.changed:
            assert self.changed.wait_for(lambda: self.ends, SECONDS)
        return self.ends[0]


@pytest.fixture
def hall() -> Iterator[Callable[..., Hall]]:
    made: list[Hall] = []

    def make(options: LinkOptions = OPTIONS, place: Callable[[Frame], Any] = lambda frame: None) -> Hall:
        made.append(Hall(options, place))
        return made[-1]

    yield make
    for one in made:
        one.listener.close()
        for end in one.ends:
            end.link.shutdown()
            end.link.close()


@pytest.fixture
def started(processes: ForkServerContext) -> Iterator[Callable[..., ForkServerProcess]]:
    """Starts processes and clears them away."""
    made: list[ForkServerProcess] = []

    def start(run: Callable[..., None], *arguments: object) -> ForkServerProcess:
        made.append(processes.Process(target=run, args=arguments, daemon=True))
        made[-1].start()
        return made[-1]

    yield start
    for process in made:
        process.kill()
        process.join(SECONDS)


def worker(addresses: Addresses, kind: str, options: LinkOptions, steps: int) -> None:
    """Sends `steps` frames out of shared memory, then lives until its link ends."""
    arena = SharedArena()
    shared = arena.allocate(1 << 16).fill_(4)
    end = End(connect(addresses, membership(WORKER, replace(options, arena=arena)), kind=kind)).start()
    for step in range(steps):
        if options.faults is not None:
            options.faults.reach("push", step)
        end.link.send(Frame(1, step=step), shared)
        with suppress(LinkClosed):  # who was stopped here may wake to a link that has ended
            end.link.flush()
    end.wait_closed()


@both_kinds
def test_the_death_of_a_process_is_known_at_once(
    kind: str, hall: Callable[..., Hall], started: Callable[..., ForkServerProcess]
) -> None:
    there = hall()
    process = started(worker, there.listener.addresses, kind, OPTIONS, 3)
    end = there.wait()
    end.wait_frames(3)
    began = time.monotonic()
    os.kill(process.pid, signal.SIGKILL)
    reason = end.wait_closed()
    assert time.monotonic() - began < SECONDS / 2  # no deadline has passed
    assert isinstance(reason, LinkClosed) and not reason.orderly
    # What the dead process shared is still there for those who look at it.
    assert as_tensor(end.views[0], torch.float32).eq(4).all()


@both_kinds
def test_a_process_that_stands_still_is_given_up_and_cannot_come_back(
    kind: str, hall: Callable[..., Hall], started: Callable[..., ForkServerProcess]
) -> None:
    there = hall(replace(OPTIONS, silence_seconds=3.0))
    process = started(worker, there.listener.addresses, kind, replace(OPTIONS, beat_seconds=0.05), 1)
    end = there.wait()
    end.wait_frames(1)
    os.kill(process.pid, signal.SIGSTOP)
    reason = end.wait_closed()
    assert isinstance(reason, LinkTimeout)
    assert str(reason) == "link to worker3: the peer has been silent for 3 s"
    os.kill(process.pid, signal.SIGCONT)
    process.join(SECONDS)  # its link has ended too, so it ends
    assert process.exitcode == 0
    assert len(end.frames) == 1


@both_kinds
def test_an_injected_kill_happens_at_its_step(
    kind: str, hall: Callable[..., Hall], started: Callable[..., ForkServerProcess]
) -> None:
    there = hall()
    faults = [Fault.parse("kill@worker3.push:2")]
    process = started(killed_worker, there.listener.addresses, kind, faults)
    reason = there.wait().wait_closed()
    process.join(SECONDS)
    assert process.exitcode == -signal.SIGKILL
    assert isinstance(reason, LinkClosed) and not reason.orderly
    assert [frame.step for frame, _ in there.ends[0].frames] == [0, 1]


def killed_worker(addresses: Addresses, kind: str, faults: list[Fault]) -> None:
    worker(addresses, kind, replace(OPTIONS, faults=Faults(faults, "worker", 3)), 5)


def connected(addresses: Addresses, kind: str, large: int, answers: Queue[Any]) -> None:
    """Sends one large payload, and says why its link ended."""
    end = End(connect(addresses, membership(WORKER), kind=kind)).start()
    try:
        end.link.send(Frame(1), bytes(large))
        end.link.flush()
    except LinkError:
        pass
    answers.put(end.wait_closed())


@both_kinds
def test_shutdown_here_ends_a_writer_that_is_blocked_there(
    kind: str,
    processes: ForkServerContext,
    hall: Callable[..., Hall],
    started: Callable[..., ForkServerProcess],
) -> None:
    held, go = threading.Event(), threading.Event()

    def hold(frame: Frame) -> None:
        held.set()
        go.wait(SECONDS)

    there = hall(OPTIONS, hold)
    answers: Queue[Any] = processes.Queue()
    started(connected, there.listener.addresses, kind, 64 << 20, answers)
    assert held.wait(SECONDS)
    there.wait().link.shutdown()
    go.set()
    assert isinstance(answers.get(timeout=SECONDS), LinkClosed)


def test_nothing_is_left_when_both_processes_are_gone(
    hall: Callable[..., Hall], started: Callable[..., ForkServerProcess]
) -> None:
    there = hall()
    process = started(worker, there.listener.addresses, "shm", OPTIONS, 1)
    there.wait().wait_frames(1)
    unix = f"@{there.listener.addresses.unix}"
    assert unix in Path("/proc/net/unix").read_text()
    has = possessions({process.pid})
    assert has.memory
    process.kill()
    process.join(SECONDS)
    there.ends[0].wait_closed()
    there.listener.close()
    assert unix not in Path("/proc/net/unix").read_text()
    there.ends[0].views.clear()
    gc.collect()
    assert left_over(has) == Possessions()


def test_another_network_namespace_shares_no_memory() -> None:
    """Abstract Unix sockets end at its border, whatever else the machine shares."""
    code = "from distributed.links.addresses import machine_identity; print(machine_identity())"
    done = subprocess.run(["unshare", "-rn", sys.executable, "-c", code], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"this machine makes no network namespaces: {done.stderr.strip()}")
    boot, namespace = done.stdout.strip().split("/")
    own_boot, own_namespace = machine_identity().split("/")
    assert boot == own_boot and namespace != own_namespace


# TLS


def contexts(folder: Path, name: str) -> dict[str, Any]:
    files = folder / f"{name}.pem", folder / f"{name}.key"
    return {"server_tls": tls_context(*files, server_side=True), "client_tls": tls_context(*files, server_side=False)}


@pytest.mark.parametrize("checksum", ["auto", "always"])
def test_tls_carries_both_directions_at_once(certificates: Path, checksum: str) -> None:
    payloads = [torch.randint(0, 256, (size,), dtype=torch.uint8) for size in (0, 1, 16384, 5 << 20, 70_001)]
    options = replace(OPTIONS, checksum=checksum)
    with link_pair("tcp", options, **contexts(certificates, "run")) as ends:
        for end in ends:
            end.start()
        for step, payload in enumerate(payloads * 4):
            for end in ends:
                end.link.send(Frame(1, step=step), payload)
        for end in ends:
            found = end.wait_frames(20)
            assert [data for _, data in found] == [bytes(payload.numpy()) for payload in payloads] * 4
        extra = 0 if checksum == "auto" else 8
        assert ends[0].link.counters.received.total.framing_bytes == 20 * 64 + 16 * extra
        ends[0].link.close()
        reason = ends[1].wait_closed()
        assert isinstance(reason, LinkClosed) and reason.orderly


def test_tls_leaves_nothing_behind_and_nothing_readable(certificates: Path) -> None:
    gc.collect()
    before = resources()
    for _ in range(3):
        with link_pair("tcp", OPTIONS, **contexts(certificates, "run")) as (ours, theirs):
            ours.start(), theirs.start()
            ours.link.send(Frame(1), b"some payload")
            theirs.wait_frames(1)
    gc.collect()
    assert resources() <= before


class Hub:
    """A listener with these contexts, and what it refused."""

    def __init__(self, **tls: Any):
        self.refused: list[LinkError] = []
        self.told = threading.Event()
        self.listener = Listener(
            lambda: membership(SERVER, OPTIONS, **tls), lambda link: link.close(0.0), refused=self._refuse
        )

    def _refuse(self, error: LinkError) -> None:
        self.refused.append(error)
        self.told.set()


@pytest.mark.parametrize(
    ("server", "client"),
    [("run", "other"), ("run", None), (None, "run")],
    ids=["another certificate", "a client without TLS", "a server without TLS"],
)
def test_both_sides_must_show_the_same_certificate(certificates: Path, server: str | None, client: str | None) -> None:
    hub = Hub(**(contexts(certificates, server) if server else {}))
    own = membership(WORKER, OPTIONS, **(contexts(certificates, client) if client else {}))
    with pytest.raises(LinkError) as caught:
        connect(hub.listener.addresses, own, kind="tcp", seconds=SECONDS)
    assert hub.told.wait(SECONDS)
    hub.listener.close()
    for error in (caught.value, hub.refused[0]):
        assert isinstance(error, HandshakeError)
        assert "\n" not in str(error) and TOKEN.reveal() not in str(error)


def test_shared_memory_needs_no_tls(certificates: Path) -> None:
    hub = Hub(**contexts(certificates, "run"))
    link = connect(hub.listener.addresses, membership(WORKER), kind="shm")
    link.close(0.0)
    hub.listener.close()


def test_certificates_that_cannot_be_used(certificates: Path, tmp_path: Path) -> None:
    for certificate, key, what in (
        (tmp_path / "absent", certificates / "run.key", "No such file"),
        (certificates / "run.pem", certificates / "other.key", "KEY_VALUES_MISMATCH"),
        (certificates / "run.key", certificates / "run.pem", "TLS: certificate .* cannot be used: .*; both in PEM"),
    ):
        with pytest.raises(DistributedError, match=what):
            tls_context(certificate, key, server_side=True)


def test_the_benchmark_compares_every_link_with_the_plain_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2] / "scripts"))
    from bench.links import LINKS, MIB, PLAIN, link_part, measure_links

    rounds: list[None] = []
    found = measure_links(lambda: rounds.append(None), 4 * MIB, 2)
    assert len(rounds) == 2
    assert set(found["links"]) == {PLAIN, *LINKS}
    part = link_part([found])
    tcp = found["links"]["tcp"]["over_plain"]["median"]
    assert part.ratios["link_vs_loopback"] == part.ratios["links/4 MiB/tcp/over_plain"] == tcp > 0
    assert all(name in part.markdown() for name in LINKS)


def test_errors_of_links_are_plain_data() -> None:
    """They cross to the coordinator in control messages."""
    assert json.loads(json.dumps(str(LinkTimeout("late", where="worker3")))) == "worker3: late"
