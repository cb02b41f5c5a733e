"""Dropout whose masks are addressed, never consumed: a mask is a function of (seed, step, slot, name) alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from nmt.models.initialisation import stream


class Dropout(Protocol):
    """Where a model gets its dropout masks from."""

    def mask(self, name: str, shape: Sequence[int], p: float, like: Tensor) -> Tensor | None:
        """The mask called `name`, already divided by 1 - p, with the device and type of `like`; None drops nothing."""

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
    """

    seed: int
    step: int
    slot: int

    def mask(self, name: str, shape: Sequence[int], p: float, like: Tensor) -> Tensor | None:
        """The mask called `name`, already divided by 1 - p; with p = 0 nothing is drawn and None is returned."""
        if p == 0:
            return None
        # Always drawn in float32, so that a float64 or bfloat16 model has the masks of the float32 one.
        generator = stream(f"{self.seed}/{self.step}/{self.slot}/{name}", like.device)
        uniform = torch.rand(tuple(shape), generator=generator, device=like.device, dtype=torch.float32)
        return (uniform >= p).to(like.dtype).mul_(1 / (1 - p))

    def __call__(self, name: str, x: Tensor, p: float) -> Tensor:
        """`x` times the mask called `name`, in the shape of `x`; each unit is dropped with probability `p`."""
        mask = self.mask(name, x.shape, p, x)
        return x if mask is None else x * mask
