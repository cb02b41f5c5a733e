"""Bridges: how the encoder's final state reaches the decoder, as its first state or beside each of its inputs."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from nmt.config.schema import BridgeConfig
from nmt.errors import UserError
from nmt.models.layers import Affine


class Bridge(nn.Module, ABC):
    """What every bridge is, those of other packages too.

    Parameters
    ----------
    config: `units` is the width of what it appends to every input of the decoder.
    final_units: width S of the encoder's final state.
    state_units: width of all the decoder's states together.
    """

    def __init__(self, config: BridgeConfig, final_units: int, state_units: int):
        super().__init__()
        self.state_units = state_units
        self.activation = config.activation

    @abstractmethod
    def forward(self, final_state: Tensor) -> Tensor:
        """The decoder's first state: [batch, S] -> [batch, state_units]."""

    def appended(self, final_state: Tensor) -> Tensor:
        """What stands beside the embedding in every input of the decoder: [batch, S] -> [batch, config.units]."""
        return final_state.new_zeros(final_state.shape[0], 0)

    def reads_final_state(self) -> bool:
        """Whether it looks at the final state's values; where not, they need not be carried to it."""
        own = type(self)
        return own.forward is not ZeroBridge.forward or own.appended is not Bridge.appended

    def activate(self, x: Tensor) -> Tensor:
        """The configured activation."""
        return x.tanh() if self.activation == "tanh" else x


class ZeroBridge(Bridge):
    """The decoder starts from zeros."""

    def forward(self, final_state: Tensor) -> Tensor:
        """[batch, S] -> [batch, state_units]."""
        return final_state.new_zeros(final_state.shape[0], self.state_units)


class PassThroughBridge(Bridge):
    """The decoder starts from the encoder's final state, layer by layer: both must have the same structure."""

    def __init__(self, config: BridgeConfig, final_units: int, state_units: int):
        super().__init__(config, final_units, state_units)
        if final_units != state_units:
            raise UserError(
                f"the encoder's final state is {final_units} wide and the decoder's first one {state_units}",
                where="model.bridge.name",
                hint="give both the same layers, units and cell, or model/bridge=projection",
            )

    def forward(self, final_state: Tensor) -> Tensor:
        """[batch, S] -> [batch, S]."""
        return final_state


class ProjectionBridge(Bridge):
    """One affine map from all final encoder states to all first decoder states, then the activation.

    The published None-State model's bridge (google/seq2seq's InitialStateBridge), there without activation.
    """

    def __init__(self, config: BridgeConfig, final_units: int, state_units: int):
        super().__init__(config, final_units, state_units)
        self.projection = Affine(final_units, state_units)

    def forward(self, final_state: Tensor) -> Tensor:
        """[batch, S] -> [batch, state_units]."""
        return self.activate(self.projection(final_state)).to(final_state.dtype)


class ConcatInputBridge(ZeroBridge):
    """An affine map of the final encoder states stands beside the embedding at every step; the first state is zero.

    The published None-Input model's bridge: google/seq2seq's ConcatInputBridge, which it dropped in February 2017.
    """

    def __init__(self, config: BridgeConfig, final_units: int, state_units: int):
        super().__init__(config, final_units, state_units)
        self.projection = Affine(final_units, config.units)

    def appended(self, final_state: Tensor) -> Tensor:
        """[batch, S] -> [batch, config.units]."""
        return self.activate(self.projection(final_state)).to(final_state.dtype)
