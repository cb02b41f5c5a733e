"""Flat buffers that backward passes write gradients to, parameter by parameter."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch.autograd.graph import Node, get_gradient_edge

from distributed.arithmetic import FlatParameters


class GradientBuffers:
    """The buffer of one leaf after the other, with the bits of a sum that began at zero.

    A parameter's first gradient is written over what is there, and parts that no backward pass comes to are set to zero
    at the end: to begin with zeros would be to write everything once more and to read it again. What is zero still from
    the buffer's last use is left alone. Gradients are taken on their way to the parameters, whose `.grad` stays None.

    Parameters
    ----------
    flat: the parameters, whose buffers are taken.
    parameters: theirs, by name.
    only_read: whether nobody writes to a buffer between `end` and its release. Without, nothing is known of one that
        comes again.
    came: told the name of each parameter whose gradient a backward pass has just added.
    """

    def __init__(
        self,
        flat: FlatParameters,
        parameters: Mapping[str, torch.nn.Parameter],
        only_read: bool,
        came: Callable[[str], None] = lambda name: None,
    ):
        self._flat, self._only_read, self._came = flat, only_read, came
        self._names = parameters.keys()
        self._ways: list[Node] = []  # a parameter refers to its own only weakly
        for name, parameter in parameters.items():
            way = get_gradient_edge(parameter).node
            way.register_prehook(lambda gradients, name=name: self._take(name, gradients))
            self._ways.append(way)
        self._zero: dict[int, frozenset[str]] = {}  # by address, the parameters whose parts are zero
        self._known: frozenset[str] = frozenset()  # those of the buffer in hand, when it was begun
        self._written: set[str] = set()

    def begin(self) -> torch.Tensor:
        """A buffer to which gradients go from now on."""
        self._buffer = self._flat.used_buffer()
        self._parts = self._flat.views(self._buffer)
        self._known = self._zero.pop(self._buffer.data_ptr(), frozenset())
        self._written.clear()
        return self._buffer

    def end(self) -> None:
        """Set to zero what no backward pass came to; the buffer is the caller's, to read or to add to."""
        zero = self._names - self._written
        for name in zero - self._known:
            self._parts[name].zero_()
        if self._only_read:
            self._zero[self._buffer.data_ptr()] = frozenset(zero)

    def added(self, left: torch.Tensor, right: torch.Tensor) -> None:
        """Note that one ended buffer was added to another."""
        both = self._zero.pop(left.data_ptr(), frozenset()) & self._zero.get(right.data_ptr(), frozenset())
        if self._only_read:
            self._zero[left.data_ptr()] = both

    def forget(self, buffer: torch.Tensor) -> None:
        """Know nothing of what is in a buffer, so that it may be released in the middle of anything."""
        self._zero.pop(buffer.data_ptr(), None)

    def _take(self, name: str, gradients: Sequence[torch.Tensor | None]) -> tuple[None]:
        """Add a parameter's gradient to its part; nothing is left for the parameter itself."""
        gradient, part = gradients[0], self._parts[name]
        if gradient is None:
            return (None,)
        if name in self._written:
            part.add_(gradient)
        else:
            torch.add(gradient, 0.0, out=part)  # -0.0 becomes 0.0, as in a sum with zero
            self._written.add(name)
        self._came(name)
        return (None,)
