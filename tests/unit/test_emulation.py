"""Emulated steps against times and bytes worked out by hand."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from distributed.emulation import BYTES, Machine, Shape, Work, crossing_tokens, emulate
from distributed.errors import DistributedError
from distributed.ring_tmp.prediction import bubble

ENDLESS = 1e30  # bytes a second


def even_shape(stages: int, seconds: float = 0.3, elements: int = 1000) -> Shape:
    """Stages that take as long as each other, a third of it forward, and hand on 400 bytes for 100 tokens."""
    return Shape(
        names=tuple(map(str, range(stages))),
        forward=(seconds / 3,) * stages,
        backward=(2 * seconds / 3,) * stages,
        handed_on=(*(400.0,) * (stages - 1), 0.0),
        returned=(0.0, *(400.0,) * (stages - 1)),
        parameters=tuple({f"p{number}": elements} for number in range(stages)),
        tokens=100.0,
    )


def test_a_shared_parameter_counts_once() -> None:
    shape = even_shape(2)
    tied = Shape(**vars(shape) | {"parameters": ({"p": 5, "q": 1}, {"p": 5})})
    assert (shape.elements, tied.elements) == (2000, 6)
    assert shape.seconds == pytest.approx(0.6)


@pytest.mark.parametrize("nodes", [2, 4, 8])
def test_an_even_ring_of_stages_is_idle_for_its_bubble(nodes: int) -> None:
    found = emulate("ring_tmp", even_shape(nodes), Machine(nodes, ENDLESS, latency=0.0), Work(1600.0, 16))
    assert found.idle == pytest.approx((bubble(nodes, 16),) * nodes)
    assert found.seconds == pytest.approx((16 + nodes - 1) * 0.3)


@pytest.mark.parametrize("nodes", [2, 4, 8])
def test_with_two_versions_an_even_ring_of_stages_is_idle_while_it_fills_alone(nodes: int) -> None:
    found = emulate(
        "ring_tmp", even_shape(nodes), Machine(nodes, ENDLESS, latency=0.0), Work(1600.0, 16), schedule="async"
    )
    played = 20  # steps, of which the first begins behind nobody
    assert found.idle == pytest.approx((bubble(nodes, played * 16),) * nodes)
    assert found.seconds == pytest.approx((played * 16 + nodes - 1) * 0.3 / played)


def test_bytes_of_a_ring_of_stages() -> None:
    # 800 tokens are 8 micro-batches of the measured size. The first node sends 400 bytes of each, and the gradients of
    # its 1,000 parameters for the copy; the last one sends back as much of each, and its own 1,000 on.
    machine, work = Machine(2, ENDLESS), Work(800.0, 4)
    assert emulate("ring_tmp", even_shape(2), machine, work).sent == (3200.0 + 4000.0, 4000.0)
    assert emulate("ring_tmp", even_shape(2), machine, work, shadows=False).sent == (3200.0, 3200.0)


def test_a_link_that_carries_more_than_the_nodes_compute_sets_the_pace() -> None:
    slow = Machine(2, 100.0, latency=0.0)
    found = emulate("ring_tmp", even_shape(2), slow, Work(800.0, 4))
    assert found.seconds >= 7200.0 / 100.0


def test_nodes_that_are_more_than_stages_are_refused() -> None:
    with pytest.raises(DistributedError):
        emulate("ring_tmp", even_shape(2), Machine(3, ENDLESS), Work(800.0, 4))


def test_a_ring_all_reduce_by_hand() -> None:
    # 2 nodes compute 400 tokens each: 4 x 0.6 s, of which 1.6 s go backward and hide as much of the 8,000 bytes.
    machine = Machine(2, 2000.0, latency=0.0)
    found = emulate("ring_allreduce", even_shape(2), machine, Work(800.0, 1))
    assert found.sent == (8000.0, 8000.0)
    assert found.seconds == pytest.approx(2.4 + (4.0 - 1.6))
    assert found.idle == pytest.approx((1 - 2.4 / 4.8,) * 2)
    moving = emulate("weights_move", even_shape(2), machine, Work(800.0, 1))
    assert moving.sent == (12000.0, 12000.0)
    assert moving.seconds == pytest.approx(6.0)  # all computing hides it, and it is longer


def test_who_is_slow_holds_the_others_up() -> None:
    found = emulate("ring_allreduce", even_shape(2), Machine(2, ENDLESS, latency=0.0, slowest=0.5), Work(800.0, 1))
    assert found.idle == pytest.approx((0.5, 0.0))
    assert found.seconds == pytest.approx(4.8)


def test_a_parameter_server_by_hand() -> None:
    # Two workers and one server: 16,000 bytes through the server's link each way are 4 s at 4,000 a second. A push
    # hides behind the backward pass (1.6 s of 2.4), a pull behind nothing.
    machine = Machine(2, 4000.0, latency=0.0)
    one = emulate("parameter_server", even_shape(2), machine, Work(800.0, 1), servers=1)
    assert max(one.sent) == 2 * BYTES * 2000
    cycle = 2.4 + 4.0 + (4.0 - 1.6)
    assert one.seconds == pytest.approx(cycle, rel=0.1)  # the first pull of all has nobody's push before it
    assert one.idle[0] == pytest.approx(1 - 2.4 / one.seconds, abs=1e-9)
    each = emulate("parameter_server", even_shape(2), machine, Work(800.0, 1), servers=0)
    assert each.seconds < one.seconds
    assert set(each.sent) == {float(BYTES * 2000)}


def test_without_waiting_a_slow_worker_holds_nobody_up() -> None:
    machine, work = Machine(4, ENDLESS, latency=0.0, slowest=0.25), Work(800.0, 1)
    together = emulate("parameter_server", even_shape(2), machine, work, servers=0)
    alone = emulate("parameter_server", even_shape(2), machine, work, servers=0, mode="asp")
    assert together.idle[0] == pytest.approx(0.75, abs=0.01)
    assert max(alone.idle) < 0.1
    assert alone.seconds < 0.5 * together.seconds


@given(
    st.sampled_from(["parameter_server", "ring_allreduce", "weights_move", "ring_tmp"]),
    st.integers(1, 6),
    st.floats(1e2, 1e9),
    st.floats(0.1, 1.0),
)
def test_shares_are_shares_and_nobody_is_faster_than_all_its_work(
    scheme: str, nodes: int, link: float, slowest: float
) -> None:
    found = emulate(scheme, even_shape(6), Machine(nodes, link, slowest=slowest), Work(600.0, 6))
    assert len(found.idle) == nodes
    assert all(-1e-9 <= share <= 1.0 for share in found.idle)
    assert found.seconds >= 6 * 1.8 / nodes * (1 - 1e-9)
    assert all(math.isfinite(size) and size >= 0 for size in found.sent)


def test_the_crossing_by_the_formula() -> None:
    # The published baseline on 8 nodes: 38 thousand tokens.
    shape = Shape(**vars(even_shape(1)) | {"parameters": ({"all": 66_320_000},)})
    assert crossing_tokens(shape, 8, 1536) == pytest.approx(37_780, rel=1e-3)
