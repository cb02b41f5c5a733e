"""How fast links are beside a plain loop over the same sockets."""

from __future__ import annotations

import multiprocessing
import os
import socket
import statistics
import struct
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from typing import Any

from bench.children import Job, Report
from bench.machine import Spread
from bench.tables import Part, table

MIB = 1 << 20
SIZES = (64 << 10, 4 * MIB, 8 * MIB, 32 * MIB)
VOLUME = 64 * MIB  # bytes of one timing
ROUND_TRIPS = 500
SECONDS = 60.0

# name: kind of link, checksums, memory that the payload lies in
LINKS = {
    "tcp": ("tcp", "auto", "own"),
    "tcp with checksums": ("tcp", "always", "own"),
    "unix": ("shm", "auto", "own"),
    "shared memory": ("shm", "auto", "shared"),
    "shared memory with checksums": ("shm", "always", "shared"),
}
PLAIN = "plain loop"

Times = tuple[float, float, float]  # seconds of wall clock, CPU seconds of the sender, CPU seconds of the receiver


@dataclass
class _Shared:
    """What both processes are told of a measurement."""

    size: int
    token: str


def link_jobs(rounds: int, sizes: Sequence[int] = SIZES) -> list[Job]:
    """A job for each size of payload."""
    return [Job(f"links, payloads of {shown(size)}", measure_links, (size, rounds), units=rounds) for size in sizes]


def shown(size: int) -> str:
    """A size of a payload."""
    return f"{size // MIB} MiB" if size >= MIB else f"{size // 1024} KiB"


