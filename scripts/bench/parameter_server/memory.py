"""Memory of workers and servers beside the formula, from how it grows with the model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.children import Job, Report
from bench.parameter_server.exchange import BYTES, shown
from bench.tables import Part, table

LINKS = ("shm", "tcp")
STEPS = 6  # after these every buffer has been in use


def memory_jobs(sizes: tuple[int, int]) -> list[Job]:
    """A job for each kind of link and protection."""
    return [
        Job(f"memory, {link}{', shadows' if shadows else ''}", measure_memory, (sizes, link, shadows), units=len(sizes))
        for link in LINKS
        for shadows in (0, 1)
    ]


def measure_memory(report: Report, sizes: tuple[int, int], link: str, shadows: int) -> dict[str, Any]:
    """Words a parameter of a worker, and words an element of its shard of a server.

    What a process holds beside them (the interpreter, torch) is the same for both sizes, so the difference leaves it
    out. Shared memory counts for the process that made it: the worker's gradients and the server's parameters.
    """
    from bench.parameter_server.arm import SERVERS, WORKERS, Arm
    from bench.parameter_server.workloads import empty_spec

    peaks: dict[str, list[float]] = {"worker": [], "server": []}
    for parameters in sizes:
        with Arm(empty_spec(parameters, WORKERS), link=link, shadows=shadows) as arm:
            arm.run(STEPS)
            for role, pids in arm.pids.items():
                peaks[role].append(max(_own_bytes(pid) for pid in pids))
        report()
    small, large = sizes
    words = {role: (b - a) / (large - small) / BYTES for role, (a, b) in peaks.items()}
    return {
        "sizes": list(sizes),
        "link": link,
        "shadows": shadows,
        "words": {"worker": words["worker"], "server": words["server"] * SERVERS},
        "formula": formula(link, shadows, WORKERS),
    }


def formula(link: str, shadows: int, workers: int) -> dict[str, int]:
    """Words that design and tree allow, of a leaf a worker.

    A worker has values and one gradient, which is kept until it is answered. A server has values and two moments, and
    for the open step: over TCP a buffer for the node of each worker, one of which becomes the sum; over shared memory,
    where nodes stay with the workers, the sum alone. A shadow is another server's values, moments and sum.
    """
    gradients = 1 if link == "shm" else workers
    return {"worker": 2, "server": 3 + gradients + shadows * 4}


def memory_part(found: Sequence[dict[str, Any]]) -> Part:
    """Measured words beside the formula's."""
    rows, ratios = [], {}
    for one in found:
        name = one["link"] + (", shadows" if one["shadows"] else "")
        for role in ("worker", "server"):
            measured, due = one["words"][role], one["formula"][role]
            ratios[f"memory/{name}/{role}/over_formula"] = measured / due
            rows.append([name, role, f"{measured:.2f}", str(due), f"{measured / due:.2f}"])
    small, large = (shown(size) for size in found[0]["sizes"])
    return Part(
        "Memory",
        [
            f"Words of 4 bytes for each parameter (worker) or each element of its shard (server), from the growth of "
            f"the processes from {small} to {large} parameters: private memory, and the shared memory that is their "
            "own. Two workers and two servers, a leaf of the summation tree a worker.",
            table(["link", "process", "words", "formula", "÷ formula"], rows),
        ],
        list(found),
        ratios,
    )


def _own_bytes(pid: int) -> int:
    """Anonymous memory of a process, and of shared memory the segments that it made.

    A mapping keeps a descriptor of its own; who made the segment has another.
    """
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    anonymous = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))
    segments: dict[int, list[int]] = {}
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            if "memfd:" in str(entry.readlink()):
                about = entry.stat()
                segments.setdefault(about.st_ino, []).append(about.st_size)
        except OSError:  # closed meanwhile
            continue
    return anonymous + sum(sizes[0] for sizes in segments.values() if len(sizes) > 1)
