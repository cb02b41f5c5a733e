"""The sweeps of a directory of runs as MLflow shows them: from what each put down when it was last started.

A report is written when a sweep ends, that record (`sweeps.launches`) before anything runs. So MLflow can be rebuilt
after a driver was killed, and for a sweep whose report lies elsewhere.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nmt.errors import UserError
from nmt.records import read_record
from nmt.runs import check_format
from sweeps.launches import launch_files
from sweeps.tracking.mirrored_configuration import ConfigurationGroup, with_factors
from sweeps.tracking.names import sweep_experiment

ATTACHED = ("table.md", "table.csv", "figure.png", "sweep.json")


@dataclass(frozen=True, kw_only=True)
class TrackedSweep:
    """A sweep at a scale, as MLflow shows it.

    `reports` is the folder of its report, which need not be there; `archives` are those whose runs counted as done.
    """

    name: str
    scale: str
    groups: list[ConfigurationGroup]
    reports: Path
    archives: Sequence[Path] = ()

    @property
    def experiment(self) -> str:
        """The name of its experiment."""
        return sweep_experiment(self.name, self.scale)

    @property
    def files(self) -> list[Path]:
        """The files of its report; none where the report is of another scale."""
        try:
            record = json.loads((self.reports / "sweep.json").read_text(encoding="utf-8"))
            if record["scale"] != self.scale:
                return []
        except (OSError, ValueError, KeyError, TypeError):
            return []
        return [self.reports / name for name in ATTACHED if (self.reports / name).is_file()]


def tracked_sweeps(runs: Path, damaged: dict[str, str]) -> Iterator[TrackedSweep]:
    """Every sweep that was started in `runs`, by experiment; of those that only left a report, the report's.

    What cannot be read is noted in `damaged`, by path.
    """
    found: dict[str, TrackedSweep] = {}
    for path in sorted(runs.glob("reports/*/sweep.json")):
        try:
            sweep = _understood(path, _reported)
        except UserError as error:
            damaged[str(path)] = f"{error}; the same `nmt sweep` writes it anew"
            continue
        found[sweep.experiment] = sweep
    for path in launch_files(runs):
        started: list[TrackedSweep] = []

        def sound(data: dict[str, Any], started: list[TrackedSweep] = started) -> bool:
            try:
                started.append(_started(data))
            except (KeyError, TypeError, UserError):
                return False
            return True

        try:
            read_record(path.parent, path.name, sound)
        except UserError as error:
            damaged[str(path)] = str(error)
            continue
        if not started:
            damaged[str(path)] = "is damaged, and was set aside; the same `nmt sweep` writes it anew"
        found |= {sweep.experiment: sweep for sweep in started[-1:]}
    yield from (found[name] for name in sorted(found))


def _understood(path: Path, understand: Any) -> TrackedSweep:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        check_format(data, path)
        sweep: TrackedSweep = understand(data, path.parent)
        return sweep
    except (OSError, ValueError) as error:
        raise UserError(f"cannot be read ({error})") from error
    except (KeyError, TypeError) as error:
        raise UserError("does not hold a sweep's rows") from error


def _reported(data: Mapping[str, Any], folder: Path) -> TrackedSweep:
    groups = [
        ConfigurationGroup(row["label"], row["train_id"], [one["run_id"] for one in row["replicates"]], row["config"])
        for row in data["rows"]
    ]
    return TrackedSweep(name=data["sweep"]["name"], scale=data["scale"], groups=with_factors(groups), reports=folder)


def _started(data: Mapping[str, Any]) -> TrackedSweep:
    groups = [
        ConfigurationGroup(row["label"], row["train_id"], [str(name) for name in row["run_ids"]], row["config"])
        for row in data["rows"]
    ]
    return TrackedSweep(
        name=data["name"],
        scale=data["scale"],
        groups=with_factors(groups),
        reports=Path(data["reports"]),
        archives=[Path(path) for path in data.get("archives", [])],
    )
