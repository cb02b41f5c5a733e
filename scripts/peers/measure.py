"""Timing systems in turn, so that whatever else the machine does falls on all of them.

A round asks every arm once, and measures the machine's product rate before. Ratios are taken inside a round; of rounds
the median is reported. What has to be one figure is processor time with one thread, which other processes disturb
least, and wall time with several, of which some wait.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from nmt.errors import UserError
from peers.processes import Driver
from peers.useful import needed_rows
from peers.work import Work

CHUNK = 25  # steps that an arm trains before it is the next one's turn
OURS = "ours"  # arms whose name begins so are ours
BF16 = " bf16"  # ends the name of a system's arm in bf16
PRODUCT = 2048  # rows and columns of the product that measures the machine

Drivers = Mapping[str, Driver]


@dataclass
class Training:
    """Training steps of an arm, round by round.

    loss: mean over the rounds, in nats a token. peak: bytes of memory at most.
    """

    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    loss: float = 0.0
    peak: int = 0


@dataclass(frozen=True)
class Trial:
    """One decoding before the rounds: its time, and bytes of memory at most beyond those before it."""

    seconds: float
    growth: int


@dataclass
class Decoding:
    """Decodings of the test text by an arm in its best setting, round by round.

    rule, batch_size: the setting. tried: the settings it was chosen from, by batch size. lengths: steps of each
    output, EOS counted. rows: hypotheses that went through the decoder.
    """

    rule: str
    batch_size: int
    tried: dict[int, Trial]
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    outputs: list[list[str]] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    rows: int = 0

    def needed(self, beam: int) -> int:
        """Hypothesis-steps that these outputs need: see `peers.useful.needed_rows`."""
        return sum(needed_rows(length, beam) for length in self.lengths)


@dataclass(frozen=True)
class TrainingRounds:
    """All arms over the same steps; `rates` are FLOP/s of a large product in each round."""

    rates: list[float]
    load: float
    tokens: int
    steps: list[int]
    arms: dict[str, Training]


@dataclass(frozen=True)
class DecodingRounds:
    """All arms over the same text with one beam; by arm and rule."""

    beam: int
    rates: list[float]
    load: float
    arms: dict[str, list[Decoding]]


def train(
    drivers: Drivers, start: Callable[[str], Driver], precision: str, work: Work, steps: int, states: Path
) -> dict[str, list[float]]:
    """Bring every arm to the end of step `steps`: the loss of each arm's system over every `CHUNK` steps.

    Both arms of a system get the same parameters. What was trained once is read from `states`.

    Parameters
    ----------
    start: starts a driver of a system that trains in `precision`.
    """
    if not steps:
        return {name: [] for name in drivers}
    systems = {name: name.removesuffix(BF16) for name in drivers}
    places = {
        system: states / f"{_state_key(system, drivers[system], precision, work, steps)}.pt"
        for system in systems.values()
    }
    learners = {system: start(system) for system, place in places.items() if not _curve_file(place).is_file()}
    curves: dict[str, list[float]] = {system: [] for system in learners}
    for first in range(1, steps + 1 if learners else 1, CHUNK):
        count = min(CHUNK, steps + 1 - first)
        for system, learner in learners.items():
            curves[system].append(learner.ask("train", first=first, count=count)["loss"])
        losses = ", ".join(f"{system} {curve[-1]:.2f}" for system, curve in curves.items())
        _tell(f"trained to step {first + count - 1} of {steps}: loss {losses}")
    for system, learner in learners.items():
        states.mkdir(parents=True, exist_ok=True)
        learner.ask("save", path=str(places[system]))
        _curve_file(places[system]).write_text(json.dumps(curves[system]) + "\n", encoding="utf-8")
        learner.close()
    for name, driver in drivers.items():
        driver.ask("load", path=str(places[systems[name]]))
    return {
        name: json.loads(_curve_file(places[system]).read_text(encoding="utf-8")) for name, system in systems.items()
    }


def time_training(drivers: Drivers, floor: Driver, first: int, rounds: int, steps: int) -> TrainingRounds:
    """`rounds` rounds of `steps` steps each, from step `first` on, after a step that is not counted.

    Raises UserError where the arms do not count the same target tokens.
    """
    for driver in drivers.values():
        driver.ask("train", first=first, count=1)
    arms = {name: Training() for name in drivers}
    rates, loads, total = [], [], 0
    for number in range(rounds):
        rates.append(floor.ask("product", size=PRODUCT))
        tokens = set()
        for name, driver in drivers.items():
            answer = driver.ask("train", first=first + 1 + number * steps, count=steps)
            tokens.add(answer["tokens"])
            arm = arms[name]
            arm.seconds.append(answer["seconds"])
            arm.cpu_seconds.append(answer["cpu_seconds"])
            arm.loss += answer["loss"] / rounds
            arm.peak = max(arm.peak, answer["peak"])
        if len(tokens) != 1:
            raise UserError(f"the systems count {sorted(tokens)} target tokens in the same steps")
        total += tokens.pop()
        loads.append(_load())
        _tell(f"training round {number + 1} of {rounds}")
    done = list(range(first + 1, first + 1 + rounds * steps))
    return TrainingRounds(rates, max(loads), total, done, arms)


def time_decoding(
    drivers: Drivers, floor: Driver, beam: int, rounds: int, batch_sizes: Sequence[int], max_length: int
) -> DecodingRounds:
    """`rounds` decodings of the test text by every arm under each rule that it has, at its fastest batch size.

    `max_length` is that of the work's settings.
    """
    settings = {name: driver.ask("rules", beam=beam) for name, driver in drivers.items()}
    arms = {
        name: [_fastest(drivers[name], beam, rule, batch_sizes) for rule in rules] for name, rules in settings.items()
    }
    rates, loads = [], []
    for number in range(rounds):
        rates.append(floor.ask("product", size=PRODUCT))
        for name, found in arms.items():
            for arm in found:
                answer = drivers[name].ask("decode", beam=beam, batch_size=arm.batch_size, rule=arm.rule)
                arm.seconds.append(answer["seconds"])
                arm.cpu_seconds.append(answer["cpu_seconds"])
                arm.outputs, arm.rows = answer["outputs"], answer["rows"]
                arm.lengths = [min(len(output) + 1, max_length) for output in arm.outputs]
        loads.append(_load())
        _tell(f"beam {beam}: round {number + 1} of {rounds}")
    return DecodingRounds(beam, rates, max(loads), arms)


def clock(threads: int) -> str:
    """The field of a driver's answers that counts where one figure has to."""
    return "cpu_seconds" if threads == 1 else "seconds"


