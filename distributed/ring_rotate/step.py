"""A step at a node, phase after phase: what is computed when, and what has to be waited for in between."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, NamedTuple

from distributed.ring_rotate.computation import Computation
from distributed.ring_rotate.node import RotateNode
from distributed.ring_rotate.plan import Phase
from distributed.strategy import OptimizerSpec
from distributed.timeline import Lane


class Wait(NamedTuple):
    """What neighbours have to bring about before a step can go on.

    what: as a noun.
    is_over: asked under the lock.
    """

    what: str
    is_over: Callable[[], bool]


class Steps:
    """The steps of a node.

    Parameters
    ----------
    node, computation: what it holds and what it computes.
    specification: of the updates.
    lock: guards the node.
    lane: where times are noted.
    reach: told of everything that begins, with the step.
    """

    def __init__(
        self,
        node: RotateNode,
        computation: Computation,
        specification: OptimizerSpec,
        lock: AbstractContextManager[Any],
        lane: Lane,
        reach: Callable[[str, int], None],
    ):
        self._node, self._computation, self._specification = node, computation, specification
        self._lock, self._lane, self._reach = lock, lane, reach
        self._brought: dict[int, int] = {}  # by unit that is here, the gather that has brought it
        self.most_bytes = 0
        """Of parameters, gradients and optimizer state that were here at a time."""

    def walk(self, step: int, scale: float, probe: bool) -> Iterator[Wait]:
        """Compute the open step up to where it can be applied; goes on once what it yields is over.

        While a phase is computed, the parameters of the next come, and gradients of the one before leave.

        scale: by which the scheduled learning rate is multiplied.
        """
        node, computation, phases = self._node, self._computation, self._computation.plan.phases
        self._reach("batches", step)
        with self._lane.busy:
            computation.begin(step, node.own_seats, probe)
        self._open(phases[0])
        for number, phase in enumerate(phases):
            yield Wait("parameters", partial(self._are_here, phase))
            if number:
                yield from self._let_go(phases[number - 1])
            if number + 1 < len(phases):
                self._open(phases[number + 1])
            if number > 1:  # so that gradients of two phases are here, at most
                yield Wait("room for gradients", partial(self._have_left, phases[number - 2]))
            self._reach(phase.kind.value, step)
            with self._lane.busy:
                complete = computation.run(phase)
            self._note_bytes(sum(one.nbytes for of_seats in complete.values() for one in of_seats.values()))
            with self._lock:
                for unit, gradients in complete.items():
                    node.reduces.contribute(unit, gradients)
            del complete
        yield from self._let_go(phases[-1])
        said = computation.facts()
        yield Wait("gradients", lambda: node.gradients.are_complete)
        self._reach("squares", step)
        with self._lane.busy:
            self._add_squares(said, scale)
        self._reach("complete", step)
        with self._lock:
            node.speak(said)
        yield Wait("what others say", lambda: node.is_decided)

    def _are_here(self, phase: Phase) -> bool:
        return all(map(self._node.gathers.is_here, phase.gathers))

    def _have_left(self, phase: Phase) -> bool:
        return all(map(self._node.reduces.is_done, phase.completes))

    def _add_squares(self, said: Mapping[int, dict[str, Any]], scale: float) -> None:
        """What there is to say of this node's shards, and the rate that is taken."""
        for seat, of_seat in said.items():
            gradient, shard = self._node.gradients.of(seat), self._node.shards[seat]
            of_seat["rate"] *= scale
            of_seat["squares"] = shard.square_sum(gradient)
            of_seat["clipped"] = shard.squares(gradient, list(self._specification.parameter_max_norms))
            of_seat["probed"] = shard.squares(gradient) if of_seat["probe"] else {}

    def _open(self, phase: Phase) -> None:
        """Make room for what a phase needs that is not here."""
        with self._lane.copy, self._lock:
            for gather in phase.gathers:
                self._node.open_gather(gather)
        self._brought |= zip(phase.brings, phase.gathers, strict=True)
        self._note_bytes(0)

    def _let_go(self, phase: Phase) -> Iterator[Wait]:
        """Give the memory of units back that a phase was the last to read for now, once they are sent on."""
        gathers = [self._brought[unit] for unit in phase.frees]
        yield Wait("its successor to take parameters", lambda: all(map(self._node.gathers.is_gone, gathers)))
        for unit in phase.frees:
            self._computation.memories[unit].free()

    def _note_bytes(self, more: int) -> None:
        with self._lock:
            self.most_bytes = max(self.most_bytes, self._node.held_bytes + self._computation.bytes + more)
