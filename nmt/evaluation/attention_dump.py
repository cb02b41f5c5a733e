"""Attention weights of translated lines: numbers in `attention_scores.npz`, a heat map a line in `00000.png`, …"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from nmt.data.streams import refused, replacing
from nmt.data.tokenizer import Tokenizer
from nmt.data.vocabulary import EOS
from nmt.errors import UserError
from nmt.evaluation.heat_map import draw_heat_map
from nmt.evaluation.npz import npz_writer
from nmt.evaluation.translator import TranslatedLine


class AttentionDump:
    """The best translation of each line.

    The archive holds three arrays for line `n`: `weights_n` [output tokens, source tokens + 1] float32, `source_n`
    [source tokens + 1] and `target_n` [output tokens], the tokens as text. The source stands in its own order, whatever
    order the encoder read it in, and its last column is EOS.
    """

    def __init__(self, directory: Path, plots: int, target: Tokenizer, add: Callable[[str, np.ndarray], None]):
        self._directory, self._plots, self._target, self._add = directory, plots, target, add

    def add(self, number: int, line: TranslatedLine) -> None:
        """Write the weights of a line, and draw them where it is one of the first and its output is not empty."""
        best = line.translations[0].hypothesis
        source = [*line.source, self._target.token(EOS)]
        output = [self._target.token(token) for token in best.tokens]
        weights = np.zeros((0, len(source)), dtype=np.float32)
        if best.tokens:
            assert best.attention is not None
            weights = best.attention.numpy()
        self._add(f"weights_{number}", weights)
        self._add(f"source_{number}", _text(source))
        self._add(f"target_{number}", _text(output))
        if number < self._plots and output:
            name = str(self._directory / f"{number:05d}.png")
            with replacing(name, "attention") as temporary, refused(name, "attention"):
                temporary.write_bytes(draw_heat_map(weights, source, output))


@contextmanager
def attention_dump(directory: str, plots: int, target: Tokenizer) -> Iterator[AttentionDump]:
    """Open a dump into a folder, which is made where it is missing. Raises UserError where it cannot be written."""
    path = Path(directory).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot be made: {error.strerror}", where=f"attention={directory}") from error
    with npz_writer(str(path / "attention_scores.npz"), "attention") as add:
        yield AttentionDump(path, plots, target, add)


def _text(tokens: Sequence[str]) -> np.ndarray:
    return np.array(tokens, dtype=np.str_) if tokens else np.zeros(0, dtype="<U1")
