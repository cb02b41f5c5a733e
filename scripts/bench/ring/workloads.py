"""Sentences of one length: torch's pipelines hand on tensors of one shape only. Processes import this by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from distributed.strategy import WorkloadSpec

if TYPE_CHECKING:
    from nmt.config.schema import RunConfig
    from nmt.training.workload import TranslationWorkload

SENTENCES = 2000


def even_spec(config: RunConfig, length: int) -> WorkloadSpec:
    """Training of a translation model on synthetic sentences of `length` tokens, in both languages."""
    from nmt.config import to_dict

    return WorkloadSpec("bench.ring.workloads:even_workload", {"config": to_dict(config), "length": length})


def even_workload(config: Mapping[str, Any], length: int) -> TranslationWorkload:
    """The factory that `even_spec` names."""
    import numpy as np

    from nmt.config import from_dict
    from nmt.data.prepare import EncodedText
    from nmt.data.ragged import Ragged
    from nmt.profiling.synthetic import synthetic_data
    from nmt.training.device import prepare_arithmetic
    from nmt.training.workload import TranslationWorkload

    complete = from_dict(config)
    prepare_arithmetic("cpu", complete.deterministic)
    prepared = synthetic_data(2 * SENTENCES, vocabulary=complete.tokenizer.vocab_size, evaluated=10)

    def even(text: Any) -> Ragged:
        flat = np.resize(text.flat, SENTENCES * length)
        return Ragged(flat, np.arange(SENTENCES + 1, dtype=np.int64) * length)

    train = EncodedText(even(prepared.train.source), even(prepared.train.target))
    return TranslationWorkload(complete, "cpu", replace(prepared, train=train))
