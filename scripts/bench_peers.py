"""Ours beside OpenNMT-py and JoeyNMT: the same text, pieces, batches and shapes, timed in turn in one run.

    python scripts/bench_peers.py data=multi30k_en_de data.dir=data/multi30k data.lowercase=true tokenizer=spm_bpe_8k
    python scripts/bench_peers.py quick=true                # the built-in corpus and the small shape: minutes
    python scripts/bench_peers.py action=install            # the peers' environments only

docs/peers.md says what is compared, how the search rules were made equal, and what may be unfair.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from peers.install import PEERS, default_directory, environment
from peers.measure import BF16, OURS, Drivers, time_decoding, time_training, train
from peers.prepare import Prepared, prepare_work, settings
from peers.processes import Driver
from peers.report import Comparison, changes, needed_key, ratio_table
from peers.useful import UsefulWork
from peers.work import Settings

from nmt.arguments import exit_code, option, parse
from nmt.errors import UserError

TESTED = 200  # sentences of the test text that quick=true decodes


@dataclass(frozen=True, kw_only=True)
class PeersOptions:
    """What the script takes beside overrides of our configuration."""

    action: str = option(
        "measure", "install: make the peers' environments, and no more", choices=("measure", "install")
    )
    peers: list[str] = option(
        lambda: ["opennmt", "joeynmt"], "peers to compare with; empty: ours alone (default: opennmt,joeynmt)"
    )
    environments: str = option("", "directory of the peers' environments (default: in the user's cache directory)")
    states: str = option("", "directory of trained parameters, read where they are there (default: as above)")
    shapes: list[str] = option(
        lambda: ["512", "128"], "units of embeddings, decoder and both encoder directions (default: 512,128)"
    )
    threads: list[str] = option(lambda: ["1"], "numbers of CPU threads (default: 1)")
    bf16: str = option("ours", "systems that are measured in bf16 too", choices=("none", "ours", "all"))
    tied: bool = option(False, "one table for both embeddings and the output layer")
    train_steps: int = option(
        300, "steps that every system is trained before it is timed; decoding wants some 2,000", minimum=0
    )
    train_precision: str = option(
        "fp32", "in which every system is trained before; bf16 is faster on some machines", choices=("fp32", "bf16")
    )
    rounds: int = option(5, "rounds; medians are reported", minimum=1)
    steps: int = option(4, "training steps a round", minimum=1)
    beams: list[str] = option(lambda: ["10", "1"], "beam sizes; empty: no decoding (default: 10,1)")
    batch_sizes: list[str] = option(
        lambda: ["32", "64", "128"], "sentences a batch; each system's fastest is reported (default: 32,64,128)"
    )
    max_length: int = option(60, "most tokens of an output, its end counted", minimum=2)
    sentences: int = option(0, "sentences of the test text that are decoded; 0: all", minimum=0)
    seed: int = option(1, "of first values, batches and dropout", minimum=0)
    json: str = option("", "file for everything measured, with an object `ratios`")
    quick: bool = option(False, "the small shape, little training, 3 rounds, 200 sentences: minutes")


def main(argv: Sequence[str]) -> int:
    """Install, measure, print."""
    options, words = parse(
        PeersOptions,
        argv,
        verb="python scripts/bench_peers.py",
        summary="Training and decoding beside other toolkits on the same work.",
        epilog="Figures go to stdout as Markdown, progress to stderr.",
        rest=True,
    )
    if options.quick:
        options = _quick(options, argv)
    _check(options, words)
    base = Path(options.environments) if options.environments else default_directory()
    pythons = {peer: environment(peer, base.resolve()) for peer in options.peers}
    if options.action == "install":
        print(changes(options.peers))
        return 0
    _report(options, _compare_all(options, words, pythons))
    return 0


def _quick(options: PeersOptions, argv: list[str]) -> PeersOptions:
    """The options of a short run; what was given on the command line stays."""
    given = {word.partition("=")[0] for word in argv}
    short = {
        "shapes": ["128"],
        "bf16": "none",
        "train_steps": 150,
        "rounds": 3,
        "steps": 2,
        "beams": ["10"],
        "batch_sizes": ["64"],
        "sentences": TESTED,
    }
    return dataclasses.replace(options, **{key: value for key, value in short.items() if key not in given})  # type: ignore[arg-type]


def _check(options: PeersOptions, words: list[str]) -> None:
    """Refuse what cannot work before anything is installed."""
    from nmt.config import compose

    for peer in options.peers:
        if peer not in PEERS:
            raise UserError(f"unknown peer '{peer}'", where="peers", allowed=list(PEERS))
    for key in ("shapes", "threads", "beams", "batch_sizes"):
        for word in getattr(options, key):
            if not word.isdigit() or int(word) < 1:
                raise UserError(f"'{word}' is no number of at least 1", where=key)
    for shape in options.shapes:
        if int(shape) % 2:
            raise UserError(f"{shape} units cannot be halved between two directions", where="shapes")
        compose(_settings(options, int(shape), words).overrides)


def _settings(options: PeersOptions, units: int, words: list[str]) -> Settings:
    return settings(units, tied=options.tied, max_length=options.max_length, seed=options.seed, words=words)


def _compare_all(options: PeersOptions, words: list[str], pythons: dict[str, Path]) -> list[Comparison]:
    states = Path(options.states).resolve() if options.states else default_directory() / "states"
    steps = options.train_steps + 1 + options.rounds * options.steps
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        for units in map(int, options.shapes):
            directory, chosen = Path(scratch) / str(units), _settings(options, units, words)
            prepared = prepare_work(directory, chosen, steps, Path(scratch) / "prepared", options.sentences)
            for threads in map(int, options.threads):
                found.append(_compare(options, prepared, pythons, threads, states))
    return found


def _compare(
    options: PeersOptions, prepared: Prepared, pythons: dict[str, Path], threads: int, states: Path
) -> Comparison:
    """One shape with one number of threads."""
    work = prepared.work
    programs = {PEERS[peer].name: (python, PEERS[peer].module) for peer, python in pythons.items()}
    programs[OURS] = (Path(sys.executable), "peers.ours")
    with ExitStack() as stack:

        def start(arm: str, precision: str, role: str = "timed") -> Driver:
            python, module = programs[arm.removesuffix(BF16)]
            log = work.directory / f"{arm}, {role}.log"
            driver = Driver(arm, python, module, work.directory, threads, precision, log)
            stack.callback(driver.close)
            return driver

        def start_learner(system: str) -> Driver:
            return start(system, options.train_precision, "trained")

        drivers: Drivers = {arm: start(arm, precision) for arm, precision in _arms(options).items()}
        curves = train(drivers, start_learner, options.train_precision, work, options.train_steps, states)
        floor = next(iter(drivers.values()))
        training = time_training(drivers, floor, options.train_steps + 1, options.rounds, options.steps)
        sizes = [int(size) for size in options.batch_sizes]
        decoding = [
            time_decoding(drivers, floor, int(beam), options.rounds, sizes, options.max_length)
            for beam in options.beams
        ]
        about = {name: driver.about for name, driver in drivers.items()}
    useful = UsefulWork.of(prepared.config)
    needed, bleu = {}, {}
    for rounds in decoding:
        for name, arms in rounds.arms.items():
            for arm in arms:
                key = needed_key(rounds.beam, name, arm.rule)
                pairs = zip(prepared.test_lengths, arm.lengths, strict=True)
                needed[key] = useful.of_decoding(pairs, rounds.beam)
                bleu[key] = prepared.bleu(arm.outputs)
    pairs_trained = [pair for step in training.steps for pair in prepared.lengths(step)]
    return Comparison(
        units=work.settings.units,
        threads=threads,
        tied=options.tied,
        train_steps=options.train_steps,
        about=about,
        curves=curves,
        training=training,
        useful=useful.of_training(pairs_trained),
        decoding=decoding,
        needed=needed,
        bleu=bleu,
    )


def _arms(options: PeersOptions) -> dict[str, str]:
    """All arms with their precision; ours in fp32 is the first."""
    arms = {OURS: "fp32"}
    if options.bf16 != "none":
        arms[OURS + BF16] = "bf16"
    for peer in options.peers:
        arms[PEERS[peer].name] = "fp32"
        if options.bf16 == "all":
            arms[PEERS[peer].name + BF16] = "bf16"
    return arms


def _report(options: PeersOptions, found: list[Comparison]) -> None:
    """Print everything, and write it to `options.json`."""
    from nmt.environment import cpu_model, describe_code

    code, load = describe_code(), os.getloadavg()
    ratios = {key: value for one in found for key, value in one.ratios.items()}
    versions = {name: about["versions"] for name, about in found[0].about.items()}
    commit = f"commit {code['commit']}{' with changes' if code['dirty'] else ''}"
    print(
        f"# Beside other toolkits\n\n{cpu_model()}, {os.cpu_count()} cores, load {load[0]:.1f} at the end, {commit}.\n"
    )
    for name, each in versions.items():
        print(f"- {name}: {', '.join(f'{package} {version}' for package, version in each.items())}")
    print(f"\nChanged of the peers:\n\n{changes(options.peers)}")
    for one in found:
        print(f"\n{one.markdown()}")
    if ratios:
        print(f"\n## Ratios\n\n{ratio_table(ratios)}")
    if options.json:
        everything = {
            "ratios": ratios,
            "cpu": cpu_model(),
            "cores": os.cpu_count(),
            "load": load,
            "code": code,
            "versions": versions,
            "changes": changes(options.peers).splitlines(),
            "options": dataclasses.asdict(options),
            "comparisons": [one.as_json() for one in found],
        }
        Path(options.json).write_text(json.dumps(everything, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(exit_code(main, sys.argv[1:]))
