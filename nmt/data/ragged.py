"""Sentences of unequal lengths in one flat array: memory-mapped from disk, shared by every process of a host."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Literal, overload

import numpy as np


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
        packer = _Packer()
        for sentence in sentences:
            packer.add(sentence)
        return packer.packed()

    @classmethod
    def joined(cls, sentences: Sequence[np.ndarray]) -> Ragged:
        """Pack arrays, one after the other, without looking at their tokens one by one."""
        offsets = np.cumsum([0, *map(len, sentences)], dtype=np.int64)
        flat = np.concatenate(sentences) if sentences else np.empty(0)
        return cls(flat.astype(np.int32), offsets)

    @classmethod
    def of_pairs(cls, pairs: Iterable[tuple[Sequence[int], Sequence[int]]]) -> tuple[Ragged, Ragged]:
        """Pack both sides of parallel sentences in one pass."""
        source, target = _Packer(), _Packer()
        for source_sentence, target_sentence in pairs:
            source.add(source_sentence)
            target.add(target_sentence)
        return source.packed(), target.packed()

    @classmethod
    def load(cls, path: Path) -> Ragged:
        """Map what `save` wrote; pages are read when they are first touched."""
        offsets = np.load(_part(path, "offsets"), allow_pickle=False)
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
        return np.diff(self.offsets)

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


class RaggedText(Sequence[str]):
    """Lines of text, packed and mapped like sentences: a token is a code point."""

    def __init__(self, packed: Ragged):
        self.packed = packed

    @classmethod
    def of(cls, lines: Sequence[str]) -> RaggedText:
        """Pack lines, one after the other."""
        flat = np.frombuffer("".join(lines).encode("utf-32-le", "surrogatepass"), dtype="<i4")
        offsets = np.cumsum([0, *map(len, lines)], dtype=np.int64)
        return cls(Ragged(flat, offsets))

    @classmethod
    def load(cls, path: Path) -> RaggedText:
        """Map what `save` wrote."""
        return cls(Ragged.load(path))

    def save(self, path: Path) -> None:
        """Write it as `Ragged.save` does."""
        self.packed.save(path)

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


def _part(path: Path, part: str) -> Path:
    return path.with_name(f"{path.name}.{part}.npy")


class _Packer:
    def __init__(self) -> None:
        self._flat, self._offsets = array("i"), array("q", [0])

    def add(self, sentence: Sequence[int]) -> None:
        self._flat.extend(sentence)
        self._offsets.append(len(self._flat))

    def packed(self) -> Ragged:
        return Ragged(np.array(self._flat, dtype=np.int32), np.array(self._offsets, dtype=np.int64))
