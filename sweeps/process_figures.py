"""What the processes of a run did with their time, what they sent, and what a loss cost: figures of its run directory.

    idle_mean, idle_max        share of the time of steps in which nodes (workers) neither compute nor pack
    idle_servers               the same of servers, on average
    <wait>_mean, <wait>_max    the part of a node's idle share that it spent in each of `CAUSES`
    idle_other_mean, …_max     the rest of it: no wait that its timeline knows
    node_bytes, busiest_bytes  bytes a step that a node sends on average; that the busiest process sends or receives
    all_bytes                  bytes a step that all send each other
    node_memory                bytes that the largest node held at its peak
    process_tokens_per_second  target tokens a second of training
    losses                     processes and links that were lost
    stall                      seconds by which the slowest step was slower than the median one
    recover                    seconds from the notice of a loss to the go-ahead, the longest
    detect                     the rest of the stall: noticing it, and computing again; an upper bound
    steps_lost                 steps that were made and had to be made again

A timeline's waits go on while a run evaluates, and idle shares do not. So waits count as they are where they fit into
the idle time, and are shrunk to it, all alike, where they do not.

Figures in `TIMED` depend on the machine. They are *refused* where processes that compute share cores: what looks like
work is then waiting for a core.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nmt.config import RunConfig
from nmt.events import EVENTS, read_events
from sweeps.wording import counted

CAUSES = ("wait_recv", "wait_barrier", "wait_send")
OTHER = "idle_other"
BY_CAUSE = tuple(f"{cause}_{form}" for cause in (*CAUSES, OTHER) for form in ("mean", "max"))
TIMED = (
    "process_tokens_per_second", "idle_mean", "idle_max", "idle_servers", *BY_CAUSE, "stall", "recover", "detect",
)  # fmt: skip
COUNTED = ("node_bytes", "busiest_bytes", "all_bytes", "node_memory", "losses", "steps_lost")
FIGURES = (*TIMED, *COUNTED)


@dataclass(frozen=True)
class ProcessFigures:
    """Figures by name, without those that were refused; `refused` says why, empty where nothing was."""

    values: Mapping[str, float] = field(default_factory=dict)
    refused: str = ""


def read_figures(
    config: RunConfig, result: Mapping[str, Any], environment: Mapping[str, Any], directory: Path
) -> ProcessFigures:
    """The figures of a run that has ended; a single process has none."""
    report = result.get("distribution")
    processes = report.get("processes") if isinstance(report, Mapping) else None
    if not isinstance(report, Mapping) or not processes or not all("step_seconds" in one for one in processes.values()):
        return ProcessFigures()  # one process, or a run of an earlier version
    values: dict[str, float] = {"steps_lost": steps_lost(read_events(directory / EVENTS))}
    if (rate := result.get("tokens_per_second")) is not None:
        values["process_tokens_per_second"] = float(rate)
    values |= idle_figures(processes) | _traffic(report.get("traffic") or {})
    values |= _memory(report.get("memory") or {}) | {"losses": float(sum((report.get("lost") or {}).values()))}
    if recoveries := report.get("recoveries"):
        values |= stall_figures(_step_seconds(directory / "metrics.jsonl"), recoveries)
    cores = int((environment.get("cpu") or {}).get("cores") or 0)
    refused = refusal(compute_processes(config), cores, config.executor.workers, processes)
    return ProcessFigures({name: one for name, one in values.items() if not refused or name not in TIMED}, refused)


def compute_processes(config: RunConfig) -> int:
    """Processes that compute gradients: workers or nodes.

    Servers are busy while workers wait for them; where one does hold a process from a core, its timeline says so.
    """
    return max(config.distribution.workers, config.distribution.nodes * config.distribution.rings)


def refusal(compute: int, cores: int, side_by_side: int, processes: Mapping[str, Mapping[str, Any]]) -> str:
    """Why times of these processes say nothing of the algorithm, as a clause; empty where they do.

    compute: processes that compute gradients; side_by_side: runs that went on at a time, 0 where nobody said.
    """
    if compute > cores:
        return f"{compute} processes compute on {counted(cores, 'core')}"
    if side_by_side != 1:
        return "other runs may have gone on beside it (executor.workers=1 lets none)"
    held = [name for name, said in processes.items() if said["times"].get("oversubscribed")]
    return f"others on the machine held {', '.join(held)} from a core" if held else ""


def idle_figures(processes: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Idle shares of nodes and servers, and their causes; empty where no step was under way."""
    nodes = [_causes(said) for name, said in processes.items() if name.startswith("worker") and said["step_seconds"]]
    servers = [_causes(said) for name, said in processes.items() if name.startswith("server") and said["step_seconds"]]
    found: dict[str, float] = {}
    if nodes:
        idle = [min(1.0, sum(one.values())) for one in nodes]
        found |= {"idle_mean": statistics.fmean(idle), "idle_max": max(idle)}
        for cause in (*CAUSES, OTHER):
            shares = [one[cause] for one in nodes]
            found |= {f"{cause}_mean": statistics.fmean(shares), f"{cause}_max": max(shares)}
    if servers:
        found["idle_servers"] = statistics.fmean(sum(one.values()) for one in servers)
    return found


