"""The strategy `ring_tmp` with several rings, as the trainer sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from distributed.ring_tmp.cut import Cut
from distributed.ring_tmp.strategy import StageRingStrategy
from distributed.ring_torus.coordinator import TorusCoordinator


class TorusStrategy(StageRingStrategy):
    """R rings of N nodes, each with the whole model and a share of each step; equal stages sum their gradients.

    Results are those of `distributed.single`, bit for bit, whatever the numbers of rings and nodes.
    """

    coordinator = TorusCoordinator

    def _share_of(self, cut: Cut) -> Cut:
        """The cut as one of the rings sees it: it has a part of the micro-batches only."""
        rings = self._options["rings"]
        return replace(
            cut,
            micro_batches=-(-cut.micro_batches // rings),
            memory=replace(cut.memory, groups=-(-cut.memory.groups // rings)),
        )

    def report(self) -> Mapping[str, Any]:
        """As of one ring, of which all have the same cut; and how many there are now."""
        found, coordinator = dict(super().report()), self._running()
        assert isinstance(coordinator, TorusCoordinator)
        return found | {"cut": dict(found["cut"]) | {"rings": coordinator.rings}}
