"""The energy of a run: joules of training and of evaluation, told apart, for each thousand target tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nmt.training.state import RunState

NOT_MEASURABLE = "not measurable"
PER_TOKENS = "joules_per_1000_tokens"


class EnergyAccount:
    """Divides what a strategy's counters say among training and evaluation.

    What stands in `state.energy` lives on in checkpoints: `training_joules` and `evaluation_joules`, and the
    `measured_tokens` that were trained on meanwhile, so that a run of which a part was not measurable is divided by
    what was.
    """

    def __init__(self, state: RunState, report: Mapping[str, Any]):
        self._state = state
        self._report: Mapping[str, Any] = report.get("energy", {})
        self._before, self._tokens = self._report.get("joules"), state.target_tokens

    @property
    def measurable(self) -> bool:
        """Whether there was anything to read at the last look."""
        return self._before is not None

    def add(self, part: str, report: Mapping[str, Any]) -> None:
        """What was used since the last look was for `part`: training or evaluation."""
        self._report = report.get("energy", {})
        now, tokens = self._report.get("joules"), self._state.target_tokens
        if now is not None and self._before is not None:
            account = self._state.energy
            for name, used in ((f"{part}_joules", now - self._before), ("measured_tokens", tokens - self._tokens)):
                account[name] = account.get(name, 0) + used
        self._before, self._tokens = now, tokens

    def record(self) -> dict[str, Any]:
        """For the record of an evaluation: curves, or the words that nothing can be measured, with the reason."""
        figures = energy_figures(self._state, self._report)
        if figures[PER_TOKENS] == NOT_MEASURABLE:
            return {"energy": f"{NOT_MEASURABLE}: {figures['reason']}"}
        return {f"energy/{name}": value for name, value in figures.items() if isinstance(value, int | float)}


def energy_figures(state: RunState, report: Mapping[str, Any]) -> dict[str, Any]:
    """For the run's result: joules per thousand target tokens of training, of both parts, and what they cover.

    report: what a strategy says under `energy`. Where nothing was measured, the words instead of the figure and a
    `reason`.
    """
    account, reasons = state.energy, list(report.get("reasons", ()))
    if not account.get("measured_tokens"):
        return {PER_TOKENS: NOT_MEASURABLE, "reason": "; ".join(reasons) or "the strategy does not say"}
    found: dict[str, Any] = {
        PER_TOKENS: 1000.0 * account.get("training_joules", 0.0) / account["measured_tokens"],
        "training_joules": account.get("training_joules", 0.0),
        "evaluation_joules": account.get("evaluation_joules", 0.0),
        "measured_tokens": int(account["measured_tokens"]),
    }
    found |= {name: report[name] for name in ("hosts", "counters") if name in report}
    return found | ({"left_out": reasons} if reasons else {})
