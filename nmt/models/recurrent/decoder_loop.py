"""The recurrent decoder over a whole target: the training form of `nmt.models.decoder.RecurrentDecoder`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from nmt.models.recurrent.arithmetic import Program, Weight, compute_type, run
from nmt.models.recurrent.attention_kernels import AttentionKernel
from nmt.models.recurrent.kernels import CellKernel
from nmt.models.residual import Residual
from nmt.models.watch import GradientWatch


@dataclass(frozen=True)
class Layer:
    """A cell of the stack as the loop sees it: its parameters, and the dropout masks [time, batch, …] around it."""

    kernel: type[CellKernel]
    state_parts: int
    units: int
    input_weight: Tensor
    bias: Tensor
    parameters: Sequence[Tensor]
    input_mask: Tensor | None
    output_mask: Tensor | None


@dataclass(frozen=True)
class Attended:
    """Attention as the loop sees it; see `nmt.models.recurrent.attention_kernels`."""

    kernel: type[AttentionKernel]
    keys: Tensor
    values: Tensor
    mask: Tensor
    parameters: tuple[Tensor, ...]
    query_weight: Tensor | None  # None: the decoder's output is the query
    query_bias: Tensor | None


def decode_sequence(
    embedded: Tensor,
    first: Tensor,
    residual: Residual,
    layers: Sequence[Layer],
    attended: Attended | None,
    watch: GradientWatch | None = None,
) -> tuple[Tensor, Tensor]:
    """What the stack puts out [time, batch, units] and the contexts [time, batch, C], at every step.

    Parameters
    ----------
    embedded: [time, batch, e] inputs, before the first layer's mask.
    first: [batch, state units], the cells' first states side by side.
    layers: those of the stack that `residual` belongs to, or the lowest of them.
    """
    program = _DecoderProgram(embedded, first, residual, layers, attended, watch)
    tops, contexts = run(program, *program.inputs)
    return tops, contexts


class Tape:
    """A layer's buffers over all steps, and its kernel.

    The parameters are those of the loop's inputs, without autograd. `inputs` [time, batch, in] is what the cell's input
    weight meets; None where that is the output of the layer below as it is.
    """

    def __init__(self, layer: Layer, inputs: Tensor | None, time: int, first: Sequence[Tensor], dtype: torch.dtype):
        self.layer, self.inputs = layer, inputs
        like = layer.bias.detach()
        self.kernel = layer.kernel(layer.parameters, dtype)
        self.weight, self.bias = Weight(layer.input_weight, dtype), like
        batch = len(first[0])
        self.gates = like.new_empty(time, batch, len(like))
        self.extra = like.new_empty(time, batch, self.kernel.extra_blocks * layer.units)
        self.states = [like.new_empty(time + 1, batch, layer.units) for _ in first]
        for part, value in zip(self.states, first, strict=True):
            part[0].copy_(value)

    def step(self, t: int) -> Tensor:
        """From the projected inputs in `gates[t]` to the layer's output, after its mask."""
        before, after = ([part[i] for part in self.states] for i in (t, t + 1))
        self.kernel.forward(self.gates[t], self.extra[t], before, after)
        return masked(after[0], self.layer.output_mask, t)

    def step_back(self, t: int, to_output: Tensor, carried: list[Tensor], seen: Seen | None) -> list[Tensor]:
        """Gradients of the states before step t, from that of its output and those carried from the step after."""
        before, after = ([part[i] for part in self.states] for i in (t, t + 1))
        to_state = torch.add(masked(to_output, self.layer.output_mask, t), carried[0])
        if seen is not None:
            seen(to_state)
        return self.kernel.backward(self.gates[t], self.extra[t], before, after, [to_state, *carried[1:]])

    def outputs(self) -> Tensor:
        """h of every step [time, batch, units]."""
        return self.states[0][1:]

    def parameter_gradients(self, inputs: Tensor) -> list[Tensor]:
        """Of the input weight, the bias and the kernel's parameters, after the last step back."""
        gates, extra, before = (x.flatten(0, 1) for x in (self.gates, self.extra, self.states[0][:-1]))
        weight = self.weight.gradient(gates, inputs.flatten(0, 1))
        return [weight, gates.sum(dim=0), *self.kernel.parameter_gradients(gates, extra, before)]


Seen = Callable[[Tensor], None]  # told of the gradient of a layer's output at a step


