"""A sweep's report on disk: a page, a document, its table in three forms, its picture, and everything in sweep.json."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nmt.config import to_dict
from nmt.errors import UserError
from nmt.passwords import without_passwords
from nmt.strict_json import strict_json
from sweeps.aggregate import RowResult
from sweeps.plan import SweepPlan
from sweeps.reporting.document import to_document
from sweeps.reporting.figure import draw, render
from sweeps.reporting.findings import Findings, find
from sweeps.reporting.full_table import to_csv
from sweeps.reporting.latex import to_latex
from sweeps.reporting.page import to_page
from sweeps.reporting.table import to_markdown

FORMAT_VERSION = 1
FORMATS = ("md", "csv", "latex", "html", "json", "png", "svg")


@dataclass(frozen=True)
class Report:
    """Where the files of a report lie; `written` are those that were asked for."""

    directory: Path
    written: tuple[Path, ...] = ()

    @property
    def page(self) -> Path:
        """The page, for a browser."""
        return self.directory / "report.html"

    @property
    def document(self) -> Path:
        """All of it in Markdown but the pictures."""
        return self.directory / "report.md"

    @property
    def latex(self) -> Path:
        """The table for a paper."""
        return self.directory / "table.tex"

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


def write_report(
    plan: SweepPlan,
    results: Sequence[RowResult],
    *,
    formats: Sequence[str] = FORMATS,
    to: Path | None = None,
    findings: Findings | None = None,
) -> Report:
    """Write the report's files, each whole or not at all. Raises UserError where they cannot be written.

    Parameters
    ----------
    formats: of `FORMATS`. `md` is the document and the table alone; `png` and `svg` need matplotlib.
    to: the directory; None: the sweep's own.
    findings: what `find` found, where that is known already.
    """
    report = Report(plan.reports if to is None else to)
    files: dict[Path, bytes] = {}
    if {"md", "latex", "html"} & set(formats):
        findings = findings or find(plan, results)
        if "md" in formats:
            files |= {
                report.document: to_document(findings).encode(),
                report.table: to_markdown(findings.table).encode(),
            }
        if "latex" in formats:
            files[report.latex] = to_latex(findings.table, findings.name).encode()
        if "html" in formats:
            files[report.page] = to_page(findings).encode()
    if "csv" in formats:
        files[report.csv] = to_csv(plan, results, findings.tests if findings else None).encode()
    if "json" in formats:
        record = strict_json(sweep_record(plan, results), indent=1)
        files[report.data] = record.encode() + b"\n"
    if {"png", "svg"} & set(formats):
        picture = draw(plan, results)
        if "png" in formats:
            files[report.figure] = render(picture, "png")
        if "svg" in formats:
            files[report.vector_figure] = render(picture, "svg")
    try:
        report.directory.mkdir(parents=True, exist_ok=True)
        for path, content in files.items():
            _write(path, content)
    except OSError as error:
        hint = "set paths.reports" if to is None else "choose another to=…"
        raise UserError(f"cannot be written: {error.strerror}", where=str(report.directory), hint=hint) from error
    return dataclasses.replace(report, written=tuple(files))


def sweep_record(plan: SweepPlan, results: Sequence[RowResult]) -> dict[str, Any]:
    """Plain data of the whole sweep: what was asked for, and what each row and replicate came to."""
    return {
        "format_version": FORMAT_VERSION,
        "sweep": without_passwords(dataclasses.asdict(plan.spec)),
        "overrides": without_passwords(plan.overrides),
        "scale": plan.config.scale.name,
        "metric": plan.config.validation.metric,
        "superseded": [dataclasses.asdict(one) for one in plan.superseded],
        "rows": [
            _row_record(row) | {"train_id": planned.train_id, "config": to_dict(planned.config)}
            for planned, row in zip(plan.rows, results, strict=True)
        ],
    }


def _row_record(row: RowResult) -> dict[str, Any]:
    record = dataclasses.asdict(row)
    for replicate in record["replicates"]:
        del replicate["directory"]  # the same runs may lie elsewhere for somebody else
    return record | {
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
