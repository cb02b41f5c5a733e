"""However a link ends in the middle of traffic both ways, the books balance at both ends."""

from __future__ import annotations

import random
import socket
import threading

import pytest
from link_examples import SECONDS, End, link_pair

from distributed.errors import LinkClosed, LinkError
from distributed.links.frames import Frame
from distributed.links.link import LinkOptions
from distributed.links.shared_memory import SharedArena

FRAMES = 40
ENDINGS = ("shutdown", "close", "both close", "broken")


class Talk:
    """One end that sends frames of all sizes until it is done or the link ends."""

    def __init__(self, end: End, arena: SharedArena, seed: int, halfway: threading.Barrier):
        self.end, self.sent, self.done, self._halfway = end, 0, [], halfway
        self._payloads = [b"", b"x" * 100, bytes(300_000), arena.allocate(10_000)]
        self._random = random.Random(seed)
        self.thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        pause = self._random.randrange(FRAMES)
        for step in range(FRAMES):
            if step == pause:
                self._halfway.wait(SECONDS)
            try:
                payload = self._random.choice(self._payloads)
                self.end.link.send(Frame(1, step=step), payload, done=lambda step=step: self.done.append(step))
            except LinkError:
                return
            self.sent += 1


def end_link(ending: str, ends: tuple[End, End]) -> None:
    """Bring the first end's link down."""
    closing = [threading.Thread(target=end.link.close) for end in ends[: 2 if ending == "both close" else 1]]
    if ending == "shutdown":
        ends[0].link.shutdown()
    elif ending == "broken":
        ends[0].link._stream.socket.shutdown(socket.SHUT_RDWR)
    else:
        for thread in closing:
            thread.start()
        for thread in closing:
            thread.join(SECONDS)


def check(kind: str, ending: str, seed: int) -> None:
    """One ending: what is accepted is given back once, what arrives is a beginning of it, in order."""
    shape = random.Random(seed)
    arena = SharedArena()
    options = LinkOptions(
        stall_seconds=SECONDS,
        arena=arena,
        queued_frames=shape.choice([1, 4, 256]),
        checksum=shape.choice(["auto", "always"]),
        beat_seconds=shape.choice([None, 0.001]),
    )
    halfway = threading.Barrier(3)
    with link_pair(kind, options) as ends:
        talks = [Talk(end.start(), arena, seed + number, halfway) for number, end in enumerate(ends)]
        for talk in talks:
            talk.thread.start()
        halfway.wait(SECONDS)
        end_link(ending, ends)
        reasons = [end.wait_closed() for end in ends]
        for talk, other in zip(talks, reversed(ends), strict=True):
            talk.thread.join(SECONDS)
            assert talk.done == list(range(talk.sent))
            arrived = [frame.step for frame, _ in other.frames]
            assert arrived == list(range(len(arrived)))
            assert len(arrived) == talk.sent or ending in ("shutdown", "broken")
        if "close" in ending:
            assert all(isinstance(reason, LinkClosed) and reason.orderly for reason in reasons)
        assert [len(end.reasons) for end in ends] == [1, 1]
    arena.close()


@pytest.mark.parametrize("kind", ["tcp", "shm"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_the_books_balance(kind: str, ending: str) -> None:
    check(kind, ending, seed=1)


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", ["tcp", "shm"])
@pytest.mark.parametrize("ending", ENDINGS)
def test_the_books_balance_wherever_a_link_ends(kind: str, ending: str) -> None:
    for seed in range(100):
        check(kind, ending, seed)
