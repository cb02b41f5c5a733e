"""Joules that a machine has used, where its counters can be read: processors by RAPL, GPUs by NVML.

Linux shows the processors' counters under /sys/class/powercap, mostly to root only, and in a virtual machine mostly not
at all; GPUs tell theirs to the package `pynvml`, where it is installed. What cannot be read is "not measurable", never
an estimate. Counters are of whole packages and devices, whoever uses them: they say something about a run that has the
machine to itself.

Every process of a run reads the counters of its host, and `EnergyOfHosts` counts each of them once. In a container the
counters lie where S2S_POWERCAP says: bind-mount the host's /sys/class/powercap there, readable by the run's user.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

POWERCAP = Path("/sys/class/powercap")
ENVIRONMENT = "S2S_POWERCAP"
READ_SECONDS = 60.0  # between two readings of a meter that is watched
_MICRO, _MILLI = 1e-6, 1e-3


class EnergyMeter:
    """Adds up what was used since it was made.

    `read` has to be called more often than a counter wraps round: a package of 200 W takes at least five minutes.

    Parameters
    ----------
    gpus: devices to read, by number or UUID as NVML has them.
    powercap: where the kernel shows the processors' counters; None: where S2S_POWERCAP says, else /sys/class/powercap.
    """

    def __init__(self, gpus: Sequence[int | str] = (), powercap: Path | None = None):
        self.reasons: list[str] = []
        """Why something is not measurable."""
        self._counters: dict[str, tuple[Callable[[], float], float]] = {}
        self._lock = threading.Lock()
        self._add_packages(powercap or Path(os.environ.get(ENVIRONMENT) or POWERCAP))
        if gpus:
            self._add_gpus(gpus)
        self._last = {name: counter() for name, (counter, _) in self._counters.items()}
        self._joules = dict.fromkeys(self._counters, 0.0)

    def read(self) -> Mapping[str, float]:
        """Joules so far by counter (`package-0`, `dram-0`, `gpu-0`); empty where nothing can be measured.

        Any thread may call it. A counter that cannot be read any more is "not measurable" from then on.
        """
        with self._lock:
            for name, (counter, wraps_at) in list(self._counters.items()):
                try:
                    value = counter()
                except Exception as error:  # files and drivers fail in ways of their own, and no run may end of it
                    self.reasons.append(f"{name} cannot be read any more: {error}")
                    del self._counters[name], self._joules[name]
                    continue
                self._joules[name] += used(self._last[name], value, wraps_at)
                self._last[name] = value
            return dict(self._joules)

    def watch(self) -> None:
        """Read every minute from now on, in a thread that ends with the process, so that no wrap is missed."""
        if self._counters:
            threading.Thread(target=self._watch, name="energy", daemon=True).start()

    def _watch(self) -> None:
        ended = threading.Event()
        while not ended.wait(READ_SECONDS):
            self.read()

    def joules(self) -> float | None:
        """All counters' sum, or None: not measurable."""
        return sum(self.read().values()) if self._counters else None

    def _add_packages(self, powercap: Path) -> None:
        """Processors and, beside them, their memory. Cores are part of a package; `psys` and `mmio` repeat it."""
        zones = sorted(powercap.glob("intel-rapl:*"))  # the name is Intel's on every processor
        if not zones:
            self.reasons.append(f"no energy counters of processors under {powercap}")
        for zone in zones:
            try:
                name = (zone / "name").read_text().strip()
                package = zone.name.split(":")[1]
                if name.startswith("package") or name == "dram":
                    wraps_at = float((zone / "max_energy_range_uj").read_text()) * _MICRO
                    counter = _file_counter(zone / "energy_uj")
                    counter()
                    self._counters[f"dram-{package}" if name == "dram" else name] = (counter, wraps_at)
            except (OSError, ValueError) as error:
                self.reasons.append(f"{zone.name} cannot be read: {error}")

    def _add_gpus(self, gpus: Sequence[int | str]) -> None:
        try:
            import pynvml
        except ImportError:
            self.reasons.append("energy counters of GPUs need the package pynvml")
            return
        try:
            pynvml.nvmlInit()
            for gpu in gpus:
                counter = _gpu_counter(pynvml, gpu)
                counter()
                self._counters[f"gpu-{gpu}"] = (counter, 0.0)
        except pynvml.NVMLError as error:
            self.reasons.append(f"energy counters of GPUs cannot be read: {error}")


