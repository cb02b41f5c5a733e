"""Residual connections of recurrent stacks, as google/seq2seq's ExtendedMultiRNNCell has them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nmt.config.schema import ResidualConfig
from nmt.config.widths import stack_widths
from nmt.models.layers import Affine


class Residual(nn.Module):
    """Connections past the layers of a stack: what each layer passes on, from what it made and what went in before.

        none: out = y        add: out = y + Σ ins        mean: out = y + (1/n) Σ ins        concat: out = [y; ins]

    `ins` is what the layer was given; with `dense` everything that was passed on so far, from the stack's input up
    (Britz et al. 2017, equation 5: so the sums are of *combined* outputs). `mean` does not average y, and equals `add`
    unless dense. The last layer's output is combined too.

    For `add` and `mean` an input of another width than the layers goes through an affine map first, the input
    transform. `concat` grows with every layer and is never projected back.

    Parameters
    ----------
    config: combiner and dense.
    input_units: width of the stack's input. units: width of a layer's own output y. layers: their number.
    """

    def __init__(self, config: ResidualConfig, input_units: int, units: int, layers: int):
        super().__init__()
        self.config = config
        self.widths = stack_widths(config, input_units, units, layers)
        self.input_transform = Affine(input_units, units) if self.widths[0] != input_units else None

    @property
    def active(self) -> bool:
        """Whether layers pass on more than they make."""
        return self.config.combiner != "none"

    @property
    def output_units(self) -> int:
        """Width of what the last layer passes on."""
        return self.widths[-1]

    def enter(self, x: Tensor) -> Tensor:
        """The stack's input [..., input_units] as its first layer gets it [..., widths[0]]."""
        return x if self.input_transform is None else self.input_transform(x)

    def combine(self, y: Tensor, passed: Sequence[Tensor]) -> Tensor:
        """What a layer passes on, from its output [..., units] and all that was passed on so far, the input first."""
        if not self.active:
            return y
        ins = list(passed) if self.config.dense else [passed[-1]]
        if self.config.combiner == "concat":
            return torch.cat((y, *ins), dim=-1)
        total = sum(ins[1:], start=ins[0])
        return y + (total / len(ins) if self.config.combiner == "mean" else total)

    def combine_back(self, gradient: Tensor, units: int, layer: int) -> tuple[Tensor, dict[int, Tensor]]:
        """Back through `combine` of a layer: the gradients of y, and of what was passed on before, by its place.

        `units` is the width of y. The tensors may be `gradient` itself, or views of it.
        """
        if not self.active:
            return gradient, {}
        places = range(layer + 1) if self.config.dense else [layer]
        if self.config.combiner == "concat":
            to_y, *shares = gradient.split([units, *(self.widths[place] for place in places)], dim=-1)
            return to_y, dict(zip(places, shares, strict=True))
        share = gradient / len(places) if self.config.combiner == "mean" else gradient
        return gradient, dict.fromkeys(places, share)
