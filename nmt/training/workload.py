"""Training a translation model, as a strategy sees it: the one implementation of `distributed.strategy.Workload`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from distributed.strategy import BatchPlan, OptimizerSpec, Stage, WorkloadSpec
from nmt import registry
from nmt.config import from_dict, to_dict
from nmt.config.schema import RunConfig, SearchConfig
from nmt.config.seeds import drawn, stream_seed
from nmt.data.batching import Batch, Sampler, collate
from nmt.data.bpe_dropout import DroppedBatches
from nmt.data.prepare import EncodedText, PreparedData, prepare
from nmt.errors import UserError, did_you_mean
from nmt.models.dropout import NO_DROPOUT, AddressedDropout, Dropout
from nmt.models.fine_stages import cut_rows
from nmt.models.initialisation import FirstValue, first_values
from nmt.models.parameters import keeps_more_than_parameters
from nmt.models.scheduled_sampling import ScheduledSampling, probability_at
from nmt.models.search_stages import StageSearch, search_stages
from nmt.models.seq2seq import Seq2Seq, build_model, embedding_tables
from nmt.models.stages import ModelStage
from nmt.models.watch import GradientWatch
from nmt.training.device import prepare_arithmetic
from nmt.training.faults import Faults
from nmt.training.schedule import learning_rate
from nmt.training.transfer import to_device

# Keys of the `optimizer` section that a rule is given where its constructor has a parameter of that name.
OPTIMIZER_KEYS = ("beta1", "beta2", "epsilon", "epsilon_form", "momentum")


@dataclass(frozen=True)
class TranslationSlot:
    """One micro-batch on its device, with the masks of its address.

    is_scored: in the place of the loss stages make [2, tokens]: the loss of each token without smoothing, and whether
        the target is the model's first choice.
    """

    batch: Batch
    dropout: Dropout
    target_tokens: int
    source_tokens: int
    sampling: ScheduledSampling | None = None
    watch: GradientWatch | None = None
    is_scored: bool = False

    def inner_square_sums(self) -> Mapping[str, Sequence[float]]:
        """Square sums of the gradients that `watch` saw; see `distributed.strategy.Slot`."""
        return self.watch.square_sums() if self.watch else {}


class TranslationWorkload:
    """Batches, model and schedule of one run; everything is a function of (config, step, slot)."""

    def __init__(self, config: RunConfig, device: str, prepared: PreparedData | None = None):
        self.config = config = drawn(config)
        self.device = device
        self.prepared = prepared or prepare(config)
        batch = config.batch
        self.plan = BatchPlan(batch.micro_batches, batch.groups or batch.micro_batches)
        self.optimizer = optimizer_spec(config)
        self._faults = Faults(config.faults)
        self._dropout_seed = stream_seed(config, "dropout")
        train = self.prepared.train
        self.sampler = Sampler(train.source_lengths, train.target_lengths, batch, stream_seed(config, "data"))
        self._initial: dict[str, FirstValue] | None = None
        self._dropped = DroppedBatches(config, self.prepared, self.sampler) if config.tokenizer.dropout else None

    def build_model(self, fine: bool = False) -> Seq2Seq:
        """The model with its first parameters, drawn from the seed of that stream.

        `fine`: with rows of the output layer as parameters of their own; see `nmt.models.fine_stages.cut_rows`.
        """
        model = fresh_model(self.config, self.prepared).to(self.device)
        if fine:
            self._cut(model)
        return model

    def outline(self, fine: bool = True) -> Seq2Seq:
        """The model without memory for its parameters; see `Workload`.

        Whole where a module keeps other tensors: what its constructor computes has to be there.
        """
        sizes = self.prepared.source_tokenizer.size, self.prepared.target_tokenizer.size
        with torch.device("meta"):
            model = build_model(self.config.model, *sizes, self.config.loss)
            if fine:
                self._cut(model)
        return self.build_model(fine) if keeps_more_than_parameters(model) else model

    def first_values(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Elements of a parameter as the seed draws them; see `Workload`."""
        if self._initial is None:
            seed = stream_seed(self.config, "initialisation")
            self._initial = first_values(self.outline(fine=False), self.config.model.initialisation, seed)
        return self._initial[name].elements(start, stop)

    def stages(self, model: torch.nn.Module, fine: bool = False) -> Sequence[Stage]:
        """Encoder, decoder, and output layer with the loss; the last two in one with scheduled sampling.

        `fine`: cut wherever the model can be and keeps its bits: in mixed precision the directions of an encoder's
        layer stay together.
        """
        assert isinstance(model, Seq2Seq)
        training = self.config.training
        return model.stages(training.scheduled_sampling.form != "none", fine, directions=training.precision != "bf16")

    def slot_tokens(self, index: int) -> Sequence[int]:
        """Target tokens of each slot of step `index`."""
        return (self._dropped or self.sampler).slot_tokens(index)

    def slot(self, index: int, slot: int, probe: bool = False) -> TranslationSlot:
        """Slot `slot` of step `index`, built and moved to the device."""
        if slot == self.plan.micro_batches - 1:
            self._faults.reach("slot", index)
        batch = collate(*self._sentences(index, slot), self._source_time(index))
        return TranslationSlot(
            batch=to_device(batch, self.device),
            dropout=AddressedDropout(self._dropout_seed, index, slot),
            target_tokens=int(batch.target_lengths.sum()),
            source_tokens=int(batch.source_lengths.sum()),
            sampling=self._sampling(index, slot),
            watch=GradientWatch() if probe else None,
        )

    def scored_slot(self, batch: Mapping[str, torch.Tensor]) -> TranslationSlot:
        """A slot of given sentences, the fields of a `Batch`, of which stages make what `Seq2Seq.score` makes."""
        given = to_device(Batch(**batch), self.device)
        tokens, source_tokens = (int(batch[f"{side}_lengths"].sum()) for side in ("target", "source"))
        return TranslationSlot(given, NO_DROPOUT, tokens, source_tokens, is_scored=True)

    def search_stages(self, model: torch.nn.Module) -> Sequence[StageSearch]:
        """What each of the fine stages does in the searches of a text; see `nmt.models.search_stages`."""
        assert isinstance(model, Seq2Seq)
        stages = [one for one in self.stages(model, fine=True) if isinstance(one, ModelStage)]
        return search_stages(model, stages)

    def learning_rate(self, index: int) -> float:
        """Scheduled rate of step `index`."""
        return learning_rate(self.config.optimizer, self.config.schedule, index)

    def _cut(self, model: Seq2Seq) -> None:
        """Make rows parameters of their own, where stages of them can be cut apart."""
        if self.config.training.scheduled_sampling.form == "none":
            cut_rows(model)

    def _sentences(self, index: int, slot: int) -> tuple[EncodedText, Sequence[int] | np.ndarray]:
        """A text, and the numbers of those of its sentences that are the slot's."""
        if self._dropped is not None:
            sentences = self._dropped.slot(index, slot)
            return sentences, range(len(sentences))
        return self.prepared.train, self.sampler.slots(index)[slot]

    def _source_time(self, index: int) -> int:
        """Source positions that the slots of a step have at least.

        Where attention sees padding, the padding has to be that of the whole step, however it is cut into slots.
        """
        if self.config.model.attention.masked:
            return 1
        slots = [self._sentences(index, slot) for slot in range(self.plan.micro_batches)]
        return 1 + max(len(text.source[int(number)]) for text, numbers in slots for number in numbers)

    def _sampling(self, index: int, slot: int) -> ScheduledSampling | None:
        config = self.config.training.scheduled_sampling
        probability = probability_at(config, index)
        if not probability:
            return None
        return ScheduledSampling(config.form, probability, self._dropout_seed, index, slot)

    def autocast(self) -> AbstractContextManager[Any]:
        """bf16 products where the run asks for them."""
        return precision_context(self.config, self.device)


