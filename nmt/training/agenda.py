"""What falls on which step of a run: evaluations, checkpoints, probes, and the end of the budget."""

from __future__ import annotations

from collections.abc import Iterable

from nmt.config.schema import RunConfig
from nmt.training.state import RunState


class Agenda:
    """When something else than a step comes.

    `replayed` are steps after which an evaluation is known to have fallen by the clock: they are done again after a
    crash, and the run must not depend on how often it dies.
    """

    def __init__(self, config: RunConfig, replayed: Iterable[int] = ()):
        self._validation, self._training = config.validation, config.training
        self._replayed = frozenset(replayed)

    def is_probed(self, step: int) -> bool:
        """Whether a step is looked into."""
        return _falls_on(step, self._training.probe.every_steps)

    def is_saved(self, step: int) -> bool:
        """Whether a checkpoint is due after a step, beyond those at evaluations."""
        return _falls_on(step, self._training.checkpoint_every_steps)

    def is_evaluated(self, state: RunState) -> bool:
        """Whether an evaluation is due after the step that the run is at."""
        validation, step = self._validation, state.step
        if step == self._training.max_steps or _falls_on(step, validation.every_steps):
            return True
        if not validation.every_minutes:
            return False
        if step <= max(self._replayed, default=0):
            return step in self._replayed  # the clock has spoken already
        return state.seconds - state.seconds_at_evaluation >= 60.0 * validation.every_minutes

    def horizon(self, step: int) -> int:
        """The step, `step` or a later one, up to which nothing is known to come between two steps.

        A probed step stands alone. Evaluations by the clock come as a surprise, but for those that are replayed.
        """
        if self.is_probed(step):
            return step
        intervals = (self._validation.every_steps, self._training.checkpoint_every_steps)
        borders = [-(-step // every) * every for every in intervals if every]
        if every := self._training.probe.every_steps:
            borders.append(step + every - 1 - step % every)
        borders += [replayed for replayed in self._replayed if replayed >= step]
        return min([*borders, self._training.max_steps])


def _falls_on(step: int, every: int) -> bool:
    return bool(every) and step % every == 0
