"""A state in several files, one for each stage of a model, and its pieces found in them whoever wrote which.

Each file holds tensors by the names that the stage has for its parameters, and is written by whoever has them. Which
elements of which parameter of the *whole* model a tensor is, an index says, that whoever publishes the state writes
last. So it is read by the whole model's names and elements, whatever cut it was written with or is read for.

Files are mapped into memory: what nobody looks at is not read, and what was looked at is the file system's to forget.
Torch is loaded by whoever reads or writes, not by whoever imports this.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch

PARAMETERS = ""  # where slots of the optimizer have their names


def parts_directory(step: int) -> str:
    """The directory of a step's files, beside the checkpoint that names them."""
    return f"step-{step:08d}.parts"


class Piece(NamedTuple):
    """Elements of a parameter of the whole model, one behind the other, and the tensor that they are of a file."""

    start: int
    stop: int
    file: str
    key: str


class StateIndex(NamedTuple):
    """What a directory of files has.

    shapes: by parameter of the whole model, in its order.
    pieces: the same, in ascending order and without gaps.
    slots: of the optimizer.
    """

    directory: str
    shapes: dict[str, tuple[int, ...]]
    pieces: dict[str, list[Piece]]
    slots: list[str]

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        return {
            "directory": self.directory,
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "pieces": {name: [list(piece) for piece in pieces] for name, pieces in self.pieces.items()},
            "slots": list(self.slots),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> StateIndex:
        """What `to_dict` returned. Raises ValueError for files that would not lie in the directory beside the index."""
        found = cls(
            data["directory"],
            {name: tuple(shape) for name, shape in data["shapes"].items()},
            {name: [Piece(*piece) for piece in pieces] for name, pieces in data["pieces"].items()},
            list(data["slots"]),
        )
        for name in (found.directory, *found.files):
            if name in ("", ".", "..") or Path(name).name != name:
                raise ValueError(f"'{name}' is no name of a file")
        return found

    @property
    def files(self) -> list[str]:
        """Their names, sorted."""
        return sorted({piece.file for pieces in self.pieces.values() for piece in pieces})


def write_file(path: Path, content: Mapping[str, Any]) -> None:
    """Put a file whole, so that its name stands for what is on the disk. Raises OSError."""
    import torch

    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(dict(content), file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


class StateFiles:
    """The files of an index, read piece by piece.

    Raises OSError or what `torch.load` raises for a file that is not there, or is no state.
    """

    def __init__(self, directory: Path, index: StateIndex):
        import torch

        self.index = index
        self._files = {
            name: torch.load(directory / name, map_location="cpu", weights_only=True, mmap=True) for name in index.files
        }

    def tensors(self, slot: str = PARAMETERS) -> TensorsInFiles:
        """The parameters, or one of the optimizer's slots, by the whole model's names."""
        return TensorsInFiles(self.index, self._files, slot)


class TensorsInFiles(Mapping[str, "torch.Tensor"]):
    """Tensors of a state by the whole model's names. One that lies in several files is put together each time."""

    def __init__(self, index: StateIndex, files: Mapping[str, Mapping[str, Any]], slot: str):
        self._index = index
        self._tensors = {
            name: content["optimizer"][slot] if slot else content["parameters"] for name, content in files.items()
        }

    def __getitem__(self, name: str) -> torch.Tensor:
        return _joined(list(self.pieces(name))).view(self._index.shapes[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._index.shapes)

    def __len__(self) -> int:
        return len(self._index.shapes)

    def pieces(self, name: str) -> Iterator[torch.Tensor]:
        """The elements of a tensor, flat, piece after piece."""
        for piece in self._index.pieces[name]:
            yield self._tensors[piece.file][piece.key].reshape(-1)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, which is not read for it."""
        return self._index.shapes[name]

    def elements(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Some elements of a tensor, flat; nothing else of it is read."""
        found = [
            self._tensors[piece.file][piece.key].reshape(-1)[
                max(start - piece.start, 0) : min(stop, piece.stop) - piece.start
            ]
            for piece in self._index.pieces[name]
            if piece.start < stop and start < piece.stop
        ]
        return _joined(found)


def _joined(pieces: list[torch.Tensor]) -> torch.Tensor:
    import torch

    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)


def elements(tensors: Mapping[str, torch.Tensor], name: str, start: int, stop: int) -> torch.Tensor:
    """Some elements of a tensor, flat, of a state in files or of one in memory."""
    if isinstance(tensors, TensorsInFiles):
        return tensors.elements(name, start, stop)
    return tensors[name].reshape(-1)[start:stop]
