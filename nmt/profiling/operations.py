"""Useful operations of a batch: what its real tokens need, whatever the code does with them.

Counted are the matrix products of the plain forward pass (`nmt.models.plain`) on sentences without padding, three times
over: a product [m, k] x [k, n] has two in its backward pass, one for the gradient of either factor. Padding, products
that are computed again, and everything elementwise are not useful, so what a step achieves of the floor

    useful operations / best rate of a matrix product

falls with each of them. For a sentence pair of s source and t target tokens the count is a polynomial in s and t of
second degree, which six small counts determine exactly; so batches of any lengths are counted without running them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from nmt.models.plain import plain_autograd
from nmt.profiling.costs import Shape, batch_of, blank_slot

if TYPE_CHECKING:
    from nmt.config.schema import RunConfig
    from nmt.models.seq2seq import Seq2Seq

ATTENTION = "attention"  # scores and contexts of all queries; the projections belong to where they are made
BACKWARD_FACTOR = 2  # products of the backward pass for each of the forward pass

_ATTENTION_PRODUCTS = (torch.ops.aten.bmm, torch.ops.aten.baddbmm)  # products by sentence are attention's alone


@dataclass(frozen=True)
class Polynomial:
    """a + b s + c t + d s t + e s² + f t² with whole coefficients, a count for a pair of s and t tokens."""

    coefficients: tuple[int, int, int, int, int, int]

    @classmethod
    def through(cls, count: Callable[[int, int], int]) -> Polynomial:
        """The one whose values are those of `count` at six points, and everywhere if `count` is such a polynomial."""
        f11, f21, f31, f12, f13, f22 = (count(s, t) for s, t in ((1, 1), (2, 1), (3, 1), (1, 2), (1, 3), (2, 2)))
        d = f22 - f21 - f12 + f11
        e, f = (f31 - 2 * f21 + f11) // 2, (f13 - 2 * f12 + f11) // 2
        b, c = f21 - f11 - 3 * e - d, f12 - f11 - 3 * f - d
        return cls((f11 - b - c - d - e - f, b, c, d, e, f))

    def total(self, source_lengths: np.ndarray, target_lengths: np.ndarray) -> int:
        """The sum over pairs of [pairs] source and target tokens, EOS counted on both sides."""
        s, t = (np.asarray(lengths, dtype=object) for lengths in (source_lengths, target_lengths))  # exact integers
        a, b, c, d, e, f = self.coefficients
        return int((a + b * s + c * t + d * s * t + e * s * s + f * t * t).sum())


@dataclass(frozen=True)
class UsefulOperations:
    """Operations of a training step by part of the model.

    parts: "encoder", "decoder" and "output" without what attention does in them, and "attention": of a forward pass.
    """

    parts: Mapping[str, Polynomial]

    def of(self, source_lengths: np.ndarray, target_lengths: np.ndarray) -> dict[str, int]:
        """Forward and backward pass over pairs of [pairs] source and target tokens, EOS counted on both sides."""
        factor = 1 + BACKWARD_FACTOR
        return {name: factor * part.total(source_lengths, target_lengths) for name, part in self.parts.items()}


def useful_operations(config: RunConfig, vocabularies: tuple[int, int]) -> UsefulOperations:
    """Count for a model of `config` with (source, target) rows of the vocabularies, without memory or a corpus."""
    from nmt.models.seq2seq import build_model

    with torch.device("meta"), torch.no_grad(), plain_autograd():
        model = build_model(config.model, *vocabularies, config.loss)
        counts: dict[tuple[int, int], dict[str, int]] = {}

        def count(part: str, s: int, t: int) -> int:
            if (s, t) not in counts:
                counts[s, t] = _forward_parts(model, Shape(1, s, t))
            return counts[s, t][part]

        names = _forward_parts(model, Shape(1, 1, 1))
        return UsefulOperations(
            {name: Polynomial.through(lambda s, t, name=name: count(name, s, t)) for name in names}  # type: ignore[misc]
        )


@dataclass(frozen=True)
class DecodingOperations:
    """Operations of decoding.

    encoding: of a sentence of s source tokens. step: of extending one hypothesis of such a sentence by one token,
        behind t tokens (SOS counted).
    """

    encoding: Polynomial
    step: Polynomial


def decoding_operations(config: RunConfig, vocabularies: tuple[int, int]) -> DecodingOperations:
    """Count for a model of `config`, as `useful_operations` does."""
    from nmt.models.seq2seq import build_model

    with torch.device("meta"), torch.no_grad(), plain_autograd():
        model = build_model(config.model, *vocabularies, config.loss)

        def count(s: int, t: int) -> tuple[int, int]:
            tokens = torch.zeros(1, 1, dtype=torch.int64)
            with FlopCounterMode(display=False) as encoding:
                encoded = model.encode(torch.zeros(1, s, dtype=torch.int64), torch.tensor([s]))
                state = model.start(encoded, 1)
            for _ in range(t):
                with FlopCounterMode(display=False) as step:
                    _, state, _ = model.step(tokens, state, encoded)
            return int(encoding.get_total_flops()), int(step.get_total_flops())

        return DecodingOperations(
            Polynomial.through(lambda s, t: count(s, t)[0]), Polynomial.through(lambda s, t: count(s, t)[1])
        )


def _forward_parts(model: Seq2Seq, shape: Shape) -> dict[str, int]:
    slot = blank_slot(batch_of(shape), shape.target_tokens)
    carried: dict[str, Tensor] = {}
    parts: dict[str, int] = {}
    attention = 0
    for stage in model.stages():
        with FlopCounterMode(display=False) as counter:
            carried = stage(slot, carried)
        found = counter.get_flop_counts().get("Global", {})
        own = sum(int(found.get(product, 0)) for product in _ATTENTION_PRODUCTS)
        attention += own
        parts[stage.name] = int(counter.get_total_flops()) - own
    return {**parts, ATTENTION: attention}
