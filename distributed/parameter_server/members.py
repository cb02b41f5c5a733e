"""The members of a run as its coordinator sees them: they come, are given roles, say something, hang, and are lost."""

from __future__ import annotations

import contextlib
import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, Protocol, TypeVar

from distributed.agent import Job
from distributed.control import Agent, ControlPlane
from distributed.errors import DistributedError, LinkError
from distributed.launchers.choose import Launcher, process_counts
from distributed.parameter_server.broken_links import BrokenLinks
from distributed.parameter_server.messages import Member
from distributed.parameter_server.replacements import Replacements
from distributed.strategy import StateLost
from distributed.watchdog import FIRST, Watchdog

TICK_SECONDS = 1.0  # between looks at what nobody tells: processes that never come, threads that do not stir
LINK_TICK_SECONDS = 0.1  # where links are broken
RESUMABLE = "the same command goes on from the last checkpoint"
LOSSES_OF_A_STEP = 20  # members lost while one step is waited for, before the run is given up

log = logging.getLogger(__name__)


class AnyMembership(Protocol):
    """Who belongs to a run, and how it goes on when that changes, as far as all strategies have that in common."""

    @property
    def open_step(self) -> int:
        """The first step that is not done."""

    @property
    def epoch(self) -> int:
        """The newest; 0 before the run begins."""

    @property
    def at_work(self) -> bool:
        """Whether the run has begun, and no change is under way."""

    def again(self) -> None:
        """Begin a new epoch with the same members."""

    def pending(self) -> str:
        """What a change that is under way waits for, as a clause."""


Kept = TypeVar("Kept", bound=AnyMembership)


