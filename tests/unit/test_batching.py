"""The sampler is a pure function of (seed, step); batches are what the model reads."""

from __future__ import annotations

import itertools
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nmt.config.schema import BatchConfig
from nmt.data import batching
from nmt.data import ragged as ragged_module
from nmt.data.batching import Sampler, collate
from nmt.data.prepare import EncodedText
from nmt.data.ragged import Ragged, RaggedWriter, stored
from nmt.data.vocabulary import EOS, SOS
from nmt.errors import UserError

lengths = st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), min_size=1, max_size=150)


def sampler_of(pairs: list[tuple[int, int]], seed: int = 1, **batch: object) -> Sampler:
    source, target = zip(*pairs, strict=True)
    return Sampler(source, target, BatchConfig(**batch), seed)  # type: ignore[arg-type]


def epoch_of(sampler: Sampler, first: int, steps: int) -> list[np.ndarray]:
    return [np.concatenate(sampler.slots(step)) for step in range(first, first + steps)]


@given(lengths, st.integers(1, 40), st.integers(1, 5), st.integers(0, 3), st.integers(0, 2))
@settings(deadline=None, max_examples=60)
def test_by_sentences_an_epoch_is_full_batches_of_different_sentences(
    pairs: list[tuple[int, int]], size: int, pool: int, seed: int, epoch: int
) -> None:
    sampler = sampler_of(pairs, seed, size=size, pool=pool)
    steps = max(1, len(pairs) // size)
    assert sampler.steps_per_epoch == steps
    batches = epoch_of(sampler, 1 + epoch * steps, steps)
    assert {len(batch) for batch in batches} == {min(size, len(pairs))}
    seen = np.concatenate(batches)
    assert len(np.unique(seen)) == len(seen) == min(len(pairs), steps * size)
    assert seen.min() >= 0 and seen.max() < len(pairs)


@given(lengths, st.integers(1, 120), st.integers(1, 5), st.integers(0, 3))
@settings(deadline=None, max_examples=60)
def test_by_tokens_every_sentence_is_seen_once_an_epoch_and_no_batch_is_too_large(
    pairs: list[tuple[int, int]], size: int, pool: int, seed: int
) -> None:
    sampler = sampler_of(pairs, seed, size=size, pool=pool, unit="tokens")
    target = np.array([t for _, t in pairs]) + 1
    step = 1
    for _ in range(3):  # epochs have numbers of batches of their own
        seen: list[int] = []
        while len(seen) < len(pairs):
            batch = np.concatenate(sampler.slots(step))
            assert len(batch) == 1 or len(batch) * target[batch].max() <= size
            seen += batch.tolist()
            step += 1
        assert sorted(seen) == list(range(len(pairs)))


@given(lengths, st.integers(1, 40), st.sampled_from(["sentences", "tokens"]))
@settings(deadline=None, max_examples=40)
def test_epochs_count_up_and_no_sentence_is_seen_twice_in_one(
    pairs: list[tuple[int, int]], size: int, unit: str
) -> None:
    sampler = sampler_of(pairs, size=size, unit=unit)
    epochs = [sampler.epoch(step) for step in range(1, 40)]
    assert epochs[0] == 0
    assert all(later - earlier in (0, 1) for earlier, later in itertools.pairwise(epochs))
    seen: set[tuple[int, int]] = set()
    for step, epoch in enumerate(epochs, 1):
        numbers = {(epoch, int(n)) for slot in sampler.slots(step) for n in slot}
        assert not seen & numbers
        seen |= numbers


def test_by_tokens_a_batch_is_as_large_as_it_can_be() -> None:
    """Brute force: the greedy cut of one sorted pool, sentence by sentence."""
    rng = np.random.default_rng(3)
    pairs = [(int(s), int(t)) for s, t in rng.integers(1, 40, (300, 2))]
    sampler = sampler_of(pairs, size=200, pool=10_000, unit="tokens")
    ordered = sorted(t + 1 for _, t in pairs)
    expected, batch = [], []
    for length in ordered:
        if batch and (len(batch) + 1) * length > 200:
            expected.append(batch)
            batch = []
        batch.append(length)
    expected.append(batch)
    found = [[pairs[i][1] + 1 for i in numbers] for numbers in epoch_of(sampler, 1, sampler.steps_per_epoch)]
    assert sorted(found) == sorted(expected)


@given(lengths, st.integers(1, 40), st.sampled_from(["sentences", "tokens"]), st.permutations(range(1, 30)))
@settings(deadline=None, max_examples=40)
def test_the_answer_does_not_depend_on_what_was_asked_before(
    pairs: list[tuple[int, int]], size: int, unit: str, order: list[int]
) -> None:
    asked = sampler_of(pairs, 5, size=size, unit=unit, pool=3)
    answers = {step: asked.slots(step) for step in order}
    for step in order[:6]:
        fresh = sampler_of(pairs, 5, size=size, unit=unit, pool=3).slots(step)
        assert [slot.tolist() for slot in fresh] == [slot.tolist() for slot in answers[step]]


def test_the_order_is_pinned() -> None:
    """These numbers may change only together with NUMERICS_VERSION: every trained run depends on them."""
    pairs = [(i % 7 + 1, i % 5 + 1) for i in range(20)]
    slots = [slot.tolist() for slot in sampler_of(pairs, seed=1, size=6, pool=2, micro_batches=2).slots(1)]
    assert slots == [[5, 1, 6], [17, 18, 14]]


def test_seeds_and_epochs_differ() -> None:
    pairs = [(5, 5)] * 200
    one, other = sampler_of(pairs, 1, size=20), sampler_of(pairs, 2, size=20)
    assert one.slots(1)[0].tolist() != other.slots(1)[0].tolist()
    first, second = (np.concatenate(epoch_of(one, start, 10)).tolist() for start in (1, 11))
    assert sorted(first) == sorted(second) and first != second


def test_the_remainder_differs_from_epoch_to_epoch() -> None:
    sampler = sampler_of([(5, 5)] * 25, size=10)
    left_out = [set(range(25)) - set(np.concatenate(epoch_of(sampler, 1 + 2 * e, 2)).tolist()) for e in range(20)]
    assert all(len(left) == 5 for left in left_out)
    assert set.union(*left_out) == set(range(25))


@given(lengths, st.integers(1, 6), st.integers(0, 20), st.sampled_from(["sentences", "tokens"]))
@settings(deadline=None, max_examples=60)
def test_slots_are_near_equal_shares_of_a_length_sorted_batch(
    pairs: list[tuple[int, int]], micro_batches: int, more: int, unit: str
) -> None:
    if unit == "sentences" and len(pairs) < micro_batches:
        return
    sampler = sampler_of(pairs, size=micro_batches + more, micro_batches=micro_batches, unit=unit)
    for step in (1, 2, 7):
        slots = sampler.slots(step)
        sizes = [len(slot) for slot in slots]
        assert len(slots) == micro_batches and max(sizes) - min(sizes) <= 1
        assert unit == "tokens" or min(sizes) >= 1
        keys = [(pairs[i][1], pairs[i][0]) for slot in slots for i in slot]
        assert keys == sorted(keys)
        assert sampler.slot_tokens(step) == [sum(pairs[i][1] + 1 for i in slot) for slot in slots]


def test_buckets_save_padding() -> None:
    rng = np.random.default_rng(0)
    pairs = [(int(n), int(n)) for n in rng.integers(3, 40, 5000)]
    target = np.array([t for _, t in pairs])

    def padded_share(pool: int) -> float:
        batches = epoch_of(sampler_of(pairs, size=50, pool=pool), 1, 100)
        positions = sum(len(batch) * target[batch].max() for batch in batches)
        return 1 - sum(target[batch].sum() for batch in batches) / positions

    assert padded_share(100) < 0.02 < 0.3 < padded_share(1)


def test_too_few_sentences_for_the_slots() -> None:
    with pytest.raises(UserError, match=r"batch\.micro_batches: 3 training sentences cannot fill 4 micro-batches"):
        sampler_of([(1, 1)] * 3, size=8, micro_batches=4)
    with pytest.raises(ValueError, match="count from 1"):
        sampler_of([(1, 1)] * 3, size=2).slots(0)


@pytest.mark.parametrize(("unit", "size"), [("sentences", 128), ("tokens", 2000)])
def test_a_step_is_cheap(unit: str, size: int) -> None:
    """Amortised over five epochs of Multi30k's size, construction included: below 0.2 ms (measured 0.03 to 0.06)."""
    target = np.random.default_rng(0).integers(3, 40, 29_000)
    started = time.process_time()
    sampler = Sampler(target, target, BatchConfig(size=size, unit=unit), 1)
    steps = 5 * sampler.steps_per_epoch
    for step in range(1, steps + 1):
        sampler.slots(step)
    assert (time.process_time() - started) / steps < 0.0002


@given(st.lists(st.integers(0, 20), max_size=60))
@settings(deadline=None)
def test_equal_words_keep_their_order(words: list[int]) -> None:
    """Of 64 random bits none are ever equal; should they be, the order is still the one and only stable one."""
    order = batching._order_of(np.array(words, dtype=np.uint64))
    assert order.tolist() == sorted(range(len(words)), key=words.__getitem__)


@given(lengths, st.integers(1, 9), st.integers(1, 40))
@settings(deadline=None, max_examples=60)
def test_pools_are_sorted_apart_from_each_other(pairs: list[tuple[int, int]], pool: int, block: int) -> None:
    """Brute force, with blocks of pools small enough for several of them, and lengths of one, two and four bytes."""
    for scale in (1, 100, 10_000):
        source, target = (np.array(side) * scale for side in zip(*pairs, strict=True))
        order = np.random.default_rng(block).permutation(len(pairs)).astype(np.int32)
        expected: list[int] = []
        for start in range(0, len(pairs), pool):
            expected += sorted(order[start : start + pool].tolist(), key=lambda n: (target[n], source[n]))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(batching, "_SORTED_AT_ONCE", block)
            batching._sort_pools(order, pool, (batching._smallest(target), batching._smallest(source)))
        assert order.tolist() == expected


def test_lengths_beyond_a_byte_are_counted_whole() -> None:
    """255 tokens and EOS are 256: small integers must not wrap where lengths are added up."""
    sampler = sampler_of([(255, 255)] * 6, size=512, unit="tokens")
    assert [len(sampler.slots(step)[0]) for step in (1, 2, 3)] == [2, 2, 2]
    assert sampler.slot_tokens(1) == [512]


def traced(make: Callable[[], object]) -> tuple[int, int]:
    """Bytes that what `make` returns keeps, and the most that were held on the way."""
    tracemalloc.start()
    try:
        kept = make()
        found = tracemalloc.get_traced_memory()
        del kept
        return found
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("unit", ["sentences", "tokens"])
def test_a_sampler_keeps_its_index_and_nothing_else(unit: str) -> None:
    """A byte for each length, four for the number in each of two epochs, and a batch's two ends.

    On the way: the random words, their order and the words in order, 8 bytes each, and the epochs.
    """

    def two_epochs(sentences: int) -> Callable[[], Sampler]:
        text = np.random.default_rng(0).integers(3, 40, (2, sentences))

        def make() -> Sampler:
            sampler = Sampler(*text.copy(), BatchConfig(size=400 if unit == "tokens" else 16, unit=unit), seed=1)
            for epoch in range(2):
                sampler.slots(1 + epoch * sampler.steps_per_epoch + epoch)
            return sampler

        return make

    two_epochs(100)()  # what is made once
    fewer, more = 10_000, 40_000
    (kept, most), (kept_of_more, most_of_more) = (traced(two_epochs(sentences)) for sentences in (fewer, more))
    assert (kept_of_more - kept) / (more - fewer) < 2 * 1 + 2 * (4 + 2 * 4 / 16) + 0.5
    assert (most_of_more - most) / (more - fewer) < 3 * 8 + 12


@pytest.fixture
def encoded() -> EncodedText:
    source, target = [[5, 6, 7], [8], []], [[9, 10], [11, 12, 13], [14]]
    return EncodedText(Ragged.of(source), Ragged.of(target))


def test_collate(encoded: EncodedText) -> None:
    batch = collate(encoded, [1, 0, 2])
    assert batch.source.tolist() == [[8, EOS, EOS, EOS], [5, 6, 7, EOS], [EOS] * 4]
    assert batch.source_lengths.tolist() == [2, 4, 1]
    assert batch.target_input.tolist() == [[SOS, 11, 12, 13], [SOS, 9, 10, EOS], [SOS, 14, EOS, EOS]]
    assert batch.target_output.tolist() == [[11, 12, 13, EOS], [9, 10, EOS, EOS], [14, EOS, EOS, EOS]]
    assert batch.target_lengths.tolist() == [4, 3, 2]
    assert {tensor.dtype for tensor in batch} == {torch.int64}


def test_collate_of_an_empty_slot(encoded: EncodedText) -> None:
    batch = collate(encoded, np.array([], dtype=np.int64))
    assert [len(tensor) for tensor in batch] == [0] * 5
    assert int(batch.target_lengths.sum()) == 0


def test_collate_takes_plain_lists_too() -> None:
    arrays = [np.array([5, 6], dtype=np.int32), np.array([7], dtype=np.int32)]
    plain = EncodedText(arrays, arrays)
    packed = EncodedText(Ragged.of(arrays), Ragged.of(arrays))
    assert all(torch.equal(a, b) for a, b in zip(collate(plain, [0, 1]), collate(packed, [0, 1]), strict=True))
    assert plain.target_lengths.tolist() == packed.target_lengths.tolist() == [2, 1]


@given(st.lists(st.lists(st.integers(3, 1000), max_size=6), min_size=1, max_size=10), st.data())
@settings(deadline=None)
def test_collate_sentence_by_sentence(sentences: list[list[int]], data: st.DataObject) -> None:
    """Brute force, with sentences that stand more than once in a batch, in any order."""
    text = EncodedText(Ragged.of(sentences), Ragged.of(sentences[::-1]))
    numbers = data.draw(st.lists(st.integers(0, len(sentences) - 1), max_size=8))
    time = data.draw(st.integers(1, 9))
    batch = collate(text, np.array(numbers, dtype=np.int32), time)
    for rows, found in ((sentences, batch.source), (sentences[::-1], batch.target_output)):
        ended = [[*rows[number], EOS] for number in numbers]
        width = max([time if found is batch.source else 1, *map(len, ended)])
        assert found.tolist() == [row + [EOS] * (width - len(row)) for row in ended]
        assert found.shape == (len(numbers), width)


def test_collate_refuses_a_sentence_that_is_not_there(encoded: EncodedText) -> None:
    with pytest.raises(IndexError):
        collate(encoded, [3])


def instructions(work: Callable[[], object]) -> int:
    """Bytecodes that the interpreter goes through in `work`."""
    count = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        frame.f_trace_opcodes = True
        count += event == "opcode"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


def test_assembling_a_batch_takes_no_python_for_a_token_or_a_sentence() -> None:
    """The interpreter does the same for 4 sentences of 3 tokens as for 256 of 60, unless the text is a list."""

    def text(sentences: int, tokens: int, *, packed: bool) -> EncodedText:
        arrays = [np.full(tokens, 7, dtype=np.int32)] * sentences
        return EncodedText(Ragged.of(arrays), Ragged.of(arrays)) if packed else EncodedText(arrays, arrays)

    def work(sentences: int, tokens: int, *, packed: bool = True) -> int:
        given = text(sentences, tokens, packed=packed)
        collate(given, range(sentences))  # what is imported and made once
        return instructions(lambda: collate(given, range(sentences)))

    assert work(4, 3) == work(4, 60) == work(256, 60) > 0
    assert work(4, 3, packed=False) == work(4, 60, packed=False)


@given(st.lists(st.lists(st.integers(0, 1000), max_size=6), max_size=10))
@settings(deadline=None)
def test_ragged_is_the_list_of_its_sentences(sentences: list[list[int]]) -> None:
    ragged = Ragged.of(sentences)
    assert len(ragged) == len(sentences)
    assert [sentence.tolist() for sentence in ragged] == sentences
    assert [ragged[i].tolist() for i in range(len(ragged))] == sentences
    assert [sentence.tolist() for sentence in ragged[1:3]] == sentences[1:3]
    assert ragged.lengths.tolist() == [len(sentence) for sentence in sentences]
    with pytest.raises(IndexError):
        ragged[len(sentences)]
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(ragged_module, "_BLOCK", 4)  # so that a file is written in several pieces
        whole, streamed = Path(folder, "whole"), Path(folder, "streamed")
        ragged.save(whole)
        with RaggedWriter(streamed) as writer:
            for sentence in sentences:
                writer.add(sentence)
        for part in ("tokens", "offsets"):
            content = Path(f"{whole}.{part}.npy").read_bytes()
            assert Path(f"{streamed}.{part}.npy").read_bytes() == content
            with stored(streamed, part) as (size, file):  # type: ignore[arg-type]
                assert content.endswith(numbers := file.read()) and len(numbers) == size
        assert [sentence.tolist() for sentence in Ragged.load(streamed)] == sentences
    joined = Ragged.joined([np.array(sentence, dtype=np.int32) for sentence in sentences])
    assert joined.flat.tolist() == ragged.flat.tolist() and joined.offsets.tolist() == ragged.offsets.tolist()
    assert (joined.flat.dtype, joined.offsets.dtype) == (ragged.flat.dtype, ragged.offsets.dtype)
