"""Bridges: the decoder's first state from the encoder's final one."""

from __future__ import annotations

from torch import Tensor, nn

from nmt.config.schema import BridgeConfig
from nmt.models.layers import Affine


class ZeroBridge(nn.Module):
    """The decoder starts from zeros.

    Parameters
    ----------
    config: takes no options.
    final_units: width S of the encoder's final state.
    state_units: width of all the decoder's states together.
    """

    def __init__(self, config: BridgeConfig, final_units: int, state_units: int):
        super().__init__()
        self.state_units = state_units

    def forward(self, final_state: Tensor) -> Tensor:
        """[batch, S] -> [batch, state_units]."""
        return final_state.new_zeros(final_state.shape[0], self.state_units)


class ProjectionBridge(nn.Module):
    """One affine map from all final encoder states to all first decoder states, without activation.

    The published None-State model's bridge; parameters of the constructor as in `ZeroBridge`.
    """

    def __init__(self, config: BridgeConfig, final_units: int, state_units: int):
        super().__init__()
        self.projection = Affine(final_units, state_units)

    def forward(self, final_state: Tensor) -> Tensor:
        """[batch, S] -> [batch, state_units]."""
        return self.projection(final_state).to(final_state.dtype)
