"""`nmt translate`: text through trained checkpoints, line by line, in order."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from nmt.arguments import names, option, parse
from nmt.data.streams import CHUNK_BATCHES, STREAM, lines, reading, writing
from nmt.errors import UserError
from nmt.evaluate import COMBINATIONS, DEVICES, placed

if TYPE_CHECKING:
    from nmt.config.schema import RunConfig
    from nmt.evaluation.translator import TranslatedLine

SHORT_KEYS = ("beam", "length_penalty", "n_best", "max_length", "max_length_ratio", "batch_size")

_EXAMPLES = """
Overrides: search=<name>, search.<key>=... for every key of conf/search/beam10.yaml (stop, coverage, min_length, method,
replace_unknown, ...). What is not given of the search is as in the run's configuration. Empty lines stay empty.
With n_best above 1 a line of output is `n ||| text ||| score`, n counting the input's lines from 0.

Examples:
  nmt translate run=3f2a < text.en > text.de
  nmt translate run=3f2a91c07be4/s2 input=text.en.gz output=text.de beam=5 length_penalty=1.0
  nmt translate run=3f2a91c07be4/s1,3f2a91c07be4/s2 ensemble=prob input=text.en
  nmt translate checkpoint=runs/3f2a91c07be4/s2/checkpoints/step-00002000.pt input=text.en n_best=5
  nmt translate run=3f2a search.replace_unknown=true search.dictionary=lexicon.en-de input=text.en
  nmt translate run=3f2a input=text.en attention=attention/ tree=beams.html beams=beams.npz
