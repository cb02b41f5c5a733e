"""Tokenizers: from a cleaned line to rows of the vocabulary, and back to text.

A tokenizer is trained in memory, saved as one JSON file and loaded again without running anything it contains. Encoding
never yields SOS or EOS: those are added where batches are made.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from nmt import registry
from nmt.config.schema import DataConfig, TokenizerConfig
from nmt.data.cleaning import moses_detokenizer
from nmt.data.vocabulary import EOS, SOS, SPECIALS, UNK, UNKNOWN_TEXT, Vocabulary, read_types
from nmt.errors import UserError

FORMAT_VERSION = 1
BPE_JOINER = "@@"
SPACE = "▁"  # how SentencePiece writes a space
_RESERVED = "▅"  # SentencePiece leaves out a line that holds it


class Tokenizer(Protocol):
    """What models, decoding and reports need of a segmentation."""

    @property
    def size(self) -> int:
        """Rows of the vocabulary, specials and unused rows included: always the declared `tokenizer.vocab_size`."""

    def encode(self, text: str) -> list[int]:
        """The rows of a cleaned line's tokens, without SOS and EOS; UNK for what the vocabulary lacks."""

    def segment(self, text: str) -> list[str]:
        """The tokens of a cleaned line as they are written, in the vocabulary or not: one for each row of `encode`."""

    def decode(self, ids: Sequence[int], instead: Sequence[str] | None = None) -> str:
        """The text of a row sequence, SOS and EOS left out; on Moses-tokenised data still tokenised (see `to_text`).

        `instead` has a token for each of `ids`, which stands where a row is UNK.
        """

    def token(self, number: int) -> str:
        """The token in row `number`, as shown in reports."""

    def to_json(self) -> dict[str, Any]:
        """Plain data from which `from_json` makes the same tokenizer."""

    def save(self, path: Path) -> None:
        """Write `to_json` to `path`."""


def train_tokenizer(
    config: TokenizerConfig, texts: Callable[[], Iterable[str]]
) -> tuple[Tokenizer, dict[str, int | str]]:
    """Train the tokenizer that `config` names on cleaned lines (`texts()` can be called again for another pass).

    Returns it with a report: types beyond the size, unused rows and the like. Raises UserError where the vocabulary
    size cannot be had.
    """
    cls = registry.lookup("tokenizer", config.name, "tokenizer.name")
    tokenizer, report = cls.train(config, texts)
    return tokenizer, {"name": config.name, "size": tokenizer.size, **report}


def read_tokenizer(config: TokenizerConfig, key: str) -> tuple[Tokenizer, dict[str, int | str]]:
    """The tokenizer that `config` names over the vocabulary file that `tokenizer.<key>` names, and a report.

    Raises UserError where the file cannot be used or holds more types than the vocabulary has rows for.
    """
    where, name = f"tokenizer.{key}", str(getattr(config, key))
    types = read_types(name, where)
    if len(types) + len(SPECIALS) > config.vocab_size:
        size = len(types) + len(SPECIALS)
        raise UserError(
            f"{len(types)} types and {len(SPECIALS)} specials do not fit {config.vocab_size} rows",
            where=f"{where}={name}",
            hint=f"tokenizer.vocab_size={size}",
        )
    cls = registry.lookup("tokenizer", config.name, "tokenizer.name")
    tokenizer: Tokenizer = cls(Vocabulary(types, config.vocab_size))
    unused = config.vocab_size - len(types) - len(SPECIALS)
    report: dict[str, int | str] = {"types": len(types), "types_beyond_size": 0, "unused_rows": unused}
    return tokenizer, {"name": config.name, "size": tokenizer.size, **report}


