"""Speed and memory beside the floors of this machine, all measured in one run.

    python scripts/bench.py                       # minutes; Markdown on stdout, everything as JSON in bench.json
    python scripts/bench.py quick=true            # within 2 minutes
    python scripts/bench.py only=training shapes=recurrent_512 threads=1 data.dir=data/multi30k

Needs no corpus: unless `data.dir` names Multi30k, sentences are synthetic and have the lengths of Multi30k's. The parts
are in `scripts/bench/`; how to read what they print: docs/performance.md.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.children import Job, run_jobs
from bench.settings import PRECISIONS, SHAPES, Settings
from bench.tables import Part

from nmt.arguments import exit_code, option, parse
from nmt.errors import UserError

FORMAT_VERSION = 1
PARTS = ("floors", "training", "memory", "beam", "data", "startup")
QUICK_SHAPES = ("recurrent_128", "recurrent_512")
ROUNDS, QUICK_ROUNDS = 5, 3

_EXAMPLES = """
Other key=value words are overrides of the configuration for every shape (model.encoder.cell.kind=lstm).

Parts:
  floors     matrix products and copies of this machine
  training   target tokens/s and achieved / floor of each shape and precision, by phase of a step
  memory     peak of a training step, each in a process of its own
  beam       sentences/s and peak memory of beam search
  data       batches from corpora of 10^3 to 10^6 sentences, beside a training step; preparing such corpora
  startup    nmt --help, torch, the first step of a run, the overhead of a replicate
"""


@dataclass(frozen=True, kw_only=True)
class BenchOptions:
    """What the script takes beside config overrides."""

    quick: bool = option(False, "fewer shapes and sizes: within 2 minutes on 2 cores")
    only: list[str] = option(list, "parts to measure; none: all", choices=PARTS)
    shapes: list[str] = option(list, "models to measure; none: all", choices=SHAPES)
    precisions: list[str] = option(list, "arithmetic to measure; none: both", choices=PRECISIONS)
    threads: list[str] = option(list, "numbers of CPU threads to measure with; none: 1 and all cores (quick: all)")
    rounds: int | None = option(None, "times that everything is measured; unset: 5, and quick 3", minimum=1)
    device: str = option("auto", "where to compute", choices=("auto", "cpu", "cuda"))
    data_dir: str = option("", "a Multi30k directory (scripts/fetch_corpus.py); empty: synthetic", key="data.dir")
    json: str = option("bench.json", "file that everything is written to")


def main(argv: Sequence[str]) -> int:
    """Measure, print Markdown, write JSON; returns the exit code."""
    options, overrides = parse(
        BenchOptions,
        argv,
        verb="python scripts/bench.py",
        summary="Speed and memory of training, decoding and data beside the floors of this machine.",
        epilog=_EXAMPLES,
        rest=True,
    )
    try:
        report = bench(options, overrides)
        Path(options.json).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot be written: {error.strerror}", where=f"json={options.json}") from error
    return 0


def bench(options: BenchOptions, overrides: Sequence[str]) -> dict[str, Any]:
    """Measure what is asked for and print it; everything as plain data."""
    settings = _settings(options, overrides)
    for shape in settings.shapes:
        settings.config(shape)  # a mistake in the overrides shows now
    _check_writable(options.json)
    begin, load = time.monotonic(), os.getloadavg()[0]
    machine = _machine(settings)
    jobs: list[Job] = []
    asked = [(name, *_PARTS[name]) for name in PARTS if name in (options.only or PARTS)]
    counts = []
    for _, make, _ in asked:
        own = make(settings)
        counts.append(len(own))
        jobs += own
    found = iter(run_jobs(jobs))
    parts = [show(settings, [next(found) for _ in range(n)]) for (_, _, show), n in zip(asked, counts, strict=True)]
    machine |= {"load_before": load, "load_after": os.getloadavg()[0], "seconds": time.monotonic() - begin}
    print("\n\n".join([_heading(machine, settings), *(part.markdown() for part in parts)]))
    return {
        "format_version": FORMAT_VERSION,
        "machine": machine,
        "settings": {"overrides": list(settings.overrides), "rounds": settings.rounds, "quick": settings.quick},
        "parts": {name: part.figures for (name, _, _), part in zip(asked, parts, strict=True)},
        "ratios": {name: value for part in parts for name, value in part.ratios.items()},
    }


def _settings(options: BenchOptions, overrides: Sequence[str]) -> Settings:
    from nmt.environment import available_cores

    try:
        default = (available_cores(),) if options.quick else tuple(dict.fromkeys((1, available_cores())))
        threads = tuple(int(word) for word in options.threads) or default
    except ValueError:
        raise UserError(f"{','.join(options.threads)} are no numbers", where="threads", hint="threads=1,2") from None
    if min(threads) < 1:
        raise UserError(f"{min(threads)} is out of range", where="threads", allowed=[">= 1"])
    device = _device(options.device)
    return Settings(
        device=device,
        threads=threads if device == "cpu" else threads[-1:],
        rounds=options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS),
        quick=options.quick,
        shapes=tuple(options.shapes) or (QUICK_SHAPES if options.quick else SHAPES),
        precisions=tuple(options.precisions) or PRECISIONS,
        data_dir=options.data_dir,
        overrides=tuple(overrides),
    )


def _device(asked: str) -> str:
    import torch

    available = torch.cuda.is_available()
    if asked == "cuda" and not available:
        raise UserError("no CUDA device is visible to this process", where="device", allowed=["cpu", "auto"])
    return "cuda" if available and asked != "cpu" else "cpu"


def _check_writable(name: str) -> None:
    folder = Path(name).absolute().parent
    if not folder.is_dir():
        raise UserError(f"there is no directory {folder}", where="json")


def _machine(settings: Settings) -> dict[str, Any]:
    from nmt.environment import available_cores, describe_environment

    found = describe_environment(settings.device)
    return {
        "processor": found["device"]["name"],
        "cpu": found["cpu"],
        "cores": available_cores(),
        "device": settings.device,
        "threads": list(settings.threads),
        "code": found["code"],
        "packages": {name: found["packages"][name] for name in ("torch", "numpy")},
        "python": found["python"],
    }


def _heading(machine: dict[str, Any], settings: Settings) -> str:
    code = machine["code"]
    commit = (code["commit"] or code["version"])[:12] + (" with changes" if code["dirty"] else "")
    text = "Multi30k" if settings.data_dir else "synthetic sentences with the lengths of Multi30k"
    overrides = f" Overrides: {' '.join(settings.overrides)}." if settings.overrides else ""
    return (
        f"# Benchmark of commit {commit}\n\n{machine['processor']}, {machine['cores']} cores, "
        f"{machine['cpu']['capability']}; torch {machine['packages']['torch']}; {text}; medians of {settings.rounds} "
        f"rounds (least to most); load {machine['load_before']:.1f} before, {machine['load_after']:.1f} after "
        f"{machine['seconds']:.0f} s.{overrides}"
    )


def _parts() -> dict[str, tuple[Callable[[Settings], list[Job]], Callable[[Settings, Sequence[Any]], Part]]]:
    from bench import data, decoding, machine, memory, startup, training

    return {
        "floors": (machine.floor_jobs, machine.floor_part),
        "training": (training.training_jobs, training.training_part),
        "memory": (memory.memory_jobs, memory.memory_part),
        "beam": (decoding.decoding_jobs, decoding.decoding_part),
        "data": (data.data_jobs, data.data_part),
        "startup": (startup.startup_jobs, startup.startup_part),
    }


_PARTS = _parts()

if __name__ == "__main__":
    sys.exit(exit_code(main, sys.argv[1:]))
