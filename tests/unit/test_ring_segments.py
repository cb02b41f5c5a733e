"""The cut of a gradient for a ring, and the timetable: exact borders, and what every schedule must do."""

from __future__ import annotations

import random

import pytest
import torch

from distributed.ring.segments import (
    Part,
    RingCut,
    adds_last,
    all_gather,
    pieces,
    receives_last,
    reduce_scatter,
    segments,
)
from distributed.shards import MIB, buckets


def test_segments_are_cut_at_cache_lines_from_the_start_of_the_bucket() -> None:
    assert segments(0, 160, 3) == [(0, 48), (48, 96), (96, 160)]
    assert segments(32, 100, 2) == [(32, 64), (64, 100)]
    assert segments(0, 20, 4) == [(0, 0), (0, 16), (16, 16), (16, 20)]
    assert pieces(48, 160, 128) == [(48, 64), (64, 96), (96, 128), (128, 160)]
    assert pieces(5, 5, 128) == []
    cut = RingCut(((64, 100), (0, 64)), 2, part_bytes=64)
    assert cut.parts[:3] == (Part(0, 0, 0, 64, 80), Part(1, 0, 1, 80, 96), Part(2, 0, 1, 96, 100))
    assert [part.segment for part in cut.of_bucket[1]] == [0, 0, 1, 1]


@pytest.mark.parametrize("nodes", [1, 2, 3, 4, 5, 8])
def test_parts_cover_every_element_once_and_segments_are_equal_within_a_line(nodes: int) -> None:
    pick = random.Random(nodes)
    for _ in range(20):
        elements = pick.choice([1, 15, 16, 17, 4096, pick.randrange(1, 200_000)])
        cut = RingCut(tuple(buckets(elements, 4 << 15, 4 << 15)), nodes, pick.choice([64, 1000, MIB]))
        assert [part.index for part in cut.parts] == list(range(len(cut.parts)))
        assert all(0 < part.elements * 4 <= cut.part_bytes for part in cut.parts)
        count = torch.zeros(elements, dtype=torch.int32)
        for part in cut.parts:
            part.of(count).add_(1)
        assert bool((count == 1).all())
        for (start, stop), parts in zip(cut.buckets, cut.of_bucket, strict=True):
            assert all((part.start - start) % 16 == 0 for part in parts)
            sizes = [sum(part.elements for part in parts if part.segment == segment) for segment in range(nodes)]
            assert sum(sizes) == stop - start
            assert max(sizes) - min(sizes) <= 16 + 15  # a line, and the end of the last one


@pytest.mark.parametrize("nodes", [1, 2, 3, 4, 5, 8])
def test_each_node_ends_with_each_segments_sum_in_the_fixed_order(nodes: int) -> None:
    """The timetable carried out round by round; what is added is written down as the list of who added."""
    held = [[[position] for _ in range(nodes)] for position in range(nodes)]  # by position and segment
    for turn in range(nodes - 1):
        timetable = [reduce_scatter(position, nodes)[turn] for position in range(nodes)]
        sent = [held[position][timetable[position].sends] for position in range(nodes)]
        for position in range(nodes):
            assert timetable[position].receives == timetable[position - 1].sends
            held[position][timetable[position].receives] = [*sent[position - 1], position]
    wanted = [[(segment + step) % nodes for step in range(nodes)] for segment in range(nodes)]
    for segment in range(nodes):
        (last,) = [position for position in range(nodes) if adds_last(position, segment, nodes)]
        assert held[last][segment] == wanted[segment]
    for turn in range(nodes - 1):
        timetable = [all_gather(position, nodes)[turn] for position in range(nodes)]
        sent = [held[position][timetable[position].sends] for position in range(nodes)]
        for position in range(nodes):
            assert timetable[position].receives == timetable[position - 1].sends
            held[position][timetable[position].receives] = sent[position - 1]
            if turn == nodes - 2:
                assert receives_last(position, timetable[position].receives, nodes)
    assert held == [wanted] * nodes


@pytest.mark.parametrize("nodes", [1, 2, 3, 5, 8])
def test_every_node_sends_the_least_that_any_all_reduce_can(nodes: int) -> None:
    elements = 3_000_011
    cut = RingCut(tuple(buckets(elements, 4 * MIB)), nodes)
    formula = 2 * (nodes - 1) / nodes * 4 * elements
    sent = [cut.bytes_sent(position) for position in range(nodes)]
    assert sum(sent) == 2 * (nodes - 1) * 4 * elements
    assert all(abs(one - formula) <= 2 * 2 * 4 * 16 * len(cut.buckets) for one in sent)
    assert nodes == 1 or max(sent) / formula < 1.0002
