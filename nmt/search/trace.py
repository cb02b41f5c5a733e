"""What a search went through: the hypotheses of every step, their parents and scores; and the way back through them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class SearchTrace:
    """The search of one sentence; the arrays are [steps, slots], with a step for each token chosen.

    Row t holds the hypotheses after the (t + 1)-th choice, so the first row's parents are the empty hypothesis. With
    `search.finishing=google` (and in sampling) there are as many slots as hypotheses; a finished one stays, as a child
    of itself with token EOS, until a better one takes its place. With `standard` there are twice as many: first the
    live ones, then those that ended in this step, which have no children. A slot that holds nothing has the scores
    minus infinity.

    tokens: int64, the token chosen; EOS where the hypothesis ended with it, now or before.
    parents: int64, the slot of the step before that the hypothesis goes on from.
    scores: float64, what it was ranked by.
    log_probabilities: float64, of all its tokens, in nats.
    outputs: (step, slot) of each returned hypothesis, in the order of the hypotheses.
    """

    tokens: np.ndarray
    parents: np.ndarray
    scores: np.ndarray
    log_probabilities: np.ndarray
    outputs: tuple[tuple[int, int], ...]

    def path(self, step: int, slot: int) -> list[int]:
        """The slots [0 .. step] that lead to a hypothesis, its own last."""
        slots = [slot]
        for row in self.parents[step:0:-1]:
            slots.append(int(row[slots[-1]]))
        return slots[::-1]


@dataclass
class Trace:
    """Filled by a search it is handed to: a `SearchTrace` for each sentence of the batch, in order."""

    sentences: list[SearchTrace] = field(default_factory=list)


def gather_tree(parents: Sequence[Tensor] | Tensor, steps: Tensor, slots: Tensor) -> Tensor:
    """The slot that each of some hypotheses went through at each step: [time, batch, n]; 0 after its last step.

    Parameters
    ----------
    parents: a tensor [batch, slots] for each step: the slot of the step before.
    steps: [batch, n] the step at which a hypothesis was last extended, from 0; -1: never.
    slots: [batch, n] where it stood then.
    """
    path = torch.zeros((len(parents), *steps.shape), dtype=torch.int64, device=steps.device)
    for step in range(len(parents) - 1, -1, -1):
        reached = steps >= step
        path[step] = slots * reached
        slots = torch.where(reached, parents[step].gather(1, path[step]), slots)
    return path
