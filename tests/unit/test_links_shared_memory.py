"""Memory that travels by reference: both ends of a link see the same bytes, and nothing is left behind."""

from __future__ import annotations

import array
import gc
import mmap
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from link_examples import SECONDS, link_pair, raw_peer, resources

from distributed.errors import DistributedError, FrameError
from distributed.links import shared_memory
from distributed.links.frames import NEW_SEGMENT, SHARED, Frame, as_bytes, as_tensor, encode_header
from distributed.links.link import LinkOptions
from distributed.links.shared_memory import SharedArena


@contextmanager
def arena() -> Iterator[SharedArena]:
    made = SharedArena()
    yield made
    made.close()


def sharing(made: SharedArena, checksum: str = "auto") -> LinkOptions:
    return LinkOptions(stall_seconds=SECONDS, arena=made, checksum=checksum)


def test_an_arena_hands_out_zeros_of_any_size_and_type() -> None:
    with arena() as made:
        for elements, dtype in ((0, None), (1, torch.float64), (5000, torch.bfloat16), (1 << 20, torch.float32)):
            tensor = made.allocate(elements, dtype)
            assert (tensor.numel(), tensor.dtype) == (elements, dtype or torch.float32)
            assert not tensor.any()
            assert tensor.data_ptr() % mmap.PAGESIZE == 0
            tensor.fill_(1)


def test_an_arena_knows_what_lies_in_it() -> None:
    with arena() as made:
        one, two = made.allocate(5000), made.allocate(3)
        for tensor in (one, two):
            segment, offset = made.find(as_bytes(tensor[1:]))
            assert (segment.start + offset, offset) == (tensor.data_ptr() + 4, 4)
        assert made.find(as_bytes(one[:0])) is None
        assert made.find(as_bytes(torch.zeros(3))) is None
        made.free(one)
        assert made.find(as_bytes(one)) is None
        assert made.find(as_bytes(two)) is not None
        with pytest.raises(ValueError, match="none of this arena's"):
            made.free(one)
        one.fill_(3)  # still there for those who have it


