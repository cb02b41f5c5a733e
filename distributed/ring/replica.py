"""The whole model and optimizer at a node of a ring: gradients of its share, and updates from sums."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from distributed.arithmetic import (
    FlatParameters,
    chunks,
    clip_,
    clip_parameters_,
    norm,
    parameter_norms,
)
from distributed.gradients import LeafFacts, NodeGradients
from distributed.optimizers import build_optimizer
from distributed.shards import MIB, Piece, cut
from distributed.strategy import Workload


@dataclass(frozen=True)
class Update:
    """What to do with a sum.

    number: which update it is, if it is one.
    loss: of the step.
    rate: the learning rate.
    probe: whether to say how large parameters' gradients and changes are.
    """

    number: int
    loss: float
    rate: float
    probe: bool = False


class Replica:
    """Every node has one, with the same bits.

    Parameters
    ----------
    workload: says what the model, the update rule and the slots are.
    bucket_mib: MiB of gradient that are summed together.
    allocate: makes gradient buffers of so many zeros; None: where the model lies.
    wait: called before each stage of a forward pass; it may raise, and so end the computation.
    """

    def __init__(
        self,
        workload: Workload,
        bucket_mib: int,
        wait: Callable[[], None],
        allocate: Callable[[int], torch.Tensor] | None = None,
    ):
        self._workload = workload
        self.model = workload.build_model()
        self.flat = FlatParameters(self.model, allocate)
        self._rule = build_optimizer(workload.optimizer)
        self.moments = {slot: torch.zeros_like(self.flat.values) for slot in self._rule.slots}
        self.pieces: Sequence[Piece] = cut(self.flat.values.numel(), 1, bucket_mib * MIB).pieces
        """The buckets, in the order in which a backward pass completes them."""
        self._gradients = NodeGradients(workload, self.model, self.flat, self.pieces, lambda pieces: wait())
        self._scratch = torch.empty(0)

    @property
    def buckets(self) -> list[tuple[int, int]]:
        """Their elements, from where to where."""
        return [(piece.start, piece.stop) for piece in self.pieces]

    @property
    def state(self) -> list[torch.Tensor]:
        """Flat buffers [elements]: parameters, then the optimizer's moments in their order."""
        return [self.flat.values, *self.moments.values()]

    def gradient(
        self, step: int, leaves: range, probe: bool, ready: Callable[[int, torch.Tensor], None]
    ) -> tuple[Mapping[int, LeafFacts], torch.Tensor]:
        """The gradient of a share of a step: its leaves, added up by the pairwise tree over so many.

        ready: called with each bucket's number, and the flat buffer in which that bucket is final.

        Returns what else the leaves gave, and the buffer, which is the caller's, who gives it to `flat.release`.
        """
        with torch.enable_grad():
            return self._gradients.compute(step, (leaves.start, leaves.stop), probe, ready)

    def apply(self, gradient: torch.Tensor, squares: Sequence[float], update: Update) -> dict[str, Any]:
        """Apply a step's whole gradient, which stays as it is; one that is not finite is not applied.

        squares: fp64 square sums of the gradient's chunks, in any order.

        Returns what there is to say of it: `norm`, `rate`, `finite`, and where probed `gradients` and `updates`, norms
        by parameter.
        """
        gradient_norm = norm(squares)
        finite = math.isfinite(gradient_norm) and math.isfinite(update.loss)
        about: dict[str, Any] = {"norm": gradient_norm, "rate": update.rate, "finite": finite}
        before = None
        if update.probe:
            about["gradients"] = parameter_norms(self.flat, gradient)
            before = self.flat.values.clone()
        if finite:
            self._update(gradient, gradient_norm, update)
        if before is not None:
            about["updates"] = parameter_norms(self.flat, before.sub_(self.flat.values))
        return about

    def _update(self, gradient: torch.Tensor, gradient_norm: float, update: Update) -> None:
        """Chunk by chunk, each clipped in memory of its own: others may still read the gradient."""
        specification = self._workload.optimizer
        max_norm = specification.max_norm
        if specification.parameter_max_norms or gradient.device != self.flat.values.device:
            # A parameter's own norm is that of its clipped gradient, all of which has to be there first.
            gradient = self._whole_scratch().copy_(gradient)
            clip_(gradient, gradient_norm, max_norm)
            clip_parameters_(self.flat, gradient, specification.parameter_max_norms)
            max_norm = 0.0
        is_long = bool(max_norm) and gradient_norm > max_norm
        with torch.no_grad():
            for values, part, *moments in chunks(self.flat.values, gradient, *self.moments.values()):
                if is_long:
                    if self._scratch.numel() < part.numel():
                        self._scratch = torch.empty_like(part)
                    part = torch.mul(part, max_norm / gradient_norm, out=self._scratch[: part.numel()])
                self._rule.apply(
                    values, part, dict(zip(self.moments, moments, strict=True)), update.number, update.rate
                )

    def _whole_scratch(self) -> torch.Tensor:
        if self._scratch.numel() < self.flat.values.numel():
            self._scratch = torch.empty_like(self.flat.values)
        return self._scratch
