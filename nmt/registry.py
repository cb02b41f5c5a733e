"""Names that a configuration may use, and the code behind each: `kind -> name -> "module:attribute"`.

A table of strings, so that listing or checking a name imports nothing heavy and no code is ever executed out of a
config file. An installed package adds a component through the entry-point group `nmt.components`, with entry points
named `<kind>.<name>`.
"""

from __future__ import annotations

import importlib
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from nmt.errors import UserError, did_you_mean

_BUILT_IN: dict[str, dict[str, str]] = {
    "cell": {
        "gru": "nmt.models.cells:TfGru",
        "lstm": "nmt.models.cells:TfLstm",
    },
    "encoder": {
        "bidirectional": "nmt.models.encoder:BidirectionalEncoder",
        "unidirectional": "nmt.models.encoder:UnidirectionalEncoder",
    },
    "decoder": {"recurrent": "nmt.models.decoder:RecurrentDecoder"},
    "attention": {
        "additive": "nmt.models.attention:AdditiveAttention",
        "multiplicative": "nmt.models.attention:MultiplicativeAttention",
        "none_state": "nmt.models.attention:NoAttention",
    },
    "bridge": {
        "zero": "nmt.models.bridge:ZeroBridge",
        "projection": "nmt.models.bridge:ProjectionBridge",
    },
    "tokenizer": {
        "sentencepiece_bpe": "nmt.data.tokenizer:SentencePieceTokenizer",
        "sentencepiece_unigram": "nmt.data.tokenizer:SentencePieceTokenizer",
        "bpe_merges": "nmt.data.tokenizer:BpeMergesTokenizer",
        "character": "nmt.data.tokenizer:CharacterTokenizer",
        "whitespace": "nmt.data.tokenizer:WhitespaceTokenizer",
    },
    "generator": {
        "toy_copy": "nmt.data.toy:toy_copy",
        "toy_reverse": "nmt.data.toy:toy_reverse",
        "toy_translation": "nmt.data.toy:toy_translation",
    },
    "schedule": {
        "constant": "nmt.training.schedule:constant",
        "warmup": "nmt.training.schedule:warmup",
        "inverse_sqrt": "nmt.training.schedule:inverse_sqrt",
        "plateau": "nmt.training.schedule:constant",
        "exponential": "nmt.training.schedule:exponential",
        "natural_exponential": "nmt.training.schedule:natural_exponential",
        "inverse_time": "nmt.training.schedule:inverse_time",
    },
    "optimizer": {"adam": "distributed.optimizers:Adam", "sgd": "distributed.optimizers:Sgd"},
    "strategy": {"single": "distributed.single:SingleStrategy"},
    "tracker": {"mlflow": "sweeps.tracking:open_for_run", "none": "nmt.training.tracker:open_nothing"},
    "executor": {
        "inline": "sweeps.executors.inline:InlineExecutor",
        "ray_tune": "sweeps.executors.ray_tune:RayTuneExecutor",
    },
}


@cache
def _table(kind: str) -> dict[str, str]:
    outside = {
        point.name.removeprefix(f"{kind}."): point.value
        for point in entry_points(group="nmt.components")
        if point.name.startswith(f"{kind}.")
    }
    return outside | _BUILT_IN[kind]  # an installed package adds names, it never replaces one of ours


def names(kind: str) -> list[str]:
    """The registered names of a kind, sorted; imports none of them."""
    return sorted(_table(kind))


def lookup(kind: str, name: str, where: str) -> Any:
    """The object registered as `name`, imported now.

    `where` is the config key to blame. Raises UserError for an unknown name.
    """
    table = _table(kind)
    if name not in table:
        raise UserError(f"unknown {kind} '{name}'", where=where, allowed=names(kind), hint=did_you_mean(name, table))
    return load(table[name])


def load(target: str) -> Any:
    """Import `"module:attribute"`."""
    module, _, attribute = target.partition(":")
    return getattr(importlib.import_module(module), attribute)
