"""Costs that follow from a configuration alone: parameters, arithmetic and memory, without a corpus or real numbers.

The model runs on tensors that have shapes and no content (torch's meta device), so the published sizes take seconds and
no memory. Counted are matrix products, scaled dot products and convolutions (`torch.utils.flop_counter`); a
multiplication with its addition is two operations, and everything elementwise is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from nmt.data.batching import Batch
from nmt.models.dropout import AddressedDropout
from nmt.models.parameters import parameters_by_module
from nmt.models.plain import plain_autograd
from nmt.profiling.counting import Allocations
from nmt.training.workload import TranslationSlot

if TYPE_CHECKING:
    from nmt.config.schema import RunConfig
    from nmt.models.seq2seq import Seq2Seq


@dataclass(frozen=True)
class Shape:
    """A micro-batch without padding: sentences, and tokens of each side with EOS."""

    sentences: int
    source_length: int
    target_length: int

    @property
    def target_tokens(self) -> int:
        """Target tokens in all."""
        return self.sentences * self.target_length


@dataclass(frozen=True)
class Costs:
    """What a model of some configuration costs.

    parameters: by module, two levels deep.
    forward: operations of each stage of the forward pass of a micro-batch; `backward`: of its backward pass. Both as
        autograd has them; what hand-written gradients compute earlier, later or again is not in the count.
    activation_bytes: what a micro-batch's forward pass leaves in memory for its backward pass, in fp32.
    decoding: operations of decoding one sentence to `shape.target_length` tokens with `beam` hypotheses.
    """

    shape: Shape
    beam: int
    parameters: dict[str, int]
    forward: dict[str, int]
    backward: int
    activation_bytes: int
    decoding: int

    @property
    def training_per_token(self) -> float:
        """Operations of training for each target token."""
        return (sum(self.forward.values()) + self.backward) / self.shape.target_tokens

    @property
    def decoding_per_token(self) -> float:
        """Operations of decoding for each token of the output."""
        return self.decoding / self.shape.target_length


def costs(config: RunConfig, shape: Shape, vocabularies: tuple[int, int]) -> Costs:
    """Count what the model of `config` costs on micro-batches of `shape`; `vocabularies` are (source, target) rows.

    Decoding is that of `config.search` with every hypothesis live to the end. Scheduled sampling is not in the count.
    """
    from nmt.models.seq2seq import build_model

    with torch.device("meta"):
        model = build_model(config.model, *vocabularies, config.loss)
        slot = blank_slot(batch_of(shape), shape.target_tokens)
        with plain_autograd():
            forward, loss = _forward(model, slot)
            backward = _counted(loss.backward)
        model.zero_grad()
        with Allocations() as kept:
            loss = _forward(model, slot)[1]
        activation_bytes = kept.alive
        with torch.no_grad(), plain_autograd():
            decoding = _decoding(model, shape, config.search.beam)
    return Costs(shape, config.search.beam, parameters_by_module(model), forward, backward, activation_bytes, decoding)


def batch_of(shape: Shape) -> Batch:
    """A batch of any tokens."""
    source = torch.zeros(shape.sentences, shape.source_length, dtype=torch.int64)
    target = torch.zeros(shape.sentences, shape.target_length, dtype=torch.int64)
    lengths = [torch.full((shape.sentences,), length) for length in (shape.source_length, shape.target_length)]
    return Batch(source, lengths[0], target, target, lengths[1])


def blank_slot(batch: Batch, target_tokens: int) -> TranslationSlot:
    """A slot of a training step whose dropout masks have no content."""
    return TranslationSlot(batch, _BlankDropout(0, 1, 0), target_tokens, 0)


@dataclass(frozen=True)
class _BlankDropout(AddressedDropout):
    """Masks of the right shape; random numbers cannot be drawn where there is no content."""

    def mask(self, name: str, shape: Sequence[int], p: float, like: Tensor) -> Tensor | None:
        return torch.empty(tuple(shape), device=like.device, dtype=like.dtype) if p else None


def _counted(run: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def _forward(model: Seq2Seq, slot: TranslationSlot) -> tuple[dict[str, int], Tensor]:
    """Operations of each stage, and the loss."""
    carried: dict[str, Tensor] = {}
    counts: dict[str, int] = {}
    for stage in model.stages():
        with FlopCounterMode(display=False) as counter:
            carried = stage(slot, carried)
        counts[stage.name] = int(counter.get_total_flops())
    return counts, carried["loss"]


def _decoding(model: Seq2Seq, shape: Shape, beam: int) -> int:
    """Operations of decoding one sentence. A step costs what the first does, and as much more each time as the second.

    That is exact for a recurrent decoder, whose steps are alike, and for attention to all earlier outputs.
    """
    source, lengths = torch.zeros(1, shape.source_length, dtype=torch.int64), torch.tensor([shape.source_length])
    tokens = torch.zeros(1, beam, dtype=torch.int64)
    with FlopCounterMode(display=False) as encoding:
        encoded = model.encode(source, lengths)
        state = model.start(encoded, beam)
    with FlopCounterMode(display=False) as first:
        _, state, _ = model.step(tokens, state, encoded)
    growth = _counted(lambda: model.step(tokens, state, encoded)) - first.get_total_flops()
    steps = shape.target_length
    return int(encoding.get_total_flops() + steps * first.get_total_flops() + growth * (steps * (steps - 1) // 2))