def measure_links(report: Report, size: int, rounds: int) -> dict[str, Any]:
    """Bytes a second of payloads of one size, from one process of this machine to another.

    Every round times the plain loop and each link in turn. The plain loop is `sendall` and `recv_into` on a TCP socket
    over loopback with the kernel's own buffer sizes. All end with an answer of the receiver.
    """
    import torch

    from distributed.links.frames import Frame
    from distributed.links.shared_memory import SharedArena
    from distributed.links.token import Token

    shared = _Shared(size, Token.generate().reveal())
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_receiver, args=(shared, theirs), daemon=True)
    process.start()
    theirs.close()
    arena = SharedArena()
    own, inside = torch.randint(0, 256, (size,), dtype=torch.uint8), arena.allocate(size, torch.uint8)
    inside.copy_(own)
    plain = socket.create_connection(ours.recv(), SECONDS)
    plain.settimeout(None)
    runs: dict[str, Callable[[], Times]] = {PLAIN: lambda: _plain_run(plain, memoryview(own.numpy()))}
    trips: dict[str, float] = {}
    ends = []
    for name, (kind, checksum, memory) in LINKS.items():
        end = _Sender(ours.recv(), shared, kind, checksum, arena)
        ends.append(end)
        payload = inside if memory == "shared" else own
        runs[name] = lambda end=end, payload=payload: end.run(payload, VOLUME // size)  # type: ignore[misc]
        trips[name] = end.round_trip(Frame(_ECHO))
    for run in runs.values():
        run()  # buffers, threads and pages are there before anything is timed
    times: dict[str, list[Times]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(run())
        report()
    load = os.getloadavg()[0]
    for end in ends:
        end.link.close()
    plain.close()
    process.join(SECONDS)
    volume = VOLUME // size * size
    return {
        "size": size,
        "load_average": load,
        "links": {
            name: {
                "bytes_per_second": asdict(Spread.of([volume / wall for wall, _, _ in found])),
                "cpu_seconds_per_gib": asdict(Spread.of([(a + b) * 2**30 / volume for _, a, b in found])),
                "over_plain": asdict(Spread.of([p[0] / own[0] for p, own in zip(times[PLAIN], found, strict=True)])),
                "round_trip_seconds": trips.get(name),
            }
            for name, found in times.items()
        },
    }


def link_part(found: Sequence[dict[str, Any]]) -> Part:
    """Rates beside the plain loop. `link_vs_loopback` is the ratio of TCP, the least of payloads of 4 to 32 MiB."""
    rows, ratios = [], {}
    for one in found:
        for name, figures in one["links"].items():
            over = Spread(**figures["over_plain"])
            if name != PLAIN:
                ratios[f"links/{shown(one['size'])}/{name}/over_plain"] = over.median
            rows.append(
                [
                    shown(one["size"]),
                    name,
                    Spread(**figures["bytes_per_second"]).shown(lambda value: f"{value / 2**30:.2f}"),
                    "" if name == PLAIN else over.shown("{:.2f}".format),
                    f"{figures['cpu_seconds_per_gib']['median']:.2f}",
                    "" if name == PLAIN else f"{figures['round_trip_seconds'] * 1e6:,.0f}",
                ]
            )
    large = [one["links"]["tcp"]["over_plain"]["median"] for one in found if 4 * MIB <= one["size"] <= 32 * MIB]
    if large:
        ratios["link_vs_loopback"] = min(large)
    heads = ["payload", "over", "GiB/s", "rate / plain loop", "CPU s/GiB, both ends", "round trip, µs"]
    loads = ", ".join(f"{one['load_average']:.1f}" for one in found)
    return Part(
        "Links between two processes of this machine",
        [
            f"{VOLUME // MIB} MiB a timing, from queueing to the receiver's answer; load average at the end of "
            f"each size: {loads}. In shared memory nothing is copied: the receiver sees the sender's memory. `unix` is "
            "the same link with memory that is not shared.",
            table(heads, rows),
        ],
        list(found),
        ratios,
    )


# Kinds of frames of this measurement
_DATA, _LAST, _ANSWER, _ECHO = 1, 2, 3, 4


def _plain_run(connected: socket.socket, payload: memoryview) -> Times:
    """Send the volume with `sendall` and wait for the answer."""
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(VOLUME // len(payload)):
        connected.sendall(payload)
    there = struct.unpack("d", connected.recv(8, socket.MSG_WAITALL))[0]
    return time.perf_counter() - wall, time.process_time() - cpu, there


def _plain_receiver(listening: socket.socket, size: int) -> None:
    """The other end of `_plain_run`."""
    connected, _ = listening.accept()
    room = memoryview(bytearray(size))
    while True:
        began = time.thread_time()
        for _ in range(VOLUME // size):
            count = 0
            while count < size:
                arrived = connected.recv_into(room[count:])
                if not arrived:
                    return
                count += arrived
        connected.sendall(struct.pack("d", time.thread_time() - began))


def _membership(role: str, shared: _Shared, checksum: str, arena: Any = None) -> Any:
    from distributed.links.handshake import Identity
    from distributed.links.link import LinkOptions, Peer
    from distributed.links.listener import Membership
    from distributed.links.token import Token

    options = LinkOptions(stall_seconds=SECONDS, checksum=checksum, arena=arena)
    return Membership(Identity("bench", Peer(role)), Token(shared.token.encode()), options)


class _Sender:
    """The sending end of a link."""

    def __init__(self, addresses: Any, shared: _Shared, kind: str, checksum: str, arena: Any):
        from distributed.links.listener import connect

        self.link = connect(addresses, _membership("worker", shared, checksum, arena), kind=kind)
        self._answered = threading.Semaphore(0)
        self._there = 0.0
        self.link.start(lambda frame: None, self._deliver, lambda reason: self._answered.release())

    def _deliver(self, frame: Any, payload: memoryview) -> None:
        if frame.kind == _ANSWER:
            self._there = struct.unpack("d", payload)[0]
        self._answered.release()

    def run(self, payload: Any, frames: int) -> Times:
        from distributed.links.frames import Frame

        wall, cpu = time.perf_counter(), time.process_time()
        for number in range(frames):
            self.link.send(Frame(_LAST if number == frames - 1 else _DATA), payload)
        self._answered.acquire()
        return time.perf_counter() - wall, time.process_time() - cpu, self._there

    def round_trip(self, frame: Any) -> float:
        """Median seconds of a frame without payload, there and back."""
        found = []
        for _ in range(ROUND_TRIPS):
            began = time.perf_counter()
            self.link.send(frame)
            self._answered.acquire()
            found.append(time.perf_counter() - began)
        return statistics.median(found)


def _receiver(shared: _Shared, pipe: Connection) -> None:
    """The process that receives; lives until its last link ends."""
    import torch

    from distributed.links.frames import Frame
    from distributed.links.listener import Listener

    torch.set_num_threads(1)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=_plain_receiver, args=(listening, shared.size), daemon=True).start()
        pipe.send(listening.getsockname())
        ended = threading.Semaphore(0)
        room = memoryview(bytearray(shared.size))

        def accept(link: Any) -> None:
            began = 0.0

            def deliver(frame: Any, payload: memoryview) -> None:
                nonlocal began
                if frame.kind == _ECHO:
                    link.send(Frame(_ECHO))
                if frame.kind == _LAST:
                    link.send(Frame(_ANSWER), struct.pack("d", time.thread_time() - began))
                if frame.kind != _DATA:
                    began = time.thread_time()

            link.start(lambda frame: room, deliver, lambda reason: ended.release())

        listeners = []
        for _, checksum, _ in LINKS.values():
            listeners.append(Listener(lambda checksum=checksum: _membership("server", shared, checksum), accept))
            pipe.send(listeners[-1].addresses)
        for _ in LINKS:
            ended.acquire()