"""


@dataclass(frozen=True, kw_only=True)
class TranslateOptions:
    """What `nmt translate` takes beside overrides of the search."""

    run: list[str] = option(list, "run ids, unique beginnings of them, or run directories: the best checkpoint of each")
    checkpoint: list[str] = option(list, "instead of runs: checkpoint files inside run directories")
    ensemble: str = option("log_prob", "what several checkpoints average", choices=COMBINATIONS)
    input: str = option(STREAM, "file to translate, plain or .gz; -: standard input")
    output: str = option(STREAM, "file to write, plain or .gz, whole or not at all; -: standard output")
    prefix: str = option("", "file with what each output must begin with, a line a line of input; empty: free")
    beam: int | None = option(None, "hypotheses a sentence; 1 is greedy", minimum=1)
    length_penalty: float | None = option(None, "alpha of the length penalty ((5 + length) / 6)^alpha; 0: none")
    n_best: int | None = option(None, "hypotheses printed a sentence", minimum=1)
    max_length: int | None = option(None, "longest output in tokens", minimum=1)
    max_length_ratio: float | None = option(
        None, "longest output as a multiple of the source's tokens, plus 10; 0: no such limit", minimum=0
    )
    batch_size: int | None = option(None, "sentences decoded together; never changes the output", minimum=1)
    attention: str = option("", "folder for attention weights: attention_scores.npz, and a picture a line as .png")
    beams: str = option("", "file for the steps of every search (.npz): tokens, parents, scores, log-probabilities")
    tree: str = option("", "file for a page that shows the searches as trees (.html), to be opened in any browser")
    plots: int = option(20, "lines, from the first on, that attention= and tree= draw", minimum=0)
    device: str = option("auto", "where to translate", choices=DEVICES)
    threads: int = option(0, "CPU threads; 0: all cores", minimum=0)
    runs: str = option("", "directory of runs; unset: $NMT_RUNS, else runs", key="paths.runs")


def main(argv: Sequence[str]) -> int:
    """Translate as the command line asks; returns the exit code."""
    options, words = parse(
        TranslateOptions,
        argv,
        verb="nmt translate",
        summary="Translate text with trained checkpoints: a line of output for each line of input, in order.",
        epilog=_EXAMPLES,
        rest=True,
    )
    _check(options)
    from nmt.config.override import refuse_unknown
    from nmt.config.widths import NO_ATTENTION
    from nmt.evaluation.models import configurations, find_checkpoints, run_of

    refuse_unknown(words, names(TranslateOptions))
    checkpoints = find_checkpoints(options.run, options.checkpoint, options.runs, "nmt translate")
    store, run_id = run_of(checkpoints[0])
    directory = store.directory(run_id)
    members = configurations(checkpoints)
    config = _override(members, options, words)
    if options.attention and all(member.model.attention.name in NO_ATTENTION for member in members):
        raise UserError(f"attention '{config.model.attention.name}' has no weights", where="attention")
    config = placed(config, directory, options.device, options.threads)
    with contextlib.ExitStack() as stack:
        source = stack.enter_context(reading(options.input, "input"))
        prefixes: Iterator[str] | None = None
        if options.prefix:
            prefixes = lines(stack.enter_context(reading(options.prefix, "prefix")), options.prefix)
        write = stack.enter_context(writing(options.output))
        _translate(options, config, checkpoints, lines(source, options.input), prefixes, write, source.isatty())
    return 0


def _check(options: TranslateOptions) -> None:
    for key, ending in (("beams", ".npz"), ("tree", ".html")):
        name = getattr(options, key)
        if name and not name.endswith(ending):
            raise UserError(f"is not the name of a {ending} file", where=f"{key}={name}")
    if options.prefix == options.input == STREAM:
        raise UserError("only one file can come from standard input", where="prefix=-")


def _translate(
    options: TranslateOptions,
    config: RunConfig,
    checkpoints: Sequence[Path],
    source: Iterator[str],
    prefixes: Iterator[str] | None,
    write: Callable[[str], None],
    one_by_one: bool,
) -> None:
    from nmt.evaluation.dumps import open_dumps
    from nmt.evaluation.models import load_models
    from nmt.evaluation.progress import progress_bar
    from nmt.evaluation.translator import translate_lines
    from nmt.training.device import prepare_device

    device = prepare_device(config)
    loaded = load_models(checkpoints, options.ensemble, device)
    size = 1 if one_by_one else CHUNK_BATCHES * config.search.batch_size
    done = 0
    dumped = open_dumps(options.attention, options.beams, options.tree, options.plots, loaded.target_tokenizer)
    with dumped as dumps, progress_bar("translating") as bar:
        while chunk := list(islice(source, size)):
            translated = translate_lines(
                loaded,
                chunk,
                config.search,
                device,
                bar and partial(_count_on, bar, done),
                prefixes=_prefixes(prefixes, len(chunk), options.prefix, done),
                attention=bool(options.attention),
                trace=bool(options.beams or (options.tree and done < options.plots)),
            )
            for line in translated:
                write(_output(line, done, config.search.n_best))
                for dump in dumps:
                    dump.add(done, line)
                done += 1
    if prefixes is not None and next(prefixes, None) is not None:
        raise UserError(f"has more lines than the input, {done}", where=f"prefix={options.prefix}")


def _output(line: TranslatedLine, number: int, n_best: int) -> str:
    if n_best == 1:
        return f"{line.translations[0].text}\n"
    return "".join(f"{number} ||| {found.text} ||| {found.hypothesis.score:.4f}\n" for found in line.translations)


def _prefixes(prefixes: Iterator[str] | None, count: int, name: str, before: int) -> list[str] | None:
    if prefixes is None:
        return None
    taken = list(islice(prefixes, count))
    if len(taken) < count:
        raise UserError(
            f"has {before + len(taken)} lines, and the input has more",
            where=f"prefix={name}",
            hint="write an empty line where nothing is forced",
        )
    return taken


def _count_on(bar: Callable[[int, int], None], before: int, done: int, total: int) -> None:
    bar(before + done, before + total)


def _override(members: Sequence[RunConfig], options: TranslateOptions, words: Sequence[str]) -> RunConfig:
    """The first member's configuration with the search that the command line asks for.

    Short keys are those of `search.`.
    """
    from nmt.config.override import SEARCH, override

    config, *others = members
    given = {name: getattr(options, name) for name in SHORT_KEYS if getattr(options, name) is not None}
    named = {word.partition("=")[0] for word in words}
    if options.beam is not None and options.beam < config.search.n_best and not named & {"search", "search.n_best"}:
        given.setdefault("n_best", options.beam)  # a narrower beam than the run's own says enough
    words = [*words, *(f"search.{name}={value}" for name, value in given.items())]
    return override(config, words, SEARCH, names(TranslateOptions), others)
