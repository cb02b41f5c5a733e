"""What a training run remembers between steps, beside parameters and optimizer: small, plain, and saved whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Best:
    """The evaluation whose checkpoint is chosen; what it took to get there is the run's convergence.

    `digest` is that of the checkpoint's parameters.
    """

    step: int
    digest: str
    metrics: dict[str, float]
    target_tokens: int
    seconds: float


@dataclass
class RunState:
    """Progress of a run.

    seconds: training time, the parts before an interruption included, evaluation and checkpoints excluded.
    target_tokens: tokens trained on so far.
    metrics_bytes: length of metrics.jsonl at this state; what lies beyond belongs to steps that are done again.
    journal_bytes: lengths of the run's journals at this state, by name; see `nmt.training.journals`.
    energy: what was measured of it so far; see `nmt.training.energy`.
    evaluation_steps: where evaluations fell (with `validation.every_minutes` that is history, and replayed).
    rate_scale: what a plateau schedule has made of the learning rate.
    timing: `shared` once any part of the run shared its machine with another, else `exclusive`.
    diverged: why the run diverged; empty while it has not.
    """

    step: int = 0
    target_tokens: int = 0
    seconds: float = 0.0
    metrics_bytes: int = 0
    evaluation_steps: list[int] = field(default_factory=list)
    seconds_at_evaluation: float = 0.0
    evaluations_since_best: int = 0
    evaluations_since_decay: int = 0
    rate_scale: float = 1.0
    best: Best | None = None
    diverged: str = ""
    timing: str = "exclusive"
    journal_bytes: dict[str, int] = field(default_factory=dict)
    energy: dict[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a checkpoint; without journals and energy where there are none, as before there were any."""
        data = dataclasses.asdict(self)
        for name in ("journal_bytes", "energy"):
            if not data[name]:
                del data[name]
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> RunState:
        """The state of what `to_dict` returned."""
        best = data.get("best")
        return cls(**{**data, "best": Best(**best) if best else None})