def load_tokenizer(path: Path) -> Tokenizer:
    """Read what `Tokenizer.save` wrote. Raises UserError for a missing, damaged or newer file."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        version, name = data["format_version"], data["name"]
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=str(path)) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError("is not a tokenizer file", where=str(path)) from error
    if version > FORMAT_VERSION:
        raise UserError(
            f"has format {version}, and this version reads up to {FORMAT_VERSION}", where=str(path), hint="upgrade"
        )
    tokenizer: Tokenizer = registry.lookup("tokenizer", name, str(path)).from_json(data)
    return tokenizer


def to_text(
    tokenizer: Tokenizer, ids: Sequence[int], data: DataConfig, language: str, instead: Sequence[str] | None = None
) -> str:
    """Row sequence to text as a person writes it: decoded, and Moses-detokenised where the data is Moses-tokenised.

    `instead` has a token for each of `ids`, which stands where a row is UNK.
    """
    text = tokenizer.decode(ids, instead)
    return moses_detokenizer(language)(text) if data.moses else text


class _Saved(ABC):
    """Saving, the same for every tokenizer."""

    @abstractmethod
    def to_json(self) -> dict[str, Any]:
        """See `Tokenizer`."""

    def save(self, path: Path) -> None:
        """Write this tokenizer to `path` as JSON."""
        path.write_text(json.dumps(self.to_json(), ensure_ascii=False, indent=0) + "\n", encoding="utf-8")


class SentencePieceTokenizer(_Saved):
    """SentencePiece (Kudo and Richardson 2018): BPE or unigram pieces learned from raw text, spaces included.

    The normaliser is switched off (cleaning has done its work) and every character of the training text gets a piece.
    The library keeps all that it learns from in memory: of BPE, which looks at words only, it is given each word once.
    """

    def __init__(self, model: bytes, name: str):
        from sentencepiece import SentencePieceProcessor

        self.name, self.model = name, model
        self._processor = SentencePieceProcessor(model_proto=model)
        self.size = self._processor.get_piece_size()

    @classmethod
    def train(
        cls, config: TokenizerConfig, texts: Callable[[], Iterable[str]]
    ) -> tuple[SentencePieceTokenizer, dict[str, int]]:
        """Train on `texts` until exactly `config.vocab_size` pieces are there, the specials included."""
        from sentencepiece import SentencePieceTrainer

        model, model_type = io.BytesIO(), config.name.removeprefix("sentencepiece_")
        lines = texts()
        form: dict[str, Any] = {}
        if model_type == "bpe" and not any("\t" in line for line in texts()):  # cleaned text has none
            lines, form = _counted_words(lines), {"input_format": "tsv"}
        try:
            SentencePieceTrainer.train(
                sentence_iterator=iter(lines),
                **form,
                model_writer=model,
                model_type=model_type,
                vocab_size=config.vocab_size,
                unk_id=UNK,
                bos_id=SOS,
                eos_id=EOS,
                pad_id=-1,
                unk_piece=SPECIALS[UNK],
                bos_piece=SPECIALS[SOS],
                eos_piece=SPECIALS[EOS],
                unk_surface=UNKNOWN_TEXT,
                character_coverage=1.0,
                byte_fallback=False,
                normalization_rule_name="identity",
                shuffle_input_sentence=False,
                max_sentence_length=1 << 24,  # bytes; longer lines would be left out silently
                num_threads=1,  # the pieces depend on how sentences are dealt to threads
                minloglevel=2,
            )
        except RuntimeError as error:
            raise _size_error(config, str(error)) from error
        tokenizer = cls(model.getvalue(), config.name)
        if tokenizer.size != config.vocab_size:
            raise _size_error(config, f"to a value <= {tokenizer.size}")
        return tokenizer, {}

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer`."""
        ids: list[int] = self._processor.encode(text)
        return ids

    def segment(self, text: str) -> list[str]:
        """See `Tokenizer`."""
        pieces: list[str] = self._processor.encode(text, out_type=str)
        return pieces

    def decode(self, ids: Sequence[int], instead: Sequence[str] | None = None) -> str:
        """See `Tokenizer`."""
        if instead is None or UNK not in ids:
            return str(self._processor.decode([int(i) for i in ids]))
        # The library would leave the sign for a space standing in pieces that it does not know.
        pieces = [
            other if i == UNK else self.token(i) for i, other in zip(ids, instead, strict=True) if i not in (SOS, EOS)
        ]
        return "".join(pieces).replace(SPACE, " ").removeprefix(" ")

    def token(self, number: int) -> str:
        """See `Tokenizer`."""
        return str(self._processor.id_to_piece(int(number)))

    def to_json(self) -> dict[str, Any]:
        """See `Tokenizer`; the model is SentencePiece's own serialised form."""
        return {
            "format_version": FORMAT_VERSION,
            "name": self.name,
            "model": base64.b64encode(self.model).decode("ascii"),
        }

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> SentencePieceTokenizer:
        """The tokenizer that `to_json` described."""
        return cls(base64.b64decode(data["model"]), data["name"])


