"""The scoreboard of claims on screen, as Markdown and as JSON, and one claim in full."""

from __future__ import annotations

import dataclasses
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from nmt.evaluation.catalogue import METRICS
from sweeps.claims.claim import COMBINATIONS, EXPECTATIONS, PlannedContrast, sweep_spec
from sweeps.claims.judging import ALPHA, HELD, NOT_RUN, POWER, REVERSED, UNDECIDED, VERDICTS, Finding
from sweeps.claims.runs import Source
from sweeps.claims.verdicts import Assessment, MeasuredRow
from sweeps.wording import NOTHING, counted

FORMAT_VERSION = 1
COLUMNS = ("claim", "what the paper says", "published", "measured", "p", "verdict")
STYLES = {HELD: "green", REVERSED: "red", UNDECIDED: "yellow", NOT_RUN: "dim"}


def effect_text(contrast: PlannedContrast, value: float | None) -> str:
    """An effect in the claim's unit, as a reader expects it: `+0.44`, `×1.52`, `67 %`, `ρ 0.83`."""
    if value is None:
        return NOTHING
    if contrast.measure == "output_share":
        return f"{100 * value:.0f} %"
    if contrast.measure == "collapsed":
        return f"{100 * value:+.0f} %"
    if contrast.measure == "rank_correlation":
        return f"ρ {value:.2f}"
    return f"×{value:.2f}" if contrast.kind.log else f"{value:+.2f}"


def measured_text(one: Assessment) -> str:
    """The measured effect with its 95 % interval."""
    judgement, contrast = one.judgement, one.claim.contrast
    if judgement.effect is None:
        return NOTHING
    text = effect_text(contrast, one.natural(judgement.effect))
    if judgement.interval is None:
        return text
    low, high = (effect_text(contrast, one.natural(end)).removeprefix("ρ ") for end in judgement.interval)
    return f"{text} [{low}, {high}]"


def verdict_text(one: Assessment) -> str:
    """The verdict, with the replicates that an undecided one would take."""
    if one.verdict == UNDECIDED and one.judgement.needed:
        return f"{UNDECIDED} ({one.judgement.needed} replicates)"
    return one.verdict


def p_text(p: float | None) -> str:
    """Two digits that count."""
    return NOTHING if p is None else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"


def counts(board: Sequence[Assessment]) -> str:
    """How many claims there are, and how many have each verdict: what an uncorrected p has to be read with."""
    tally = Counter(one.verdict for one in board)
    said = ", ".join(f"{tally[verdict]} {verdict}" for verdict in VERDICTS if tally[verdict])
    return f"{counted(len(board), 'claim')}: {said}"


def notes(board: Sequence[Assessment]) -> list[str]:
    """What has to be known to read the scoreboard."""
    tested = sum(one.judgement.p is not None for one in board)
    lines = ["measured: the claim's effect with its 95 % interval, of the comparison that holds least; × is a ratio"]
    if tested:
        chance = f"of {tested} tested claims about {ALPHA * tested:.1f} would pass by chance if none were true"
        planned = f"p: one-sided and exact, of one planned contrast a claim, level {ALPHA}, not corrected"
        lines.insert(0, f"{planned}: {chance}")
    metrics = sorted({METRICS[one.metric].title for one in board if one.metric})
    if metrics:
        lines.append(f"measured score: {', '.join(metrics)} of the test split; published: BLEU as printed")
    if any(one.verdict == UNDECIDED and one.judgement.needed for one in board):
        lines.append(
            f"undecided (n replicates): so many a row would find the minimum effect with a probability of {POWER}"
        )
    return lines


def to_screen(board: Sequence[Assessment]) -> Group:
    """The scoreboard for a terminal, a section a table of the paper."""
    screen = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in COLUMNS:
        screen.add_column(name, justify="right" if name == "p" else "left", no_wrap=name in ("published", "p"))
    for table, members in groupby(board, key=lambda one: one.claim.table):
        screen.add_section()
        screen.add_row(Text(f"Table {table}", style="bold"))
        for one in members:
            *cells, verdict = _cells(one)
            screen.add_row(*map(Text, cells), Text(verdict, style=STYLES[one.verdict]))
    return Group(screen, Text(counts(board), style="bold"), *(Text(line, style="dim") for line in notes(board)))


def to_markdown(board: Sequence[Assessment]) -> str:
    """The scoreboard as Markdown."""
    lines = [f"**{counts(board)}**", "", f"| table | {' | '.join(COLUMNS)} |", "|---|---|---|---:|---|---:|---|"]
    for one in board:
        cells = [one.claim.table, f"`{one.claim.id}`", *_cells(one)[1:]]
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join([*lines, "", *(f"- {note}" for note in notes(board))]) + "\n"


def to_json(board: Sequence[Assessment]) -> dict[str, Any]:
    """Plain data: every figure with full precision, and the run ids of each row."""
    tally = Counter(one.verdict for one in board)
    return {
        "format_version": FORMAT_VERSION,
        "alpha": ALPHA,
        "claims": [_record(one) for one in board],
        "verdicts": {verdict: tally[verdict] for verdict in VERDICTS},
    }


