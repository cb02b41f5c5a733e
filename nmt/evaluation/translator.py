"""Lines of text to translated lines, with all that a search can tell about them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from nmt.config.schema import SearchConfig
from nmt.data.cleaning import clean
from nmt.evaluation.decode import decode
from nmt.evaluation.postprocess import Postprocessor
from nmt.search.beam import Hypothesis
from nmt.training.checkpoint import LoadedModel
from nmt.training.workload import precision_context

if TYPE_CHECKING:
    from nmt.search.trace import SearchTrace


@dataclass(frozen=True)
class Translation:
    """One output for a line, as text and as the search found it."""

    text: str
    hypothesis: Hypothesis


@dataclass(frozen=True)
class TranslatedLine:
    """A line and its translations, best first.

    source: where attention was asked for, the source tokens as they are written (without EOS), one a column of weights.
    trace: what the search did step by step, where it was asked for and the line is not empty.
    """

    line: str
    source: list[str]
    translations: list[Translation]
    trace: SearchTrace | None = None


def translate_lines(
    loaded: LoadedModel,
    lines: Sequence[str],
    search: SearchConfig,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
    *,
    prefixes: Sequence[str] | None = None,
    attention: bool = False,
    trace: bool = False,
) -> list[TranslatedLine]:
    """Translate each line; an empty one has one empty translation.

    Parameters
    ----------
    prefixes: what the output of each line begins with; "" forces nothing.
    attention: whether hypotheses carry their attention weights, and lines the source tokens that these go to.
    trace: whether lines carry the steps of their search.
    """
    data = loaded.config.data
    post = Postprocessor(loaded.source_tokenizer, loaded.target_tokenizer, data, search)
    sentences = [_encode(loaded.source_tokenizer.encode(clean(line, data, data.source_language))) for line in lines]
    forced: list[np.ndarray] | None = None
    if prefixes is not None:
        target = loaded.target_tokenizer
        forced = [_encode(target.encode(clean(prefix, data, data.target_language))) for prefix in prefixes]
    traces: dict[int, SearchTrace] | None = {} if trace else None
    with precision_context(loaded.config, device, search):
        n_best = decode(
            loaded.model,
            sentences,
            search,
            device,
            progress,
            attention=attention or post.needs_attention,
            prefixes=forced,
            traces=traces,
        )
    return [
        TranslatedLine(
            line=line,
            source=post.source_tokens(line) if attention else [],
            translations=[Translation(post.text(found, line), found) for found in hypotheses],
            trace=traces.get(number) if traces else None,
        )
        for number, (line, hypotheses) in enumerate(zip(lines, n_best, strict=True))
    ]


def _encode(tokens: Sequence[int]) -> np.ndarray:
    return np.array(tokens, dtype=np.int32)
