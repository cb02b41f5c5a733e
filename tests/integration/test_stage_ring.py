"""`ring_tmp` over real processes: the bits of one process, who is linked to whom, checkpoints, what cannot be cut."""

from __future__ import annotations

import pytest
from stage_ring_examples import STEPS, TOY, running, single
from parameter_server_examples import train


@pytest.mark.parametrize("nodes", [2, pytest.param(1, marks=pytest.mark.exhaustive)])
def test_a_ring_has_the_bits_of_one_process(nodes: int) -> None:
    with running(f"nodes={nodes}") as strategy:
        stats = train(strategy, 1, STEPS)
        single().assert_equal(stats, strategy.state())
