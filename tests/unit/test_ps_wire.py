"""Ends of a gradient's way, and whose memory a worker of a resumed run goes on with."""

from __future__ import annotations

import pytest
import torch
from simulated_network import Network, setup_of

from distributed.arithmetic import CHUNK
from distributed.buffers import BufferPool
from distributed.errors import FrameError
from distributed.links.frames import Frame
from distributed.parameter_server.kept_back import KeptBack, frames_of, put
from distributed.parameter_server.lineage import by_memory
from distributed.parameter_server.messages import Kind, worker
from distributed.parameter_server.replay import Replay
from distributed.parameter_server.setup import Setup, Wire
from distributed.parameter_server.tickets import Ticket
from distributed.parameter_server.top_k import ErrorFeedback
from distributed.parameter_server.trace import NOBODY, TraceError, TraceWriter, read_trace
from distributed.parameter_server.wire import ReceivingEnd, SendingEnd
from distributed.strategy import OptimizerSpec

ELEMENTS = 3 * CHUNK + 64
SGD = OptimizerSpec("distributed.optimizers:Sgd")
WIRES = [Wire(), Wire(sparse=True), Wire("bf16"), Wire("bf16", sparse=True), Wire(top_k=0.1)]


def setup(wire: Wire) -> Setup:
    return setup_of(ELEMENTS, shards=2, bucket_bytes=8 * CHUNK, leaves=2, optimizer=SGD, wire=wire)


