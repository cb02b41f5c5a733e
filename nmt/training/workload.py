"""Training a translation model, as a strategy sees it: the one implementation of `distributed.strategy.Workload`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch

from distributed.strategy import BatchPlan, OptimizerSpec, Stage, WorkloadSpec
from nmt.config import from_dict, to_dict
from nmt.config.schema import RunConfig
from nmt.data.batching import Batch, Sampler, collate
from nmt.data.prepare import PreparedData, prepare
from nmt.models.dropout import AddressedDropout
from nmt.models.seq2seq import Seq2Seq, build_model
from nmt.training.faults import Faults
from nmt.training.schedule import learning_rate


@dataclass(frozen=True)
class TranslationSlot:
    """One micro-batch on its device, with the masks of its address."""

    batch: Batch
    dropout: AddressedDropout
    target_tokens: int
    source_tokens: int


class TranslationWorkload:
    """Batches, model and schedule of one run; everything is a function of (config, step, slot)."""

    def __init__(self, config: RunConfig, device: str, prepared: PreparedData | None = None):
        self.config = config
        self.device = device
        self.prepared = prepared or prepare(config)
        batch = config.batch
        self.plan = BatchPlan(batch.micro_batches, batch.groups or batch.micro_batches)
        self.optimizer = optimizer_spec(config)
        self._faults = Faults(config.faults)
        train = self.prepared.train
        self.sampler = Sampler(train.source_lengths, train.target_lengths, batch, config.seed)

    def build_model(self) -> Seq2Seq:
        """The model with its first parameters, drawn from the run's seed."""
        return fresh_model(self.config, self.prepared).to(self.device)

    def stages(self, model: torch.nn.Module) -> Sequence[Stage]:
        """Encoder, decoder, and output layer with the loss."""
        assert isinstance(model, Seq2Seq)
        return model.stages()

    def slot_tokens(self, index: int) -> Sequence[int]:
        """Target tokens of each slot of step `index`."""
        return self.sampler.slot_tokens(index)

    def slot(self, index: int, slot: int) -> TranslationSlot:
        """Slot `slot` of step `index`, built and moved to the device."""
        if slot == self.plan.micro_batches - 1:
            self._faults.reach("slot", index)
        numbers = self.sampler.slots(index)[slot]
        batch = collate(self.prepared.train, numbers)
        return TranslationSlot(
            batch=Batch(*(tensor.to(self.device, non_blocking=True) for tensor in batch)),
            dropout=AddressedDropout(self.config.seed, index, slot),
            target_tokens=int(batch.target_lengths.sum()),
            source_tokens=int(batch.source_lengths.sum()),
        )

    def learning_rate(self, index: int) -> float:
        """Scheduled rate of step `index`."""
        return learning_rate(self.config.optimizer, self.config.schedule, index)

    def autocast(self) -> AbstractContextManager[Any]:
        """bf16 products where the run asks for them."""
        return precision_context(self.config, self.device)


def workload_spec(config: RunConfig, device: str) -> WorkloadSpec:
    """The workload of a run as an importable function and plain data."""
    return WorkloadSpec("nmt.training.workload:translation_workload", {"config": to_dict(config), "device": device})


def translation_workload(config: Mapping[str, Any], device: str) -> TranslationWorkload:
    """Build the workload in this process; the factory that `workload_spec` names."""
    return TranslationWorkload(from_dict(config), device)


def fresh_model(config: RunConfig, prepared: PreparedData) -> Seq2Seq:
    """The model of a run with its first parameters, on the CPU."""
    return build_model(
        config.model, prepared.source_tokenizer.size, prepared.target_tokenizer.size, config.loss, seed=config.seed
    )


def optimizer_spec(config: RunConfig) -> OptimizerSpec:
    """The update rule of a run and the options that it takes."""
    optimizer = config.optimizer
    options: dict[str, dict[str, Any]] = {
        "adam": {
            "beta1": optimizer.beta1,
            "beta2": optimizer.beta2,
            "epsilon": optimizer.epsilon,
            "epsilon_form": optimizer.epsilon_form,
        },
        "sgd": {"momentum": optimizer.momentum},
    }
    return OptimizerSpec(optimizer.name, options[optimizer.name], optimizer.clip_norm)


def precision_context(config: RunConfig, device: str) -> AbstractContextManager[Any]:
    """Autocast to bf16, or nothing: the context in which the model runs in training and decoding."""
    if config.training.precision == "bf16":
        return torch.autocast(device, dtype=torch.bfloat16)
    return nullcontext()