def _causes(said: Mapping[str, Any]) -> dict[str, float]:
    """A process's idle share by cause."""
    times, seconds = said["times"], said["step_seconds"]
    idle = min(seconds, max(0.0, seconds - times["busy"] - times["copy"]))
    waited = {cause: times[cause] for cause in CAUSES}
    total = math.fsum(waited.values())
    shrunk = min(1.0, idle / total) if total else 0.0
    shares = {cause: shrunk * own / seconds for cause, own in waited.items()}
    return shares | {OTHER: max(0.0, idle / seconds - math.fsum(shares.values()))}


def stall_figures(steps: Sequence[float], recoveries: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What a loss cost in seconds, from the seconds of each step; empty where nothing was lost.

    The first step holds the start of everything, and is left out.
    """
    if not recoveries or len(steps) < 3:
        return {}
    recover = max((float(one.get("seconds", 0.0)) for one in recoveries), default=0.0)
    stall = max(steps[1:]) - statistics.median(steps[1:])
    return {"stall": stall, "recover": recover, "detect": max(0.0, stall - recover)}


def steps_lost(events: Sequence[Mapping[str, Any]]) -> float:
    """Steps made again: those behind the checkpoint that a run went back to, in this attempt or the next."""
    back = sum(max(0, int(one["step"]) - int(one["back_to"])) for one in events if one["kind"] == "lost")
    died = [one for one in events if one["kind"] in ("killed", "expired", "failed") and "steps_run" in one]
    return float(back + sum(int(one["steps_run"]) - int(one["steps_kept"]) for one in died))


def _step_seconds(path: Path) -> list[float]:
    """The seconds of each logged step, where every step was logged; else none."""
    lines: dict[int, float] = {}
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        return []
    for line in text.splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if record.get("kind") == "train":
            lines[record["step"]] = record["seconds"]
    steps = sorted(lines)
    if steps != list(range(1, len(steps) + 1)):
        return []
    return [lines[step] - lines.get(step - 1, 0.0) for step in steps]


def _traffic(traffic: Mapping[str, float]) -> dict[str, float]:
    if not traffic:
        return {}
    ways = [traffic[name] for name in traffic if name.startswith(("worker_", "server_")) and "_bytes_" in name]
    return {
        "node_bytes": traffic.get("worker_sent_bytes_per_step", 0.0),
        "busiest_bytes": max(ways, default=0.0),
        "all_bytes": traffic.get("bytes_per_step", 0.0),
    }


def _memory(memory: Mapping[str, Any]) -> dict[str, float]:
    return {"node_memory": float(memory["worker_bytes"])} if "worker_bytes" in memory else {}
