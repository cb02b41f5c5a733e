"""Every score by name: what it is called in records, which way is better, and when it is computed.

Scores of decoded text and scores of the reference under teacher forcing are two kinds of thing, and no name stands for
both. Records call them `<split>/<kind>/<name>`: `val/decode/bleu`, `test/teacher_forced/token_accuracy`. All are
percentages. This module loads nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass

DECODE, TEACHER_FORCED = "decode", "teacher_forced"


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One score.

    title: what figures call it.
    kind: of decoded text (`decode`) or of the reference (`teacher_forced`).
    lower_is_better: true of error rates.
    during_training: computed at every evaluation; the others only at the end, or where `validation.metric` asks.
    chooses: whether it may choose checkpoints; a part of another score may not.
    """

    title: str
    kind: str = DECODE
    lower_is_better: bool = False
    during_training: bool = False
    chooses: bool = True


METRICS = {
    "bleu": Metric(title="BLEU", during_training=True),
    "bleu_lc": Metric(title="BLEU, lower-cased", during_training=True),
    "bleu_tok": Metric(title="BLEU, tokenised", during_training=True),
    "bleu_tok_lc": Metric(title="BLEU, tokenised and lower-cased", during_training=True),
    "chrf": Metric(title="chrF", during_training=True),
    "ter": Metric(title="TER", lower_is_better=True),
    "rouge1": Metric(title="ROUGE-1"),
    "rouge1_p": Metric(title="ROUGE-1, precision", chooses=False),
    "rouge1_r": Metric(title="ROUGE-1, recall", chooses=False),
    "rouge2": Metric(title="ROUGE-2"),
    "rouge2_p": Metric(title="ROUGE-2, precision", chooses=False),
    "rouge2_r": Metric(title="ROUGE-2, recall", chooses=False),
    "rougeL": Metric(title="ROUGE-L"),
    "rougeL_p": Metric(title="ROUGE-L, precision", chooses=False),
    "rougeL_r": Metric(title="ROUGE-L, recall", chooses=False),
    "token_accuracy": Metric(title="token accuracy, teacher-forced", kind=TEACHER_FORCED, during_training=True),
}
DECODED = tuple(name for name, metric in METRICS.items() if metric.kind == DECODE)
CHOOSING = tuple(name for name, metric in METRICS.items() if metric.chooses)


def key(split: str, name: str) -> str:
    """The name of a score in records; `split` is `val` or `test`."""
    return f"{split}/{METRICS[name].kind}/{name}"


def improves(name: str, new: float, old: float) -> bool:
    """Whether `new` is strictly the better score of the two; false where either is not a number."""
    return new < old if METRICS[name].lower_is_better else new > old


def rank(name: str, value: float) -> float:
    """A number that grows with the quality that `value` says, to sort by."""
    return -value if METRICS[name].lower_is_better else value


def best_form(name: str) -> str:
    """Which extreme of several replicates is the best, `max` or `min`."""
    return "min" if METRICS[name].lower_is_better else "max"


def decoded_during_training(chosen: str) -> tuple[str, ...]:
    """The scores of decoded text that an evaluation during training needs where `chosen` picks the checkpoint."""
    return tuple(name for name in DECODED if METRICS[name].during_training or name == chosen)
