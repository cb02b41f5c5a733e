from __future__ import annotations

import torch

from nmt.models.layers import sigmoid


def test_it_is_the_logistic_function_with_a_finite_gradient() -> None:
    x = torch.tensor([-1e4, -100.0, -20.0, -1.0, 0.0, 1.0, 20.0, 1e4], requires_grad=True)
    y = sigmoid(x)
    torch.testing.assert_close(y, torch.sigmoid(x.double()).float(), rtol=0.0, atol=1e-7)
    y.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, (y * (1 - y)).detach(), rtol=1e-5, atol=1e-7)


def test_a_row_has_the_same_bits_whatever_stands_beside_it() -> None:
    for units in (8, 24, 33, 513):
        x = torch.randn(64, units, generator=torch.Generator().manual_seed(units))
        whole = sigmoid(x)
        for rows in (1, 3, 17, 21, 61):
            assert torch.equal(sigmoid(x[:rows]), whole[:rows])
            assert torch.equal(sigmoid(x[rows:]), whole[rows:])
