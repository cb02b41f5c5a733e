"""A chunk of the vocabulary at work in one slot's loss: the arithmetic that a single process and a ring of them share.

The words of the output layer are cut into chunks, which are visited twice:

    there      (from the first to the last) of each token over all chunks so far: the largest logit m, the sum z of
               exp(logit - m), the target's logit x, and with label smoothing ε the sum s of the logits.
               After the last chunk of V words: loss = ln z + m - ((1 - ε) x + ε/V s)
    and back   (from the last to the first) of each chunk c the gradient of its logits, p - ((1 - ε) [is target] + ε/V),
               with p = exp(logit - m_c) · exp(m_c - m) / z and the chunk's own largest logit m_c; from it those of the
               chunk's weight and bias, and its share of that of the hidden states, which is added to the shares so far

(Sums of exponentials with a running maximum: Milakov and Gimelshein 2018.) Bits depend on the number of chunks, and not
on where each is computed: all cut the tokens alike, and what chunks add up is added in their order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from torch import Tensor

# Of the logits of a piece of the tokens. Large enough that products run at full speed; and glibc keeps buffers below
# 32 MiB for the next caller, larger ones come from the kernel page by page: that costs more than their arithmetic.
PIECE_BYTES = 1 << 24
LINE = 16  # words; chunks of the vocabulary are cut at multiples of it
BLOCK = 1 << 18  # logits that the softmax works on at a time: 1 MiB in float32

LARGEST, SUM, TARGET, TOTAL = range(4)  # rows of the statistics: m, z, x and s


def chunk_rows(vocabulary: int, chunks: int) -> list[slice]:
    """The words of each chunk, at most `chunks` of them: nearly equally many, cut at multiples of 16.

    So the rows of all chunks, one parameter each, lie in a flat buffer as those of the whole matrix do, whose
    parameters begin at multiples of 16 elements (`distributed.arithmetic`).
    """
    lines = -(-vocabulary // LINE)
    count = max(1, min(chunks, lines))
    borders = [min(LINE * (lines * number // count), vocabulary) for number in range(count + 1)]
    return [slice(start, stop) for start, stop in pairwise(borders)]


@dataclass(frozen=True)
class Cut:
    """How a slot's tokens are cut for every chunk alike: into pieces for the products, and these into bands.

    rows: the words of each chunk. product_type: of the products; everything else is at least float32.
    """

    tokens: int
    rows: tuple[slice, ...]
    product_type: torch.dtype
    device: torch.device

    @property
    def vocabulary(self) -> int:
        """Words of all chunks."""
        return int(self.rows[-1].stop)

    @property
    def softmax_type(self) -> torch.dtype:
        """The type of what is no product."""
        return torch.promote_types(self.product_type, torch.float32)

    @property
    def rounds(self) -> bool:
        """Whether products have fewer digits than the softmax."""
        return self.product_type != self.softmax_type

    @cached_property
    def pieces(self) -> list[slice]:
        """Nearly equal, so that none has few rows, where matrix products may have other bits."""
        most = max(64, PIECE_BYTES // (self.vocabulary * self.product_type.itemsize))
        count = max(1, -(-self.tokens // most))
        borders = [self.tokens * piece // count for piece in range(count + 1)]
        return [slice(start, stop) for start, stop in pairwise(borders)]

    @property
    def longest(self) -> int:
        """Tokens of the longest piece."""
        return -(-self.tokens // len(self.pieces))

    def bands(self, piece: slice) -> Iterator[slice]:
        """So few of a piece's tokens that a chunk's logits of them stay in a core's cache; on a GPU all of them."""
        widest = max(rows.stop - rows.start for rows in self.rows)
        most = max(1, BLOCK // widest) if self.device.type == "cpu" else max(1, self.longest)
        for start in range(piece.start, piece.stop, most):
            yield slice(start, min(start + most, piece.stop))

    def no_statistics(self, label_smoothing: float) -> Tensor:
        """Statistics before the first chunk: [3, tokens], with label smoothing [4, tokens]."""
        statistics = torch.zeros(4 if label_smoothing else 3, self.tokens, dtype=self.softmax_type, device=self.device)
        statistics[LARGEST] = -torch.inf
        return statistics


def losses_of(statistics: Tensor, vocabulary: int, label_smoothing: float) -> Tensor:
    """Losses [tokens] in nats from the statistics of all chunks."""
    expected = statistics[TARGET]
    if label_smoothing:
        expected = (expected * (1 - label_smoothing)).add_(statistics[TOTAL], alpha=label_smoothing / vocabulary)
    return torch.log(statistics[SUM]).add_(statistics[LARGEST]).sub_(expected)


def normaliser_of(statistics: Tensor) -> Tensor:
    """What the way back needs of the statistics of all chunks: m and 1/z, [2, tokens]."""
    return torch.stack((statistics[LARGEST], statistics[SUM].reciprocal()))


class VocabularyChunk:
    """Some words of the output layer in the loss of one slot.

    Parameters
    ----------
    cut: of the slot's tokens. rows: which words.
    weight, bias: [words, units] and [words].
    hidden: [tokens, units] in the type of products. targets: [tokens], numbered over the whole vocabulary.
    """

    def __init__(
        self,
        cut: Cut,
        rows: slice,
        weight: Tensor,
        bias: Tensor,
        hidden: Tensor,
        targets: Tensor,
        label_smoothing: float,
    ):
        self.cut, self.rows, self.smoothing, self.hidden = cut, rows, label_smoothing, hidden
        self.weight, self.bias = weight.detach().to(cut.product_type), bias.detach().to(cut.softmax_type)
        self.width = len(bias)
        local = targets - rows.start
        self.is_here = (local >= 0) & (local < self.width)
        self.target = local.clamp_(0, self.width - 1).unsqueeze(1)  # any word where the target is another chunk's
        self.target_share = self.is_here.to(cut.softmax_type).mul_(1 - label_smoothing).unsqueeze(1)
        self.weight_gradient: Tensor | None = None
        self.bias_gradient: Tensor | None = None

    def collect(self, weight: Tensor | None, bias: Tensor | None) -> None:
        """Where the gradients of weight and bias over all pieces are to be (None: nowhere); the bias's holds zeros."""
        self.weight_gradient, self.bias_gradient = weight, bias

    def new_buffer(self) -> Tensor:
        """Room for the logits of any piece."""
        return self.hidden.new_empty(self.cut.longest, self.width)

    def multiply(self, piece: slice, buffer: Tensor) -> LogitsPiece:
        """The logits of a piece, without the bias, in `buffer`."""
        logits = torch.mm(self.hidden[piece], self.weight.t(), out=buffer[: piece.stop - piece.start])
        return LogitsPiece(self, piece, logits)


class LogitsPiece:
    """A chunk's logits of one piece of the tokens, which become exponentials, and these the logits' gradient.

    They stand in a buffer in the type of products. Where that rounds, exponentials are in tensors of their own.
    """

    def __init__(self, chunk: VocabularyChunk, piece: slice, logits: Tensor):
        self._chunk, self._piece, self._logits = chunk, piece, logits
        self._largest = logits.new_empty(len(logits), 1, dtype=chunk.cut.softmax_type)
        self._exponentials: dict[int, Tensor] = {}  # by the first token of the band

    def exponentials_(
        self, band: slice, statistics: Tensor, choices: Tensor | None = None, *, keep: bool = True
    ) -> None:
        """Take a band's exponentials, and its statistics into those of all chunks so far.

        `choices` [tokens] is made to hold the first word of the largest logit so far. Without `keep` no gradient
        follows.
        """
        chunk, local = self._chunk, self._of_band(band)
        block = self._logits[local].to(chunk.cut.softmax_type).add_(chunk.bias)
        before, so_far = statistics[LARGEST, band].unsqueeze(1), statistics[:, band]
        here = block.gather(1, chunk.target[band]).squeeze(1)
        so_far[TARGET].add_(torch.where(chunk.is_here[band], here, 0.0))
        if chunk.smoothing:
            so_far[TOTAL].add_(_row_sums(block))
        largest = torch.amax(block, dim=-1, keepdim=True, out=self._largest[local])
        if choices is not None:
            words = block.argmax(dim=-1).add_(chunk.rows.start)
            choices[band] = torch.where((largest > before).squeeze(1), words, choices[band])
        sums = _row_sums(block.sub_(largest).exp_())
        merged = torch.maximum(before, largest).squeeze(1)
        so_far[SUM].mul_((so_far[LARGEST] - merged).exp_()).add_(sums.mul_((largest.squeeze(1) - merged).exp_()))
        so_far[LARGEST] = merged
        if keep and chunk.cut.rounds:
            self._exponentials[band.start] = block

    def gradients_(self, band: slice, normaliser: Tensor) -> None:
        """Turn a band's exponentials into the gradient of its tokens' losses with respect to their logits.

        `normaliser` is `normaliser_of` the band's statistics over all chunks.
        """
        chunk, local = self._chunk, self._of_band(band)
        block = self._exponentials.pop(band.start) if chunk.cut.rounds else self._logits[local]
        largest, reciprocal = normaliser.unsqueeze(2)
        block.mul_((self._largest[local] - largest).exp_().mul_(reciprocal))
        if chunk.smoothing:
            block.sub_(chunk.smoothing / chunk.cut.vocabulary)
        target = chunk.target[band]
        block.scatter_(1, target, block.gather(1, target).sub_(chunk.target_share[band]))
        if chunk.bias_gradient is not None:
            chunk.bias_gradient.add_(block.sum(dim=0))
        if chunk.cut.rounds:
            self._logits[local] = block

    def multiply_back(self, hidden_gradient: Tensor | None) -> None:
        """Add what follows from the logits' gradient to those of the hidden states and of the chunk's weight."""
        chunk, piece = self._chunk, self._piece
        rounds, columns = chunk.cut.rounds, self._logits.t()
        if hidden_gradient is not None:
            _add_product(hidden_gradient[piece], self._logits, chunk.weight, rounds)
        if chunk.weight_gradient is None:
            return
        if piece.start:
            _add_product(chunk.weight_gradient, columns, chunk.hidden[piece], rounds)
        elif rounds:
            chunk.weight_gradient.copy_(torch.mm(columns, chunk.hidden[piece]))
        else:
            torch.mm(columns, chunk.hidden[piece], out=chunk.weight_gradient)

    def _of_band(self, band: slice) -> slice:
        return slice(band.start - self._piece.start, band.stop - self._piece.start)


def _add_product(into: Tensor, one: Tensor, other: Tensor, rounds: bool) -> None:
    if rounds:
        into.add_(torch.mm(one, other))
    else:
        into.addmm_(one, other)


def _row_sums(block: Tensor) -> Tensor:
    # A long row alone would be cut among threads; two rows are not.
    return block.sum(dim=-1) if len(block) > 1 else block.expand(2, -1).sum(dim=-1)[:1]