class Members(Generic[Kept]):
    """A thread that takes in what agents say, looks for what nobody says, and moves epochs on.

    What happens is an event of its inbox: `_on_<event>` handles it, and `_say_<word>` what a member says. The trainer's
    thread waits for what becomes of it (`_wait`).

    Parameters
    ----------
    job: role `coordinator`, with the run, its token and the options.
    contents: by role, what its processes are told (`Job.content`).
    membership: who belongs to the run.
    """

    where = "the parameter server"
    """What errors are said to concern."""
    roles: Mapping[str, str] = {"worker": "parameter_server.worker", "server": "parameter_server.server"}
    """By role, what its processes are to be (`distributed.agent.ROLES`)."""

    def __init__(self, job: Job, contents: Mapping[str, Mapping[str, Any]], membership: Kept):
        self._job, self._options, self._contents, self._membership = job, job.options, contents, membership
        self._plane = ControlPlane(job)
        self.address = self._plane.address
        self._changed = threading.Condition()
        self._agents: dict[Member, Agent] = {}
        self._ready: set[Member] = set()
        self._serving: dict[int, Mapping[str, Any]] = {}  # by number, addresses of those that others connect to
        self._numbers = dict.fromkeys(contents, 0)
        self._broken = BrokenLinks()
        self._watchdog: Watchdog[Member] = Watchdog(self._options["watchdog_seconds"], lambda member: member.role)
        self._given_up: dict[Member, str] = {}  # why, of those whose link was cut and who are not gone yet
        self._waits_for: Callable[[], str] | None = None  # what the trainer waits for now, as a clause
        self._waited_step = 0  # the last step that it waited for
        self._losses = (0, 0)  # the step that was waited for at the last loss, and how many there were then
        self._replacements: Replacements | None = None
        self._starting, self._alone_since = True, math.inf
        self._looked_at = -math.inf
        self._beginning = False  # whether the servers are being given a state, so that there are no epochs
        self._lost_so_far: dict[str, int] = {f"{role}s": 0 for role in contents} | {"links": 0}
        self._recoveries: list[dict[str, Any]] = []
        self._failure: Exception | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="coordinator", daemon=True)

    @property
    def processes(self) -> Mapping[str, int]:
        """How many it takes, by role."""
        return process_counts(self._options)

    def start(self, launcher: Launcher) -> None:
        """Have workers and servers started, and wait until they are ready."""
        self._replacements = Replacements(launcher)
        self._thread.start()
        wanted = set()
        for role, count in sorted(self.processes.items()):  # servers first
            for number in range(count):
                wanted.add(Member(role, number))
                with self._changed:
                    self._replacements.start(role)
        self._wait(
            lambda: wanted <= self._ready,
            lambda: f"{names_of(wanted - self._ready)} to start",
            seconds=launcher.patience,
        )
        self._starting = False

    def close(self) -> None:
        """End all members and the coordinator's thread. Safe to call twice."""
        self._closing = True
        self._plane.close()
        self._put("stop")
        if self._thread.is_alive():
            self._thread.join()

    # ------------------------------------------------------------------------------------------------- waiting

    def _wait_for_step(self, step: int, is_there: Callable[[], bool]) -> None:
        """Wait as long as somebody gets on with it, which the watchdog judges."""
        self._waited_step = step
        self._wait(is_there, lambda: f"step {step}", seconds=math.inf)

    def _wait(self, until: Callable[[], bool], what: Callable[[], str], seconds: float | None = None) -> None:
        """Wait for something that the coordinator's thread brings about.

        Raises what went wrong there, also where the watchdog sees that nobody brings it about any more, or
        DistributedError after `seconds`: by default ten deadlines, and time for the watchdog.
        """
        usual = 10 * self._options["deadline_seconds"] + 2 * FIRST * self._options["watchdog_seconds"]
        limit = time.monotonic() + (usual if seconds is None else seconds)
        with self._changed:
            self._waits_for = None if self._starting else what
            self._watchdog.waits()
            try:
                while not until():
                    if self._failure is not None:
                        raise self._failure
                    left = limit - time.monotonic()
                    if left <= 0:
                        what_failed = f"waited in vain for {what()}"
                        raise DistributedError(what_failed, where=self.where, hint=RESUMABLE)
                    self._changed.wait(min(left, 1.0))
            finally:
                self._waits_for = None

    # ------------------------------------------------------------------------------------------------- events

    def _run(self) -> None:
        while True:
            tick = LINK_TICK_SECONDS if self._broken else min(TICK_SECONDS, self._watchdog.interval)
            event: tuple[Any, ...] = ()
            with contextlib.suppress(queue.Empty):
                event = self._plane.inbox.get(timeout=tick)
            if event == ("stop",):
                return
            if event:
                self._handle(*event)
            if not event or time.monotonic() - self._looked_at >= tick:  # others may say something all the time
                self._looked_at = time.monotonic()
                self._handle("tick")

    def _put(self, what: str, *rest: Any) -> None:
        """Have the coordinator's thread do something."""
        self._plane.inbox.put((what, *rest))

    def _handle(self, what: str, *rest: Any) -> None:
        with self._changed:
            try:
                getattr(self, f"_on_{what}")(*rest)
                self._then()
            except Exception as error:
                self._fail(error)
            self._changed.notify_all()

    def _then(self) -> None:
        """After everything that happened."""

    def _on_here(self, agent: Agent) -> None:
        missing = self._numbers.get("server", 0) < self.processes["server"]
        role = agent.wanted if agent.wanted in self._numbers else "server" if missing else "worker"
        member = Member(role, self._numbers[role])
        self._numbers[role] += 1
        agent.member = member
        self._agents[member] = agent
        word = {"role": role, "number": member.number, "be": self.roles[role]}
        self._plane.send(agent, word | {"options": dict(self._options), "content": self._contents[role]})

    def _on_said(self, agent: Agent, said: dict[str, Any]) -> None:
        member = agent.member
        if member is None or self._agents.get(member) is not agent:
            return
        getattr(self, f"_say_{said['say'].replace(' ', '_')}")(member, said)

    def _on_gone(self, agent: Agent, reason: LinkError) -> None:
        member = agent.member
        if self._closing or member is None or self._agents.get(member) is not agent:
            return
        del self._agents[member]
        self._lost_so_far[f"{member.role}s"] += 1
        was_ready = member in self._ready
        self._ready.discard(member)
        self._watchdog.forget(member)
        self._watchdog.waits()  # for those who are left
        why, name = self._given_up.pop(member, str(reason)), _name(agent)
        self._forget(member)
        if not was_ready and not self._membership.epoch:
            self._fail(DistributedError(f"ended before it was ready: {why}", where=str(member)))
            return
        if not self._beginning and self._belongs(member):
            self._recoveries.append(
                {
                    "lost": str(member),
                    "step": self._membership.open_step,
                    "reason": why,
                    "at": time.time(),
                    "began": time.monotonic(),
                }
            )
            self._count_loss(member, why)
            self._leave(member)
        is_news = was_ready or self._replacements is None or self._replacements.went(name)
        if member.role == "worker" and is_news:
            self._replace(name)

    def _forget(self, member: Member) -> None:
        """What else is to be forgotten with a member that is lost."""

    def _count_loss(self, member: Member, why: str) -> None:
        """Losses of which each costs a step anew must not go on for ever."""
        step, count = self._losses
        self._losses = (self._waited_step, count + 1 if step == self._waited_step else 1)
        if self._losses[1] > LOSSES_OF_A_STEP:
            what = f"{self._losses[1]} processes were lost while one step was waited for, {member} at last: {why}"
            self._fail(DistributedError(what, where=self.where, hint=RESUMABLE))

    def _replace(self, name: str) -> None:
        """Start another worker in place of one that is lost, unless that was in vain a few times."""
        replacements = self._replacements
        if replacements is not None and self._options["replace_lost"] and not replacements.given_up:
            replacements.start("worker", instead_of=name)
            return
        left = sum(member.role == "worker" for member in self._agents)
        in_vain = replacements.in_vain if replacements is not None else 0
        tried = f", and {in_vain} processes in a row ended before they could take a place" if in_vain else ""
        if not left:
            self._fail(DistributedError(f"no worker is left{tried}", where=self.where, hint=RESUMABLE))
        elif in_vain:
            log.warning("run %s: a worker is lost%s: it goes on with %d", self._job.run, tried, left)

    # ----------------------------------------------------------------------------------------------- what nobody tells

    def _on_tick(self) -> None:
        """What nobody tells has to be looked for."""
        self._look_after_links()
        self._look_after_replacements()
        self._look_after_progress()

    def _look_after_links(self) -> None:
        """Links that have been broken for a while between members that both live: they are made anew."""
        verdict = self._broken.verdict(self._ready)
        self._lost_so_far["links"] += verdict.lost
        for one in verdict.hopeless:
            self._give_up(one, "loses its links again and again")
        if verdict.lost and not verdict.hopeless:
            self._membership.again()

    def _look_after_replacements(self) -> None:
        """Processes that were asked for and have ended, or never come."""
        if self._replacements is None:
            return
        for name, how in self._replacements.failed().items():
            if self._starting:
                self._fail(DistributedError(f"{name} {how} before it was ready", where=self.where))
                continue
            log.warning("run %s: %s was to replace a lost worker, and %s", self._job.run, name, how)
            self._replace(name)
        if self._starting or any(member.role == "worker" for member in self._agents):
            self._alone_since = math.inf
            return
        self._alone_since = min(self._alone_since, time.monotonic())
        if time.monotonic() - self._alone_since > self._replacements.patience:
            what = f"no worker is left, and none has come for {self._replacements.patience:g} s"
            self._fail(DistributedError(what, where=self.where, hint=RESUMABLE))

    def _look_after_progress(self) -> None:
        """Members that hang, and all members waiting for each other."""
        for member in self._watchdog.due(self._ready - self._given_up.keys()):
            self._send(member, {"do": "pulse"})
        for member, how in self._watchdog.hung().items():
            if member not in self._given_up:
                self._give_up(member, how)
        if self._waits_for is None or self._given_up or not math.isinf(self._alone_since):
            return  # nobody waits, or it is known for whom
        if deadlock := self._watchdog.deadlock():
            pending = self._membership.pending()
            said = "; ".join(one for one in (pending, deadlock) if one)
            seconds = self._options["watchdog_seconds"]
            what = f"waited in vain for {self._waits_for()}, nobody has stirred for {seconds:g} s: {said}"
            self._fail(DistributedError(what, where=self.where, hint=RESUMABLE))

    def _give_up(self, member: Member, why: str) -> None:
        """Cut the link of a member that is of no use any more; what follows is what follows the loss of any."""
        log.warning("run %s: %s %s: it is given up", self._job.run, member, why)
        self._given_up[member] = why
        self._agents[member].link.shutdown()

    # ------------------------------------------------------------------------------------------------- what members say

    def _is_ready(self, member: Member) -> None:
        self._ready.add(member)
        if self._replacements is not None:
            self._replacements.came(_name(self._agents[member]))

    def _say_link_lost(self, member: Member, said: dict[str, Any]) -> None:
        if said["epoch"] == self._membership.epoch:
            self._broken.note(member, Member(said["role"], said["number"]))

    def _say_pulse(self, member: Member, said: dict[str, Any]) -> None:
        self._watchdog.heard(member, said["threads"])

    def _say_failed(self, member: Member, said: dict[str, Any]) -> None:
        mistake = said["mistake"]
        if mistake is None:
            self._fail(RuntimeError(f"{member} failed:\n{said['error']}"))
        else:
            self._fail(DistributedError(**mistake | {"where": mistake["where"] or str(member)}))

    # ------------------------------------------------------------------------------------------------- inside

    def _belongs(self, member: Member) -> bool:
        """Whether it is a member of the newest epoch."""
        raise NotImplementedError

    def _leave(self, member: Member) -> None:
        """Go on without one that is lost."""
        raise NotImplementedError

    def _state_is_lost(self, sentence: str) -> None:
        self._fail(StateLost(sentence))

    def _fail(self, error: Exception) -> None:
        """Give the run up; the first reason counts, what follows from it does not."""
        self._failure = self._failure or error

    def _send(self, member: Member, message: Mapping[str, Any]) -> None:
        agent = self._agents.get(member)
        if agent is None:
            return
        if message["do"] in ("reconfigure", "resume"):
            message = dict(message) | {"addresses": {str(number): one for number, one in self._serving.items()}}
        if message["do"] == "resume":
            for recovery in self._recoveries:
                if "began" in recovery:
                    self._went_on(recovery, time.monotonic() - recovery["began"])
        self._plane.send(agent, message)

    def _went_on(self, recovery: dict[str, Any], seconds: float) -> None:
        """What was begun by a loss is over: a line to whoever looks on."""
        del recovery["began"]
        recovery["seconds"] = seconds
        said = [self._job.run, recovery["lost"], recovery["step"], recovery["reason"], seconds]
        log.warning("run %s: %s was lost at step %d (%s); the others went on after %.2f s", *said)


def _name(agent: Agent) -> str:
    """What whoever started it calls it."""
    return str((agent.about or {}).get("name", ""))


def names_of(members: Iterable[Member]) -> str:
    """For a person: `server 0, worker 1`."""
    return ", ".join(map(str, sorted(members)))
