"""What a link promises, over TCP and over Unix sockets; both ends live in this process."""

from __future__ import annotations

import gc
import pickle
import threading
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from link_examples import SECONDS, WORKER, link_pair, raw_peer, resources, sockets

from distributed.errors import DistributedError, FrameError, LinkClosed, LinkError, LinkTimeout
from distributed.links.frames import (
    BLOCK,
    CHECKSUMMED,
    GOODBYE,
    HEADER_BYTES,
    SHARED,
    Frame,
    encode_header,
    payload_checksum,
)
from distributed.links.link import DISCARD, LinkOptions
from distributed.links.stream import SocketStream
from distributed.links.tcp import TcpLink

both_kinds = pytest.mark.parametrize("kind", ["tcp", "shm"])


def hold_up(event: threading.Event) -> None:
    assert event.wait(SECONDS)


ALWAYS = LinkOptions(stall_seconds=SECONDS, checksum="always")


@both_kinds
@pytest.mark.parametrize("checksum", ["auto", "always"])
def test_frames_arrive_in_order_with_their_payloads_both_ways(kind: str, checksum: str) -> None:
    sizes = [0, 1, 7, 64, 65537, BLOCK, 3 * BLOCK + 5]
    payloads = [torch.randint(0, 256, (size,), dtype=torch.uint8) for size in sizes]
    with link_pair(kind, LinkOptions(stall_seconds=SECONDS, checksum=checksum)) as ends:
        for end in ends:
            end.start()
        for end in ends:
            for step, payload in enumerate(payloads):
                end.link.send(Frame(3, step=step, tags=(1, 2, step), epoch=9), payload)
        for end in ends:
            found = end.wait_frames(len(sizes))
            assert [frame for frame, _ in found] == [
                Frame(3, step, (1, 2, step), 9, size, step) for step, size in enumerate(sizes)
            ]
            assert [data for _, data in found] == [bytes(payload.numpy()) for payload in payloads]


@both_kinds
def test_payloads_go_straight_to_their_place(kind: str) -> None:
    room = torch.zeros(4, 1000)
    sent = torch.randn(4, 1000)
    with link_pair(kind) as (worker, server):
        server.place = lambda frame: room[frame.tags[0]]
        server.start(), worker.start()
        for row in range(4):
            worker.link.send(Frame(1, tags=(row, 0, 0)), sent[row])
        server.wait_frames(4)
        assert torch.equal(room, sent)


@both_kinds
def test_what_nobody_wants_is_thrown_away_and_the_next_frame_is_right(kind: str) -> None:
    with link_pair(kind, ALWAYS) as (worker, server):
        server.place = lambda frame: DISCARD if frame.epoch < 2 else None
        server.start(), worker.start()
        for epoch in (1, 2, 1):
            worker.link.send(Frame(1, epoch=epoch), bytes([epoch]) * (BLOCK + 3))
        worker.link.send(Frame(2, epoch=1))
        found = server.wait_frames(2)
        assert [(frame.kind, frame.epoch) for frame, _ in found] == [(1, 2), (2, 1)]
        assert found[0][1] == b"\2" * (BLOCK + 3)


@both_kinds
def test_done_is_called_once_for_each_payload(kind: str) -> None:
    done: list[int] = []
    with link_pair(kind) as (worker, server):
        server.start(), worker.start()
        for step in range(5):
            worker.link.send(Frame(1, step=step), bytes(1000), done=lambda step=step: done.append(step))
        worker.link.flush()
        assert done == [0, 1, 2, 3, 4]


@both_kinds
def test_a_payload_is_given_back_when_the_link_ends_before_it_is_written(kind: str) -> None:
    done: list[int] = []
    with link_pair(kind) as (worker, server):
        worker.start()  # the server does not read
        for step in range(4):
            worker.link.send(Frame(1, step=step), bytes(16 << 20), done=lambda step=step: done.append(step))
        server.link.shutdown()
        worker.wait_closed()
        assert done == [0, 1, 2, 3]
        with pytest.raises(LinkClosed):
            worker.link.send(Frame(1))
        with pytest.raises(LinkClosed):
            worker.link.flush()


@both_kinds
def test_counters_count_what_the_socket_carries(kind: str) -> None:
    with link_pair(kind, ALWAYS) as (worker, server):
        server.start(), worker.start()
        for size in (0, 10, 100):
            worker.link.send(Frame(1), bytes(size))
        worker.link.send(Frame(2), bytes(5))
        server.wait_frames(4)
        worker.link.flush()
        sent, received = worker.link.counters.as_dict()["sent"], server.link.counters.as_dict()["received"]
    assert sent == received
    assert {name: sent[name] for name in ("messages", "framing_bytes", "payload_bytes", "shared_bytes")} == {
        "messages": 4,
        "framing_bytes": 4 * 64 + 3 * 8,
        "payload_bytes": 115,
        "shared_bytes": 0,
    }
    assert sent["by_kind"]["1"]["messages"] == 3
    assert sent["by_kind"]["2"]["payload_bytes"] == 5


