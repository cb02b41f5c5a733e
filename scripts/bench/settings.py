"""What is measured, and on what."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nmt.config import RunConfig
    from nmt.data.prepare import PreparedData

VOCABULARY = 8000
# The recurrent shapes have 2 layers of GRUs each side, the encoder's two directions with half the units each; the
# Transformer has 6 layers each side, 8 heads, and 4 times its width inside the feed-forward sublayers.
SHAPES = ("recurrent_128", "recurrent_256", "recurrent_512", "transformer_256")
PRECISIONS = ("fp32", "bf16")


@dataclass(frozen=True)
class Settings:
    """What all parts are told; plain data, so that it travels to other processes.

    device: cpu | cuda. threads: numbers of CPU threads to measure with; on a GPU the first one counts.
    rounds: how often everything is measured, one thing after the other, so that the machine's load falls on all alike.
    data_dir: a Multi30k directory; empty: synthetic sentences of such lengths.
    overrides: of the configuration, for every shape.
    """

    device: str
    threads: tuple[int, ...]
    rounds: int
    quick: bool
    shapes: tuple[str, ...]
    precisions: tuple[str, ...]
    data_dir: str
    overrides: tuple[str, ...]

    def config(self, shape: str, precision: str = "fp32", *more: str) -> RunConfig:
        """The configuration of a shape. Raises UserError for what is wrong with the overrides."""
        from nmt.config import compose

        kind, _, width = shape.partition("_")
        words = ["scale=multi30k", f"data.dir={self.data_dir}", f"tokenizer.vocab_size={VOCABULARY}", "batch.size=128"]
        words += [f"training.precision={precision}", f"device={self.device}"]
        words += ["model.embedding.share=false", "model.embedding.tie_output=false"]
        words += _transformer(int(width)) if kind == "transformer" else _recurrent(int(width))
        return compose([*words, *self.overrides, *more])

    def data(self, config: RunConfig) -> PreparedData:
        """The corpus, or synthetic sentences."""
        from nmt.data.prepare import prepare
        from nmt.profiling.synthetic import synthetic_data

        return prepare(config) if self.data_dir else synthetic_data(vocabulary=VOCABULARY)


def _recurrent(width: int) -> list[str]:
    return [
        *(f"model.embedding.units={width}", f"model.encoder.units={width // 2}", "model.encoder.layers=2"),
        *(f"model.decoder.units={width}", "model.decoder.layers=2"),
        *("model/attention=multiplicative", f"model.attention.units={width}"),
    ]


def _transformer(width: int) -> list[str]:
    inside = 4 * width
    return [
        *("experiment=transformer", f"model.embedding.units={width}", f"model.attention.units={width}"),
        *(f"model.encoder.units={width}", f"model.encoder.options.feed_forward={inside}"),
        *(f"model.decoder.units={width}", f"model.decoder.options.feed_forward={inside}"),
    ]
