"""Going on from a checkpoint where a strategy has lost a part of the parameters that nobody else holds."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from distributed.strategy import StateLost
from nmt.errors import UserError
from nmt.runs import RunStore
from nmt.training.checkpoint_files import list_checkpoints

log = logging.getLogger("nmt.training")
Result = TypeVar("Result")


def train_through_losses(
    train: Callable[[bool], Result], store: RunStore, run_id: str, note: Callable[..., None], retries: int
) -> Result:
    """What `train` returns; called again, to resume, each time that it raises StateLost.

    Parameters
    ----------
    train: told whether it is called again.
    note: writes an event of the attempt, as `nmt.events.AttemptLog.note` does.
    retries: how often it is called again without a checkpoint newer than the one it resumed from.

    Raises UserError once these are used up.
    """
    losses, newest = 0, None
    while True:
        try:
            return train(newest is not None)
        except StateLost as lost:
            before, newest = newest, max(list_checkpoints(store, run_id), default=0)
            losses = losses + 1 if newest == before else 1
            note("lost", step=max(newest, store.status(run_id).step), back_to=newest, notice=str(lost))
            place = f"the checkpoint of step {newest}" if newest else "the first step"
            if losses > retries:
                raise UserError(
                    str(lost) if losses == 1 else f"{lost}, {losses} times since {place}",
                    where="distribution",
                    hint=f"the same command goes on from {place}; servers have stand-ins with distribution.shadows=1",
                ) from lost
            log.warning("run %s: %s: back to %s", run_id, lost, place)
