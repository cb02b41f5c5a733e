"""The strategy `ring_tmp`: stages that stay, in one ring or in several, or parameters that go round.

Stages that stay in one ring, also where the process that trains has no more than the model's outlines.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distributed.ring_rotate.strategy import RotateStrategy
from distributed.ring_tmp.outline_strategy import OutlineRingStrategy
from distributed.ring_tmp.strategy import StageRingStrategy
from distributed.ring_torus.strategy import TorusStrategy
from distributed.strategy import Strategy


def build(options: Mapping[str, Any]) -> Strategy:
    """The strategy of `mode`, of how many `rings` there are, and of who has the whole model."""
    if options["mode"] == "rotate":
        return RotateStrategy(options)
    if options["rings"] > 1:
        return TorusStrategy(options)
    return StageRingStrategy(options) if options["whole_model"] else OutlineRingStrategy(options)
