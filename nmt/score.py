"""`nmt score`: how likely given outputs are under trained checkpoints, pair by pair."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice, zip_longest
from typing import TYPE_CHECKING

from nmt.arguments import option, parse
from nmt.data.streams import CHUNK_BATCHES, STREAM, lines, reading, writing
from nmt.data.vocabulary import EOS, UNK
from nmt.errors import UserError
from nmt.evaluate import COMBINATIONS, DEVICES, placed
from nmt.strict_json import strict_json

if TYPE_CHECKING:
    from nmt.evaluation.decode import PairScore
    from nmt.training.checkpoint import LoadedModel

_EXAMPLES = """
A line of output is the natural logarithm of the target's probability, its end (EOS) counted. With tokens=true it is a
JSON object that also has the target's tokens and the log-probability of each behind those before it. The whole text's
log-perplexity, in nats a token, is told on standard error at the end.

Examples:
  nmt score run=3f2a source=text.en target=text.de > log_probs
  nmt score run=3f2a91c07be4/s1,3f2a91c07be4/s2 source=text.en.gz target=text.de.gz tokens=true output=scores.jsonl
"""


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """What `nmt score` takes."""

    run: list[str] = option(list, "run ids, unique beginnings of them, or run directories: the best checkpoint of each")
    checkpoint: list[str] = option(list, "instead of runs: checkpoint files inside run directories")
    ensemble: str = option("log_prob", "what several checkpoints average", choices=COMBINATIONS)
    source: str = option("", "file with a source sentence a line, plain or .gz; -: standard input")
    target: str = option("", "file with the outputs to be scored, a line each, plain or .gz")
    tokens: bool = option(False, "write JSON objects with the log-probability of each token")
    output: str = option(STREAM, "file to write, plain or .gz, whole or not at all; -: standard output")
    batch_size: int = option(64, "pairs scored together; never changes the output", minimum=1)
    device: str = option("auto", "where to compute", choices=DEVICES)
    threads: int = option(0, "CPU threads; 0: all cores", minimum=0)
    runs: str = option("", "directory of runs; unset: $NMT_RUNS, else runs", key="paths.runs")


@dataclass
class Totals:
    """Sums over the pairs scored; `unknown` counts target tokens that the vocabulary lacks."""

    pairs: int = 0
    tokens: int = 0
    unknown: int = 0
    log_probabilities: list[float] = field(default_factory=list)

    def add(self, score: PairScore, unknown: int) -> None:
        """Count one pair."""
        self.pairs += 1
        self.tokens += len(score.tokens)
        self.unknown += unknown
        self.log_probabilities.append(score.log_probability)

    def __str__(self) -> str:
        """One line: pairs, tokens, log-perplexity in nats a token."""
        values = self.log_probabilities
        total = math.fsum(values) if all(map(math.isfinite, values)) else math.nan
        unknown = f", {self.unknown:,} of them UNK" if self.unknown else ""
        return (
            f"{self.pairs:,} pairs, {self.tokens:,} target tokens with EOS{unknown}: "
            f"log-perplexity {-total / self.tokens:.4f} nats a token"
        )


def score_lines(
    loaded: LoadedModel, sources: Sequence[str], targets: Sequence[str], device: str = "cpu", batch_size: int = 64
) -> list[tuple[PairScore, list[int]]]:
    """The score of each pair of lines and the target's token numbers, without EOS; see `decode.score_pairs`."""
    import numpy as np

    from nmt.data.cleaning import clean
    from nmt.evaluation.decode import score_pairs
    from nmt.training.workload import precision_context

    data = loaded.config.data
    source = [loaded.source_tokenizer.encode(clean(line, data, data.source_language)) for line in sources]
    target = [loaded.target_tokenizer.encode(clean(line, data, data.target_language)) for line in targets]
    source_arrays, target_arrays = ([np.array(tokens, np.int32) for tokens in side] for side in (source, target))
    with precision_context(loaded.config, device):
        scores = score_pairs(loaded.model, source_arrays, target_arrays, device, batch_size=batch_size)
    return list(zip(scores, target, strict=True))


def main(argv: Sequence[str]) -> int:
    """Score as the command line asks; returns the exit code."""
    options = parse(
        ScoreOptions,
        argv,
        verb="nmt score",
        summary="Log-probabilities of given outputs for given sources under trained checkpoints, a line each.",
        epilog=_EXAMPLES,
    )
    for key in ("source", "target"):
        if not getattr(options, key):
            raise UserError("is missing", where=key, hint="see --help")
    if options.source == options.target == STREAM:
        raise UserError("only one side can come from standard input", where="target=-")
    from nmt.config import load_run_config
    from nmt.evaluation.models import find_checkpoints, load_models, run_of
    from nmt.training.device import prepare_device

    checkpoints = find_checkpoints(options.run, options.checkpoint, options.runs, "nmt score")
    store, run_id = run_of(checkpoints[0])
    directory = store.directory(run_id)
    config = placed(load_run_config(directory / "config.yaml"), directory, options.device, options.threads)
    totals = Totals()
    with contextlib.ExitStack() as stack:
        source, target = (stack.enter_context(reading(getattr(options, key), key)) for key in ("source", "target"))
        write = stack.enter_context(writing(options.output))
        device = prepare_device(config)
        loaded = load_models(checkpoints, options.ensemble, device)
        pairs = _pairs(lines(source, options.source), lines(target, options.target), options)
        while chunk := list(islice(pairs, CHUNK_BATCHES * options.batch_size)):
            sources, targets = [pair[0] for pair in chunk], [pair[1] for pair in chunk]
            for score, tokens in score_lines(loaded, sources, targets, device, options.batch_size):
                write(_output(loaded, score, tokens, options.tokens))
                totals.add(score, tokens.count(UNK))
        if not totals.pairs:
            raise UserError("is empty", where=f"source={options.source}")
    print(totals, file=sys.stderr)
    return 0


def _pairs(sources: Iterator[str], targets: Iterator[str], options: ScoreOptions) -> Iterator[tuple[str, str]]:
    for number, (source, target) in enumerate(zip_longest(sources, targets)):
        if source is None or target is None:
            name = f"target={options.target}" if target is None else f"source={options.source}"
            raise UserError(
                f"has {number} lines, and the other side has more", where=name, hint="each source needs its target"
            )
        yield source, target


def _output(loaded: LoadedModel, score: PairScore, tokens: Sequence[int], as_json: bool) -> str:
    if not as_json:
        return f"{score.log_probability:.6f}\n"
    names = [loaded.target_tokenizer.token(token) for token in (*tokens, EOS)]
    record = {
        "log_prob": round(score.log_probability, 6),
        "tokens": names,
        "log_probs": [round(value, 6) for value in score.tokens],
    }
    return strict_json(record) + "\n"
