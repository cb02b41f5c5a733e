"""Position encodings by their formulas, entry by entry."""

from __future__ import annotations

import models_reference as reference
import non_recurrent_reference as slow
import numpy as np
import pytest
import torch

from nmt.config.schema import InitialisationConfig
from nmt.models.initialisation import initialise
from nmt.models.positions import Positions, memn2n, sinusoids

LIKE = torch.zeros((), dtype=torch.float64)


def test_memn2n_is_the_original_toolkits_formula() -> None:
    found = memn2n(7, 5, 4, LIKE)  # two positions beyond the five that the lines span
    expected = [[slow.memn2n(j, k, 5, 4) for k in range(1, 5)] for j in range(1, 8)]
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-15)
    # (1 - 1/6) - (1/5) · (1 - 2/6)
    assert found[0, 0].item() == pytest.approx(5 / 6 - 2 / 15)


@pytest.mark.parametrize("units", [6, 7])
def test_sinusoids_are_those_of_the_paper(units: int) -> None:
    found = sinusoids(3, 4, units, LIKE)
    expected = [[slow.sinusoid(p, k, units) for k in range(units)] for p in range(3, 7)]
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-14)
    assert sinusoids(0, 1, 4, LIKE).tolist() == [[0.0, 1.0, 0.0, 1.0]]


def test_a_position_has_the_same_bits_however_many_are_asked_for() -> None:
    like = torch.zeros(())
    for units in (7, 32, 96):
        whole_sinusoids, whole_lines = sinusoids(0, 90, units, like), memn2n(90, 100, units, like)
        for count in range(1, 90):
            assert torch.equal(sinusoids(0, count, units, like), whole_sinusoids[:count])
            assert torch.equal(sinusoids(count, 1, units, like), whole_sinusoids[count : count + 1])
            assert torch.equal(memn2n(count, 100, units, like), whole_lines[:count])


@pytest.mark.parametrize("kind", ["memn2n", "sinusoidal", "learned", "none"])
@pytest.mark.parametrize("combiner", ["add", "multiply"])
def test_embeddings_and_positions_are_combined(kind: str, combiner: str) -> None:
    layer = reference.randomised(Positions(kind, combiner, 3, 4).double())
    x = torch.randn(5, 2, 4, dtype=torch.float64)
    found = layer(x)
    for row in range(2):
        expected = slow.with_positions(layer, list(x[:, row].numpy()))
        np.testing.assert_allclose(found[:, row].detach().numpy(), expected, rtol=0, atol=1e-14)


def test_learned_positions_start_as_nothing_when_multiplied_and_small_when_added() -> None:
    for combiner in ("add", "multiply"):
        layer = Positions("learned", combiner, 9, 4)
        initialise(layer, InitialisationConfig(), 1)
        assert layer.table is not None
        if combiner == "multiply":
            assert (layer.table.weight == 1).all()
        else:
            assert 0 < layer.table.weight.abs().max() <= (6 / (9 + 4)) ** 0.5
    assert not list(Positions("memn2n", "add", 9, 4).parameters())
