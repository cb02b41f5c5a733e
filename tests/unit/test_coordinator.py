"""The coordinator among members that are played: losses at every moment of a start, links, hangs, vain replacements.

Its own thread runs; processes and wires do not. Members answer at once what they are told, unless a test says else.
"""

from __future__ import annotations

import itertools
import logging
import queue
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from distributed.agent import Job
from distributed.control import Agent
from distributed.errors import DistributedError, LinkClosed
from distributed.links.frames import Frame
from distributed.links.token import Token
from distributed.parameter_server import broken_links, members, state_links
from distributed.parameter_server.asynchronous_coordinator import AsynchronousCoordinator
from distributed.parameter_server.coordinator import Coordinator
from distributed.parameter_server.members import LOSSES_OF_A_STEP, RESUMABLE
from distributed.parameter_server.messages import Member, server, worker
from distributed.parameter_server.replacements import VAIN_REPLACEMENTS
from distributed.parameter_server.setup import Setup
from distributed.strategy import OptimizerSpec, StateLost

ELEMENTS = 100_000
OPTIONS: dict[str, Any] = {
    "name": "parameter_server", "mode": "bsp", "workers": 2, "servers": 2, "shadows": 0, "replace_lost": True,
    "on_loss": "recompute", "link": "auto", "heartbeat_seconds": 1.0, "deadline_seconds": 30.0, "watchdog_seconds": 0.0,
    "tls_certificate": "", "tls_key": "", "checksum": "auto", "launcher": "auto", "bind": "auto", "faults": [],
    "run_directory": "nowhere",
}  # fmt: skip
WAITS = {"name": "compute", "what": "the parameters of step 2", "works": False, "moves": 3, "finished": 1,
         "longest": 0.0, "traced": False, "where": "wait (threading.py:1)"}  # fmt: skip


class Gang:
    """Plane, launcher, and all members of a run, as far as the coordinator sees them.

    answers: by what a member is told to do, what it says; None for silence. `comes`: whether a process that is started
    connects; the answer may depend on how many were before.
    """

    patience = 60.0
    address = "127.0.0.1:1"

    def __init__(self) -> None:
        self.inbox: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        self.agents: dict[Member, Agent] = {}
        self.told: list[tuple[Member, dict[str, Any]]] = []
        self.asked: list[tuple[str, str]] = []
        self.ends: dict[str, str] = {}
        self.comes: Callable[[int], bool] = lambda number: True
        self.answers: dict[str, Callable[[Member, dict[str, Any]], dict[str, Any] | None]] = {
            "clear": lambda member, word: {"say": "cleared"},
            "reconfigure": self._status,
            "pulse": lambda member, word: {"say": "pulse", "threads": [WAITS]},
        }
        self.on_state: Callable[[int, Frame], None] = lambda number, frame: None
        self.link_breaks: set[int] = set()
        self._numbers = itertools.count()

    # As a launcher

    def start(self, role: str, instead_of: str = "") -> str:
        number = next(self._numbers)
        self.asked.append((role, instead_of))
        name = f"agent {number}"
        if self.comes(number):
            agent = Agent(SimpleNamespace(shutdown=lambda: None), None, role, {"name": name})
            agent.link.shutdown = lambda: self.lose(agent)  # type: ignore[method-assign]
            self.inbox.put(("here", agent))
        else:
            self.ends[name] = "ended with exit code 1"
        return name

    def ended(self) -> Mapping[str, str]:
        return self.ends

    # As a plane

    def send(self, agent: Agent, message: Mapping[str, Any]) -> None:
        word = dict(message)
        if "be" in word:
            member = Member(word["role"], word["number"])
            self.agents[member] = agent
            self.say(member, {"say": "ready"} if member.role == "worker" else {"say": "serving", "addresses": {}})
            return
        assert agent.member is not None
        self.told.append((agent.member, word))
        answer = self.answers.get(word["do"], lambda member, word: None)(agent.member, word)
        if answer is not None:
            self.say(agent.member, answer)

    def close(self) -> None:
        pass

    # As the members

    def say(self, member: Member, message: Mapping[str, Any]) -> None:
        self.inbox.put(("said", self.agents[member], dict(message)))

    def lose(self, lost: Agent | Member, why: str = "the connection ended") -> None:
        agent = self.agents[lost] if isinstance(lost, Member) else lost
        self.inbox.put(("gone", agent, LinkClosed(why)))

    def _status(self, member: Member, word: dict[str, Any]) -> dict[str, Any]:
        mine = [shard for shard, one in enumerate(word["table"]["primary"]) if one == member.number]
        return {"say": "status", "epoch": word["table"]["epoch"], "applied": {str(shard): 0 for shard in mine},
                "decision": {}, "probed": {}, "whole": [], "said": [], "wanted": None,
                "leaves": {str(shard): [] for shard in mine}, "shards": mine, "tickets": {}}  # fmt: skip

    def connect(self, addresses: Any, membership: Any, kind: str) -> Any:
        """The coordinator's own link to a server, which takes whole states in."""
        number = addresses
        if number in self.link_breaks:
            raise LinkClosed("cannot connect")

        def send(frame: Frame, payload: Any = b"") -> None:
            self.on_state(number, frame)
            if frame.tags[1] == 2:  # Adam's second moment is the last buffer
                self.say(server(number), {"say": "installed", "shard": frame.tags[0], "epoch": 0})

        return SimpleNamespace(send=send, start=lambda *_: None, shutdown=lambda: None, close=lambda seconds: None)


