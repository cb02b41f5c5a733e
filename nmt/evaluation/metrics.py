"""Corpus metrics of decoded text, each with the signature that says how it was computed.

Figures of different tokenisations are not on one scale, so each has a name of its own:

- `bleu`, `bleu_lc`: sacrebleu's 13a on plain text, cased and lower-cased (Post 2018). What to compare between systems.
- `bleu_tok`, `bleu_tok_lc`: on Moses-tokenised text, cased and lower-cased; the kind of figure that multi-bleu.perl
  gives and that the published tables hold.
- `chrf`: chrF2, character n-grams (Popović 2015).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from typing import Any

METRICS = ("bleu", "bleu_lc", "bleu_tok", "bleu_tok_lc", "chrf")


def score(hypotheses: Sequence[str], references: Sequence[str], target_language: str) -> dict[str, Any]:
    """Every metric of `METRICS` (0 to 100), and their `signatures` under the same names.

    `target_language` (`de`) chooses the Moses rules. What is computed of the references alone is kept between calls.
    Raises ValueError for unequal numbers of lines or none.
    """
    if len(hypotheses) != len(references) or not hypotheses:
        raise ValueError(f"{len(hypotheses)} hypotheses for {len(references)} references")
    metrics = _metrics(tuple(references), target_language)
    tokenised = [_tokenise(text, target_language) for text in hypotheses]
    result: dict[str, Any] = {"signatures": {}}
    for name in METRICS:
        metric = metrics[name]
        on_tokens = name.startswith("bleu_tok")
        result[name] = float(metric.corpus_score(tokenised if on_tokens else list(hypotheses), None).score)
        signature = str(metric.get_signature())
        result["signatures"][name] = f"{signature}|{_moses_signature(target_language)}" if on_tokens else signature
    return result


@lru_cache(maxsize=4)
def _metrics(references: tuple[str, ...], language: str) -> dict[str, Any]:
    from sacrebleu.metrics import BLEU, CHRF

    plain = [list(references)]
    tokenised = [[_tokenise(text, language) for text in references]]
    # `force` only silences a warning about text that looks tokenised.
    return {
        "bleu": BLEU(tokenize="13a", force=True, references=plain),
        "bleu_lc": BLEU(tokenize="13a", lowercase=True, force=True, references=plain),
        "bleu_tok": BLEU(tokenize="none", force=True, references=tokenised),
        "bleu_tok_lc": BLEU(tokenize="none", lowercase=True, force=True, references=tokenised),
        "chrf": CHRF(references=plain),
    }


def _tokenise(text: str, language: str) -> str:
    return str(_moses(language).tokenize(text, return_str=True, escape=False))


@cache
def _moses(language: str) -> Any:
    from sacremoses import MosesTokenizer

    return MosesTokenizer(language or "en")


def _moses_signature(language: str) -> str:
    from importlib.metadata import version

    return f"moses:{language or 'en'}|sacremoses:{version('sacremoses')}"
