"""`nmt vocabulary`: a vocabulary file made of text; or what a prepared corpus's vocabulary covers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nmt.arguments import option, parse
from nmt.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from nmt.config.schema import RunConfig
    from nmt.data.prepare import PreparedData

PERCENTILES = (50, 90, 99, 100)

_EXAMPLES = """
Without config overrides, text is counted: NFC, white space as single spaces, then cut at spaces (or at `delimiter`).
The lines type<tab>count, most frequent first, are what tokenizer.source_vocabulary and .target_vocabulary read.
With overrides (data=..., tokenizer=..., as for `nmt train`), the corpus is prepared as for training, and its
vocabularies are described: their sizes, what is unknown to them in each split, and how long sentences are.

Examples:
  nmt vocabulary input=train.en max_size=10000 output=vocabulary.en
  nmt vocabulary delimiter= min_frequency=5 < train.de > characters.de
  nmt vocabulary data=multi30k_en_de tokenizer=spm_bpe_4k
"""


@dataclass(frozen=True, kw_only=True)
class VocabularyOptions:
    """What `nmt vocabulary` takes beside config overrides."""

    input: list[str] = option(list, "files of text, plain or .gz; none: standard input")
    output: str = option("-", "file to write, plain or .gz; -: standard output")
    min_frequency: int = option(1, "least count of a type that is kept", minimum=1)
    max_size: int = option(0, "most types that are kept; 0: all", minimum=0)
    downcase: bool = option(False, "count in lower case")
    delimiter: str = option(" ", "what stands between tokens; empty: tokens are characters")


@dataclass(frozen=True)
class SplitCoverage:
    """One side of a split, as its vocabulary sees it; `percentiles` are the `PERCENTILES`, in tokens without EOS."""

    split: str
    side: str
    sentences: int
    tokens: int
    unknown: int
    percentiles: tuple[int, ...]

    @property
    def unknown_rate(self) -> float:
        """Unknown tokens, in percent."""
        return 100 * self.unknown / self.tokens if self.tokens else 0.0


def write_vocabulary(options: VocabularyOptions) -> None:
    """Count the types of the text and write the vocabulary file. Raises UserError for text that cannot be read."""
    from nmt.data.streams import writing
    from nmt.data.vocabulary import count_types, write_types

    delimiter = None if options.delimiter == " " else options.delimiter
    counts = count_types(_texts(options), delimiter)
    with writing(options.output) as write:
        for line in write_types(counts, min_frequency=options.min_frequency, max_size=options.max_size):
            write(f"{line}\n")


def coverage(prepared: PreparedData) -> list[SplitCoverage]:
    """What the vocabularies of a prepared corpus cover: both sides of each split that has text."""
    from nmt.data.prepare import SPLITS

    found = []
    for split in SPLITS:
        text = getattr(prepared, split)
        for side, lengths in (("source", text.source_lengths), ("target", text.target_lengths)):
            if len(lengths):
                counts = prepared.report[split]
                tokens, unknown = (counts[f"{side}_{what}"] for what in ("tokens", "unknown"))
                found.append(SplitCoverage(split, side, len(lengths), tokens, unknown, _percentiles(lengths)))
    return found


def describe(config: RunConfig, prepared: PreparedData) -> str:
    """The vocabularies, what became of the training text, and the coverage, as text."""
    lines = []
    for side, report in prepared.report["tokenizer"].items():
        facts = [f"{report['size']:,} rows"]
        facts += [f"{report[name]:,} {name.replace('_', ' ')}" for name in report if name not in ("name", "size")]
        lines.append(f"{side} vocabulary ({report['name']}): {', '.join(facts)}")
    train = prepared.report["train"]
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in train["dropped"].items())
    lines += [
        f"training pairs: {train['read']:,} read, {train['kept']:,} kept, {train['truncated']:,} cut to "
        f"{config.data.max_length} tokens; left out: {dropped}",
        "",
        f"{'split':<12}{'side':<8}{'sentences':>10}{'tokens':>13}{'unknown':>10}{'':>9}   tokens a sentence: "
        f"{', '.join(_percentile_name(one) for one in PERCENTILES)}",
    ]
    for one in coverage(prepared):
        lengths = ", ".join(map(str, one.percentiles))
        lines.append(
            f"{one.split:<12}{one.side:<8}{one.sentences:>10,}{one.tokens:>13,}{one.unknown:>10,}"
            f"{one.unknown_rate:>7.2f} %   {lengths}"
        )
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    """Write or describe a vocabulary as the command line asks; returns the exit code."""
    options, overrides = parse(
        VocabularyOptions,
        argv,
        verb="nmt vocabulary",
        summary="Make a vocabulary file of text, or describe the vocabulary of a prepared corpus.",
        epilog=_EXAMPLES,
        rest=True,
    )
    if not overrides:
        write_vocabulary(options)
        return 0
    for key in [word.partition("=")[0] for word in argv if word not in overrides]:
        raise UserError(
            f"goes with plain text, and {overrides[0]} asks for a prepared corpus",
            where=key,
            hint="leave out the one or the other",
        )
    from nmt.config import compose
    from nmt.data.prepare import prepare

    config = compose(overrides)
    print(describe(config, prepare(config)))
    return 0


def _texts(options: VocabularyOptions) -> Iterator[str]:
    from nmt.data.cleaning import fold, normalise
    from nmt.data.streams import STREAM, lines, reading

    for name in options.input or [STREAM]:
        with reading(name, "input") as stream:
            for line in lines(stream, name):
                yield normalise(fold(normalise(line)) if options.downcase else line)


def _percentiles(lengths: np.ndarray) -> tuple[int, ...]:
    """The least length that at least so many percent of the sentences do not pass."""
    import numpy as np

    found: Any = np.percentile(lengths, PERCENTILES, method="inverted_cdf")
    return tuple(int(value) for value in found)


def _percentile_name(percent: int) -> str:
    return {50: "median", 100: "longest"}.get(percent, f"{percent} %")
