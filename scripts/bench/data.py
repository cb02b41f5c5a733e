"""The data pipeline: what batches cost as the corpus grows, beside a training step; what preparing a corpus costs."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.children import Job, Report
from bench.machine import Clock, Spread, prepare_machine
from bench.settings import VOCABULARY, Settings
from bench.tables import Part, mega, table

SIZES, QUICK_SIZES = (10**3, 10**4, 10**5, 10**6), (10**3, 10**4, 10**5)
PREPARED, QUICK_PREPARED = (10**4, 10**5, 10**6), (10**3, 10**4)
TOKENIZERS = {
    "whitespace": ("tokenizer=whitespace", f"tokenizer.vocab_size={VOCABULARY}"),
    "sentencepiece_bpe": ("tokenizer=spm_bpe_4k", "tokenizer.vocab_size=2000"),
}
QUICK_TOKENIZERS = ("sentencepiece_bpe",)
STEPS_OF = ("recurrent_128", "recurrent_512")  # shapes that batches are held against, of those that are asked for
BATCH, STEPS, WARM_UP = 128, 200, 2
SAMPLED = 20_000  # sentences of whole epochs that a round makes at least, so that small corpora give a clock enough
SYLLABLES = [consonant + vowel for consonant in "bcdfghklmnprstvz" for vowel in "aeiou"]


def data_jobs(settings: Settings) -> list[Job]:
    """Batches of all sizes in turn, a process for each step that they are held against and for each preparation."""
    sizes, prepared = (QUICK_SIZES, QUICK_PREPARED) if settings.quick else (SIZES, PREPARED)
    tokenizers = QUICK_TOKENIZERS if settings.quick else tuple(TOKENIZERS)
    shapes = [shape for shape in STEPS_OF if shape in settings.shapes][: 1 if settings.quick else None]
    return [
        Job(f"batches of up to {sizes[-1]:,} sentences", measure_batches, (settings, sizes), units=settings.rounds),
        *(Job(f"a step of {shape}", measure_step, (settings, shape)) for shape in shapes),
        *(
            Job(f"preparing {size:,} sentences, {tokenizer}", measure_preparation, (settings, size, tokenizer))
            for tokenizer in tokenizers
            for size in prepared
        ),
    ]


@dataclass
class _Corpus:
    """A memory-mapped corpus under measurement."""

    text: Any
    sampler: Any
    first_step_seconds: float
    kept_bytes: int
    epoch: int = 0


def measure_batches(report: Report, settings: Settings, sizes: Sequence[int]) -> dict[str, Any]:
    """CPU seconds a sentence that sampling and assembling take, size by size in turn, and what the sampler keeps."""
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        corpora = [_corpus(Path(folder, str(size)), size) for size in sizes]
        for size, corpus in zip(sizes, corpora, strict=True):
            known = {"first_step_seconds": corpus.first_step_seconds, "kept_bytes": corpus.kept_bytes}
            found.append({"sentences": size, **known, "sampling_seconds": [], "assembling_seconds": []})
        for turn in range(settings.rounds):
            for corpus, one in zip(corpora, found, strict=True):
                sampling, assembling = _round(corpus, turn)
                one["sampling_seconds"].append(sampling)
                one["assembling_seconds"].append(assembling)
            report()
    return {"batches": found}


def _round(corpus: _Corpus, turn: int) -> tuple[float, float]:
    """CPU seconds a sentence of sampling, with its share of making an epoch, and of assembling."""
    import numpy as np

    from nmt.data.batching import collate

    sampler, steps = corpus.sampler, corpus.sampler.steps_per_epoch
    epochs = max(1, SAMPLED // (steps * BATCH))
    begin = time.thread_time()
    for _ in range(epochs):
        corpus.epoch += 1
        sampler.slots(1 + corpus.epoch * steps)
    made = (time.thread_time() - begin) / (epochs * steps * BATCH)
    wanted = np.random.default_rng(turn).integers(0, steps, STEPS) + 1 + corpus.epoch * steps
    begin = time.thread_time()
    slots = [sampler.slots(step)[0] for step in wanted.tolist()]
    chosen = time.thread_time()
    for numbers in slots:
        collate(corpus.text, numbers)
    end = time.thread_time()
    return made + (chosen - begin) / (STEPS * BATCH), (end - chosen) / (STEPS * BATCH)


def _corpus(path: Path, sentences: int) -> _Corpus:
    """A synthetic corpus, mapped from `path`, and the sampler of its batches."""
    import tracemalloc

    from nmt.config.schema import BatchConfig
    from nmt.data.batching import Sampler, collate
    from nmt.data.prepare import EncodedText
    from nmt.data.ragged import Ragged
    from nmt.profiling.synthetic import synthetic_text

    text = synthetic_text(sentences, VOCABULARY)
    paths = [path.with_suffix(f".{side}") for side in ("source", "target")]
    for side, name in zip((text.source, text.target), paths, strict=True):
        side.save(name)
    del text
    mapped = EncodedText(*map(Ragged.load, paths))

    def begun() -> Any:
        sampler = Sampler(mapped.source_lengths, mapped.target_lengths, BatchConfig(size=BATCH), seed=1)
        collate(mapped, sampler.slots(1)[0])
        return sampler

    begun()  # what is imported and made once
    with Clock("cpu") as first:
        begun()
    tracemalloc.start()
    sampler = begun()
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return _Corpus(mapped, sampler, first.seconds, kept)


def measure_step(report: Report, settings: Settings, shape: str) -> dict[str, Any]:
    """Seconds of a training step of `BATCH` sentences, fp32, with the first of the numbers of threads.

    On a CPU those in which the threads computed, as batches are timed; on a GPU those of the clock.
    """
    import torch

    from distributed.single import SingleStrategy
    from nmt.profiling.phases import Given
    from nmt.training.workload import TranslationWorkload

    prepare_machine(settings)
    torch.set_num_threads(settings.threads[0])
    config = settings.config(shape)
    strategy = SingleStrategy()
    strategy.start(Given("", {}, TranslationWorkload(config, settings.device, settings.data(config))))
    seconds = []
    for index in range(1, WARM_UP + settings.rounds + 1):
        with Clock(settings.device) as clock:
            strategy.step(index)
        seconds.append(clock.seconds * (clock.busy / settings.threads[0] if settings.device == "cpu" else 1))
    report()
    return {"shape": shape, "threads": settings.threads[0], "seconds": seconds[WARM_UP:]}


def measure_preparation(report: Report, settings: Settings, sentences: int, tokenizer: str) -> dict[str, Any]:
    """CPU seconds of reading, cleaning, learning a joint vocabulary and encoding of plain files, and memory."""
    import dataclasses
    import importlib

    from nmt.config import compose
    from nmt.data.prepare import prepare
    from nmt.training.device import peak_memory_bytes

    with tempfile.TemporaryDirectory() as folder:
        for split, count in (("train", sentences), ("validation", 100), ("test", 100)):
            _write_text(Path(folder), split, count)
        words = ["scale=smoke", "data=files", f"data.dir={folder}", "data.max_sentences=0", "data.max_length=1000"]
        config = compose([*words, *TOKENIZERS[tokenizer]])
        config = dataclasses.replace(config, paths=dataclasses.replace(config.paths, cache=f"{folder}/cache"))
        importlib.import_module("sentencepiece")
        before, begin = peak_memory_bytes("cpu"), time.process_time()
        prepared = prepare(config)
        seconds, grown = time.process_time() - begin, peak_memory_bytes("cpu") - before
        assert len(prepared.train) == sentences
        stored = sum(path.stat().st_size for path in Path(folder, "cache").rglob("*") if path.is_file())
    report()
    found = {"sentences": sentences, "tokenizer": tokenizer, "seconds": seconds}
    return found | {"grown_bytes": grown, "stored_bytes": stored}


def _write_text(folder: Path, split: str, sentences: int) -> None:
    """Synthetic text in words of syllables, made in blocks so that this process's peak of memory stays low."""
    from nmt.profiling.synthetic import synthetic_text

    words = [_word(number) for number in range(VOCABULARY)]
    for side in ("source", "target"):
        (folder / f"{split}.{side}").touch()
    for seed, start in enumerate(range(0, sentences, 10_000)):
        text = synthetic_text(min(10_000, sentences - start), VOCABULARY, seed)
        for side in ("source", "target"):
            with (folder / f"{split}.{side}").open("a", encoding="utf-8") as file:
                file.writelines(" ".join(words[n] for n in line.tolist()) + "\n" for line in getattr(text, side))


