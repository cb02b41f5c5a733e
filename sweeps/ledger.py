"""What each row of a sweep has stood for: so that a row that was changed says where its earlier runs are.

`<runs>/.sweeps/<sweep>.jsonl` has a line for each configuration that a row had when the sweep was run. Run directories
know nothing of sweeps, and reports may be deleted; this file may be too: then earlier runs are merely not listed.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nmt.config.identity import explain_difference, training_identity
from nmt.config.schema import RunConfig
from nmt.runs import FORMAT_VERSION, LocalRunStore
from sweeps.folder import FOLDER, file_name
from sweeps.words import split_places, take

MAX_DIFFERENCES = 3  # keys that a line names; identity.json has all


@dataclass(frozen=True, kw_only=True)
class Superseded:
    """An earlier configuration of a row: its runs, and the keys in which the row differs from it now."""

    label: str
    train_id: str
    run_ids: tuple[str, ...]
    differs: tuple[str, ...]

    def __str__(self) -> str:
        more = len(self.differs) - MAX_DIFFERENCES
        keys = "; ".join(self.differs[:MAX_DIFFERENCES]) + (f"; and {more} more" if more > 0 else "")
        runs = ", ".join(run_id.partition("/")[2] for run_id in self.run_ids)
        return f"{self.label} was {self.train_id} ({runs}){': ' + keys if keys else ''}"


@dataclass(frozen=True)
class Question:
    """What a sweep was asked: its name, and the command line's overrides that decide what is trained."""

    name: str
    overrides: tuple[str, ...]

    @classmethod
    def of(cls, name: str, words: Sequence[str]) -> Question:
        """The same whatever the number of replicates, and wherever it runs."""
        return cls(name, tuple(sorted(take(split_places(words)[1], "replicates")[1])))


def record_rows(store: LocalRunStore, question: Question, rows: Mapping[str, str]) -> None:
    """Note which configuration each row stands for, train_id by label. What is noted already stays once."""
    path = _path(store, question)
    known = {(line["label"], line["train_id"]) for line in _lines(path, question)}
    new = [(label, name) for label, name in rows.items() if (label, name) not in known]
    if not new:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    common = {"format_version": FORMAT_VERSION, "overrides": list(question.overrides), "time": time.time()}
    text = "".join(json.dumps(common | {"label": label, "train_id": name}) + "\n" for label, name in new)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        os.write(descriptor, text.encode())  # in one piece: another driver may be writing too
    finally:
        os.close(descriptor)


def superseded(
    store: LocalRunStore, question: Question, rows: Mapping[str, tuple[str, RunConfig]]
) -> tuple[Superseded, ...]:
    """Earlier configurations of these rows (train_id and configuration, by label), oldest first.

    One that still stands for a row, or that has no run, is not listed.
    """
    lines = _lines(_path(store, question), question)
    if not lines:
        return ()
    present = {name for name, _ in rows.values()}
    found: dict[tuple[str, str], Superseded] = {}
    for line in lines:
        label, name = line["label"], line["train_id"]
        if label not in rows or name in present or (label, name) in found:
            continue
        seeds = [path.parent.name for path in (store.root / name).glob("s*/config.yaml")]
        if not seeds:
            continue
        run_ids = tuple(f"{name}/{seed}" for seed in sorted(seeds, key=lambda seed: int(seed[1:])))
        before = store.read_json(run_ids[0], "identity.json")
        now = training_identity(rows[label][1])
        differs = () if before is None else tuple(explain_difference(_shown(before), _shown(now)))
        found[label, name] = Superseded(label=label, train_id=name, run_ids=run_ids, differs=differs)
    return tuple(found.values())


def _shown(identity: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in identity.items() if name != "format_version"}


def _path(store: LocalRunStore, question: Question) -> Path:
    return store.root / FOLDER / f"{file_name(question.name)}.jsonl"


def _lines(path: Path, question: Question) -> list[dict[str, Any]]:
    """The lines about this question; a torn or foreign one is no line."""
    try:
        texts = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    lines = []
    for text in texts:
        try:
            line = json.loads(text)
            if line["overrides"] == list(question.overrides) and isinstance(line["label"] + line["train_id"], str):
                lines.append(line)
        except (ValueError, KeyError, TypeError):
            continue
    return lines
