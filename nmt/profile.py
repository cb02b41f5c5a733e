"""`nmt profile`: what a configuration costs in parameters, arithmetic, memory and time, before it is trained.

With `run=`: what the processes of a trained run spent their time on.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nmt.arguments import option, parse
from nmt.errors import UserError
from nmt.runs import locate_run
from nmt.strict_json import strict_json

if TYPE_CHECKING:
    from nmt.config.schema import RunConfig
    from nmt.data.prepare import PreparedData
    from nmt.profiling.costs import Costs, Shape
    from nmt.profiling.phases import Measurements

FORMAT_VERSION = 1
LENGTH = 25  # tokens a side with EOS, where no corpus says how long sentences are
_WITH_RUN = ("run", "steps", "out", "format", "paths.runs")

_EXAMPLES = """
Config overrides are those of `nmt train`: its groups and keys, from which the configuration is composed.
Parameters, operations and activations follow from the configuration; times and memory are measured on the first steps
of a training that is thrown away. Without the corpus, the former are shown and it is said what is left out.

With run=, the timelines that the processes of a distributed run wrote down are drawn: timeline.png has a row a process,
timeline.json is opened by https://ui.perfetto.dev. Idle is the time in which a process's main thread waits.

Examples:
  nmt profile
  nmt profile experiment=t2_lstm scale=published
  nmt profile data=multi30k_en_de tokenizer=spm_bpe_4k steps=20 trace=step.json
  nmt profile format=json > profile.json
  nmt profile run=3f2a91c07be4/s2 steps=10
"""


@dataclass(frozen=True, kw_only=True)
class ProfileOptions:
    """What `nmt profile` takes beside config overrides."""

    steps: int = option(5, "training steps to measure, 0: none; with run=, the last ones to draw, 0: all", minimum=0)
    warmup: int = option(2, "steps before them, not measured", minimum=1)
    source_length: int = option(0, "source tokens a sentence, EOS counted; 0: the corpus's mean, else 25", minimum=0)
    target_length: int = option(0, "target tokens a sentence, EOS counted; 0: likewise", minimum=0)
    trace: str = option("", "write one step's Chrome trace to this file (torch profiler; open it in Perfetto)")
    format: str = option("text", "how the profile is printed", choices=("text", "json"))
    run: str = option("", "draw the timelines of this run: run id, a unique beginning of one, or a run directory")
    out: str = option("", "with run=, the directory of timeline.png and timeline.json; unset: the run's")


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A configuration's costs. `measured` is None where `left_out` says why."""

    label: str
    machine: dict[str, Any]
    costs: Costs
    measured: Measurements | None
    left_out: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain data, as `format=json` prints it; operations in units of one, times in seconds, memory in bytes."""
        costs, measured = self.costs, self.measured
        return {
            "format_version": FORMAT_VERSION,
            "label": self.label,
            "machine": self.machine,
            **dataclasses.asdict(costs),
            "total_parameters": sum(costs.parameters.values()),
            "training_per_token": costs.training_per_token,
            "decoding_per_token": costs.decoding_per_token,
            "measured": measured
            and dataclasses.asdict(measured)
            | {"seconds": measured.seconds, "tokens_per_second": measured.tokens_per_second},
            "left_out": self.left_out,
        }


def profile(config: RunConfig, options: ProfileOptions | None = None) -> Profile:
    """Count and measure what `config` costs. Raises UserError where a device or option cannot be had."""
    import torch

    from nmt.environment import available_cores, cpu_model
    from nmt.profiling.costs import costs
    from nmt.profiling.phases import measure
    from nmt.training.device import prepare_device

    options = options or ProfileOptions()
    device = prepare_device(config)
    load = os.getloadavg()[0]  # before we add to it
    prepared, left_out = _prepare(config)
    vocabularies = (config.tokenizer.vocab_size,) * 2
    if prepared:
        vocabularies = (prepared.source_tokenizer.size, prepared.target_tokenizer.size)
    counted = costs(config, _shape(config, prepared, options), vocabularies)
    measured = None
    if prepared and options.steps:
        trace = Path(options.trace) if options.trace else None
        measured = measure(config, prepared, device, steps=options.steps, warmup=options.warmup, trace=trace)
    machine = {
        "processor": torch.cuda.get_device_name() if device == "cuda" else cpu_model(),
        "device": device,
        "threads": torch.get_num_threads(),
        "cores": available_cores(),
        "load": load,
        "precision": config.training.precision,
    }
    return Profile(
        label=config.label,
        machine=machine,
        costs=counted,
        measured=measured,
        left_out=left_out or ("" if options.steps else "steps=0 was asked for"),
    )


def main(argv: Sequence[str]) -> int:
    """Profile what the command line composes; returns the exit code."""
    options, overrides = parse(
        ProfileOptions,
        argv,
        verb="nmt profile",
        summary="What a configuration costs: parameters by module, operations for each token, memory, and the time of "
        "each phase of a step. Or what the processes of a trained run spent their time on.",
        epilog=_EXAMPLES,
        rest=True,
    )
    if options.run:
        return _draw_run(options, overrides)
    if options.out:
        raise UserError("is where the timelines of a run go", where="out", hint="give run=...")
    from nmt.config import compose

    config = compose(overrides)
    if options.trace:
        _check_trace(options)
    found = profile(config, options)
    if options.trace and found.measured is None:
        raise UserError(f"there is no step to trace: {found.left_out}", where="trace")
    if options.format == "json":
        print(strict_json(found.to_dict(), indent=1))
        return 0
    from nmt.profiling.report import report

    print(report(found))
    return 0


def _draw_run(options: ProfileOptions, overrides: Sequence[str]) -> int:
    """Draw the timelines of a run; returns the exit code."""
    runs = ""
    for key, _, value in (word.partition("=") for word in overrides):
        if key != "paths.runs":
            raise UserError("is no option for a run that has been trained", where=key, allowed=_WITH_RUN)
        runs = value
    for name in ("warmup", "source_length", "target_length", "trace"):
        if getattr(options, name) != getattr(ProfileOptions(), name):
            raise UserError("is no option for a run that has been trained", where=name, allowed=_WITH_RUN)
    from nmt.profiling.timelines import draw_timelines

    drawn = draw_timelines(*locate_run(options.run, runs), steps=options.steps, out=options.out)
    print(strict_json(drawn.to_dict(), indent=1) if options.format == "json" else drawn.report())
    return 0


def _prepare(config: RunConfig) -> tuple[PreparedData | None, str]:
    """The prepared corpus, or why there is none."""
    from nmt.data.prepare import prepare

    try:
        return prepare(config), ""
    except UserError as error:
        if config.data.kind != "files":
            raise
        return None, str(error)


def _shape(config: RunConfig, prepared: PreparedData | None, options: ProfileOptions) -> Shape:
    """A micro-batch of the configured size, at mean lengths or those asked for."""
    from nmt.profiling.costs import Shape

    lengths = [LENGTH, LENGTH]
    if prepared:
        sides = (prepared.train.source_lengths, prepared.train.target_lengths)
        lengths = [round(float(side.mean())) + 1 for side in sides]
    source, target = options.source_length or lengths[0], options.target_length or lengths[1]
    batch = config.batch
    sentences = batch.size if batch.unit == "sentences" else batch.size // target
    return Shape(max(1, sentences // batch.micro_batches), source, target)


def _check_trace(options: ProfileOptions) -> None:
    folder = Path(options.trace).expanduser().absolute().parent
    if not folder.is_dir():
        raise UserError(f"there is no directory {folder}", where="trace")
    if not options.steps:
        raise UserError("needs at least one step", where="trace", hint="steps=1")
