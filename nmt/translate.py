"""`nmt translate`: text through a trained run or a checkpoint, line by line, in order."""

from __future__ import annotations

import contextlib
import gzip
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

from nmt.arguments import option, parse
from nmt.errors import UserError
from nmt.evaluate import DEVICES, locate_run

if TYPE_CHECKING:
    from nmt.config.schema import SearchConfig
    from nmt.training.checkpoint import LoadedModel

CHUNK_BATCHES = 32  # batches whose sentences are read and sorted by length together
STREAM = "-"

_EXAMPLES = """
What is not given of the search is as in the run's configuration. Empty lines stay empty.
With n_best above 1 a line of output is `n ||| text ||| score`, n counting the input's lines from 0.

Examples:
  nmt translate run=3f2a < text.en > text.de
  nmt translate run=3f2a91c07be4/s2 input=text.en.gz output=text.de beam=5 length_penalty=1.0
  nmt translate checkpoint=runs/3f2a91c07be4/s2/checkpoints/step-00002000.pt input=text.en n_best=5
"""


@dataclass(frozen=True, kw_only=True)
class TranslateOptions:
    """What `nmt translate` takes."""

    run: str = option("", "run id, a unique beginning of one, or a run directory: its best checkpoint translates")
    checkpoint: str = option("", "instead of a run: a checkpoint file inside a run directory")
    input: str = option(STREAM, "file to translate, plain or .gz; -: standard input")
    output: str = option(STREAM, "file to write, plain or .gz, whole or not at all; -: standard output")
    beam: int | None = option(None, "hypotheses a sentence; 1 is greedy", minimum=1)
    length_penalty: float | None = option(None, "alpha of the length penalty ((5 + length) / 6)^alpha; 0: none")
    n_best: int | None = option(None, "hypotheses printed a sentence", minimum=1)
    max_length: int | None = option(None, "longest output in tokens", minimum=1)
    max_length_ratio: float | None = option(
        None, "longest output as a multiple of the source's tokens, plus 10; 0: no such limit", minimum=0
    )
    batch_size: int | None = option(None, "sentences decoded together; never changes the output", minimum=1)
    device: str = option("auto", "where to translate", choices=DEVICES)
    threads: int = option(0, "CPU threads; 0: all cores", minimum=0)
    runs: str = option("", "directory of runs; unset: $NMT_RUNS, else runs", key="paths.runs")


@dataclass(frozen=True)
class Translation:
    """One output for a line; `score` is its length-normalised log-probability."""

    text: str
    score: float


