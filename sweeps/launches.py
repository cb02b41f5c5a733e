"""What sweeps have asked for: `<runs>/.sweeps/<sweep>@<scale>.json`, the rows and runs of the newest launch.

Run directories know nothing of sweeps, and a report is written when a sweep ends. So a sweep puts down what it consists
of before it starts: `nmt status` groups runs by it, and shows those that wait, without composing anything; MLflow is
rebuilt from it after a driver was killed (`sweeps.tracking.tracked_sweeps`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nmt.errors import UserError
from nmt.records import read_record
from sweeps.folder import FOLDER, file_name

if TYPE_CHECKING:
    from sweeps.plan import SweepPlan


@dataclass(frozen=True)
class LaunchedRow:
    """A row: its label, the steps that each of its runs is to make, and the runs."""

    label: str
    max_steps: int
    run_ids: Sequence[str]


@dataclass(frozen=True)
class Launch:
    """A sweep as it was last started, at Unix time `time`; `name` is `<sweep>@<scale>`.

    `archives` are the folders whose runs counted as done.
    """

    name: str
    title: str
    time: float
    rows: Sequence[LaunchedRow]
    archives: Sequence[Path] = ()


def record_launch(plan: SweepPlan) -> None:
    """Put down what the sweep consists of. Raises UserError where the disk refuses."""
    from nmt.config import to_dict

    scale = plan.config.scale.name
    record: dict[str, Any] = {
        "sweep": f"{plan.name}@{scale}",
        "name": plan.name,
        "scale": scale,
        "title": plan.spec.title,
        "time": time.time(),
        "reports": str(plan.reports),
        "archives": [str(path) for path in plan.store.archives],
        "rows": [
            {
                "label": row.label,
                "train_id": row.train_id,
                "max_steps": row.config.training.max_steps,
                "run_ids": [run.run_id for run in row.runs],
                "config": to_dict(row.config),
            }
            for row in plan.rows
        ],
    }
    plan.store.write_json(FOLDER, f"{file_name(record['sweep'])}.json", record)


def launch_files(root: Path) -> list[Path]:
    """The records of all launches in a directory of runs."""
    return sorted((root / FOLDER).glob("*.json"))


def read_launches(root: Path) -> list[Launch]:
    """Every sweep that was started in a directory of runs, by name; of those that only left a report, the report's."""
    found: dict[str, Launch] = {}
    for path in sorted(root.glob("reports/*/sweep.json")):
        record = _read(path, _reported)
        if record is not None:
            found[record.name] = record
    for path in launch_files(root):
        record = _read(path, _launched)
        if record is not None:
            found[record.name] = record
    return [found[name] for name in sorted(found)]


def _read(path: Path, understand: Any) -> Launch | None:
    def sound(data: Mapping[str, Any]) -> bool:
        try:
            understand(data)
        except (KeyError, TypeError, AttributeError):
            return False
        return True

    try:
        data = read_record(path.parent, path.name, sound)
    except UserError:
        return None  # a later version's, or not ours to read
    if data is None:
        return None
    launch: Launch = understand(data)
    return launch


def _launched(data: Mapping[str, Any]) -> Launch:
    rows = [LaunchedRow(str(row["label"]), int(row["max_steps"]), _texts(row["run_ids"])) for row in data["rows"]]
    archives = [Path(path) for path in data.get("archives", [])]
    return Launch(str(data["sweep"]), str(data["title"]), float(data["time"]), rows, archives)


def _reported(data: Mapping[str, Any]) -> Launch:
    rows = [
        LaunchedRow(str(row["label"]), int(row["max_steps"]), _texts(one["run_id"] for one in row["replicates"]))
        for row in data["rows"]
    ]
    return Launch(f"{data['sweep']['name']}@{data['scale']}", str(data["sweep"]["title"]), 0.0, rows)


def _texts(values: Any) -> list[str]:
    return [str(value) for value in values]
