"""A model cut for a ring: what of a flat buffer each stage owns, which node gets which, and what a node keeps of it."""

from __future__ import annotations

import math

import pytest
import torch
from staged_toy import staged_spec

from distributed.arithmetic import FlatParameters
from distributed.errors import DistributedError
from distributed.ring_tmp.costs import MemoryRule, StageCost, rounded
from distributed.ring_tmp.cut import Cut, cut_model
from distributed.ring_tmp.passes import Passes
from distributed.ring_tmp.state_transfer import gathered, scatter


def test_stages_own_every_element_once_and_are_shared_out_in_order() -> None:
    workload = staged_spec(stages=5).build()
    flat = FlatParameters(workload.build_model())
    for name in flat.layout:
        flat.view(flat.values, name).uniform_(1.0, 2.0)  # what lies between parameters is zero
    cut = cut_model(workload, shadows=True)
    assert [one.name for one in cut.costs] == ["layer 0", "layer 1", "layer 2", "layer 3", "output"]
    assert cut.borders == [0, 1, 2, 3, 4, 5]
    assert min(cut.seconds) > 0.0
    assert cut.micro_batches == 6
    found = torch.zeros_like(flat.values)
    for part in cut.parts:
        scatter(part, gathered(part, flat.values), found)
    assert torch.equal(found, flat.values)
    sharing = cut.among({4: 1.0, 7: 1.0})
    placement = sharing.placement(1024)
    assert placement.ring.order == (4, 7)
    assert sorted(placement.owners) == list(placement.owners)
    assert set(placement.owners) == {4, 7}
    described = sharing.described()
    assert [name for run in described["stages"] for name in run] == [one.name for one in cut.costs]
    assert (described["nodes"], described["speeds"]) == ([4, 7], [1.0, 1.0])
    assert sum(described["seconds"]) == pytest.approx(sum(map(rounded, cut.seconds)))
    assert described["limit"]


def test_a_cut_keeps_to_the_memory_of_nodes() -> None:
    """The fastest cut has the stages with most parameters on one node, which has no room for both."""
    costs = [
        StageCost("wide", 1.0, {"a": 4_000_000}),
        StageCost("broad", 1.0, {"b": 4_000_000}),
        StageCost("slow", 2.0, {"c": 1_000}),
        StageCost("last", 0.1, {"d": 1_000}),
    ]
    memory = MemoryRule(shadows=False)  # four words a parameter: itself, two moments and a gradient

    def stages(mib: float) -> list[list[str]]:
        return list(Cut([], costs, 4, memory, mib * 2**20).over(2).described()["stages"])

    assert stages(math.inf) == stages(128) == [["wide", "broad"], ["slow", "last"]]
    assert stages(64) == [["wide"], ["broad", "slow", "last"]]
    with pytest.raises(DistributedError, match="needs 122 MiB of 32, 0 MiB of 32") as refused:
        stages(32)
    assert refused.value.where == "distribution.node_memory_mib"


def test_activations_count_where_memory_is_limited() -> None:
    workload = staged_spec(stages=3).build()
    assert sum(one.kept_bytes for one in cut_model(workload, shadows=False).costs) == 0
    limited = cut_model(workload, shadows=False, node_bytes=float(1 << 30))
    assert all(one.kept_bytes > 0 for one in limited.costs)


def test_a_node_has_no_parameters_but_those_of_its_states() -> None:
    workload = staged_spec(stages=3).build()
    passes = Passes(workload)
    assert [part.name for part in passes.parts] == [part.name for part in cut_model(workload, shadows=False).parts]
    assert all(parameter.numel() == 0 for parameter in passes._parameters.values())
