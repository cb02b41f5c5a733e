"""What every process of a parameter-server run is told once, as plain data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from distributed.shards import ShardMap, cut
from distributed.slot_tree import Node, cover, shares
from distributed.strategy import OptimizerSpec


@dataclass(frozen=True)
class Wire:
    """How gradients travel from workers to servers; see `distributed.parameter_server.compression` and `top_k`.

    type: `fp32` or `bf16`.
    sparse: rows of matrices that are zero are left out.
    top_k: share of the values that is sent, the largest; 0: all.
    warm_up: steps over which that share falls to `top_k`.
    momentum: of what is kept back with `top_k`.
    """

    type: str = "fp32"
    sparse: bool = False
    top_k: float = 0.0
    warm_up: int = 0
    momentum: float = 0.0

    @property
    def is_plain(self) -> bool:
        """Whether a gradient travels as it lies in memory."""
        return self.type == "fp32" and not self.sparse and not self.top_k

    @property
    def is_exact(self) -> bool:
        """Whether what arrives has the bits of what was sent."""
        return self.type == "fp32" and not self.top_k


@dataclass(frozen=True)
class Setup:
    """The shape of the model and of a step, the update rule, and how the work is shared.

    elements: length of the flat buffer of parameters.
    layout: by parameter, where it begins and ends in it.
    widths: by matrix among them, the length of its rows.
    shards: the number of servers that the run began with; the cut stays when one is lost.
    bucket_bytes: what a bucket of the flat buffer holds.
    leaves: groups of a step, which are the leaves of its summation tree.
    backup: how many workers a step does not wait for.
    lost_leaves: `recompute` or `drop`: what becomes of a step's leaves whose worker is lost.
    optimizer: the update rule and clipping.
    workers: how many the run is configured with.
    wire: how gradients travel.
    """

    elements: int
    layout: Mapping[str, tuple[int, int]]
    shards: int
    bucket_bytes: int
    leaves: int
    optimizer: OptimizerSpec
    backup: int = 0
    lost_leaves: str = "recompute"
    workers: int = 1
    widths: Mapping[str, int] = field(default_factory=dict)
    wire: Wire = field(default_factory=Wire)
    options: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def shard_map(self) -> ShardMap:
        """The cut, which is a function of the sizes."""
        return cut(self.elements, self.shards, self.bucket_bytes)

    @cached_property
    def matrices(self) -> Mapping[str, tuple[int, tuple[int, int]]]:
        """By matrix, where it begins in the flat buffer, and its shape."""
        starts = {name: self.layout[name] for name in self.widths}
        return {
            name: (start, ((stop - start) // self.widths[name], self.widths[name]))
            for name, (start, stop) in starts.items()
        }

    @cached_property
    def units(self) -> tuple[Node, ...]:
        """Neighbouring nodes of a step's tree that are never divided among workers.

        A leaf is one, where a sum does not depend on who has added up what. Where pushes are rounded it does: units are
        the nodes that each of the configured workers pushes. Then a step has the same bits whoever computes them.
        """
        if self.wire.is_exact:
            return tuple((leaf, leaf + 1) for leaf in range(self.leaves))
        return tuple(node for own in shares(self.leaves, self.workers) for node in cover(own, self.leaves))

    def owners(self, workers: int) -> list[range]:
        """The leaves that each of so many workers computes."""
        if self.wire.is_exact or workers == self.workers:
            return shares(self.leaves, workers)
        units = [self.units[own.start : own.stop] for own in shares(len(self.units), workers)]
        return [range(own[0][0], own[-1][1]) if own else range(0) for own in units]

    def nodes(self, leaves: Iterable[int]) -> list[Node]:
        """The nodes that are pushed for leaves, which are whole units."""
        if self.wire.is_exact:
            return cover(leaves, self.leaves)
        wanted = set(leaves)
        return [unit for unit in self.units if wanted.issuperset(range(*unit))]

    @property
    def all_leaves_count(self) -> bool:
        """Whether a step is always the sum of all of its leaves."""
        return not self.backup and self.lost_leaves == "recompute"

    def to_dict(self) -> dict[str, Any]:
        """As JSON data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Setup:
        """What `to_dict` returned, after a journey as JSON."""
        return cls(
            **{
                **data,
                "layout": {name: (start, stop) for name, (start, stop) in data["layout"].items()},
                "optimizer": OptimizerSpec(**data["optimizer"]),
                "wire": Wire(**data["wire"]),
            }
        )
