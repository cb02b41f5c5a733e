"""Who is where in several rings: nodes that hold the same stages are as alike in speed as can be had simply."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from distributed.ring.messages import Ring
from distributed.ring_tmp.placement import Placement


def rings_of(numbers: Sequence[int], nodes: int, speeds: Mapping[int, float]) -> list[list[int]]:
    """Rings of so many nodes, out of neighbouring numbers; in each, the fastest first.

    Nodes of the same rank hold the same stages. Numbers of a last ring that would not be whole are left out.
    """
    whole = len(numbers) // nodes * nodes
    return [
        sorted(numbers[start : start + nodes], key=lambda number: -speeds[number]) for start in range(0, whole, nodes)
    ]


def slowest_of_rank(rings: Sequence[Sequence[int]], speeds: Mapping[int, float]) -> dict[int, float]:
    """By node of the first ring, the speed that counts: who holds the same stages waits for the slowest of them."""
    return {first: min(speeds[ring[rank]] for ring in rings) for rank, first in enumerate(rings[0])}


def placed_alike(placement: Placement, rings: Sequence[Sequence[int]]) -> dict[int, Placement]:
    """By node, in the order of its ring and one ring behind the other: the placement of the first ring, in each."""
    found: dict[int, Placement] = {}
    for ring in rings:
        alike = dict(zip(rings[0], ring, strict=True))
        order = tuple(alike[number] for number in placement.ring.order)
        owners = tuple(alike[number] for number in placement.owners)
        found |= dict.fromkeys(order, Placement(Ring(placement.ring.epoch, order), owners))
    return found
