"""Scores by which finished and unfinished hypotheses are compared."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    import torch

Lengths = TypeVar("Lengths", float, "torch.Tensor")


def length_penalty(length: Lengths, alpha: float) -> Lengths:
    """The divisor of a log-probability, ((5 + length) / 6)^alpha (Wu et al. 2016, equation 14).

    `length` counts tokens without EOS. With alpha 0 it is 1; the larger alpha, the more long hypotheses are favoured.
    """
    return ((5.0 + length) / 6.0) ** alpha
