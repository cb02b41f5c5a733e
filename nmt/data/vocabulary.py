"""A table of token types with the three specials in front."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from nmt.data.streams import lines, reading
from nmt.errors import UserError

UNK, SOS, EOS = 0, 1, 2  # there is no padding row: padded positions are masked
SPECIALS = ("<unk>", "<s>", "</s>")
UNKNOWN_TEXT = "⁇"  # how an unknown token reads in decoded text


class Vocabulary:
    """Token types numbered from `len(SPECIALS)` on; `size` rows in all.

    Rows beyond the known types stay unused: models are built by the declared size, with or without a corpus at hand. A
    type that happens to be spelt like a special has a number of its own, so text can never spell a special.
    """

    def __init__(self, types: Sequence[str], size: int):
        if len(types) + len(SPECIALS) > size:
            raise ValueError(f"{len(types)} types and {len(SPECIALS)} specials do not fit {size} rows")
        self.types = list(types)
        self.size = size
        self._numbers = {token: number for number, token in enumerate(self.types, len(SPECIALS))}

    @classmethod
    def from_counts(cls, counts: Mapping[str, int], size: int) -> tuple[Vocabulary, dict[str, int]]:
        """The most frequent types that fit `size` rows (ties in code point order), and a report.

        The report counts `types` seen in training, `types_beyond_size` (they become UNK) and `unused_rows`.
        """
        if size <= len(SPECIALS):
            raise UserError(
                f"{size} rows leave none beside {len(SPECIALS)} specials", where="tokenizer.vocab_size", hint="raise it"
            )
        ranked = ranking(counts)
        room = size - len(SPECIALS)
        report = {
            "types": len(ranked),
            "types_beyond_size": max(0, len(ranked) - room),
            "unused_rows": max(0, room - len(ranked)),
        }
        return cls(ranked[:room], size), report

    def number(self, token: str) -> int:
        """The row of `token`; UNK where it has none."""
        return self._numbers.get(token, UNK)

    def numbers(self, tokens: Iterable[str]) -> list[int]:
        """The rows of `tokens`, as `number` gives them one by one."""
        row = self._numbers.get
        return [row(token, UNK) for token in tokens]

    def token(self, number: int) -> str:
        """The token in row `number`."""
        if not 0 <= number < self.size:
            raise IndexError(f"row {number} of a vocabulary of {self.size}")
        if number < len(SPECIALS):
            return SPECIALS[number]
        position = number - len(SPECIALS)
        return self.types[position] if position < len(self.types) else f"<unused {number}>"

    def is_type(self, number: int) -> bool:
        """Whether row `number` holds a type: neither a special nor unused."""
        return len(SPECIALS) <= number < len(SPECIALS) + len(self.types)


def ranking(counts: Mapping[str, int]) -> list[str]:
    """Types by falling count; of equal counts in the order of code points."""
    return sorted(counts, key=lambda token: (-counts[token], token))


def read_types(name: str, key: str) -> list[str]:
    r"""The types of a vocabulary file in their order: a line each, `type` or `type\tcount`, plain or .gz.

    A type may be a space, as in a vocabulary of characters. `key` is the config key that named the file. Raises
    UserError, with the line, for a type without characters and for one that stands there twice.
    """
    first: dict[str, int] = {}
    with reading(name, key) as stream:
        for number, line in enumerate(lines(stream, name), 1):
            token, tab, count = line.rpartition("\t")
            token = token if tab and count.strip().isdigit() else line
            if not token:
                raise UserError("holds no type", where=f"{name}:{number}")
            if token in first:
                raise UserError(f"'{token}' stands in line {first[token]} already", where=f"{name}:{number}")
            first[token] = number
    if not first:
        raise UserError("is empty", where=f"{key}={name}")
    return list(first)


def write_types(counts: Mapping[str, int], *, min_frequency: int = 1, max_size: int = 0) -> Iterable[str]:
    r"""The lines of a vocabulary file, `type\tcount`, for the most frequent types.

    `min_frequency` is the least count of a type that is kept, `max_size` the most types (0: all).
    """
    kept = [token for token in ranking(counts) if counts[token] >= min_frequency]
    return (f"{token}\t{counts[token]}" for token in kept[: max_size or len(kept)])


def count_types(texts: Iterable[str], delimiter: str | None = None) -> Counter[str]:
    """How often each type occurs. `delimiter` stands between tokens; None: white space, "": tokens are characters."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text if delimiter == "" else filter(None, text.split(delimiter)))
    return counts
