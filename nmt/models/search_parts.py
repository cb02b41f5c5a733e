"""What a part of a model does in a search, see `nmt.models.search_stages`: its share of a step, and what it keeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from nmt.models.attention import Attention, Memory
from nmt.models.decoder import RecurrentDecoder
from nmt.models.dropout import NO_DROPOUT, Dropout
from nmt.models.encoder import EncoderOutput
from nmt.models.hypothesis_rows import HypothesisRows
from nmt.models.recurrent.search_step import SearchStep
from nmt.models.ring_softmax import ChunkedAffine
from nmt.models.search_layers import SearchDecoder, SearchMixing, SearchOutput
from nmt.models.seq2seq import Seq2Seq, beside
from nmt.models.stages import MIX, TARGET, ModelStage
from nmt.models.transformer_decoder import TransformerDecoder

TOPS, CONTEXTS, WEIGHTS, LOGITS = "decoder.tops", "decoder.contexts", "weights", "logits."

Carried = Mapping[str, Tensor]


class Sentences(NamedTuple):
    """What of a `Batch` there is before anything is decoded."""

    source: Tensor
    source_lengths: Tensor


@dataclass(frozen=True)
class SourceSlot:
    """A slot of sentences without a target, for stages that encode."""

    batch: Sentences
    dropout: Dropout = NO_DROPOUT
    sampling: None = None
    watch: None = None


class Asked(NamedTuple):
    """One token further.

    tokens: [rows] chosen last. came_from: [rows] rows of the step before, at first sentences. sentences: [batch] those
    that are left of those that were encoded. rows: hypotheses at hand.
    """

    tokens: Tensor
    came_from: Tensor
    sentences: Tensor
    rows: HypothesisRows


class SearchPart:
    """A stage's share of a search; what a method returns is handed on beside what came. By default it adds nothing."""

    def encode(self, slot: SourceSlot, carried: Carried) -> dict[str, Tensor]:
        """Sentences [batch, time] are to be translated."""
        return {}

    def step(self, asked: Asked, carried: Carried) -> dict[str, Tensor]:
        """One token further."""
        return {}

    def logits(self, rows: Tensor, carried: Carried) -> dict[str, Tensor]:
        """Of some rows of the newest step."""
        return {}


class Encodes(SearchPart):
    """A stage of the source: what it does in training."""

    def __init__(self, stage: ModelStage):
        self._stage = stage

    def itself(self) -> SearchPart:
        """It has nothing of its own."""
        return self

    def encode(self, slot: SourceSlot, carried: Carried) -> dict[str, Tensor]:
        """See `SearchPart`."""
        return self._stage(slot, carried)


class Several(SearchPart):
    """Parts that are one stage."""

    def __init__(self, parts: Sequence[SearchPart]):
        self._parts = parts

    def encode(self, slot: SourceSlot, carried: Carried) -> dict[str, Tensor]:
        """See `SearchPart`."""
        return self._through(carried, lambda part, found: part.encode(slot, found))

    def step(self, asked: Asked, carried: Carried) -> dict[str, Tensor]:
        """See `SearchPart`."""
        return self._through(carried, lambda part, found: part.step(asked, found))

    def logits(self, rows: Tensor, carried: Carried) -> dict[str, Tensor]:
        """See `SearchPart`."""
        return self._through(carried, lambda part, found: part.logits(rows, found))

    def _through(self, carried: Carried, go: Callable[[SearchPart, Carried], dict[str, Tensor]]) -> dict[str, Tensor]:
        found = dict(carried)
        for part in self._parts:
            found.update(go(part, found))
        return found


class Embedding(SearchPart):
    """The tokens' embeddings [rows, e]."""

    def __init__(self, model: Seq2Seq):
        self._table = model.target_embedding

    def step(self, asked: Asked, carried: Carried) -> dict[str, Tensor]:
        """See `SearchPart`."""
        return {TARGET: self._table(asked.tokens)}


