"""The coordinator's side of states: to each node those of its stages, and back from the owners of all stages."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence

import torch

from distributed.errors import LinkError
from distributed.links.frames import Frame, json_payload
from distributed.links.link import Link
from distributed.parameter_server.messages import Kind as StateKind
from distributed.parameter_server.state_links import StateLinks
from distributed.ring_tmp.messages import Kind
from distributed.ring_tmp.parts import Part
from distributed.ring_tmp.placement import Placement

WAITING = 2  # buffers that are gathered before they are written: not a copy of everything


Buffer = torch.Tensor | Callable[[Part], torch.Tensor]
"""A whole flat buffer, or what makes a stage's buffer of it where nobody has the whole."""


class StateTransfer:
    """Whole flat buffers here, buffers of stages on the way.

    Parameters
    ----------
    parts: what each stage owns.
    links: the coordinator's own to nodes.
    link_to: the link to a node, made if there is none; raises LinkError where it cannot be reached.
    shadows: whether nodes have second copies.
    """

    def __init__(self, parts: Sequence[Part], links: StateLinks, link_to: Callable[[int], Link], shadows: bool):
        self._parts, self._links, self._link, self._shadows = parts, links, link_to, shadows

    def give(self, number: int, placement: Placement, step: int, buffers: Sequence[Buffer], updates: int) -> None:
        """Send a node the states of its stages and of those whose second copy it has.

        Raises LinkError where it cannot be reached.
        """
        link, epoch = self._link(number), placement.ring.epoch
        link.send(Frame(kind=Kind.TAKE, step=step, epoch=epoch), json_payload(placement.to_dict()))
        copies = placement.shadowed_by(number) if self._shadows else []
        room = threading.Semaphore(WAITING)
        for stage in sorted({*placement.stages_of(number), *copies}):
            for index, buffer in enumerate(buffers):
                frame = Frame(kind=StateKind.STATE, step=step, tags=(stage, index, updates), epoch=epoch)
                room.acquire()
                part = self._parts[stage]
                made = gathered(part, buffer.detach().cpu()) if isinstance(buffer, torch.Tensor) else buffer(part)
                link.send(frame, made, done=room.release)

    def ask(self, owners: frozenset[int], step: int, count: int, stage: int | None = None) -> None:
        """Ask nodes for so many buffers of each of their own stages, or of one stage alone."""
        which = 0 if stage is None else 1 + stage
        with contextlib.suppress(LinkError):  # a node is gone, and the epoch with it, or the link alone
            for number in owners:
                self._link(number).send(Frame(kind=StateKind.PULL, step=step, tags=(which, count, 0)))

    def are_here(self, stage: int, count: int) -> bool:
        """Whether all buffers of a stage have come."""
        return all((stage, index) in self._links.received for index in range(count))

    def take_stage(self, stage: int, count: int) -> tuple[list[torch.Tensor], int]:
        """The buffers of a stage that have come, and how many updates have been made."""
        found = [self._links.received.pop((stage, index)) for index in range(count)]
        return [content for content, _ in found], found[0][1]

    def is_here(self, count: int) -> bool:
        """Whether all that was asked for has come."""
        return len(self._links.received) == len(self._parts) * count

    def take(self, buffers: Sequence[torch.Tensor]) -> int:
        """Write what has come into whole buffers; returns how many updates have been made."""
        made = 0
        for (stage, index), (content, updates) in self._links.received.items():
            scatter(self._parts[stage], content, buffers[index])
            made = updates
        self._links.received.clear()
        return made


def gathered(part: Part, flat: torch.Tensor) -> torch.Tensor:
    """What of a whole flat buffer belongs to a stage, as a buffer of its own."""
    found = torch.zeros(part.size)
    for one in part.held:
        start = part.local(one.start)
        found[start : start + one.stop - one.start] = flat[one.start : one.stop]
    return found


def scatter(part: Part, buffer: torch.Tensor, flat: torch.Tensor) -> None:
    """Write a stage's buffer to its places of the whole one."""
    for one in part.held:
        start = part.local(one.start)
        flat[one.start : one.stop] = buffer[start : start + one.stop - one.start]
