"""Tickets, traces and replays: each ticket once, and the same bits whatever arrives first."""

from __future__ import annotations

import random
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distributed.parameter_server.computed_tickets import ComputedTickets
from distributed.parameter_server.replay import Replay, ReplayOrder
from distributed.parameter_server.simulation import simulate
from distributed.parameter_server.tickets import AppliedTickets, Ticket, TicketPool
from distributed.parameter_server.trace import (
    RECORD_BYTES,
    Event,
    EventKind,
    Trace,
    TraceError,
    TraceWriter,
    read_trace,
)

APPLY, PULL, HORIZON, DROP, UNUSED, MEMORY = EventKind


def test_tickets_go_out_in_order_up_to_what_was_granted() -> None:
    pool = TicketPool(shares=2)
    assert pool.take(0) is None
    pool.grant(2)
    assert [pool.take(worker) for worker in (0, 1, 0, 1, 0)] == [(1, 0), (1, 1), (2, 0), (2, 1), None]
    pool.grant(1)
    assert (pool.granted, pool.begun, pool.complete, pool.at_rest) == (2, 2, 0, False)


def test_a_step_is_complete_when_every_share_is_applied_on_every_shard() -> None:
    pool = TicketPool(shares=2, shards=2)
    pool.grant(2)
    first, second, third, fourth = (pool.take(worker) for worker in range(4))
    assert [pool.applied(third, 0), pool.applied(third, 1), pool.applied(fourth, 0), pool.applied(fourth, 1)] == [
        False,
        True,
        False,
        True,
    ]
    assert pool.complete == 0  # step 2 is, step 1 is not
    assert not pool.applied(first, 1) and not pool.applied(first, 1)
    assert pool.applied(first, 0) and not pool.applied(first, 0)
    assert not pool.applied(second, 0) and pool.applied(second, 1)
    assert (pool.complete, pool.at_rest) == (2, True)
    assert not pool.applied(second, 1)


def test_tickets_of_a_lost_worker_go_out_first() -> None:
    pool = TicketPool(shards=2)
    pool.grant(4)
    tickets = [pool.take(worker) for worker in (0, 1, 1)]
    assert pool.holder(tickets[1]) == 1
    pool.applied(tickets[1], 0)
    assert pool.lose(1) == [Ticket(2), Ticket(3)]
    assert (pool.take(0), pool.take(2), pool.take(2), pool.take(2)) == (Ticket(2), Ticket(3), Ticket(4), None)
    assert pool.applied(Ticket(2), 1)  # shard 0 had it from the lost worker


def test_a_ticket_that_a_lost_worker_had_pushed_everywhere_is_not_made_again() -> None:
    pool = TicketPool(shards=2)
    pool.grant(2)
    ticket = pool.take(1)
    pool.applied(ticket, 0)
    pool.lose(1)
    assert pool.applied(ticket, 1)  # its push was still under way
    assert (pool.take(0), pool.complete) == (Ticket(2), 1)


def test_a_dropped_ticket_counts_as_done() -> None:
    pool = TicketPool(shares=2, shards=2)
    pool.grant(1)
    kept, lost = pool.take(0), pool.take(1)
    pool.lose(1)
    assert pool.drop(lost) and not pool.drop(lost)
    assert pool.take(0) is None
    pool.applied(kept, 0)
    pool.applied(kept, 1)
    assert pool.complete == 1


def test_a_run_that_halts_ends_what_was_begun() -> None:
    pool = TicketPool(shares=2)
    pool.grant(9)
    pool.take(0)
    assert pool.withdraw() == 1
    assert [pool.take(0), pool.take(0)] == [Ticket(1, 1), None]
    pool.restart(5)
    pool.grant(6)
    assert (pool.complete, pool.take(0)) == (5, Ticket(6))


def test_a_shard_applies_a_ticket_once() -> None:
    applied = AppliedTickets(complete=3)
    assert [applied.add(Ticket(step)) for step in (3, 4, 4, 6)] == [False, True, False, True]
    assert applied.newer == [Ticket(4), Ticket(6)]
    moved = AppliedTickets(applied.complete, applied.newer)
    assert not moved.add(Ticket(6)) and moved.add(Ticket(5))
    applied.horizon(5)
    assert (applied.newer, Ticket(5) in applied, Ticket(7) in applied) == ([Ticket(6)], True, False)


