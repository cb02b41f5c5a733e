"""What each stage of a model does in a search: it keeps its own share of the decoder's state, and of no other stage.

A search (`nmt.search.distant`) makes three kinds of calls, each of which goes through all stages in order:

    encode   sentences: source stages run as in training; stages of the decoder keep what they will attend to
    step     one token further: tokens, and where each row's state comes from. Answer: `weights` of the attention
    logits   rows of the newest step. Answer: `logits.0`, `logits.1`, …, side by side those of all words

The bits are those of `nmt.models.decoding`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nmt.errors import UserError
from nmt.models.decoder import RecurrentDecoder
from nmt.models.hypothesis_rows import HypothesisRows
from nmt.models.search_parts import (
    LOGITS,
    WEIGHTS,
    Asked,
    Carried,
    Embedding,
    Encodes,
    Mixing,
    OutputWords,
    RecurrentLayer,
    SearchPart,
    Sentences,
    Several,
    SourceSlot,
    TransformerLayer,
    WholeDecoder,
)
from nmt.models.seq2seq import Seq2Seq
from nmt.models.stages import ModelStage
from nmt.models.transformer_decoder import TransformerDecoder

ANSWERS = (WEIGHTS, LOGITS)

Make = Callable[[], SearchPart]
"""Makes a stage's part once its parameters are there; they must not change as long as it is used."""


class StageSearch:
    """What one stage does in the searches of one text."""

    def __init__(self, make: Make, is_last: bool):
        self._make, self._is_last = make, is_last
        self._part: SearchPart | None = None

    def __call__(self, call: str, given: Carried, carried: Carried) -> dict[str, Tensor]:
        """Take a call through the stage; returns what it hands on, the last stage the answer."""
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bool(given["autocast"])):
            if self._part is None:
                self._part = self._make()
            found = _taken(self._part, call, given, carried)
        return {name: one for name, one in found.items() if name.startswith(ANSWERS)} if self._is_last else found


def search_stages(model: Seq2Seq, stages: Sequence[ModelStage]) -> list[StageSearch]:
    """For each fine stage of a model what it does in the searches of a text, from parameters that it has by then.

    Raises UserError for a decoder of which it is not known how to step through its stages.
    """
    names = [stage.name for stage in stages]
    source = names.index("target_embedding") if "target_embedding" in names else names.index("decoder_output")
    makes = [
        Encodes(stage).itself if number < source or stage.name == "attention.keys" else _of(model, stage.name, names)
        for number, stage in enumerate(stages)
    ]
    return [StageSearch(make, is_last=make is makes[-1]) for make in makes]


def _taken(part: SearchPart, call: str, given: Carried, carried: Carried) -> dict[str, Tensor]:
    if call == "encode":
        slot = SourceSlot(Sentences(given["source"], given["lengths"]))
        found = part.encode(slot, carried)
        return found if isinstance(part, Encodes) else {**carried, **found}
    if call == "logits":
        return {**carried, **part.logits(given["rows"], carried)}
    batch, k = given["grid"].tolist()
    rows = HypothesisRows(batch, k, given.get("places"))
    asked = Asked(given["tokens"], given["came_from"], given["sentences"], rows)
    return {**carried, **part.step(asked, carried)}


def _of(model: Seq2Seq, name: str, names: Sequence[str]) -> Make:
    """What a stage behind the source does."""
    kind, _, number = name.partition(".")
    decoder = model.decoder
    if name == "decoder_output":
        return lambda: Several([Embedding(model), WholeDecoder(model), Mixing(model), OutputWords(model, 0)])
    if name == "target_embedding":
        return lambda: Embedding(model)
    if kind == "output":
        return lambda: OutputWords(model, int(number or 0))
    if name == "decoder.mix":
        return lambda: Mixing(model)
    if name == "decoder":
        return lambda: WholeDecoder(model) if "decoder.mix" in names else Several([WholeDecoder(model), Mixing(model)])
    if kind == "decoder" and isinstance(decoder, TransformerDecoder) and type(decoder).step is TransformerDecoder.step:
        return lambda: TransformerLayer(model, decoder, int(number))
    if kind == "decoder" and isinstance(decoder, RecurrentDecoder):
        return lambda: RecurrentLayer(model, decoder, int(number))
    raise UserError(
        f"its stage '{name}' does not say what it does in a search, so that no process of a ring can decode",
        where=f"model.decoder.name={model.config.decoder.name}",
        hint="distribution.whole_model=true, or a decoder without `parts`, which is one stage",
    )
