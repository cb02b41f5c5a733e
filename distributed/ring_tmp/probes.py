"""What a probed step looks like, from the words of those who have parts of it (`distributed.strategy.Probe`).

A parameter may lie in several stages, and a chunk of it may have elements of two. So a stage says, for each parameter
of which it has something, what `Pieces` makes of it; whoever has the words of all stages computes the norms of
`distributed.arithmetic.parameter_norms`, to the bit.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

import torch

from distributed.ring.messages import Ring
from distributed.ring_tmp.parts import Part, Range, chunk_pieces
from distributed.ring_tmp.placement import Placement
from distributed.ring_tmp.scalars import Contribution, Pieces

Words = tuple[int, Mapping[str, str]]
"""Of a stage: by parameter, what it says, as text."""


class ProbePieces:
    """The parameters of a model, and what each stage has of them.

    Parameters
    ----------
    parts: what each stage owns.
    ranges: by parameter of the model in one piece, its elements of the whole flat buffer.
    """

    def __init__(self, parts: Sequence[Part], ranges: Mapping[str, Range]):
        self._parts, self._ranges = parts, ranges

    def words(self, stage: int, buffer: torch.Tensor) -> Words:
        """What a stage says of a buffer [elements of its part]."""
        said = {}
        for name in self._names[stage]:
            sums, elements = self._pieces[name].contribution(stage, {stage: buffer})
            said[name] = base64.b64encode(Contribution({}, sums, elements).to_bytes()).decode()
        return stage, said

    def norms(self, words: Iterable[Words]) -> dict[str, float]:
        """By parameter, the norm of the buffers that stages have spoken of; each speaks once."""
        said: dict[str, dict[int, Contribution]] = {}
        for stage, of_stage in words:
            for name, text in of_stage.items():
                said.setdefault(name, {})[stage] = Contribution.from_bytes(base64.b64decode(text))
        return {name: self._pieces[name].norm(said[name]) for name in self._ranges if name in said}

    @cached_property
    def _pieces(self) -> dict[str, Pieces]:
        # As if each stage were a node: a stage's words are the same whoever has it.
        numbers = tuple(range(len(self._parts)))
        alone = Placement(Ring(0, numbers), numbers)
        return {name: Pieces(chunk_pieces(*one), self._parts, alone) for name, one in self._ranges.items()}

    @cached_property
    def _names(self) -> list[list[str]]:
        return [
            [name for name, one in self._ranges.items() if one[0] < one[1] and part.overlap(one)]
            for part in self._parts
        ]
