"""What a training step and a decoding step ask of the GPU: launches, and times at which the host waits."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from acceptance.families import strategy_of
from acceptance.outcome import NOT_ON_CPU, Outcome
from acceptance.setting import Setting
from acceptance.speed import shapes, timed_config
from nmt.config.schema import RunConfig
from nmt.data.prepare import prepare
from nmt.data.vocabulary import SOS
from nmt.evaluation.decode import decode
from nmt.profiling.counting import HostReads
from nmt.profiling.launches import count_launches, synchronisations

_SENTENCES, _BEAM, _STEPS = 64, 10, 10  # of decoding


def check_launches(setting: Setting) -> Outcome:
    """Counted for one training step, for decoder steps alone, and for a whole search of one batch."""
    rows: list[dict[str, Any]] = []
    places: Counter[str] = Counter()
    for shape, overrides in shapes(setting).items():
        for what, counted in _counts(setting, timed_config(setting, overrides), places).items():
            rows.append({"shape": shape, "of": what} | counted)
    waits = dict(places.most_common(12))
    return Outcome(
        figures={"lines that made the host wait most often": waits if setting.on_gpu else NOT_ON_CPU},
        rows=rows,
        note=f"Decoding: {_SENTENCES} sentences with beam {_BEAM}, {_STEPS} tokens; the search's own set-up and the "
        "reading of outputs are spread over its tokens. `busy` is the share of the time in which the GPU had work, "
        "under the profiler. `host reads` are results that the host looks at, counted on a CPU too. torch does not see "
        "every wait.",
    )


def _counts(setting: Setting, config: RunConfig, places: Counter[str]) -> dict[str, dict[str, Any]]:
    """By what is counted; `places` receives the lines that waited in training and search."""
    strategy = strategy_of(setting, config)
    indices = itertools.count(1)
    search = replace(config.search, beam=_BEAM, batch_size=_SENTENCES, max_length=_STEPS)
    sentences = prepare(config).test.source[:_SENTENCES]
    counts = {"training step": _count(setting, lambda: strategy.step(next(indices)), places)}
    with torch.inference_mode():
        steps = _decoder_steps(setting, strategy.model)
        counts["decoder step"] = _count(setting, steps, Counter(), _STEPS)
        walk = partial(decode, strategy.model, sentences, search, setting.device)
        counts["search, a token"] = _count(setting, walk, places, _STEPS)
    return counts


def _count(setting: Setting, run: Callable[[], object], places: Counter[str], parts: int = 1) -> dict[str, Any]:
    """Figures of one of the `parts` of `run`, which is called several times."""
    run()
    with HostReads() as reads:
        run()
    found: dict[str, Any] = {"host reads": reads.count / parts}
    if not setting.on_gpu:
        names = ("waits", "launches", "kernels", "copies", "milliseconds", "busy")
        return found | dict.fromkeys(names, NOT_ON_CPU)
    with synchronisations() as waits:
        run()
    places.update(waits)
    counted = count_launches(run)
    seconds = setting.seconds(run)  # without the profiler
    return found | {
        "waits": waits.total() / parts,
        "launches": counted.launches / parts,
        "kernels": counted.kernels / parts,
        "copies": counted.copies / parts,
        "milliseconds": 1000 * seconds / parts,
        "busy": counted.busy / counted.seconds,
    }


def _decoder_steps(setting: Setting, model: Any) -> Callable[[], object]:
    """Steps of the decoder alone, without the search that chooses among what it says."""
    length = 16
    source = torch.full((_SENTENCES, length), SOS, device=setting.device)
    lengths = torch.full((_SENTENCES,), length, device=setting.device)
    tokens = torch.full((_SENTENCES, _BEAM), SOS, device=setting.device)
    with torch.inference_mode():
        encoded = model.encode(source, lengths)

    def run() -> None:
        state = model.start(encoded, _BEAM)
        for _ in range(_STEPS):
            _, state, _ = model.step(tokens, state, encoded)

    return run
