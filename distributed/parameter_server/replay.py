"""Repeating an asynchronous run from the traces of its shards.

What a worker computes for a ticket is a function of the values that it pulled for it, and a shard's values are a
function of the pushes applied to it, in order. So a run repeats to the bit if every shard applies the same pushes in
the same order and answers every pull between the same two of them, however the processes race this time. Pulls between
the same two updates may change places: they read, and change nothing.

A ticket of a lost worker may have been applied by one shard from the lost worker's push, and by another from that of
the worker who computed it again. In a replay both compute it, and each shard drops the push that its trace does not
have. Where workers keep back a part of what they compute, they compute again all that they have pushed, used or not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from distributed.parameter_server.lineage import by_memory
from distributed.parameter_server.tickets import Ticket
from distributed.parameter_server.trace import Event, EventKind, Trace, TraceError, read_trace


class Replay:
    """What all shards' traces say together, up to the last horizon that they have in common.

    traces: one a shard, in order. Raises TraceError where they are not the shards of one run, or where the word of a
        pull was lost with both of its ends.
    """

    def __init__(self, traces: Sequence[Trace]):
        _check(traces)
        common = set.intersection(*(set(trace.of_kind(EventKind.HORIZON)["step"].tolist()) for trace in traces))
        self.horizons: tuple[int, ...] = tuple(sorted(common))
        """The steps at which all shards were at rest. A replay rests there too."""
        self._records = [_up_to(records, self.horizons) for records in by_memory(traces)]
        # A small model leaves some shards without parameters: nobody pulls or pushes there.
        self._used = [number for number, records in enumerate(self._records) if EventKind.APPLY in records["kind"]]
        pushed = [EventKind.APPLY, EventKind.UNUSED]
        pushes = [_keys(records[np.isin(records["kind"], pushed)]) for records in self._records]
        self._computed = np.unique(np.concatenate(pushes))  # by someone, and used by a shard or missed by its memory
        self._expected = _counts(self._records)
        for number in self._used:
            records = self._records[number]
            missing = np.setdiff1d(self._computed, _keys(records[records["kind"] == EventKind.PULL]))
            if len(missing):
                raise TraceError(
                    f"the trace of shard {number} does not say from which values {len(missing)} of the updates were "
                    "computed: a worker and the shard's server were lost together",
                    hint="this run cannot be repeated to the bit",
                )

    @property
    def shards(self) -> int:
        """Their number."""
        return len(self._records)

    @property
    def workers(self) -> tuple[int, ...]:
        """The numbers of the workers whose pushes were used, in the order of their first pulls."""
        pulls = self._pulls()
        _, first = np.unique(pulls["worker"], return_index=True)
        return tuple(int(pulls["worker"][at]) for at in np.sort(first))

    def tickets(self, worker: int) -> list[Ticket]:
        """What a worker computed, in its order."""
        own = self._pulls()
        own = own[own["worker"] == worker]
        return [Ticket(step, share) for step, share in zip(own["step"].tolist(), own["share"].tolist(), strict=True)]

    def parts(self) -> list[tuple[int, ...]]:
        """By process, the workers whose parts it plays, one after the other: the fewest processes that cannot lock up.

        A process goes on with a worker that no shard has heard of before the last word of the one before. So nothing
        that the earlier one waits for can depend on the later one.
        """
        spans = {worker: [_span(self._records[used], worker) for used in self._used] for worker in self.workers}
        parts: list[list[int]] = []
        for worker in self.workers:
            for part in parts:
                pairs = zip(spans[part[-1]], spans[worker], strict=True)
                if all(last < first for (_, last), (first, _) in pairs):
                    part.append(worker)
                    break
            else:
                parts.append([worker])
        return [tuple(part) for part in parts]

    def dropped(self) -> list[tuple[Ticket, int]]:
        """Shares that were left out of their steps, each with the worker that was lost; every shard says the same."""
        found = {(event.ticket, event.worker) for number in self._used for event in self._drops(number)}
        return sorted(found)

    def order(self, shard: int) -> ReplayOrder:
        """The order that the server of a shard has to keep."""
        records = self._records[shard]
        idle = (records["kind"] == EventKind.PULL) & ~np.isin(_keys(records), self._computed)
        return ReplayOrder(records[~idle & ~np.isin(records["kind"], [EventKind.DROP, EventKind.UNUSED])])

    def pool(self) -> ReplayPool:
        """The coordinator's tickets."""
        tickets = {worker: self.tickets(worker) for worker in self.workers}
        return ReplayPool(self.parts(), tickets, self._expected, self.horizons)

    def _drops(self, shard: int) -> Iterator[Event]:
        records = self._records[shard]
        return map(_event, records[records["kind"] == EventKind.DROP])

    def _pulls(self) -> np.ndarray:
        """The pulls for what was computed, from the first shard; each worker's are in the same order on every one."""
        records = self._records[self._used[0]] if self._used else self._records[0]
        pulls = records[records["kind"] == EventKind.PULL]
        return pulls[np.isin(_keys(pulls), self._computed)]


