"""Streams receive large buffers whole, however their bytes come, and say how much came where they end."""

from __future__ import annotations

import random
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from link_examples import SECONDS, sockets

from distributed.errors import LinkTimeout
from distributed.links.stream import LARGE_BYTES, WAKE_BYTES, SocketStream

LENGTHS = (1, WAKE_BYTES, LARGE_BYTES - 1, LARGE_BYTES, LARGE_BYTES + 1, 3 * LARGE_BYTES + 5)


@contextmanager
def stream_and_peer(kind: str, stall_seconds: float = SECONDS) -> Iterator[tuple[SocketStream, socket.socket]]:
    client, server = sockets(kind)
    with client, server:
        yield SocketStream(client, stall_seconds), server


@contextmanager
def beside(send: threading.Thread) -> Iterator[None]:
    send.start()
    yield
    send.join(SECONDS)
    assert not send.is_alive()


@pytest.mark.parametrize("kind", ["tcp", "shm"])
def test_a_buffer_is_filled_whatever_the_pieces_in_which_its_bytes_are_sent(kind: str) -> None:
    source = random.Random(1)
    for length in LENGTHS:
        content = source.randbytes(length) + b"next"

        def send(peer: socket.socket, content: bytes = content) -> None:
            at = 0
            while at < len(content):
                size = source.choice((1, 1000, WAKE_BYTES - 1, WAKE_BYTES, LARGE_BYTES))
                peer.sendall(content[at : at + size])
                at += size

        with stream_and_peer(kind) as (stream, peer), beside(threading.Thread(target=send, args=(peer,))):
            buffer = bytearray(length)
            assert stream.receive(memoryview(buffer)) == length
            assert buffer == content[:length]
            assert stream.receive(memoryview(buffer := bytearray(4))) == 4  # small ones are not waited for in vain
            assert buffer == b"next"
            assert stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == 1


@pytest.mark.parametrize("kind", ["tcp", "shm"])
@pytest.mark.parametrize(
    "count", [0, 1, WAKE_BYTES - 1, WAKE_BYTES, LARGE_BYTES, 2 * LARGE_BYTES - WAKE_BYTES, 2 * LARGE_BYTES - 1]
)
def test_where_the_stream_ends_within_a_buffer_the_bytes_that_came_are_counted(kind: str, count: int) -> None:
    content = random.Random(2).randbytes(count)

    def send(peer: socket.socket) -> None:
        peer.sendall(content)
        peer.shutdown(socket.SHUT_WR)

    with stream_and_peer(kind) as (stream, peer), beside(threading.Thread(target=send, args=(peer,))):
        buffer = bytearray(2 * LARGE_BYTES)
        assert stream.receive(memoryview(buffer)) == count
        assert buffer[:count] == content


@pytest.mark.parametrize("count", [0, 1, WAKE_BYTES - 1, WAKE_BYTES])
def test_a_peer_that_stops_within_a_large_buffer_is_not_waited_for_for_ever(count: int) -> None:
    with stream_and_peer("tcp", stall_seconds=0.2) as (stream, peer):
        peer.sendall(bytes(count))  # fits what is under way
        with pytest.raises(LinkTimeout, match=r"nothing more has arrived .* for 0\.2 s"):
            stream.receive(memoryview(bytearray(2 * LARGE_BYTES)))
