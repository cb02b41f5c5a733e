"""The time of attention inside a step: between queries, keys and values on one side, and contexts on the other."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from nmt.models import multi_head
from nmt.models.attention import Attention
from nmt.models.recurrent.attention_kernels import AdditiveKernel, AttentionKernel, MultiplicativeKernel

# Where attention is computed, forwards and backwards. A call inside another one counts once.
_PLACES: tuple[tuple[Any, str], ...] = (
    (Attention, "attend"),
    *((AttentionKernel, name) for name in ("forward", "backward", "value_gradient")),
    (MultiplicativeKernel, "score_gradients"),
    (AdditiveKernel, "score_gradients"),
    (multi_head, "attend"),
)


@contextmanager
def attention_timed(now: Callable[[], float], add: Callable[[float], None]) -> Iterator[None]:
    """Within it `add` is told the seconds of each call, read off the clock `now`."""
    inside = False

    def timed(run: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(run)
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal inside
            if inside:
                return run(*arguments, **named)
            begin, inside = now(), True
            try:
                return run(*arguments, **named)
            finally:
                inside = False
                add(now() - begin)

        return call

    originals = [(owner, name, getattr(owner, name)) for owner, name in _PLACES]
    for owner, name, original in originals:
        setattr(owner, name, timed(original))
    try:
        yield
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)
