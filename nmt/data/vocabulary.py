"""A table of token types with the three specials in front."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
        ranked = sorted(counts, key=lambda token: (-counts[token], token))
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
