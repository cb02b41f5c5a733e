"""The files of stages: what one holds, where its elements belong in the whole model, and a node that writes its own.

A node sees whether a directory is the trainer's by a file with a word that the trainer has just made up.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from distributed.ring_tmp.parts import Part
from distributed.ring_tmp.shadow import PartState
from distributed.state_files import PARAMETERS, Piece, StateIndex, elements, write_file

PROOF = ".shared"  # the file with the word

Source = Callable[[Part], torch.Tensor]
"""Makes a stage's buffer [elements of its part] of the parameters, or of a slot of the optimizer."""


@dataclass(frozen=True)
class Whole:
    """The whole model's parameters: by name, where each begins in the flat buffer, and its shape."""

    layout: Mapping[str, tuple[int, torch.Size]]

    @cached_property
    def _begins(self) -> list[tuple[int, str]]:
        return sorted((start, name) for name, (start, _) in self.layout.items())

    def locate(self, start: int) -> tuple[str, int]:
        """The parameter that element `start` of the flat buffer belongs to, and which of its elements that is."""
        first, name = self._begins[bisect_right(self._begins, start, key=lambda one: one[0]) - 1]
        return name, start - first

    def index(self, directory: str, parts: Iterable[Part], slots: Iterable[str]) -> StateIndex:
        """What `directory` has with a file for each part."""
        pieces: dict[str, list[Piece]] = {name: [] for name in self.layout}
        for number, part in enumerate(parts):
            for held in part.held:
                name, start = self.locate(held.start)
                pieces[name].append(Piece(start, start + held.stop - held.start, part_file(number), held.name))
        shapes = {name: tuple(shape) for name, (_, shape) in self.layout.items()}
        return StateIndex(directory, shapes, {name: sorted(found) for name, found in pieces.items()}, list(slots))

    def source(self, values: Callable[[str, int, int], torch.Tensor]) -> Source:
        """Buffers of stages, made of `values(name, start, stop)`: elements of a parameter of the whole model, flat."""

        def gathered(part: Part) -> torch.Tensor:
            buffer = torch.zeros(part.size)
            for held in part.held:
                name, start = self.locate(held.start)
                part.view(buffer, held.name).view(-1).copy_(values(name, start, start + held.stop - held.start))
            return buffer

        return gathered

    def source_of(self, tensors: Mapping[str, torch.Tensor]) -> Source:
        """The same of tensors by the whole model's names, of which nothing but a stage's elements is read at a time."""
        return self.source(lambda name, start, stop: elements(tensors, name, start, stop))


def part_file(number: int) -> str:
    """The name of a stage's file."""
    return f"stage-{number:04d}.pt"


def part_content(part: Part, buffers: Mapping[str, torch.Tensor], step: int, updates: int) -> dict[str, Any]:
    """What a stage's file holds.

    buffers: of the stage, [elements of its part]: the parameters under `PARAMETERS`, and the optimizer's slots.
    """
    named = {slot: {name: part.view(buffer, name).clone() for name in part.views} for slot, buffer in buffers.items()}
    parameters = named.pop(PARAMETERS)
    return {"stage": part.name, "step": step, "updates": updates, "parameters": parameters, "optimizer": named}


def write_own(directory: Path, word: str, states: Mapping[int, PartState]) -> tuple[list[int], str]:
    """Write the states of stages into a directory that `word` proves to be the trainer's.

    Returns the stages that were written, all or none, and what went wrong with the disk.
    """
    try:
        if (directory / PROOF).read_text(encoding="utf-8") != word:
            return [], ""
    except OSError:
        return [], ""
    try:
        for stage, state in states.items():
            buffers = {PARAMETERS: state.values, **state.moments()}
            write_file(directory / part_file(stage), part_content(state.part, buffers, state.step, state.updates))
    except OSError as error:
        return [], error.strerror or str(error)
    return list(states), ""