class _Remembering(SearchPart):
    """What keeps things of every sentence, and of every row a state."""

    _kept: tuple[Tensor, ...] = ()  # of all sentences
    _present: tuple[Tensor, ...] = ()  # of those that are left
    _left = torch.empty(0, dtype=torch.int64)
    _state: tuple[Tensor, ...] = ()

    def _keep(self, kept: tuple[Tensor, ...], state: tuple[Tensor, ...]) -> None:
        self._kept = self._present = kept
        self._left, self._state = torch.arange(len(kept[0])), state

    def _at(self, asked: Asked) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """What was kept of the sentences that are left, and the rows' states."""
        if not torch.equal(asked.sentences, self._left):
            self._left = asked.sentences
            self._present = tuple(one.index_select(0, asked.sentences) for one in self._kept)
        return self._present, tuple(part.index_select(0, asked.came_from) for part in self._state)


class WholeDecoder(_Remembering):
    """A decoder in one piece, up to its mixing layer."""

    def __init__(self, model: Seq2Seq):
        self._model, self._decoder = model, SearchDecoder(model.decoder)

    def encode(self, slot: SourceSlot, carried: Carried) -> dict[str, Tensor]:
        """See `SearchPart`."""
        decoder, bridge, (source, lengths) = self._model.decoder, self._model.bridge, slot.batch
        encoded = _encoded(slot, carried)
        if "memory.keys" in carried:
            assert isinstance(decoder.attention, Attention)
            visible = decoder.attention.visible(lengths, source.shape[1])
            memory = Memory(carried["memory.keys"], carried["memory.values"], visible)
        else:
            memory = decoder.memory(encoded, lengths)
        state = decoder.start(bridge(encoded.final_state), 1)
        self._keep((*memory, bridge.appended(encoded.final_state)), tuple(part.squeeze(1) for part in state))
        return {}

    def step(self, asked: Asked, carried: Carried) -> dict[str, Tensor]:
        """See `SearchPart`."""
        (keys, values, mask, appended), state = self._at(asked)
        embedded = _beside(carried[TARGET], appended, asked)
        memory = Memory(keys, values, mask)
        made, self._state, weights = self._decoder(asked.tokens, embedded, state, memory, asked.rows)
        return dict(zip((TOPS, CONTEXTS), made, strict=False)) | {WEIGHTS: weights}


class Mixing(SearchPart):
    """What the output layer reads, of the whole decoder."""

    def __init__(self, model: Seq2Seq):
        self._mixing = SearchMixing(model.decoder)

    def step(self, asked: Asked, carried: Carried) -> dict[str, Tensor]:
        """See `SearchPart`."""
        return {MIX: self._mixing(carried[TOPS], carried.get(CONTEXTS))}


class TransformerLayer(_Remembering):
    """A layer with its keys and values of the tokens so far; the lowest with the input, the top one with the norm."""

    def __init__(self, model: Seq2Seq, decoder: TransformerDecoder, number: int):
        self._model, self._decoder, self._number = model, decoder, number
        self._is_last = number == len(decoder.layers) - 1

    def encode(self, slot: SourceSlot, carried: Carried) -> dict[str, Tensor]:
        """See `SearchPart`."""
        encoded = _encoded(slot, carried)
        memory = self._decoder.layer_memory(self._number, encoded, slot.batch.source_lengths)
        appended = encoded.final_state.new_empty(len(memory.mask), 0)
        if self._number == 0:
            appended = self._model.bridge.appended(encoded.final_state)
        heads, width = self._decoder.head_shape
        nothing = encoded.final_state.new_zeros(len(memory.mask), heads, 0, width)
        self._keep((*memory, appended), (nothing, nothing))
        return {}

    def step(self, asked: Asked, carried: Carried) -> dict[str, Tensor]:
        """See `SearchPart`."""
        (keys, values, mask, appended), state = self._at(asked)
        rows, decoder = asked.rows, self._decoder
        past = rows.spread(state[0]), rows.spread(state[1])
        if self._number == 0:
            embedded = rows.spread(_beside(carried[TARGET], appended, asked))
            x = decoder.input(embedded, first=past[0].shape[3], count=1)
        else:
            x = carried[f"decoder.{self._number}"]
        x, new, weights = decoder.layer_step(self._number, x, past, Memory(keys, values, mask))
        self._state = rows.pick(new[0]), rows.pick(new[1])
        if self._is_last:
            return {MIX: rows.pick(decoder.norm(x)), WEIGHTS: weights}
        return {f"decoder.{self._number + 1}": x}


