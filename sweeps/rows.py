"""One row of a sweep as a configuration: what its layers say, and the same row as it was published.

Precedence, lowest first: defaults, scale, experiment, the sweep's overrides, the row's, the command line's. Hydra lets
a value (`search.beam=3`) beat a group (`search=beam5`) wherever either stands, so `layered` drops what a higher
layer's group replaces.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from nmt.config import RunConfig, compose
from nmt.config.compose import groups
from nmt.config.schema import SplitConfig
from nmt.errors import UserError
from sweeps.spec import RowSpec, SweepSpec

PUBLISHED_SCALE = "published"


def compose_row(
    spec: SweepSpec, row: RowSpec, overrides: Sequence[str], known_groups: set[str], conf: Path | None = None
) -> RunConfig:
    """The row's configuration for its first replicate, labelled.

    Raises UserError, naming the row, for what does not compose.
    """
    replicates = [] if spec.replicates is None else [f"replicates={spec.replicates}"]
    lower = [f"experiment={row.experiment}", *replicates]
    words = layered([lower, list(spec.overrides), list(row.overrides), list(overrides)], known_groups)
    try:
        config = compose(words, conf)
    except UserError as error:
        said_for_all = {word.partition("=")[0] for word in (*spec.overrides, *overrides)}
        where = error.where if error.where in said_for_all else f"row '{row.label}': {error.where or 'configuration'}"
        raise UserError(error.what, where=where, allowed=error.allowed, hint=error.hint) from error
    if not any(names_test_text(word) for word in words):
        config = scored_on(config, row.test)
    return dataclasses.replace(config, label=row.label)


def published_row(row: RowSpec, conf: Path | None = None) -> RunConfig | None:
    """The row as it was published, from `scale=published`; None where that cannot be composed with its overrides."""
    config = _at_published_scale(row.experiment, row.overrides, conf)
    return None if config is None else scored_on(config, row.test)


@cache
def _at_published_scale(experiment: str, overrides: tuple[str, ...], conf: Path | None) -> RunConfig | None:
    if PUBLISHED_SCALE not in groups(conf).get("scale", []):
        return None
    try:
        return compose([f"experiment={experiment}", f"scale={PUBLISHED_SCALE}", *overrides], conf)
    except UserError:
        return None


def scored_on(config: RunConfig, test: str) -> RunConfig:
    """The configuration with the corpus's test set of this name; unchanged where the corpus names none so."""
    if test not in config.data.tests:
        return config
    named = SplitConfig(**config.data.tests[test])
    return dataclasses.replace(config, data=dataclasses.replace(config.data, test=named))


def layered(layers: Sequence[Sequence[str]], known_groups: set[str]) -> list[str]:
    """One list of overrides in which a later layer always wins.

    A group that a layer chooses (`search=beam5`) drops the values that lower layers put inside it (`search.beam=3`);
    within a layer Hydra's own rule holds. `preset`, `scale` and `experiment` fill many sections and drop nothing: they
    stand below every value.
    """
    merged: list[str] = []
    for layer in layers:
        for override in layer:
            key = override.partition("=")[0]
            if key in known_groups and key not in ("preset", "scale", "experiment"):
                inside = key.replace("/", ".") + "."
                merged = [word for word in merged if not word.startswith(inside)]
        merged += layer
    return merged


def names_test_text(word: str) -> bool:
    """Whether an override says which text a run is scored on, so that the row's own test set does not count."""
    key = word.partition("=")[0]
    return key == "data.test" or key.startswith("data.test.")
