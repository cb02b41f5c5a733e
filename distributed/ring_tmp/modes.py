"""The strategy `ring_tmp`, which has two modes: stages that stay, or parameters that go round."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from distributed.ring_rotate.strategy import RotateStrategy
from distributed.ring_tmp.strategy import StageRingStrategy
from distributed.strategy import Strategy


def build(options: Mapping[str, Any]) -> Strategy:
    """The strategy of `mode`."""
    return RotateStrategy(options) if options["mode"] == "rotate" else StageRingStrategy(options)
