"""Sample translations: sentences of the test split, chosen by rule, as the best replicate of each row has them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nmt.data.corpus import load_test
from nmt.errors import UserError
from sweeps.aggregate import RowResult
from sweeps.plan import SweepPlan
from sweeps.results import Replicate
from sweeps.sentences import hypotheses

log = logging.getLogger("nmt.report")

BY_LENGTH, BY_DISAGREEMENT = 3, 3  # sentences chosen by either rule
COMPARED = 40  # rows whose outputs decide where rows disagree: the first ones, which bounds the work
RULE = (
    f"{BY_LENGTH} sentences at even places in the order of source length, then the {BY_DISAGREEMENT} on which rows "
    "disagree most: those with the widest gap between the best and the worst row's share of words in common with the "
    "reference (F1); ties go to the earlier line"
)


@dataclass(frozen=True, kw_only=True)
class Output:
    """What some rows made of a sentence: one text, and every row that it is the output of."""

    text: str
    labels: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A sentence with its translations; `line` counts from 1, `why` is the rule that chose it."""

    line: int
    why: str
    source: str
    reference: str
    outputs: tuple[Output, ...]


@dataclass(frozen=True, kw_only=True)
class Samples:
    """The sentences shown, the replicate behind each row's output by label, and why there is nothing more to show."""

    sentences: tuple[Sample, ...] = ()
    replicates: tuple[tuple[str, Replicate], ...] = ()
    rule: str = RULE
    absent: str = ""


def choose_samples(plan: SweepPlan, results: Sequence[RowResult]) -> Samples:
    """Choose sentences and gather their translations. What is missing for it is said in `absent`, nothing is raised.

    Rows on another test text than the first one's are left out.
    """
    metric = plan.config.validation.metric
    configs = {row.label: row.config for row in plan.rows}
    best = [(row.label, one) for row in results if (one := _shown(row, metric)) is not None and one.decode_id]
    if not best:
        return Samples(absent="no row has been decoded yet")
    config = configs.get(best[0][0], plan.config)
    # An imported system is among the rows only where all of them have one test text.
    best = [(label, one) for label, one in best if configs.get(label, config).data == config.data]
    try:
        test = load_test(config.data)
    except UserError as error:
        log.warning("no sample translations: %s", error)
        return Samples(absent="the corpus was not at hand: data.dir=… names its folder")
    sources, references = test.source, test.target
    texts = {label: _outputs(one) for label, one in best}
    whole = [(label, one) for label, one in best if len(texts[label]) == len(sources)]
    if not whole:
        return Samples(absent=f"no row has hypotheses of all {len(sources)} sentences of the test split")
    outputs = [texts[label] for label, _ in whole]
    sentences = tuple(
        Sample(
            line=line + 1,
            why=why,
            source=sources[line],
            reference=references[line],
            outputs=_grouped([label for label, _ in whole], [lines[line] for lines in outputs]),
        )
        for line, why in _chosen(sources, references, outputs[:COMPARED])
    )
    return Samples(sentences=sentences, replicates=tuple(whole))


def _shown(row: RowResult, metric: str) -> Replicate | None:
    """The row's best replicate; of an imported system, which has no validation scores, its first file."""
    return row.complete[0] if row.imported and row.complete else row.best_run(metric)


def _outputs(replicate: Replicate) -> list[str]:
    """The lines of a replicate's decoding, none where they are not at hand."""
    try:
        return hypotheses(replicate)
    except UserError:
        return []


def _chosen(
    sources: Sequence[str], references: Sequence[str], outputs: Sequence[Sequence[str]]
) -> list[tuple[int, str]]:
    """Line numbers from 0 with the reason for each, by `RULE`."""
    order = sorted(range(len(sources)), key=lambda line: (len(sources[line].split()), line))
    places = [int(len(order) * (2 * number + 1) / (2 * BY_LENGTH)) for number in range(BY_LENGTH)]
    chosen = {order[place]: f"{len(sources[order[place]].split())} words" for place in places}
    if len(outputs) > 1:
        gaps = np.array([_gap(reference, lines) for reference, *lines in zip(references, *outputs, strict=True)])
        widest = [int(line) for line in np.argsort(-gaps, kind="stable") if gaps[line] > 0 and line not in chosen]
        chosen |= dict.fromkeys(widest[:BY_DISAGREEMENT], "rows disagree")
    return list(chosen.items())


def _gap(reference: str, texts: Sequence[str]) -> float:
    """The best text's F1 of words in common with the reference, less the worst one's."""
    words = Counter(reference.split())
    shares = []
    for text in set(texts):
        found = text.split()
        common = (Counter(found) & words).total()
        shares.append(2 * common / max(1, len(found) + words.total()))
    return max(shares) - min(shares)


def _grouped(labels: Sequence[str], texts: Sequence[str]) -> tuple[Output, ...]:
    by_text: dict[str, list[str]] = {}
    for label, text in zip(labels, texts, strict=True):
        by_text.setdefault(text, []).append(label)
    return tuple(Output(text=text, labels=tuple(rows)) for text, rows in by_text.items())
