"""Gradients with respect to tensors inside a model, seen as they pass backwards and left as they are."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor


class GradientWatch:
    """Records the norms of gradients of one backward pass.

    A hook on a tensor sees the finished gradient and returns nothing, so no bit of any gradient depends on it.
    """

    def __init__(self) -> None:
        self._norms: dict[str, list[Tensor]] = {}

    def __call__(self, name: str, tensor: Tensor) -> None:
        """Watch `tensor`; several tensors of one name count as parts of one."""
        if tensor.requires_grad:
            tensor.register_hook(partial(self.record, name))

    def record(self, name: str, gradient: Tensor) -> None:
        """Take down one gradient [rows, n], from a hook or from a backward pass written by hand."""
        # Row by row: no sum is long enough to be split among threads.
        norms = torch.linalg.vector_norm(gradient.detach(), dim=-1, dtype=torch.float64).flatten()
        self._norms.setdefault(name, []).append(norms)

    def square_sums(self) -> dict[str, list[float]]:
        """After the backward pass: fp64 square sums of the gradients by name, one for each row of each tensor."""
        return {
            name: [norm * norm for norm in torch.cat(norms).tolist()] for name, norms in sorted(self._norms.items())
        }