@both_kinds
def test_bytes_that_stay_in_the_machine_have_no_checksum_of_ours_unless_asked_for(kind: str) -> None:
    with link_pair(kind) as (worker, server):
        server.start(), worker.start()
        worker.link.send(Frame(1), bytes(100))
        server.wait_frames(1)
        assert server.link.counters.received.total.framing_bytes == HEADER_BYTES


# The end


@both_kinds
def test_close_loses_nothing_that_was_sent(kind: str) -> None:
    """Not even where the peer's own frames lie unread at this side: a socket closed over them would be reset."""
    payload = torch.randint(0, 256, (5 << 20,), dtype=torch.uint8)
    with link_pair(kind) as (worker, server):
        slow = threading.Event()
        server.deliver = lambda frame, data: hold_up(slow)
        server.start(), worker.start()
        for step in range(6):
            server.link.send(Frame(2, step=step), bytes(300_000))
            worker.link.send(Frame(1, step=step), payload)
        closing = threading.Thread(target=worker.link.close)
        closing.start()
        slow.set()
        closing.join(SECONDS)
        reason = server.wait_closed()
        assert isinstance(reason, LinkClosed) and reason.orderly
        assert str(reason) == "link to worker3: the peer closed the link"
        assert [frame.step for frame, _ in server.frames] == list(range(6))
        assert all(data == bytes(payload.numpy()) for _, data in server.frames)
        assert str(worker.wait_closed()) == "link to server1: closed by this side"


@both_kinds
def test_nothing_is_taken_after_close(kind: str) -> None:
    with link_pair(kind) as (worker, server):
        told = threading.Event()
        server.deliver = lambda frame, payload: hold_up(told)
        worker.start(), server.start()
        worker.link.send(Frame(1))
        closing = threading.Thread(target=worker.link.close)
        closing.start()
        accepted = 1
        with pytest.raises(LinkClosed, match="link to server1: closed by this side"):
            while True:
                worker.link.send(Frame(1))
                accepted += 1
        told.set()
        closing.join(SECONDS)
        assert len(server.frames) == accepted


@both_kinds
def test_both_ends_may_close_at_once(kind: str) -> None:
    with link_pair(kind) as ends:
        for end in ends:
            end.start()
            end.link.send(Frame(1))
        closing = [threading.Thread(target=end.link.close) for end in ends]
        for thread in closing:
            thread.start()
        for thread in closing:
            thread.join(SECONDS)
        for end in ends:
            reason = end.wait_closed()
            assert isinstance(reason, LinkClosed) and reason.orderly
            assert len(end.frames) == 1


@both_kinds
def test_what_is_queued_when_the_peer_says_goodbye_still_arrives(kind: str) -> None:
    payload = bytes(range(256)) * 20_000
    with link_pair(kind) as (worker, server):
        told = threading.Event()
        server.place = lambda frame: hold_up(told)
        worker.start(), server.start()
        for step in range(4):
            worker.link.send(Frame(1, step=step), payload)
        closing = threading.Thread(target=server.link.close)
        closing.start()
        with pytest.raises(LinkClosed, match="the peer closed the link"):
            while True:
                worker.link.flush()
        with pytest.raises(LinkClosed, match="the peer closed the link"):
            worker.link.send(Frame(1))
        told.set()
        closing.join(SECONDS)
        assert [data for _, data in server.frames] == [payload] * 4


@both_kinds
def test_shutdown_wakes_both_ends(kind: str) -> None:
    with link_pair(kind) as (worker, server):
        worker.start(), server.start()
        worker.link.shutdown()
        mine, theirs = worker.wait_closed(), server.wait_closed()
    assert isinstance(mine, LinkClosed) and mine.orderly
    assert isinstance(theirs, LinkClosed) and not theirs.orderly
    assert str(theirs) == "link to worker3: the connection ended without a goodbye: the peer is gone or gave up"
    assert len(worker.reasons) == len(server.reasons) == 1


@both_kinds
def test_a_link_may_be_closed_from_its_own_callbacks(kind: str) -> None:
    with link_pair(kind) as (worker, server):
        server.deliver = lambda frame, payload: server.link.close()
        worker.start(), server.start()
        worker.link.send(Frame(1), done=worker.link.close)
        assert isinstance(server.wait_closed(), LinkClosed)
        assert isinstance(worker.wait_closed(), LinkClosed)