def test_what_the_machine_cannot_hold_is_refused_before_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small numbers: the kernel would grant any, and make room by killing processes."""
    monkeypatch.setattr(shared_memory, "available_bytes", lambda: 8192)
    with arena() as made:
        made.allocate(2048)
        with pytest.raises(DistributedError, match="shared memory: no room for 12,288 bytes, 8,192 are free; distrib"):
            made.allocate(2049)


@pytest.mark.parametrize("checksum", ["auto", "always"])
def test_the_receiver_gets_the_very_memory(checksum: str) -> None:
    with arena() as made, link_pair("shm", sharing(made, checksum)) as (worker, server):
        tensor = made.allocate(3000)
        tensor.copy_(torch.arange(3000))
        server.place = lambda frame: pytest.fail("nobody is asked where shared memory goes")
        server.start(), worker.start()
        for step in range(3):
            worker.link.send(Frame(1, step=step), tensor[1000 * step : 1000 * (step + 1)])
        server.wait_frames(3)
        for step, view in enumerate(server.views):
            found = as_tensor(view, torch.float32)
            assert torch.equal(found, torch.arange(1000.0) + 1000 * step)
        starts = [as_tensor(view, torch.float32).data_ptr() for view in server.views]
        assert [start - starts[0] for start in starts] == [0, 4000, 8000]  # one mapping, made once
        tensor[2000] = -1
        assert as_tensor(server.views[2], torch.float32)[0] == -1
        as_tensor(server.views[2], torch.float32)[1] = -2
        assert tensor[2001] == -2
        worker.link.flush()  # the sender counts what it has written, maybe after it was read
        total = server.link.counters.received.total
        assert (total.payload_bytes, total.shared_bytes) == (0, 12000)
        assert total.framing_bytes == 3 * (64 if checksum == "auto" else 72)
        assert total == worker.link.counters.sent.total


def test_other_memory_goes_through_the_socket_between_what_is_shared() -> None:
    with arena() as made, link_pair("shm", sharing(made)) as (worker, server):
        inside, outside, another = made.allocate(10), torch.arange(10.0), made.allocate(20)
        server.start(), worker.start()
        for payload in (outside, inside, outside, another, inside):
            worker.link.send(Frame(1), payload)
        server.wait_frames(5)
        assert [len(data) for _, data in server.frames] == [40, 40, 40, 80, 40]
        assert server.link.counters.received.total.payload_bytes == 80


def test_an_arena_means_nothing_to_tcp() -> None:
    with arena() as made, link_pair("tcp", sharing(made)) as (worker, server):
        tensor = made.allocate(10).fill_(5)
        server.start(), worker.start()
        worker.link.send(Frame(1), tensor)
        assert server.wait_frames(1)[0][1] == bytes(tensor.numpy())


def test_memory_outlives_arena_and_link_while_somebody_has_it() -> None:
    with arena() as made, link_pair("shm", sharing(made)) as (worker, server):
        tensor = made.allocate(10).fill_(5)
        server.start(), worker.start()
        worker.link.send(Frame(1), tensor)
        server.wait_frames(1)
        view = server.views[0]
    made.close()
    assert as_tensor(view, torch.float32).tolist() == [5.0] * 10


def mapped_bytes() -> int:
    """Shared memory of arenas in the address space of this process; how much of it is resident the kernel estimates."""
    found = 0
    for line in Path("/proc/self/maps").read_text().splitlines():
        if "/memfd:seq2seq-studies" in line:
            start, stop = line.split()[0].split("-")
            found += int(stop, 16) - int(start, 16)
    return found


def test_arenas_and_links_leave_nothing() -> None:
    gc.collect()
    before, memory = resources(), mapped_bytes()
    for _ in range(5):
        with arena() as made, link_pair("shm", sharing(made)) as (worker, server):
            server.start(), worker.start()
            tensors = [made.allocate(1 << 18) for _ in range(3)]
            for tensor in tensors:
                worker.link.send(Frame(1), tensor)
            server.wait_frames(3)
            assert mapped_bytes() >= memory + 2 * 3 * 2**20  # at both ends
        del tensors, tensor, worker, server
        gc.collect()
    assert resources() <= before
    assert mapped_bytes() <= memory


# What a broken peer could send


def reference(length: int, offset: int, flags: int = SHARED, segment: int = 1, sequence: int = 0) -> bytes:
    return encode_header(Frame(1, length=length, sequence=sequence), flags, segment, offset)


def send_with(peer: socket.socket, data: bytes, *descriptors: int) -> None:
    peer.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))])


@pytest.mark.parametrize(("length", "offset"), [(4097, 0), (1, 4096), (8, 2**63), (2**35, 0)])
def test_a_reference_beyond_the_memory_is_refused(length: int, offset: int) -> None:
    with arena() as made, raw_peer("shm") as (end, peer):
        segment, _ = made.find(as_bytes(made.allocate(1024)))
        send_with(peer, reference(4096, 0, SHARED | NEW_SEGMENT), segment.descriptor)
        peer.sendall(reference(length, offset, sequence=1))
        reason = end.wait_closed()
        assert isinstance(reason, FrameError)
        assert "points to shared memory that is not there" in str(reason)
        assert len(end.frames) == 1


@pytest.mark.parametrize("flags", [SHARED, SHARED | NEW_SEGMENT])
def test_a_reference_to_nothing_is_refused(flags: int) -> None:
    with raw_peer("shm") as (end, peer):
        peer.sendall(reference(8, 0, flags))
        assert isinstance(end.wait_closed(), FrameError)


def unsealed(length: int) -> int:
    descriptor = os.memfd_create("unsealed")
    os.ftruncate(descriptor, length)
    return descriptor


@pytest.mark.parametrize(
    "make", [lambda: unsealed(4096), lambda: os.open("/dev/null", os.O_RDWR)], ids=["soft", "null"]
)
def test_memory_that_could_shrink_under_the_reader_is_refused(make: object) -> None:
    before = resources()
    descriptor = make()
    with raw_peer("shm") as (end, peer):
        send_with(peer, reference(8, 0, SHARED | NEW_SEGMENT), descriptor)
        reason = end.wait_closed()
        assert isinstance(reason, FrameError)
        assert "length may change" in str(reason) or "no shared memory" in str(reason)
    os.close(descriptor)
    assert resources() <= before


def test_descriptors_that_nobody_announced_are_closed_again() -> None:
    before = resources()
    with raw_peer("shm") as (end, peer):
        descriptors = [unsealed(4096) for _ in range(3)]
        send_with(peer, encode_header(Frame(1)), *descriptors[:1])
        assert "with some that it does not" in str(end.wait_closed())
    with raw_peer("shm") as (end, peer):
        send_with(peer, encode_header(Frame(1)), *descriptors)
        assert "no room for" in str(end.wait_closed()) or "with some" in str(end.reasons[0])
    for descriptor in descriptors:
        os.close(descriptor)
    assert resources() <= before