def trace_name(shard: int) -> str:
    """The file of a shard's trace among the journals of a run."""
    return f"trace-{shard}.bin"


def read_replay(directory: Path, shards: int) -> Replay:
    """What the traces in a directory say. Raises TraceError where one is missing or damaged."""
    traces = []
    for shard in range(shards):
        path = directory / trace_name(shard)
        try:
            traces.append(read_trace(path.read_bytes()))
        except OSError as error:
            raise TraceError(f"cannot be read: {error.strerror}", where=str(path)) from None
    return Replay(traces)


class ReplayOrder:
    """Tells the server of a shard what to do next.

    Whatever arrives is told by `arrived`; `ready` then gives what may be done now, in the order in which it is to be
    done. What is early waits; the server keeps its payload.
    """

    def __init__(self, records: np.ndarray):
        self._records = records
        self._known = {kind: np.sort(_keys(records[records["kind"] == kind])) for kind in EventKind}
        self._here: set[Event] = set()
        self._at = 0
        self._stretch()

    @property
    def finished(self) -> bool:
        """Whether everything in the trace was done."""
        return self._barrier is None and not self._pulls

    def arrived(self, event: Event) -> bool:
        """Something is here that the server would do; False where the trace does not have it: drop it."""
        known, key = self._known[event.kind], _key(event)
        place = int(np.searchsorted(known, key))
        if place == len(known) or known[place] != key:
            return False
        self._here.add(event)
        return True

    def ready(self) -> list[Event]:
        """What may be done now, in order; it does not come again."""
        done: list[Event] = []
        while True:
            answered = [pull for pull in self._pulls if pull in self._here]
            for pull in answered:
                del self._pulls[pull]
            done += answered
            self._here.difference_update(answered)
            if self._pulls or self._barrier is None or self._barrier not in self._here:
                return done
            self._here.discard(self._barrier)
            done.append(self._barrier)
            self._stretch()

    def _stretch(self) -> None:
        """Read on: the pulls up to the next event that is none, and that one."""
        self._pulls: dict[Event, None] = {}
        self._barrier: Event | None = None
        while self._at < len(self._records) and self._barrier is None:
            event = _event(self._records[self._at])
            self._at += 1
            if event.kind is EventKind.PULL:
                self._pulls[event] = None
            else:
                self._barrier = event


