"""Batched beam search; greedy is a beam of 1.

`search.finishing` says what becomes of a hypothesis that ended: see `nmt.search.google` and `nmt.search.standard`.
Scores are in `nmt.search.scores`, rules for stopping in `nmt.search.stopping`, rules for outputs in
`nmt.search.constraints`. Ties go to the lower beam slot, then to the lower token number.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from nmt.config.schema import SearchConfig
from nmt.search.constraints import length_limit
from nmt.search.google import GoogleBeam
from nmt.search.interface import Hypothesis, RowModel, TranslationModel
from nmt.search.loop import run
from nmt.search.rows import STABLE_ROWS
from nmt.search.standard import StandardBeam
from nmt.search.statistics import SearchStatistics
from nmt.search.trace import Trace

__all__ = ["STABLE_ROWS", "Hypothesis", "TranslationModel", "beam_search", "length_limit"]

_BEAMS: dict[str, type[GoogleBeam] | type[StandardBeam]] = {"google": GoogleBeam, "standard": StandardBeam}


def beam_search(
    model: TranslationModel | RowModel,
    source: Tensor,
    lengths: Tensor,
    search: SearchConfig,
    *,
    prefixes: Sequence[Sequence[int]] | None = None,
    attention: bool = False,
    trace: Trace | None = None,
    statistics: SearchStatistics | None = None,
) -> list[list[Hypothesis]]:
    """The `search.n_best` best hypotheses of each sentence, best first (fewer where fewer exist).

    Parameters
    ----------
    model: on the device of `source`, in evaluation mode.
    source: [batch, time] token numbers, each sentence ending with EOS.
    lengths: [batch] numbers of tokens, EOS included.
    prefixes: for each sentence the tokens that its outputs begin with; a longer one than the limit is put out whole.
    attention: whether hypotheses carry their attention weights, if the model has any.
    trace: where the steps of the search are written to.
    statistics: where its work is added up.
    """
    beam = _BEAMS[search.finishing]
    time = source.shape[1]
    return run(
        model,
        source,
        lengths,
        search,
        lambda rows, limits, longest: beam.first(limits, lengths[rows], time, longest, search),
        search.beam,
        prefixes=prefixes,
        attention=attention,
        trace=trace,
        statistics=statistics,
    )
