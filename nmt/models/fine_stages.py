"""A model cut wherever it can be: embeddings, layers of encoder and decoder, output layer.

    source_embedding   encoder.…   target_embedding   attention.keys   decoder   decoder.mix   output
                                                      decoder.<layer>

What couples the steps of several layers is one stage: the loop of a recurrent decoder, without what is made of all
steps at once before and after it; and with scheduled sampling everything from the target's embedding to the loss. Of a
model whose rows are cut (`cut_rows`), each chunk of words is a stage:
output.0, output.1, ….
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from torch import Tensor, nn

from nmt.models.attention import Attention, Memory, NoAttention
from nmt.models.decoder import RecurrentDecoder
from nmt.models.encoder import EncoderOutput
from nmt.models.ring_embedding import ChunkedTable, RingEmbedding
from nmt.models.ring_softmax import ChunkedAffine, RingSoftmax
from nmt.models.seq2seq import Seq2Seq, beside
from nmt.models.stages import MIX, SOURCE, TARGET, ModelStage, Part, Run, Slot, stages_of

SAMPLES = "with scheduled sampling each step reads what the output layer made of the step before"
SOFTMAX = "the softmax is over the whole vocabulary"
FED = "each step of its lowest layer is fed the context that its top layer has asked for the step before"
TOGETHER = "its layers go through the target together, step by step"
UNKNOWN = "it does not say how it may be cut"


def fine_stages(model: Seq2Seq, sampled: bool = False, directions: bool = True) -> list[ModelStage]:
    """The finest stages of a model; what runs through them has the bits of the model in one piece.

    sampled: for scheduled sampling.
    directions: whether to cut the two directions of an encoder's layer from each other.
    """
    fields = _fields_read(model)
    source = _embedding(
        "source_embedding",
        model.get_submodule("source_embedding"),
        lambda slot: slot.batch.source.t(),
        lambda slot, rows: model.read_source(rows, slot.batch.source_lengths, slot.dropout),
        SOURCE,
    )
    target = _embedding(
        "target_embedding",
        model.get_submodule("target_embedding"),
        lambda slot: slot.batch.target_input.t(),
        lambda slot, rows: model.read_target(rows, slot.dropout),
        TARGET,
    )
    parts = [*source, *_encoder_parts(model, fields, directions)]
    if sampled:
        parts.append(_joined("decoder_output", (*target, _decoder_part(model, fields), *_output(model)), SAMPLES))
    else:
        parts += [*target, *_decoder_parts(model, fields), *_output(model)]
    return stages_of(parts, model.names_in)


def cut_rows(model: Seq2Seq, table_chunks: int = 1) -> None:
    """Make chunks of words parameters of their own, so that each is a stage of its own among the `fine_stages`.

    Those of the output layer in as many chunks as the loss is computed in, those of embedding tables in `table_chunks`.
    A matrix with several uses stays whole. No more than its stages can be run of such a model.
    """
    embedding, chunks = model.config.embedding, model.loss_config.vocab_chunks
    if chunks > 1 and not embedding.tie_output:
        model.add_module("output", ChunkedAffine(model.output, chunks))
    if table_chunks > 1 and not embedding.share:
        model.add_module("source_embedding", ChunkedTable(model.source_embedding, table_chunks))
        if not embedding.tie_output:
            model.add_module("target_embedding", ChunkedTable(model.target_embedding, table_chunks))


def _embedding(
    name: str,
    table: nn.Module,
    words: Callable[[Slot], Tensor],
    finish: Callable[[Slot, Tensor], Tensor],
    makes: str,
) -> list[Part]:
    if isinstance(table, ChunkedTable):
        return RingEmbedding(table, name, words, finish, makes).parts()

    def embed(slot: Slot, carried: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {makes: finish(slot, table(words(slot)))}

    return [Part(name, embed, (), (makes,), (table,))]


def _output(model: Seq2Seq) -> list[Part]:
    layer, config = model.get_submodule("output"), model.loss_config
    if isinstance(layer, ChunkedAffine):
        return RingSoftmax(layer, config.label_smoothing, not config.recompute_logits).parts()

    def output(slot: Slot, carried: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"loss": model.loss(slot, carried[MIX])}

    return [Part("output", output, (MIX,), ("loss",), (layer,), SOFTMAX)]


def _fields_read(model: Seq2Seq) -> tuple[str, ...]:
    """The fields of `EncoderOutput` that the decoder reads; names only, the encoder may not have them all."""
    decoder = model.decoder
    attends = not (isinstance(decoder, RecurrentDecoder) and isinstance(decoder.attention, NoAttention))
    return (
        *(("outputs", "values") if attends else ()),
        *(("final_state",) if model.bridge.reads_final_state() else ()),
    )


def _encoder_parts(model: Seq2Seq, fields: Collection[str], directions: bool) -> list[Part]:
    encoder = model.encoder
    if not hasattr(encoder, "parts"):

        def whole(slot: Slot, carried: Mapping[str, Tensor]) -> dict[str, Tensor]:
            encoded = encoder(carried[SOURCE], slot.batch.source_lengths, slot.dropout)
            return {name: tensor for name, tensor in encoded._asdict().items() if tensor is not None}

        parts = [Part("encoder", whole, (SOURCE,), fields, (encoder,), UNKNOWN)]
    else:
        parts = encoder.parts(fields, directions)

    def reordered(run: Run) -> Run:
        def reordering(slot: Slot, carried: Mapping[str, Tensor]) -> dict[str, Tensor]:
            lengths = slot.batch.source_lengths
            found = run(slot, carried)
            made = [name for name in ("outputs", "values") if name in found and name not in carried]
            return found | {name: model.reordered(found[name], lengths) for name in made}

        return reordering

    return [replace(part, run=reordered(part.run)) for part in parts]


def _decoder_parts(model: Seq2Seq, fields: Collection[str]) -> list[Part]:
    decoder = model.decoder
    if not hasattr(decoder, "parts"):
        if isinstance(decoder, RecurrentDecoder) and type(decoder).forward is RecurrentDecoder.forward:
            if isinstance(decoder.attention, Attention):
                return _attentional_parts(model, decoder, decoder.attention, fields)
            if decoder.attention.context_units:
                return [_decoder_part(model, fields, FED)]
            dense = decoder.residual.active and decoder.residual.config.dense
            if not dense and all(cell.usable_kernel() is not None for cell in decoder.cells):
                return _layer_parts(model, decoder, fields)
            return [_decoder_part(model, fields, TOGETHER)]
        return [_decoder_part(model, fields, UNKNOWN)]
    parts: list[Part] = model.decoder.parts()
    first, last = parts[0], parts[-1]

    def entering(slot: Slot, carried: Mapping[str, Tensor]) -> dict[str, Tensor]:
        appended = model.bridge.appended(_encoded(slot, carried).final_state)
        return first.run(slot, {**carried, TARGET: beside(carried[TARGET], appended)})

    reads = {*first.reads, *({"final_state"} & set(fields))}
    parts[0] = replace(first, run=entering, reads=reads, modules=(*first.modules, model.bridge))
    run = parts[-1].run

    def dropping(slot: Slot, carried: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {MIX: slot.dropout("mix", run(slot, carried)[MIX], model.config.dropout_mix)}

    parts[-1] = replace(last if len(parts) > 1 else parts[0], run=dropping)
    return parts


def _attentional_parts(
    model: Seq2Seq, decoder: RecurrentDecoder, attention: Attention, fields: Collection[str]
) -> list[Part]:
    """The loop over the target, with what belongs to all steps at once cut off: keys, and the mixing layer."""
    apart = attention.projected and type(attention).memory is Attention.memory
    memory = ("memory.keys", "memory.values") if apart else ("outputs", "values")
    made = ("decoder.tops", "decoder.contexts")

    def keys(slot: Slot, carried: Mapping[str, Tensor]) -> dict[str, Tensor]:
        outputs = carried["outputs"]
        encoded = EncoderOutput(outputs, outputs.new_empty(0), carried.get("values"))
        keys, values, _ = attention.memory(encoded, slot.batch.source_lengths)
        return {"memory.keys": keys, "memory.values": values}

    def loop(slot: Slot, carried: Mapping[str, Tensor]) -> dict[str, Tensor]:
        lengths, final_state = slot.batch.source_lengths, _encoded(slot, carried).final_state
        appended = model.bridge.appended(final_state)
        if apart:
            visible = attention.visible(lengths, slot.batch.source.shape[1])
            remembered = Memory(carried["memory.keys"], carried["memory.values"], visible)
        else:
            remembered = decoder.memory(_encoded(slot, carried), lengths)
        embedded, first = beside(carried[TARGET], appended), model.bridge(final_state)
        steps = decoder.steps(embedded, remembered, first, slot.dropout, watch=slot.watch)
        return dict(zip(made, steps, strict=True))

    def mix(slot: Slot, carried: Mapping[str, Tensor]) -> dict[str, Tensor]:
        mixed = decoder.mixed(*(carried[name] for name in made))
        return {MIX: slot.dropout("mix", mixed, model.config.dropout_mix)}

    assert decoder.mix is not None  # as there is attention
    reads = (TARGET, *memory, *({"final_state"} & set(fields)))
    elsewhere = (decoder.mix, *((attention.key,) if apart else ()))
    parts = [
        Part("decoder", loop, reads, made, (decoder, model.bridge), FED, elsewhere),
        Part("decoder.mix", mix, made, (MIX,), (decoder.mix,)),
    ]
    return [Part("attention.keys", keys, ("outputs", "values"), memory, (attention.key,)), *parts] if apart else parts


def _layer_parts(model: Seq2Seq, decoder: RecurrentDecoder, fields: Collection[str]) -> list[Part]:
    """Layers of a decoder that attends to nothing: the first with the bridge, which makes the first state of all."""
    cells = list(decoder.cells)
    widths = [cell.state_parts * cell.units for cell in cells]
    firsts = [f"decoder.first.{number}" for number in range(len(cells))]

    def part(number: int) -> Part:
        last, below = number == len(cells) - 1, f"decoder.{number}"
        above = MIX if last else f"decoder.{number + 1}"

        def run(slot: Slot, carried: Mapping[str, Tensor]) -> dict[str, Tensor]:
            found = dict(carried)
            if number == 0:
                final_state = _encoded(slot, carried).final_state
                found[below] = beside(carried[TARGET], model.bridge.appended(final_state))
                found.update(zip(firsts, model.bridge(final_state).split(widths, dim=-1), strict=True))
            y = decoder.layer(number, found[below], found[firsts[number]], slot.dropout, slot.watch)
            return found | {above: slot.dropout("mix", y, model.config.dropout_mix) if last else y}

        if number:
            return Part(f"decoder.{number}", run, (below, firsts[number]), (above,), (cells[number],))
        reads = (TARGET, *({"final_state"} & set(fields)))
        modules = (cells[0], decoder.residual, model.bridge)
        return Part("decoder.0", run, reads, (above, *firsts[1:]), modules)

    return [part(number) for number in range(len(cells))]


def _decoder_part(model: Seq2Seq, fields: Collection[str], couples: str = "") -> Part:
    """The whole decoder with its attention and the bridge."""

    def decoder(slot: Slot, carried: Mapping[str, Tensor]) -> dict[str, Tensor]:
        encoded = _encoded(slot, carried)
        return {MIX: model.decode(slot.batch, carried[TARGET], encoded, slot.dropout, slot.sampling, slot.watch)}

    return Part("decoder", decoder, (TARGET, *fields), (MIX,), (model.decoder, model.bridge), couples)


def _encoded(slot: Slot, carried: Mapping[str, Tensor]) -> EncoderOutput:
    """What is carried of the encoder's output; a tensor without units stands for what nobody reads."""
    (batch, time), like = slot.batch.source.shape, carried[TARGET]
    outputs, final_state = carried.get("outputs"), carried.get("final_state")
    return EncoderOutput(
        like.new_empty(time, batch, 0) if outputs is None else outputs,
        like.new_empty(batch, 0) if final_state is None else final_state,
        carried.get("values"),
    )


def _joined(name: str, parts: Collection[Part], couples: str) -> Part:
    """Parts that follow each other as one."""

    def run(slot: Slot, carried: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = dict(carried)
        for part in parts:
            found.update(part.run(slot, found))
        return {"loss": found["loss"]}

    made = {name for part in parts for name in part.makes}
    reads = {name for part in parts for name in part.reads} - made
    modules = tuple(module for part in parts for module in part.modules)
    return Part(name, run, reads, ("loss",), modules, couples)
