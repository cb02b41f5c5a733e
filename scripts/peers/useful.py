"""Useful operations: matrix products that the real tokens of our architecture need, whoever computes them.

`nmt.profiling.costs` counts the products of a single sentence pair without padding. The count is a + b·s + c·t + d·s·t
in the lengths s and t of source and target, so four counts give that of every pair.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from nmt.config.schema import RunConfig


@dataclass(frozen=True)
class Bilinear:
    """a + b·s + c·t + d·s·t."""

    a: float
    b: float
    c: float
    d: float

    def __call__(self, s: float, t: float) -> float:
        """The value at (s, t)."""
        return self.a + self.b * s + self.c * t + self.d * s * t

    @classmethod
    def through(cls, value: Callable[[int, int], float]) -> Bilinear:
        """The one that agrees with `value` where s and t are 2 or 4, and so everywhere if `value` is bilinear."""
        low, high = 2, 4
        corner, right, up, both = value(low, low), value(high, low), value(low, high), value(high, high)
        side = high - low
        d = (both - right - up + corner) / side**2
        b, c = (right - corner) / side - d * low, (up - corner) / side - d * low
        return cls(corner - b * low - c * low - d * low * low, b, c, d)


@dataclass(frozen=True)
class UsefulWork:
    """Operations (a multiplication with its addition is two) of pairs of lengths that count EOS.

    training: of forward and backward of a pair. decoding: of encoding a source and running one hypothesis t steps.
    """

    training: Bilinear
    decoding: Bilinear

    @classmethod
    def of(cls, config: RunConfig) -> UsefulWork:
        """Of the model that `config` describes."""
        import dataclasses

        from nmt.profiling.costs import Costs, Shape, costs

        greedy = dataclasses.replace(config, search=dataclasses.replace(config.search, beam=1))
        vocabularies = (config.tokenizer.vocab_size, config.tokenizer.vocab_size)

        @cache
        def count(s: int, t: int) -> Costs:
            return costs(greedy, Shape(1, s, t), vocabularies)

        return cls(
            Bilinear.through(lambda s, t: count(s, t).training_per_token * t),
            Bilinear.through(lambda s, t: count(s, t).decoding),
        )

    def of_training(self, pairs: Iterable[tuple[int, int]]) -> float:
        """Of a step, or of several, over these pairs of lengths."""
        return sum(self.training(s, t) for s, t in pairs)

    def of_decoding(self, pairs: Iterable[tuple[int, int]], beam: int) -> float:
        """Of a search that ends with its output: a hypothesis in the first step, `beam` in each that follows."""
        return sum(self.decoding(s, needed_rows(t, beam)) for s, t in pairs)


def needed_rows(length: int, beam: int) -> int:
    """Hypothesis-steps of a search that ends as soon as its output of `length` tokens, EOS counted, has ended."""
    return 1 + beam * (length - 1)
