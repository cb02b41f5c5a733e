"""The most memory that a process of a run has held, so that the sum over all processes counts each page once.

Processes of one machine share pages: those of libraries and of the process that they were forked from, and the buffers
that links hand over without a copy. The resident size counts them in every process. Here pages of files and of a
common origin are divided among those who share them (the kernel's proportional set size), and a shared buffer counts
for the process that made it.
"""

from __future__ import annotations

from pathlib import Path

KIB = 1024


def peak_bytes(shared: int = 0, process: str = "self") -> int:
    """Bytes that a process has held at its peak.

    What it holds now, and by how much its resident size was larger at its largest: what comes and goes within a step
    is private. Where the kernel does not say what is shared (before 5.3, gVisor), the largest resident size.

    shared: bytes of the shared memory that it has made.
    process: its number, or `self`.
    """
    status = _kib(Path(f"/proc/{process}/status"))
    try:
        rollup = _kib(Path(f"/proc/{process}/smaps_rollup"))
        own = rollup["Pss_Anon"] + rollup["Pss_File"]
    except (OSError, KeyError):
        return status.get("VmHWM", 0) * KIB
    return (own + max(0, status["VmHWM"] - status["VmRSS"])) * KIB + shared


def _kib(path: Path) -> dict[str, int]:
    """The lines of a file of /proc that give kibibytes."""
    lines = (line.split() for line in path.read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) for words in lines if len(words) == 3 and words[2] == "kB"}
