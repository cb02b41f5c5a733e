"""How much work a search did, so that its time can be set against what the machine could do."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class SearchStatistics:
    """Filled by the searches it is handed to.

    sentences: searched for. steps: of whole batches, by one token each.
    computed: rows that the model's step took, those that only fill up a batch among them.
    live: hypotheses that were extended by a token: neither finished nor empty places of the beam.
    beam: places of the beams of sentences with a live hypothesis, which a search that leaves none out would compute.
    source_tokens, padded_source_tokens: encoded, EOS counted, without padding and with it.
    """

    sentences: int = 0
    steps: int = 0
    computed: int = 0
    source_tokens: int = 0
    padded_source_tokens: int = 0
    _going: list[Tensor] = field(default_factory=list)  # two counts a step, on the device: reading one would wait

    @property
    def live(self) -> int:
        """See above."""
        return int(torch.stack(self._going)[:, 0].sum()) if self._going else 0

    @property
    def beam(self) -> int:
        """See above."""
        return int(torch.stack(self._going)[:, 1].sum()) if self._going else 0

    def begin(self, lengths: list[int], padded: int) -> None:
        """A batch of sentences of `lengths` tokens, encoded as `padded` tokens."""
        self.sentences += len(lengths)
        self.source_tokens += sum(lengths)
        self.padded_source_tokens += padded

    def step(self, going: Tensor, rows: int) -> None:
        """A step of `rows` rows that extends the hypotheses `going` [batch, k]."""
        self.steps += 1
        self.computed += rows
        self._going.append(torch.stack((going.sum(), going.any(dim=1).sum() * going.shape[1])))