def _word(number: int) -> str:
    higher, lower = divmod(number, len(SYLLABLES))
    return (_word(higher - 1) if higher else "") + SYLLABLES[lower]


def data_part(settings: Settings, found: Sequence[dict[str, Any]]) -> Part:
    """Growth of batches, alone and as part of training, and of preparation; the ratios are to the smallest corpus."""
    batches = next(one["batches"] for one in found if "batches" in one)
    steps = [one for one in found if "shape" in one]
    prepared = [one for one in found if "tokenizer" in one]
    ratios: dict[str, float] = {}
    rows = list(_batch_rows(batches, steps, ratios))
    shares = [f"of a {step['shape']} step, %" for step in steps]
    heads = ["sentences", "sampling, µs a sentence", "assembling, µs a sentence", "growth", *shares]
    text = [
        f"Sampling (its share of an epoch's permutation included) and assembling {BATCH} sentences at a time from a "
        "memory-mapped corpus: CPU time on one thread, all sizes in turn. What grows is the time that random reads "
        "wait for memory.",
        table([*heads, "first batch, ms", "sampler, bytes a sentence"], rows),
        *(_training_growth(batches, step, ratios) for step in steps),
        "Preparing plain files: reading, cleaning, learning one vocabulary, encoding.",
        table(
            ["tokenizer", "sentences", "CPU s", "µs a sentence", "growth", "memory, MB", "on disk, MB"],
            list(_preparation_rows(prepared, ratios)),
        ),
    ]
    return Part("Data", text, list(found), ratios)


