"""Cleaned training text in files, gone through as often as learning and encoding want, without ever being held."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO


class CleanedText:
    """Pairs of cleaned lines in two files of `directory`, one a line: cleaning leaves no line end inside."""

    def __init__(self, directory: Path):
        self._paths = (directory / "cleaned.source", directory / "cleaned.target")
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return zip(self.side(0), self.side(1), strict=True)

    def side(self, number: int) -> Iterator[str]:
        """The source lines (0) or the target lines (1)."""
        with _opened(self._paths[number], "r") as file:
            for line in file:
                yield line[:-1]

    def extend(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Append pairs."""
        with ExitStack() as stack:
            files = [stack.enter_context(_opened(path, "a")) for path in self._paths]
            for pair in pairs:
                for file, line in zip(files, pair, strict=True):
                    file.write(f"{line}\n")
                self._count += 1

    def remove(self) -> None:
        """Delete the files."""
        for path in self._paths:
            path.unlink(missing_ok=True)


def _opened(path: Path, mode: str) -> IO[str]:
    # Generated text may hold lone surrogates, which no UTF-8 file may.
    return path.open(mode, encoding="utf-8", errors="surrogatepass", newline="\n")
