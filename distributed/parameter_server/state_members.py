"""Members that hold the state of a run, which this process gives them and fetches from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distributed.agent import Job
from distributed.links.link import Link
from distributed.parameter_server.members import Kept, names_of
from distributed.parameter_server.messages import Member
from distributed.parameter_server.reporting import ReportingMembers
from distributed.parameter_server.state_links import StateLinks
from distributed.strategy import StateLost


class StateMembers(ReportingMembers[Kept]):
    """States go over links of the coordinator's own, to whoever holds them.

    Parameters
    ----------
    job, contents, membership: as for `Members`.
    """

    def __init__(self, job: Job, contents: Mapping[str, Mapping[str, Any]], membership: Kept):
        super().__init__(job, contents, membership)
        self._links = StateLinks(job, self._changed, lambda number, link: self._put("unlinked", number, link))
        self._cleared: set[Member] = set()

    def wait_until_rest(self, step: int) -> None:
        """Wait until no change of members is under way."""
        self._wait(
            self._is_at_rest,
            lambda: f"{self._membership.pending() or 'everybody to rest'} after step {step}",
        )

    def close(self) -> None:
        """End all members and the coordinator's thread. Safe to call twice."""
        self._closing = True
        self._links.close()
        super().close()

    def _is_at_rest(self) -> bool:
        """Whether no change of members is under way, as far as is known here."""
        return self._membership.at_work

    def _anew(self) -> None:
        """A state is about to be given to members: nobody begins before, and what was lost is lost no more."""
        with self._changed:
            self._beginning = True
            if isinstance(self._failure, StateLost):
                self._failure = None

    def _clear(self) -> set[Member]:
        """Have all members that are ready forget what they had; who they are."""
        with self._changed:
            self._cleared.clear()
            members = set(self._ready)
        for member in members:
            self._send(member, {"do": "clear"})
        self._wait(
            lambda: self._cleared >= members or not members <= self._ready,
            lambda: f"{names_of(members - self._cleared)} to forget what they had",
        )
        return members

    def _on_unlinked(self, number: int, link: Link) -> None:
        """A link of the coordinator's own has ended."""
        self._links.forget(number, link)

    def _say_cleared(self, member: Member, said: dict[str, Any]) -> None:
        self._cleared.add(member)

    def _link(self, number: int) -> Link:
        """A link of the coordinator's own to who holds state. Raises LinkError where it cannot be reached."""
        return self._links.to(number, self._serving[number])
