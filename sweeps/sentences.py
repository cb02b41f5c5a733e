"""The sentences behind a replicate's score: its outputs, the references, and the statistics of each sentence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nmt.config import RunConfig
from nmt.data.corpus import load_test, read_lines
from nmt.errors import UserError
from sweeps.results import Replicate

if TYPE_CHECKING:
    import numpy as np

TOLERANCE = 1e-6  # BLEU: a score that is recomputed from the same text agrees to rounding


def hypotheses(replicate: Replicate) -> list[str]:
    """What the replicate's best checkpoint made of the test split with the search asked for, a line a sentence.

    Raises UserError where the run was not decoded so, or its outputs are not at hand.
    """
    if not replicate.decode_id:
        raise UserError("has no decoding of the test split", where=f"run {replicate.run_id}")
    path = replicate.directory / "decodes" / f"{replicate.decode_id}.txt"
    if not path.is_file():
        hint = f"its scores are there without its outputs; nmt evaluate run={replicate.run_id} decodes it again"
        raise UserError("there are no outputs", where=str(path), hint=hint)
    return read_lines(path) if path.stat().st_size else []


def references(config: RunConfig) -> list[str]:
    """The references of the test split, as published.

    Raises UserError where the corpus has no test split, and, saying how to get it, where it is not at hand.
    """
    lines = load_test(config.data).target
    if not lines:
        raise UserError("the data has no test split", where="data.test", hint="give data.test.source and .target")
    return lines


def sources(config: RunConfig) -> list[str]:
    """The source sentences that go with `references`."""
    return load_test(config.data).source


def statistics_of(replicate: Replicate, correct: Sequence[str], target_language: str, metric: str) -> np.ndarray:
    """The replicate's sentence statistics, [sentences, parts]: see `nmt.evaluation.sentence_statistics`.

    Raises UserError where they do not give the score that is on record: these are then not the references that it was
    scored on.
    """
    from nmt.evaluation.sentence_statistics import corpus_scores, sentence_statistics

    outputs = hypotheses(replicate)
    if len(outputs) != len(correct):
        raise _other_references(replicate, f"has {len(outputs)} outputs, and there are {len(correct)} references")
    found = sentence_statistics(outputs, correct, target_language, metric)
    score, recorded = float(corpus_scores(metric, found.sum(axis=0))), replicate.metrics.get(metric)
    if recorded is not None and not abs(score - recorded) <= TOLERANCE:
        raise _other_references(
            replicate, f"has {metric} {score:.4f} on these references, and {recorded:.4f} on record"
        )
    return found


def _other_references(replicate: Replicate, what: str) -> UserError:
    hint = "it was scored on another test text than data.dir and data.test name"
    return UserError(what, where=f"run {replicate.run_id}", hint=hint)
