"""The coordinator of a ring whose trainer has no model: it has nodes write their stages, and evaluate what it sends.

What it waits for is done anew by whoever is in the ring then, as often as somebody is lost meanwhile.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from distributed.agent import Job
from distributed.errors import DistributedError
from distributed.parameter_server.members import RESUMABLE
from distributed.parameter_server.messages import Member, worker
from distributed.ring_tmp.coordinator import StageRingCoordinator
from distributed.ring_tmp.cut import Cut
from distributed.ring_tmp.evaluations import from_plain, to_plain
from distributed.ring_tmp.part_files import PROOF, part_content, part_file
from distributed.ring_tmp.placement import Placement
from distributed.state_files import PARAMETERS, write_file

ANEW = "encode"  # the call with which the search for other sentences begins
DISTURBED = 8  # times that the search for a batch of sentences begins anew, at most
AHEAD = 2  # batches a node that are on their way at a time


class OutlineCoordinator(StageRingCoordinator):
    """See `StageRingCoordinator`; states are no whole buffers here, but in files and in stages' buffers."""

    def __init__(self, job: Job, content: Mapping[str, Any], cut: Cut):
        super().__init__(job, content, cut)
        self._parts = cut.parts
        self._written: dict[Member, dict[str, Any]] = {}  # what nodes say of the newest order to write
        self._scored: dict[int, dict[str, torch.Tensor]] = {}  # by number, what came of batches and calls
        self._asked: dict[int, dict[str, Any]] = {}  # the same, those without an answer
        self._calls: dict[int, dict[str, Any]] = {}  # the same, calls of the search for a batch of sentences
        self._batches = 0  # how many were ever asked for
        self._sent_in = 0  # the epoch in which they were sent
        self._searches = 0  # how many were begun
        self._disturbed = 0  # how often the search for a batch of sentences had to begin anew

    # ------------------------------------------------------------------------------------------------- files

    def save(self, step: int, directory: Path, slots: Sequence[str]) -> int:
        """Have every stage's state after `step` written into a directory; returns how many updates were made.

        Nodes that see the directory write their stages themselves. Those of others come here, one at a time.

        Raises DistributedError where the disk refuses, StateLost where only a checkpoint can go on.
        """
        word, limit = secrets.token_hex(16), math.inf
        try:
            directory.mkdir(parents=True, exist_ok=True)
            (directory / PROOF).write_text(word, encoding="utf-8")
            try:
                while True:
                    updates = self._try_to_save(step, directory, word, slots)
                    if updates is not None:
                        return updates
                    limit = min(limit, time.monotonic() + 10 * self._options["deadline_seconds"])
                    if time.monotonic() > limit:
                        raise DistributedError("no links to the nodes last", where=self.where, hint=RESUMABLE)
            finally:
                (directory / PROOF).unlink(missing_ok=True)
        except OSError as error:
            raise _refused(directory, error.strerror or str(error)) from error

    def _try_to_save(self, step: int, directory: Path, word: str, slots: Sequence[str]) -> int | None:
        """Try once; None where somebody was lost meanwhile."""
        placement = self._at_rest(step)
        owners = [worker(number) for number in sorted(set(placement.owners))]
        epoch = placement.ring.epoch
        with self._changed:
            self._written.clear()
        for member in owners:
            self._send(member, {"do": "write", "step": step, "epoch": epoch, "directory": str(directory), "word": word})
        self._wait_in(placement, lambda: self._written.keys() >= set(owners), f"the files of step {step}")
        with self._changed:
            told = [self._written.get(member) for member in owners]
        for said in told:
            if said is not None and said["refused"]:
                raise _refused(directory, said["refused"])
        if any(said is None or said["epoch"] != epoch for said in told):
            return None
        written = {stage for said in told if said is not None for stage in said["stages"]}
        updates = [said["updates"] for said in told if said is not None and said["stages"]]
        for stage in range(len(self._parts)):
            if stage not in written:
                found = self._write_here(stage, placement, step, directory, slots)
                if found is None:
                    return None
                updates.append(found)
        return max(updates)

    def _write_here(
        self, stage: int, placement: Placement, step: int, directory: Path, slots: Sequence[str]
    ) -> int | None:
        """Fetch a stage's state and write it; None where somebody was lost meanwhile."""
        count, owner = 1 + len(slots), placement.owners[stage]
        with self._changed:
            self._links.received.clear()
        self._states.ask(frozenset({owner}), step, count, stage)
        links = frozenset({owner})
        self._wait_in(
            placement,
            lambda: self._states.are_here(stage, count) or not self._links.lead_to(links),
            f"the state of stage {stage}",
        )
        with self._changed:
            if not self._states.are_here(stage, count):
                self._pause()
                return None
            buffers, updates = self._states.take_stage(stage, count)
        named = dict(zip([PARAMETERS, *slots], buffers, strict=True))
        write_file(directory / part_file(stage), part_content(self._parts[stage], named, step, updates))
        return updates

    def _say_written(self, member: Member, said: dict[str, Any]) -> None:
        self._written[member] = said

    # ------------------------------------------------------------------------------------------------- evaluation

    def scores(self, step: int, batches: Iterable[Mapping[str, torch.Tensor]]) -> Iterator[torch.Tensor]:
        """What the model after `step` makes of batches, in their order; a few of them are on their way at a time.

        To be used up before anything else is asked for. Raises StateLost where only a checkpoint can go on.
        """
        self._ask_for_nothing()
        self._at_rest(step)
        for batch in batches:
            with self._changed:
                self._asked[self._batches] = {"call": "", "given": to_plain(batch)}
                self._send_batches([self._batches])
            self._batches += 1
            if self._under_way() >= AHEAD * self._options["nodes"]:
                yield self._oldest(step)["loss"]
        while self._under_way():
            yield self._oldest(step)["loss"]

    def begin_search(self) -> None:
        """From now on calls are of another search: what nodes keep of the one before says nothing any more."""
        self._searches += 1

    def answer(self, step: int, call: str, given: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What the model after `step` makes of a call of the search that was begun last.

        Calls from an `encode` to the next are those of a batch of sentences. Where somebody is lost meanwhile all of
        them are made anew, in the same way and with the same answers.

        Raises StateLost where only a checkpoint can go on, DistributedError where it has to begin anew too often.
        """
        if call == ANEW:
            self._ask_for_nothing()
        with self._changed:
            number, self._batches = self._batches, self._batches + 1
            about = {"call": call, "search": self._searches, "given": to_plain(given)}
            self._asked[number] = self._calls[number] = about
            self._send_batches([number])
        return self._oldest(step)

    def end_search(self) -> None:
        """Nodes need not keep anything any more."""
        self._ask_for_nothing()
        for member in list(self._agents):
            self._send(member, {"do": "searched"})

    def _ask_for_nothing(self) -> None:
        with self._changed:
            for kept in (self._asked, self._scored, self._calls):
                kept.clear()
            self._disturbed = 0

    def _under_way(self) -> int:
        """How many batches nobody has had the scores of."""
        with self._changed:
            return len(self._asked) + len(self._scored)

    def _oldest(self, step: int) -> dict[str, torch.Tensor]:
        """What came of the batch or call that was asked for first."""
        with self._changed:
            number = min([*self._asked, *self._scored])
        while True:
            placement = self._at_rest(step)
            with self._changed:
                if placement.ring.epoch != self._sent_in:
                    self._send_batches([])
            self._wait_in(placement, lambda: number in self._scored, "what nodes make of sentences")
            with self._changed:
                if number in self._scored:
                    return self._scored.pop(number)

    def _send_batches(self, numbers: Sequence[int]) -> None:
        """Tell every node of batches or calls; activations go from node to node.

        In a new epoch of all that have no answer, and of all calls that led to where the search is.
        """
        placement = self._membership.placement
        epoch = placement.ring.epoch
        if epoch != self._sent_in:
            self._disturbed += len(self._calls) > len(numbers)
            if self._disturbed > DISTURBED:
                raise DistributedError(
                    f"the search for the outputs of a batch of sentences was disturbed {self._disturbed} times",
                    where=self.where,
                    hint=RESUMABLE,
                )
            numbers, self._sent_in = sorted({*self._asked, *self._calls}), epoch
        for number in numbers:
            about = self._asked.get(number) or self._calls[number]
            word = {"do": "score", "epoch": epoch, "number": number, **about}
            for owner in sorted(set(placement.owners)):
                self._send(worker(owner), word)

    def _say_scored(self, member: Member, said: dict[str, Any]) -> None:
        if self._asked.pop(said["number"], None) is not None:
            self._scored[said["number"]] = from_plain(said["scores"])

    # ------------------------------------------------------------------------------------------------- inside

    def _at_rest(self, step: int) -> Placement:
        """Wait until no change of members is under way; who has which stage."""
        self.wait_until_rest(step)
        with self._changed:
            return self._membership.placement

    def _wait_in(self, placement: Placement, until: Callable[[], bool], what: str) -> None:
        """Wait as long as somebody gets on with it, or until there is another ring."""
        self._wait(
            lambda: until() or self._membership.placement != placement or not self._is_at_rest(),
            lambda: what,
            seconds=math.inf,
        )


def _refused(directory: Path, why: str) -> DistributedError:
    return DistributedError(
        f"cannot be written: {why}",
        where=str(directory),
        hint="make room, or choose a writable paths.runs; the last checkpoint is intact, and the same command goes on",
    )
