"""`nmt analyse`: two or more systems side by side, by sentence length and word frequency."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

from nmt.archives import RESULTS_HELP, archive_directories, at_usual_place
from nmt.arguments import option, parse
from nmt.errors import UserError
from nmt.strict_json import strict_json
from sweeps.wording import mean_and_sd

if TYPE_CHECKING:
    from nmt.config import RunConfig
    from sweeps.analysis.analysis import Analysis, Bucket
    from sweeps.sides import Side

PARTS = ("length", "frequency", "sentences")
FORMATS = ("text", "md")
EXAMPLES = """
Systems are named as in nmt compare: labels of a sweep's rows, experiments, run ids of one configuration (one id without
a seed: all its replicates), systems that nmt import put beside the runs. Figures are means over replicates, ± their sd.

Examples:
  nmt analyse sweep=quickstart a=Add-512 b=None-State results=docs/results
  nmt analyse sweep=table5_attention scale=cpu_table a=Add-512 b=joeynmt by=frequency format=md
  nmt analyse a=da1d780ff1d7 b=fe9b2b6d8607 results=docs/results by=length,sentences lengths=10,12,14
"""


@dataclass(frozen=True, kw_only=True)
class AnalyseOptions:
    """What `nmt analyse` takes beside config overrides of a sweep."""

    a: str = option("", "a system: a row, an experiment, run ids, or an imported system")
    b: str = option("", "the one that it is compared with")
    others: list[str] = option(list, "further systems, beside the two")
    sweep: str = option("", "the sweep whose rows are meant")
    by: list[str] = option(lambda: list(PARTS), "what to show; unset: all", choices=PARTS)
    metric: str = option("bleu", "score of the buckets of sentences")
    lengths: list[str] = option(list, "words of the source from which the next bucket counts; unset: 10,15,20,30,40,60")
    frequencies: list[str] = option(list, "the same of words' occurrences in the training text; unset: 1,2,3,5,10,…")
    shown: int = option(3, "sentences to list, in each direction", minimum=1)
    format: str = option("text", "for a screen, or as Markdown", choices=FORMATS)
    json: bool = option(False, "everything as one JSON object")
    results: str = option("", RESULTS_HELP)
    runs: str = option("", "directory of runs; unset: $NMT_RUNS, else runs", key="paths.runs")


def main(argv: Sequence[str]) -> int:
    """Compare as the command line asks; returns 0."""
    options, words = parse(
        AnalyseOptions,
        argv,
        verb="nmt analyse",
        summary="Put systems side by side: scores by length of the source sentence, precision and recall of words by "
        "their frequency in the training text, and the sentences that differ most.",
        epilog=EXAMPLES,
        rest=True,
    )
    from nmt.evaluation.catalogue import DECODED
    from sweeps.analysis.analysis import analyse
    from sweeps.analysis.buckets import FREQUENCIES, LENGTHS

    for name in ("a", "b"):
        if not getattr(options, name):
            raise UserError("is missing", where=name, hint="nmt analyse a=... b=...")
    if options.metric not in DECODED:
        raise UserError(f"'{options.metric}' is no score of decoded text", where="metric", allowed=DECODED)
    lengths = _edges("lengths", options.lengths, LENGTHS)
    frequencies = _edges("frequencies", options.frequencies, FREQUENCIES)
    sides, config = _sides(options, words)
    found = analyse(
        sides,
        config,
        options.metric,
        lengths=lengths if "length" in options.by else (),
        frequencies=frequencies if "frequency" in options.by else (),
        shown=options.shown if "sentences" in options.by else 0,
    )
    if options.json:
        sys.stdout.write(strict_json(asdict(found)) + "\n")
    else:
        sys.stdout.write("".join(f"{line}\n" for line in lines_of(found, options.format == "md")))
    return 0


def lines_of(found: Analysis, markdown: bool) -> Iterator[str]:
    """The analysis as text, or as Markdown that reads as text too."""
    whole = zip(found.labels, found.whole, found.replicates, strict=True)
    means = (f"{label} {mean_and_sd(value)} (n {n})" for label, value, n in whole)
    yield f"{found.metric} on the whole test set: {', '.join(means)}"
    if found.lengths:
        yield ""
        yield _heading(f"{found.metric} by words of the source sentence", markdown)
        yield from _bucket_lines(found, found.lengths, "words", "sentences", [found.metric], markdown)
    if found.frequencies:
        yield ""
        yield _heading("words by occurrences in the training text", markdown)
        yield from _bucket_lines(
            found, found.frequencies, "occurrences", "in references", ["precision", "recall", "f1"], markdown
        )
    if found.sentences:
        yield ""
        yield _heading(f"where {found.labels[0]} and {found.labels[1]} differ most (chrF of the sentence)", markdown)
    for sentence in found.sentences:
        yield ""
        yield f"{'- ' if markdown else ''}sentence {sentence.number}, {sentence.gain:+.1f} for {found.labels[0]}"
        rows = [("source", sentence.source), ("reference", sentence.reference)]
        rows += list(zip(found.labels, sentence.outputs, strict=True))
        width = max(len(name) for name, _ in rows)
        yield from (f"  {'- ' if markdown else ''}{name:<{width}}  {text}" for name, text in rows)


def _bucket_lines(
    found: Analysis, buckets: Sequence[Bucket], name: str, count: str, parts: Sequence[str], markdown: bool
) -> Iterator[str]:
    several = len(parts) > 1
    heads = [f"{label} {part}" if several else label for part in parts for label in found.labels]
    rows = [[name, count, *heads]]
    for bucket in buckets:
        cells = [mean_and_sd(values[part]) for part in parts for values in bucket.values]
        rows.append([bucket.name, f"{bucket.n:,}", *cells])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for number, row in enumerate(rows):
        padded = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        if not markdown:
            yield f"  {'  '.join(padded)}"
            continue
        yield f"| {' | '.join(padded)} |"
        if not number:
            yield f"| {' | '.join('-' * (width - 1) + ':' for width in widths)} |"


def _heading(text: str, markdown: bool) -> str:
    return f"**{text}**\n" if markdown else text


def _sides(options: AnalyseOptions, words: Sequence[str]) -> tuple[list[Side], RunConfig]:
    """The systems, and a configuration whose test set they share."""
    from sweeps.sides import Places, find_sides

    places = Places(
        sweep=options.sweep,
        runs=options.runs,
        archives=tuple(archive_directories(options.results)),
        overrides=tuple(words),
    )
    a, b = find_sides(options.a, options.b, places)
    sides = [a, b, *(find_sides(options.a, name, places)[1] for name in options.others)]
    config = next((side.config for side in sides if side.config is not None), None)
    config = config or _of_sweep(options, words)
    return sides, replace(config, data=at_usual_place(config.data))


def _of_sweep(options: AnalyseOptions, words: Sequence[str]) -> RunConfig:
    """The configuration of a sweep's test set, where all systems are imported and none says where its text lies."""
    from sweeps.plan import make_plan
    from sweeps.spec import load_spec

    if not options.sweep:
        raise UserError("all are imported, and none says where its text lies", where="nmt analyse", hint="sweep=...")
    return make_plan(load_spec(options.sweep), words).config


def _edges(name: str, given: Sequence[str], usual: Sequence[int]) -> Sequence[int]:
    """Edges of buckets, growing whole numbers above 0."""
    if not given:
        return usual
    if not all(text.isdecimal() for text in given):
        raise UserError(f"'{','.join(given)}' are no whole numbers", where=name, hint="such as 10,20,30")
    edges = [int(text) for text in given]
    if edges[0] < 1 or any(low >= high for low, high in pairwise(edges)):
        raise UserError(f"'{','.join(given)}' do not grow", where=name, hint="such as 10,20,30")
    return edges
