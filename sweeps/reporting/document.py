"""A report as one Markdown document: table, differences, sample translations, runs and where they come from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sweeps.reporting.differences import interval_names
from sweeps.reporting.findings import Findings
from sweeps.reporting.samples import Samples
from sweeps.reporting.significance import p_value, signed
from sweeps.reporting.table import in_columns, to_markdown
from sweeps.wording import NOTHING


def to_document(findings: Findings) -> str:
    """The whole document."""
    complete, asked = findings.runs
    parts = [f"# {findings.title}", f"Sweep {findings.name}; {complete} of {asked} runs complete."]
    parts += [to_markdown(findings.table).rstrip("\n")]
    if findings.differences:
        parts += [f"## Differences to {findings.baseline}", _differences(findings)]
    parts += ["## Sample translations", *_samples(findings.samples), "## Runs", _runs(findings)]
    parts += ["## Provenance", *_provenance(findings)]
    return "\n\n".join(parts) + "\n"


def _differences(findings: Findings) -> str:
    rows = [
        (
            one.label,
            NOTHING if one.measured is None else f"{signed(one.measured)} {one.mark}".rstrip(),
            NOTHING if one.interval is None else " to ".join(map(signed, one.interval)),
            p_value(one.p),
            NOTHING if one.published is None else signed(one.published),
        )
        for one in findings.differences
    ]
    interval = f"95 % interval ({interval_names(findings.differences)})"
    return in_columns(("row", "difference", interval, "p Holm", "published"), rows, (False, *[True] * 4))


def _samples(samples: Samples) -> Iterator[str]:
    if samples.absent:
        yield f"None: {samples.absent}."
        return
    yield f"Chosen by rule: {samples.rule}. Of each row the replicate that validation likes best."
    for sample in samples.sentences:
        lines = [("source", sample.source), ("reference", sample.reference)]
        lines += [(", ".join(output.labels), output.text or "(empty)") for output in sample.outputs]
        yield "\n".join(
            [f"Line {sample.line} ({sample.why}):", "", *(f"- {who}: {_literal(text)}" for who, text in lines)]
        )


def _runs(findings: Findings) -> str:
    listing = findings.listing
    rows = [(row.label, *(value.text for value in run.values)) for row in listing.rows for run in row.runs]
    return in_columns(("row", *listing.columns), rows, (False, *listing.numeric))


def _provenance(findings: Findings) -> Iterator[str]:
    facts = []
    for fact in findings.provenance.facts:
        several = len(fact.values) > 1
        texts = [text + (f" ({len(runs)} of {findings.runs[0]} runs)" if several else "") for text, runs in fact.values]
        facts.append(f"- {fact.name}: {'; '.join(texts)}")
    if facts:
        yield "\n".join(facts)
    yield "\n".join(["```sh", *(f"{command}   # {what}" for command, what in findings.provenance.commands), "```"])


def _literal(text: str) -> str:
    """Text of a corpus as code, in which Markdown finds nothing to set."""
    fence = "`" * (1 + max((len(run) for run in _backticks(text)), default=0))
    room = " " if "`" in text else ""
    return f"{fence}{room}{text}{room}{fence}"


def _backticks(text: str) -> Sequence[str]:
    return "".join(character if character == "`" else " " for character in text).split()
