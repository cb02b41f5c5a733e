"""Counting parameters: of a model, and of a configuration before any corpus is read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from nmt.config.schema import RunConfig


def count_parameters(model: nn.Module) -> int:
    """Number of trainable numbers; a parameter that several layers share counts once."""
    return sum(parameters_by_module(model).values())


def parameters_by_module(model: nn.Module) -> dict[str, int]:
    """The same count by module, two levels deep: `{"encoder.forwards": ..., "decoder.attention": ..., ...}`."""
    counts: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        module = module_of(name)
        counts[module] = counts.get(module, 0) + parameter.numel()
    return counts


def module_of(name: str) -> str:
    """The module, two levels deep, that a parameter is counted under: `decoder.cells.0.bias` -> `decoder.cells`."""
    return ".".join(name.split(".")[:-1][:2])


def keeps_more_than_parameters(model: nn.Module) -> bool:
    """Whether a module has buffers, or tensors as plain attributes."""
    attributes = (value for module in model.modules() for value in vars(module).values())
    return any(True for _ in model.buffers()) or any(isinstance(one, torch.Tensor) for one in attributes)


def planned_parameters(config: RunConfig) -> int:
    """Parameters of the model that `config` describes, at its declared `tokenizer.vocab_size`.

    Builds the model without memory for its values, so it takes milliseconds at any size and reads no corpus.
    """
    from nmt.models.seq2seq import build_model

    with torch.device("meta"):
        model = build_model(config.model, config.tokenizer.vocab_size, config.tokenizer.vocab_size)
    return count_parameters(model)
