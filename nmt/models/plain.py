"""The switch between hand-written gradients and autograd's own.

What dominates a training step has its gradient written by hand: faster, and with little kept for the backward pass.
Such functions can be differentiated once. What differentiates twice, as studies of what gradients give away do, asks
for the plain computation: the same values within rounding, made of torch's operations alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_plain: ContextVar[bool] = ContextVar("plain_autograd", default=False)


@contextmanager
def plain_autograd() -> Iterator[None]:
    """Within it, in this thread or task, models compute what can be differentiated any number of times."""
    token = _plain.set(True)
    try:
        yield
    finally:
        _plain.reset(token)


def is_plain() -> bool:
    """Whether this thread or task is inside `plain_autograd`; asked in the forward pass."""
    return _plain.get()


def refuse_second_derivatives() -> None:
    """For the backward pass of a hand-written gradient: raises RuntimeError where that is to be differentiated again.

    It would pass for a constant otherwise (`once_differentiable` too says nothing where the upstream gradient is one),
    and second derivatives would be wrong in silence.
    """
    if torch.is_grad_enabled():  # in a backward pass: create_graph=True
        raise RuntimeError("a hand-written gradient cannot be differentiated: compute the loss within plain_autograd()")
