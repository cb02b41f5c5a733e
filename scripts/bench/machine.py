"""The machine under measurement: its floors, and what else it was doing."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bench.children import Job, Report
from bench.settings import PRECISIONS, Settings
from bench.tables import Part, giga, table

SQUARES = (512, 1024, 2048)
REFERENCE = 1024  # the square product that is timed along with everything else


def torch_type(precision: str) -> Any:
    """torch's name of a precision."""
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]


def prepare_machine(settings: Settings) -> None:
    """The switches of a run, as `nmt train` sets them, in this process."""
    from nmt.training.device import prepare_device

    prepare_device(settings.config(settings.shapes[0]))


@dataclass(frozen=True)
class Spread:
    """The median of some measurements, and the smallest and largest of them."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one."""
        return cls(statistics.median(values), min(values), max(values))

    def shown(self, show: Callable[[float], str] = "{:,.0f}".format) -> str:
        """`median (least to most)`."""
        return f"{show(self.median)} ({show(self.least)} to {show(self.most)})"


class Clock:
    """Wall clock and this process's own CPU time of what runs inside the context.

    seconds: of wall clock. busy: CPU seconds by wall seconds: the number of cores that this process got.
    """

    def __init__(self, device: str):
        self._device = device

    def __enter__(self) -> Clock:
        self._wait()
        self._begin, self._cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *error: object) -> None:
        self._wait()
        self.seconds = time.perf_counter() - self._begin
        self.busy = (time.process_time() - self._cpu) / self.seconds

    def _wait(self) -> None:
        if self._device != "cpu":
            import torch

            torch.cuda.synchronize()


def resident_bytes() -> int:
    """Memory of this process that is in RAM now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def floor_jobs(settings: Settings) -> list[Job]:
    """Product rates and bandwidth on their own."""
    return [Job("floors", measure_floors, (settings,), units=settings.rounds)]


def measure_floors(report: Report, settings: Settings) -> dict[str, Any]:
    """Operations a second of square products, and bytes a second of a copy, for each number of threads."""
    import torch

    from nmt.profiling.floors import bandwidth, square_rates

    prepare_machine(settings)
    rates: dict[tuple[int, str, int], list[float]] = {}
    copies: dict[int, list[float]] = {}
    for _ in range(settings.rounds):
        for threads in settings.threads:
            torch.set_num_threads(threads)
            copies.setdefault(threads, []).append(bandwidth(settings.device, timings=2))
            for precision in PRECISIONS:
                for size, rate in square_rates(torch_type(precision), settings.device, SQUARES, timings=2).items():
                    rates.setdefault((threads, precision, size), []).append(rate)
        report()
    return {
        "products": [
            {
                "threads": threads,
                "precision": precision,
                "size": size,
                "operations_per_second": asdict(Spread.of(found)),
            }
            for (threads, precision, size), found in rates.items()
        ],
        "copies": [
            {"threads": threads, "bytes_per_second": asdict(Spread.of(found))} for threads, found in copies.items()
        ],
    }


def floor_part(settings: Settings, found: Sequence[dict[str, Any]]) -> Part:
    """The floors as a table; the ratio is bf16's best rate by that of fp32."""
    (floors,) = found
    rows, ratios = [], {}
    for copy in floors["copies"]:
        threads, best = copy["threads"], {}
        for precision in PRECISIONS:
            own = [p for p in floors["products"] if (p["threads"], p["precision"]) == (threads, precision)]
            best[precision] = max(p["operations_per_second"]["median"] for p in own)
            cells = [giga(Spread(**p["operations_per_second"])) for p in own]
            rows.append([str(threads), precision, *cells, giga(Spread(**copy["bytes_per_second"]))])
        ratios[f"bf16_over_fp32_rate/{threads}_threads"] = best["bf16"] / best["fp32"]
    heads = ["threads", "precision", *(f"[{n}, {n}] × [{n}, {n}], GFLOP/s" for n in SQUARES), "copy, GB/s"]
    return Part("Floors", [table(heads, rows)], floors, ratios)
