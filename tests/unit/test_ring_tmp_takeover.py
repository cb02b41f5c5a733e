"""A node that comes joins where it relieves the slowest node most."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import pytest

from distributed.ring.messages import Ring
from distributed.ring_tmp.placement import Placement
from distributed.ring_tmp.takeover import Takeover, takeover


def placed(*owners: int) -> Placement:
    return Placement(Ring(3, tuple(dict.fromkeys(owners))), owners)


LOOPED = (0, 0, 1, 0, 1, 1)


def slowest(placement: Placement, seconds: Sequence[float], speeds: Mapping[int, float] | None = None) -> float:
    return max(
        sum(seconds[stage] for stage in placement.stages_of(one)) / (speeds or {}).get(one, 1.0)
        for one in placement.ring.order
    )


def everywhere(count: int) -> range:
    return range(count + 1)


@pytest.mark.parametrize(
    ("owners", "seconds", "wanted"),
    [
        ((0, 0, 1, 1), (1, 1, 3, 3), Takeover(0, (2,))),  # the heaviest node's first stage, or its last: the same time
        ((0, 0, 0, 0), (1, 1, 1, 1), Takeover(0, (0, 1))),
        ((0, 1, 2, 0), (2, 1, 1, 2), Takeover(0, (0,))),
        ((0, 0, 0, 1), (1, 1, 1, 2), Takeover(0, (2,))),
    ],
)
def test_the_slowest_node_gives(owners: tuple[int, ...], seconds: tuple[float, ...], wanted: Takeover) -> None:
    found = takeover(placed(*owners), 9, seconds, everywhere(len(owners)))
    assert found is not None
    before = placed(*owners)
    times = [slowest(one, seconds) for one in (before.admitting(9, *found), before.admitting(9, *wanted), before)]
    assert times[0] == times[1] < times[2]


@pytest.mark.parametrize("speeds", [{}, {9: 0.5}, {0: 0.25, 9: 0.75}])
def test_none_is_as_good_that_may_be(speeds: dict[int, float]) -> None:
    """By trying every gap, and every set of neighbouring stages."""
    seconds = (3.0, 1.0, 2.0, 2.0, 5.0, 1.0)
    for owners in [(0, 0, 0, 1, 1, 1), (0, 1, 1, 2, 2, 0), LOOPED, (2, 2, 0, 0, 1, 1)]:
        placement, best = placed(*owners), math.inf
        for after in placement.ring.order:
            for start, stop in itertools.combinations(range(7), 2):
                if len({owners[stage] for stage in range(start, stop)}) > 1:
                    continue
                try:
                    other = placement.admitting(9, after, range(start, stop))
                except ValueError:
                    continue
                if all(other.stages_of(one) for one in placement.ring.order):
                    best = min(best, slowest(other, seconds, speeds))
        found = takeover(placement, 9, seconds, everywhere(6), speeds)
        if owners == LOOPED:  # whose ranges follow each other round and round: nobody fits between
            assert (found, best) == (None, math.inf)
            continue
        if best >= slowest(placement, seconds, speeds):
            assert found is None
            continue
        assert found is not None
        assert slowest(placement.admitting(9, *found), seconds, speeds) == best


def test_what_cannot_be_cut_is_not_and_where_nothing_helps_nobody_joins() -> None:
    assert (
        takeover(placed(0, 0, 1, 1), 9, (1, 1, 3, 3), [0, 1, 2, 4]) is None
    )  # the heaviest node's stages hang together
    assert takeover(placed(0, 1), 9, (1, 1), everywhere(2)) is None
    half = takeover(placed(0, 0, 1, 1), 9, (1, 1, 1, 1), everywhere(4), {0: 0.5})
    assert half == Takeover(0, (1,))
