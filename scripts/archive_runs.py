"""Copy runs in compact form, for committing beside the figures that name them.

    python scripts/archive_runs.py runs=<train_id>/s1,<train_id>/s2 to=docs/results

A compact run is its directory without checkpoints, tokenizers, locks and training lines: config.yaml, identity.json,
env.json, status.json, result.json, header, evaluation and probe lines of metrics.jsonl, events.jsonl, and decodes/
with the hypotheses. Names of hosts and directories, which are no part of a run's identity, are left out. An
interrupted run is copied as far as it went, without result.json.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import yaml

from nmt.arguments import exit_code, option, parse
from nmt.config import load_run_config, to_dict
from nmt.config.schema import PathsConfig
from nmt.errors import UserError
from nmt.events import EVENTS, read_events
from nmt.records import MACHINES
from nmt.runs import LocalRunStore, RunStore, runs_directory

ARCHIVED = ("finished", "diverged", "interrupted")
WHOLE = ("identity.json", "result.json")


@dataclass(frozen=True, kw_only=True)
class ArchiveOptions:
    """What the script takes."""

    runs: list[str] = option(list, "run ids, or unique prefixes of them")
    store: str = option("", "directory of the runs (default: NMT_RUNS, else runs)")
    to: str = option("docs/results", "directory that receives the compact runs")


def archive_run(store: RunStore, run_id: str, archive: RunStore) -> None:
    """Write the compact form of a run into another store.

    Raises UserError for a run that is under way or never began.
    """
    status = store.status(run_id)
    if status.state not in ARCHIVED:
        raise UserError(f"is {status.state}", where=f"run {run_id}", hint="a run is archived when it has stopped")
    directory = store.directory(run_id)
    decodes = [path.relative_to(directory).as_posix() for path in sorted((directory / "decodes").glob("*.*"))]
    for name in (name for name in (*WHOLE, *decodes) if (directory / name).is_file()):
        archive.write_bytes(run_id, name, (directory / name).read_bytes())
    config = load_run_config(directory / "config.yaml")
    config = replace(config, paths=PathsConfig(), data=replace(config.data, dir=""))
    archive.write_text(run_id, "config.yaml", yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True))
    for name in ("env.json", "status.json"):
        record = store.read_json(run_id, name) or {}
        archive.write_json(run_id, name, {key: value for key, value in record.items() if key not in MACHINES})
    lines = (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if json.loads(line)["kind"] in ("header", "evaluation", "probe")]
    archive.write_text(run_id, "metrics.jsonl", "\n".join(kept) + "\n")
    events = [
        {key: value for key, value in event.items() if key not in MACHINES} for event in read_events(directory / EVENTS)
    ]
    if events:  # runs of earlier versions have none
        archive.write_text(run_id, EVENTS, "".join(f"{json.dumps(event, ensure_ascii=False)}\n" for event in events))


def main(argv: Sequence[str]) -> int:
    """Archive the runs that the command line names."""
    options = parse(ArchiveOptions, argv, verb="python scripts/archive_runs.py", summary="Copy runs in compact form.")
    store = LocalRunStore(runs_directory(options.store))
    archive = LocalRunStore(Path(options.to))
    for text in options.runs:
        run_id = store.resolve(text)
        archive_run(store, run_id, archive)
        print(archive.directory(run_id))
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main, sys.argv[1:]))