class ReplayPool:
    """The coordinator's tickets in a replay: each worker has those that it had, and they end at the same horizons.

    It answers to the names of `TicketPool`, for processes numbered from 0 that play the workers' parts. Nobody may be
    lost: a replay that loses a process is begun again.
    """

    def __init__(
        self,
        parts: Sequence[tuple[int, ...]],
        tickets: Mapping[int, list[Ticket]],
        expected: Mapping[int, int],
        horizons: Sequence[int],
    ):
        self._tasks = [[(part, ticket) for part in own for ticket in tickets[part]][::-1] for own in parts]
        self._playing: dict[int, int] = {}
        self._expected, self._horizons = expected, horizons
        self._done: dict[int, int] = {}
        first = min(expected, default=1)
        self._granted = self._complete = self._begun = first - 1

    @property
    def granted(self) -> int:
        """The last step whose tickets may be handed out."""
        return self._granted

    @property
    def complete(self) -> int:
        """The last step up to which everything in the traces is applied."""
        return self._complete

    @property
    def begun(self) -> int:
        """The last step of which a ticket was handed out."""
        return self._begun

    @property
    def at_rest(self) -> bool:
        """Whether everything granted is complete."""
        return self._complete == self._granted

    def grant(self, step: int) -> None:
        """Tickets up to this step may be handed out, or up to the next horizon of the traces where that comes first.

        So a run that was interrupted rests where it rested then. Raises TraceError for a step beyond the traces.
        """
        if step > max(self._horizons, default=0):
            raise TraceError(f"the traces end at step {max(self._horizons, default=0)}; step {step} is not in them")
        ahead = [horizon for horizon in self._horizons if horizon > self._complete]
        if ahead:
            self._granted = max(self._granted, min(step, ahead[0]))
        self._advance()

    @property
    def processes(self) -> int:
        """How many processes it takes."""
        return len(self._tasks)

    def take(self, process: int) -> Ticket | None:
        """The next ticket for a process, or None where it has none before the horizon."""
        tasks = self._tasks[process] if process < len(self._tasks) else []
        if not tasks or tasks[-1][1].step > self._granted:
            return None
        self._playing[process], ticket = tasks.pop()
        self._begun = max(self._begun, ticket.step)
        return ticket

    def part(self, process: int) -> int:
        """The worker as whom a process computes the ticket that it took last."""
        return self._playing[process]

    def applied(self, ticket: Ticket, shard: int) -> None:
        """A shard has applied a ticket, as its trace says."""
        self._done[ticket.step] = self._done.get(ticket.step, 0) + 1
        self._advance()

    def _advance(self) -> None:
        while self._complete < self._granted:
            following = self._complete + 1
            if self._done.get(following, 0) != self._expected.get(following, 0):
                return
            self._done.pop(following, None)
            self._complete = following


def _span(records: np.ndarray, worker: int) -> tuple[int, int]:
    """The places of a worker's first and last pull or push."""
    own = (records["worker"] == worker) & ((records["kind"] == EventKind.APPLY) | (records["kind"] == EventKind.PULL))
    places = np.flatnonzero(own)
    return int(places[0]), int(places[-1])


def _check(traces: Sequence[Trace]) -> None:
    if not traces:
        raise TraceError("there is no trace to replay")
    for number, trace in enumerate(traces):
        if (trace.shard, trace.shards) != (number, len(traces)):
            raise TraceError(
                f"the trace in place {number} of {len(traces)} is that of shard {trace.shard} of {trace.shards}"
            )
        if trace.train_id != traces[0].train_id:
            raise TraceError(f"traces of two runs: {traces[0].train_id} and {trace.train_id}")


def _up_to(records: np.ndarray, horizons: Sequence[int]) -> np.ndarray:
    """The records up to the last horizon; what follows it was not at rest, or not on all shards."""
    if not horizons:
        return records[:0]
    marks = np.flatnonzero((records["kind"] == EventKind.HORIZON) & (records["step"] == horizons[-1]))
    return records[: int(marks[-1]) + 1]


def _counts(records: Sequence[np.ndarray]) -> dict[int, int]:
    """By step, how many pushes all shards have applied of it."""
    steps = np.concatenate([one["step"][one["kind"] == EventKind.APPLY] for one in records])
    values, counts = np.unique(steps, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def _keys(records: np.ndarray) -> np.ndarray:
    """Worker, step and share of each record as one number."""
    worker, step, share = (records[field].astype(np.uint64) for field in ("worker", "step", "share"))
    return (worker << np.uint64(48)) | (step << np.uint64(16)) | share


def _key(event: Event) -> np.uint64:
    return np.uint64((event.worker << 48) | (event.ticket.step << 16) | event.ticket.share)


def _event(record: np.void) -> Event:
    return Event(
        EventKind(int(record["kind"])), int(record["worker"]), Ticket(int(record["step"]), int(record["share"]))
    )