@pytest.fixture
def gang(monkeypatch: pytest.MonkeyPatch) -> Gang:
    gang = Gang()
    monkeypatch.setattr(members, "ControlPlane", lambda job: gang)
    monkeypatch.setattr(members, "TICK_SECONDS", 0.02)
    monkeypatch.setattr(members, "LINK_TICK_SECONDS", 0.005)
    monkeypatch.setattr(broken_links, "GRACE_SECONDS", 0.01)
    monkeypatch.setattr(state_links, "connect", gang.connect)
    monkeypatch.setattr(state_links.Addresses, "from_dict", lambda addresses: addresses["server"])
    return gang


class Run:
    """A run with its coordinator, up to where it begins."""

    def __init__(self, gang: Gang, **options: Any):
        section = OPTIONS | options
        setup = Setup(ELEMENTS, {"table": (0, ELEMENTS)}, section["servers"], 1 << 20, 4,
                      OptimizerSpec("distributed.optimizers:Adam"),
                      options={"mode": section["mode"], "shares": 1, "replay": ""})  # fmt: skip
        self.gang, self.setup = gang, setup
        kind = Coordinator if section["mode"] == "bsp" else AsynchronousCoordinator
        self.coordinator = kind(Job("coordinator", 0, "abc/s1", Token.generate(), section, {}), setup, {})
        original = gang.say
        gang.say = lambda member, message: original(  # type: ignore[method-assign]
            member, dict(message) | ({"addresses": {"server": member.number}} if message["say"] == "serving" else {})
        )

    def start(self) -> Run:
        self.coordinator.start(self.gang)
        return self

    def begin(self) -> Run:
        values = torch.zeros(ELEMENTS)
        self.coordinator.begin(1, values, [values, values], 0)
        return self

    def apply(self, step: int) -> None:
        """A server says that a step is applied; without barriers, that its ticket is, which a worker has computed."""
        if isinstance(self.coordinator, AsynchronousCoordinator):
            self.coordinator.grant(step, 1.0, False)
            self.gang.say(worker(1), {"say": "wants"})
            said = {"norm": 1.0, "rate": 0.1, "finite": True, "leaves": {}, "gradients": {}}
            self.gang.say(worker(1), {"say": "computed", "step": step, "share": 0} | said)
            for shard in range(self.setup.shards):
                self.gang.say(server(0), {"say": "pushed", "step": step, "share": 0, "part": 1, "shard": shard})
            return
        self.gang.say(server(0), {"say": "applied", "decision": {"step": step, "probe": False}, "probed": {}})

    def resumed(self) -> dict[str, Any]:
        """The newest table that somebody was told to go on with."""
        words = [word for _, word in list(self.gang.told) if word["do"] == "resume"]
        table: dict[str, Any] = words[-1]["table"] if words else {"epoch": 0}
        return table

    def wait_until(self, holds: Callable[[], bool]) -> None:
        self.coordinator._wait(holds, lambda: "the test", seconds=60.0)


@pytest.fixture
def run(gang: Gang) -> Iterator[Callable[..., Run]]:
    made: list[Run] = []

    def make(**options: Any) -> Run:
        made.append(Run(gang, **options))
        return made[-1]

    yield make
    for one in made:
        one.coordinator.close()


