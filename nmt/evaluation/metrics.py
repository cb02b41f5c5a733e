"""Corpus metrics of decoded text, each with the signature that says how it was computed.

Figures of different tokenisations are not on one scale, so each has a name of its own:

- `bleu`, `bleu_lc`: sacrebleu's 13a on plain text, cased and lower-cased (Post 2018). What to compare between systems.
- `bleu_tok`, `bleu_tok_lc`: on Moses-tokenised text, cased and lower-cased; the kind of figure that multi-bleu.perl
  gives and that the published tables hold.
- `chrf`: chrF2, character n-grams (Popović 2015).
- `ter`: translation edit rate (Snover et al. 2006), edits and shifts for each reference word; lower is better.
- `rouge1`, `rouge2`, `rougeL`: F of ROUGE, for summaries; with `_p` and `_r` precision and recall.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from typing import Any, NamedTuple

from nmt.evaluation.catalogue import DECODED
from nmt.evaluation.rouge import rouge
from nmt.evaluation.rouge import signature as rouge_signature


class Corpus(NamedTuple):
    """Decoded text, its references, and the language of both (`de`), which chooses the Moses rules."""

    hypotheses: tuple[str, ...]
    references: tuple[str, ...]
    language: str


def score(
    hypotheses: Sequence[str], references: Sequence[str], target_language: str, names: Sequence[str] = DECODED
) -> dict[str, Any]:
    """The metrics called `names` in percent, and their `signatures` under the same names.

    What is computed of the references alone is kept between calls. Raises ValueError for unequal numbers of lines or
    none.
    """
    if len(hypotheses) != len(references) or not hypotheses:
        raise ValueError(f"{len(hypotheses)} hypotheses for {len(references)} references")
    corpus = Corpus(tuple(hypotheses), tuple(references), target_language)
    result: dict[str, Any] = {}
    signatures: dict[str, str] = {}
    for name in names:
        family = next(family for beginning, family in _FAMILIES.items() if name.startswith(beginning))
        result[name], signatures[name] = family(name, corpus)
    return result | {"signatures": signatures}


def _plain(name: str, corpus: Corpus) -> tuple[float, str]:
    metric = sacrebleu_metric(name, corpus.references)
    return float(metric.corpus_score(list(corpus.hypotheses), None).score), str(metric.get_signature())


def _tokenised(name: str, corpus: Corpus) -> tuple[float, str]:
    language = corpus.language
    metric = sacrebleu_metric(name, tokenise_all(corpus.references, language))
    value = float(metric.corpus_score(list(tokenise_all(corpus.hypotheses, language)), None).score)
    return value, f"{metric.get_signature()}|{_moses_signature(language)}"


def _rouge(name: str, corpus: Corpus) -> tuple[float, str]:
    variant, _, part = name.partition("_")
    value = getattr(_overlap(corpus.hypotheses, corpus.references, variant), _PARTS[part])
    return value, rouge_signature()


_PARTS = {"": "f", "p": "precision", "r": "recall"}
_FAMILIES: dict[str, Callable[[str, Corpus], tuple[float, str]]] = {
    "bleu_tok": _tokenised,
    "bleu": _plain,
    "chrf": _plain,
    "ter": _plain,
    "rouge": _rouge,
}


@lru_cache(maxsize=16)
def sacrebleu_metric(name: str, references: tuple[str, ...]) -> Any:
    """sacrebleu's object of a metric other than ROUGE, which keeps what it computed of the references.

    For `bleu_tok` and `bleu_tok_lc` hypotheses and references go through `tokenise_all` first.
    """
    from sacrebleu.metrics import BLEU, CHRF, TER

    references_by_set = [list(references)]
    if name == "chrf":
        return CHRF(references=references_by_set)
    if name == "ter":
        return TER(references=references_by_set)
    tokenizer = "none" if name.startswith("bleu_tok") else "13a"
    # `force` only silences a warning about text that looks tokenised.
    return BLEU(tokenize=tokenizer, lowercase=name.endswith("_lc"), force=True, references=references_by_set)


@lru_cache(maxsize=4)
def _overlap(hypotheses: tuple[str, ...], references: tuple[str, ...], variant: str) -> Any:
    return rouge(hypotheses, references, variant)


@lru_cache(maxsize=4)
def tokenise_all(lines: tuple[str, ...], language: str) -> tuple[str, ...]:
    """Each line as Moses tokenises it."""
    moses = _moses(language)
    return tuple(str(moses.tokenize(line, return_str=True, escape=False)) for line in lines)


@cache
def _moses(language: str) -> Any:
    from sacremoses import MosesTokenizer

    return MosesTokenizer(language or "en")


def _moses_signature(language: str) -> str:
    from importlib.metadata import version

    return f"moses:{language or 'en'}|sacremoses:{version('sacremoses')}"