def _batch_rows(
    batches: Sequence[dict[str, Any]], steps: Sequence[dict[str, Any]], ratios: dict[str, float]
) -> Iterator[list[str]]:
    for one in batches:
        growth = Spread.of([own / first for own, first in zip(_totals(one), _totals(batches[0]), strict=True)])
        ratios[f"data/time_per_sentence_{one['sentences']}_over_{batches[0]['sentences']}"] = growth.median
        shares = []
        for step in steps:
            share = Spread.of(_totals(one)).median / _step_seconds(step)
            ratios[f"data/share_of_step_{one['sentences']}/{step['shape']}"] = share
            shares.append(f"{100 * share:.3f}")
        yield [
            f"{one['sentences']:,}",
            *(Spread.of(one[f"{what}_seconds"]).shown(_micro) for what in ("sampling", "assembling")),
            growth.shown("{:.2f}".format),
            *shares,
            f"{1000 * one['first_step_seconds']:,.1f}",
            f"{one['kept_bytes'] / one['sentences']:,.1f}",
        ]


def _training_growth(batches: Sequence[dict[str, Any]], step: dict[str, Any], ratios: dict[str, float]) -> str:
    """How a step and its batch together grow."""
    least, most = (Spread.of(_totals(batches[place])).median + _step_seconds(step) for place in (0, -1))
    first, last = batches[0]["sentences"], batches[-1]["sentences"]
    ratios[f"data/training_time_per_sentence_{last}_over_{first}/{step['shape']}"] = most / least
    seconds = Spread.of(step["seconds"]).shown("{:.3f}".format)
    return (
        f"A step of {step['shape']} with {step['threads']} thread(s) takes {seconds} s; with its batch, a sentence "
        f"takes {most / least:.5f} times as long at {last:,} sentences as at {first:,}."
    )


def _preparation_rows(prepared: Sequence[dict[str, Any]], ratios: dict[str, float]) -> Iterator[list[str]]:
    smallest: dict[str, dict[str, Any]] = {}
    for one in prepared:
        tokenizer, first = one["tokenizer"], smallest.setdefault(one["tokenizer"], one)
        growth = (one["seconds"] / one["sentences"]) / (first["seconds"] / first["sentences"])
        name = f"{one['sentences']}_over_{first['sentences']}/{tokenizer}"
        ratios[f"data/preparation_time_per_sentence_{name}"] = growth
        ratios[f"data/preparation_memory_{name}"] = one["grown_bytes"] / max(1, first["grown_bytes"])
        each = f"{1e6 * one['seconds'] / one['sentences']:,.0f}"
        sizes = (mega(one["grown_bytes"]), mega(one["stored_bytes"]))
        yield [tokenizer, f"{one['sentences']:,}", f"{one['seconds']:,.1f}", each, f"{growth:.2f}", *sizes]


def _totals(one: dict[str, Any]) -> list[float]:
    """Seconds a sentence of each round."""
    return [sum(both) for both in zip(one["sampling_seconds"], one["assembling_seconds"], strict=True)]


def _step_seconds(step: dict[str, Any]) -> float:
    """Seconds a sentence."""
    return Spread.of(step["seconds"]).median / BATCH


def _micro(seconds: float) -> str:
    return f"{1e6 * seconds:.2f}"