def test_a_run_begins_and_its_steps_come(run: Callable[..., Run]) -> None:
    one = run().start().begin()
    one.apply(1)
    assert one.coordinator.wait_for(1).decision["step"] == 1
    assert one.resumed() == {"epoch": 1, "workers": (0, 1), "primary": (0, 1), "shadow": (None, None)}


# ------------------------------------------------------------------------------------------------- the beginning


def test_a_server_that_is_lost_before_the_state_is_given_out_is_not_needed(gang: Gang, run: Callable[..., Run]) -> None:
    one = run().start()
    gang.lose(server(1))
    one.wait_until(lambda: server(1) not in one.coordinator._ready)
    one.begin().apply(1)
    one.coordinator.wait_for(1)
    assert list(one.resumed()["primary"]) == [0, 0]


@pytest.mark.parametrize("mode", ["bsp", "asp"])
@pytest.mark.parametrize("moment", ["clear", "connect", "state", "installed"])
def test_a_server_may_be_lost_at_each_moment_of_the_beginning(
    moment: str, mode: str, gang: Gang, run: Callable[..., Run]
) -> None:
    one = run(mode=mode).start()
    lost: list[int] = []

    def lose_once() -> dict[str, Any] | None:
        if not lost:
            lost.append(1)
            gang.lose(server(1))
        return None

    if moment == "clear":
        usual = gang.answers["clear"]
        gang.answers["clear"] = lambda member, word: lose_once() if member == server(1) else usual(member, word)
    elif moment == "connect":
        gang.link_breaks.add(1)
        gang.answers["clear"] = lambda member, word: (
            {"say": "cleared"} if member != server(1) else (lose_once() or {"say": "cleared"})
        )
    else:

        def on_state(number: int, frame: Frame) -> None:
            if number == 1 and (moment == "installed" or frame.tags[1] == 1):
                lose_once()
                if moment == "state":
                    raise LinkClosed("the connection broke")

        gang.on_state = on_state
    one.begin().apply(1)
    one.coordinator.wait_for(1)
    assert (list(one.resumed()["primary"]), lost) == ([0, 0], [1])


def test_a_server_that_is_lost_with_the_word_to_begin_takes_its_shard_along(
    gang: Gang, run: Callable[..., Run]
) -> None:
    one = run().start()
    original = one.coordinator._put

    def put(what: str, *rest: Any) -> None:
        if what == "begin":
            gang.lose(server(1))
        original(what, *rest)

    one.coordinator._put = put  # type: ignore[method-assign]
    one.begin()
    with pytest.raises(StateLost, match="shard 1 was on server 1 alone"):
        one.coordinator.wait_for(1)


def test_a_worker_that_is_lost_in_the_beginning_is_replaced(gang: Gang, run: Callable[..., Run]) -> None:
    one = run().start()
    gang.on_state = lambda number, frame: gang.lose(worker(0)) if frame.tags == (0, 0, 0) and number == 0 else None
    one.begin().apply(1)
    one.coordinator.wait_for(1)
    one.wait_until(lambda: list(one.resumed().get("workers", ())) == [1, 2])
    assert gang.asked[-1] == ("worker", "agent 2")


def test_a_state_that_was_lost_is_given_out_again(gang: Gang, run: Callable[..., Run]) -> None:
    one = run().start().begin()
    gang.lose(server(1))
    with pytest.raises(StateLost):
        one.coordinator.wait_for(1)
    one.begin().apply(1)  # somebody has loaded a checkpoint
    one.coordinator.wait_for(1)
    assert list(one.resumed()["primary"]) == [0, 0]


def test_without_a_server_nothing_can_begin(gang: Gang, run: Callable[..., Run]) -> None:
    one = run(servers=1).start()
    gang.lose(server(0))
    one.wait_until(lambda: not any(member.role == "server" for member in one.coordinator._ready))
    with pytest.raises(DistributedError, match="no server is left"):
        one.begin()


def test_a_process_that_ends_before_it_connects_ends_the_start(gang: Gang, run: Callable[..., Run]) -> None:
    gang.comes = lambda number: number != 3
    with pytest.raises(DistributedError, match=r"^the parameter server: agent 3 ended with exit code 1 before it was"):
        run().start()


# ------------------------------------------------------------------------------------------------- replacements


