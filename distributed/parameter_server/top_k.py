"""Sending only the largest elements of a gradient and keeping the others for later (experimental).

Deep gradient compression (Lin et al. 2018, "Deep Gradient Compression", section 3 and algorithm 1): what a worker does
not send it adds up (error feedback), with the optimizer's momentum applied before that (momentum correction); elements
that were sent forget theirs (momentum factor masking); the share that is sent shrinks over the first pushes (warm-up).
The threshold is found in a sample. With momentum here, the server's rule is to be `sgd` without. Under Adam the method
is outside its theory.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch

from distributed.errors import FrameError
from distributed.parameter_server.compression import DTYPES, Content

_SAMPLE = 64  # an element in so many is looked at for the threshold, and at least so many of those to be sent
_TOO_MANY = 1.5  # times the number wanted: then the largest of them are found exactly
_FIRST_DENSITY = 0.25  # share of the elements sent at the beginning of the warm-up
_BLOCK = 1 << 16  # elements whose places are told by 16 bits
_LOOK = 1 << 18  # elements that are compared at a time, in the cache


def density(final: float, update: int, warm_up: int) -> float:
    """The share of elements that push `update` (from 1) sends.

    It falls geometrically from 25 % to `final` over `warm_up` pushes: for 0.1 % at quarters of it, 25, 6.3, 1.6, 0.4
    and 0.1 % as in the paper.
    """
    if final >= _FIRST_DENSITY or update > warm_up:
        return final
    done = (update - 1) / warm_up
    return float(_FIRST_DENSITY ** (1 - done) * final**done)


class ErrorFeedback:
    """What a worker has not sent: flat buffers over all parameters, part of a checkpoint.

    elements: of the flat buffer. momentum: of the velocity; without, there is none.
    """

    def __init__(self, elements: int, momentum: float = 0.0):
        self.momentum = momentum
        self.residual = torch.zeros(elements)
        self.velocity = torch.zeros(elements) if momentum else None

    @property
    def buffers(self) -> dict[str, torch.Tensor]:
        """By name, each laid out as the parameters are."""
        return {"residual": self.residual} | ({} if self.velocity is None else {"velocity": self.velocity})

    def forget(self) -> None:
        """Begin anew, with nothing kept."""
        for buffer in self.buffers.values():
            buffer.zero_()

    def load(self, buffers: Mapping[str, torch.Tensor]) -> None:
        """Take over what `buffers` gave, whatever the cut into pieces was."""
        for name, buffer in self.buffers.items():
            buffer.copy_(buffers[name])


class TopK:
    """The elements of a piece that are largest in what has been added up: a `WireForm` with a memory.

        u32 number of elements sent, u32 of each 65,536 elements of the piece how many of them
        the elements in the wire's type, u16 of each its place in its 65,536

    The rounding error of `bf16` stays in the memory too. The gradient must be finite: a memory would keep what is not.

    Parameters
    ----------
    start, stop: the piece in the flat buffer.
    feedback: the worker's memory (only the sending end needs one).
    share: of the elements that is sent after the warm-up.
    warm_up: pushes before that.
    wire: type of the elements.
    """

    def __init__(
        self,
        start: int,
        stop: int,
        share: float,
        feedback: ErrorFeedback | None = None,
        warm_up: int = 0,
        wire: str = "fp32",
    ):
        self._elements, self._dtype = stop - start, DTYPES[wire]
        self._share, self._warm_up = share, warm_up
        self._blocks = -(-self._elements // _BLOCK)
        self._head = 4 + 4 * self._blocks
        most = min(self._elements, int(_TOO_MANY * self._wanted(1)))
        self.most_bytes = self._head + most * (self._dtype.itemsize + 2)
        if feedback is not None:
            self._momentum = feedback.momentum
            self._residual = feedback.residual[start:stop]
            self._velocity = None if feedback.velocity is None else feedback.velocity[start:stop]

    def encode(self, gradient: torch.Tensor, update: int = 1, out: torch.Tensor | None = None) -> torch.Tensor:
        """Add a gradient to what was kept, and take out of it what is sent now."""
        self._remember(gradient)
        places = self._largest(self._wanted(update), update)
        count = len(places)
        size = self._head + count * (self._dtype.itemsize + 2)
        payload = torch.empty(size, dtype=torch.uint8) if out is None else out[:size]
        numbers = places.numpy()
        head = payload[: self._head].numpy().view("<u4")
        head[0] = count
        head[1:] = np.bincount(numbers // _BLOCK, minlength=self._blocks)
        at = self._head + count * self._dtype.itemsize
        kept = self._residual[places]
        sent = payload[self._head : at].view(self._dtype).copy_(kept)
        payload[at:].numpy().view("<u2")[:] = numbers % _BLOCK
        self._residual[places] = kept.sub_(sent)
        if self._velocity is not None:
            self._velocity[places] = 0.0
        return payload

    def content(self, payload: torch.Tensor) -> Content:
        """The elements sent; two bytes say where each belongs."""
        count = int(payload[:4].numpy().view("<u4")[0])
        return Content(self._head, count, 2 * count)

    def decode(self, payload: torch.Tensor, out: torch.Tensor, add: bool = False) -> None:
        """Write or add the elements that were sent; the others are zero."""
        head = payload[: self._head].numpy().view("<u4").astype(np.int64) if payload.numel() >= self._head else [-1]
        count = int(head[0])
        if payload.numel() != self._head + count * (self._dtype.itemsize + 2) or int(sum(head[1:])) != count:
            raise FrameError(f"a gradient of {payload.numel()} bytes does not hold the elements that it announces")
        at = self._head + count * self._dtype.itemsize
        places = payload[at:].numpy().view("<u2") + np.repeat(np.arange(self._blocks) * _BLOCK, head[1:])
        if count and (places[-1] >= self._elements or (np.diff(places) <= 0).any()):
            raise FrameError("elements that are not in the piece, or come twice")
        values, where = payload[self._head : at].view(self._dtype).to(out.dtype), torch.from_numpy(places)
        if add:
            out.index_add_(0, where, values)
        else:
            out.zero_().index_copy_(0, where, values)

    def _wanted(self, update: int) -> int:
        """How many elements this push should send."""
        return max(1, round(density(self._share, update, self._warm_up) * self._elements))

    def _remember(self, gradient: torch.Tensor) -> None:
        """v += g, or with momentum u = m u + g and v += u."""
        if self._velocity is not None:
            gradient = self._velocity.mul_(self._momentum).add_(gradient)
        self._residual.add_(gradient)

    def _largest(self, wanted: int, update: int) -> torch.Tensor:
        """Places of about the `wanted` largest elements, ascending; fewer where most are zero.

        The sample is every n-th element, from another one each time; n is odd, so that it does not keep to some columns
        of a matrix.
        """
        sampled = min(self._elements, max(self._elements // _SAMPLE, math.ceil(_SAMPLE * self._elements / wanted)))
        stride = max(1, self._elements // sampled) - 1 | 1
        sample = self._residual[(update * 7919) % stride :: stride].abs()
        threshold = float(sample.topk(max(1, round(wanted * len(sample) / self._elements))).values[-1])
        found = []
        for start in range(0, self._elements, _LOOK):
            size = self._residual[start : start + _LOOK].abs()
            found.append((size >= threshold if threshold else size > 0).nonzero().view(-1).add_(start))
        places = torch.cat(found)
        if len(places) > _TOO_MANY * wanted:
            among = self._residual[places].abs().topk(wanted).indices
            places = places[among.sort().values]
        return places
