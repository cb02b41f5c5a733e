"""Frames that need no waiting are written by whoever sends them, in their place among those that are queued."""

from __future__ import annotations

import threading

from link_examples import SECONDS, End, link_pair

from distributed.links.frames import Frame
from distributed.links.link import LinkOptions
from distributed.links.shared_memory import SharedArena
from distributed.links.shm import SMALL_BYTES

FRAMES = 60


def content(step: int, length: int) -> bytes:
    return bytes([step % 251]) * length


def test_nobody_waits_for_a_peer_that_reads_nothing_and_every_frame_arrives_in_order() -> None:
    """More small frames than the socket takes: those that find no room are queued behind the others."""
    frames = 2000
    with link_pair("shm", LinkOptions(stall_seconds=SECONDS, queued_frames=frames)) as (worker, server):
        worker.start()
        for step in range(frames):
            worker.link.send(Frame(1, step=step), content(step, 1000))
        assert worker.link._queue, "all of them went into the socket: the test shows nothing"
        server.start()
        found = server.wait_frames(frames)
    assert [(frame.step, frame.sequence, data) for frame, data in found] == [
        (step, step, content(step, 1000)) for step in range(frames)
    ]


def test_threads_that_send_large_small_and_shared_payloads_keep_their_order() -> None:
    arena = SharedArena()
    shared = arena.allocate(1000).fill_(7.0)
    lengths = (0, 1, SMALL_BYTES, SMALL_BYTES + 1, 300_000)

    def send(end: End, kind: int) -> None:
        for step in range(FRAMES):
            # Every fifth with a `done`, which is for the link's own threads.
            done = (lambda: None) if step % 5 == 0 else None
            payload = shared if step % 3 == 0 else content(step, lengths[(step + kind) % len(lengths)])
            end.link.send(Frame(kind, step=step), payload, done=done)

    options = LinkOptions(stall_seconds=SECONDS, arena=arena, beat_seconds=0.001)
    with link_pair("shm", options) as (worker, server):
        server.start(), worker.start()
        threads = [threading.Thread(target=send, args=(worker, kind)) for kind in (1, 2, 3)]
        for thread in threads:
            thread.start()
        found = server.wait_frames(3 * FRAMES)
        for thread in threads:
            thread.join(SECONDS)
        worker.link.flush()
        sent, received = worker.link.counters.sent, server.link.counters.received
        for kind in (1, 2, 3):
            assert sent.by_kind[kind] == received.by_kind[kind]
            own = [(frame.step, data) for frame, data in found if frame.kind == kind]
            assert own == [
                (step, bytes(shared.numpy()) if step % 3 == 0 else content(step, lengths[(step + kind) % len(lengths)]))
                for step in range(FRAMES)
            ]
    arena.close()


def test_what_a_sender_writes_itself_is_written_when_send_returns() -> None:
    arena = SharedArena()
    shared = arena.allocate(10)
    with link_pair("shm", LinkOptions(stall_seconds=SECONDS, arena=arena)) as (worker, server):
        server.start(), worker.start()
        worker.link.send(Frame(1), shared)  # with the memory itself, which the writer sends
        worker.link.flush()
        for step, payload in enumerate((b"", bytes(SMALL_BYTES), shared[2:5])):
            worker.link.send(Frame(2, step=step), payload)
            assert worker.link.counters.sent.by_kind[2].messages == step + 1
            assert not worker.link._queue
        server.wait_frames(4)
    arena.close()
