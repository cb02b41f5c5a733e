"""In what a row's conditions differ from those under which its published number was obtained.

A published number stands beside a measured one only with the same data, sizes, budget and search. What is published is
what `scale=published` composes to; everything else is said.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nmt.config import RunConfig, compose, explain_difference, training_identity
from nmt.config.compose import groups
from nmt.config.identity import canonical
from nmt.config.schema import PLACEMENT, TRAIN
from nmt.errors import UserError
from sweeps.spec import RowSpec, SweepSpec

PUBLISHED_SCALE = "published"


def differences_from_published(
    row: RowSpec, config: RunConfig, spec: SweepSpec, overrides: Sequence[str], conf: Path | None = None
) -> tuple[str, ...]:
    """Each difference as `"key: here != published"`; empty where the row ran as published.

    Where the published conditions cannot be composed (their corpus is not here, say), the overrides that lead away from
    them are listed instead.
    """
    if PUBLISHED_SCALE not in groups(conf).get("scale", []):
        return _leading_away(config, spec, overrides)
    try:
        words = [f"experiment={row.experiment}", f"scale={PUBLISHED_SCALE}", *row.overrides]
        published = compose(words, conf)
        reference = _conditions(published)
        differs = tuple(explain_difference(_conditions(config), reference))
    except UserError:
        return _leading_away(config, spec, overrides)
    if not differs and config.scale.name != PUBLISHED_SCALE:
        return (f"scale: {config.scale.name} != {PUBLISHED_SCALE}",)
    return differs


def _leading_away(config: RunConfig, spec: SweepSpec, overrides: Sequence[str]) -> tuple[str, ...]:
    placement = {field.name for field in dataclasses.fields(RunConfig) if field.metadata.get("role") == PLACEMENT}
    words = [word for word in (*spec.overrides, *overrides) if re.split(r"[./=]", word)[0] not in placement]
    return (() if config.scale.name == PUBLISHED_SCALE else (f"scale={config.scale.name}",)) + tuple(words)


def _conditions(config: RunConfig) -> dict[str, Any]:
    return training_identity(config) | {"search": canonical(config.search, {TRAIN})}
