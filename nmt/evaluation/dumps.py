"""What `nmt translate` writes beside the translations: attention weights, the steps of searches, trees to look at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Protocol

from nmt.data.tokenizer import Tokenizer
from nmt.evaluation.translator import TranslatedLine


class Dump(Protocol):
    """Takes lines in order while its context is open; its files are whole when the context has ended well."""

    def add(self, number: int, line: TranslatedLine) -> None:
        """Write what concerns the `number`-th line, counted from 0."""


@contextmanager
def open_dumps(attention: str, beams: str, tree: str, plots: int, target: Tokenizer) -> Iterator[list[Dump]]:
    """The dumps whose file (for `attention`, folder) is named; of pictures and trees only the first `plots` lines'.

    Raises UserError where one cannot be written.
    """
    from nmt.evaluation.attention_dump import attention_dump
    from nmt.evaluation.beam_dump import beam_dump
    from nmt.evaluation.beam_tree import beam_tree

    with ExitStack() as stack:
        dumps: list[Dump] = []
        if attention:
            dumps.append(stack.enter_context(attention_dump(attention, plots, target)))
        if beams:
            dumps.append(stack.enter_context(beam_dump(beams)))
        if tree:
            dumps.append(stack.enter_context(beam_tree(tree, plots, target)))
        yield dumps
