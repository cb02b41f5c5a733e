"""Beam search: sentences a second, what of the floor that is, and memory.

An untrained model hardly ever ends a sentence. So EOS is forbidden it, through the output layer's bias, and every
output is as long as its limit: half of its source and 10 tokens, which has Multi30k's mean. The floor of a search is
what its live hypotheses need of matrix products, one step after the other, divided by the best rate of a large
product; what a search computes beside them (finished hypotheses, padding) is not useful. With `data.dir`, the sentences
are those of the test text.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from bench.children import Job, Report
from bench.machine import REFERENCE, Clock, Spread, prepare_machine, resident_bytes, torch_type
from bench.settings import Settings
from bench.tables import Part, mega, table

BEAMS, QUICK_BEAMS = (1, 5, 10, 25), (1, 10)
SENTENCES, QUICK_SENTENCES = 192, 32
NEVER = -1e4  # the bias of EOS


def decoding_jobs(settings: Settings) -> list[Job]:
    """A process for each shape and beam, since each has a peak of memory."""
    shapes = [shape for shape in settings.shapes if shape != "recurrent_256"]
    if settings.quick:
        shapes = [shape for shape in shapes if shape.startswith("recurrent")]
    units = settings.rounds * len(settings.threads)
    return [
        Job(f"beam {beam} {shape}", measure_search, (settings, shape, beam), units)
        for shape in shapes
        for beam in (QUICK_BEAMS if settings.quick else BEAMS)
    ]


def measure_search(report: Report, settings: Settings, shape: str, beam: int) -> dict[str, Any]:
    """Rounds of decoding the same sentences in fp32, for each number of threads."""
    import torch

    from nmt.data.vocabulary import EOS
    from nmt.evaluation.decode import decode
    from nmt.profiling.floors import square_rates
    from nmt.search.statistics import SearchStatistics
    from nmt.training.device import peak_memory_bytes
    from nmt.training.workload import fresh_model

    prepare_machine(settings)
    config = settings.config(shape)
    prepared = settings.data(config)
    count = QUICK_SENTENCES if settings.quick else SENTENCES
    sentences = [prepared.test.source[number] for number in range(min(count, len(prepared.test)))]
    model = fresh_model(config, prepared).to(settings.device)
    with torch.no_grad():
        model.output.bias[EOS] = NEVER
    search = dataclasses.replace(config.search, beam=beam, max_length_ratio=0.5, n_best=1)
    built = peak_memory_bytes("cuda") if settings.device == "cuda" else resident_bytes()
    torch.set_num_threads(max(settings.threads))
    statistics = SearchStatistics()
    outputs = decode(model, sentences, search, settings.device, statistics=statistics)
    peak = peak_memory_bytes(settings.device)
    needed = _needed(config, prepared, sentences, [len(one[0].tokens) for one in outputs], beam, statistics.live)
    rounds = []
    for _ in range(settings.rounds):
        for threads in settings.threads:
            torch.set_num_threads(threads)
            rate = square_rates(torch_type("fp32"), settings.device, (REFERENCE,))[REFERENCE]
            with Clock(settings.device) as clock:
                decode(model, sentences, search, settings.device)
            rounds.append({"threads": threads, "seconds": clock.seconds, "busy": clock.busy, "product_rate": rate})
            report()
    return {
        "shape": shape,
        "beam": beam,
        "sentences": len(sentences),
        "mean_output": sum(len(one[0].tokens) for one in outputs) / len(outputs),
        "live_hypothesis_steps": statistics.live,
        "computed_rows": statistics.computed,
        "useful_operations": needed,
        "built_bytes": built,
        "peak_bytes": peak,
        "rounds": rounds,
    }


def _needed(config: Any, prepared: Any, sentences: Sequence[Any], outputs: Sequence[int], beam: int, live: int) -> int:
    """Operations of encoding the sentences and of their live hypotheses' steps.

    No hypothesis ends before its limit, so a sentence has one live hypothesis at its first step and `beam` at all
    others.
    """
    import numpy as np

    from nmt.profiling.operations import decoding_operations

    operations = decoding_operations(config, (prepared.source_tokenizer.size, prepared.target_tokenizer.size))
    source, behind, counted = [], [], []
    for sentence, length in zip(sentences, outputs, strict=True):
        for step in range(1, length + 1):
            source.append(len(sentence) + 1)
            behind.append(step)
            counted.append(1 if step == 1 else beam)
    assert sum(counted) == live, f"{sum(counted)} hypothesis-steps by the lengths, {live} by the search"
    own = np.array([len(sentence) + 1 for sentence in sentences])
    encoding = operations.encoding.total(own, np.ones_like(own))
    steps = operations.step.total(np.repeat(source, counted), np.repeat(behind, counted))
    return encoding + steps


def decoding_part(settings: Settings, found: Sequence[dict[str, Any]]) -> Part:
    """A row for each shape, beam and number of threads."""
    rows = []
    ratios: dict[str, float] = {}
    for one in found:
        for threads in settings.threads:
            rounds = [each for each in one["rounds"] if each["threads"] == threads]
            speed = Spread.of([one["sentences"] / each["seconds"] for each in rounds])
            achieved = Spread.of([one["useful_operations"] / each["product_rate"] / each["seconds"] for each in rounds])
            ratios[f"beam/{one['shape']}/beam_{one['beam']}/{threads}_threads/achieved_over_floor"] = achieved.median
            live = one["live_hypothesis_steps"]
            cells = [one["shape"], str(one["beam"]), str(threads), speed.shown("{:,.1f}".format)]
            cells += [f"{live / one['sentences']:,.0f}", f"{live / one['computed_rows']:.2f}"]
            cells += [f"{speed.median / achieved.median:,.1f}", achieved.shown("{:.2f}".format)]
            cells += [f"{Spread.of([each['busy'] for each in rounds]).median:.2f}"]
            cells += [mega(one["peak_bytes"]), mega(one["peak_bytes"] - one["built_bytes"])]
            rows.append(cells)
    heads = ["shape", "beam", "threads", "sentences/s", "live steps a sentence", "live ÷ computed rows"]
    heads += ["floor, sentences/s", "achieved ÷ floor", "cores got", "peak, MB", "growth, MB"]
    outputs = Spread.of([one["mean_output"] for one in found]).median if found else 0
    return Part(
        "Beam search",
        [
            f"fp32, {found[0]['sentences'] if found else 0} sentences; untrained models to which EOS is forbidden, so "
            f"that outputs have {outputs:.1f} tokens on average (limit: half the source and 10).",
            table(heads, rows),
        ],
        list(found),
        ratios,
    )
