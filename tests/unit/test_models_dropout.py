"""Dropout masks as functions of their address."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nmt.models.dropout import NO_DROPOUT, AddressedDropout

X = torch.ones(30, 20, 10)


def test_the_same_address_gives_the_same_bits_and_any_other_gives_others() -> None:
    first = AddressedDropout(1, 2, 3)("a", X, 0.5)
    assert torch.equal(first, AddressedDropout(1, 2, 3)("a", X, 0.5))
    others = [(9, 2, 3, "a"), (1, 9, 3, "a"), (1, 2, 9, "a"), (1, 2, 3, "b"), (12, 3, 3, "a"), (1, 23, 3, "a")]
    for seed, step, slot, name in others:
        share = (AddressedDropout(seed, step, slot)(name, X, 0.5) == first).float().mean().item()
        assert 0.45 < share < 0.55  # independent fair coins agree half the time; 6,000 of them


def test_masks_do_not_depend_on_the_global_generator_or_on_order() -> None:
    masks = AddressedDropout(1, 1, 0)
    one, two = masks("a", X, 0.3), masks("b", X, 0.3)
    state = torch.random.get_rng_state()
    torch.rand(5)
    assert torch.equal(masks("b", X, 0.3), two)
    assert torch.equal(masks("a", X, 0.3), one)
    torch.random.set_rng_state(state)
    masks("a", X, 0.3)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_bits_do_not_depend_on_the_number_of_threads() -> None:
    before, big = torch.get_num_threads(), torch.ones(64, 128, 64)
    try:
        torch.set_num_threads(1)
        one = AddressedDropout(5, 1, 0)("encoder.forwards.0.input", big, 0.2)
        torch.set_num_threads(2)
        two = AddressedDropout(5, 1, 0)("encoder.forwards.0.input", big, 0.2)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(one, two)


@given(st.sampled_from([0.1, 0.2, 0.5, 0.9]), st.integers(0, 2**31))
def test_survivors_are_scaled_and_the_share_is_right(p: float, seed: int) -> None:
    y = AddressedDropout(seed, 1, 0)("name", X, p)
    assert set(y.unique().tolist()) == {0.0, torch.tensor(1 / (1 - p)).item()}
    dropped = (y == 0).float().mean().item()
    assert abs(dropped - p) < 6 * (p * (1 - p) / X.numel()) ** 0.5


def test_known_bits() -> None:
    # Pins the address format, the digest and the generator: a change here changes every training run.
    mask = AddressedDropout(1, 1, 0).mask("decoder.0.input", (2, 8), 0.5, torch.ones(()))
    assert mask is not None
    assert "".join(str(int(value / 2)) for value in mask.flatten().tolist()) == "0100100111001010"


def test_nothing_is_dropped_where_nothing_is_asked_for() -> None:
    assert NO_DROPOUT("a", X, 0.9) is X
    assert NO_DROPOUT.mask("a", (2, 2), 0.9, X) is None
    assert AddressedDropout(1, 1, 0)("a", X, 0.0) is X
    assert AddressedDropout(1, 1, 0).mask("a", (2, 2), 0.0, X) is None


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_every_type_drops_the_same_units(dtype: torch.dtype) -> None:
    masks = AddressedDropout(1, 1, 0)
    y = masks("a", X.to(dtype), 0.2)
    assert y.dtype == dtype
    assert torch.equal(y == 0, masks("a", X, 0.2) == 0)


def test_gradients_pass_through_survivors_only() -> None:
    x = X.clone().requires_grad_()
    y = AddressedDropout(1, 1, 0)("a", x, 0.2)
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, y.detach())
