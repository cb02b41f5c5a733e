"""What ratios of the distributed benchmark should be, and whether they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

from bench.tables import Part, table


@dataclass(frozen=True)
class Target:
    """Ratios whose names match `pattern` should be from `least` to `most`."""

    pattern: str
    meaning: str
    least: float = 0.0
    most: float = float("inf")

    def words(self) -> str:
        """The bounds in words."""
        if self.most == float("inf"):
            return f"at least {self.least:g}"
        return f"at most {self.most:g}" if not self.least else f"{self.least:.2f} to {self.most:.2f}"


TARGETS = (
    Target("ps_shm_vs_allreduce", "communication of a step over shared memory ÷ all-reduce with local Adam", most=0.8),
    Target("ps_tcp_vs_allreduce", "the same over TCP", most=1.3),
    Target("ps_step_vs_ddp", "a step of training over shared memory ÷ DDP's", most=1.15),
    Target("ring_vs_gloo", "a sum round a ring over shared memory ÷ gloo's, the worse size", most=1.1),
    Target("ring_tcp_vs_gloo", "the same over TCP", most=1.1),
    Target("ring_step_vs_ddp", "a step of training with a ring over shared memory ÷ DDP's", most=1.1),
    Target("ring_tmp_vs_torch_pipelining", "a step of a ring of stages ÷ that of torch's pipeline, same cut", most=1.1),
    Target("ring_softmax_gain", "a step without the ring softmax ÷ with it, four nodes, emulated", least=1.2),
    Target("bytes_vs_formula", "bytes on the wire ÷ 2 × workers × parameters × 4", least=1.0, most=1.02),
    Target("link_vs_loopback", "rate of a TCP link ÷ plain loop", least=0.9),
    Target("links/*MiB/tcp with checksums/over_plain", "the same with checksums", least=0.9),
    Target("ray/*/times_faster", "times faster than the parameter server of Ray's tutorials", least=5.0),
    Target("memory/*/over_formula", "words of a process ÷ formula", most=1.05),
)


def judged(ratios: Mapping[str, float]) -> list[dict[str, Any]]:
    """Every ratio that there is a target for, in the targets' order."""
    return [
        {"name": name, "value": value, "target": one.words(), "met": one.least <= value <= one.most, "of": one.meaning}
        for one in TARGETS
        for name, value in ratios.items()
        if fnmatch(name, one.pattern)
    ]


def target_part(ratios: Mapping[str, float]) -> Part:
    """The ratios beside their targets, met or missed."""
    found = judged(ratios)
    rows = [
        [one["name"], f"{one['value']:.4g}", one["target"], "met" if one["met"] else "**missed**", one["of"]]
        for one in found
    ]
    text = "Medians over rounds in which all take turns; ratios of times below 1 mean that we are faster."
    return Part("Ratios and their targets", [text, table(["ratio", "measured", "target", "", "of"], rows)], found, {})