def test_of_a_ticket_that_two_computed_the_word_counts_whose_push_was_applied() -> None:
    computed, ticket = ComputedTickets(), Ticket(4)
    assert not computed.are_told(ticket, lambda part: True)
    computed.say(ticket, 2, {"norm": 2.0})
    assert computed.are_told(ticket, lambda part: True)  # nobody's push was applied: it was not finite
    computed.applied(ticket, 2, shard=1)
    computed.applied(ticket, 0, shard=0)
    assert not computed.are_told(ticket, lambda part: part == 0)
    assert computed.are_told(ticket, lambda part: False)  # whoever pushed it is gone, and its word with it
    assert computed.of(ticket) == {"norm": 2.0}
    computed.say(ticket, 0, {"norm": 1.0})
    assert computed.of(ticket) == {"norm": 1.0}
    computed.forget(4)
    assert not computed.are_told(ticket, lambda part: False)


def written(*events: Event, shard: int = 0, shards: int = 1, train_id: str = "0123456789ab") -> bytes:
    writer = TraceWriter(shard, shards, train_id)
    for kind, worker, ticket in events:
        if kind is HORIZON:
            writer.horizon(ticket.step)
        else:
            {APPLY: writer.apply, PULL: writer.pull, DROP: writer.drop}[kind](worker, ticket)
    return writer.take()


EVENTS = st.lists(
    st.one_of(
        st.builds(
            Event,
            st.sampled_from([APPLY, PULL, DROP]),
            st.integers(0, 2**16 - 1),
            st.builds(Ticket, st.integers(0, 2**32 - 1), st.integers(0, 2**16 - 1)),
        ),
        st.builds(lambda step: Event(HORIZON, 0, Ticket(step)), st.integers(0, 2**32 - 1)),
    ),
    max_size=20,
)


@given(EVENTS, st.integers(0, 9), st.data())
@settings(max_examples=150, deadline=None)
def test_a_trace_reads_as_it_was_written_and_after_a_kill(events: list[Event], shard: int, data: st.DataObject) -> None:
    text = written(*events, shard=shard, shards=10)
    trace = read_trace(text)
    assert (trace.shard, trace.shards, trace.train_id, trace.torn) == (shard, 10, "0123456789ab", 0)
    assert list(trace) == events
    head = len(text) - len(events) * RECORD_BYTES
    size = data.draw(st.integers(head, len(text)))
    zeros = data.draw(st.sampled_from([0, 1, 4096]))
    whole = (size - head) // RECORD_BYTES
    torn = text[:size] if not zeros else text[: head + whole * RECORD_BYTES] + bytes(zeros)
    assert list(read_trace(torn)) == events[:whole]
    assert read_trace(torn).torn == len(torn) - head - whole * RECORD_BYTES


def test_what_follows_a_resume_is_appended() -> None:
    writer = TraceWriter(0, 1, "0123456789ab")
    writer.apply(1, Ticket(1))
    data = writer.take()
    kept = len(data)
    writer.apply(2, Ticket(2))
    data += writer.take()
    again = TraceWriter(0, 1, "0123456789ab", begun=True)
    again.apply(3, Ticket(2))
    assert list(read_trace(data[:kept] + again.take())) == [(APPLY, 1, (1, 0)), (APPLY, 3, (2, 0))]
    assert writer.take() == b""


def test_damage_is_named() -> None:
    text = written(*(Event(APPLY, 1, Ticket(step)) for step in range(1, 5)))
    head = len(text) - 4 * RECORD_BYTES
    assert head <= 40 and RECORD_BYTES <= 12
    with pytest.raises(TraceError, match=f"damaged at byte {head + RECORD_BYTES}"):
        read_trace(text[: head + 15] + b"\xff" + text[head + 16 :])
    for bad, what in (
        (text[:10], "10 bytes in all"),
        (b"x" * 50, "no trace"),
        (text[:8] + b"\x07" + text[9:], "format 7"),
        (text[:10] + b"\x07" + text[11:], "header is damaged"),
    ):
        with pytest.raises(TraceError, match=what):
            read_trace(bad)


