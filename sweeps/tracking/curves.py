"""What a run has written to `metrics.jsonl`, read bit by bit while it trains."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nmt.errors import UserError
from nmt.runs import check_format

TRAIN_METRICS = ("loss", "learning_rate", "gradient_norm", "target_tokens", "tokens_per_second", "seconds")


@dataclass(frozen=True)
class Point:
    """The metrics of one line: `kind` is `train`, `evaluation` or `probe`, `seconds` the training time so far."""

    kind: str
    step: int
    seconds: float
    metrics: Mapping[str, float]


class CurveReader:
    """Reads the whole lines that were appended since the last call.

    A resumed run cuts the file back to its checkpoint and writes the same steps again. The reader notices, starts over
    and returns points anew; so whoever stores points must know which steps he has.

    Parameters
    ----------
    strict: whether a line that does not parse is an error. Otherwise it is left out, and `damage` tells of the first.
    """

    def __init__(self, path: Path, strict: bool = True):
        self.path, self.strict = path, strict
        self.damage: UserError | None = None
        self._offset, self._last, self._number = 0, b"", 0

    def read(self) -> list[Point]:
        """New points, oldest first; none where the file is absent.

        Raises UserError, with file and line, for a file of a newer format, and where `strict` for a line that does not
        parse.
        """
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset - len(self._last))
                if file.read(len(self._last)) != self._last:
                    file.seek(0)
                    self._offset, self._last, self._number, self.damage = 0, b"", 0, None
                lines = file.read().splitlines(keepends=True)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise UserError(f"cannot be read: {error.strerror}", where=str(self.path)) from error
        points, number, offset, last = [], self._number, self._offset, self._last
        for line in lines:
            if not line.endswith(b"\n"):
                break  # still being written
            number += 1
            point = self._parse(line, number)
            if point is not None:
                points.append(point)
            offset += len(line)
            last = line
        self._number, self._offset, self._last = number, offset, last
        return points

    def _parse(self, line: bytes, number: int) -> Point | None:
        try:
            record = json.loads(line)
            kind = record["kind"]
            if kind == "header":
                check_format(record, self.path)
                return None
            return Point(kind, int(record["step"]), float(record["seconds"]), _metrics(kind, record))
        except (ValueError, KeyError, TypeError) as error:
            where = f"{self.path}:{number}"
            damage = UserError("does not hold a line of metrics", where=where, hint="the run directory is damaged")
            if self.strict:
                raise damage from error
            self.damage = self.damage or damage
            return None


def _metrics(kind: str, record: Mapping[str, Any]) -> dict[str, float]:
    if kind == "train":
        found = {f"train/{name}": record.get(name) for name in TRAIN_METRICS}
    else:
        found = {name: value for name, value in record.items() if "/" in name}
        found["evaluation_seconds"] = record.get("evaluation_seconds")
    return {name: plain(value) for name, value in found.items() if isinstance(value, int | float)}


def plain(value: float) -> float:
    """A number that MLflow can draw: it would store an infinity as 1.8e308, which flattens every other point."""
    return float(value) if math.isfinite(value) else math.nan