def _fastest(driver: Driver, beam: int, rule: str, batch_sizes: Sequence[int]) -> Decoding:
    tried: dict[int, Trial] = {}
    for batch_size in batch_sizes:
        answer = driver.ask("decode", beam=beam, batch_size=batch_size, rule=rule, trim=True)
        tried[batch_size] = Trial(answer[clock(driver.about["threads"])], answer["peak"] - answer["resident"])
        _tell(f"beam {beam}: {driver.name}, {rule}, {batch_size} sentences a batch: {tried[batch_size].seconds:.1f} s")
    return Decoding(rule, min(tried, key=lambda size: tried[size].seconds), tried)


def _state_key(system: str, driver: Driver, precision: str, work: Work, steps: int) -> str:
    """What decides the parameters that a system has after `steps` steps, hashed."""
    from nmt.config.identity import NUMERICS_VERSION

    about = [system, driver.about["versions"], driver.about["parameters"], precision, CHUNK]
    if system == OURS:
        about.append(NUMERICS_VERSION)
    settings = asdict(work.settings)
    settings["overrides"] = [word for word in settings["overrides"] if not word.startswith("paths.")]
    shared = [settings, work.vocabulary, work.steps[:steps], work.source[:100], work.target[:100]]
    return hashlib.sha256(json.dumps([*about, *shared]).encode()).hexdigest()[:16]


def _curve_file(place: Path) -> Path:
    """The losses beside trained parameters, written after them."""
    return place.with_suffix(".json")


def _load() -> float:
    return os.getloadavg()[0]


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
