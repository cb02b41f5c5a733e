"""The state of a run as every strategy returns and restores it: by parameter name, on the CPU (`Strategy.state`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from distributed.arithmetic import FlatParameters


def to_state(
    flat: FlatParameters, values: torch.Tensor, moments: Mapping[str, torch.Tensor], updates: int
) -> dict[str, Any]:
    """Copies of parameters and optimizer state.

    Parameters
    ----------
    flat: knows which part of a flat buffer belongs to which parameter.
    values, moments: flat buffers [elements] of the parameters, and of the optimizer's slots by name.
    updates: how many were made.
    """
    return {
        "parameters": flat.views(values.detach().cpu().clone()),
        "optimizer": {slot: flat.views(buffer.cpu().clone()) for slot, buffer in moments.items()},
        "updates": updates,
    }


def from_state(
    state: Mapping[str, Any], flat: FlatParameters, values: torch.Tensor, moments: Mapping[str, torch.Tensor]
) -> int:
    """Write what `to_state` returned into flat buffers; returns how many updates were made."""
    with torch.no_grad():
        slots = [(buffer, state["optimizer"][slot]) for slot, buffer in moments.items()]
        for buffer, named in [(values, state["parameters"]), *slots]:
            for name, view in flat.views(buffer).items():
                view.copy_(named[name])
    return int(state["updates"])
