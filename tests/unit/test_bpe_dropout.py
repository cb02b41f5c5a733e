"""BPE-dropout: ordinary segmentation without it, Provilkov's algorithm with it, and one result whoever asks."""

from __future__ import annotations

import gzip
import itertools
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from nmt.config import compose
from nmt.config.schema import RunConfig, TokenizerConfig
from nmt.data.batching import Sampler
from nmt.data.bpe_dropout import Draws, DroppedBatches, MergeSegmenter, dropping_encoder
from nmt.data.prepare import preparation_key, prepare
from nmt.data.ragged import RaggedText, RaggedWriter
from nmt.data.tokenizer import Tokenizer, train_tokenizer
from nmt.data.vocabulary import UNK
from nmt.errors import UserError
from nmt.training.workload import TranslationWorkload

LINES = [
    "the lower the newer the widest",
    "lower and wider and newer than the lowest",
    "a banana and a bandana  and the widest band",
    "new bananas are lower than aaaa aaaaa",
]
NEVER = Draws("", 0.0)


def trained(name: str, lines: list[str], **options: int | float) -> Tokenizer:
    config = TokenizerConfig(name=name, **{"vocab_size": 60, "merges": 30, **options})  # type: ignore[arg-type]
    return train_tokenizer(config, lambda: lines)[0]


KINDS = pytest.mark.parametrize("name", ["bpe_merges", "sentencepiece_bpe"])


@KINDS
def test_without_dropout_it_is_the_library(name: str) -> None:
    tokenizer = trained(name, LINES)
    encode = dropping_encoder(tokenizer)
    unknown = ["zebra lowest ß", "", " ", "ßß the ß newest"]
    for line in [*LINES, *unknown]:
        assert encode(line, NEVER) == tokenizer.encode(line), line


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("bpe_merges", 300),
        ("sentencepiece_bpe", 1000),
        pytest.param("bpe_merges", 29000, marks=pytest.mark.exhaustive),
        pytest.param("sentencepiece_bpe", 29000, marks=pytest.mark.exhaustive),
    ],
)
def test_without_dropout_it_is_the_library_on_real_text(multi30k: Path, name: str, limit: int) -> None:
    lines: list[str] = []
    for side in ("en", "de"):
        with gzip.open(multi30k / f"train.{side}.gz", "rt", encoding="utf-8") as file:
            lines += [line.strip() for line in itertools.islice(file, limit)]
    tokenizer = trained(name, lines, vocab_size=2000, merges=min(1500, limit))
    encode = dropping_encoder(tokenizer)
    assert [encode(line, NEVER) for line in lines] == [tokenizer.encode(line) for line in lines]


def slow_reference(word: str, ranks: dict[tuple[str, str], int], p: float, dropped: Draws) -> list[str]:
    """Provilkov et al. 2020, algorithm 1: every possible merge is tried in each round, in no particular order."""
    split = list(word)
    while True:
        possible = [
            (ranks[pair], place)
            for place, pair in enumerate(itertools.pairwise(split))
            if pair in ranks and not dropped.draw()
        ]
        if not possible:
            return split
        best = min(possible)[0]
        place = 0
        while place < len(split) - 1:
            if (best, place) in possible and ranks.get((split[place], split[place + 1])) == best:
                split[place : place + 2] = [split[place] + split[place + 1]]
                possible = [(rank, other - 1) for rank, other in possible if other != place + 1]
            place += 1


def test_segmentations_have_the_frequencies_of_the_published_algorithm() -> None:
    """The lazy draws are made in another order, so the two are compared as distributions."""
    ranks = {("a", "b"): 0, ("c", "d"): 1, ("ab", "cd"): 2, ("b", "c"): 3, ("a", "a"): 4}
    segment, p, count = MergeSegmenter(list, lambda a, b: ranks.get((a, b))), 0.4, 6000
    for word in ("abcd", "aabcab"):
        fast = Counter(" ".join(segment(word, Draws(f"fast/{i}", p))) for i in range(count))
        slow = Counter(" ".join(slow_reference(word, ranks, p, Draws(f"slow/{i}", p))) for i in range(count))
        assert fast.keys() == slow.keys()
        for found, times in slow.items():
            spread = (times * (1 - times / count)) ** 0.5
            assert abs(fast[found] - times) < 6 * spread + 6, (found, fast[found], times)


def test_draws_have_their_probability_and_their_address() -> None:
    draws = Draws("one", 0.1)
    found = [draws.draw() for _ in range(20000)]
    assert sum(found) == pytest.approx(2000, abs=6 * 42)
    again = Draws("one", 0.1)
    assert [again.draw() for _ in range(20000)] == found
    assert [draws.draw() for draws in [Draws("two", 0.1)] for _ in range(100)] != found[:100]
    skipping = Draws("one", 0.1)
    first = found.index(True)
    assert skipping.none_of(first)
    assert not skipping.none_of(1)
    assert skipping.draw()
    assert not any(Draws("one", 0.0).draw() for _ in range(1000))


