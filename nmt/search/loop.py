"""The loop over output tokens that beam search and sampling share.

What comes out for a sentence depends on that sentence alone, to the last bit on a CPU in float32: everything is
computed row by row, a batch of fewer than `STABLE_ROWS` rows is filled up with copies, and sentences that are done
leave the batch when they have become many.

On a CPU the model's rows are the hypotheses that go on and no others. On other devices, where the host would have to
wait for their number, they are all places of the beams, and the host looks every `LOOK_EVERY` steps only whether
sentences are done.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nmt.config.schema import SearchConfig
from nmt.search.at_hand import AtHand
from nmt.search.constraints import Constraints, length_floor, length_limit
from nmt.search.hypotheses import Hypotheses
from nmt.search.interface import Hypothesis, RowModel, TranslationModel
from nmt.search.next_tokens import Changed, NextTokens
from nmt.search.record import Record
from nmt.search.rows import STABLE_ROWS, in_rows, take
from nmt.search.statistics import SearchStatistics
from nmt.search.trace import Trace

CUT_AT = 0.75  # share of unfinished sentences below which the finished ones leave the batch
LOOK_EVERY = 8  # steps

First = Callable[[Tensor, Tensor, int], Hypotheses]  # rows [batch], limits [batch], the largest limit


def reads_freely(device: torch.device) -> bool:
    """Whether the host may look at tensors of this device without waiting."""
    return device.type == "cpu"


@torch.inference_mode()
def run(
    model: TranslationModel | RowModel,
    source: Tensor,
    lengths: Tensor,
    search: SearchConfig,
    first: First,
    k: int,
    *,
    prefixes: Sequence[Sequence[int]] | None = None,
    attention: bool = False,
    trace: Trace | None = None,
    statistics: SearchStatistics | None = None,
) -> list[list[Hypothesis]]:
    """Let the hypotheses that `first` makes, `k` a sentence, grow until every sentence is done; see `beam_search`."""
    model = in_rows(model)
    sentences, device = len(source), source.device
    waits = reads_freely(device)
    source_lengths = lengths.tolist()
    limits = [length_limit(length - 1, search) for length in source_lengths]
    floors = [length_floor(length - 1, search) for length in source_lengths]
    if prefixes is not None:
        limits = [max(limit, len(prefix)) for limit, prefix in zip(limits, prefixes, strict=True)]
    longest = max(limits)
    # Rows beyond the sentences are copies of the last one, and nobody asks for their hypotheses.
    rows = torch.arange(max(sentences, STABLE_ROWS), device=device).clamp(max=sentences - 1)
    encoded = model.encode(source[rows], lengths[rows])
    if statistics is not None:
        statistics.begin(source_lengths, source[rows].numel())
    state = model.start(encoded)
    floor = math.ceil(STABLE_ROWS / k)  # from here on a product's rows are hypotheses
    rows = rows[: max(sentences, floor)]
    encoded = take(encoded, slice(len(rows)))
    hypotheses = first(rows, torch.tensor(limits, device=device)[rows], longest)
    constraints = Constraints.first(floors, prefixes, k, search, device)
    constraints = constraints and constraints.take(rows)
    everything = hypotheses  # all sentences, each as it was when the batch was last cut
    present = torch.arange(len(rows), device=device)  # the rows of `everything` that `hypotheses` holds
    record = Record(len(rows))
    going = hypotheses.going()
    at_hand = AtHand.of(going, packed=waits and model.packs, looks=waits)
    state = take(state, at_hand.rows.shared(torch.arange(len(rows), device=device)))

    for length in range(1, longest + 1):
        outputs, state, weights = model.step(at_hand.rows.pick(hypotheses.tokens), state, encoded, at_hand.rows)
        if statistics is not None:
            statistics.step(going & (present < sentences).unsqueeze(1), at_hand.count)
        next_tokens: NextTokens = at_hand.predicted(model, outputs)
        if constraints is not None:
            log_probabilities = next_tokens.log_probabilities()
            constraints.apply(log_probabilities, length)
            next_tokens = Changed(log_probabilities)
        hypotheses, step = hypotheses.advance(next_tokens, weights, length)
        going = hypotheses.going()
        live = going.any(dim=1)
        record.add(present, step, weights if attention else None, live)
        parents = step.parents[:, :k]
        if constraints is not None:
            constraints = constraints.after(parents, hypotheses.tokens)
        kept: Tensor | None = None
        if waits or length % LOOK_EVERY == 0:
            count = int(live.sum())
            if count == 0:
                break
            if len(present) > floor and count <= CUT_AT * len(present):
                everything = everything.put(present, hypotheses)
                # A stable sort brings the live ones to the front; finished ones behind them keep up the floor.
                kept = live.int().sort(descending=True, stable=True).indices[: max(count, floor)]
                present, hypotheses, going = present[kept], hypotheses.take(kept), going[kept]
                encoded, constraints = take(encoded, kept), constraints and constraints.take(kept)
        at_hand, came_from = at_hand.after(parents, kept, going)
        if came_from is not None:
            state = take(state, came_from)
    found, traces = record.read(
        everything.put(present, hypotheses).outputs(),
        source_lengths,
        search.n_best,
        distinct=search.diverse_groups > 1,
        attention=attention,
        trace=trace is not None,
    )
    if trace is not None:
        trace.sentences += traces
    return found