def gradient() -> torch.Tensor:
    """A flat one of which few rows of the table were touched."""
    found = torch.randn(setup(Wire()).elements, generator=torch.Generator().manual_seed(3))
    found[: 30 * 1024 // 48 * 48].view(-1, 48)[::7] = 0.0
    found[: 20 * 1024 // 48 * 48] = 0.0
    return found


@pytest.mark.parametrize("wire", WIRES, ids=str)
def test_buffers_are_used_again_and_each_byte_is_accounted_for(wire: Wire) -> None:
    made: list[int] = []
    sender = SendingEnd(setup(wire), lambda elements: made.append(elements) or torch.empty(elements))  # type: ignore[func-returns-value]
    pool = BufferPool()
    receiver, pieces, flat = ReceivingEnd(setup(wire), pool), setup(wire).shard_map.pieces, gradient()
    addresses = set()
    for step in (1, 2, 3):
        sent = 0
        for piece in pieces:
            payload = sender.encode(piece, flat, step)
            place = receiver.place(piece, payload.view(torch.uint8).numel()).view(torch.uint8)
            decoded = receiver.decode(piece, place.copy_(payload.view(torch.uint8)))
            wanted = piece.of(flat) if wire.type == "fp32" else piece.of(flat).bfloat16().float()
            assert wire.top_k or torch.equal(decoded, wanted)
            addresses.add(decoded.data_ptr())
            sent += payload.view(torch.uint8).numel()
            sender.give_back(payload)
            pool.give_back(decoded)
    assert len(made) == (0 if wire.is_plain else len({piece.elements for piece in pieces}))
    assert len(addresses) == len({piece.elements for piece in pieces})
    counted = sender.sent
    assert counted.fp32_bytes == 3 * 4 * len(flat)
    size = {"fp32": 4, "bf16": 2}[wire.type]
    assert counted.bytes == counted.head_bytes + size * counted.elements + counted.place_bytes
    if not wire.top_k:
        assert counted.bytes == 3 * sent
    if wire.sparse:
        touched = flat[: ELEMENTS // 3 // 48 * 48].view(-1, 48).any(1).sum()
        assert 3 * (touched - 2) <= counted.rows <= 3 * touched  # a border of a piece may cut one


def test_a_damaged_payload_is_refused_unless_it_repeats_what_is_there() -> None:
    wire = Wire(sparse=True)
    network = Network(setup(wire), ELEMENTS, 2, 1, shadows=False, seed=1)
    network.allow(1)
    network.run(lambda: network.servers[0].table.epoch > 0 and network.servers[0]._running)
    one = network.servers[0]
    sender = SendingEnd(setup(wire), torch.empty)
    piece = next(piece for piece in setup(wire).shard_map.pieces if piece.start == 0)
    payload = sender.encode(piece, gradient(), 1).clone()
    frame = Frame(kind=Kind.PUSH, step=1, tags=(0, 2, piece.index))
    damaged = payload.clone()
    damaged[0] += 1  # one row more than there are
    for wrong in (damaged, payload[:-1], payload[:4]):
        with pytest.raises(FrameError):
            one.decode(frame, wrong)
    with pytest.raises(FrameError, match="are the most"):
        one.place(frame._replace(length=10**9))
    with pytest.raises(FrameError, match="piece 77"):
        one.place(frame._replace(tags=(0, 2, 77), length=4))
    one.receive(worker(0), frame, one.decode(frame, payload))
    one.decode(frame, damaged)  # the whole step is there: whatever comes now is left alone


def test_what_is_kept_back_travels_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distributed.parameter_server.kept_back.BLOCK", 30_000)
    memory = ErrorFeedback(100_000, momentum=0.5)
    for buffer in memory.buffers.values():
        buffer.normal_()
    frames = list(frames_of(3, memory))
    assert [frame.tags for frame, _ in frames[:5]] == [(3, 0, 0), (3, 0, 1), (3, 0, 2), (3, 0, 3), (3, 1, 0)]
    copy = ErrorFeedback(100_000, momentum=0.5)
    for frame, content in reversed(frames):
        put(copy, frame, memoryview(content.numpy()).cast("B"))
    assert all(map(torch.equal, copy.buffers.values(), memory.buffers.values()))


def test_memories_are_dealt_out_in_order_and_what_is_left_over_is_counted() -> None:
    kept = KeptBack(setup(Wire(top_k=0.1)))
    kept.memories = {0: kept.new(), 3: kept.new(), 4: kept.new()}
    assert kept.deal_out([5, 1]) == {1: 0, 5: 3}
    kept.begin(20)
    assert kept.report() == {"lost": 1, "begun_with_nothing": 0}
    kept.memories = {2: kept.new()}
    assert kept.deal_out([0, 1]) == {0: 2}
    kept.begin(30)
    assert kept.report() == {"lost": 1, "begun_with_nothing": 1}
    records = kept.records()
    assert len(records) == 20 and kept.records() == b""


def trace(shard: int, resumed: bool = True) -> bytes:
    """Workers 0 and 1; 1 is lost and 2 comes; after a resume 0 has the memory of 0, 1 that of 2, and 2 none."""
    writer = TraceWriter(shard, 2, "run")
    for part, step in ((0, 1), (1, 2), (2, 3)):
        writer.pull(part, Ticket(step))
        writer.apply(part, Ticket(step))
    writer.horizon(3)
    if resumed:
        for part, source in ((0, 0), (1, 2), (2, NOBODY)):
            writer.memory(part, source, 3)
    for part, step in ((0, 4), (1, 5), (2, 6)):
        writer.pull(part, Ticket(step))
        writer.apply(part, Ticket(step))
    writer.horizon(6)
    return writer.take()


def test_a_replay_plays_memories_and_not_numbers() -> None:
    traces = [read_trace(trace(shard)) for shard in (0, 1)]
    replay = Replay(traces)
    assert [replay.tickets(part) for part in (0, 1, 2, 3)] == [
        [Ticket(1), Ticket(4)],
        [Ticket(2)],
        [Ticket(3), Ticket(5)],
        [Ticket(6)],
    ]
    plain = Replay([read_trace(trace(shard, resumed=False)) for shard in (0, 1)])
    assert plain.tickets(1) == [Ticket(2), Ticket(5)]
    with pytest.raises(TraceError, match="how often"):
        by_memory([traces[0], read_trace(trace(1, resumed=False))])