@both_kinds
def test_a_link_that_was_never_started_can_be_closed(kind: str) -> None:
    with link_pair(kind) as (worker, server):
        worker.link.send(Frame(1))
        worker.link.close()
        server.start()
        assert isinstance(server.wait_closed(), LinkClosed)


@both_kinds
def test_many_links_leave_no_descriptor_and_no_thread(kind: str) -> None:
    gc.collect()
    before = resources()
    for count in range(20):
        with link_pair(kind) as (worker, server):
            worker.start(), server.start()
            worker.link.send(Frame(1), bytes(10))
            server.wait_frames(1)
            if count % 2:  # nobody calls close: the threads clear up by themselves
                worker.link.shutdown()
                server.wait_closed()
    gc.collect()
    assert resources() <= before


@both_kinds
def test_an_error_in_a_callback_ends_the_link_and_is_told(kind: str) -> None:
    def fail(frame: Frame, payload: memoryview) -> None:
        raise KeyError("no such piece")

    with link_pair(kind) as (worker, server):
        server.deliver = fail
        worker.start(), server.start()
        worker.link.send(Frame(1))
        reason = server.wait_closed()
        assert str(reason) == "link to worker3: a callback or the link itself failed: KeyError: 'no such piece'"
        assert isinstance(reason.__cause__, KeyError)
        with pytest.raises(LinkError, match="no such piece") as caught:
            server.link.send(Frame(1))
        assert isinstance(caught.value.__cause__, KeyError)
        assert isinstance(worker.wait_closed(), LinkClosed)


def test_options_that_do_not_exist() -> None:
    with pytest.raises(DistributedError, match="checksum: 'never' is no choice; allowed: auto, always"):
        LinkOptions(checksum="never")


def test_reasons_cross_process_borders() -> None:
    reason = LinkClosed("gone", orderly=True, where="link to worker3", hint="look there")
    again = pickle.loads(pickle.dumps(reason))
    assert (type(again), str(again), again.orderly) == (LinkClosed, "link to worker3: gone; look there", True)


# Deadlines


@both_kinds
def test_a_peer_that_takes_nothing_is_given_up(kind: str) -> None:
    with link_pair(kind, LinkOptions(stall_seconds=0.05)) as (worker, _):
        worker.start()
        worker.link.send(Frame(1), bytes(64 << 20))
        reason = worker.wait_closed()
        assert str(reason) == "link to server1: the peer has taken nothing for 0.05 s"
        assert isinstance(reason, LinkTimeout)


@both_kinds
def test_a_full_queue_waits_and_gives_up(kind: str) -> None:
    with link_pair(kind, LinkOptions(stall_seconds=0.05, queued_frames=3)) as (worker, server):
        for _ in range(3):
            worker.link.send(Frame(1))
        with pytest.raises(LinkTimeout, match=r"server1: waited 0\.05 s for room to send"):
            worker.link.send(Frame(1))
        with pytest.raises(LinkTimeout, match=r"waited 0\.01 s for everything to be written"):
            worker.link.flush(0.01)
        server.start(), worker.start()
        worker.link.flush(SECONDS)
        worker.link.send(Frame(1))
        server.wait_frames(4)


@both_kinds
@pytest.mark.parametrize("length", [1, 63, 64, 70])
def test_a_frame_that_does_not_go_on_is_given_up(kind: str, length: int) -> None:
    data = encode_header(Frame(1, length=100)) + bytes(100)
    with raw_peer(kind, LinkOptions(stall_seconds=0.05)) as (end, peer):
        peer.sendall(data[:length])
        reason = end.wait_closed()
    assert str(reason) == "link to worker3: nothing more has arrived of what has begun for 0.05 s"


@both_kinds
def test_silence_ends_a_link_and_signs_of_life_keep_it(kind: str) -> None:
    options = LinkOptions(stall_seconds=SECONDS)
    own = replace(options, beat_seconds=0.02, silence_seconds=2.5)
    with link_pair(kind, own, replace(options, silence_seconds=2.0)) as (worker, server):
        server.start(), worker.start()
        reason = worker.wait_closed()  # the server sends no signs of life, the worker does, and so outlives its limit
        assert str(reason) == "link to server1: the peer has been silent for 2.5 s"
        assert isinstance(reason, LinkTimeout)
        assert isinstance(server.wait_closed(), LinkClosed)
        assert server.link.counters.received.total.messages > 3
        assert server.frames == []


# Damage


def cut(kind: str, data: bytes) -> LinkError:
    """The reason when a peer writes `data` and is gone."""
    with raw_peer(kind) as (end, peer):
        peer.sendall(data)
        peer.close()
        return end.wait_closed()


