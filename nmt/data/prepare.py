"""Prepared data: cleaned, segmented, encoded, and cached by a hash of everything that it depends on.

A prepared set is a directory `<cache>/<hash>/` that appears whole, by one rename, or not at all: whatever a killed
preparation leaves is named otherwise and removed by the next one. Several processes may ask at once: one prepares
behind a file lock, the others wait and load. (The one place beside `nmt.runs` that renames and locks: no run is
concerned.)

Training text goes through in a stream, so memory does not grow with the corpus but by what a tokenizer learns from.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from nmt.config.identity import canonical, digest, outside_components, text_identity
from nmt.config.schema import TRAIN, RunConfig
from nmt.data.cleaned import CleanedText
from nmt.data.cleaning import EMPTY, OVERLONG, REASONS, clean, reason_to_drop, truncate
from nmt.data.corpus import ParallelText, RawCorpus, load_corpus
from nmt.data.ragged import Ragged, RaggedText, RaggedWriter, stored
from nmt.data.tokenizer import Tokenizer, load_tokenizer, read_tokenizer, train_tokenizer
from nmt.data.vocabulary import UNK
from nmt.errors import UserError

PREPARATION_VERSION = 3  # bump when the same text and keys give other prepared data
TOKENIZER_FILES = ("source.tokenizer.json", "target.tokenizer.json")
SPLITS = ("train", "validation", "test")
SIDES = ("source", "target")
_REPORT_EVERY = 2000  # records between calls of the progress function
_READ_AT_ONCE = 2**20  # bytes

Record = TypeVar("Record")
Progress = Callable[[str, int, int], None]
"""Called as progress(stage, done, total) while text is cleaned and encoded."""


@dataclass(frozen=True)
class EncodedText:
    """Parallel sentences as rows of the vocabularies, int32, without SOS and EOS.

    `source_text` and `target_text` are the lines as published, for metrics. For training text they are empty, but with
    BPE-dropout the cleaned lines that are segmented anew.
    """

    source: Sequence[np.ndarray]
    target: Sequence[np.ndarray]
    source_text: Sequence[str] = field(default_factory=list)
    target_text: Sequence[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.source)

    @property
    def source_lengths(self) -> np.ndarray:
        """Tokens of each source sentence without EOS, [sentences] int64."""
        return lengths_of(self.source)

    @property
    def target_lengths(self) -> np.ndarray:
        """Tokens of each target sentence without EOS, [sentences] int64."""
        return lengths_of(self.target)


@dataclass(frozen=True)
class PreparedData:
    """All that training and evaluation read of a corpus.

    fingerprint: sha256 over what training reads: encoded training and validation sentences, the validation split's
        references and the vocabularies.
    report: what was kept, dropped by reason and truncated, sizes of vocabularies, unknown tokens.
    directory: where it lies; holds `TOKENIZER_FILES`.
    """

    source_tokenizer: Tokenizer
    target_tokenizer: Tokenizer
    train: EncodedText
    validation: EncodedText
    test: EncodedText
    fingerprint: str
    report: dict[str, Any]
    directory: Path


def prepare(config: RunConfig, progress: Progress | None = None) -> PreparedData:
    """The prepared data of `config`, from the cache where it is there.

    Training text is cut to `data.max_sentences`, cleaned, rid of empty sides, segmented, then filtered (or truncated)
    by length and filtered by ratio. Validation and test sentences stay whole, all of them, in their order.

    Raises UserError for what is wrong with the corpus, for a vocabulary size that cannot be had, where nothing is left
    to train on, and where the cache cannot be written.
    """
    key = preparation_key(config)
    cache = cache_directory(config)
    directory = cache / key
    if (found := _load(directory)) is not None:
        return found
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _locked(cache / f"{key}.lock"):
            if (found := _load(directory)) is not None:  # another process was first
                return found
            for leftover in [directory, *cache.glob(f"{key}.*.tmp")]:
                shutil.rmtree(leftover, ignore_errors=True)  # of a killed preparation, or damaged
            temporary = cache / f"{key}.{os.getpid()}.tmp"
            temporary.mkdir()
            try:
                _write(config, temporary, progress or (lambda stage, done, total: None))
                temporary.replace(directory)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"prepared data cannot be written: {error.strerror or error}", where=str(cache), hint="set paths.cache=..."
        ) from error
    prepared = _load(directory)
    if prepared is None:
        raise UserError("prepared data was changed while it was written", where=str(directory))
    return prepared


def preparation_key(config: RunConfig) -> str:
    """The hash that names the prepared data of `config`; see `prepare`.

    BPE-dropout counts as such, not by its probability: it needs the training text itself, and of `bpe_merges` a
    vocabulary with every intermediate piece.
    """
    tokenizer = canonical(dataclasses.replace(config.tokenizer, dropout=0.0), {TRAIN})
    return digest(
        {
            "version": PREPARATION_VERSION,
            "text": text_identity(config.data, SPLITS),
            "data": canonical(config.data, {TRAIN}),
            "tokenizer": tokenizer | ({"bpe_dropout": True} if config.tokenizer.dropout else {}),
            **outside_components(config.data, "data."),
            **outside_components(config.tokenizer, "tokenizer."),
        }
    )


def cache_directory(config: RunConfig) -> Path:
    """Where prepared data is kept: `paths.cache`, else `<paths.runs>/.prepared`."""
    paths = config.paths
    return Path(paths.cache).expanduser() if paths.cache else Path(paths.runs).expanduser() / ".prepared"


def load_tokenizers(directory: Path) -> tuple[Tokenizer, Tokenizer]:
    """Source and target tokenizer from a directory that holds `TOKENIZER_FILES`; one object where they are joint."""
    source_file, target_file = (directory / name for name in TOKENIZER_FILES)
    source = load_tokenizer(source_file)
    if target_file.is_file() and source_file.read_bytes() == target_file.read_bytes():
        return source, source
    return source, load_tokenizer(target_file)


def lengths_of(sentences: Sequence[np.ndarray]) -> np.ndarray:
    """The number of tokens of each sentence, [sentences] int64."""
    if isinstance(sentences, Ragged):
        return sentences.lengths
    return np.array([len(sentence) for sentence in sentences], dtype=np.int64)


def _write(config: RunConfig, directory: Path, progress: Progress) -> None:
    data, corpus = config.data, load_corpus(config.data)
    languages = (data.source_language, data.target_language)
    report: dict[str, Any] = {}

    read = min(data.max_sentences or len(corpus.train), len(corpus.train))
    cleaned = CleanedText(directory)
    raw = _reported(islice(corpus.train, read), read, "cleaning training text", progress)
    pairs = ((clean(source, data, languages[0]), clean(target, data, languages[1])) for source, target in raw)
    cleaned.extend(pair for pair in pairs if reason_to_drop(*pair) != EMPTY)
    if not len(cleaned):
        raise _nothing_left(read, Counter({EMPTY: read}))
    tokenizers, report["tokenizer"] = _train_tokenizers(config, cleaned, progress)
    for name, tokenizer in zip(TOKENIZER_FILES, tokenizers, strict=True):
        tokenizer.save(directory / name)

    report["train"] = {"read": read, **_encode_training(config, directory, cleaned, tokenizers, progress)}
    report["train"]["dropped"][EMPTY] = read - len(cleaned)
    if not report["train"]["kept"]:
        raise _nothing_left(read, report["train"]["dropped"])
    cleaned.remove()
    for name in ("validation", "test"):
        text: ParallelText = getattr(corpus, name)
        encoded = (
            [tokenizer.encode(clean(line, data, language)) for tokenizer, language, line in zip(*columns, strict=True)]
            for columns in ((tokenizers, languages, pair) for pair in text)
        )
        report[name] = {"kept": len(text)} | _write_split(directory, name, encoded)
        _write_json(directory / f"{name}.text.json", {"source": text.source, "target": text.target})
    fingerprint = _fingerprint(tokenizers, directory, corpus)
    _write_json(
        directory / "prepared.json",
        {"fingerprint": fingerprint, "report": report, "training_text": bool(config.tokenizer.dropout)},
    )


def _train_tokenizers(
    config: RunConfig, cleaned: CleanedText, progress: Progress
) -> tuple[tuple[Tokenizer, Tokenizer], dict[str, Any]]:
    progress("learning the vocabulary", 0, 1)
    if config.tokenizer.joint:
        joint, report = _tokenizer(config, "source", lambda: chain(cleaned.side(0), cleaned.side(1)))
        tokenizers, reports = (joint, joint), {"joint": report}
    else:
        source, source_report = _tokenizer(config, "source", lambda: cleaned.side(0))
        target, target_report = _tokenizer(config, "target", lambda: cleaned.side(1))
        tokenizers, reports = (source, target), {"source": source_report, "target": target_report}
    progress("learning the vocabulary", 1, 1)
    return tokenizers, reports


def _tokenizer(
    config: RunConfig, side: str, texts: Callable[[], Iterator[str]]
) -> tuple[Tokenizer, dict[str, int | str]]:
    """Learned from `texts`, unless the vocabulary is given."""
    if getattr(config.tokenizer, f"{side}_vocabulary"):
        return read_tokenizer(config.tokenizer, f"{side}_vocabulary")
    return train_tokenizer(config.tokenizer, texts)


def _encode_training(
    config: RunConfig, directory: Path, cleaned: CleanedText, tokenizers: tuple[Tokenizer, Tokenizer],
    progress: Progress,
) -> dict[str, Any]:  # fmt: skip
    """Write the encoded sides, and with BPE-dropout the lines that were kept; a report."""
    data = config.data
    dropped: Counter[str] = Counter()
    kept = truncated = 0

    with ExitStack() as stack:
        names = [f"train.{side}.text" for side in SIDES if config.tokenizer.dropout]
        texts = [stack.enter_context(RaggedWriter(directory / name)) for name in names]

        def encoded() -> Iterator[tuple[list[int], list[int]]]:
            nonlocal kept, truncated
            for pair in _reported(cleaned, len(cleaned), "encoding training text", progress):
                source, target = (tokenizer.encode(line) for tokenizer, line in zip(tokenizers, pair, strict=True))
                if data.overlong == "truncate" and max(len(source), len(target)) > data.max_length:
                    truncated += 1
                    source, target = truncate(source, data.max_length), truncate(target, data.max_length)
                reason = reason_to_drop(source, target, max_length=data.max_length, max_ratio=data.max_ratio)
                if reason:
                    dropped[reason] += 1
                    continue
                kept += 1
                for text, line in zip(texts, pair, strict=False):  # no texts without BPE-dropout
                    text.add(RaggedText.code_points(line))
                yield source, target

        tokens = _write_split(directory, "train", encoded())
    drops = {reason: dropped[reason] for reason in REASONS}
    return {"kept": kept, "truncated": truncated, "dropped": drops, **tokens}


def _write_split(directory: Path, name: str, pairs: Iterable[Sequence[list[int]]]) -> dict[str, int]:
    """Write both sides of a split, pair by pair; their numbers of tokens, and of unknown ones."""
    unknown = [0, 0]
    with ExitStack() as stack:
        writers = [stack.enter_context(RaggedWriter(directory / f"{name}.{side}")) for side in SIDES]
        for pair in pairs:
            for place, sentence in enumerate(pair):
                writers[place].add(sentence)
                unknown[place] += sentence.count(UNK)
    counts: dict[str, int] = {}
    for side, writer, unknown_tokens in zip(SIDES, writers, unknown, strict=True):
        counts |= {f"{side}_tokens": writer.tokens, f"{side}_unknown": unknown_tokens}
    return counts


def _nothing_left(read: int, dropped: Counter[str] | dict[str, int]) -> UserError:
    reasons = ", ".join(f"{count} {reason}" for reason, count in dropped.items() if count)
    hint = f"raise data.max_length, now in the way of {dropped[OVERLONG]} pairs" if dropped[OVERLONG] else None
    return UserError(f"none of {read} training pairs is left after cleaning ({reasons})", where="data", hint=hint)


def _fingerprint(tokenizers: tuple[Tokenizer, Tokenizer], directory: Path, corpus: RawCorpus) -> str:
    total = hashlib.sha256()

    def add(name: str, content: bytes) -> None:
        total.update(f"{name} {len(content)}\n".encode())
        total.update(content)

    def add_stored(split: str, side: str, part: Literal["tokens", "offsets"]) -> None:
        with stored(directory / f"{split}.{side}", part) as (size, file):
            total.update(f"{split} {side} {part} {size}\n".encode())
            while block := file.read(_READ_AT_ONCE):
                total.update(block)

    for tokenizer in tokenizers:
        add("vocabulary", "\n".join(tokenizer.token(number) for number in range(tokenizer.size)).encode())
    for split in ("train", "validation"):  # what a training reads; its runs may be scored on any test text
        for side in SIDES:
            add_stored(split, side, "offsets")
            add_stored(split, side, "tokens")
    add("references", "\n".join(corpus.validation.target).encode())
    return total.hexdigest()


def _load(directory: Path) -> PreparedData | None:
    """The prepared data in `directory`, or None where there is none or it is damaged."""
    if not directory.is_dir():
        return None
    try:
        about = json.loads((directory / "prepared.json").read_text(encoding="utf-8"))
        source, target = load_tokenizers(directory)
        splits = {}
        for name in SPLITS:
            text: dict[str, Sequence[str]] = {"source": [], "target": []}
            if name == "train" and about.get("training_text"):
                text = {side: RaggedText.load(directory / f"train.{side}.text") for side in text}
            elif name != "train":
                text = json.loads((directory / f"{name}.text.json").read_text(encoding="utf-8"))
            sides = [Ragged.load(directory / f"{name}.{side}") for side in SIDES]
            splits[name] = EncodedText(sides[0], sides[1], text["source"], text["target"])
        return PreparedData(
            source_tokenizer=source,
            target_tokenizer=target,
            fingerprint=about["fingerprint"],
            report=about["report"],
            directory=directory,
            **splits,
        )
    except (OSError, ValueError, KeyError, TypeError, UserError):
        return None


def _write_json(path: Path, data: Any) -> None:
    path.write_text(json.dumps(data, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _reported(records: Iterable[Record], total: int, stage: str, progress: Progress) -> Iterator[Record]:
    for done, record in enumerate(records):
        if done % _REPORT_EVERY == 0:
            progress(stage, done, total)
        yield record
    progress(stage, total, total)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released by the kernel however this process ends
        yield
