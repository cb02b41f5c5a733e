"""The one clock rule of asynchronous training: who may pull when.

A worker's clock on a server counts the pushes that it has made since the last restart. It may begin its next one, from
clock c, once every live worker that has work is at c - s or further:

    min over live, unparked workers of clock >= c - s

(stale synchronous parallel, Ho et al. 2013). s = infinity is asynchronous training (`asp`), s >= 1 `ssp`. `bsp` is a
mode of its own, in which pushes are summed and applied once; its workers may go on when they may with s = 0.

A worker without a ticket parks, and counts no more: so nobody waits for a worker that has nothing to do, and the last
tickets before an evaluation cannot lock up. Everyone begins parked. Who pulls and was parked enters at the highest
clock that any worker has reached since the restart. With this, whoever is lost and whoever comes,

- clocks of unparked workers never differ by more than s + 1, and
- at most (W - 1)(2s + 1) pushes of others are applied between a worker's pull and its push, where W is the largest
  number of workers alive at one time. Each of the other W - 1 places is at least at c - s when the worker pulls at c,
  cannot pass c + s + 1 before it has pushed, and whoever takes a place starts no lower than it stood. W = 2 with s = 1
  reaches its 3.

Each server applies the rule to what it has seen itself; no clocks are exchanged.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

MODES = ("bsp", "ssp", "asp")


def staleness_bound(mode: str, staleness: int) -> float:
    """The s of the clock rule: 0 for bsp, `staleness` for ssp, infinity for asp.

    Raises ValueError for an unknown mode, and for ssp with a staleness below 1, which would be bsp.
    """
    if mode not in MODES:
        raise ValueError(f"mode {mode!r} is none of {', '.join(MODES)}")
    if mode == "ssp":
        if staleness < 1:
            raise ValueError(f"ssp with a staleness of {staleness} is mode bsp")
        return float(staleness)
    return 0.0 if mode == "bsp" else math.inf


def lag_bound(workers: int, bound: float) -> float:
    """The largest version lag that a push can have where each is an update: (W - 1)(2s + 1); infinity for asp."""
    return (workers - 1) * (2 * bound + 1) if workers > 1 else 0.0


class Clocks:
    """The clocks of one server, and the pulls that wait on it.

    bound: s, as `staleness_bound` gives it.
    workers: who is alive at the start.

    Whatever happens is told by one method each; `released` then names the pulls that may be answered. Workers are known
    by number. What comes from a worker that is not alive (any more) raises KeyError: refusing it is the link's
    business.
    """

    def __init__(self, bound: float, workers: Iterable[int] = ()):
        self.bound = bound
        self.restart(workers)

    def restart(self, workers: Iterable[int]) -> None:
        """Begin again after a horizon: these workers are alive, parked at clock 0, and no pull waits."""
        self._clocks: dict[int, int] = dict.fromkeys(workers, 0)
        self._parked: set[int] = set(self._clocks)
        self._waiting: dict[int, None] = {}  # in order of arrival
        self._reached = 0

    @property
    def workers(self) -> tuple[int, ...]:
        """Everyone alive, ascending."""
        return tuple(sorted(self._clocks))

    @property
    def waiting(self) -> tuple[int, ...]:
        """Whose pull has to wait, in order of arrival."""
        return tuple(self._waiting)

    @property
    def slowest(self) -> int:
        """The lowest clock of those that have work; the highest clock reached where nobody has."""
        return min(
            (clock for worker, clock in self._clocks.items() if worker not in self._parked), default=self._reached
        )

    @property
    def gap(self) -> int:
        """How far the clocks of those that have work lie apart: at most s + 1."""
        running = [clock for worker, clock in self._clocks.items() if worker not in self._parked]
        return max(running) - min(running) if running else 0

    def clock(self, worker: int) -> int:
        """A live worker's clock."""
        return self._clocks[worker]

    def pushed(self, worker: int) -> int:
        """The worker's push is complete here, applied or a repetition; returns its clock.

        The push of a parked worker, which a horizon overtook as it repeated a lost worker's ticket, moves nothing.
        """
        if worker not in self._parked:
            self._clocks[worker] += 1
            self._reached = max(self._reached, self._clocks[worker])
        return self._clocks[worker]

    def pull(self, worker: int) -> None:
        """The worker asks for the values of its next push; asking twice is asking once. It is parked no more."""
        if worker in self._parked:
            self._parked.remove(worker)
            self._clocks[worker] = self._reached
        elif worker not in self._clocks:
            raise KeyError(worker)
        self._waiting.setdefault(worker)

    def park(self, worker: int) -> None:
        """The worker has no work: nobody waits for it, until it pulls again."""
        if worker not in self._clocks:
            raise KeyError(worker)
        self._parked.add(worker)
        self._waiting.pop(worker, None)

    def join(self, worker: int) -> None:
        """A worker is alive from now on, parked until it pulls."""
        if worker in self._clocks:
            raise ValueError(f"worker {worker} is alive already")
        self._clocks[worker] = self._reached
        self._parked.add(worker)

    def lose(self, worker: int) -> None:
        """A worker is gone, with its pull if it waited; losing a stranger is nothing."""
        self._clocks.pop(worker, None)
        self._parked.discard(worker)
        self._waiting.pop(worker, None)

    def may_pull(self, worker: int) -> bool:
        """Whether the rule lets a live worker begin its next push now."""
        return self._clocks[worker] - self.bound <= self.slowest

    def released(self) -> list[int]:
        """The waiting pulls that may be answered now, in order of arrival; they wait no more.

        To be asked after every `pushed`, `pull`, `park` and `lose`.
        """
        slowest = self.slowest
        free = [worker for worker in self._waiting if self._clocks[worker] - self.bound <= slowest]
        for worker in free:
            del self._waiting[worker]
        return free
