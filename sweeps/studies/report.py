"""A study's report on disk: a page, a Markdown document with pictures, and everything in study.json."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nmt.errors import UserError
from nmt.strict_json import strict_json
from sweeps.reporting.table import in_columns, to_markdown
from sweeps.studies.claims import VERDICTS, Verdict
from sweeps.studies.page import to_study_page
from sweeps.studies.pictures import draw_picture
from sweeps.studies.points import Findings
from sweeps.studies.study import Experiment, Study
from sweeps.wording import counted

FORMAT_VERSION = 1
HONEST = (
    "Refused: times of processes that compute on more processes than there are cores, or that others held from their "
    "cores; they are left out, and the reason stands below the table.",
    "Emulated: machines and links that exist on paper only; every such table, picture and condition says so.",
    "A verdict compares what was found, one run a row. It is no statistical test.",
)


@dataclass(frozen=True)
class StudyReport:
    """Where the files of a study's report lie."""

    directory: Path

    @property
    def page(self) -> Path:
        """The page, for a browser; it needs no other file."""
        return self.directory / "study.html"

    @property
    def document(self) -> Path:
        """The same in Markdown, with pictures beside it."""
        return self.directory / "study.md"

    @property
    def data(self) -> Path:
        """Every point, and every comparison of every verdict."""
        return self.directory / "study.json"


def write_study(
    study: Study,
    experiments: Sequence[Experiment],
    found: Mapping[str, Findings],
    verdicts: Sequence[Verdict],
    directory: Path,
) -> StudyReport:
    """Write all files. Raises UserError where they cannot be written."""
    report = StudyReport(directory)
    files: dict[Path, bytes] = {
        report.document: to_document(study, experiments, found, verdicts).encode(),
        report.page: to_study_page(study, experiments, found, verdicts, HONEST).encode(),
        report.data: (strict_json(record(study, experiments, found, verdicts), indent=1) + "\n").encode(),
    }
    for one in experiments:
        for picture in found[one.name].pictures:
            files[directory / f"{picture.name}.png"] = draw_picture(picture)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for path, content in files.items():
            temporary = path.with_name(f".{path.name}.tmp")
            temporary.write_bytes(content)
            temporary.replace(path)
    except OSError as error:
        raise UserError(
            f"cannot be written: {error.strerror}", where=str(directory), hint="set paths.reports"
        ) from error
    return report


def record(
    study: Study, experiments: Sequence[Experiment], found: Mapping[str, Findings], verdicts: Sequence[Verdict]
) -> dict[str, Any]:
    """Plain data of everything."""
    return {
        "format_version": FORMAT_VERSION,
        "study": study.name,
        "title": study.title,
        "source": study.source,
        "experiments": [
            {
                "name": one.name,
                "title": one.title,
                "points": [dataclasses.asdict(point) for point in found[one.name].points],
                "remarks": list(found[one.name].remarks),
            }
            for one in experiments
        ],
        "claims": [dataclasses.asdict(one) for one in verdicts],
    }


def to_document(
    study: Study, experiments: Sequence[Experiment], found: Mapping[str, Findings], verdicts: Sequence[Verdict]
) -> str:
    """The whole document."""
    parts = [f"# {study.title}", f"Claims of: {study.source}.", tally(verdicts), _verdict_table(verdicts)]
    parts.append("\n".join(f"- {line}" for line in HONEST))
    for one in experiments:
        parts += [f"## {one.title}", one.question]
        parts += [_claim(verdict) for verdict in verdicts if verdict.claim.experiment == one.name]
        parts += _shown(found[one.name])
    return "\n\n".join(part for part in parts if part) + "\n"


def tally(verdicts: Sequence[Verdict]) -> str:
    """How many claims there are, and how many have each verdict."""
    counts = Counter(one.verdict for one in verdicts)
    said = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict])
    return f"{counted(len(verdicts), 'claim')}: {said}"


def _verdict_table(verdicts: Sequence[Verdict]) -> str:
    rows = [(one.claim.statement, verdict_words(one), one.claim.experiment) for one in verdicts]
    return in_columns(("claim", "verdict", "experiment"), rows, (False, False, False)) if rows else ""


def verdict_words(verdict: Verdict) -> str:
    """A verdict, and whether emulated values are among what it rests on."""
    emulated = sum(one.emulated for one in verdict.comparisons)
    if not emulated:
        return verdict.verdict
    return f"{verdict.verdict} ({'emulated' if emulated == len(verdict.comparisons) else 'partly emulated'})"


def _claim(verdict: Verdict) -> str:
    return "\n".join(f"- {line}" if number else f"**{line}**\n" for number, line in enumerate(claim_lines(verdict)))


def claim_lines(verdict: Verdict) -> Iterator[str]:
    """A claim in full: statement, verdict, where it holds, on how many comparisons it rests, reading and limits."""
    claim = verdict.claim
    yield claim.statement
    where = f": {verdict.where}" if verdict.where else ""
    yield f"{verdict_words(verdict)}{where}"
    if verdict.comparisons:
        holding = sum(one.holds for one in verdict.comparisons)
        said = f"{holding} of {len(verdict.comparisons)} comparisons hold ({claim.figure}: {claim.expect})"
        yield said
    if verdict.refused:
        yield "values that are not there: " + "; ".join(dict.fromkeys(reason for reason, _ in verdict.refused))
    if claim.reading:
        yield f"reading: {claim.reading}"
    if claim.limits:
        yield f"limits: {claim.limits}"
    yield f"place: {claim.place}"


def _shown(findings: Findings) -> Iterator[str]:
    yield from findings.remarks
    for table in findings.tables:
        yield to_markdown(table).rstrip("\n")
    for picture in findings.pictures:
        yield f"![{picture.title}]({picture.name}.png)"