class _DecoderProgram(Program):
    def __init__(
        self,
        embedded: Tensor,
        first: Tensor,
        residual: Residual,
        layers: Sequence[Layer],
        attended: Attended | None,
        watch: GradientWatch | None,
    ):
        self.embedded, self.first, self.residual, self.layers = embedded.detach(), first.detach(), residual, layers
        self.attended, self.watch, self.dtype = attended, watch, compute_type(embedded)
        self.time, self.batch, self.width = embedded.shape
        self.inputs = [embedded, first]
        if residual.input_transform is not None:
            self.inputs += [residual.input_transform.weight, residual.input_transform.bias]
        for layer in layers:
            self.inputs += [layer.input_weight, layer.bias, *layer.parameters]
        if attended is not None:
            self.inputs += [attended.keys, attended.values, *attended.parameters]
            if attended.query_weight is not None and attended.query_bias is not None:
                self.inputs += [attended.query_weight, attended.query_bias]

    def forward(self) -> tuple[Tensor, ...]:
        self._prepare()
        for t in range(self.time):
            passed = [self._enter(t)]
            for number, tape in enumerate(self.tapes):
                if number > 0:
                    x = passed[-1]
                    if tape.inputs is not None:
                        x = multiplied(x, tape.layer.input_mask, t, out=tape.inputs[t])
                    tape.weight.affine(x, tape.bias, out=tape.gates[t])
                passed.append(self.residual.combine(tape.step(t), passed))
            if self.tops is not None:
                self.tops[t].copy_(passed[-1])
            if self.attention is not None:
                self._ask(t, passed[-1])
                self.attention.forward(t, self.contexts[t + 1])
        return self._outputs(), self.contexts[1:]

    def backward(self, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        to_tops, to_contexts = (gradient.clone() for gradient in gradients)
        carried = [[torch.zeros_like(part[0]) for part in tape.states] for tape in self.tapes]
        to_context: Tensor | None = None  # of the context that step t + 1 was fed
        for t in reversed(range(self.time)):
            if self.attention is not None:
                if to_context is not None:
                    to_contexts[t].add_(to_context)
                to_query = self.attention.backward(t, to_contexts[t])
                if self.query is None:
                    to_tops[t].add_(to_query)
                else:
                    self.to_queries[t].copy_(to_query)
                    self.query.add_back_product(to_tops[t], to_query)
            to_entry = self._stack_back(t, to_tops[t], carried)
            to_context = self._enter_back(t, to_entry)
        to_first = torch.cat([part for parts in carried for part in parts], dim=-1)
        return self._to_embedded(), to_first, *self._parameter_gradients(), *self._attention_gradients(to_contexts)

    def _prepare(self) -> None:
        """Allocate, and make every product that does not wait for an earlier step."""
        like, time, batch, e, dtype = self.embedded, self.time, self.batch, self.width, self.dtype
        context_units = 0 if self.attended is None else self.attended.values.shape[-1]
        self.contexts = like.new_zeros(time + 1, batch, context_units)  # at t the one that step t is fed
        self.joined = like.new_empty(time, batch, e + context_units)  # [embedding; context] as the weights meet it
        first = iter(self.first.split(self.layers[0].units, dim=-1))
        self.tapes: list[Tape] = []
        for number, layer in enumerate(self.layers):
            inputs: Tensor | None = None
            if number == 0 and self.residual.input_transform is None:
                inputs = self.joined
            elif number == 0 or self.residual.active or layer.input_mask is not None or self._masks_output(number - 1):
                inputs = like.new_empty(time, batch, layer.input_weight.shape[-1])
            parts = [next(first) for _ in range(layer.state_parts)]
            self.tapes.append(Tape(layer, inputs, time, parts, dtype))
        plain = not self.residual.active and not self._masks_output(-1)
        self.tops = None if plain else like.new_empty(time, batch, self.residual.widths[len(self.layers)])
        bottom, columns, rest = self.tapes[0], self.joined[..., :e], slice(e, None)
        transform = self.residual.input_transform
        if transform is None:
            mask = bottom.layer.input_mask
            self.context_mask = None if mask is None else mask[..., e:]
            multiplied(self.embedded, None if mask is None else mask[..., :e], slice(None), out=columns)
            weight, bias, into = bottom.layer.input_weight, bottom.bias, bottom.gates
        else:
            columns.copy_(self.embedded)
            self.entries = like.new_empty(time, batch, transform.out_features)
            self.to_entries = torch.empty_like(self.entries)
            weight, bias, into = transform.weight, transform.bias.detach(), self.entries
        self.embedding_weight, self.context_weight = Weight(weight[:, :e], dtype), Weight(weight[:, rest], dtype)
        self.embedding_weight.affine(columns.flatten(0, 1), bias, out=into.flatten(0, 1))
        # Gradients that reach the embeddings past the first cell, through residual connections.
        passes = transform is None and self.residual.active
        self.to_passed_embedded = torch.zeros_like(self.embedded) if passes else None
        self.attention: AttentionKernel | None = None
        self.query: Weight | None = None
        if self.attended is not None:
            a = self.attended
            self.attention = a.kernel(a.keys, a.values, a.mask, a.parameters, time)
            if a.query_weight is not None:
                self.query = Weight(a.query_weight, dtype)
                self.to_queries = torch.empty_like(self.attention.queries)

    def _enter(self, t: int) -> Tensor:
        """What enters the stack at step t; leaves the first cell's projected inputs in its gates."""
        bottom, context = self.tapes[0], self.contexts[t]
        columns = self.joined[t, :, self.width :]
        if self.residual.input_transform is None:
            if self.attended is not None:
                multiplied(context, self.context_mask, t, out=columns)
                self.context_weight.add_product(bottom.gates[t], columns)
            return torch.cat((self.embedded[t], context), dim=-1) if self.residual.active else context
        entry = self.entries[t]
        columns.copy_(context)
        self.context_weight.add_product(entry, columns)
        assert bottom.inputs is not None
        x = multiplied(entry, bottom.layer.input_mask, t, out=bottom.inputs[t])
        bottom.weight.affine(x, bottom.bias, out=bottom.gates[t])
        return entry

    def _enter_back(self, t: int, to_entry: Tensor | None) -> Tensor | None:
        """The gradient of the context that step t was fed, from that of what entered the stack past the first cell."""
        if self.residual.input_transform is not None:
            assert to_entry is not None
            self.to_entries[t].copy_(to_entry)
            return self.context_weight.back_product(to_entry) if self.attended is not None else None
        to_context = None
        if self.attended is not None:
            to_context = masked(self.context_weight.back_product(self.tapes[0].gates[t]), self.context_mask, t)
        if to_entry is not None and self.to_passed_embedded is not None:
            self.to_passed_embedded[t].copy_(to_entry[:, : self.width])
            if to_context is not None:
                to_context += to_entry[:, self.width :]
        return to_context

    def _stack_back(self, t: int, to_top: Tensor, carried: list[list[Tensor]]) -> Tensor | None:
        """Through the layers from the top, replacing `carried`; the gradient of what entered them, past the cells."""
        to_passed: list[Tensor | None] = [None] * len(self.tapes) + [to_top]
        for number in reversed(range(len(self.tapes))):
            tape, gradient = self.tapes[number], to_passed[number + 1]
            assert gradient is not None
            to_output, to_below = self.residual.combine_back(gradient, tape.layer.units, number)
            for below, share in to_below.items():
                to_passed[below] = _sum(to_passed[below], share)
            seen = None if self.watch is None else partial(self.watch.record, f"decoder.{number}")
            carried[number] = tape.step_back(t, to_output, carried[number], seen)
            if number > 0 or self.residual.input_transform is not None:
                to_inputs = masked(tape.weight.back_product(tape.gates[t]), tape.layer.input_mask, t)
                to_passed[number] = _sum(to_passed[number], to_inputs)
        return to_passed[0]

    def _ask(self, t: int, top: Tensor) -> None:
        """Make the query of step t."""
        assert self.attention is not None and self.attended is not None
        if self.query is None or self.attended.query_bias is None:
            self.attention.queries[t].copy_(top)
        else:
            self.query.affine(top, self.attended.query_bias.detach(), out=self.attention.queries[t])

    def _outputs(self) -> Tensor:
        return self.tapes[-1].outputs() if self.tops is None else self.tops

    def _masks_output(self, number: int) -> bool:
        return self.layers[number].output_mask is not None

    def _to_embedded(self) -> Tensor:
        transform = self.residual.input_transform
        gradients = self.tapes[0].gates if transform is None else self.to_entries
        to_embedded = self.embedding_weight.back_product(gradients.flatten(0, 1)).view_as(self.embedded)
        mask = self.layers[0].input_mask
        if transform is None and mask is not None:
            to_embedded *= mask[..., : self.width]
        return _sum(to_embedded, self.to_passed_embedded)

    def _parameter_gradients(self) -> list[Tensor]:
        found: list[Tensor] = []
        if self.residual.input_transform is not None:
            gradients, joined = self.to_entries.flatten(0, 1), self.joined.flatten(0, 1)
            found += [self.embedding_weight.gradient(gradients, joined), gradients.sum(dim=0)]
        for number, tape in enumerate(self.tapes):
            inputs = tape.inputs
            found += tape.parameter_gradients(self.tapes[number - 1].outputs() if inputs is None else inputs)
        return found

    def _attention_gradients(self, to_contexts: Tensor) -> list[Tensor]:
        if self.attention is None:
            return []
        to_keys, *to_parameters = self.attention.score_gradients()
        found = [to_keys, self.attention.value_gradient(to_contexts), *to_parameters]
        if self.query is not None:
            to_queries = self.to_queries.flatten(0, 1)
            found += [self.query.gradient(to_queries, self._outputs().flatten(0, 1)), to_queries.sum(dim=0)]
        return found


def masked(x: Tensor, mask: Tensor | None, t: int) -> Tensor:
    """`x` itself, or times the mask of step t."""
    return x if mask is None else x * mask[t]


def multiplied(x: Tensor, mask: Tensor | None, t: int | slice, out: Tensor) -> Tensor:
    """`x`, or `x` times the mask of step t, in `out`."""
    return out.copy_(x) if mask is None else torch.mul(x, mask[t], out=out)


def _sum(one: Tensor | None, other: Tensor | None) -> Tensor:
    if one is None or other is None:
        found = other if one is None else one
        assert found is not None
        return found
    return one + other