class EnergyOfHosts:
    """What all hosts of a run have used, each counter once, whichever of a host's processes read it."""

    def __init__(self) -> None:
        self._seen: dict[str, dict[str, float]] = {}  # each process's newest readings
        self._reader: dict[tuple[str, str], str] = {}  # by host and counter, the process whose readings count
        self._joules: dict[str, dict[str, float]] = {}  # by host and counter
        self._reasons: dict[str, tuple[str, Sequence[str]]] = {}  # by host, one of its processes, and what is missing

    def add(self, readings: Iterable[tuple[str, str, Mapping[str, Any]]]) -> None:
        """Take in a round of readings: process, host, and what `reading` made of its meter.

        From one round to the next a counter gains what the process says that counted it before. Where that one is gone
        it is the one that has known it for longest, so what is missed is at most the time between two rounds.
        """
        gains: dict[tuple[str, str], dict[str, float]] = {}
        told: dict[str, tuple[str, Sequence[str]]] = {}
        for process, host, said in readings:
            seen = self._seen.get(process, {})
            self._joules.setdefault(host, {})
            if host not in told or len(said["reasons"]) < len(told[host][1]):  # whoever sees most of the host
                told[host] = (process, said["reasons"])
            for counter, joules in said["joules"].items():
                gains.setdefault((host, counter), {})[process] = max(0.0, joules - seen.get(counter, 0.0))
            self._seen[process] = dict(said["joules"])
        for (host, counter), found in gains.items():
            reader = self._reader.get((host, counter))
            if reader not in found:
                reader = self._reader[host, counter] = max(found, key=lambda process: found[process])
            self._joules[host][counter] = self._joules[host].get(counter, 0.0) + found[reader]
        self._reasons |= told

    def joules(self) -> float | None:
        """The sum over hosts and counters; None where a host has no counter at all, so that the sum would mislead."""
        if not self._joules or not all(self._joules.values()):
            return None
        return sum(joules for own in self._joules.values() for joules in own.values())

    def to_dict(self) -> dict[str, Any]:
        """Plain data: `joules` or None, how many `hosts`, names of `counters`, `reasons` why something is missing."""
        where = len(self._joules) > 1
        return {
            "joules": self.joules(),
            "hosts": len(self._joules),
            "counters": sorted({counter for own in self._joules.values() for counter in own}),
            "reasons": [
                f"host of {process}: {reason}" if where else reason
                for process, reasons in self._reasons.values()
                for reason in reasons
            ],
        }


def reading(meter: EnergyMeter) -> dict[str, Any]:
    """A meter's readings as plain data, for `EnergyOfHosts`."""
    joules = dict(meter.read())
    return {"joules": joules, "reasons": list(meter.reasons)}


def used(before: float, after: float, wraps_at: float) -> float:
    """What a counter has counted between two readings, round which it wrapped at most once; 0: it never wraps."""
    return after - before if after >= before or not wraps_at else after - before + wraps_at


def _file_counter(path: Path) -> Callable[[], float]:
    return lambda: float(path.read_text()) * _MICRO


def _gpu_counter(pynvml: Any, gpu: int | str) -> Callable[[], float]:
    by_number = isinstance(gpu, int)
    handle = (pynvml.nvmlDeviceGetHandleByIndex if by_number else pynvml.nvmlDeviceGetHandleByUUID)(gpu)
    return lambda: float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) * _MILLI
