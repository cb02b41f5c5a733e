"""How fast nodes are: each times the same short computation, of the kind and width that the model needs.

What counts is wall clock, since that is what a throttled or shared core costs. The kernel keeps a quota of processor
time by letting a process run and then stand still, in periods of a tenth of a second: a computation of milliseconds
fits between two standstills and sees nothing of them. So it is repeated in windows of a period each, which follow each
other without a gap, so that every window holds one period's worth of both, wherever in it it begins.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch

from distributed.strategy import Workload

WINDOWS, WINDOW_SECONDS = 5, 0.1
ROWS = 32  # of the computation: a small micro-batch's
WIDTHS = (16, 1024)  # that are timed, however narrow or wide the model is
ALIKE = 0.85  # of the fastest node's rate, from which on a node counts as equally fast
FINENESS = 20  # speeds are whole twentieths


def width_of(shapes: Iterable[Sequence[int]]) -> int:
    """The width of a model with parameters of these shapes: the widest matrix by its shorter side, within `WIDTHS`."""
    least, most = WIDTHS
    return min(most, max([least, *(min(shape) for shape in shapes if len(shape) > 1)]))


def model_work(workload: Workload, width: int) -> Callable[[], None]:
    """A recurrent step of [ROWS, width] in the workload's precision and on its device, with the products that its
    backward pass would make. It draws no random numbers."""
    inputs = torch.linspace(-1.0, 1.0, ROWS * width, device=workload.device).view(ROWS, width)
    weight = torch.linspace(-1.0, 1.0, width * width, device=workload.device).view(width, width) / width

    def run() -> None:
        with torch.inference_mode(), workload.autocast():
            state = torch.tanh(inputs + inputs @ weight)
            (state @ weight.T, inputs.T @ state)

    return run


def rate(run: Callable[[], None], note: Callable[[], None], clock: Callable[[], float] = time.perf_counter) -> float:
    """How often a second something can be done here: the median over `WINDOWS`, each of `WINDOW_SECONDS` and the end of
    what was begun in it.

    note: called at the beginning of each window.
    """
    run()  # libraries load
    found = []
    begin = clock()
    for _ in range(WINDOWS):
        note()
        times, end = 0, begin
        while end - begin < WINDOW_SECONDS:
            run()
            times, end = times + 1, clock()
        found.append(times / (end - begin))
        begin = end
    return statistics.median(found)


def relative(rates: Mapping[int, float]) -> dict[int, float]:
    """By node, its speed beside the fastest one's, which is 1; in whole twentieths, one at least.

    Nodes that are nearly as fast as the fastest count as equal to it, so that noise does not move a cut.
    """
    fastest = max(rates.values(), default=1.0)
    shares = {number: one / fastest for number, one in rates.items()}
    return {
        number: 1.0 if share >= ALIKE else max(1, round(FINENESS * share)) / FINENESS
        for number, share in shares.items()
    }


class NodeSpeeds:
    """What nodes have said of themselves, as their coordinator knows it.

    is_measured: else nobody is asked, and all count as equally fast.
    """

    def __init__(self, is_measured: bool):
        self._is_measured = is_measured
        self._asked: set[int] = set()
        self._rates: dict[int, float] = {}

    def missing(self, numbers: Iterable[int]) -> list[int]:
        """Those of some nodes that have not said it and were not asked: they are to be asked now, all at once."""
        if not self._is_measured:
            return []
        found = [number for number in numbers if number not in self._asked]
        self._asked.update(found)
        return found

    def has(self, numbers: Iterable[int]) -> bool:
        """Whether all of some nodes have said it, if anybody is asked."""
        return not self._is_measured or all(number in self._rates for number in numbers)

    def note(self, number: int, rate: float) -> None:
        """A node has said how often a second it can do what all were asked to do."""
        self._rates[number] = rate

    def forget(self, number: int) -> None:
        """A node is gone, or is to be asked anew."""
        self._asked.discard(number)
        self._rates.pop(number, None)

    def of(self, numbers: Iterable[int]) -> dict[int, float]:
        """The speeds of some nodes beside the fastest of them; equal where none was measured."""
        known = relative({number: self._rates[number] for number in numbers if number in self._rates})
        return {number: known.get(number, 1.0) for number in numbers}