def in_full(one: Assessment, costs: Mapping[Source, str] | None = None) -> str:
    """One claim with its runs, numbers, test and notes; `costs` say what the missing runs would take."""
    claim, contrast, judgement = one.claim, one.claim.contrast, one.judgement
    lines = [
        f"{claim.id}: {claim.statement}",
        f"  {claim.place} of Britz et al. 2017",
        "",
        *_about("test", planned_test(contrast)),
        *_about("reading", claim.reading),
        *_about("published", _published(one)),
        *_about("measured", measured_text(one) if judgement.effect is not None else ""),
        *_about("p", _p_line(one)),
        *_about("verdict", verdict_text(one) + (f": {judgement.reason}" if judgement.reason else "")),
        *_about("remark", one.remark),
    ]
    if judgement.findings and len(judgement.findings) > 1:
        lines += ["", "comparisons", *(f"  {_finding_line(one, finding)}" for finding in judgement.findings)]
    for source, rows in groupby(one.rows, key=lambda row: row.source):
        under = f" with {' '.join(source.overrides)}" if source.overrides else ""
        lines += ["", f"runs of {source.sweep}{under}", *(f"  {_row_line(one, row)}" for row in rows)]
    if one.commands:
        lines += ["", "to make them"]
        for source, command in one.commands.items():
            lines += [f"  {command}", *([f"      {costs[source]}"] if costs else [])]
    lines += ["", "notes", *(f"  - {note}" for note in claim.notes)] if claim.notes else []
    return "\n".join(lines)


def planned_test(contrast: PlannedContrast) -> str:
    """The planned contrast in words."""
    unit = effect_text(contrast, contrast.effect).removeprefix("+")
    what = contrast.kind.title
    if contrast.measure == "rank_correlation":
        return f"{what} of {contrast.sweep} as it is and with {' '.join(contrast.other_overrides)}: at least {unit}"
    rows = ", ".join(contrast.rows)
    if contrast.measure == "output_share":
        return f"{what} of {contrast.sweep}'s {rows}: at least {unit}, counted at published size"
    many = len(contrast.rows) + len(contrast.against) > 2
    how = f"; {COMBINATIONS[contrast.combine]}" if many else ""
    limit = "minimum" if contrast.expect == "greater" else "margin"
    below = f" (diverged, or a score below {contrast.below:g})" if contrast.below is not None else ""
    changed = f", with {' '.join(contrast.overrides)}" if contrast.overrides else ""
    return (
        f"{what}{below} in {contrast.sweep}{changed}: {rows} {EXPECTATIONS[contrast.expect]} "
        f"{', '.join(contrast.against)}, {limit} {unit}{how}"
    )


def _cells(one: Assessment) -> tuple[str, ...]:
    return (
        one.claim.id,
        one.claim.statement,
        effect_text(one.claim.contrast, one.published),
        measured_text(one),
        p_text(one.judgement.p),
        verdict_text(one),
    )


def _published(one: Assessment) -> str:
    contrast = one.claim.contrast
    effect = effect_text(contrast, one.published)
    printed = {row.label: row.published for row in sweep_spec(contrast.sweep).rows}
    if contrast.measure not in ("score", "collapsed"):
        return effect if one.published is not None else "no figure in the paper"
    rows = [
        f"{label} {found.mean:.2f}" + (f" ± {found.std:.2f}" if found.std is not None else "")
        for label in (*contrast.rows, *contrast.against)
        if (found := printed.get(label)) is not None and found.mean is not None
    ]
    text = f"{effect} ({', '.join(rows)})" if rows else "no figure in the paper"
    otherwise = one.claim.printed_otherwise
    return f"{text}; {otherwise}" if otherwise else text


def _p_line(one: Assessment) -> str:
    judgement = one.judgement
    if judgement.p is None:
        return ""
    text = f"{p_text(judgement.p)}, of the reverse {p_text(judgement.p_opposite)}"
    if judgement.findings:
        first = judgement.findings[0]
        test = "exact test of pairs (signs flipped)" if first.paired else "exact permutation test"
        text += f"; {test} of {first.n[0]} against {first.n[1]}, where p can be as small as {first.p_smallest:.2g}"
    return text


def _finding_line(one: Assessment, found: Finding) -> str:
    effect = effect_text(one.claim.contrast, one.natural(found.difference))
    return f"{found.name}: {effect}, p {p_text(found.p)}, of the reverse {p_text(found.p_opposite)}"


def _row_line(one: Assessment, row: MeasuredRow) -> str:
    values = [one.natural(value) for value in row.values]
    said = ""
    if values:
        form = ",.0f" if max(map(abs, values)) >= 1000 else ".4g"
        centre = one.natural(statistics.fmean(row.values))
        said = f": {', '.join(format(value, form) for value in values)}; mean {format(centre, form)}"
    missing = f" ({row.missing} missing)" if row.missing else ""
    return f"{row.label}{said}{missing}  {' '.join(row.run_ids)}"


def _about(name: str, text: str) -> list[str]:
    return [f"  {name:<10}{text}"] if text else []


def _record(one: Assessment) -> dict[str, Any]:
    judgement = one.judgement
    return {
        "id": one.claim.id,
        "table": one.claim.table,
        "statement": one.claim.statement,
        "place": one.claim.place,
        "verdict": one.verdict,
        "reason": judgement.reason,
        "published": one.published,
        "effect": None if judgement.effect is None else one.natural(judgement.effect),
        "interval": judgement.interval and [one.natural(end) for end in judgement.interval],
        "p": judgement.p,
        "p_opposite": judgement.p_opposite,
        "replicates_needed": judgement.needed,
        "metric": one.metric,
        "remark": one.remark,
        "contrast": dataclasses.asdict(one.claim.contrast),
        "rows": [
            {
                "row": row.label,
                "sweep": row.source.sweep,
                "overrides": list(row.source.overrides),
                "runs": list(row.run_ids),
                "states": list(row.states),
                "missing": row.missing,
                "values": [one.natural(value) for value in row.values],
            }
            for row in one.rows
        ],
        "commands": list(one.commands.values()),
    }