def _counted_words(texts: Iterable[str]) -> Iterator[str]:
    r"""Each word of the texts once, as SentencePiece reads counted ones: `word\tcount`.

    Lines with signs that mean something to the library go to it whole.
    """
    words: Counter[str] = Counter()
    for text in texts:
        if SPACE in text or _RESERVED in text:
            yield f"{text}\t1"
        else:
            words.update(text.split(" "))
    yield from (f"{word}\t{count}" for word, count in words.items() if word)


def _size_error(config: TokenizerConfig, message: str) -> UserError:
    where = "tokenizer.vocab_size"
    if match := re.search(r"to a value <= (\d+)", message):
        return UserError(
            f"{config.vocab_size} pieces cannot be had from this text; the largest possible size is {match[1]}",
            where=where,
            hint=f"tokenizer.vocab_size={match[1]}, or more text",
        )
    if match := re.search(r"required_chars\. \d+ vs (\d+)", message):
        return UserError(
            f"{config.vocab_size} pieces cannot hold every character of this text; the smallest possible size is "
            f"{match[1]}",
            where=where,
            hint="raise it",
        )
    return UserError(f"SentencePiece cannot learn from this text: {message}", where="tokenizer.name")


class _VocabularyTokenizer(_Saved):
    """A tokenizer that cuts text by a rule and looks each segment up in a `Vocabulary`."""

    name = ""

    def __init__(self, vocabulary: Vocabulary):
        self.vocabulary = vocabulary
        self.size = vocabulary.size

    @abstractmethod
    def segment(self, text: str) -> list[str]:
        """See `Tokenizer`."""

    @abstractmethod
    def join(self, tokens: Sequence[str]) -> str:
        """The way back from `segment`."""

    def encode(self, text: str) -> list[int]:
        """See `Tokenizer`."""
        return self.vocabulary.numbers(self.segment(text))

    def decode(self, ids: Sequence[int], instead: Sequence[str] | None = None) -> str:
        """See `Tokenizer`; an unused row reads as UNK does."""
        is_type, token = self.vocabulary.is_type, self.vocabulary.token
        others = [UNKNOWN_TEXT] * len(ids) if instead is None else instead
        return self.join(
            [
                token(int(i)) if is_type(i) else other
                for i, other in zip(ids, others, strict=True)
                if i not in (SOS, EOS)
            ]
        )

    def token(self, number: int) -> str:
        """See `Tokenizer`."""
        return self.vocabulary.token(int(number))

    def to_json(self) -> dict[str, Any]:
        """See `Tokenizer`."""
        return {
            "format_version": FORMAT_VERSION,
            "name": self.name,
            "size": self.size,
            "types": self.vocabulary.types,
        }


class WhitespaceTokenizer(_VocabularyTokenizer):
    """Tokens are the words between spaces."""

    name = "whitespace"

    @classmethod
    def train(
        cls, config: TokenizerConfig, texts: Callable[[], Iterable[str]]
    ) -> tuple[_VocabularyTokenizer, dict[str, int]]:
        """The most frequent tokens of `texts` that fit `config.vocab_size`."""
        tokenizer = cls(Vocabulary([], config.vocab_size))
        counts: Counter[str] = Counter()
        for text in texts():
            counts.update(tokenizer.segment(text))
        tokenizer.vocabulary, report = Vocabulary.from_counts(counts, config.vocab_size)
        return tokenizer, report

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> _VocabularyTokenizer:
        """The tokenizer that `to_json` described."""
        return cls(Vocabulary(data["types"], data["size"]))

    def segment(self, text: str) -> list[str]:
        """Cut at white space."""
        return text.split()

    def join(self, tokens: Sequence[str]) -> str:
        """Words joined by single spaces."""
        return " ".join(tokens)


