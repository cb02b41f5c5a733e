"""Measurements in processes of their own: nothing that ran before takes part, and a peak of memory is one's own."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from nmt.errors import UserError

Report = Callable[[], None]  # called by a measurement when one of its announced units is done


@dataclass(frozen=True)
class Job:
    """A measurement: `run(report, *arguments)`, importable, with plain data as arguments and result.

    units: how often it will call `report`.
    """

    title: str
    run: Callable[..., Any]
    arguments: tuple[Any, ...]
    units: int = 1


def run_jobs(jobs: Sequence[Job]) -> list[Any]:
    """What the jobs return, one after the other. Raises UserError where one does, or dies."""
    found = []
    with _progress(jobs) as advance:
        for job in jobs:
            found.append(_run(job, lambda job=job: advance(job)))  # type: ignore[misc]
    return found


def _run(job: Job, advance: Callable[[], None]) -> Any:
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(job, sender))
    process.start()
    sender.close()
    try:
        while True:
            kind, value = receiver.recv()
            if kind == "unit":
                advance()
            elif kind == "error":
                raise value
            else:
                process.join()
                return value
    except EOFError:
        process.join()
        raise UserError(f"the process died with exit code {process.exitcode}", where=job.title) from None
    finally:
        receiver.close()
        if process.is_alive():
            process.terminate()


def _child(job: Job, sender: Connection) -> None:
    with sender:
        try:
            sender.send(("result", job.run(lambda: sender.send(("unit", None)), *job.arguments)))
        except UserError as error:
            sender.send(("error", error))


@contextmanager
def _progress(jobs: Sequence[Job]) -> Iterator[Callable[[Job], None]]:
    """A bar on stderr; where that is no terminal, a line for each job that began."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal:
        begin, begun = time.monotonic(), set()

        def tell(job: Job) -> None:
            if job.title not in begun:
                begun.add(job.title)
                console.print(f"{time.monotonic() - begin:5.0f} s  {job.title}", highlight=False, soft_wrap=True)

        yield tell
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(jobs[0].title if jobs else "", total=sum(job.units for job in jobs))
        yield lambda job: progress.update(task, advance=1, description=job.title)
