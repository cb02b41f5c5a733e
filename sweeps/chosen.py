"""Which stored runs a command line means, as configurations with their replicates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nmt.config import load_run_config
from nmt.errors import UserError
from nmt.runs import LocalRunStore, RunStore, locate_run, runs_directory
from sweeps.plan import make_plan
from sweeps.spec import load_spec

ENDED = ("finished", "diverged")


@dataclass(frozen=True)
class Configuration:
    """Ended replicates of one configuration, by run id in the order of their seeds. `left_out` have not ended."""

    label: str
    store: LocalRunStore
    run_ids: tuple[str, ...]
    left_out: tuple[str, ...] = ()


def of_runs(texts: Sequence[str], root: str, verb: str) -> list[Configuration]:
    """The configurations that `run=a,b,...` means; an id without a seed stands for all its replicates.

    Raises UserError where nothing is meant, and where no replicate of a configuration has ended.
    """
    if not texts:
        raise UserError("give run=... or sweep=...", where=verb, hint="see --help")
    found: dict[tuple[Path, str], list[str]] = {}
    for text in texts:
        store, run_ids = _replicates(text, root)
        for run_id in run_ids:
            known = found.setdefault((store.root, run_id.partition("/")[0]), [])
            if run_id not in known:
                known.append(run_id)
    return [
        _configuration(_label_of(LocalRunStore(where), run_ids[0]), LocalRunStore(where), run_ids)
        for (where, _), run_ids in found.items()
    ]


def of_sweep(name: str, words: Sequence[str]) -> list[Configuration]:
    """The configurations that a sweep trains; rows that share their runs count once."""
    plan = make_plan(load_spec(name), words)
    found: dict[tuple[str, ...], str] = {}
    for row in plan.rows:
        found.setdefault(tuple(run.run_id for run in row.runs), row.label)
    return [_configuration(label, plan.store, run_ids) for run_ids, label in found.items()]


def _replicates(text: str, root: str) -> tuple[LocalRunStore, list[str]]:
    """The store and runs that one word means."""
    path = Path(text).expanduser().resolve()
    seeds = [found.parent.name for found in path.glob("s*/config.yaml")]
    if seeds:
        store: RunStore = LocalRunStore(path.parent)
        run_ids = [f"{path.name}/{seed}" for seed in seeds]
    elif "/" in text.rstrip("/"):
        store, run_id = locate_run(text, root)
        run_ids = [run_id]
    else:
        store, run_ids = _by_prefix(text, root)
    assert isinstance(store, LocalRunStore)
    return store, sorted(run_ids, key=lambda run_id: int(run_id.split("/s")[1]))


def _by_prefix(text: str, root: str) -> tuple[RunStore, list[str]]:
    """Every replicate of the one configuration whose id begins with `text`."""
    store = LocalRunStore(runs_directory(root))
    run_ids = [run_id for run_id in store.list_runs() if run_id.startswith(text)]
    configurations = sorted({run_id.partition("/")[0] for run_id in run_ids})
    if len(configurations) != 1:
        known = configurations or sorted({run_id.partition("/")[0] for run_id in store.list_runs()})
        what = f"{len(configurations)} configurations match" if configurations else "no such run"
        raise UserError(what, where=f"run={text}", allowed=known[:10])
    return store, run_ids


def _configuration(label: str, store: LocalRunStore, run_ids: Sequence[str]) -> Configuration:
    ended = tuple(run_id for run_id in run_ids if store.status(run_id).state in ENDED)
    if not ended:
        raise UserError("has no replicate that has ended", where=f"run={run_ids[0]}", hint="nmt train resumes it")
    return Configuration(label, store, ended, tuple(run_id for run_id in run_ids if run_id not in ended))


def _label_of(store: RunStore, run_id: str) -> str:
    label = load_run_config(store.directory(run_id) / "config.yaml").label
    train_id = run_id.partition("/")[0]
    return f"{label}, {train_id}" if label else train_id
