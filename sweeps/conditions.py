"""In what a row's conditions differ from those under which its published number was obtained.

A published number stands beside a measured one only with the same data, sizes, budget and search. What is published is
what `scale=published` composes to; everything else is said.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nmt.config import RunConfig, explain_difference
from nmt.config.distribution_rules import numerics_of
from nmt.config.identity import canonical
from nmt.config.schema import PLACEMENT, TRAIN
from sweeps.rows import PUBLISHED_SCALE, published_row
from sweeps.spec import RowSpec, SweepSpec


def differences_from_published(
    row: RowSpec, config: RunConfig, spec: SweepSpec, overrides: Sequence[str], conf: Path | None = None
) -> tuple[str, ...]:
    """What is not as published, the weightiest first; empty where the row ran as published.

    Where the published conditions cannot be composed with the row's overrides, the overrides that lead away from them
    are listed instead.
    """
    published = published_row(row, conf)
    if published is None:
        return _leading_away(config, spec, overrides)
    differences = explain_difference(_conditions(config), _conditions(published))
    return (*_scale(config), *_in_words(config, published, differences))


def shared_differences(each: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """What stands in all of several rows' differences, in the first one's order: said once, above a table."""
    first, *others = each or [()]
    return tuple(difference for difference in first if all(difference in other for other in others))


def _conditions(config: RunConfig) -> dict[str, Any]:
    """As declared, so that the comparison needs no corpus; a corpus goes by its name."""
    return canonical(config, {TRAIN}) | {
        "corpus": {"name": config.data.name},
        "search": canonical(config.search, {TRAIN}),
        "distribution": numerics_of(config),
    }


def _in_words(config: RunConfig, published: RunConfig, differences: Sequence[str]) -> list[str]:
    """A clause each for another corpus, tokenizer or distribution; sizes that the scale shrinks go by its name."""
    words, told = [], []
    if config.data.name != published.data.name:
        words.append(f"data={config.data.name} instead of {published.data.name}")
        told += ["corpus.", "data."]
    elif config.data.test != published.data.test:
        words.append(f"test text {_files(config)} instead of {_files(published)}")
    here, there = config.tokenizer, published.tokenizer
    if here.name != there.name:
        words.append(f"tokenizer {here.name} of {here.vocab_size} instead of {there.name} of {there.vocab_size}")
        told += ["tokenizer."]
    distributed = numerics_of(config) != numerics_of(published) or config.batch.per != published.batch.per
    if distributed:
        told += ["distribution.", "batch.per"]
    for key in (difference.partition(":")[0] for difference in differences):
        shrunk = config.scale.dim_divisor > 1 and key.startswith("model.") and key.endswith("units")
        if not shrunk and not key.startswith(tuple(told)):
            words.append(f"{key} {_at(config, key)} instead of {_at(published, key)}")
    if distributed:
        meant = published.distribution.stands_for or _distribution(published)
        words.append(f"distribution={_distribution(config)} instead of {meant}")
    return words


def _distribution(config: RunConfig) -> str:
    """The strategy with what of its options counts: `parameter_server (mode asp, workers 4, servers 2)`."""
    options = [f"{name} {value}" for name, value in numerics_of(config).items() if name != "name"]
    return config.distribution.name + (f" ({', '.join(options)})" if options else "")


def _files(config: RunConfig) -> str:
    return " ".join(config.data.test.source) or "none"


def _at(config: Any, key: str) -> Any:
    """The value of a dotted key; keys of free mappings may be absent."""
    for name in key.split("."):
        config = config.get(name, "nothing") if isinstance(config, Mapping) else getattr(config, name)
    return config


def _scale(config: RunConfig) -> list[str]:
    if config.scale.name == PUBLISHED_SCALE:
        return []
    divisor = config.scale.dim_divisor
    return [f"scale={config.scale.name}" + (f" (sizes divided by {divisor})" if divisor > 1 else "")]


def _leading_away(config: RunConfig, spec: SweepSpec, overrides: Sequence[str]) -> tuple[str, ...]:
    placement = {field.name for field in dataclasses.fields(RunConfig) if field.metadata.get("role") == PLACEMENT}
    placement.remove("distribution")  # which says itself what of it counts
    words = [word for word in (*spec.overrides, *overrides) if re.split(r"[./=]", word)[0] not in placement]
    return (*_scale(config), *words)
