"""Checks on a composed configuration, before anything starts: each key's range, then what keys demand of each other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from nmt import registry
from nmt.config.distribution_rules import check_distribution
from nmt.config.model_rules import MODEL_RULES
from nmt.config.options import OPTIONS
from nmt.config.schema import ExecutorConfig, RunConfig
from nmt.config.search_rules import check_searches
from nmt.config.seeds import jitterable
from nmt.config.widths import NO_ATTENTION, decoder_output_units
from nmt.errors import UserError, did_you_mean
from nmt.training.faults import Faults


def validate(config: RunConfig) -> None:
    """Raise UserError for the first key that is out of range or contradicts another."""
    for where, field, value in _leaves(config, ""):
        _check_range(where, field.metadata, value)
    for rule in _RULES:
        rule(config)


def _leaves(config: Any, prefix: str) -> Iterator[tuple[str, dataclasses.Field[Any], Any]]:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            yield from _leaves(value, f"{prefix}{field.name}.")
        else:
            yield f"{prefix}{field.name}", field, value


def _check_range(where: str, metadata: Any, value: Any) -> None:
    if "choices" in metadata and value not in metadata["choices"]:
        allowed = list(metadata["choices"])
        raise UserError(f"'{value}' is not a choice", where=where, allowed=allowed, hint=did_you_mean(value, allowed))
    if "registry" in metadata and not (value == "" == metadata["neutral"]):
        kind = metadata["registry"]
        known = registry.names(kind)
        if value not in known:
            raise UserError(f"unknown {kind} '{value}'", where=where, allowed=known, hint=did_you_mean(value, known))
    tests: list[tuple[str, Callable[[float], bool], str]] = [
        ("minimum", lambda bound: value >= bound, ">="),
        ("maximum", lambda bound: value <= bound, "<="),
        ("above", lambda bound: value > bound, ">"),
        ("below", lambda bound: value < bound, "<"),
    ]
    bounds = [(sign, metadata[name], test) for name, test, sign in tests if name in metadata]
    if not all(test(bound) for _, bound, test in bounds):
        raise UserError(
            f"{value} is out of range", where=where, allowed=[" and ".join(f"{s} {b:g}" for s, b, _ in bounds)]
        )


def _slots(config: RunConfig) -> None:
    batch = config.batch
    if batch.groups and batch.micro_batches % batch.groups:
        raise UserError(
            f"{batch.micro_batches} micro-batches cannot form {batch.groups} equal groups",
            where="batch.groups",
            hint="choose a divisor of batch.micro_batches, or 0 for one group a slot",
        )
    if batch.unit == "sentences" and batch.size < batch.micro_batches:
        raise UserError(
            f"{batch.size} sentences cannot fill {batch.micro_batches} micro-batches",
            where="batch.micro_batches",
            hint="lower it, or raise batch.size",
        )


def _options(config: RunConfig) -> None:
    for kind in ("encoder", "decoder", "attention"):
        component = getattr(config.model, kind)
        known = OPTIONS.get((kind, component.name), {})
        for name, value in component.options.items():
            if name not in known:
                continue  # where the component is built, an unknown option is refused
            where, wanted = f"model.{kind}.options.{name}", known[name]["type"]
            fits = isinstance(value, (int, float) if wanted is float else wanted) and not isinstance(value, bool)
            if not fits:
                words = {int: "an integer", float: "a number", str: "a name"}
                raise UserError(f"'{value}' is not {words[wanted]}", where=where)
            _check_range(where, known[name], value)
        if known and "heads" in component.options and component.units % component.options["heads"]:
            raise UserError(
                f"{component.units} units cannot be cut into {component.options['heads']} equal heads",
                where=f"model.{kind}.options.heads",
                hint=f"choose a divisor of model.{kind}.units",
            )


def _without_recurrence(config: RunConfig) -> None:
    model = config.model
    decoder, attention = model.decoder.name, model.attention.name
    if decoder == "transformer" and attention != "multi_head":
        raise UserError(
            f"decoder 'transformer' attends in every layer, which attention '{attention}' cannot",
            where="model.attention.name",
            allowed=["multi_head"],
            hint="model/attention=multi_head",
        )
    if decoder == "recurrent" and attention == "multi_head":
        raise UserError(
            "attention 'multi_head' belongs to decoder 'transformer'",
            where="model.attention.name",
            hint="model/decoder=transformer, or model/attention=multiplicative",
        )
    if decoder == "transformer" and model.bridge.name != "zero":
        raise UserError(
            f"decoder 'transformer' has no first state that bridge '{model.bridge.name}' could fill",
            where="model.bridge.name",
            allowed=["zero"],
            hint="model/bridge=zero",
        )
    if attention == "multi_head" and model.attention.units < 1:
        raise UserError("must be at least 1 with attention", where="model.attention.units")
    if model.encoder.name == "pooling":
        for key, value, only in (
            ("units", model.encoder.units, model.embedding.units),
            ("layers", model.encoder.layers, 1),
        ):
            if value != only:
                raise UserError(
                    f"{value} with encoder 'pooling', which averages embeddings and has no layers",
                    where=f"model.encoder.{key}",
                    allowed=[str(only)],
                )


def _sharing(config: RunConfig) -> None:
    embedding = config.model.embedding
    if embedding.share and not config.tokenizer.joint:
        raise UserError(
            "source and target can share a table only where they share a vocabulary",
            where="model.embedding.share",
            hint="tokenizer.joint=true, or model.embedding.share=false",
        )
    columns = decoder_output_units(config.model)
    if embedding.tie_output and embedding.units != columns:
        raise UserError(
            f"the output layer has {columns} columns and the embedding {embedding.units}",
            where="model.embedding.tie_output",
            hint="make model.embedding.units and model.decoder.units equal",
        )


def _data(config: RunConfig) -> None:
    data = config.data
    if data.kind == "generated" and not data.generator:
        raise UserError("is needed with data.kind=generated", where="data.generator")
    if data.kind == "files":
        for split in ("train", "validation", "test"):
            files = getattr(data, split)
            if len(files.source) != len(files.target) or (split != "test" and not files.source):
                raise UserError(
                    f"{len(files.source)} source and {len(files.target)} target files",
                    where=f"data.{split}",
                    hint="give one or more pairs of parallel files",
                )
        for name, files in data.tests.items():
            source, target = files.get("source", []), files.get("target", [])
            if set(files) - {"source", "target"} or not source or len(source) != len(target):
                raise UserError(
                    "is no set of parallel files",
                    where=f"data.tests.{name}",
                    hint="write {source: [test.en], target: [test.de]}",
                )


def _tokenizer(config: RunConfig) -> None:
    with_merges = ["bpe_merges", "sentencepiece_bpe"]
    if config.tokenizer.dropout and config.tokenizer.name not in with_merges:
        raise UserError(
            f"tokenizer '{config.tokenizer.name}' has no merges to leave out",
            where="tokenizer.dropout",
            hint=f"only {' and '.join(with_merges)} have: tokenizer.dropout=0",
        )
    if config.tokenizer.name == "bpe_merges" and config.tokenizer.merges < 1:
        raise UserError("must be at least 1 with tokenizer bpe_merges", where="tokenizer.merges")
    for side in ("source_vocabulary", "target_vocabulary"):
        if getattr(config.tokenizer, side) and config.tokenizer.name not in ("whitespace", "character"):
            raise UserError(
                f"tokenizer '{config.tokenizer.name}' learns where to cut, which no list of types can tell it",
                where=f"tokenizer.{side}",
                hint="tokenizer=whitespace or tokenizer=character",
            )
    if config.tokenizer.target_vocabulary and config.tokenizer.joint:
        raise UserError(
            "one vocabulary serves both sides with tokenizer.joint=true",
            where="tokenizer.target_vocabulary",
            hint="give tokenizer.source_vocabulary alone, or tokenizer.joint=false",
        )


def _scheduled_sampling(config: RunConfig) -> None:
    sampling, where = config.training.scheduled_sampling, "training.scheduled_sampling.form"
    if sampling.form == "none":
        if sampling.probability:
            raise UserError("is needed with a probability", where=where, allowed=["embedding", "output"])
    elif config.model.decoder.name != "recurrent":
        raise UserError(
            f"decoder '{config.model.decoder.name}' does not train step by step, so no step can be fed the output of "
            "the one before",
            where=where,
            hint="model/decoder=recurrent, or training.scheduled_sampling.form=none",
        )


def _validation(config: RunConfig) -> None:
    validation = config.validation
    if not validation.every_steps and not validation.every_minutes:
        raise UserError(
            "no evaluation is scheduled, so no checkpoint could be chosen",
            where="validation.every_steps",
            hint="set it, or validation.every_minutes, above 0",
        )


def _seeds(config: RunConfig) -> None:
    seeds, where = config.seeds, "seeds.jittered"
    if bool(seeds.jitter) != bool(seeds.jittered):
        missing = "seeds.jittered" if seeds.jitter else "seeds.jitter"
        raise UserError("is needed beside the other", where=missing, hint="seeds.jitter=0.1 seeds.jittered=[KEY,KEY]")
    known = jitterable(config) if seeds.jittered else {}
    for name in seeds.jittered:
        if name not in known:
            hint = did_you_mean(name, known)
            raise UserError(f"'{name}' is no fractional hyperparameter", where=where, allowed=list(known), hint=hint)
        if seeds.jittered.count(name) > 1:
            raise UserError(f"'{name}' stands there twice", where=where)
        value, field = known[name]
        if not value:
            raise UserError(f"'{name}' is 0, which no share of it changes", where=where, hint=f"set {name}")
        for share in (-seeds.jitter, seeds.jitter):
            _check_range(f"{name} with seeds.jitter={seeds.jitter:g}", field.metadata, value * (1 + share))


def _unknown_replacement(config: RunConfig) -> None:
    for where, search in (("search", config.search), ("validation.search", config.validation.search)):
        if search.replace_unknown and config.model.attention.name in NO_ATTENTION:
            raise UserError(
                f"attention '{config.model.attention.name}' points at no source word that could replace UNK",
                where=f"{where}.replace_unknown",
                allowed=["false"],
            )
        if search.dictionary and not search.replace_unknown:
            hint = f"{where}.replace_unknown=true, or no dictionary"
            raise UserError("is asked only where UNK is replaced", where=f"{where}.dictionary", hint=hint)


def _schedule(config: RunConfig) -> None:
    schedule = config.schedule
    needed = {
        "warmup": ("warmup_steps",),
        "inverse_sqrt": ("warmup_steps",),
        "plateau": ("plateau_patience",),
        "exponential": ("decay_steps",),
        "natural_exponential": ("decay_steps",),
        "inverse_time": ("decay_steps",),
    }.get(schedule.name, ())
    for name in needed:
        if getattr(schedule, name) < 1:
            raise UserError(f"must be at least 1 with schedule {schedule.name}", where=f"schedule.{name}")


def _faults(config: RunConfig) -> None:
    Faults(config.faults)


def _executor(config: RunConfig) -> None:
    executor = config.executor
    gpus = executor.gpus_per_run
    if gpus > 1 and gpus != int(gpus):
        raise UserError(
            f"{gpus:g} GPUs cannot be dealt out: Ray gives a run a fraction of one GPU, or whole ones",
            where="executor.gpus_per_run",
            allowed=["a fraction below 1", "whole numbers"],
            hint=f"executor.gpus_per_run={int(gpus)} or {int(gpus) + 1}",
        )
    if executor.address.startswith("ray://"):
        raise UserError(
            "is for Ray's client; a sweep runs on a node of the cluster, where its runs are in reach",
            where="executor.address",
            allowed=["local", "auto", "host:port"],
            hint="start the command on a node of the cluster, with executor.address=auto",
        )
    if executor.name == "inline":
        for name in ("gpus_per_run", "memory_gib_per_run", "address"):
            if getattr(executor, name) != getattr(ExecutorConfig(), name):
                raise UserError(
                    "child processes share what this machine has, without a scheduler",
                    where=f"executor.{name}",
                    hint="executor=ray_tune deals out GPUs, memory and machines",
                )


_RULES = (
    _faults,
    _seeds,
    _executor,
    _slots,
    check_distribution,
    _options,
    _without_recurrence,
    *MODEL_RULES,
    _sharing,
    _data,
    _tokenizer,
    _scheduled_sampling,
    _validation,
    check_searches,
    _unknown_replacement,
    _schedule,
)
