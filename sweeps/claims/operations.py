"""Shares of the arithmetic that follow from a configuration alone, so that no run is needed."""

from __future__ import annotations

from nmt.errors import UserError
from sweeps.claims.claim import sweep_spec
from sweeps.rows import published_row

LENGTH = 25  # tokens a side with EOS: the share hardly depends on it


def operation_shares(sweep: str, label: str) -> dict[str, float]:
    """Each part's share of a training step's matrix products at published size, by `encoder`, `decoder`, `attention`
    and `output` (the last projection, to the vocabulary). Imports torch.

    The claims are about the published system, so this does not depend on the scale that is run. Counted is what real
    tokens need, forward and backward (`nmt.profiling.operations`); everything elementwise is left out.
    """
    import numpy as np

    from nmt.profiling.operations import useful_operations

    (row,) = [row for row in sweep_spec(sweep).rows if row.label == label]
    config = published_row(row)
    if config is None:
        raise UserError("has no published form to count", where=f"row '{label}' of {sweep}")
    rows = config.tokenizer.vocab_size
    lengths = np.array([LENGTH])
    parts = useful_operations(config, (rows, rows)).of(lengths, lengths)
    return {name: count / sum(parts.values()) for name, count in parts.items()}


def output_share(sweep: str, label: str) -> float:
    """The output layer's share, from 0 to 1."""
    return operation_shares(sweep, label)["output"]