@both_kinds
def test_a_stream_cut_at_every_byte_of_a_frame_is_never_a_frame(kind: str) -> None:
    payload = b"payload"
    header = encode_header(Frame(1, length=len(payload)), CHECKSUMMED)
    data = header + payload + payload_checksum(memoryview(payload))
    for length in range(len(data)):
        reason = cut(kind, data[:length])
        if not length:
            assert isinstance(reason, LinkClosed) and not reason.orderly
            continue
        assert isinstance(reason, FrameError)
        within = "a header" if length < HEADER_BYTES else "a payload"
        assert f"the connection ended within {within}" in str(reason)
    assert isinstance(cut(kind, data), LinkClosed)


@pytest.mark.parametrize("position", range(0, 15, 2))
def test_a_damaged_payload_is_not_delivered(position: int) -> None:
    payload = b"payload"
    data = bytearray(payload + payload_checksum(memoryview(payload)))
    data[position] ^= 16
    with raw_peer() as (end, peer):
        peer.sendall(encode_header(Frame(1, length=len(payload)), CHECKSUMMED) + data)
        assert str(end.wait_closed()) == "link to worker3: a payload is damaged: its checksum is wrong"
        assert end.frames == []


@given(st.binary(min_size=HEADER_BYTES, max_size=200))
@settings(max_examples=30, deadline=None)
def test_noise_is_never_a_frame(data: bytes) -> None:
    with raw_peer() as (end, peer):
        peer.sendall(data)
        assert isinstance(end.wait_closed(), FrameError)
        assert end.frames == []


def test_a_gap_in_the_sequence_is_found() -> None:
    with raw_peer() as (end, peer):
        peer.sendall(encode_header(Frame(1, sequence=0)) + encode_header(Frame(1, sequence=2)))
        assert "frame 2 arrived where frame 1 was due" in str(end.wait_closed())
        assert len(end.frames) == 1


@pytest.mark.parametrize(
    ("length", "place", "what"),
    [
        (1 << 30, None, "no place for a payload of 1,073,741,824 bytes, more than 268,435,456 by itself"),
        (1 << 40, None, "announces 1,099,511,627,776 bytes, more than the limit of 68,719,476,736"),
        (100, torch.empty(10), "a payload of 100 bytes was given 40 bytes to go to"),
        (40, memoryview(bytes(40)), "was given memory that cannot be written"),
    ],
)
def test_a_payload_that_does_not_fit_is_refused_before_room_is_made(length: int, place: object, what: str) -> None:
    with raw_peer() as (end, peer):
        end.place = lambda frame: place
        peer.sendall(encode_header(Frame(1, length=length)))
        assert what in str(end.wait_closed())


def test_shared_memory_on_a_link_that_shares_none_is_refused() -> None:
    with raw_peer() as (end, peer):
        peer.sendall(encode_header(Frame(1, length=8), SHARED, 1, 0))
        assert "points into shared memory on a link that shares none" in str(end.wait_closed())


def test_a_goodbye_counts_only_in_its_place() -> None:
    with raw_peer() as (end, peer):
        peer.sendall(encode_header(Frame(GOODBYE, sequence=3)))
        assert isinstance(end.wait_closed(), FrameError)


@pytest.mark.parametrize("kind", [-1, 0, 255, 256])
def test_kinds_of_the_link_itself_cannot_be_sent(kind: int) -> None:
    with link_pair() as (worker, _):
        with pytest.raises(ValueError, match="no kind of a protocol"):
            worker.link.send(Frame(kind))
        with pytest.raises(ValueError, match="does not fit"):
            worker.link.send(Frame(1, step=-1))


def test_a_socket_that_takes_a_byte_at_a_time_gets_everything() -> None:
    """`sendmsg` may stop anywhere: within the header, at its end, within a block."""

    class Slow:
        def __init__(self, inner: object, most: Callable[[int], int]):
            self.inner, self.most, self.calls = inner, most, 0

        def __getattr__(self, name: str) -> object:
            return getattr(self.inner, name)

        def sendmsg(self, views: list[memoryview], ancillary: object) -> int:
            self.calls += 1
            data = b"".join(views)[: self.most(self.calls)]
            return self.inner.send(data)

    payload = bytes(range(256)) * 8
    for most in (lambda call: 1 + call % 3, lambda call: 63 + call % 3, lambda call: 100_000):
        client, server = sockets("tcp")
        with client, server:
            stream = SocketStream(client, SECONDS)
            stream.socket = Slow(client, most)
            link = TcpLink(stream, WORKER, ALWAYS)
            link.start(lambda frame: None, lambda frame, data: None, lambda reason: None)
            link.send(Frame(1), payload)
            link.flush()
            found = bytearray()
            while len(found) < HEADER_BYTES + len(payload) + 8:
                found += server.recv(1 << 16)
            assert found[HEADER_BYTES:-8] == payload
            link.shutdown()
            link.close()
