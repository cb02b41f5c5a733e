"""What members report of themselves, gathered by their coordinator when the trainer asks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from distributed.agent import Job
from distributed.parameter_server.members import Kept, Members, names_of
from distributed.parameter_server.messages import Member


class ReportingMembers(Members[Kept]):
    """Members that are asked for reports: times, traffic, memory.

    Parameters
    ----------
    job, contents, membership: as for `Members`.
    """

    def __init__(self, job: Job, contents: Mapping[str, Mapping[str, Any]], membership: Kept):
        super().__init__(job, contents, membership)
        self._reports: dict[Member, dict[str, Any]] = {}
        self._unwritten: list[tuple[Member, dict[str, Any]]] = []  # reports that journals do not have yet

    def journals(self) -> Mapping[str, bytes]:
        """New lines of every process's timeline."""
        self._ask_for_reports()
        found: dict[str, bytes] = {}
        with self._changed:
            for member, said in self._unwritten:
                for name, content in self._journals_in(member, said).items():
                    found[name] = found.get(name, b"") + content
            self._unwritten.clear()
        return found

    def report(self) -> Mapping[str, Any]:
        """What was lost and how long that took, and what every process reports: see `RunFigures.of`."""
        self._ask_for_reports()
        with self._changed:
            return {
                "lost": dict(self._lost_so_far),
                "recovery": recovery_figures(self._recoveries),
                "recoveries": [dict(one) for one in self._recoveries],
                "processes": {str(member): said for member, said in sorted(self._reports.items())},
            }

    def _say_report(self, member: Member, said: dict[str, Any]) -> None:
        self._reports[member] = said
        self._unwritten.append((member, said))

    def _journals_in(self, member: Member, said: Mapping[str, Any]) -> dict[str, bytes]:
        """What a report adds to journals, by their names."""
        return {f"timeline-{member.role}-{member.number}.jsonl": said["timeline"].encode()}

    def _ask_for_reports(self) -> None:
        with self._changed:
            self._reports.clear()
            asked = [member for member in self._agents if member in self._ready]
        for member in asked:
            self._send(member, {"do": "report"})
        self._wait(
            lambda: all(member in self._reports or member not in self._ready for member in asked),
            lambda: f"reports of {names_of(set(asked) & self._ready - self._reports.keys())}",
        )


def recovery_figures(recoveries: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """How many losses there were, and the seconds from the notice of each to the go-ahead, on average and at most."""
    seconds = [one["seconds"] for one in recoveries if "seconds" in one]
    if not seconds:
        return {"count": len(recoveries)}
    return {"count": len(recoveries), "seconds_mean": math.fsum(seconds) / len(seconds), "seconds_max": max(seconds)}