class CharacterTokenizer(WhitespaceTokenizer):
    """Tokens are characters (Unicode code points), the space one of them."""

    name = "character"

    def segment(self, text: str) -> list[str]:
        """One token a character."""
        return list(text)

    def join(self, tokens: Sequence[str]) -> str:
        """Characters one after the other."""
        return "".join(tokens)


class BpeMergesTokenizer(_VocabularyTokenizer):
    """Byte pair encoding by a number of merges (Sennrich et al. 2016, subword-nmt), with "@@" at cuts inside words.

    The vocabulary is what the merges leave of the training text: unlike with SentencePiece its size follows from
    `tokenizer.merges`, and `tokenizer.vocab_size` only bounds it. With `tokenizer.dropout` it also holds, behind those,
    the pieces that only show where a merge is left out.
    """

    name = "bpe_merges"

    def __init__(self, vocabulary: Vocabulary, merges: list[str]):
        from subword_nmt.apply_bpe import BPE

        super().__init__(vocabulary)
        self.merges = merges
        self._bpe = BPE(io.StringIO("\n".join(["#version: 0.2", *merges]) + "\n"), separator=BPE_JOINER)
        self._words: dict[str, list[str]] = {}  # segmentations met so far

    @classmethod
    def train(
        cls, config: TokenizerConfig, texts: Callable[[], Iterable[str]]
    ) -> tuple[BpeMergesTokenizer, dict[str, int]]:
        """Learn `config.merges` merges from the words of `texts`, then the types that they leave."""
        words = Counter(word for text in texts() for word in text.split())
        merges = _learn_merges(words, config.merges)
        tokenizer = cls(Vocabulary([], config.vocab_size), merges)
        counts: Counter[str] = Counter()
        for word, count in words.items():
            for token in tokenizer.segment(word):
                counts[token] += count
        if config.dropout:
            counts.update(dict.fromkeys(_pieces(words, merges), 0))
        tokenizer.vocabulary, report = Vocabulary.from_counts(counts, config.vocab_size)
        return tokenizer, {"merges": len(merges), **report}

    def segment(self, text: str) -> list[str]:
        """Subwords; all but a word's last end in "@@"."""
        known, tokens = self._words, []
        for word in text.split():
            if word not in known:
                known[word] = self._bpe.segment_tokens([word])
            tokens += known[word]
        return tokens

    def join(self, tokens: Sequence[str]) -> str:
        """Words again: "@@ " closed up."""
        return " ".join(tokens).replace(f"{BPE_JOINER} ", "").removesuffix(BPE_JOINER)

    def to_json(self) -> dict[str, Any]:
        """See `Tokenizer`; merges in the order in which they were learned."""
        return super().to_json() | {"merges": self.merges}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> BpeMergesTokenizer:
        """The tokenizer that `to_json` described."""
        return cls(Vocabulary(data["types"], data["size"]), data["merges"])


def _pieces(words: Iterable[str], merges: Iterable[str]) -> set[str]:
    """Every token that merges can leave of the words if some are left out: characters, and what each merge makes."""
    inner = {character for word in words for character in word[:-1]}
    last = {word[-1] for word in words}
    made = {merge.replace(" ", "") for merge in merges}
    return {
        *(f"{piece}{BPE_JOINER}" for piece in inner),
        *last,
        *(piece.removesuffix("</w>") if piece.endswith("</w>") else f"{piece}{BPE_JOINER}" for piece in made),
    }


def _learn_merges(words: Counter[str], merges: int) -> list[str]:
    from subword_nmt.learn_bpe import learn_bpe

    codes = io.StringIO()
    # Counts in a fixed order: the library keeps the order of what it reads. It draws a progress bar on stderr.
    lines = [f"{word} {count}\n" for word, count in sorted(words.items())]
    if any(len(word) > 1 for word in words):  # the library fails where there is no pair at all
        with contextlib.redirect_stderr(io.StringIO()):
            learn_bpe(lines, codes, merges, is_dict=True)
    learned = codes.getvalue().removesuffix("\n").split("\n")[1:]
    if not learned:
        raise UserError(
            "no two characters stand together twice in the training text, so there is nothing to merge",
            where="tokenizer.name",
            hint="tokenizer=character, or more text",
        )
    return learned
