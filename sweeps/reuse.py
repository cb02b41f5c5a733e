"""Whether a run that is there may stand for one that is asked for, where other code made it: `reuse=any|same_code`.

A run's identity is its configuration and `NUMERICS_VERSION`; code that keeps that number promises the same bits. So
`any`, the default, takes every run of the right identity and marks in the table what other code trained. `same_code`
does not take the promise: such a run is set aside, whole, and trained anew under the same id; afterwards both are
compared, and a difference says that the number should have been raised.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from nmt.environment import describe_code, same_sources
from nmt.errors import UserError
from nmt.leases import LEASE
from nmt.runs import LocalRunStore

CHOICES = ("any", "same_code")
SET_ASIDE = ".set_aside"  # beside the configurations' directories, where no list of runs looks


def code_name(code: Mapping[str, Any] | None) -> str:
    """What `env.json` says of the code in a few characters: commit, and digest of what was not committed.

    Empty where nothing is known.
    """
    if not code:
        return ""
    if not code.get("commit"):
        return f"version {code['version']}" if code.get("version") else ""
    patch = code.get("patch_sha256")
    return str(code["commit"])[:12] + (f"+{patch[:8]}" if patch else "")


class PresentCode:
    """The code that this process runs, to compare runs with; asks git when first needed, and once for each commit."""

    def __init__(self, name: str = ""):
        self._name = name
        self._known: dict[str, bool] = {}

    @cached_property
    def name(self) -> str:
        """Its name as `code_name` has it."""
        return self._name or code_name(describe_code())

    def made(self, name: str) -> bool:
        """Whether the code called `name` is this code: the same, or another commit that changed no source of ours."""
        if name not in self._known:
            self._known[name] = name == self.name or self._only_commits_differ(name)
        return self._known[name]

    def _only_commits_differ(self, name: str) -> bool:
        (commit, _, patch), (present, _, present_patch) = name.partition("+"), self.name.partition("+")
        if not commit or not present or " " in commit + present or patch != present_patch:
            return False
        return same_sources(commit, present)


def set_aside(store: LocalRunStore, run_id: str, code: str) -> Path:
    """Move a run out of the way, whole, so that its id can be trained anew; returns where it lies now.

    Attempts go on being counted from where they were: an attempt at the old run that was stopped, and wakes when the
    new one is under way, finds that it is not the newest. Raises RunBusyError where a living process holds it.
    """
    with store.unclaimed(run_id):
        folder = store.root / SET_ASIDE
        number = 1
        while (place := folder / f"{run_id}-{code.replace(' ', '-') or 'unknown'}-{number}").exists():
            number += 1
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(store.directory(run_id), place)
        except OSError as error:
            raise UserError(f"cannot be set aside: {error.strerror}", where=run_id) from error
    if (place / LEASE).is_file():
        store.directory(run_id).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(place / LEASE, store.directory(run_id) / LEASE)
    return place


def compare_with_set_aside(store: LocalRunStore, run_ids: Sequence[str]) -> str:
    """One line on runs that were trained anew: how many have the chosen parameters of the newest one set aside."""
    same: list[str] = []
    other: list[str] = []
    for run_id in run_ids:
        before, now = _newest_set_aside(store, run_id), _digest(store, run_id)
        if before and now:
            (same if _digest(store, before) == now else other).append(run_id)
    if not same and not other:
        return ""
    line = (
        f"trained anew with this code: {len(same)} of {len(same) + len(other)} runs have the same parameters as before"
    )
    if other:
        line += f"; not {', '.join(other)}: other code gave other bits on this machine under one numerics version"
    return line


def _newest_set_aside(store: LocalRunStore, run_id: str) -> str:
    """Its path below the store's root, empty where there is none."""
    folder, name = (store.root / SET_ASIDE / run_id).parent, run_id.partition("/")[2]
    found = sorted(folder.glob(f"{name}-*"), key=lambda path: path.stat().st_ctime_ns)
    return found[-1].relative_to(store.root).as_posix() if found else ""


def _digest(store: LocalRunStore, name: str) -> str:
    result = store.read_json(name, "result.json") or {}
    return str((result.get("best") or {}).get("checkpoint_digest") or "")
