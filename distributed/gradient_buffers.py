"""Flat buffers that backward passes write gradients to, parameter by parameter."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from distributed.arithmetic import FlatParameters


class GradientBuffers:
    """The buffer of one leaf after the other, with the bits of a sum that began at zero.

    A parameter's first gradient is written over what is there, and parts that no backward pass comes to are set to zero
    at the end: to begin with zeros would be to write everything once more and to read it again. What is zero still from
    the buffer's last use is left alone.

    Parameters
    ----------
    flat: the parameters, whose buffers are taken.
    parameters: theirs, by name.
    only_read: whether nobody writes to a buffer between `end` and its release. Without, nothing is known of one that
        comes again.
    """

    def __init__(self, flat: FlatParameters, parameters: Iterable[tuple[str, torch.nn.Parameter]], only_read: bool):
        self._flat, self._only_read = flat, only_read
        self._parameters = dict(parameters)
        self._zero: dict[int, frozenset[str]] = {}  # by address, the parameters whose parts are zero
        self._known: frozenset[str] = frozenset()  # those of the buffer in hand, when it was begun
        self._written: set[str] = set()

    def begin(self) -> torch.Tensor:
        """A buffer to which gradients go from now on."""
        self._buffer = self._flat.used_buffer()
        self._parts = self._flat.views(self._buffer)
        self._known = self._zero.pop(self._buffer.data_ptr(), frozenset())
        self._written.clear()
        for parameter in self._parameters.values():
            parameter.grad = None
        return self._buffer

    def add(self, name: str) -> None:
        """Take over the gradient that a backward pass has just left at a parameter."""
        parameter, part = self._parameters[name], self._parts[name]
        gradient, parameter.grad = parameter.grad, None
        assert gradient is not None
        if name in self._written:
            part.add_(gradient)
        else:
            torch.add(gradient, 0.0, out=part)  # -0.0 becomes 0.0, as in a sum with zero
            self._written.add(name)

    def end(self) -> None:
        """Set to zero what no backward pass came to; the buffer is the caller's, to read or to add to."""
        zero = self._parameters.keys() - self._written
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
