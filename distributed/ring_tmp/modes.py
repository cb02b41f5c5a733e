"""The strategy `ring_tmp`, which has two modes: stages that stay, or parameters that go round.

Stages that stay, also where the process that trains has no more than the model's outlines.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distributed.ring_rotate.strategy import RotateStrategy
from distributed.ring_tmp.outline_strategy import OutlineRingStrategy
from distributed.ring_tmp.strategy import StageRingStrategy
from distributed.strategy import Strategy


def build(options: Mapping[str, Any]) -> Strategy:
    """The strategy of `mode`."""
    if options["mode"] == "rotate":
        return RotateStrategy(options)
    return StageRingStrategy(options) if options["whole_model"] else OutlineRingStrategy(options)
