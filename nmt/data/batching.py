"""Which sentences a step sees, as a pure function of (seed, step), and the tensors made of them.

Each epoch is a seeded permutation of the corpus. The permutation is cut into pools of `batch.pool` batches' worth of
sentences, each pool is sorted by length so that the sentences of a batch need little padding, batches are cut from it,
and the order of all batches of the epoch is shuffled. There is no state: any step can be asked for at any time.

What is kept for a sentence is its two lengths and, in each epoch at hand, its number, in the smallest integers that
hold them. Only the caches that random reads miss make the batches of a larger corpus slower.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from nmt.config.schema import BatchConfig
from nmt.data.ragged import Ragged
from nmt.data.vocabulary import EOS, SOS
from nmt.errors import UserError

if TYPE_CHECKING:
    import torch

    from nmt.data.prepare import EncodedText

_EPOCHS_KEPT = 2  # the present one and its neighbour
_SORTED_AT_ONCE = 2**16  # sentences: as many pools as stay in a processor's cache


class Sampler:
    """Steps to sentence numbers.

    With `batch.unit: sentences` every batch has `batch.size` sentences; what is left of an epoch's permutation (fewer
    than a batch, others each epoch) sits that epoch out. A corpus smaller than a batch is one batch. With `tokens` a
    batch is as many neighbours of a sorted pool as fit `batch.size` target positions, padding and EOS included; a
    longer sentence is a batch of its own. Every sentence is then seen once an epoch, and epochs differ in their number
    of batches.
    """

    def __init__(
        self, source_lengths: Sequence[int] | np.ndarray, target_lengths: Sequence[int] | np.ndarray,
        batch: BatchConfig, seed: int,
    ):  # fmt: skip
        """Lengths in tokens without EOS, one for each training sentence.

        Raises UserError where the corpus cannot fill the slots of a step.
        """
        self._source_lengths, self._target_lengths = _smallest(source_lengths), _smallest(target_lengths)
        if len(self._source_lengths) != len(self._target_lengths):
            raise ValueError(f"{len(self._source_lengths)} source and {len(self._target_lengths)} target sentences")
        self._batch, self._seed = batch, seed
        self._by_tokens = batch.unit == "tokens"
        sentences = len(self._target_lengths)
        least = 1 if self._by_tokens else batch.micro_batches
        if sentences < least:
            raise UserError(
                f"{sentences} training sentences cannot fill {least} micro-batches",
                where="batch.micro_batches",
                hint="lower it, or bring more text",
            )
        self._epochs: OrderedDict[int, _Epoch] = OrderedDict()
        self._last_steps: list[int] = []  # with tokens: the last step of each epoch, as far as counted

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch; with `batch.unit: tokens` those of the first, the others being near it."""
        return self._epoch(0).batches if self._by_tokens else self._fixed_batches

    def slots(self, step: int) -> list[np.ndarray]:
        """The sentence numbers of each micro-batch slot of `step` (counted from 1), shortest sentences first.

        `batch.micro_batches` arrays whose sizes differ by one at most; empty ones occur only with `batch.unit: tokens`.
        """
        numbers = self._numbers(step)
        slots = self._batch.micro_batches
        return [numbers[len(numbers) * i // slots : len(numbers) * (i + 1) // slots] for i in range(slots)]

    def slot_tokens(self, step: int) -> list[int]:
        """Target tokens, each sentence's EOS included, of each slot of `step`."""
        return [int(self._target_lengths[numbers].sum()) + len(numbers) for numbers in self.slots(step)]

    def epoch(self, step: int) -> int:
        """The epoch that `step` (counted from 1) falls in, counted from 0."""
        return self._locate(step)[0]

    @property
    def _fixed_batches(self) -> int:
        return max(1, len(self._target_lengths) // self._batch.size)

    def _numbers(self, step: int) -> np.ndarray:
        number, index = self._locate(step)
        return self._epoch(number).batch(index)

    def _locate(self, step: int) -> tuple[int, int]:
        """The epoch of `step`, and its place among the epoch's steps; both count from 0."""
        if step < 1:
            raise ValueError(f"steps count from 1, not {step}")
        if not self._by_tokens:
            return divmod(step - 1, self._fixed_batches)
        while not self._last_steps or self._last_steps[-1] < step:
            number = len(self._last_steps)
            before = self._last_steps[-1] if number else 0
            self._last_steps.append(before + self._epoch(number).batches)
        number = int(np.searchsorted(self._last_steps, step))
        return number, step - 1 - (self._last_steps[number - 1] if number else 0)

    def _epoch(self, number: int) -> _Epoch:
        if number not in self._epochs:
            self._epochs[number] = self._make_epoch(number)
            if len(self._epochs) > _EPOCHS_KEPT:
                self._epochs.popitem(last=False)
        self._epochs.move_to_end(number)
        return self._epochs[number]

    def _make_epoch(self, number: int) -> _Epoch:
        target, size = self._target_lengths, self._batch.size
        order = _permutation(len(target), self._seed, "sentences", number)
        if self._by_tokens:
            mean_length = float(target.mean()) + 1.0
            pool = max(1, int(self._batch.pool * size / mean_length))
        else:
            order = order[: self._fixed_batches * size]
            pool = self._batch.pool * size
        _sort_pools(order, pool, (target, self._source_lengths))
        if self._by_tokens:
            starts = _cut_by_tokens(target[order], pool, size)
        else:
            starts = np.arange(self._fixed_batches, dtype=order.dtype) * size
        ends = np.append(starts[1:], starts.dtype.type(len(order)))
        shuffled = _permutation(len(starts), self._seed, "batches", number)
        return _Epoch(order, starts[shuffled], ends[shuffled])


class Batch(NamedTuple):
    """Sentences as tensors, int64. Padded positions hold EOS and never count: lengths tell them apart.

    source: [batch, source time], each sentence with its EOS.
    source_lengths: [batch], EOS counted.
    target_input: [batch, target time], SOS and the sentence.
    target_output: [batch, target time], the sentence and EOS.
    target_lengths: [batch], EOS counted.
    """

    source: torch.Tensor
    source_lengths: torch.Tensor
    target_input: torch.Tensor
    target_output: torch.Tensor
    target_lengths: torch.Tensor


def collate(encoded: EncodedText, numbers: Sequence[int] | np.ndarray, source_time: int = 1) -> Batch:
    """The sentences `numbers` of `encoded` as one batch, in that order. No sentences give tensors of zero rows.

    Each side is as long as its longest sentence; the source has `source_time` positions at least.
    """
    import torch

    source, source_lengths = _padded(encoded.source, numbers, source_time)
    target, target_lengths = _padded(encoded.target, numbers)
    target_input = np.empty_like(target)
    target_input[:, 0] = SOS
    target_input[:, 1:] = target[:, :-1]
    return Batch(*map(torch.from_numpy, (source, source_lengths, target_input, target, target_lengths)))


@dataclass(frozen=True)
class _Epoch:
    """Sentence numbers in batches: batch `i` is `order[starts[i]:ends[i]]`."""

    order: np.ndarray
    starts: np.ndarray
    ends: np.ndarray

    @property
    def batches(self) -> int:
        return len(self.starts)

    def batch(self, index: int) -> np.ndarray:
        return self.order[int(self.starts[index]) : int(self.ends[index])]


def _permutation(count: int, seed: int, *address: str | int) -> np.ndarray:
    """A permutation of `range(count)` that depends on nothing but the seed and a named address."""
    text = "/".join(map(str, ("order", seed, *address)))
    words = np.frombuffer(hashlib.blake2b(text.encode(), digest_size=32).digest(), dtype="<u4")
    # Raw words of a named bit generator: numpy keeps these streams, those of `Generator.permutation` it may change.
    raw = np.random.PCG64(np.random.SeedSequence(words.tolist())).random_raw(count)
    return _order_of(raw).astype(_number_type(count))


def _order_of(raw: np.ndarray) -> np.ndarray:
    """The stable order of `raw`, [count] uint64."""
    order = np.argsort(raw)  # a third of a stable sort's time; the two differ only where words are equal: hardly ever
    ascending = raw[order]
    if np.any(ascending[1:] == ascending[:-1]):
        return np.argsort(raw, kind="stable")
    return order


def _sort_pools(order: np.ndarray, pool: int, keys: Sequence[np.ndarray]) -> None:
    """Sort each `pool` neighbours of `order` in place by `keys`, the first counting most; equals stay as they are."""
    block = pool * max(1, _SORTED_AT_ONCE // pool)
    for start in range(0, len(order), block):
        part = order[start : start + block]
        whole = len(part) // pool * pool
        for pools in (part[:whole].reshape(-1, pool), part[whole:].reshape(1, -1)):
            for key in reversed(keys):  # of one or two bytes, as lengths mostly are: a radix sort
                pools[:] = np.take_along_axis(pools, np.argsort(key[pools], axis=1, kind="stable"), axis=1)


def _cut_by_tokens(lengths: np.ndarray, pool: int, size: int) -> np.ndarray:
    """Starts of batches of at most `size` padded positions, EOS included; no batch spans two pools.

    `lengths` are without EOS and ascend inside each pool.
    """
    starts = array("q")
    for pool_start in range(0, len(lengths), pool):
        known = lengths[pool_start : pool_start + pool].tolist()
        start = 0
        while start < len(known):
            starts.append(pool_start + start)
            # Padded positions grow with every sentence, so halving finds the last that fits.
            fits, too_many = start + 1, min(len(known), start + max(1, size // (known[start] + 1))) + 1
            while too_many - fits > 1:
                middle = (fits + too_many) // 2
                if (middle - start) * (known[middle - 1] + 1) <= size:
                    fits = middle
                else:
                    too_many = middle
            start = fits
    return np.array(starts, dtype=_number_type(len(lengths)))


def _padded(
    sentences: Sequence[np.ndarray], numbers: Sequence[int] | np.ndarray, time: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """[batch, `time` or more] with EOS behind each sentence and in the padding, and [batch] lengths with that EOS."""
    if not isinstance(sentences, Ragged):
        sentences = Ragged.joined([sentences[int(number)] for number in numbers])
        numbers = range(len(sentences))
    # All of a batch's reads are asked for in one go: a large corpus is in no cache, and so they wait together.
    index = np.asarray(numbers, dtype=np.int64)
    flat, offsets = np.asarray(sentences.flat), np.asarray(sentences.offsets)
    starts = offsets[:-1][index]
    lengths = offsets[1:][index] - starts
    times = np.arange(max(time, 1 + int(lengths.max(initial=0))))
    rows = np.full((len(index), len(times)), EOS, dtype=np.int64)
    if len(flat):
        tokens = flat.take(starts[:, None] + times, mode="clip")  # in padding whatever comes next
        np.copyto(rows, tokens, where=times < lengths[:, None])
    return rows, lengths + 1


def _smallest(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    """`lengths` in the smallest unsigned integers that hold them."""
    lengths = np.asarray(lengths, dtype=np.int64)
    return lengths.astype(np.min_scalar_type(lengths.max(initial=0)))


def _number_type(count: int) -> type[np.signedinteger[Any]]:
    """int32 where it numbers `count` things."""
    return np.int32 if count < 2**31 else np.int64