def order(*events: Event, elsewhere: tuple[Event, ...] = ()) -> ReplayOrder:
    other = (*elsewhere, Event(HORIZON, 0, Ticket(99)))
    texts = [written(*events, Event(HORIZON, 0, Ticket(99)), shards=2), written(*other, shard=1, shards=2)]
    return Replay([read_trace(text) for text in texts]).order(0)


def test_a_server_in_a_replay_waits_for_what_comes_next() -> None:
    """Two workers; the second was quicker."""
    pulls = [Event(PULL, worker, Ticket(worker + 1)) for worker in (0, 1)]
    pushes = [Event(APPLY, worker, Ticket(worker + 1)) for worker in (0, 1)]
    replay = order(*pulls, pushes[1], pushes[0])
    assert replay.arrived(pulls[1]) and replay.ready() == [pulls[1]]  # reading changes nothing: it need not wait
    assert replay.arrived(pulls[0]) and replay.ready() == [pulls[0]]
    assert replay.arrived(pushes[0]) and replay.ready() == []
    assert replay.arrived(pushes[1]) and replay.ready() == [pushes[1], pushes[0]]
    assert not replay.finished
    assert replay.arrived(Event(HORIZON, 0, Ticket(99))) and len(replay.ready()) == 1
    assert replay.finished and replay.ready() == []


def test_a_replay_drops_what_the_shard_did_not_apply_and_skips_pulls_for_nothing() -> None:
    """Worker 1 was lost: shard 1 had its push, shard 0 applied the repetition by worker 0. Worker 2 died computing."""
    lost, again = Event(PULL, 1, Ticket(1)), Event(PULL, 0, Ticket(1))
    useless = Event(PULL, 2, Ticket(5))
    replay = order(
        lost, useless, again, Event(APPLY, 0, Ticket(1)), elsewhere=(lost, Event(APPLY, 1, Ticket(1)), again)
    )
    assert not replay.arrived(Event(APPLY, 1, Ticket(1)))
    assert not replay.arrived(useless)
    for event in (again, Event(APPLY, 0, Ticket(1))):
        assert replay.arrived(event)
    assert replay.ready() == [again]  # the lost worker has to read before anything is applied: it computes again too
    assert replay.arrived(lost)
    assert replay.ready() == [lost, Event(APPLY, 0, Ticket(1))]


def test_traces_of_other_runs_or_in_the_wrong_place_are_refused() -> None:
    end = Event(HORIZON, 0, Ticket(1))
    first, second = (read_trace(written(end, shard=shard, shards=2)) for shard in (0, 1))
    stranger = read_trace(written(end, shard=1, shards=2, train_id="ffffffffffff"))
    for traces, what in (
        ([], "no trace"),
        ([second, first], "place 0 of 2 is that of shard 1 of 2"),
        ([first], "place 0 of 1"),
        ([first, stranger], "two runs: 0123456789ab and ffffffffffff"),
    ):
        with pytest.raises(TraceError, match=what):
            Replay(traces)


def test_a_replay_rests_where_the_run_rested() -> None:
    events = [
        *(Event(PULL, 0, Ticket(1)), Event(APPLY, 0, Ticket(1)), Event(HORIZON, 0, Ticket(1))),
        *(Event(PULL, 0, Ticket(2)), Event(PULL, 1, Ticket(3)), Event(APPLY, 1, Ticket(3)), Event(APPLY, 0, Ticket(2))),
        *(
            Event(HORIZON, 0, Ticket(3)),
            Event(PULL, 0, Ticket(4)),
            Event(APPLY, 0, Ticket(4)),
        ),  # killed before it rested
    ]
    replay = Replay([read_trace(written(*events))])
    assert (replay.horizons, replay.workers, replay.tickets(0)) == ((1, 3), (0, 1), [Ticket(1), Ticket(2)])
    pool = replay.pool()
    pool.grant(3)
    assert (pool.processes, pool.granted) == (2, 1)
    assert (pool.take(1), pool.take(0), pool.take(0)) == (None, Ticket(1), None)
    pool.applied(Ticket(1), 0)
    assert pool.at_rest
    pool.grant(3)
    assert [pool.take(0), pool.take(1)] == [Ticket(2), Ticket(3)]
    pool.applied(Ticket(3), 0)
    assert (pool.complete, pool.begun) == (1, 3)
    pool.applied(Ticket(2), 0)
    assert pool.complete == 3
    with pytest.raises(TraceError, match="end at step 3"):
        pool.grant(4)


