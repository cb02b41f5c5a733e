"""The data pipeline alone: batches of ever larger corpora, and preparing a corpus."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.children import Job, Report
from bench.machine import Clock, Spread, resident_bytes
from bench.settings import VOCABULARY, Settings
from bench.tables import Part, mega, table

SIZES, QUICK_SIZES = (10**3, 10**4, 10**5, 10**6), (10**3, 10**5)
PREPARED, QUICK_PREPARED = 100_000, 10_000
BATCH, STEPS = 128, 200


def data_jobs(settings: Settings) -> list[Job]:
    """A process for each size of a corpus, and one that prepares."""
    sizes, prepared = (QUICK_SIZES, QUICK_PREPARED) if settings.quick else (SIZES, PREPARED)
    jobs = [Job(f"batches of {size:,} sentences", measure_batches, (settings, size)) for size in sizes]
    return [*jobs, Job(f"preparing {prepared:,} sentences", measure_preparation, (settings, prepared))]


def measure_batches(report: Report, settings: Settings, sentences: int) -> dict[str, Any]:
    """Sentences and tokens a second of sampler and collate on a mapped corpus, and the memory that both take."""
    import numpy as np
    import torch  # noqa: F401 - the first batch would load it

    from nmt.config.schema import BatchConfig
    from nmt.data.batching import Sampler, collate
    from nmt.data.prepare import EncodedText
    from nmt.data.ragged import Ragged
    from nmt.profiling.synthetic import synthetic_text

    with tempfile.TemporaryDirectory() as folder:
        text = synthetic_text(sentences, VOCABULARY)
        for side in ("source", "target"):
            getattr(text, side).save(Path(folder) / side)
        del text
        mapped = EncodedText(*(Ragged.load(Path(folder) / side) for side in ("source", "target")))
        before = resident_bytes()
        with Clock("cpu") as first:
            sampler = Sampler(mapped.source_lengths, mapped.target_lengths, BatchConfig(size=BATCH), seed=1)
            collate(mapped, sampler.slots(1)[0])
        rates = []
        steps = iter(np.linspace(1, sampler.steps_per_epoch, STEPS * settings.rounds).astype(int).tolist())
        for _ in range(settings.rounds):
            tokens = count = 0
            with Clock("cpu") as clock:
                for _ in range(STEPS):
                    batch = collate(mapped, sampler.slots(next(steps))[0])
                    count += len(batch.target_lengths)
                    tokens += int(batch.target_lengths.sum())
            rates.append((count / clock.seconds, tokens / clock.seconds))
        grown = resident_bytes() - before
    report()
    return {
        "sentences": sentences,
        "first_step_seconds": first.seconds,
        "sentences_per_second": [rate for rate, _ in rates],
        "tokens_per_second": [rate for _, rate in rates],
        "grown_bytes": grown,
    }


def measure_preparation(report: Report, settings: Settings, sentences: int) -> dict[str, Any]:
    """Cleaning, a whitespace vocabulary and encoding of plain files; time and memory."""
    import dataclasses

    from nmt.config import compose
    from nmt.data.prepare import prepare
    from nmt.profiling.synthetic import synthetic_text
    from nmt.training.device import peak_memory_bytes

    with tempfile.TemporaryDirectory() as folder:
        _write_text(Path(folder), "train", synthetic_text(sentences, VOCABULARY))
        for split in ("validation", "test"):
            _write_text(Path(folder), split, synthetic_text(100, VOCABULARY, seed=2))
        before = resident_bytes()
        words = ["scale=smoke", "data=files", f"data.dir={folder}", "tokenizer=whitespace"]
        words += [f"tokenizer.vocab_size={VOCABULARY}", "data.max_sentences=0"]
        config = compose(words)
        config = dataclasses.replace(config, paths=dataclasses.replace(config.paths, cache=f"{folder}/cache"))
        with Clock("cpu") as clock:
            prepare(config)
        stored = sum(path.stat().st_size for path in Path(folder, "cache").rglob("*") if path.is_file())
    report()
    return {
        "sentences": sentences,
        "seconds": clock.seconds,
        "stored_bytes": stored,
        "grown_bytes": peak_memory_bytes("cpu") - before,
    }


def _write_text(folder: Path, name: str, text: Any) -> None:
    for side in ("source", "target"):
        with (folder / f"{name}.{side}").open("w", encoding="utf-8") as file:
            file.writelines(" ".join(f"w{n}" for n in sentence.tolist()) + "\n" for sentence in getattr(text, side))


def data_part(settings: Settings, found: Sequence[dict[str, Any]]) -> Part:
    """A row for each size; the ratios are to the smallest corpus."""
    *batches, prepared = found
    rows = []
    tokens = [Spread.of(one["tokens_per_second"]) for one in batches]
    for one, rate in zip(batches, tokens, strict=True):
        sentences = Spread.of(one["sentences_per_second"])
        first = f"{1000 * one['first_step_seconds']:,.0f}"
        memory = (mega(one["grown_bytes"]), f"{one['grown_bytes'] / one['sentences']:,.0f}")
        rows.append([f"{one['sentences']:,}", first, sentences.shown(), rate.shown(), *memory])
    heads = ["sentences", "first batch, ms", "sentences/s", "target tokens/s", "memory, MB", "bytes a sentence"]
    ratios = {
        f"data/time_per_token_{one['sentences']}_over_{batches[0]['sentences']}": tokens[0].median / rate.median
        for one, rate in zip(batches, tokens, strict=True)
    }
    per_second = prepared["sentences"] / prepared["seconds"]
    return Part(
        "Data",
        [
            f"Sampling and batching of {BATCH} sentences at a time from a memory-mapped corpus, on one thread. The "
            "first batch needs the permutation of an epoch. Memory counts the pages of the corpus that were read.",
            table(heads, rows),
            f"Preparing {prepared['sentences']:,} sentences (cleaning, whitespace vocabulary, encoding): "
            f"{per_second:,.0f} sentences/s, {mega(prepared['grown_bytes'])} MB of memory, "
            f"{mega(prepared['stored_bytes'])} MB on disk.",
        ],
        list(found),
        ratios,
    )
