"""Scheduled sampling (Bengio et al. 2015): in training, some of the decoder's inputs come from its own output.

At each step but the first, and for each sentence on its own, the given previous token's embedding is replaced with
probability p. The two forms are those of google/seq2seq:

- `embedding` (ScheduledEmbeddingTraining): by the embedding of a token drawn from the output distribution of the step
  before. No gradient passes through the draw.
- `output` (ScheduledOutputTraining, which feeds the output itself): by the expected embedding under that distribution,
  softmax(logits) · E. This is the reading without parameters of its `next_input_layer`, and gradients pass through.

Which inputs are replaced and what is drawn are functions of (seed, step, slot) alone, as dropout masks are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from nmt.config.schema import ScheduledSamplingConfig
from nmt.models.initialisation import stream


def probability_at(config: ScheduledSamplingConfig, step: int) -> float:
    """Probability of a replacement at a training step (counted from 1): it rises linearly over `ramp_steps`."""
    if config.form == "none":
        return 0.0
    return config.probability * min(1.0, step / config.ramp_steps) if config.ramp_steps else config.probability


@dataclass(frozen=True)
class ScheduledSampling:
    """The replacements of one micro-batch slot of one training step."""

    form: str
    probability: float
    seed: int
    step: int
    slot: int

    def replaced(self, time: int, batch: int, device: torch.device) -> Tensor:
        """Where an input is replaced: [time, batch, 1], never at the first step."""
        uniform = self._uniform("replaced", time, batch, device)
        return ((uniform < self.probability) & (torch.arange(time, device=device).unsqueeze(1) > 0)).unsqueeze(-1)

    def points(self, time: int, batch: int, device: torch.device) -> Tensor:
        """A number in [0, 1) for each draw of a token: [time, batch], float64."""
        return self._uniform("drawn", time, batch, device).double()

    def own_input(self, logits: Tensor, point: Tensor, table: Tensor) -> Tensor:
        """What the decoder is fed of its own: [batch, e].

        Parameters
        ----------
        logits: [batch, V], those of the step before.
        point: [batch], where the draws of this step fall (see `points`).
        table: [V, e], the target embeddings.
        """
        logits = logits if logits.dtype == torch.float64 else logits.float()
        if self.form == "output":
            return logits.log_softmax(dim=-1).exp() @ table
        with torch.no_grad():
            tokens = draw(logits.double().log_softmax(dim=-1).exp(), point)
        return F.embedding(tokens, table)

    def _uniform(self, name: str, time: int, batch: int, device: torch.device) -> Tensor:
        # In float32 the largest number is 1 - 2^-24, so rounding lets no draw fall behind the last token.
        generator = stream(f"{self.seed}/{self.step}/{self.slot}/scheduled_sampling.{name}", device)
        return torch.rand((time, batch), generator=generator, device=device, dtype=torch.float32)


def draw(probabilities: Tensor, point: Tensor) -> Tensor:
    """The token on which each point of [0, 1) falls when tokens are laid side by side by their probabilities.

    First the block of about √V tokens, then the token in it: `torch.cumsum` over the whole vocabulary would do, but not
    under CUDA's deterministic algorithms.

    Parameters
    ----------
    probabilities: [batch, V], float64.
    point: [batch], float64.
    """
    vocabulary = probabilities.shape[1]
    width = math.isqrt(vocabulary - 1) + 1
    blocks = F.pad(probabilities, (0, -vocabulary % width)).unflatten(1, (-1, width))
    sums = blocks.sum(dim=-1)
    ends = _running_sum(sums)
    target = (point * ends[:, -1]).unsqueeze(1)
    block = (ends <= target).sum(dim=1, keepdim=True)
    start = (ends - sums).gather(1, block)
    inside = blocks.gather(1, block.unsqueeze(-1).expand(-1, 1, width)).squeeze(1)
    token = (start + _running_sum(inside) <= target).sum(dim=1)
    return (block.squeeze(1) * width + token.clamp(max=width - 1)).clamp(max=vocabulary - 1)


def _running_sum(x: Tensor) -> Tensor:
    """Sums of the first elements of each row, up to each: [batch, n]."""
    return x @ x.new_ones(x.shape[1], x.shape[1]).triu()
