"""What of a strategy's options can change a bit of a result: what counts, beside the rest of a run, as its identity.

The table `numerics` of `nmt.registry` finds the function of a strategy by the strategy's name. Each takes the
configuration's sections `distribution` and `batch` as plain data. An empty answer is a promise: the strategy gives the
bits of `single` with the same slots and groups, whoever computes them where (`distributed.strategy`). Whatever gives
other bits names itself, with its sizes. Keys of `batch` are in the identity already. No torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Section = Mapping[str, Any]


def single(distribution: Section, batch: Section) -> dict[str, Any]:
    """Nothing: this is the reference."""
    return {}


def ddp(distribution: Section, batch: Section) -> dict[str, Any]:
    """The engine adds gradients in an order of its own, which its number of workers and its buckets decide."""
    return _named(distribution, "workers", "engine", "bucket_mib")


def ring_allreduce(distribution: Section, batch: Section) -> dict[str, Any]:
    """How many nodes there are and where buckets end decide in which order a value is added up; so does an engine."""
    return _named(distribution, "workers", "engine", "bucket_mib")


def ring_tmp(distribution: Section, batch: Section) -> dict[str, Any]:
    """Nothing with stages and a flush: each step is the canonical one, wherever the model is cut (`ring_tmp.executor`).

    With two versions of the parameters each gradient is one update late, whatever the number of nodes. Where parameters
    rotate, that number decides in which order a value is added up.
    """
    if distribution["mode"] == "rotate":
        return _named(distribution, "mode", "nodes")
    return _named(distribution, "mode", "schedule") if distribution["schedule"] == "async" else {}


def parameter_server(distribution: Section, batch: Section) -> dict[str, Any]:
    """Nothing where every step is the canonical one: all groups of all workers, unrounded, added by the fixed tree.

    Sending rows of embeddings that were touched leaves out zeros only, and is exact. A `bf16` wire rounds what a worker
    has added up, so their number counts, but not who computes which share, nor the number of servers; where only some
    values are sent (`top_k`), so does how gradients are cut. Without waiting, sizes are part of the experiment.
    """
    rounded = {"wire": distribution["wire"] != "fp32", "top_k": distribution["top_k"] > 0}
    left_out = {"on_loss": distribution["on_loss"] == "drop"}
    if distribution["mode"] == "bsp":
        sizes = ["workers"]
        counts = rounded | left_out | {"backup": distribution["backup"] > 0}
        if not any(counts.values()):
            return {}
    else:
        sizes = ["workers", "servers"]
        counts = (
            rounded
            | left_out
            | {
                "staleness": distribution["mode"] == "ssp",
                "apply_every": distribution["apply_every"] > 1,
                "rate_scaling": distribution["rate_scaling"] != "none",
            }
        )
    cut = []
    if counts["top_k"]:
        cut = ["servers", "bucket_mib"]
        counts |= {name: distribution[name] > 0 for name in ("top_k_warm_up", "top_k_momentum")}
    options = [name for name, does in counts.items() if does]
    return _named(distribution, "mode", *dict.fromkeys([*sizes, *cut, *options]))


def _named(distribution: Section, *names: str) -> dict[str, Any]:
    return {"name": distribution["name"]} | {name: distribution[name] for name in names}
