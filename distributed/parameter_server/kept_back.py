"""What workers keep back of their gradients (`distribution.top_k`), on its way to a checkpoint and from one.

It lies in the workers alone. Where the trainer wants the state, the coordinator gathers it over the control links, and
where training begins from a state it gives each worker one of the memories of it. What a lost worker had is lost, and
the one that comes in its place begins with nothing: both are counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch

from distributed.links.frames import Frame, as_tensor
from distributed.parameter_server.messages import Kind
from distributed.parameter_server.setup import Setup
from distributed.parameter_server.top_k import ErrorFeedback
from distributed.parameter_server.trace import NOBODY, TraceWriter

BLOCK = 1 << 22  # elements of a frame: signs of life have to get through between two


def frames_of(part: int, memory: ErrorFeedback) -> Iterator[tuple[Frame, torch.Tensor]]:
    """A memory as frames, which must not change until they are written."""
    for number, buffer in enumerate(memory.buffers.values()):
        for block, content in enumerate(buffer.split(BLOCK)):
            yield Frame(kind=Kind.MEMORY, tags=(part, number, block)), content


def put(memory: ErrorFeedback, frame: Frame, payload: memoryview) -> None:
    """Take over a frame that `frames_of` gave."""
    _, number, block = frame.tags
    content = as_tensor(payload, torch.float32)
    list(memory.buffers.values())[number][block * BLOCK :][: len(content)].copy_(content)


class KeptBack:
    """The memories of a run's workers, as the coordinator has them: by part, as of the last state.

    Parameters
    ----------
    setup: the run.
    """

    def __init__(self, setup: Setup):
        self._setup = setup
        self.is_used = bool(setup.wire.top_k)
        """Whether there is anything of the kind in this run."""
        self.memories: dict[int, ErrorFeedback] = {}
        self.lost = self.from_nothing = 0
        self._gathering: dict[int, ErrorFeedback] = {}
        self._heirs: dict[int, int] = {}  # by worker, whose memory it went on with when training began
        self._begun_behind: int | None = None  # the step, where traces do not say it yet

    def new(self) -> ErrorFeedback:
        """A memory with nothing in it."""
        return ErrorFeedback(self._setup.elements, self._setup.wire.momentum)

    def gather(self) -> None:
        """Forget the last state's: the workers are asked."""
        self.memories, self._gathering = {}, {}

    def take(self, frame: Frame, payload: memoryview) -> None:
        """A part of a worker's."""
        if frame.tags[0] not in self._gathering:
            self._gathering[frame.tags[0]] = self.new()
        put(self._gathering[frame.tags[0]], frame, payload)

    def complete(self, part: int) -> None:
        """All of a worker's is here."""
        self.memories[part] = self._gathering.pop(part)

    def deal_out(self, workers: Iterable[int]) -> Mapping[int, int]:
        """By worker, whose memory it gets of the state that training begins from: both in ascending order."""
        self._heirs = dict.fromkeys(sorted(workers), NOBODY)
        dealt = dict(zip(self._heirs, sorted(self.memories), strict=False))
        self._heirs |= dealt
        return dealt

    def begin(self, step: int) -> None:
        """Training begins with what was dealt out, behind a step."""
        self._begun_behind = step
        self.from_nothing += list(self._heirs.values()).count(NOBODY)
        self.lost += max(0, len(self.memories) - len(self._heirs))

    def records(self) -> bytes:
        """What every trace has to say of that, once."""
        writer = TraceWriter(0, 0, "", begun=True)
        if self._begun_behind is not None:
            for worker, source in self._heirs.items():
                writer.memory(worker, source, self._begun_behind)
        self._begun_behind = None
        return writer.take()

    def report(self) -> dict[str, int]:
        """How many memories were lost with their workers, and how many workers began later, with nothing."""
        return {"lost": self.lost, "begun_with_nothing": self.from_nothing}