class RecurrentLayer(_Remembering):
    """A layer of a decoder that attends to nothing: the lowest with the bridge, which makes the first state of all."""

    def __init__(self, model: Seq2Seq, decoder: RecurrentDecoder, number: int):
        self._model, self._decoder, self._number = model, decoder, number
        self._is_last = number == len(list(decoder.cells)) - 1
        self._step = SearchStep(decoder, None, [number]) if SearchStep.usable(decoder) else None

    def encode(self, slot: SourceSlot, carried: Carried) -> dict[str, Tensor]:
        """See `SearchPart`."""
        decoder, number = self._decoder, self._number
        firsts: dict[str, Tensor] = {}
        encoded = _encoded(slot, carried)
        appended = encoded.final_state.new_empty(len(slot.batch.source), 0)
        if number == 0:
            appended = self._model.bridge.appended(encoded.final_state)
            widths = [cell.state_parts * cell.units for cell in decoder.cells]
            split = self._model.bridge(encoded.final_state).split(widths, dim=-1)
            firsts = {f"decoder.first.{layer}": first for layer, first in enumerate(split)}
        state = {**carried, **firsts}[f"decoder.first.{number}"].split(decoder.units, dim=-1)
        self._keep((*decoder.memory(encoded, slot.batch.source_lengths), appended), state)
        return firsts

    def step(self, asked: Asked, carried: Carried) -> dict[str, Tensor]:
        """See `SearchPart`."""
        (keys, values, mask, appended), state = self._at(asked)
        number, decoder = self._number, self._decoder
        x = carried[f"decoder.{number}"] if number else _beside(carried[TARGET], appended, asked)
        step = decoder.step_layer if self._step is None else self._step.layer
        x, self._state = step(number, x, state)
        if not self._is_last:
            return {f"decoder.{number + 1}": x}
        _, weights = decoder.attention.attend(asked.rows.spread(x), Memory(keys, values, mask))
        return {MIX: x, WEIGHTS: weights}


class OutputWords(SearchPart):
    """The output layer, or a chunk of its words."""

    def __init__(self, model: Seq2Seq, number: int):
        layer, self._number = model.get_submodule("output"), number
        whole = (model.output.weight, model.output.bias)
        weight, bias = layer.chunk(number) if isinstance(layer, ChunkedAffine) else whole
        self._layer, self._mix = SearchOutput(weight, bias), weight.new_empty(0)

    def step(self, asked: Asked, carried: Carried) -> dict[str, Tensor]:
        """See `SearchPart`."""
        self._mix = carried[MIX]
        return {}

    def logits(self, rows: Tensor, carried: Carried) -> dict[str, Tensor]:
        """See `SearchPart`."""
        return {f"{LOGITS}{self._number}": self._layer(self._mix.index_select(0, rows)).clone()}


def _encoded(slot: SourceSlot, carried: Carried) -> EncoderOutput:
    """What is carried of the encoder's output; a tensor without units stands for what nobody reads."""
    batch, time = slot.batch.source.shape
    outputs, final_state = carried.get("outputs"), carried.get("final_state")
    like = next((one for one in (outputs, final_state) if one is not None), torch.empty(0))
    return EncoderOutput(
        like.new_empty(time, batch, 0) if outputs is None else outputs,
        like.new_empty(batch, 0) if final_state is None else final_state,
        carried.get("values"),
    )


def _beside(embedded: Tensor, appended: Tensor, asked: Asked) -> Tensor:
    """Embeddings [rows, e] with what a bridge puts beside them."""
    return beside(embedded, asked.rows.shared(appended)) if appended.shape[-1] else embedded