def test_a_process_plays_a_replacement_behind_the_one_that_was_lost() -> None:
    """Worker 2 comes when 1 is gone; worker 3 comes on shard 1 before the last push of 0 is applied there."""
    run = [(0, 1), (1, 2), (2, 3), (0, 4), (3, 5)]
    texts = []
    for shard in range(2):
        events = [Event(kind, worker, Ticket(step)) for worker, step in run for kind in (PULL, APPLY)]
        if shard:
            events.insert(7, events.pop(8))
        texts.append(written(*events, Event(HORIZON, 0, Ticket(5)), shard=shard, shards=2))
    replay = Replay([read_trace(text) for text in texts])
    assert replay.parts() == [(0,), (1, 2, 3)]
    pool = replay.pool()
    pool.grant(5)
    assert [(pool.take(1), pool.part(1)) for _ in range(3)] == [((2, 0), 1), ((3, 0), 2), ((5, 0), 3)]
    assert (pool.take(1), pool.take(7)) == (None, None)


WIDTH, RATE = 3, np.float32(0.1)


def gradient(worker: int, ticket: Ticket, values: list[np.ndarray]) -> np.ndarray:
    """A function of ticket and values in fp32 [shards, width] that any other order of updates would change."""
    data = np.random.default_rng([ticket.step, ticket.share]).standard_normal(WIDTH).astype(np.float32)
    return np.tanh(np.stack(values) * data.sum() - data) * np.float32(0.7)


def reference(traces: list[Trace]) -> tuple[list[list[Event]], list[np.ndarray]]:
    """What the traces say happened, worked out backwards by definition: applied pushes and final values by shard."""
    events = [list(trace) for trace in traces]
    applies = [[event for event in own if event.kind is APPLY] for own in events]

    @cache
    def version(shard: int, worker: int, ticket: Ticket) -> int:
        at = events[shard].index(Event(PULL, worker, ticket))
        return sum(event.kind is APPLY for event in events[shard][:at])

    @cache
    def pushed(worker: int, ticket: Ticket) -> bytes:
        pulled = [values(shard, version(shard, worker, ticket)) for shard in range(len(events))]
        return gradient(worker, ticket, pulled).tobytes()

    @cache
    def values(shard: int, version: int) -> np.ndarray:
        if not version:
            return np.full(WIDTH, shard + 1, np.float32)
        push = applies[shard][version - 1]
        whole = np.frombuffer(pushed(push.worker, push.ticket), np.float32).reshape(-1, WIDTH)
        return values(shard, version - 1) - RATE * whole[shard]

    return applies, [values(shard, len(own)) for shard, own in enumerate(applies)]


