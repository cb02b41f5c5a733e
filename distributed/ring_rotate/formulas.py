"""What the rotation of parameters costs a node, as formulas that runs are held against.

With P parameters, L of them in the last two groups, over N nodes, a node sends (3 P - L) (N - 1) / N words of
parameters and gradients in a step, and P / N of gradients for second copies. Here segments count as they are cut, in
multiples of 16 elements.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise

from distributed.ring_rotate.plan import BYTES, RotationPlan


def bytes_sent(plan: RotationPlan, seat: int, shadows: bool) -> int:
    """Bytes of parameters and gradients that a node with this seat alone sends in a step."""
    if plan.seats == 1:
        return 0
    following = (seat + 1) % plan.seats
    # A node sends on every segment but its successor's, and every sum but the one that ends with it.
    gathered = sum(
        part.elements for unit in plan.gathers for part in plan.parts[unit] if plan.owner(part.segment) != following
    )
    reduced = sum(part.elements for parts in plan.parts for part in parts if plan.owner(part.segment) != seat)
    return BYTES * (gathered + reduced + shadows * plan.shard_elements(seat))


def resident_bytes(plan: RotationPlan, moments: int, shadows: bool) -> int:
    """Bytes of parameters, gradients and optimizer state that a node with one seat has at a time, at most.

    Its shard's parameters, moments and gradient, and with shadows those of the shard of the node before. Besides, the
    parameters that two phases which follow each other read, and the gradients that two such phases add to.
    """
    shard = max(map(plan.shard_elements, range(plan.seats))) * (2 + moments) * (1 + (shadows and plan.seats > 1))
    phases = plan.phases
    pairs = list(pairwise(phases)) or [(phases[0], phases[0])]
    parameters = max(_elements(plan, {*one.needs, *other.needs}) for one, other in pairs)
    gradients = max(
        _elements(plan, {unit for phase in pair if phase.goes_back for unit in phase.needs}) for pair in pairs
    )
    return BYTES * (shard + parameters + gradients)


def _elements(plan: RotationPlan, units: Iterable[int]) -> int:
    return sum(plan.units[unit].elements for unit in units)
