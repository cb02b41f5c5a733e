"""The convolutional encoder (Gehring et al. 2016, "A convolutional encoder model for neural machine translation")."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nmt.config.schema import EncoderConfig
from nmt.models.dropout import Dropout
from nmt.models.encoder import EncoderOutput, mean_over_time, zero_beyond_end
from nmt.models.initialisation import Constant, Draw, Glorot
from nmt.models.layers import Affine
from nmt.models.positions import Positions
from nmt.models.stages import SOURCE, Part, Slot


class Convolution(Affine):
    """A convolution over time, as one matrix product over windows of neighbouring steps; its output has as many steps.

    A matrix product, because its bits depend neither on threads nor on the batch. An even kernel reaches one step
    further ahead than back, as TensorFlow's padding "SAME" does.

    Parameters
    ----------
    kernel_size: steps that an output sees. input_units, units: widths.
    """

    def __init__(self, kernel_size: int, input_units: int, units: int):
        super().__init__(kernel_size * input_units, units)
        self.kernel_size = kernel_size

    def forward(self, x: Tensor) -> Tensor:
        """[time, batch, in] -> [time, batch, units], with zeros before the first step and after the last."""
        return super().forward(torch.cat(windows(x, self.kernel_size), dim=-1))

    def first_values(self) -> dict[str, Draw]:
        """TensorFlow counts the kernel in both fans of a convolution."""
        weight = Glorot.of(self.in_features, self.kernel_size * self.out_features)
        return {"weight": weight, "bias": Constant(0.0)}


class ConvolutionStack(nn.ModuleList):
    """Convolutions on top of each other, each followed by tanh; from the second on the input is added before it."""

    def __init__(self, layers: int, kernel_size: int, input_units: int, units: int):
        super().__init__(Convolution(kernel_size, width, units) for width in [input_units] + [units] * (layers - 1))

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """[time, batch, in] -> [time, batch, units]; `x` must be zero beyond each sentence's end, as the result is."""
        for layer in range(len(self)):
            x = self.layer(layer, x, lengths)
        return x

    def layer(self, layer: int, x: Tensor, lengths: Tensor) -> Tensor:
        """One convolution, with what follows it."""
        y = self[layer](x).to(x.dtype)  # under autocast only products are made in low precision
        return zero_beyond_end((y + x if layer else y).tanh(), lengths)


class ConvolutionalEncoder(nn.Module):
    """Two stacks of convolutions over embeddings with positions: one makes what queries meet, the other the contexts.

    `outputs` are the top of the first stack (the original's `attention_cnn`), of `config.units` and `config.layers`;
    `values` that of the second (`output_cnn`); the final state is the mean of the values over the sentence.

    Each layer's outputs are set to zero beyond the sentence's end, so every sentence is read as if alone. In
    google/seq2seq that held for the longest sentence of a batch only: beyond a shorter one's end there were zeros in
    front of the first layer, but tanh(bias) and whatever crept in over the end behind it, which the sentence's
    last steps saw from the second layer on, and its mean over time counted those steps too.

    Parameters
    ----------
    config: `units` and `layers` of the first stack; there are no cells.
    input_units: width e of the embeddings.
    kernel_size: steps that a convolution of the first stack sees.
    value_units, value_layers, value_kernel_size: the same of the second stack.
    positions, combiner, num_positions: see `nmt.models.positions.Positions`.
    dropout: probability of dropping a unit of the embeddings, after their positions have come in.
    """

    def __init__(
        self,
        config: EncoderConfig,
        input_units: int,
        kernel_size: int = 3,
        value_units: int = 256,
        value_layers: int = 5,
        value_kernel_size: int = 3,
        positions: str = "memn2n",
        combiner: str = "multiply",
        num_positions: int = 100,
        dropout: float = 0.2,
    ):
        super().__init__()
        self.positions = Positions(positions, combiner, num_positions, input_units)
        self.dropout = dropout
        self.attention_cnn = ConvolutionStack(config.layers, kernel_size, input_units, config.units)
        self.output_cnn = ConvolutionStack(value_layers, value_kernel_size, input_units, value_units)
        self.output_units = config.units
        self.value_units = self.state_units = value_units

    def forward(self, embedded: Tensor, lengths: Tensor, dropout: Dropout) -> EncoderOutput:
        """Read embeddings [time, batch, e] of sentences of `lengths` [batch] tokens."""
        x = self._enter(embedded, lengths, dropout)
        values = self.output_cnn(x, lengths)
        return EncoderOutput(self.attention_cnn(x, lengths), mean_over_time(values, lengths), values)

    def parts(self, fields: Collection[str], directions: bool = True) -> list[Part]:
        """A part a convolution: those of the values, then those of the outputs."""
        values = self._stack_parts("output_cnn", self.output_cnn, "values", fields)
        return values + self._stack_parts("attention_cnn", self.attention_cnn, "outputs", ())

    def _stack_parts(self, name: str, stack: ConvolutionStack, makes: str, fields: Collection[str]) -> list[Part]:
        def part(layer: int) -> Part:
            first, last = layer == 0, layer == len(stack) - 1
            enters = first and stack is self.output_cnn
            below = "encoder.embedded" if first else f"encoder.{name}"

            def run(slot: Slot, carried: Mapping[str, Tensor]) -> dict[str, Tensor]:
                lengths = slot.batch.source_lengths
                made = {below: self._enter(carried[SOURCE], lengths, slot.dropout)} if enters else {}
                x = stack.layer(layer, made[below] if enters else carried[below], lengths)
                made[makes if last else f"encoder.{name}"] = x
                if last and "final_state" in fields:
                    made["final_state"] = mean_over_time(x, lengths)
                return made

            made = [makes, *({"final_state"} & set(fields))] if last else [f"encoder.{name}"]
            modules = (stack[layer], self.positions) if enters else (stack[layer],)
            return Part(
                f"encoder.{name}.{layer}",
                run,
                [SOURCE] if enters else [below],
                [*made, *([below] if enters else [])],
                modules,
            )

        return [part(layer) for layer in range(len(stack))]

    def _enter(self, embedded: Tensor, lengths: Tensor, dropout: Dropout) -> Tensor:
        """What both stacks read."""
        x = dropout("encoder.embedded", self.positions(embedded), self.dropout)
        return zero_beyond_end(x, lengths)


def windows(x: Tensor, size: int) -> list[Tensor]:
    """The `size` tensors [time, batch, units] that hold, for each step, its neighbours in order, itself among them.

    With an even size the step itself is the earlier of the middle two. Beyond either end there are zeros.
    """
    before = (size - 1) // 2
    padded = F.pad(x, (0, 0, 0, 0, before, size - 1 - before))
    return [padded[start : start + x.shape[0]] for start in range(size)]
