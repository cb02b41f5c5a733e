"""First values of the parameters, each drawn from a stream of its own.

A module states the distribution of its own parameters through a method `first_values()`; `initialise` draws them. The
stream of a parameter is addressed by (seed, parameter name), so adding or removing a parameter shifts no other, and the
draw is made on the CPU in float32, so that every device and precision starts from the same values.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from nmt.config.schema import InitialisationConfig


@dataclass(frozen=True)
class Glorot:
    """U(-a, a) with a = sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio 2010, equation 16).

    `blocks` holds (rows, fan_in, fan_out) for consecutive rows of the parameter (rows -1: all of them), because a cell
    keeps matrices of different shape on top of each other, and because TensorFlow counts the fans of the joint matrix
    on [x; h].
    """

    blocks: tuple[tuple[int, int, int], ...]

    @classmethod
    def of(cls, fan_in: int, fan_out: int) -> Glorot:
        """The same fans for all rows."""
        return cls(((-1, fan_in, fan_out),))

    def limits(self, rows: int) -> Tensor:
        """Half-width of the distribution for each row: [rows]."""
        limits = [torch.full((rows if n < 0 else n,), math.sqrt(6 / (i + o))) for n, i, o in self.blocks]
        return torch.cat(limits)


@dataclass(frozen=True)
class Constant:
    """The same value everywhere, but for `other` in the elements from `start` to before `stop`."""

    value: float
    other: float = 0.0
    start: int = 0
    stop: int = 0


Draw = Glorot | Constant
SKIPPED = 1 << 16  # elements that are thrown away at a time


@runtime_checkable
class Initialised(Protocol):
    """A module that knows the distributions of the parameters it owns itself (not those of its children)."""

    def first_values(self) -> Mapping[str, Draw]:
        """Distribution of each own parameter, by its attribute name."""


class RecurrentKernels:
    """Marks a module whose matrices are the recurrent kernels that `recurrent_scale` is for, on x and on h alike."""


def initialise(model: nn.Module, config: InitialisationConfig, seed: int) -> None:
    """Draw every parameter of `model` in place.

    `glorot_uniform` is TensorFlow's default of early 2017 for every matrix, embedding and the vector of additive
    attention; `uniform` draws matrices and embeddings from U(-scale, scale) and that vector as before. Biases are
    constants in both. Two kinds of module may have a half-width of their own in either: `recurrent_scale` for the
    matrices of recurrent cells, `embedding_scale` for embedding tables (both 0.04 in google/seq2seq from 2017-03-27
    on). Glorot's width for tables shrinks with the vocabulary, and a tied model of 4,000 words hardly leaves the
    unigram stage with it. A parameter that several modules share is drawn once, under its first name. A module without
    `first_values` (of another package) gets Glorot matrices and zero vectors.
    """
    values = first_values(model, config, seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(values[name].whole())


def first_values(model: nn.Module, config: InitialisationConfig, seed: int) -> dict[str, FirstValue]:
    """How each parameter of `model` begins, by its name there. A model without memory for its values will do."""
    found: dict[str, FirstValue] = {}
    drawn: set[int] = set()
    for path, module in model.named_modules():
        draws = module.first_values() if isinstance(module, Initialised) else {}
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in drawn:
                continue
            drawn.add(id(parameter))
            whole_name = f"{path}.{name}" if path else name
            draw = draws.get(name) or _usual(parameter)
            half_width = _half_width(module, config)
            found[whole_name] = FirstValue(f"{seed}/init/{whole_name}", parameter.shape, draw, half_width)
    return found


@dataclass(frozen=True)
class FirstValue:
    """What a parameter begins with, drawn when it is asked for.

    address: of its stream. half_width: of a uniform distribution that holds instead of `draw`; 0: none.
    """

    address: str
    shape: torch.Size
    draw: Draw
    half_width: float

    def whole(self) -> Tensor:
        """All of it, in its shape."""
        return self.elements(0, self.shape.numel()).view(self.shape)

    def elements(self, start: int, stop: int) -> Tensor:
        """The elements from `start` to `stop`, which are whole rows, flat, with the bits that they have in the whole.

        Those before them are drawn too, some at a time, and thrown away.
        """
        draw, columns = self.draw, self.shape[1:].numel()
        first, last = start // columns, stop // columns
        if isinstance(draw, Constant):
            value = torch.full((last - first, columns), draw.value)
            value[max(draw.start - first, 0) : max(draw.stop - first, 0)] = draw.other
            return value.view(-1)
        generator = stream(self.address)
        for skipped in range(0, start, SKIPPED):
            torch.empty(min(SKIPPED, start - skipped)).uniform_(-1.0, 1.0, generator=generator)
        unit = torch.empty(last - first, columns).uniform_(-1.0, 1.0, generator=generator)
        if self.half_width and len(self.shape) > 1:
            return unit.mul_(self.half_width).view(-1)
        return unit.mul_(draw.limits(self.shape[0])[first:last].unsqueeze(1)).view(-1)


def _half_width(module: nn.Module, config: InitialisationConfig) -> float:
    """Of the uniform distribution of the module's matrices; 0 where each parameter's own distribution holds."""
    if isinstance(module, nn.Embedding) and config.embedding_scale:
        return config.embedding_scale
    if isinstance(module, RecurrentKernels) and config.recurrent_scale:
        return config.recurrent_scale
    return config.scale if config.name == "uniform" else 0.0


def _usual(parameter: nn.Parameter) -> Draw:
    if parameter.dim() < 2:
        return Constant(0.0)
    return Glorot.of(parameter[0].numel(), parameter.shape[0])


def stream(address: str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator seeded with the 63-bit BLAKE2b digest of `address`: the same address, the same numbers."""
    digest = hashlib.blake2b(address.encode(), digest_size=8).digest()
    return torch.Generator(device=device).manual_seed(int.from_bytes(digest, "big") >> 1)
