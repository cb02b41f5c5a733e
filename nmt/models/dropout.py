"""Dropout whose masks are addressed, never consumed: a mask is a function of (seed, step, slot, name) alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from nmt.models.initialisation import stream

_STEPS = 1 << 16  # equally likely values of the 16 bits that decide about a unit


class Dropout(Protocol):
    """Where a model gets its dropout masks from."""

    def mask(self, name: str, shape: Sequence[int], p: float, like: Tensor) -> Tensor | None:
        """The mask called `name`, already divided by its share of ones, with the device and type of `like`.

        None drops nothing.
        """

    def __call__(self, name: str, x: Tensor, p: float) -> Tensor:
        """`x` times the mask called `name`, in the shape of `x`; each unit is dropped with probability `p`."""


@dataclass(frozen=True)
class NoDropout:
    """Drops nothing: evaluation and decoding."""

    def mask(self, name: str, shape: Sequence[int], p: float, like: Tensor) -> Tensor | None:
        """Always None."""
        return None

    def __call__(self, name: str, x: Tensor, p: float) -> Tensor:
        """`x` itself."""
        return x


NO_DROPOUT = NoDropout()


@dataclass(frozen=True)
class AddressedDropout:
    """The masks of one micro-batch slot of one training step.

    The same address gives the same bits in every process and with any number of threads, so a resumed run, a recomputed
    activation and a stage in another process all see the same mask. Masks of different names are independent; the shape
    belongs to the caller's own time-major tensor.

    A unit costs 16 random bits, so its probability is the multiple of 1/65536 next to `p`, below 1. Survivors are
    divided by what that leaves, so the expectation is exact.
    """

    seed: int
    step: int
    slot: int

    def mask(self, name: str, shape: Sequence[int], p: float, like: Tensor) -> Tensor | None:
        """The mask called `name`, already divided by its share of ones; with p = 0 nothing is drawn: None."""
        dropped = min(round(p * _STEPS), _STEPS - 1)
        if not dropped:
            return None
        generator = stream(f"{self.seed}/{self.step}/{self.slot}/{name}", like.device)
        units = math.prod(shape)
        words = torch.empty(-(-units // 4), dtype=torch.int64, device=like.device)
        words.random_(-(2**63), None, generator=generator)  # all 64 bits of each word, four units
        bits = words.view(torch.int16)[:units].view(tuple(shape))
        mask = torch.empty(tuple(shape), dtype=like.dtype, device=like.device)
        return torch.ge(bits, dropped - _STEPS // 2, out=mask).mul_(_STEPS / (_STEPS - dropped))

    def __call__(self, name: str, x: Tensor, p: float) -> Tensor:
        """`x` times the mask called `name`, in the shape of `x`; each unit is dropped with probability `p`."""
        mask = self.mask(name, x.shape, p, x)
        return x if mask is None else x * mask
