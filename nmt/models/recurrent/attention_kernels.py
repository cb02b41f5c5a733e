"""Attention of one query a sentence at every step, and back through it, for the decoder's hand-written loop.

What a step adds to the gradients of keys and values is not added up step by step: weights and gradients of all steps
are kept, and one product for each sentence makes the sum.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class AttentionKernel(ABC):
    """Scores, weights and contexts of `time` steps.

    Parameters
    ----------
    keys: [batch, source time, A]. values: [batch, source time, C]. mask: [batch, source time], true where to look.
    parameters: what the score has beside keys and query.
    time: steps of the decoder.
    """

    def __init__(self, keys: Tensor, values: Tensor, mask: Tensor, parameters: tuple[Tensor, ...], time: int):
        self.keys, self.values = keys.detach(), values.detach()
        self.hidden = ~mask
        self.lowest = torch.finfo(keys.dtype).min
        batch, source_time, units = keys.shape
        self.queries = keys.new_empty(time, batch, units)
        self.weights = keys.new_empty(time, batch, source_time)
        self.to_scores = torch.empty_like(self.weights)

    def forward(self, t: int, context: Tensor) -> None:
        """Fill `context` [batch, C] for `queries[t]`."""
        scores = self.score(self.queries[t]).masked_fill_(self.hidden, self.lowest)
        weights = torch.softmax(scores, dim=-1, out=self.weights[t])
        torch.bmm(weights.unsqueeze(1), self.values, out=context.unsqueeze(1))

    def backward(self, t: int, to_context: Tensor) -> Tensor:
        """The gradient of `queries[t]` [batch, A], from that of the context."""
        weights = self.weights[t]
        to_weights = torch.bmm(to_context.unsqueeze(1), self.values.transpose(1, 2)).squeeze(1)
        weighted = to_weights * weights
        to_scores = torch.addcmul(
            weighted, weights, weighted.sum(dim=-1, keepdim=True), value=-1, out=self.to_scores[t]
        )
        return self.through_score(t, to_scores)

    def value_gradient(self, to_contexts: Tensor) -> Tensor:
        """Of the values, from the gradients [time, batch, C] of all contexts."""
        return torch.bmm(self.weights.permute(1, 2, 0), to_contexts.transpose(0, 1))

    @abstractmethod
    def score(self, query: Tensor) -> Tensor:
        """[batch, source time] of a query [batch, A]."""

    @abstractmethod
    def through_score(self, t: int, to_scores: Tensor) -> Tensor:
        """The gradient of `queries[t]`, from that of its scores."""

    @abstractmethod
    def score_gradients(self) -> list[Tensor]:
        """Of the keys and of the parameters, after the last step back."""


class MultiplicativeKernel(AttentionKernel):
    """score = key · query; factors are in the keys."""

    def score(self, query: Tensor) -> Tensor:
        """[batch, source time] of a query [batch, A]."""
        return torch.bmm(query.unsqueeze(1), self.keys.transpose(1, 2)).squeeze(1)

    def through_score(self, t: int, to_scores: Tensor) -> Tensor:
        """The gradient of `queries[t]`, from that of its scores."""
        return torch.bmm(to_scores.unsqueeze(1), self.keys).squeeze(1)

    def score_gradients(self) -> list[Tensor]:
        """Of the keys."""
        return [torch.bmm(self.to_scores.permute(1, 2, 0), self.queries.transpose(0, 1))]


class AdditiveKernel(AttentionKernel):
    """score = v · tanh(key + query).

    The tangents, [batch, source time, A] a step, would be most of what the decoder keeps: they are made again on the
    way back. With z = tanh(key + query) and g the gradient of a score, the gradient before the tangent is
    v g (1 - z²), so that only Σ g, Σ g z and Σ g z² are needed.
    """

    def __init__(self, keys: Tensor, values: Tensor, mask: Tensor, parameters: tuple[Tensor, ...], time: int):
        super().__init__(keys, values, mask, parameters, time)
        self.v = parameters[0].detach()
        self.squares = torch.zeros_like(self.keys)  # Σ g z² over the steps
        self.to_v = torch.zeros_like(self.v)

    def score(self, query: Tensor) -> Tensor:
        """[batch, source time] of a query [batch, A]."""
        return torch.matmul(self._tangents(query), self.v.unsqueeze(1)).squeeze(-1)

    def through_score(self, t: int, to_scores: Tensor) -> Tensor:
        """The gradient of `queries[t]`, from that of its scores."""
        tangents = self._tangents(self.queries[t])
        self.to_v += torch.mm(to_scores.view(1, -1), tangents.flatten(0, 1)).squeeze(0)
        tangents.square_()
        self.squares.addcmul_(tangents, to_scores.unsqueeze(-1))
        squares = torch.bmm(to_scores.unsqueeze(1), tangents).squeeze(1)
        return (to_scores.sum(dim=-1, keepdim=True) - squares).mul_(self.v)

    def score_gradients(self) -> list[Tensor]:
        """Of the keys and of v."""
        to_keys = (self.to_scores.sum(dim=0).unsqueeze(-1) - self.squares).mul_(self.v)
        return [to_keys, self.to_v]

    def _tangents(self, query: Tensor) -> Tensor:
        return torch.add(self.keys, query.unsqueeze(1)).tanh_()