def test_replacements_that_never_come_are_tried_a_few_times_and_the_survivors_go_on(
    gang: Gang, run: Callable[..., Run], caplog: pytest.LogCaptureFixture
) -> None:
    one = run().start().begin()
    gang.comes = lambda number: False
    with caplog.at_level(logging.WARNING):
        gang.lose(worker(1))
        one.wait_until(lambda: "goes on with 1" in caplog.text)
    assert gang.asked[4:] == [("worker", f"agent {number}") for number in (3, 4, 5)]
    said = [record.getMessage() for record in caplog.records]
    assert [line for line in said if "the others went on" not in line] == [  # whenever they did
        *(
            f"run abc/s1: agent {number} was to replace a lost worker, and ended with exit code 1"
            for number in (4, 5, 6)
        ),
        f"run abc/s1: a worker is lost, and {VAIN_REPLACEMENTS} processes in a row ended before they could take a "
        "place: it goes on with 1",
    ]
    one.apply(1)
    one.coordinator.wait_for(1)
    assert list(one.resumed()["workers"]) == [0]


def test_replacements_that_never_come_for_the_last_worker_end_the_run(gang: Gang, run: Callable[..., Run]) -> None:
    one = run(workers=1).start().begin()
    gang.comes = lambda number: False
    gang.lose(worker(0))
    with pytest.raises(DistributedError) as ended:
        one.coordinator.wait_for(1)
    assert str(ended.value) == (
        "the parameter server: no worker is left, and 3 processes in a row ended before they could take a place; "
        + RESUMABLE
    )


def test_a_replacement_that_gets_no_place_is_waited_for_within_bounds(gang: Gang, run: Callable[..., Run]) -> None:
    one = run(workers=1, watchdog_seconds=0.1).start().begin()
    gang.patience = 0.3  # longer than all may wait for each other
    gang.start = lambda role, instead_of="": "agent that waits for a bundle"  # type: ignore[method-assign]
    gang.lose(worker(0))
    with pytest.raises(DistributedError, match=r"no worker is left, and (none has come for|3 processes in a row)"):
        one.coordinator.wait_for(1)


def test_nobody_comes_where_others_are_to_start_processes(gang: Gang, run: Callable[..., Run]) -> None:
    one = run(workers=1).start().begin()
    gang.patience = 0.1
    gang.start = lambda role, instead_of="": ""  # type: ignore[method-assign]
    gang.lose(worker(0))
    with pytest.raises(DistributedError, match=r"no worker is left, and none has come for 0\.1 s; the same command"):
        one.coordinator.wait_for(1)


# ------------------------------------------------------------------------------------------------- links and hangs


def test_a_link_that_breaks_is_made_anew_and_one_that_breaks_again_and_again_costs_a_worker(
    gang: Gang, run: Callable[..., Run], caplog: pytest.LogCaptureFixture
) -> None:
    one = run().start().begin()
    epochs = []
    with caplog.at_level(logging.WARNING):
        for count in range(1, broken_links.LOST_LINKS + 1):
            one.wait_until(lambda: one.resumed()["epoch"] == one.coordinator._membership.table.epoch > 0)
            epochs.append(epoch := one.resumed()["epoch"])
            gang.say(worker(1), {"say": "link lost", "role": "server", "number": 0, "reason": "x", "epoch": epoch})
            one.wait_until(lambda: one.coordinator._lost_so_far["links"] == count)  # noqa: B023
    one.wait_until(lambda: list(one.resumed().get("workers", ())) == [0, 2])
    assert epochs == [1, 2, 3, 4, 5]
    given_up, went_on = (record.getMessage() for record in caplog.records)
    assert given_up == "run abc/s1: worker 1 loses its links again and again: it is given up"
    why = "worker 1 was lost at step 1 (loses its links again and again)"
    assert went_on.startswith(f"run abc/s1: {why}; the others went on after ")
    assert one.coordinator._recoveries[0]["reason"] == "loses its links again and again"


