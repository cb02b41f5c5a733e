"""Names that a configuration may use, and the code behind each: `kind -> name -> "module:attribute"`.

A table of strings, so that listing or checking a name imports nothing heavy and no code is ever executed out of a
config file. An installed package adds a component through the entry-point group `nmt.components`, with entry points
named `<kind>.<name>` (docs/components.md); its version and source count in the identity of runs that use it.
"""

from __future__ import annotations

import hashlib
import importlib.util
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distributed.strategy import load as load  # offered here too: `sweeps` knows `distributed` through `nmt` only
from nmt.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

_BUILT_IN: dict[str, dict[str, str]] = {
    "cell": {
        "gru": "nmt.models.cell_kinds:gru",
        "lstm": "nmt.models.cell_kinds:lstm",
        "vanilla": "nmt.models.cell_kinds:vanilla",
    },
    "encoder": {
        "bidirectional": "nmt.models.encoder:BidirectionalEncoder",
        "stacked_bidirectional": "nmt.models.encoder:StackedBidirectionalEncoder",
        "convolutional": "nmt.models.convolutional:ConvolutionalEncoder",
        "pooling": "nmt.models.pooling:PoolingEncoder",
        "transformer": "nmt.models.transformer:TransformerEncoder",
        "unidirectional": "nmt.models.encoder:UnidirectionalEncoder",
    },
    "decoder": {
        "recurrent": "nmt.models.decoder:RecurrentDecoder",
        "transformer": "nmt.models.transformer_decoder:TransformerDecoder",
    },
    "attention": {
        "additive": "nmt.models.attention:AdditiveAttention",
        "multi_head": "nmt.models.multi_head:MultiHeadAttention",
        "multiplicative": "nmt.models.attention:MultiplicativeAttention",
        "dot": "nmt.models.attention:DotAttention",
        "none_state": "nmt.models.attention:NoAttention",
        "none_input": "nmt.models.attention:NoAttention",
    },
    "bridge": {
        "zero": "nmt.models.bridge:ZeroBridge",
        "pass_through": "nmt.models.bridge:PassThroughBridge",
        "projection": "nmt.models.bridge:ProjectionBridge",
        "concat_input": "nmt.models.bridge:ConcatInputBridge",
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
        "toy_summarisation": "nmt.data.toy:toy_summarisation",
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
    "strategy": {
        "ddp": "distributed.ddp.strategy:DdpStrategy",
        "parameter_server": "distributed.parameter_server.strategy:ParameterServerStrategy",
        "ring_allreduce": "distributed.ring.strategy:build",
        "ring_tmp": "distributed.ring_tmp.modes:build",
        "single": "distributed.single:SingleStrategy",
    },
    "bundles": {  # what a run of each strategy occupies
        "ddp": "distributed.bundles:ddp",
        "parameter_server": "distributed.bundles:parameter_server",
        "ring_allreduce": "distributed.bundles:ring_allreduce",
        "ring_tmp": "distributed.bundles:ring_tmp",
        "single": "distributed.bundles:one_process",
    },
    "checks": {  # what each strategy demands of its options
        "ddp": "distributed.checks:ddp",
        "parameter_server": "distributed.checks:parameter_server",
        "ring_allreduce": "distributed.checks:ring_allreduce",
        "ring_tmp": "distributed.checks:ring_tmp",
        "single": "distributed.checks:single",
    },
    "numerics": {  # which of them count as another run
        "ddp": "distributed.numerics:ddp",
        "parameter_server": "distributed.numerics:parameter_server",
        "ring_allreduce": "distributed.numerics:ring_allreduce",
        "ring_tmp": "distributed.numerics:ring_tmp",
        "single": "distributed.numerics:single",
    },
    "tracker": {"mlflow": "sweeps.tracking.tracker:open_for_run", "none": "nmt.training.tracker:open_nothing"},
    "executor": {
        "inline": "sweeps.executors.inline:InlineExecutor",
        "ray_tune": "sweeps.executors.ray_tune:RayTuneExecutor",
    },
}


@cache
def _outside(kind: str) -> dict[str, EntryPoint]:
    """Components of installed packages; they add names, they never replace one of ours."""
    from importlib.metadata import entry_points

    found: dict[str, EntryPoint] = {}
    for point in entry_points(group="nmt.components"):
        name = point.name.removeprefix(f"{kind}.")
        if name == point.name or name in _BUILT_IN[kind]:
            continue
        if name in found and found[name].value != point.value:
            raise UserError(
                f"{kind} '{name}' is offered twice: {found[name].value} and {point.value}",
                where="installed packages",
                hint="uninstall one of them",
            )
        found[name] = point
    return found


@cache
def _table(kind: str) -> dict[str, str]:
    return {name: point.value for name, point in _outside(kind).items()} | _BUILT_IN[kind]


def names(kind: str) -> list[str]:
    """The registered names of a kind, sorted; imports none of them."""
    return sorted(_table(kind))


def lookup(kind: str, name: str, where: str) -> Any:
    """The object registered as `name`, imported now.

    `where` is the config key to blame. Raises UserError for an unknown name, and where the code of an installed package
    cannot be imported.
    """
    place = location(kind, name, where)
    try:
        return load(place)
    except (ImportError, AttributeError) as error:
        if name in _BUILT_IN[kind]:
            raise
        raise UserError(
            f"{kind} '{name}' is {place}, which cannot be imported: {error}",
            where=where,
            hint="mend or reinstall the package that offers it",
        ) from error


def location(kind: str, name: str, where: str) -> str:
    """Where the object registered as `name` stands, `"module:attribute"`; raises UserError for an unknown name."""
    table = _table(kind)
    if name not in table:
        raise UserError(f"unknown {kind} '{name}'", where=where, allowed=names(kind), hint=did_you_mean(name, table))
    return table[name]


def provenance(kind: str, name: str) -> dict[str, str] | None:
    """Which code of an installed package `name` stands for; None for a component of ours or an unknown name.

    `package` and `version` are the distribution's; `sha256` covers the sources (`.py`) of the top-level package or
    module that the entry point names, so that an edit of an unversioned checkout counts too. Runs nothing of it.
    """
    point = _outside(kind).get(name)
    if point is None:
        return None
    about = {"target": point.value, "sha256": _source_digest(point.value)}
    if point.dist is not None:
        about |= {"package": point.dist.name, "version": point.dist.version}
    return about


def _source_digest(target: str) -> str:
    top = target.partition(":")[0].partition(".")[0]
    spec = importlib.util.find_spec(top)
    folders = sorted((spec.submodule_search_locations if spec else None) or [])
    files = [(path.relative_to(folder).as_posix(), path) for folder in folders for path in Path(folder).rglob("*.py")]
    if not files and spec and spec.origin:
        files = [(Path(spec.origin).name, Path(spec.origin))]
    sha = hashlib.sha256()
    for name, path in sorted(files):
        content = path.read_bytes()
        sha.update(f"{name} {len(content)}\n".encode())
        sha.update(content)
    return sha.hexdigest()
