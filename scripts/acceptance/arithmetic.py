"""Whether the device computes what a CPU computes, and the same bits twice."""

from __future__ import annotations

from acceptance.families import SMALL, strategy_of
from acceptance.outcome import Outcome
from acceptance.setting import Setting, without_dropout
from nmt.training.checkpoint import digest_tensors

# Relative differences of the loss. The first step's says whether forward passes agree: TF32, with 10 bits of mantissa,
# would miss it by far. Later ones grow with what rounding did to the parameters.
FIRST_STEP, LATER_STEPS = 1e-5, 2e-3
_ARMS = {"fp32": "training.precision=fp32", "bf16": "training.precision=bf16"}


def check_determinism(setting: Setting) -> Outcome:
    """Twice the same steps from the same seed give the same bits of parameters and moments, dropout on."""
    steps = setting.size(20, 2)
    demands, rows = {}, []
    for family, overrides in SMALL.items():
        for precision, words in _ARMS.items():
            once, again = (_digest(setting, [*overrides, words], steps) for _ in range(2))
            demands[f"{family}, {precision}: {steps} steps twice are the same bits"] = once == again
            rows.append({"family": family, "precision": precision, "digest": once[:16], "again": again[:16]})
    return Outcome(demands, rows=rows, note="The run that was killed and resumed compares two processes bit by bit.")


def check_agreement(setting: Setting) -> Outcome:
    """In fp32 the losses of the first steps are a CPU's, within rounding; without dropout."""
    steps = setting.size(10, 2)
    demands, rows = {}, []
    for family, overrides in SMALL.items():
        there, here = (_losses(setting, overrides, device, steps) for device in (setting.device, "cpu"))
        differences = [abs(one / other - 1) for one, other in zip(there, here, strict=True)]
        demands[f"{family}: first loss within {FIRST_STEP:g}"] = differences[0] <= FIRST_STEP
        demands[f"{family}: losses of {steps} steps within {LATER_STEPS:g}"] = max(differences) <= LATER_STEPS
        rows.append(
            {
                "family": family,
                "first loss": there[0],
                "on a CPU": here[0],
                "difference": differences[0],
                "largest of all steps": max(differences),
            }
        )
    return Outcome(demands, rows=rows, note="Differences are relative.")


def _digest(setting: Setting, overrides: list[str], steps: int) -> str:
    strategy = strategy_of(setting, setting.config(*overrides))
    for index in range(1, steps + 1):
        strategy.step(index)
    return digest_tensors(strategy.state())


def _losses(setting: Setting, overrides: list[str], device: str, steps: int) -> list[float]:
    strategy = strategy_of(setting, without_dropout(setting.config(*overrides)), device)
    return [strategy.step(index).loss for index in range(1, steps + 1)]
