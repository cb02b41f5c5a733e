"""Sentences of unequal lengths in one flat array: memory-mapped from disk, shared by every process of a host."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import IO, Literal, overload

import numpy as np

_TYPES = {"i": "<i4", "q": "<i8"}  # what a file holds, by the code of the array in memory
_BLOCK = 2**16  # numbers that are held before they are written


class Ragged(Sequence[np.ndarray]):
    """A sequence of int32 arrays: item `i` is `flat[offsets[i]:offsets[i + 1]]`, a view."""

    def __init__(self, flat: np.ndarray, offsets: np.ndarray):
        """`flat` [tokens] int32; `offsets` [sentences + 1] int64, ascending from 0 to the number of tokens."""
        if len(offsets) == 0 or offsets[0] != 0 or offsets[-1] != len(flat):
            raise ValueError("offsets do not cover the flat array")
        self.flat, self.offsets = flat, offsets

    @classmethod
    def of(cls, sentences: Iterable[Sequence[int]]) -> Ragged:
        """Pack sentences, one after the other."""
        flat, offsets = array("i"), array("q", [0])
        for sentence in sentences:
            flat.extend(sentence)
            offsets.append(len(flat))
        return cls(np.array(flat, dtype=np.int32), np.array(offsets, dtype=np.int64))

    @classmethod
    def joined(cls, sentences: Sequence[np.ndarray]) -> Ragged:
        """Pack arrays, one after the other, without looking at their tokens one by one."""
        offsets = np.cumsum([0, *map(len, sentences)], dtype=np.int64)
        flat = np.concatenate(sentences) if sentences else np.empty(0)
        return cls(flat.astype(np.int32), offsets)

    @classmethod
    def load(cls, path: Path) -> Ragged:
        """Map what `save` or a `RaggedWriter` wrote; pages are read when they are first touched."""
        offsets = np.load(_part(path, "offsets"), mmap_mode="r", allow_pickle=False)
        mode: Literal["r"] | None = "r" if offsets[-1] else None  # nothing cannot be mapped
        flat = np.load(_part(path, "tokens"), mmap_mode=mode, allow_pickle=False)
        return cls(flat, offsets)

    def save(self, path: Path) -> None:
        """Write `<path>.tokens.npy` and `<path>.offsets.npy`."""
        np.save(_part(path, "tokens"), self.flat)
        np.save(_part(path, "offsets"), self.offsets)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each sentence, [sentences] int64."""
        return np.diff(np.asarray(self.offsets))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...

    @overload
    def __getitem__(self, index: slice) -> list[np.ndarray]: ...

    def __getitem__(self, index: int | slice) -> np.ndarray | list[np.ndarray]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(f"sentence {index} of {len(self)}")
        return self.flat[int(self.offsets[index]) : int(self.offsets[index + 1])]

    def __iter__(self) -> Iterator[np.ndarray]:
        for start, end in pairwise(self.offsets.tolist()):
            yield self.flat[start:end]


class RaggedWriter:
    """Writes the files of a `Ragged` sentence by sentence; however many there are, memory holds a block of them.

    A context manager: the files are whole when it is left, and byte for byte those of `Ragged.save`.

    tokens: how many were added so far.
    """

    def __init__(self, path: Path):
        self.tokens = 0
        self._tokens, self._offsets = _Column(_part(path, "tokens"), "i"), _Column(_part(path, "offsets"), "q")
        self._offsets.extend((0,))

    def add(self, sentence: Sequence[int]) -> None:
        """Append one sentence."""
        self.tokens += len(sentence)
        self._tokens.extend(sentence)
        self._offsets.extend((self.tokens,))

    def __enter__(self) -> RaggedWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self._tokens.close()
        self._offsets.close()


class RaggedText(Sequence[str]):
    """Lines of text, packed and mapped like sentences: a token is a code point."""

    def __init__(self, packed: Ragged):
        self.packed = packed

    @classmethod
    def load(cls, path: Path) -> RaggedText:
        """Map what a `RaggedWriter` wrote of lines as `code_points` gives them."""
        return cls(Ragged.load(path))

    @staticmethod
    def code_points(line: str) -> list[int]:
        """A line as a sentence of code points."""
        return [ord(character) for character in line]

    def __len__(self) -> int:
        return len(self.packed)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> list[str]: ...

    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self.packed[index].astype("<i4").tobytes().decode("utf-32-le", "surrogatepass")


@contextmanager
def stored(path: Path, part: Literal["tokens", "offsets"]) -> Iterator[tuple[int, IO[bytes]]]:
    """The numbers of a part as they are stored, little-endian: how many bytes, and a file that stands at the first.

    For going through all of them once: mapped pages would stay in this process's memory.
    """
    with _part(path, part).open("rb") as file:
        np.lib.format.read_magic(file)
        (count,), _, kind = np.lib.format.read_array_header_1_0(file)
        yield count * kind.itemsize, file


class _Column:
    """A one-dimensional .npy file that grows at its end."""

    def __init__(self, path: Path, code: str):
        self._file = path.open("wb")
        self._block, self._kind, self._count = array(code), np.dtype(_TYPES[code]), 0
        self._write_header()

    def extend(self, values: Iterable[int]) -> None:
        self._block.extend(values)
        if len(self._block) >= _BLOCK:
            self._write_block()

    def close(self) -> None:
        with self._file:
            self._write_block()
            self._file.seek(0)
            self._write_header()

    def _write_block(self) -> None:
        self._file.write(np.array(self._block, dtype=self._kind).tobytes())
        self._count += len(self._block)
        del self._block[:]

    def _write_header(self) -> None:
        # numpy leaves room for any count, so the header of the end fits where that of the beginning stands.
        header = {"descr": self._kind.str, "fortran_order": False, "shape": (self._count,)}
        np.lib.format.write_array_header_1_0(self._file, header)


def _part(path: Path, part: str) -> Path:
    return path.with_name(f"{path.name}.{part}.npy")
