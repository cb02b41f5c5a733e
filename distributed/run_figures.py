"""The figures of a run of several processes: what their reports come to, flat enough to be drawn and tabulated."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import Any

from distributed.energy import EnergyOfHosts
from distributed.process_meter import ProcessMeter

COORDINATOR = "coordinator"
ROLES = ("worker", "server")


class RunFigures:
    """Sums up what the processes of a run report, those that were lost included, and the coordinator's own share.

    Made by the coordinator's process when the run starts; figures are of the time since then.

    device: that the coordinator evaluates on.
    """

    def __init__(self, device: str = "cpu") -> None:
        self._own = ProcessMeter(device)
        self._energy = EnergyOfHosts()
        self._heard: dict[str, Mapping[str, Any]] = {}  # each process's newest report, the lost ones' included
        self._alive: Mapping[str, Mapping[str, Any]] = {}  # those of the newest round
        self._most_bytes = 0
        self._joined: dict[str, float] = {}  # how long steps had been under way when it was first heard of
        self._steps = 0
        self._seconds = 0.0  # that steps were under way
        self._since: float | None = None

    def step_asked(self, now: float | None = None) -> None:
        """The trainer asks for a step: from here on one is under way, unless one was begun before."""
        if self._since is None:
            self._since = time.monotonic() if now is None else now

    def step_returned(self, ahead: bool, now: float | None = None) -> None:
        """A step is done. ahead: whether the next one has been begun already."""
        end = time.monotonic() if now is None else now
        if self._since is not None:
            self._seconds += end - self._since
        self._since = end if ahead else None
        self._steps += 1

    def of(self, reports: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
        """The figures after a round of reports.

        reports: by process (`worker 0`), what it said: `times` as `Totals.to_dict` gives them, `links` as counters by
            peer where it has any, `use` as `ProcessMeter.to_dict` gives it, `wire` of a worker that makes payloads.

        idle: shares of the time in which steps were under way, evaluation left out, that main threads waited.
        traffic: bytes and messages of a step, that between members and coordinator left out: sent by all together, and
            sent and received by each worker and each server, on average.
        wire: where gradients do not travel as they are, the bytes of a step's and their share of those in fp32.
        memory: bytes at the peak; a worker's, a server's, the coordinator's (the largest of each), and all together.
        energy: as `EnergyOfHosts.to_dict` gives it.
        processes: what each process said itself, and `step_seconds`, the time of steps since it was first heard of.
        """
        for name in reports:
            self._joined.setdefault(name, self._seconds if self._heard else 0.0)
        self._heard |= reports
        self._alive = reports
        own = self._own.to_dict()
        uses = {COORDINATOR: own, **{name: said["use"] for name, said in reports.items()}}
        self._energy.add((name, use["host"], use["energy"]) for name, use in uses.items())
        found: dict[str, Any] = {"steps": self._steps, "idle": self._idle(reports)}
        if any("links" in said for said in self._heard.values()):
            found["traffic"] = self._traffic()
        sent = [said["wire"] for said in self._heard.values() if "wire" in said]
        made, plain = (sum(one[name] for one in sent) for name in ("bytes", "fp32_bytes"))
        if made != plain and self._steps:
            found["wire"] = {"bytes_per_step": made / self._steps, "ratio": made / plain}
        return found | {
            "memory": self._memory(own),
            "energy": self._energy.to_dict(),
            "processes": {
                name: _told(said) | {"step_seconds": self._seconds - self._joined[name]}
                for name, said in sorted(self._heard.items())
            },
        }

    def _idle(self, reports: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
        found: dict[str, float] = {}
        for role in ROLES:
            shares = []
            for name, said in _of_role(reports, role):
                seconds = self._seconds - self._joined[name]
                if seconds > 0:
                    working = said["times"]["busy"] + said["times"]["copy"]
                    shares.append(min(1.0, max(0.0, 1.0 - working / seconds)))
            if shares:
                found |= {f"{role}s": statistics.fmean(shares), f"{role}s_max": max(shares)}
        return found

    def _traffic(self) -> dict[str, float]:
        if not self._steps:
            return {}
        found = {"bytes_per_step": 0.0, "messages_per_step": 0.0}
        for role in ROLES:
            own = [_between_members(said.get("links", {})) for _, said in _of_role(self._heard, role)]
            if not own:
                continue
            there = len(_of_role(self._alive, role)) or len(own)
            for name in own[0]:
                total = sum(one[name] for one in own) / self._steps
                found[f"{role}_{name}_per_step"] = total / there
                if name.startswith("sent_"):
                    found[f"{name.removeprefix('sent_')}_per_step"] += total
        return found

    def _memory(self, own: Mapping[str, Any]) -> dict[str, int]:
        uses = {role: [said["use"] for _, said in _of_role(self._heard, role)] for role in ROLES}
        there = [own, *(said["use"] for said in self._alive.values())]
        self._most_bytes = max(self._most_bytes, sum(use["memory_bytes"] for use in there))
        found = {f"{COORDINATOR}_bytes": int(own["memory_bytes"])}
        found |= {f"{role}_bytes": max(use["memory_bytes"] for use in own) for role, own in uses.items() if own}
        found["total_bytes"] = self._most_bytes
        if any("device_bytes" in use for use in there):
            found["device_bytes"] = sum(use.get("device_bytes", 0) for use in there)
        return found


def _of_role(reports: Mapping[str, Mapping[str, Any]], role: str) -> list[tuple[str, Mapping[str, Any]]]:
    return [(name, said) for name, said in reports.items() if name.partition(" ")[0] == role]


def _between_members(links: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """Bytes and messages over all links of a process but those to the coordinator, each way."""
    found = {f"{way}_{what}": 0 for way in ("sent", "received") for what in ("bytes", "messages")}
    for peer, link in links.items():
        if peer.partition(" ")[0] == COORDINATOR:
            continue
        for way in ("sent", "received"):
            traffic = link[way]
            found[f"{way}_bytes"] += traffic["framing_bytes"] + traffic["payload_bytes"] + traffic["shared_bytes"]
            found[f"{way}_messages"] += traffic["messages"]
    return found


def _told(said: Mapping[str, Any]) -> dict[str, Any]:
    """What of a process's report stands in a run's result."""
    use = {name: value for name, value in said["use"].items() if name != "energy"}
    return {name: said[name] for name in ("times", "links", "wire") if name in said} | use
