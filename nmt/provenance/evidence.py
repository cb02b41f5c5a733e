"""Everything that a run directory has on record, read without a change to it.

An archived run (docs/results) has no checkpoints and no training lines; what is absent is simply not there to compare.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nmt.config import RunConfig, load_run_config
from nmt.errors import UserError
from nmt.records import check_format

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Decoding:
    """One decoding of the test split: its record, and the hypotheses (None where they are not there)."""

    record: Record
    hypotheses: str | None


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What one run directory says.

    `identity` is the input of the run's hash, `environment` where and with what it ran, `result` how training ended,
    each empty where the file is absent. `records` are the lines of metrics.jsonl, `decodings` those of the test split
    by decode id.
    """

    directory: Path
    run_id: str
    config: RunConfig
    identity: Record
    environment: Record
    result: Record
    records: tuple[Record, ...]
    decodings: Mapping[str, Decoding]


def read_evidence(directory: Path) -> Evidence:
    """Read a run directory; nothing in it is moved or changed, damaged files included.

    Raises UserError where it is none, and for a file that is damaged or of a newer format.
    """
    if not (directory / "config.yaml").is_file():
        raise UserError("holds no run (no config.yaml)", where=str(directory))
    return Evidence(
        directory=directory,
        run_id=f"{directory.parent.name}/{directory.name}",
        config=load_run_config(directory / "config.yaml"),
        identity=_json(directory / "identity.json"),
        environment=_json(directory / "env.json"),
        result=_json(directory / "result.json"),
        records=tuple(read_lines(directory / "metrics.jsonl")),
        decodings=dict(sorted(_decodings(directory / "decodes"))),
    )


def read_lines(path: Path) -> list[Record]:
    """The objects in a file of JSON lines, none where it is absent; lines left torn by a killed process are skipped."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        return []
    found: list[Record] = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            found.append(record)
    return found


def _decodings(folder: Path) -> list[tuple[str, Decoding]]:
    found = []
    for path in folder.glob("*.json"):
        text = path.with_suffix(".txt")
        hypotheses = text.read_text(encoding="utf-8") if text.is_file() else None
        found.append((path.stem, Decoding(_json(path), hypotheses)))
    return found


def _json(path: Path) -> dict[str, Any]:
    """A JSON object, empty where there is no file."""
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise UserError(f"is damaged ({error})", where=str(path), hint="restore it, or remove it") from error
    except OSError as error:
        raise UserError(f"cannot be read: {error.strerror}", where=str(path)) from error
    check_format(data, path)
    return dict(data)
