"""Who is where in several rings of nodes that differ in speed."""

from __future__ import annotations

import pytest

from distributed.ring.messages import Ring
from distributed.ring_tmp.placement import Placement
from distributed.ring_torus.layout import placed_alike, rings_of, slowest_of_rank


def test_equal_nodes_stay_in_the_order_of_their_numbers() -> None:
    assert rings_of([0, 1, 2, 3, 5], 2, dict.fromkeys(range(6), 1.0)) == [[0, 1], [2, 3]]


def test_slow_nodes_hold_the_same_stages() -> None:
    speeds = {0: 0.5, 1: 1.0, 4: 1.0, 7: 0.25}
    rings = rings_of([0, 1, 4, 7], 2, speeds)
    assert rings == [[1, 0], [4, 7]]
    assert slowest_of_rank(rings, speeds) == {1: 1.0, 0: 0.25}


@pytest.mark.parametrize("order", [(1, 0), (0, 1)])
def test_every_ring_is_cut_at_the_same_places(order: tuple[int, int]) -> None:
    first = Placement(Ring(9, order), (order[0], order[0], order[1]))
    found = placed_alike(first, [[1, 0], [4, 7]])
    assert found[0] == found[1] == first
    alike = {1: 4, 0: 7}
    assert found[4] == found[7] == Placement(Ring(9, tuple(map(alike.get, order))), tuple(map(alike.get, first.owners)))  # type: ignore[arg-type]
    assert list(found) == [*order, *map(alike.get, order)]
