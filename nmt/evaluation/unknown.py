"""UNK replacement: a word that the model could not name is taken from the source, where it attended most.

An UNK in an output becomes the source token with the largest attention weight, EOS left out, or that token's entry in a
dictionary (Jean et al. 2015, section 3.3; Luong et al. 2015). Tokens are those that the tokenizer made of the cleaned
line, spelt as they stand there, so a name that neither vocabulary holds comes through unharmed.

That is meant for word-level tokenizers. With subword tokenizers an UNK stands for a piece that holds a character never
met in training; the source's piece takes its place and joins its neighbours as it did in the source, and the dictionary
is asked for the piece as it is spelt.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from nmt.data.corpus import read_lines
from nmt.errors import UserError


def stand_ins(attention: Tensor, source: Sequence[str], dictionary: Mapping[str, str]) -> list[str]:
    """For each output token, what replaces it if it is UNK.

    Parameters
    ----------
    attention: [output tokens, source tokens + 1] weights in the order of the source; the last column, EOS, does not
        count. Of equal weights the first decides.
    source: the source's tokens as they are written, at least one.
    """
    places = attention[:, : len(source)].argmax(dim=1).tolist()
    return [dictionary.get(source[place], source[place]) for place in places]


def read_dictionary(name: str) -> dict[str, str]:
    r"""A bilingual dictionary: a line a pair, `source\ttarget`, as fast_align writes it, or `source target`.

    A third field is the pair's logarithmic probability. Of several entries of a word the likeliest counts, and of
    equally likely ones the first. Raises UserError, with the line, for anything else.
    """
    best: dict[str, tuple[float, str]] = {}
    for number, line in enumerate(read_lines(Path(name).expanduser()), 1):
        if not line.strip():
            continue
        fields = [field.strip() for field in line.split("\t")] if "\t" in line else line.split()
        if len(fields) not in (2, 3) or not all(fields):
            raise UserError(
                "is not `source<tab>target`",
                where=f"{name}:{number}",
                hint="a dictionary has a source word and its translation a line",
            )
        likelihood = _likelihood(fields[2], f"{name}:{number}") if len(fields) == 3 else -math.inf
        word, translation = fields[:2]
        if word not in best or likelihood > best[word][0]:
            best[word] = (likelihood, translation)
    return {word: translation for word, (_, translation) in best.items()}


def _likelihood(text: str, where: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise UserError(
            f"'{text}' is no logarithmic probability", where=where, hint="two fields a line, or a number as the third"
        ) from None