def refuse_unsearchable(config: RunConfig, prepared: PreparedData) -> None:
    """Raise UserError where a ring whose nodes alone have the model could not decode with it."""
    workload = TranslationWorkload(config, "cpu", prepared)
    workload.search_stages(workload.outline())


def workload_spec(config: RunConfig, device: str) -> WorkloadSpec:
    """The workload of a run as an importable function and plain data."""
    return WorkloadSpec("nmt.training.workload:translation_workload", {"config": to_dict(config), "device": device})


def translation_workload(config: Mapping[str, Any], device: str) -> TranslationWorkload:
    """Build the workload in this process, and let it compute as the run does; the factory that `workload_spec` names.

    How many threads it has is up to whoever started it.
    """
    complete = from_dict(config)
    prepare_arithmetic(device, complete.deterministic)
    return TranslationWorkload(complete, device)


def fresh_model(config: RunConfig, prepared: PreparedData) -> Seq2Seq:
    """The model of a run with its first parameters, on the CPU."""
    config, seed = drawn(config), stream_seed(config, "initialisation")
    return build_model(
        config.model, prepared.source_tokenizer.size, prepared.target_tokenizer.size, config.loss, seed=seed
    )


def optimizer_spec(config: RunConfig) -> OptimizerSpec:
    """The update rule of a run, what its constructor takes of the `optimizer` section, and clipping.

    Raises UserError for an entry of `optimizer.options` that the rule does not take.
    """
    optimizer, where = config.optimizer, "optimizer.options"
    rule = registry.location("optimizer", optimizer.name, "optimizer.name")
    taken = list(inspect.signature(registry.lookup("optimizer", optimizer.name, "optimizer.name")).parameters)
    options = {name: getattr(optimizer, name) for name in OPTIMIZER_KEYS if name in taken}
    for option, value in optimizer.options.items():
        if option not in taken or option in OPTIMIZER_KEYS:
            allowed = [name for name in taken if name not in OPTIMIZER_KEYS]
            raise UserError(
                f"unknown option '{option}'", where=where, allowed=allowed, hint=did_you_mean(option, allowed)
            )
        options[option] = value
    clip = optimizer.clip_embedding_norm
    tables = embedding_tables(config.model) if clip else []
    return OptimizerSpec(rule, options, optimizer.clip_norm, dict.fromkeys(tables, clip))


def precision_context(
    config: RunConfig, device: str, search: SearchConfig | None = None
) -> AbstractContextManager[Any]:
    """Autocast to bf16, or nothing: the context in which the model runs in training, or in `search`."""
    own = "training" if search is None else search.precision
    if (config.training.precision if own == "training" else own) == "bf16":
        return torch.autocast(device, dtype=torch.bfloat16)
    return nullcontext()