def replayed(traces: list[Trace], draw: random.Random) -> tuple[list[list[Event]], list[np.ndarray]]:
    """Train again with servers that keep the order, while messages overtake each other at random."""
    replay = Replay(traces)
    pool, orders = replay.pool(), [replay.order(shard) for shard in range(replay.shards)]
    values = [np.full(WIDTH, shard + 1, np.float32) for shard in range(replay.shards)]
    applied: list[list[Event]] = [[] for _ in orders]
    under_way: list[tuple[int, Event]] = []
    payloads: dict[tuple[int, Ticket], np.ndarray] = {}
    got: dict[tuple[int, Ticket], dict[int, np.ndarray]] = {}
    busy: dict[int, int] = {}
    last = replay.horizons[-1]
    pool.grant(last)
    while pool.complete < last:
        for process in range(pool.processes):
            if process not in busy and (ticket := pool.take(process)):
                worker = pool.part(process)
                busy[process] = worker
                under_way += [(shard, Event(PULL, worker, ticket)) for shard in range(replay.shards)]
        shard, event = under_way.pop(draw.randrange(len(under_way)))
        if event.kind is APPLY and not orders[shard].arrived(event):
            continue
        if event.kind is not APPLY:
            assert orders[shard].arrived(event)
        for kind, worker, ticket in orders[shard].ready():
            if kind is APPLY:
                values[shard] = values[shard] - RATE * payloads[worker, ticket][shard]
                applied[shard].append(Event(kind, worker, ticket))
                pool.applied(ticket, shard)
            elif kind is PULL:
                answers = got.setdefault((worker, ticket), {})
                answers[shard] = values[shard]
                if len(answers) == replay.shards:
                    payloads[worker, ticket] = gradient(worker, ticket, [answers[one] for one in sorted(answers)])
                    under_way += [(one, Event(APPLY, worker, ticket)) for one in range(replay.shards)]
                    busy = {process: part for process, part in busy.items() if part != worker}
        if pool.at_rest:
            under_way = [one for one in under_way if one[1].kind is not HORIZON]
            for one in orders:
                assert one.arrived(Event(HORIZON, 0, Ticket(pool.complete)))
                assert [event.kind for event in one.ready()][:1] == [HORIZON]
            if pool.complete < last:
                pool.grant(last)
    assert all(one.finished for one in orders)
    return applied, values


def check_replay(seed: int) -> bool:
    """A run with stragglers, losses in the middle of a push, and joins; whether a process played two parts."""
    draw = random.Random(seed)
    workers, servers = draw.randint(1, 4), draw.randint(1, 3)
    losses = [(draw.uniform(0, 6), worker) for worker in range(1, workers) if draw.random() < 0.5]
    joins = [(draw.uniform(0, 6), 10 + number) for number in range(draw.randint(0, 3))]
    played = simulate(
        workers,
        draw.choice(["ssp", "asp"]),
        draw.randint(1, 3),
        lambda worker, ticket: draw.expovariate(1.0),
        steps=draw.randint(1, 12),
        horizon=draw.choice([0, 3]),
        shares=draw.randint(1, 2),
        servers=servers,
        delays=lambda worker, server: draw.expovariate(2.0),
        losses=losses,
        joins=joins,
    )
    traces = [read_trace(text) for text in played.traces]
    wanted_order, wanted = reference(traces)
    for order_drawn in (random.Random(1), random.Random(2)):
        applied, values = replayed(traces, order_drawn)
        assert applied == wanted_order
        assert all(np.array_equal(*pair) for pair in zip(values, wanted, strict=True))
    return any(len(part) > 1 for part in Replay(traces).parts())


@given(st.integers(0, 10**9))
@settings(max_examples=60, deadline=None)
def test_a_replay_has_the_same_bits_whatever_arrives_first(seed: int) -> None:
    check_replay(seed)


@pytest.mark.exhaustive
def test_two_thousand_replays() -> None:
    assert sum(check_replay(seed) for seed in range(2000)) > 100


def test_simulated_losses_leave_pushes_that_only_some_shards_have() -> None:
    """Else the test above would not try what it is for."""
    mixed = 0
    for seed in range(40):
        draw = random.Random(seed)
        played = simulate(
            3,
            "asp",
            1,
            lambda worker, ticket: draw.expovariate(1.0),  # noqa: B023
            steps=8,
            servers=3,
            delays=lambda worker, server: draw.expovariate(2.0),  # noqa: B023
            losses=[(3.0, 1), (4.0, 2)],
        )
        makers = [{e.ticket: e.worker for e in read_trace(text) if e.kind is APPLY} for text in played.traces]
        mixed += any(len({one[ticket] for one in makers}) > 1 for ticket in makers[0])
    assert mixed >= 10
