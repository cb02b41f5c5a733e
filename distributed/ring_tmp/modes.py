"""The strategy `ring_tmp`: stages that stay, in one ring or in several, or parameters that go round."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distributed.ring_rotate.strategy import RotateStrategy
from distributed.ring_tmp.strategy import StageRingStrategy
from distributed.ring_torus.strategy import TorusStrategy
from distributed.strategy import Strategy


def build(options: Mapping[str, Any]) -> Strategy:
    """The strategy of `mode`, and of how many `rings` there are."""
    if options["mode"] == "rotate":
        return RotateStrategy(options)
    return TorusStrategy(options) if options["rings"] > 1 else StageRingStrategy(options)