def test_everything_left_out_leaves_characters() -> None:
    tokenizer = trained("bpe_merges", LINES, dropout=0.1)
    rows = dropping_encoder(tokenizer)("lower band", Draws("x", 1 - 2**-31))
    assert [tokenizer.token(row) for row in rows] == ["l@@", "o@@", "w@@", "e@@", "r", "b@@", "a@@", "n@@", "d"]


@KINDS
def test_no_piece_of_training_text_is_unknown_and_all_read_as_the_text(name: str) -> None:
    tokenizer = trained(name, LINES, dropout=0.1, **({"vocab_size": 120} if name == "bpe_merges" else {}))
    encode, seen = dropping_encoder(tokenizer), set()
    for line, number in itertools.product(LINES, range(200)):
        rows = encode(line, Draws(f"{number}", 0.3))
        seen.add(tuple(rows))
        assert UNK not in rows
        assert tokenizer.decode(rows) == " ".join(line.split())
    assert len(seen) > 400


def test_the_vocabulary_of_merges_only_grows_at_its_end() -> None:
    plain, dropping = (
        trained("bpe_merges", LINES, vocab_size=200),
        trained("bpe_merges", LINES, vocab_size=200, dropout=0.1),
    )
    used = [plain.token(row) for row in range(200) if "unused" not in plain.token(row)]
    assert [dropping.token(row) for row in range(len(used))] == used
    assert dropping.encode(LINES[0]) == plain.encode(LINES[0])


def test_text_survives_packing(tmp_path: Path) -> None:
    lines = ["", "ein Bär", "🐻 und\u2028mehr", "\udc80"]
    for name, some in (("x", lines), ("y", [])):
        with RaggedWriter(tmp_path / name) as writer:
            for line in some:
                writer.add(RaggedText.code_points(line))
        assert list(RaggedText.load(tmp_path / name)) == some
    assert RaggedText.load(tmp_path / "x")[1:3] == lines[1:3]


WORDS = [
    "data=toy_translation",
    "scale=smoke",
    "tokenizer=spm_bpe_4k",
    "tokenizer.vocab_size=120",
    "data.max_sentences=200",
    "batch.micro_batches=4",
]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    return compose([*WORDS, "tokenizer.dropout=0.2", f"paths.cache={tmp_path_factory.mktemp('cache')}"])


def test_a_step_is_the_same_for_every_process_and_counts_what_it_trains_on(config: RunConfig) -> None:
    workload = TranslationWorkload(config, "cpu")
    plain = TranslationWorkload(replace(config, tokenizer=replace(config.tokenizer, dropout=0.0)), "cpu")
    longer = 0
    for step in (1, 2, workload.sampler.steps_per_epoch + 1):
        tokens = workload.slot_tokens(step)
        for slot in range(4):
            found = workload.slot(step, slot)
            alone = TranslationWorkload(config, "cpu").slot(step, slot)  # asked for nothing else before
            assert found.batch.source.tolist() == alone.batch.source.tolist()
            assert found.batch.target_output.tolist() == alone.batch.target_output.tolist()
            assert found.target_tokens == tokens[slot]
        longer += sum(tokens) - sum(plain.slot_tokens(step))
    assert longer > 0


def test_epochs_segment_anew_and_sentences_stay_what_they_are(config: RunConfig) -> None:
    prepared = prepare(config)
    train = prepared.train
    sampler = Sampler(train.source_lengths, train.target_lengths, config.batch, config.seed)
    batches = DroppedBatches(config, prepared, sampler)
    by_epoch: list[dict[int, tuple[int, ...]]] = [{}, {}]
    for step in range(1, 2 * sampler.steps_per_epoch + 1):
        for slot, numbers in enumerate(sampler.slots(step)):
            sentences = batches.slot(step, slot)
            for number, rows in zip(numbers.tolist(), sentences.source, strict=True):
                by_epoch[sampler.epoch(step)][number] = tuple(rows.tolist())
                assert prepared.source_tokenizer.decode(rows.tolist()) == train.source_text[number]
    common = by_epoch[0].keys() & by_epoch[1].keys()
    changed = sum(by_epoch[0][number] != by_epoch[1][number] for number in common)
    assert changed > len(common) / 2


def test_validation_text_and_prepared_rows_drop_nothing(config: RunConfig) -> None:
    plain = replace(config, tokenizer=replace(config.tokenizer, dropout=0.0))
    dropped, ordinary = prepare(config), prepare(plain)
    assert dropped.fingerprint == ordinary.fingerprint
    assert ordinary.train.source_text == []
    assert len(dropped.train.source_text) == len(dropped.train)
    other = replace(config, tokenizer=replace(config.tokenizer, dropout=0.3))
    assert preparation_key(other) == preparation_key(config) != preparation_key(plain)


def test_only_merges_can_be_left_out() -> None:
    with pytest.raises(UserError) as error:
        compose(["tokenizer=whitespace", "tokenizer.dropout=0.1"])
    assert error.value.where == "tokenizer.dropout"