def translate_lines(
    loaded: LoadedModel,
    lines: Sequence[str],
    search: SearchConfig,
    device: str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> list[list[Translation]]:
    """The best translations of each line, best first; an empty line has one empty translation."""
    import numpy as np

    from nmt.data.cleaning import clean
    from nmt.data.tokenizer import to_text
    from nmt.evaluation.decode import decode
    from nmt.training.workload import precision_context

    data = loaded.config.data
    sentences = [
        np.array(loaded.source_tokenizer.encode(clean(line, data, data.source_language)), dtype=np.int32)
        for line in lines
    ]
    with precision_context(loaded.config, device):
        n_best = decode(loaded.model, sentences, search, device, progress)
    return [
        [
            Translation(to_text(loaded.target_tokenizer, found.tokens, data, data.target_language), found.score)
            for found in hypotheses
        ]
        for hypotheses in n_best
    ]


def main(argv: Sequence[str]) -> int:
    """Translate as the command line asks; returns the exit code."""
    options = parse(
        TranslateOptions,
        argv,
        verb="nmt translate",
        summary="Translate text with a trained run: a line of output for each line of input, in order.",
        epilog=_EXAMPLES,
    )
    checkpoint = _checkpoint(options)
    with _reading(options.input) as stream, _writing(options.output) as write:
        lines = _lines(stream, "standard input" if options.input == STREAM else options.input)
        _translate(options, checkpoint, lines, write, one_by_one=stream.isatty())
    return 0


def _translate(
    options: TranslateOptions,
    checkpoint: Path,
    lines: Iterator[str],
    write: Callable[[str], None],
    *,
    one_by_one: bool,
) -> None:
    from nmt.evaluation.progress import progress_bar
    from nmt.training.checkpoint import load_model
    from nmt.training.device import prepare_device

    loaded = load_model(checkpoint)
    device = prepare_device(replace(loaded.config, device=options.device, threads=options.threads))
    loaded.model.to(device)
    search = _search(options, loaded.config.search)
    size = 1 if one_by_one else CHUNK_BATCHES * search.batch_size
    done = 0
    with progress_bar("translating") as bar:
        while chunk := list(islice(lines, size)):
            progress = bar and partial(_count_on, bar, done)
            for hypotheses in translate_lines(loaded, chunk, search, device, progress):
                if search.n_best == 1:
                    write(f"{hypotheses[0].text}\n")
                else:
                    write("".join(f"{done} ||| {found.text} ||| {found.score:.4f}\n" for found in hypotheses))
                done += 1


def _count_on(bar: Callable[[int, int], None], before: int, done: int, total: int) -> None:
    bar(before + done, before + total)


def _checkpoint(options: TranslateOptions) -> Path:
    if bool(options.run) == bool(options.checkpoint):
        raise UserError("give one of run=... and checkpoint=...", where="nmt translate", hint="see --help")
    if options.run:
        from nmt.training.checkpoint import find_checkpoint

        return find_checkpoint(*locate_run(options.run, options.runs))
    path = Path(options.checkpoint).expanduser()
    if not path.is_file():
        raise UserError("no such file", where=f"checkpoint={options.checkpoint}")
    return path


def _search(options: TranslateOptions, search: SearchConfig) -> SearchConfig:
    names = ("beam", "length_penalty", "n_best", "max_length", "max_length_ratio", "batch_size")
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    if "n_best" not in given and search.n_best > given.get("beam", search.beam):
        given["n_best"] = given["beam"]  # a narrower beam than the run's own says enough
    search = replace(search, **given)
    if search.n_best > search.beam:
        hint = f"raise beam to at least {search.n_best}"
        raise UserError(f"{search.n_best} best of a beam of {search.beam}", where="n_best", hint=hint)
    return search


def _lines(stream: IO[bytes], name: str) -> Iterator[str]:
    """Lines without their ends. Raises UserError with the line of what is not UTF-8 or cannot be read."""
    number = 0
    try:
        for number, line in enumerate(stream, 1):
            yield line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise UserError(
            f"byte 0x{error.object[error.start]:02x} is not UTF-8",
            where=f"{name}:{number}",
            hint="convert the text to UTF-8",
        ) from error
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"cannot be read: {error}", where=f"{name}:{number + 1}") from error


@contextlib.contextmanager
def _reading(name: str) -> Iterator[IO[bytes]]:
    if name == STREAM:
        yield sys.stdin.buffer
        return
    path = Path(name).expanduser()
    with contextlib.ExitStack() as stack:
        try:
            stream: IO[bytes] = stack.enter_context(path.open("rb"))
        except OSError as error:
            raise UserError(f"cannot be read: {error.strerror}", where=f"input={name}") from error
        if path.suffix == ".gz":
            stream = cast(IO[bytes], stack.enter_context(gzip.open(stream)))
        yield stream


@contextlib.contextmanager
def _writing(name: str) -> Iterator[Callable[[str], None]]:
    """A function that writes text; a file appears under its name when all went well, and not before."""
    if name == STREAM:
        sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
        yield lambda text: print(text, end="", flush=True)
        return
    path = Path(name).expanduser()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with (gzip.open if path.suffix == ".gz" else open)(temporary, "wt", encoding="utf-8", newline="\n") as file:
            yield lambda text: print(text, end="", file=file)
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"cannot be written: {error.strerror}", where=f"output={name}") from error
    finally:
        temporary.unlink(missing_ok=True)
