"""What all executors share: their interface, and how many runs go side by side with how many threads each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from nmt.config.schema import ExecutorConfig
from sweeps.worker import WorkItem


class Executor(Protocol):
    """Brings work items to an end. Constructed with the sweep's `ExecutorConfig` and its `RunStore`."""

    def execute(self, items: Sequence[WorkItem], on_poll: Callable[[], None]) -> None:
        """Run all items, calling `on_poll` about twice a second from one thread.

        What became of the runs is in their directories. Raises KeyboardInterrupt after SIGINT or SIGTERM, once every
        run has stopped, and UserError where the items cannot be run here at all.
        """


@dataclass(frozen=True)
class Placement:
    """`workers` runs at a time with `threads` CPU threads each."""

    workers: int
    threads: int

    @property
    def timing(self) -> str:
        """`exclusive` where a run has the machine to itself, else `shared`: their times are never mixed."""
        return "exclusive" if self.workers == 1 else "shared"

    def place(self, item: WorkItem) -> WorkItem:
        """The item with timing and threads filled in."""
        return dataclasses.replace(item, timing=self.timing, threads=self.threads)


def place(config: ExecutorConfig, items: Sequence[WorkItem], cores: int) -> Placement:
    """Workers as configured, else one a core; never more than items; the cores are dealt out evenly, at least one each.

    Where the configuration fixes `threads`, as many workers as cores allow with that.
    """
    asked = max((config["threads"] for item in items for config in item.configs), default=0)
    workers = config.workers or max(1, cores // max(1, asked))
    workers = max(1, min(workers, len(items)))
    return Placement(workers=workers, threads=asked or max(1, cores // workers))
