"""A sweep's report on disk: table as Markdown and CSV, picture as PNG and SVG, and everything in sweep.json."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nmt.config import to_dict
from nmt.errors import UserError
from sweeps.aggregate import RowResult
from sweeps.figure import draw, render
from sweeps.plan import SweepPlan
from sweeps.table import make_table, to_csv, to_markdown

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Report:
    """Where the files of a report lie."""

    directory: Path

    @property
    def table(self) -> Path:
        """The table as Markdown."""
        return self.directory / "table.md"

    @property
    def csv(self) -> Path:
        """The table as CSV, all figures with full precision."""
        return self.directory / "table.csv"

    @property
    def figure(self) -> Path:
        """The picture as PNG."""
        return self.directory / "figure.png"

    @property
    def vector_figure(self) -> Path:
        """The picture as SVG."""
        return self.directory / "figure.svg"

    @property
    def data(self) -> Path:
        """Rows, replicates and run ids as JSON: from every number back to its run."""
        return self.directory / "sweep.json"


def write_report(plan: SweepPlan, results: Sequence[RowResult]) -> Report:
    """Write all files of the report, each whole or not at all. Raises UserError where they cannot be written."""
    report = Report(plan.reports)
    picture = draw(plan, results)
    try:
        report.directory.mkdir(parents=True, exist_ok=True)
        _write(report.table, to_markdown(make_table(plan, results)).encode())
        _write(report.csv, to_csv(plan, results).encode())
        _write(report.data, json.dumps(sweep_record(plan, results), indent=1, ensure_ascii=False).encode() + b"\n")
        _write(report.figure, render(picture, "png"))
        _write(report.vector_figure, render(picture, "svg"))
    except OSError as error:
        raise UserError(
            f"cannot be written: {error.strerror}", where=str(report.directory), hint="set paths.reports"
        ) from error
    return report


def sweep_record(plan: SweepPlan, results: Sequence[RowResult]) -> dict[str, Any]:
    """Plain data of the whole sweep: what was asked for, and what each row and replicate came to."""
    return {
        "format_version": FORMAT_VERSION,
        "sweep": dataclasses.asdict(plan.spec),
        "overrides": list(plan.overrides),
        "scale": plan.config.scale.name,
        "metric": plan.config.validation.metric,
        "rows": [
            _row_record(row) | {"train_id": planned.runs[0].run_id.partition("/")[0], "config": to_dict(planned.config)}
            for planned, row in zip(plan.rows, results, strict=True)
        ],
    }


def _row_record(row: RowResult) -> dict[str, Any]:
    return dataclasses.asdict(row) | {
        "n": len(row.complete),
        "missing": row.missing,
        "diverged": row.diverged,
        "still_improving": row.still_improving,
    }


def _write(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
