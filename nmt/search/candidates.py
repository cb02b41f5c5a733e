"""What may follow each hypothesis: EOS and the likeliest other tokens, from logits in one pass and a half.

The largest of a row are looked for in blocks: the largest of each block of `BLOCK` tokens first, then inside the best
blocks only. Equal values go to the lower token, exactly and without asking the device what it holds: what is ranked are
whole numbers made of value and token, all of them different.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from nmt.data.vocabulary import EOS
from nmt.models.hypothesis_rows import HypothesisRows

BLOCK = 32  # tokens
CACHE_BYTES = 2**19  # what is worked through at a time on a CPU: a share of its second-level cache


def candidates(
    logits: Tensor, count: int, normalised: bool = False, maxima: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Gains in log-probability and tokens of what may follow each of some hypotheses, both [rows, candidates].

    Tokens ascend. EOS is always among them, beside the `count` likeliest others: no more than `count` continuations of
    one hypothesis can be among the `count` best of its sentence. `logits` [rows, vocabulary] are not changed; they are
    log-probabilities already if `normalised`.
    """
    blocks, highest, logarithm = _survey(logits, normalised)
    values, tokens = largest(logits, count + 1, blocks)
    missing = (tokens != EOS).all(dim=1)
    tokens[:, -1].masked_fill_(missing, EOS)
    values[:, -1] = torch.where(missing, logits[:, EOS].to(values.dtype), values[:, -1])
    gains = values if normalised else values - highest - logarithm
    tokens, order = tokens.sort(dim=1)
    return gains.gather(1, order), tokens


def log_softmax(logits: Tensor) -> Tensor:
    """Log-probabilities of `logits` [rows, vocabulary] in float32, to the last bit those that `candidates` finds."""
    _, highest, logarithm = _survey(logits, False)
    return torch.sub(logits.float(), highest).sub_(logarithm)


def in_grid(
    gains: Tensor, tokens: Tensor, rows: HypothesisRows, finished: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Candidates [rows, n] in the grid [batch, k, n]: behind a hypothesis that is not at hand there are none.

    Behind a finished one (`finished` [batch, k]) only EOS counts, at no cost. Empty places hold EOS and minus infinity.
    """
    if rows.places is not None:
        shape = (rows.batch * rows.k, gains.shape[1])
        gains = gains.new_full(shape, -math.inf).index_copy_(0, rows.places, gains)
        tokens = tokens.new_full(shape, EOS).index_copy_(0, rows.places, tokens)
    gains, tokens = (part.unflatten(0, (rows.batch, rows.k)) for part in (gains, tokens))
    if finished is not None:
        gains = gains.masked_fill(finished.unsqueeze(2), -math.inf)
        gains[..., 0].masked_fill_(finished, 0.0)
        tokens = tokens.masked_fill(finished.unsqueeze(2), EOS)
    return gains, tokens


def best_places(scores: Tensor, count: int) -> Tensor:
    """Places [batch, count] of the largest of `scores` [batch, k, n], best first; of equal ones the first."""
    # Candidates stand in the order (slot, token), and a stable sort keeps it among equal scores.
    return scores.flatten(1).sort(dim=1, descending=True, stable=True).indices[:, :count]


def largest(values: Tensor, count: int, blocks: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The `count` largest of each row of `values` [rows, n] and their places, the largest first, in float32.

    Of equal values the first ones. `blocks` [rows, n // BLOCK] are the largest of each whole block, where known.
    """
    rows, n = values.shape
    columns = torch.arange(n, device=values.device)
    whole = n // BLOCK
    if whole <= 2 * count:
        return _ranked(values, columns, count)
    if blocks is None:
        blocks = _block_maxima(values)
    # A block that is not among the best is preceded by `count` values, one in each of those that are.
    _, chosen = _ranked(blocks, columns[:whole], count)
    inside = (chosen.unsqueeze(2) * BLOCK + columns[:BLOCK]).flatten(1)
    if n % BLOCK:
        inside = torch.cat((inside, columns[whole * BLOCK :].expand(rows, -1)), dim=1)
        return _ranked(values.gather(1, inside), inside, count)
    first = torch.arange(0, rows * whole, whole, device=values.device).unsqueeze(1)
    picked = values.reshape(-1, BLOCK).index_select(0, (chosen + first).flatten())
    return _ranked(picked.view(rows, -1), inside, count)


def _ranked(values: Tensor, places: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest of each row and their `places` (which broadcast to the rows); of equal ones the lower place.

    The bits of a float, taken for a whole number, are in its order, if those of negative ones are turned around.
    """
    bits = (values.float() + 0.0).view(torch.int32)  # minus zero equals zero
    keys = (_turned(bits).long() << 32) - places
    best = keys.topk(min(count, keys.shape[1]), dim=1).values
    high = (best + 0xFFFFFFFF) >> 32
    return _turned(high.int()).view(torch.float32), (high << 32) - best


def _turned(bits: Tensor) -> Tensor:
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _survey(logits: Tensor, normalised: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Of each row the largest of each block, the largest, and the logarithm of the sum of exp(logit - the largest).

    On a CPU a few rows at a time, while they are in the caches of its cores. All in float32.
    """
    rows, n = logits.shape
    step = rows
    if logits.device.type == "cpu":
        step = max(1, torch.get_num_threads() * CACHE_BYTES // (4 * n))
    scratch = torch.empty((min(step, rows), n), device=logits.device)
    parts = []
    for some in logits.split(step):
        room = scratch[: len(some)]
        wide = some if some.dtype == torch.float32 else room.copy_(some)
        blocks = _block_maxima(wide)
        ends = blocks if n % BLOCK == 0 else torch.cat((blocks, wide[:, blocks.shape[1] * BLOCK :]), dim=1)
        highest = ends.amax(dim=1, keepdim=True)
        if normalised:
            parts.append((blocks, highest, highest))
            continue
        total = torch.sub(wide, highest, out=room).exp_().sum(dim=1, keepdim=True)
        parts.append((blocks, highest, total.log()))
    if len(parts) == 1:
        return parts[0]
    blocks, highest, logarithm = (torch.cat(part) for part in zip(*parts, strict=True))
    return blocks, highest, logarithm


def _block_maxima(values: Tensor) -> Tensor:
    whole = values.shape[1] // BLOCK
    return values[:, : whole * BLOCK].unflatten(1, (whole, BLOCK)).amax(dim=2)
