"""The pooling encoder: averages of neighbouring embeddings (Gehring et al. 2016, section 3.1)."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor, nn

from nmt.config.schema import EncoderConfig
from nmt.models.attention import real
from nmt.models.convolutional import windows
from nmt.models.dropout import Dropout
from nmt.models.encoder import EncoderOutput, mean_over_time, zero_beyond_end
from nmt.models.positions import Positions


class PoolingEncoder(nn.Module):
    """Embeddings with positions, averaged over a window that moves by one step.

    `outputs` are the averages, `values` the embeddings with positions themselves, and the final state is the mean of
    the averages over the sentence. A window that reaches beyond the sentence averages what lies inside, so every
    sentence is read as if alone. In google/seq2seq that held for the longest sentence of a batch only: the others' last
    windows had padding averaged in, and their mean over time counted padded steps.

    Parameters
    ----------
    config: `units` is the width of the embeddings; there are neither layers nor cells.
    input_units: width e of the embeddings.
    pool_size: steps that an average is made of; an even one reaches one step further ahead than back.
    positions, combiner, num_positions: see `nmt.models.positions.Positions`.
    dropout: probability of dropping a unit of the embeddings, after their positions have come in.
    """

    def __init__(
        self,
        config: EncoderConfig,
        input_units: int,
        pool_size: int = 5,
        positions: str = "memn2n",
        combiner: str = "multiply",
        num_positions: int = 100,
        dropout: float = 0.2,
    ):
        super().__init__()
        self.positions = Positions(positions, combiner, num_positions, input_units)
        self.pool_size, self.dropout = pool_size, dropout
        self.output_units = self.value_units = self.state_units = input_units

    def forward(self, embedded: Tensor, lengths: Tensor, dropout: Dropout) -> EncoderOutput:
        """Read embeddings [time, batch, e] of sentences of `lengths` [batch] tokens."""
        x = dropout("encoder.embedded", self.positions(embedded), self.dropout)
        x = zero_beyond_end(x, lengths)
        inside = real(lengths, x.shape[0]).t().unsqueeze(-1).to(x.dtype)
        tokens = reduce(torch.add, windows(inside, self.pool_size)).clamp(min=1)
        outputs = zero_beyond_end(reduce(torch.add, windows(x, self.pool_size)) / tokens, lengths)
        return EncoderOutput(outputs, mean_over_time(outputs, lengths), x)
