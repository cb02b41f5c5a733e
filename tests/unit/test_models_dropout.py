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
    kept = 1 - round(p * 65536) / 65536  # what p is with 16 bits
    assert set(y.unique().tolist()) == {0.0, torch.tensor(1 / kept).item()}
    dropped = (y == 0).float().mean().item()
    assert abs(dropped - p) < 6 * (p * (1 - p) / X.numel()) ** 0.5


def test_known_bits() -> None:
    # Pins the address format, the digest and the generator: a change here changes every training run.
    mask = AddressedDropout(1, 1, 0).mask("decoder.0.input", (2, 8), 0.5, torch.ones(()))
    assert mask is not None
    assert "".join(str(int(value / 2)) for value in mask.flatten().tolist()) == "1010101101001110"


@pytest.mark.parametrize("bit", range(16))
def test_each_of_the_random_bits_is_fair(bit: int) -> None:
    # Masks with p = 1/2^k see whether the first k bits are all zero (the sign bit turned); telescoped, each bit's own
    # share: of the units that p = 2^-bit drops, p = 2^-(bit+1) drops half.
    big = torch.ones(1 << 20)
    outer = torch.ones_like(big, dtype=torch.bool)
    if bit:
        outer = AddressedDropout(3, 1, 0)("a", big, 2.0**-bit) == 0
    inner = AddressedDropout(3, 1, 0)("a", big, 2.0 ** -(bit + 1)) == 0
    assert not (inner & ~outer).any()  # a higher p drops the same units and more
    units = int(outer.sum())
    assert abs(int(inner.sum()) - units / 2) <= 3 * units**0.5  # six standard deviations


@pytest.mark.parametrize("units", range(1, 10))
def test_any_number_of_units_has_a_mask(units: int) -> None:
    mask = AddressedDropout(1, 1, 0).mask("a", (units,), 0.5, torch.ones(()))
    longer = AddressedDropout(1, 1, 0).mask("a", (12,), 0.5, torch.ones(()))
    assert mask is not None
    assert longer is not None
    assert torch.equal(mask, longer[:units])


def test_a_probability_near_one_leaves_finite_survivors() -> None:
    mask = AddressedDropout(1, 1, 0).mask("a", (1 << 20,), 1 - 1e-9, torch.ones(()))
    assert mask is not None
    assert set(mask.unique().tolist()) == {0.0, 65536.0}


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
