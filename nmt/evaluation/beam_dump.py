"""The steps of every search as arrays, as google/seq2seq's DumpBeams has them: for scripts that look into searches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from nmt.evaluation.npz import npz_writer
from nmt.evaluation.translator import TranslatedLine


class BeamDump:
    """Four arrays [steps, slots] for line `n`: `predicted_ids_n`, `beam_parent_ids_n`, `scores_n`, `log_probs_n`.

    What slots are is told by `nmt.search.trace.SearchTrace`. `outputs_n` [outputs, 2] holds step and slot of each
    returned hypothesis, best first. All are empty for an empty line.
    """

    def __init__(self, add: Callable[[str, np.ndarray], None]):
        self._add = add

    def add(self, number: int, line: TranslatedLine) -> None:
        """Write the search of a line."""
        trace = line.trace
        tokens = parents = np.zeros((0, 0), dtype=np.int64)
        scores = log_probabilities = np.zeros((0, 0))
        outputs = np.zeros((0, 2), dtype=np.int64)
        if trace is not None:
            tokens, parents = trace.tokens, trace.parents
            scores, log_probabilities = trace.scores, trace.log_probabilities
            outputs = np.array(trace.outputs, dtype=np.int64).reshape(-1, 2)
        self._add(f"predicted_ids_{number}", tokens)
        self._add(f"beam_parent_ids_{number}", parents)
        self._add(f"scores_{number}", scores)
        self._add(f"log_probs_{number}", log_probabilities)
        self._add(f"outputs_{number}", outputs)


@contextmanager
def beam_dump(file: str) -> Iterator[BeamDump]:
    """Open a dump into a .npz file. Raises UserError where it cannot be written."""
    with npz_writer(file, "beams") as add:
        yield BeamDump(add)
