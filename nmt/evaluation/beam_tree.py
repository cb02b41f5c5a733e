"""Searches as pictures: one self-contained page that draws the hypotheses of each step and how they descend.

The page needs no network: `beam_tree.html` holds the drawing, and the searches stand in it as JSON.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nmt.data.streams import writing
from nmt.data.tokenizer import Tokenizer
from nmt.data.vocabulary import EOS
from nmt.evaluation.translator import TranslatedLine
from nmt.search.trace import SearchTrace

_PAGE = Path(__file__).with_name("beam_tree.html")


class BeamTree:
    """The first `limit` lines' searches, as the page reads them."""

    def __init__(self, limit: int, target: Tokenizer):
        self._limit, self._target = limit, target
        self._sentences: list[dict[str, Any]] = []

    def add(self, number: int, line: TranslatedLine) -> None:
        """Keep the search of a line; an empty line had none."""
        if line.trace is None or number >= self._limit:
            return
        outputs = [
            {"text": found.text, "score": found.hypothesis.score, "step": step, "slot": slot}
            for found, (step, slot) in zip(line.translations, line.trace.outputs, strict=True)
        ]
        steps = _steps(line.trace, self._target)
        self._sentences.append({"number": number, "line": line.line, "outputs": outputs, "steps": steps})

    def page(self) -> str:
        """The whole page."""
        data = {"end": self._target.token(EOS), "sentences": self._sentences}
        text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        # Inside a script element only "<" could begin something else than data.
        return _PAGE.read_text(encoding="utf-8").replace("@DATA@", text.replace("<", "\\u003c"), 1)


@contextmanager
def beam_tree(file: str, limit: int, target: Tokenizer) -> Iterator[BeamTree]:
    """Open a page that is written when all went well. Raises UserError where it cannot be."""
    with writing(file, "tree") as write:
        tree = BeamTree(limit, target)
        yield tree
        write(tree.page())


def _steps(trace: SearchTrace, target: Tokenizer) -> list[list[list[Any] | None]]:
    """Each step's slots as [token, parent's slot, score, log-probability], or null where a slot holds nothing."""
    steps = zip(
        trace.tokens.tolist(),
        trace.parents.tolist(),
        trace.scores.tolist(),
        trace.log_probabilities.tolist(),
        strict=True,
    )
    return [
        [
            None
            if not math.isfinite(log_probability)
            else [target.token(token), parent, round(score, 5), round(log_probability, 5)]
            for token, parent, score, log_probability in zip(*step, strict=True)
        ]
        for step in steps
    ]
