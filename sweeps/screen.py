"""Lines on a person's screen: said as they are, and paths as one would type them here."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


WIDE = 240  # columns of output that is no terminal's


def standard_output() -> Console:
    """A console on standard output: as wide as the terminal, or wide enough for any table of ours."""
    from rich.console import Console

    return Console(file=sys.stdout, width=None if sys.stdout.isatty() else WIDE)


def say(console: Console, text: str) -> None:
    """Print a line as it is: nothing in it is markup, and it is not broken."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def near(path: os.PathLike[str]) -> str:
    """The path as one would type it in the working directory."""
    text = os.path.relpath(path)
    return os.fspath(path) if text.startswith("..") else text


class _ConsoleHandler(logging.Handler):
    """Log lines above the live table instead of through it."""

    def __init__(self, console: Console):
        super().__init__(logging.WARNING)
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        say(self.console, self.format(record))


@contextmanager
def log_to(console: Console) -> Iterator[None]:
    """Show what our modules log on this console, above a live table and past an executor that keeps stderr silent."""
    logger, shown = logging.getLogger("nmt"), _ConsoleHandler(console)
    propagated = logger.propagate
    logger.addHandler(shown)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(shown)
        logger.propagate = propagated
