"""Parallel text as it was published: files (plain or .gz, strict UTF-8) or one of the built-in generators."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from nmt import registry
from nmt.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from nmt.config.schema import DataConfig, SplitConfig


@dataclass(frozen=True)
class ParallelText:
    """Sentences of two languages: `target[i]` translates `source[i]`."""

    source: list[str] = field(default_factory=list)
    target: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.source)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return zip(self.source, self.target, strict=True)


@dataclass(frozen=True)
class ParallelFiles:
    """Sentences of two languages that stay in their files and are read anew each time they are gone through.

    files: path of the source, path of the target and number of lines of each pair of files, known to be in order.
    """

    files: tuple[tuple[Path, Path, int], ...]

    def __len__(self) -> int:
        return sum(lines for _, _, lines in self.files)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        for source, target, _ in self.files:
            yield from zip(iterate_lines(source), iterate_lines(target), strict=True)


@dataclass(frozen=True)
class RawCorpus:
    """A corpus before any cleaning: training text can be large, and is held only where it was generated."""

    train: ParallelText | ParallelFiles
    validation: ParallelText
    test: ParallelText


def load_corpus(data: DataConfig) -> RawCorpus:
    """Look through the files that `data` names and read those to validate and test on, or generate the text.

    Raises UserError where a file is missing, unreadable, empty, damaged, not UTF-8 or not what its checksum declares,
    and where the two sides of a split have unequal numbers of lines.
    """
    if data.kind == "generated":
        return _generated(data)
    return RawCorpus(
        train=_open_split(data, "train", data.train),
        validation=_read_split(data, "validation", data.validation),
        test=_read_split(data, "test", data.test),
    )


def load_test(data: DataConfig) -> ParallelText:
    """The test split alone, as published: reads no other file. Raises UserError as `load_corpus` does."""
    return _generated(data).test if data.kind == "generated" else _read_split(data, "test", data.test)


def locate(data: DataConfig, name: str) -> Path:
    """The path of the corpus file `name`; relative names are looked up in `data.dir`.

    Raises UserError where there is no such file.
    """
    directory = Path(data.dir).expanduser()
    path = directory / Path(name).expanduser()
    if path.is_file():
        return path
    if not directory.is_dir():
        raise UserError(f"there is no directory {directory}", where="data.dir", hint=_fetch_hint(data))
    beside = [found.name for found in path.parent.iterdir()] if path.parent.is_dir() else []
    raise UserError("there is no such file", where=str(path), hint=did_you_mean(path.name, beside) or _fetch_hint(data))


def content_checksums(data: DataConfig, names: Sequence[str]) -> dict[str, str]:
    """The sha256 of each named file as it lies on disk, whatever directory it lies in."""
    return {name: _checksum(locate(data, name)) for name in names}


def read_lines(path: Path, checksum: str = "") -> list[str]:
    """The lines of a text file as a list; see `iterate_lines`."""
    return list(iterate_lines(path, checksum))


def iterate_lines(path: Path, checksum: str = "") -> Iterator[str]:
    r"""The lines of a plain or .gz text file, without their line ends, one by one.

    Only "\n" (and "\r\n") ends a line: `str.splitlines` would also cut at U+2028 and others that occur in sentences.
    `checksum` is the sha256 that the file must have as it lies on disk; "" trusts it.

    Raises UserError where the file cannot be read, is not what the checksum says, damaged, empty or not UTF-8.
    """
    if checksum and (found := _checksum(path)) != checksum.lower():
        raise UserError(
            f"has sha256 {found}, and data.checksums declares {checksum}",
            where=str(path),
            hint="the file is damaged or another version: fetch it again, or correct data.checksums",
        )
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
            for content in stream:
                line = content.decode("utf-8")
                if number == 0:
                    line = line.removeprefix("\ufeff")
                if line:  # a byte order mark alone is no line
                    number += 1
                    yield line.removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError as error:
        raise UserError(
            f"byte 0x{error.object[error.start]:02x} is not UTF-8",
            where=f"{path}:{number + 1}",
            hint="convert the file to UTF-8",
        ) from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise UserError(f"damaged gzip file: {error}", where=str(path)) from error
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=str(path)) from error
    if not number:
        raise UserError("is empty", where=str(path))


def _generated(data: DataConfig) -> RawCorpus:
    corpus: RawCorpus = registry.lookup("generator", data.generator, "data.generator")(data.options)
    return corpus


def _open_split(data: DataConfig, name: str, files: SplitConfig) -> ParallelFiles:
    pairs = []
    for source_name, target_name in zip(files.source, files.target, strict=True):
        source, target = locate(data, source_name), locate(data, target_name)
        counts = [
            sum(1 for _ in iterate_lines(path, _declared(data.checksums, file)))
            for path, file in ((source, source_name), (target, target_name))
        ]
        if counts[0] != counts[1]:
            raise UserError(
                f"{source} has {counts[0]} lines and {target} {counts[1]}",
                where=f"data.{name}",
                hint="parallel files need a line for each line of the other",
            )
        pairs.append((source, target, counts[0]))
    return ParallelFiles(tuple(pairs))


def _read_split(data: DataConfig, name: str, files: SplitConfig) -> ParallelText:
    text = ParallelText()
    for source, target in _open_split(data, name, files):
        text.source.append(source)
        text.target.append(target)
    return text


def _declared(checksums: Mapping[str, str], name: str) -> str:
    return checksums.get(name, "")


def _fetch_hint(data: DataConfig) -> str:
    corpus = "multi30k" if data.name.startswith("multi30k") else "wmt15" if data.name.startswith("wmt15") else ""
    if corpus:
        directory = data.dir or f"data/{corpus}"
        return f"set data.dir=..., or run `python scripts/fetch_corpus.py corpus={corpus} dir={directory}`"
    return "set data.dir=... to the directory that holds the files"


def _checksum(path: Path) -> str:
    try:
        status = path.stat()
        return _checksum_of_state(path, status.st_size, status.st_mtime_ns, status.st_ino)
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=str(path)) from error


@lru_cache(maxsize=1024)
def _checksum_of_state(path: Path, size: int, modified: int, inode: int) -> str:
    # A sweep asks for identities many times; size, time and inode tell a file that was replaced meanwhile.
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
