"""A batch's way from the host to the device."""

from __future__ import annotations

import torch
from torch import Tensor

from nmt.data.batching import Batch


def to_device(batch: Batch, device: str) -> Batch:
    """`batch` on `device`; to a GPU it goes while the host works on.

    That takes pinned memory: a copy from ordinary memory holds up the host, `non_blocking` or not. The five tensors go
    as one copy, since on a small batch every copy costs more than its bytes do.
    """
    return batch if device == "cpu" else _through_pinned_memory(batch, device)


def _through_pinned_memory(batch: Batch, device: str) -> Batch:
    sizes = [tensor.numel() for tensor in batch]
    packed = _pinned(sum(sizes))
    torch.cat([tensor.flatten() for tensor in batch], out=packed)
    # torch keeps the pinned memory until the copy has been made, whoever has let go of it before.
    parts = packed.to(device, non_blocking=True).split(sizes)
    return Batch(*(part.view(tensor.shape) for part, tensor in zip(parts, batch, strict=True)))


def _pinned(elements: int) -> Tensor:
    return torch.empty(elements, dtype=torch.int64, pin_memory=True)