def test_a_member_that_hangs_is_given_up(gang: Gang, run: Callable[..., Run]) -> None:
    usual = gang.answers["pulse"]
    hangs = WAITS | {"works": True, "what": "forward pass of step 1", "where": "matmul (cell.py:7)"}
    gang.answers["pulse"] = lambda member, word: (
        {"say": "pulse", "threads": [hangs]} if member == worker(1) else usual(member, word)
    )
    one = run(watchdog_seconds=0.4).start().begin()
    # All others have waited as long as it hangs: that is no deadlock when it is gone.
    one.wait_until(lambda: sum(word["do"] == "pulse" for member, word in list(gang.told) if member == worker(2)) > 3)
    assert list(one.resumed()["workers"]) == [0, 2]
    (recovery,) = one.coordinator._recoveries
    assert recovery["lost"] == "worker 1"
    assert recovery["reason"].startswith("has been at the forward pass of step 1 for 0.4")
    assert recovery["reason"].endswith(" s: matmul (cell.py:7)")
    assert gang.asked[-1] == ("worker", "agent 3")


def test_who_hung_and_is_gone_is_not_given_up_again(
    gang: Gang, run: Callable[..., Run], caplog: pytest.LogCaptureFixture
) -> None:
    """A look before the next question: what was said last is of one that is no member any more."""
    usual, lose = gang.answers["pulse"], gang.lose
    hangs = WAITS | {"works": True}
    gang.answers["pulse"] = lambda member, word: (
        {"say": "pulse", "threads": [hangs]} if member == worker(1) else usual(member, word)
    )

    def lose_and_look(lost: Agent | Member, why: str = "") -> None:
        lose(lost, why)
        gang.inbox.put(("tick",))

    gang.lose = lose_and_look  # type: ignore[method-assign]
    one = run(watchdog_seconds=0.4).start().begin()
    one.wait_until(lambda: (worker(2), {"do": "pulse"}) in list(gang.told))
    assert [record.getMessage() for record in caplog.records if "is given up" in record.getMessage()] == [
        f"run abc/s1: worker 1 {one.coordinator._recoveries[0]['reason']}: it is given up"
    ]


@pytest.mark.parametrize("mode", ["bsp", "asp"])
def test_where_all_wait_for_each_other_the_run_ends_with_who_owes_what(
    mode: str, gang: Gang, run: Callable[..., Run]
) -> None:
    gang.answers["pulse"] = lambda member, word: {
        "say": "pulse", "threads": [WAITS if member.role == "worker" else WAITS | {"what": "messages of step 3"}]
    }  # fmt: skip
    one = run(watchdog_seconds=0.1, mode=mode).start().begin()
    with pytest.raises(DistributedError) as ended:
        one.coordinator.wait_for(3)
    clauses = str(ended.value).split(": ", 2)
    assert clauses[:2] == ["the parameter server", "waited in vain for step 3, nobody has stirred for 0.1 s"]
    assert sorted(clauses[2].removesuffix(f"; {RESUMABLE}").split(", ")) == [
        *(f"server {number} waits for messages of step 3" for number in (0, 1)),
        *(f"worker {number} waits for the parameters of step 2" for number in (0, 1)),
    ]


def test_a_regrouping_in_which_a_server_does_not_answer_is_named(gang: Gang, run: Callable[..., Run]) -> None:
    usual = gang.answers["reconfigure"]
    gang.answers["reconfigure"] = lambda member, word: None if member == server(1) else usual(member, word)
    one = run(watchdog_seconds=0.1).start().begin()
    with pytest.raises(DistributedError, match=r"nobody has stirred .*: server 1 to answer in epoch 1; "):
        one.coordinator.wait_for(1)


def test_a_report_that_never_comes_ends_the_run_with_who_owes_it(gang: Gang, run: Callable[..., Run]) -> None:
    gang.answers["report"] = lambda member, word: None if member == worker(1) else {"say": "report", "timeline": ""}
    one = run(watchdog_seconds=0.1).start().begin()
    with pytest.raises(
        DistributedError, match=r"waited in vain for reports of worker 1, nobody has stirred for 0\.1 s"
    ):
        one.coordinator.report()


def test_losses_that_never_let_a_step_come_end_the_run(gang: Gang, run: Callable[..., Run]) -> None:
    one = run(workers=1).start().begin()
    usual = gang.send

    def send(agent: Agent, message: Mapping[str, Any]) -> None:
        usual(agent, message)
        if message.get("do") == "resume" and agent.member is not None and agent.member.role == "worker":
            gang.lose(agent)

    gang.send = send  # type: ignore[method-assign]
    gang.lose(worker(0))
    with pytest.raises(DistributedError, match=rf"^the parameter server: {LOSSES_OF_A_STEP + 1} processes were lost "):
        one.coordinator.wait_for(1)
