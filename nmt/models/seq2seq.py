"""The sequence-to-sequence model: embeddings, encoder, bridge, decoder and softmax layer, as a configuration says."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from nmt import registry
from nmt.config.schema import LossConfig, ModelConfig
from nmt.config.widths import decoder_stack_units
from nmt.errors import UserError, did_you_mean
from nmt.models.attention import Memory
from nmt.models.decoder import DecoderState, Feed
from nmt.models.dropout import NO_DROPOUT, Dropout
from nmt.models.encoder import EncoderOutput, reorder, reversal
from nmt.models.initialisation import initialise
from nmt.models.layers import Affine, Table
from nmt.models.loss import real_tokens, scored_tokens, token_losses, training_loss
from nmt.models.scheduled_sampling import ScheduledSampling
from nmt.models.stages import Batch, ModelStage, Slot
from nmt.models.watch import GradientWatch

if TYPE_CHECKING:
    from nmt.models.decoding import RowsOfSeq2Seq


class Encoded(NamedTuple):
    """Encoded source sentences; every tensor has the batch first, so sentences are picked by indexing each field.

    keys, values, mask: see `nmt.models.attention.Memory`. final_state: [batch, S].
    appended: [batch, u], what a bridge puts beside the embedding in every input of the decoder; u may be 0.
    """

    keys: Tensor
    values: Tensor
    mask: Tensor
    final_state: Tensor
    appended: Tensor


class Seq2Seq(nn.Module):
    """An encoder-decoder with or without attention (Britz et al. 2017, section 2).

    Pure: a call changes nothing on the module, and all randomness is handed in as `dropout`.

    Parameters
    ----------
    config: the architecture.
    source_vocab, target_vocab: vocabulary sizes, special tokens included.
    loss: label smoothing and chunks of the training loss.

    Raises UserError for unknown component options, a shared table of two sizes, and a tied layer of another width.
    """

    def __init__(self, config: ModelConfig, source_vocab: int, target_vocab: int, loss: LossConfig):
        super().__init__()
        self.config, self.loss_config = config, loss
        self.source_vocab, self.target_vocab = source_vocab, target_vocab
        e = config.embedding.units
        if config.embedding.share and source_vocab != target_vocab:
            raise UserError(
                f"vocabularies of {source_vocab} and {target_vocab} entries cannot share a table",
                where="model.embedding.share",
                hint="tokenizer.joint=true, or model.embedding.share=false",
            )
        self.source_embedding = Table(source_vocab, e)
        self.target_embedding = self.source_embedding if config.embedding.share else Table(target_vocab, e)
        self.encoder = _component("encoder", config.encoder, e)
        query_units = decoder_stack_units(config, self.encoder.value_units)
        attention = _component(
            "attention", config.attention, query_units, self.encoder.output_units, self.encoder.value_units
        )
        self.decoder = _component("decoder", config.decoder, attention, e + config.bridge.units)
        self.bridge = _component("bridge", config.bridge, self.encoder.state_units, self.decoder.state_units)
        self.output = Affine(self.decoder.output_units, target_vocab)
        if config.embedding.tie_output:
            if self.decoder.output_units != e:
                raise UserError(
                    f"the output layer has {self.decoder.output_units} columns and the embedding {e}",
                    where="model.embedding.tie_output",
                    hint="make model.embedding.units and model.decoder.units equal",
                )
            self.output.weight = self.target_embedding.weight

    def encode(self, source: Tensor, lengths: Tensor, dropout: Dropout = NO_DROPOUT) -> Encoded:
        """Encode sentences [batch, time] of `lengths` [batch] tokens (EOS counted); padding holds any valid id."""
        encoded = self._encode(source, lengths, dropout)
        memory = self.decoder.memory(encoded, lengths)
        final_state = encoded.final_state
        return Encoded(memory.keys, memory.values, memory.mask, final_state, self.bridge.appended(final_state))

    def start(self, encoded: Encoded, k: int) -> DecoderState:
        """The decoder's state before the first token, for k hypotheses a sentence: tensors [batch, k, …]."""
        return self.decoder.start(self.bridge(encoded.final_state), k)

    def step(self, tokens: Tensor, state: DecoderState, encoded: Encoded) -> tuple[Tensor, DecoderState, Tensor]:
        """One decoding step of k hypotheses a sentence, which share the sentence's memory.

        `tokens` [batch, k] are the previous tokens (SOS at first). Returns logits [batch, k, V], the next state and the
        attention weights [batch, k, time] (zeros without attention).
        """
        memory = Memory(encoded.keys, encoded.values, encoded.mask)
        embedded = beside(self.target_embedding(tokens), encoded.appended.unsqueeze(1))
        mix, state, weights = self.decoder.step(embedded, state, memory)
        return self.output(mix), state, weights

    def in_rows(self, steps: int = 0) -> RowsOfSeq2Seq:
        """The form that a search drives, with what all steps share made in advance; see `nmt.models.decoding`."""
        from nmt.models.decoding import RowsOfSeq2Seq

        return RowsOfSeq2Seq(self, steps)

    def forward(self, batch: Batch, dropout: Dropout = NO_DROPOUT, label_smoothing: float = 0.0) -> Tensor:
        """Losses of a batch's real target tokens under teacher forcing, in nats, time by time: [tokens].

        Without smoothing these are the negative log-probabilities that log-perplexity averages.
        """
        mix = self._decode(batch, self._encode(batch.source, batch.source_lengths, dropout), dropout)
        hidden, targets = real_tokens(mix, batch, int(batch.target_lengths.sum()))
        return token_losses(hidden, *self._output_layer, targets, label_smoothing, self.loss_config.vocab_chunks)

    def score(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What `forward` gives without dropout, and whether each token is the model's first choice: [tokens] each."""
        mix = self._decode(batch, self._encode(batch.source, batch.source_lengths, NO_DROPOUT), NO_DROPOUT)
        hidden, targets = real_tokens(mix, batch, int(batch.target_lengths.sum()))
        return scored_tokens(hidden, *self._output_layer, targets, self.loss_config.vocab_chunks)

    def stages(self, sampled: bool = False, fine: bool = False, directions: bool = True) -> list[ModelStage]:
        """Encoder, decoder, and output layer with the loss, for a `distributed.strategy.Workload`.

        They carry the fields of `EncoderOutput`, then {"mix"}, then {"loss"}: the slot's sum of token losses. With
        scheduled sampling (`sampled`) decoder and output layer are one stage, because each step of the one needs the
        other's step before.

        `fine`: cut wherever the model can be, with `directions` between those of an encoder's layer too; see
        `nmt.models.fine_stages`.
        """
        if fine:
            from nmt.models.fine_stages import fine_stages

            return fine_stages(self, sampled, directions)

        def encoder(slot: Slot, carried: Mapping[str, Tensor]) -> dict[str, Tensor]:
            encoded = self._encode(slot.batch.source, slot.batch.source_lengths, slot.dropout)
            return {name: tensor for name, tensor in encoded._asdict().items() if tensor is not None}

        def decoder(slot: Slot, carried: Mapping[str, Tensor]) -> dict[str, Tensor]:
            encoded = EncoderOutput(**carried)
            return {"mix": self._decode(slot.batch, encoded, slot.dropout, slot.sampling, slot.watch)}

        def output(slot: Slot, carried: Mapping[str, Tensor]) -> dict[str, Tensor]:
            return {"loss": self.loss(slot, carried["mix"])}

        encoding = self.names_in(self.source_embedding, self.encoder)
        decoding = (self.target_embedding, self.bridge, self.decoder)
        if sampled:
            both = ModelStage(
                "decoder_output",
                lambda slot, carried: output(slot, decoder(slot, carried)),
                self.names_in(*decoding, self.output),
            )
            return [ModelStage("encoder", encoder, encoding), both]
        return [
            ModelStage("encoder", encoder, encoding),
            ModelStage("decoder", decoder, self.names_in(*decoding)),
            ModelStage("output", output, self.names_in(self.output)),
        ]

    def names_in(self, *modules: nn.Module) -> tuple[str, ...]:
        """The model's names for the parameters of some of its modules; a shared one has its first name everywhere."""
        used = {id(parameter) for module in modules for parameter in module.parameters()}
        return tuple(name for name, parameter in self.named_parameters() if id(parameter) in used)

    def embed_source(self, source: Tensor, lengths: Tensor, dropout: Dropout) -> Tensor:
        """Embeddings [time, batch, e] in the order in which the encoder reads them.

        A reversed source is reversed within its own length, EOS included, as TensorFlow's `reverse_sequence` does it.
        """
        return self.read_source(self.source_embedding(source.t()), lengths, dropout)

    def read_source(self, embedded: Tensor, lengths: Tensor, dropout: Dropout) -> Tensor:
        """What `embed_source` makes of rows of the table [time, batch, e]."""
        return self.reordered(dropout("source_embedding", embedded, self.config.dropout_embedding), lengths)

    def reordered(self, x: Tensor, lengths: Tensor) -> Tensor:
        """[time, batch, …] from the source's order to that in which it is read, or back."""
        return reorder(x, reversal(lengths, len(x))) if self.config.encoder.reverse_source else x

    def embed_target(self, batch: Batch, dropout: Dropout) -> Tensor:
        """Embeddings of the given previous target tokens [time, batch, e]."""
        return self.read_target(self.target_embedding(batch.target_input.t()), dropout)

    def read_target(self, embedded: Tensor, dropout: Dropout) -> Tensor:
        """What `embed_target` makes of rows of the table [time, batch, e]."""
        return dropout("target_embedding", embedded, self.config.dropout_embedding)

    def loss(self, slot: Slot, mix: Tensor) -> Tensor:
        """The slot's sum of token losses, from what the decoder made of it [time, batch, h].

        Of a slot that is scored, [2, tokens]: the losses without smoothing, and 1 where the target is the first choice.
        """
        hidden, targets = real_tokens(mix, slot.batch, slot.target_tokens)
        config = self.loss_config
        if slot.is_scored:
            losses, hits = scored_tokens(hidden, *self._output_layer, targets, config.vocab_chunks)
            return torch.stack((losses, hits.to(losses.dtype)))
        return training_loss(hidden, *self._output_layer, targets, config.label_smoothing, config.vocab_chunks)

    def _encode(self, source: Tensor, lengths: Tensor, dropout: Dropout) -> EncoderOutput:
        """The source's encoding in the source's own order."""
        encoded = self.encoder(self.embed_source(source, lengths, dropout), lengths, dropout)
        values = None if encoded.values is None else self.reordered(encoded.values, lengths)
        return EncoderOutput(self.reordered(encoded.outputs, lengths), encoded.final_state, values)

    def _decode(
        self,
        batch: Batch,
        encoded: EncoderOutput,
        dropout: Dropout,
        sampling: ScheduledSampling | None = None,
        watch: GradientWatch | None = None,
    ) -> Tensor:
        return self.decode(batch, self.embed_target(batch, dropout), encoded, dropout, sampling, watch)

    def decode(
        self,
        batch: Batch,
        embedded: Tensor,
        encoded: EncoderOutput,
        dropout: Dropout,
        sampling: ScheduledSampling | None = None,
        watch: GradientWatch | None = None,
    ) -> Tensor:
        """What the output layer reads [time, batch, h], from the embeddings of the given tokens [time, batch, e]."""
        appended = self.bridge.appended(encoded.final_state)
        memory = self.decoder.memory(encoded, batch.source_lengths)
        extra: dict[str, Any] = {}
        if sampling is not None and sampling.probability > 0:
            feed = self._feed(embedded, dropout, sampling)
            extra["feed"] = lambda t, mix: beside(feed(t, mix), appended)
        if watch is not None and "watch" in inspect.signature(self.decoder.forward).parameters:
            extra["watch"] = watch
        first = self.bridge(encoded.final_state)
        mix = self.decoder(beside(embedded, appended), memory, first, dropout, **extra)
        return dropout("mix", mix, self.config.dropout_mix)

    def _feed(self, embedded: Tensor, dropout: Dropout, sampling: ScheduledSampling) -> Feed:
        """What scheduled sampling gives the decoder; `embedded` [time, batch, e] are the given tokens' embeddings.

        The model's own inputs meet the dropout masks that the given ones meet, and are made of outputs under dropout.
        """
        time, batch, _ = embedded.shape
        replaced = sampling.replaced(time, batch, embedded.device)
        points = sampling.points(time, batch, embedded.device)
        config, units = self.config, self.decoder.output_units
        input_mask = dropout.mask("target_embedding", embedded.shape, config.dropout_embedding, embedded)
        mix_mask = dropout.mask("mix", (time, batch, units), config.dropout_mix, embedded)

        def feed(t: int, mix: Tensor) -> Tensor:
            logits = self.output(mix if mix_mask is None else mix * mix_mask[t - 1])
            own = sampling.own_input(logits, points[t], self.target_embedding.weight).to(embedded.dtype)
            return torch.where(replaced[t], own if input_mask is None else own * input_mask[t], embedded[t])

        return feed

    @property
    def _output_layer(self) -> tuple[Tensor, Tensor]:
        return self.output.weight, self.output.bias


def beside(embedded: Tensor, appended: Tensor) -> Tensor:
    """[embedding; appended], where `appended` broadcasts to all but the last dimension of `embedded`."""
    if not appended.shape[-1]:
        return embedded
    return torch.cat((embedded, appended.expand(*embedded.shape[:-1], -1)), dim=-1)


def embedding_tables(config: ModelConfig) -> list[str]:
    """Names of the embedding tables among the parameters of a model of this configuration."""
    shared = ["source_embedding.weight"]
    return shared if config.embedding.share else [*shared, "target_embedding.weight"]


def build_model(
    model: ModelConfig,
    source_vocab: int,
    target_vocab: int,
    loss: LossConfig | None = None,
    seed: int | None = None,
) -> Seq2Seq:
    """The model of a configuration, on the CPU (or on the device of an enclosing `torch.device` context).

    With a `seed` its parameters are drawn (see `nmt.models.initialisation`); without one they are NaN until a
    checkpoint is loaded.
    """
    built = Seq2Seq(model, source_vocab, target_vocab, loss or LossConfig())
    if seed is not None:
        initialise(built, model.initialisation, seed)
    return built


def _component(kind: str, config: Any, *arguments: Any) -> Any:
    """Build the component that `config.name` names; `config.options` are keyword arguments of its constructor."""
    make = registry.lookup(kind, config.name, f"model.{kind}.name")
    taken = list(inspect.signature(make).parameters)[1 + len(arguments) :]
    for option in config.options:
        if option not in taken:
            hint = did_you_mean(option, taken) or f"{kind} '{config.name}' takes {'these only' if taken else 'none'}"
            raise UserError(f"unknown option '{option}'", where=f"model.{kind}.options", allowed=taken, hint=hint)
    return make(config, *arguments, **config.options)
