"""Sentences packed for reading: at each step the rows of those that have not ended, the longest sentence on top.

A sentence that ends leaves from the bottom. So nothing is computed for padding, a direction reads every sentence from
its own end, and the rows of a step are the first rows of the step before.
"""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

# So many rows stay to the end, because a product of few rows may round differently from one of many, and a sentence's
# bits must not depend on how long its neighbours are; see `nmt.search.rows.STABLE_ROWS`.
LEAST_ROWS = 16


def shrinks(device: torch.device) -> bool:
    """Whether sentences that have ended leave the rows on this device."""
    return device.type == "cpu"


class SentencePacking:
    """Where the tokens of a padded batch stand in its packed form, for one direction (forwards) or two (and backwards).

    sizes: rows of each step; they never grow, and `total` is their sum.
    last: [batch] packed place of each sentence's last step.
    before: [total - sizes[0]] packed place, one step earlier, of each row from the second step on.

    On a GPU, which computes all rows of a step at once, every step keeps all rows, and the host need not know lengths.

    Parameters
    ----------
    lengths: [batch] tokens of each sentence. time: steps of the padded form.
    """

    def __init__(self, lengths: Tensor, time: int, directions: int = 1):
        device, batch = lengths.device, len(lengths)
        self.time, self.batch, self.directions = time, batch, directions
        steps = torch.arange(time, device=device).unsqueeze(1)
        rows = torch.arange(batch, device=device)
        if shrinks(device):
            sentences = lengths.sort(descending=True, stable=True).indices  # of each row
            sizes = (lengths > steps).sum(dim=1).clamp(min=min(LEAST_ROWS, batch))
            kept = (rows < sizes.unsqueeze(1)).flatten()
            self.sizes: list[int] = sizes.tolist()
            begins = torch.tensor([0, *accumulate(self.sizes)][:-1])
        else:
            sentences, kept, self.sizes = rows, None, [batch] * time
            begins = steps.squeeze(1) * batch  # made there: the host would wait for a copy
        self.total = sum(self.sizes)
        own = lengths[sentences]
        ahead, back = steps.expand(-1, batch), torch.where(steps < own, own - 1 - steps, steps)
        read = torch.stack([ahead, back][:directions]) * batch + sentences
        row = torch.empty_like(rows).scatter_(0, sentences, rows)  # of each sentence
        self._padding = (steps >= lengths).flatten()
        ahead, back = ahead.clamp(max=lengths - 1), (lengths - 1 - steps).clamp(min=0)
        written = begins[torch.stack([ahead, back][:directions])] + row
        self._written = written.flatten(1) + self.total * torch.arange(directions, device=device).unsqueeze(1)
        before = (begins[:-1].unsqueeze(1) + rows).flatten()
        beyond = (steps >= own).flatten()
        if kept is not None:
            read, before, beyond = read.flatten(1)[:, kept], before[kept[batch:]], beyond[kept]
        self._read, self._beyond, self.before = read.flatten(1), beyond, before
        self.last = begins[lengths - 1] + row

    def pack(self, x: Tensor) -> Tensor:
        """[time, batch, n] -> [directions, total, n]; the rows of ended sentences hold anything."""
        return _Pack.apply(x.flatten(0, 1), self)

    def unpack(self, x: Tensor) -> Tensor:
        """[directions, total, n] -> [time, batch, directions · n], zero beyond each sentence's end."""
        return _Unpack.apply(x, self).view(self.time, self.batch, -1)

    def gather(self, x: Tensor) -> Tensor:
        """Rows of x [time · batch, n] in the order of each direction."""
        return x.index_select(0, self._read.flatten()).view(self.directions, self.total, -1)

    def gather_own(self, x: Tensor) -> Tensor:
        """Each direction's own part of the rows of x [time · batch, directions · n]; zero for ended sentences."""
        parts = x.view(len(x), self.directions, -1).unbind(1)
        packed = torch.stack([part.index_select(0, read) for part, read in zip(parts, self._read, strict=True)])
        return packed.masked_fill_(self._beyond.unsqueeze(1), 0.0)

    def scatter(self, x: Tensor) -> Tensor:
        """[directions, total, n] back to rows of the padded form, [time · batch, directions · n], zero on padding."""
        rows = x.flatten(0, 1)
        parts = [rows.index_select(0, written) for written in self._written]
        return torch.cat(parts, dim=-1).masked_fill_(self._padding.unsqueeze(1), 0.0)


# Both maps only move rows, so the gradient of each is the other, and they can be differentiated any number of times.
class _Pack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, packing: SentencePacking) -> Tensor:
        ctx.packing = packing
        return packing.gather(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        both = _Unpack.apply(gradient, ctx.packing)
        directions = both.view(len(both), ctx.packing.directions, -1).unbind(1)
        return sum(directions[1:], start=directions[0]), None


class _Unpack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, packing: SentencePacking) -> Tensor:
        ctx.packing = packing
        return packing.scatter(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _PackOwn.apply(gradient, ctx.packing), None


class _PackOwn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, packing: SentencePacking) -> Tensor:
        ctx.packing = packing
        return packing.gather_own(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Unpack.apply(gradient, ctx.packing), None
