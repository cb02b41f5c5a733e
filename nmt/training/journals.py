"""Journals of a run: what its strategy writes down of steps as they happened, in files that only grow.

They are as long as the run's state says. What lies beyond belongs to steps that are done again, and is cut off first,
as the lines of metrics.jsonl are.
"""

from __future__ import annotations

from collections.abc import Mapping

from nmt.runs import RunStore

FOLDER = "journals"


def append_journals(store: RunStore, run_id: str, journals: Mapping[str, bytes], lengths: dict[str, int]) -> None:
    """Append to each of the run's journals; `lengths`, by name, grow with them."""
    for name, data in journals.items():
        if data:
            store.append_bytes(run_id, f"{FOLDER}/{name}", data)
            lengths[name] = lengths.get(name, 0) + len(data)


def cut_journals(store: RunStore, run_id: str, lengths: Mapping[str, int]) -> None:
    """Cut the run's journals to the lengths of a state, and remove those that it does not know."""
    folder = store.directory(run_id) / FOLDER
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if name in lengths:
            store.truncate(run_id, f"{FOLDER}/{name}", lengths[name])
        else:
            store.delete(run_id, f"{FOLDER}/{name}")
