"""A child process for each work item, without Ray: `executor=inline`.

Children come from multiprocessing's fork server, which has imported the training code once, so a run starts in
milliseconds and never inherits state of another.
"""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import FrameType

from nmt.config.schema import ExecutorConfig
from nmt.errors import UserError
from nmt.runs import RunStore
from sweeps.executors.children import cause_of_death, leave_terminal
from sweeps.executors.needs import amounts
from sweeps.executors.placement import (
    CPU,
    Node,
    Placement,
    distinct_bundles,
    no_line,
    place,
    process_needs,
    this_machine,
)
from sweeps.worker import Outcome, WorkItem, record_failure, run_work_item

POLL_SECONDS = 0.5
PRELOAD = [  # what a run imports only when it gets there, and torch with it
    "nmt.train",
    "nmt.data.prepare",
    "nmt.evaluate",
    "nmt.training.fit",
    "nmt.training.trainer",
    "nmt.training.validation",
    "nmt.training.workload",
    "nmt.training.device",
    "nmt.models.cell_kinds",
    "nmt.models.decoding",
    "nmt.evaluation.models",
    "nmt.search.ensemble",
    "distributed.single",
    "sacrebleu.metrics",
    "sacremoses",
]
LOG = "worker.log"  # what a run's process and its libraries print, in the run directory


@dataclass
class _Child:
    item: WorkItem
    attempt: int
    process: ForkServerProcess
    outcomes: Connection


class InlineExecutor:
    """Runs items in child processes of this one, `executor.workers` at a time.

    A child that fails or dies is started again `executor.retries` times. With `in_process=True` (for tests) the items
    run one after the other in this process instead.
    """

    def __init__(self, config: ExecutorConfig, store: RunStore, *, in_process: bool = False):
        self.config, self.store, self.in_process = config, store, in_process

    def execute(
        self, items: Sequence[WorkItem], on_poll: Callable[[], None], say: Callable[[str], None] = no_line
    ) -> None:
        """Run all items; see `sweeps.executors.placement.Executor`."""
        machine = this_machine()
        placement = place(self.config, items, [machine])
        check_cores(self.config, items, placement, machine)
        placed = [placement.place(item) for item in items]
        if self.in_process:
            self._here(placed, on_poll)
        else:
            self._in_children(placed, placement.workers, on_poll)

    def _here(self, items: Sequence[WorkItem], on_poll: Callable[[], None]) -> None:
        for item in items:
            for _ in range(1 + self.config.retries):
                outcomes = run_work_item(item)
                on_poll()
                if any(outcome.state == "interrupted" for outcome in outcomes):
                    raise KeyboardInterrupt
                if not any(outcome.retry for outcome in outcomes):
                    break

    def _in_children(self, items: Sequence[WorkItem], workers: int, on_poll: Callable[[], None]) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
        queue = deque((item, 1) for item in items)
        children: list[_Child] = []
        with _stop_signals(children) as stop:
            try:
                while (queue and not stop.is_set()) or children:
                    while queue and len(children) < workers and not stop.is_set():
                        item, attempt = queue.popleft()
                        children.append(self._start(context, item, attempt))
                        if stop.is_set():  # while the child was being started, and so not yet in the list
                            children[-1].process.terminate()
                    wait([child.process.sentinel for child in children], timeout=POLL_SECONDS)
                    on_poll()
                    for child in [child for child in children if not child.process.is_alive()]:
                        if self._ended(child, stop.is_set()):
                            queue.append((child.item, child.attempt + 1))
                        children.remove(child)
            finally:
                for child in children:
                    child.process.kill()
            on_poll()
            if stop.is_set():
                raise KeyboardInterrupt

    def _start(self, context: multiprocessing.context.ForkServerContext, item: WorkItem, attempt: int) -> _Child:
        receiver, sender = context.Pipe(duplex=False)
        log = self.store.directory(item.run_ids[0]) / LOG
        process = context.Process(target=_child_main, args=(item, log, sender), name=item.title, daemon=False)
        process.start()
        sender.close()
        return _Child(item, attempt, process, receiver)

    def _ended(self, child: _Child, stopping: bool) -> bool:
        """Whether the item is to be started again."""
        child.process.join()
        with child.outcomes:
            try:
                outcomes: list[Outcome] = child.outcomes.recv() if child.outcomes.poll() else []
            except EOFError:
                outcomes = []
        may_retry = not stopping and child.attempt <= self.config.retries
        if outcomes:
            return may_retry and any(outcome.retry for outcome in outcomes)
        if not stopping:
            for run_id in dict.fromkeys(child.item.run_ids):
                record_failure(self.store, run_id, f"the process died: {cause_of_death(child.process.exitcode)}")
        return may_retry


def check_cores(config: ExecutorConfig, items: Sequence[WorkItem], placement: Placement, machine: Node) -> None:
    """Raise UserError for a run of several processes that ask for more cores than the machine has.

    Nobody deals out anything else here. A run's process starts the others itself.
    """
    has = machine.resources.get(CPU, 1.0)
    for bundles in distinct_bundles(items, process_needs(config, placement.threads), placement.core_share):
        needs = sum(bundle.get(CPU, 0.0) for bundle in bundles)
        if len(bundles) > 1 and needs > has:
            raise UserError(
                f"a run of {len(bundles)} processes needs {amounts({CPU: needs})}, and this machine has "
                f"{amounts({CPU: has})}",
                where="distribution",
                hint="executor.oversubscribe=true lets processes share cores, executor=ray_tune uses other nodes too",
            )


@contextmanager
def _stop_signals(children: list[_Child]) -> Iterator[threading.Event]:
    """The first SIGINT or SIGTERM goes to the children as SIGTERM (they checkpoint and end), the second kills them."""
    stop = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        second = stop.is_set()
        stop.set()
        for child in list(children):
            if child.process.is_alive():
                (child.process.kill if second else child.process.terminate)()

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _child_main(item: WorkItem, log: Path, outcomes: Connection) -> None:
    leave_terminal(log)
    with outcomes:
        outcomes.send(run_work_item(item))
