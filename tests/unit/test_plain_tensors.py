"""Tensors as plain data, on their way between a trainer without a model and its nodes."""

from __future__ import annotations

import json
import math

import torch

from distributed.ring_tmp.evaluations import from_plain, to_plain


def test_they_arrive_with_their_bits_and_shapes() -> None:
    sent = {
        "floats": torch.tensor([[0.1, -0.0], [math.nan, -math.inf]]),
        "halves": torch.tensor([1.5, 0.1], dtype=torch.bfloat16),
        "columns": torch.arange(6).view(2, 3).t(),
        "flag": torch.tensor(True),
        "nothing": torch.empty(3, 0),
        "none": torch.empty(0, dtype=torch.int64),
    }
    arrived = from_plain(json.loads(json.dumps(to_plain(sent))))
    assert arrived.keys() == sent.keys()
    for name, one in sent.items():
        assert (arrived[name].dtype, arrived[name].shape) == (one.dtype, one.shape)
        assert arrived[name].flatten().view(torch.uint8).tolist() == one.flatten().view(torch.uint8).tolist()
