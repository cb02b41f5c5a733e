"""The loop over output tokens that beam search and sampling share.

What comes out for a sentence depends on that sentence alone, to the last bit on a CPU in float32: everything is
computed row by row, a batch of fewer than `STABLE_ROWS` rows is filled up with copies, and sentences that are done
leave the batch when they have become many.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nmt.config.schema import SearchConfig
from nmt.search.constraints import Constraints, length_floor, length_limit
from nmt.search.hypotheses import Hypotheses
from nmt.search.interface import Hypothesis, TranslationModel
from nmt.search.record import Record
from nmt.search.rows import STABLE_ROWS, reorder, take
from nmt.search.trace import Trace

CUT_AT = 0.75  # share of unfinished sentences below which the finished ones leave the batch

First = Callable[[Tensor, Tensor, int], Hypotheses]  # rows [batch], limits [batch], the largest limit


@torch.inference_mode()
def run(
    model: TranslationModel,
    source: Tensor,
    lengths: Tensor,
    search: SearchConfig,
    first: First,
    k: int,
    *,
    prefixes: Sequence[Sequence[int]] | None = None,
    attention: bool = False,
    trace: Trace | None = None,
) -> list[list[Hypothesis]]:
    """Let the hypotheses that `first` makes, `k` a sentence, grow until every sentence is done; see `beam_search`."""
    sentences, device = len(source), source.device
    source_lengths = lengths.tolist()
    limits = [length_limit(length - 1, search) for length in source_lengths]
    floors = [length_floor(length - 1, search) for length in source_lengths]
    if prefixes is not None:
        limits = [max(limit, len(prefix)) for limit, prefix in zip(limits, prefixes, strict=True)]
    longest = max(limits)
    # Rows beyond the sentences are copies of the last one, and nobody asks for their hypotheses.
    rows = torch.arange(max(sentences, STABLE_ROWS), device=device).clamp(max=sentences - 1)
    encoded = model.encode(source[rows], lengths[rows])
    state = model.start(encoded, k)
    floor = math.ceil(STABLE_ROWS / k)  # from here on a product's rows are hypotheses
    rows = rows[: max(sentences, floor)]
    encoded, state = take(encoded, slice(len(rows))), take(state, slice(len(rows)))
    hypotheses = first(rows, torch.tensor(limits, device=device)[rows], longest)
    constraints = Constraints.first(floors, prefixes, k, search, device)
    constraints = constraints and constraints.take(rows)
    everything = hypotheses  # all sentences, each as it was when the batch was last cut
    present = torch.arange(len(rows), device=device)  # the rows of `everything` that `hypotheses` holds
    record = Record(len(rows))

    for length in range(1, longest + 1):
        logits, state, weights = model.step(hypotheses.tokens, state, encoded)
        log_probabilities = torch.log_softmax(logits.float(), dim=-1)
        if constraints is not None:
            constraints.apply(log_probabilities, length)
        hypotheses, step = hypotheses.advance(log_probabilities, weights, length)
        del log_probabilities  # as large as the logits: the next step's take its place in memory
        live = hypotheses.live()
        record.add(present, step, weights if attention else None, live)
        count = int(live.sum())
        if count == 0:
            break
        parents = step.parents[:, :k]
        if k > 1 and search.method == "beam":
            state = reorder(state, parents)
        if constraints is not None:
            constraints = constraints.after(parents, hypotheses.tokens)
        if len(present) > floor and count <= CUT_AT * len(present):
            everything = everything.put(present, hypotheses)
            # A stable sort brings the live ones to the front; finished ones behind them keep up the floor.
            kept = live.int().sort(descending=True, stable=True).indices[: max(count, floor)]
            present, hypotheses = present[kept], hypotheses.take(kept)
            encoded, state, constraints = take(encoded, kept), take(state, kept), constraints and constraints.take(kept)
    outputs = everything.put(present, hypotheses).outputs()
    found, traces = record.read(
        outputs,
        source_lengths,
        search.n_best,
        distinct=search.diverse_groups > 1,
        attention=attention,
        trace=trace is not None,
    )
    if trace is not None:
        trace.sentences += traces
    return found
