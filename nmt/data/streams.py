"""Lines of text in and out: standard streams, plain files and .gz, read strictly and written whole or not at all."""

from __future__ import annotations

import contextlib
import gzip
import os
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, cast

from nmt.errors import UserError

STREAM = "-"
CHUNK_BATCHES = 32  # batches whose lines are read together, so that they can be sorted by length


def lines(stream: IO[bytes], name: str) -> Iterator[str]:
    """Lines without their ends; `name` is the file's, for messages.

    Raises UserError with the line of what is not UTF-8 or cannot be read.
    """
    name = "standard input" if name == STREAM else name
    number = 0
    try:
        for number, line in enumerate(stream, 1):
            yield line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise UserError(
            f"byte 0x{error.object[error.start]:02x} is not UTF-8",
            where=f"{name}:{number}",
            hint="convert the text to UTF-8",
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot be read: {error}", where=f"{name}:{number + 1}") from error


@contextlib.contextmanager
def reading(name: str, key: str) -> Iterator[IO[bytes]]:
    """The bytes of a file, plain or .gz, or of standard input (`-`). `key` is the option to blame in a UserError."""
    if name == STREAM:
        yield sys.stdin.buffer
        return
    path = Path(name).expanduser()
    with contextlib.ExitStack() as stack:
        try:
            stream: IO[bytes] = stack.enter_context(path.open("rb"))
        except OSError as error:
            raise UserError(f"cannot be read: {error.strerror}", where=f"{key}={name}") from error
        if path.suffix == ".gz":
            stream = cast(IO[bytes], stack.enter_context(gzip.open(stream)))
        yield stream


@contextlib.contextmanager
def writing(name: str, key: str = "output") -> Iterator[Callable[[str], None]]:
    """A function that writes text; a file appears under its name when all went well, and not before.

    `-` is standard output. `key` is the option to blame in a UserError.
    """
    if name == STREAM:
        sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
        yield lambda text: print(text, end="", flush=True)
        return
    opener = gzip.open if Path(name).suffix == ".gz" else open
    with replacing(name, key) as temporary:
        with refused(name, key):
            file = opener(temporary, "wt", encoding="utf-8", newline="\n")

        def write(text: str) -> None:
            with refused(name, key):
                file.write(text)

        try:
            yield write
        finally:
            with refused(name, key):
                file.close()


@contextlib.contextmanager
def replacing(name: str, key: str) -> Iterator[Path]:
    """A path to write; what lies there in the end is renamed to `name`, unless something failed.

    Raises UserError where the disk refuses; `key` is the option to blame.
    """
    path = Path(name).expanduser()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with refused(name, key):
            temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def refused(name: str, key: str) -> Iterator[None]:
    """Says in a UserError that the file `name`, which the option `key` named, cannot be written."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot be written: {error.strerror}", where=f"{key}={name}") from error
