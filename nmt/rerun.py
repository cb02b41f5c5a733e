"""`nmt rerun`: one run trained again from its own directory, and compared bit by bit with what it recorded."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nmt.archives import at_usual_place
from nmt.arguments import names, option, parse
from nmt.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from nmt.config.schema import DistributionConfig, RunConfig
    from nmt.provenance.evidence import Evidence
    from nmt.provenance.replay import Replay

SCRATCH = ".scratch"  # below the directory of runs, where no list of runs looks
EQUAL, DIFFERS, INTERRUPTED = 0, 1, 75
# What may differ from the original: where things lie and on what it runs.
PLACES = ("data.dir", "device", "threads", "tokenizer.source_vocabulary", "tokenizer.target_vocabulary")
_EXAMPLES = """
Overrides: data.dir=..., device=..., threads=..., tokenizer.source_vocabulary=..., tokenizer.target_vocabulary=...
The original is only read. A rerun makes everything anew, prepared data included, in a scratch directory below the
directory of runs; where it proves equal the scratch directory is removed, where it differs it stays to be looked at.

Exit codes: 0 equal (or trained, without verify), 1 differs, 75 interrupted: the same command goes on.

Examples:
  nmt rerun run=3f2a91c07be4/s1 verify=true
  nmt rerun run=docs/results/da1d780ff1d7/s1 verify=true
  nmt rerun run=3f2a91c07be4/s1 verify=true steps=100      # the first 100 steps; without steps it goes on from there
  nmt rerun run=3f2a91c07be4/s1 to=again data.dir=my/copy
  nmt rerun run=b7355406a960/s1 verify=true replay=true    # trained asynchronously: its updates in their recorded order
"""


@dataclass(frozen=True, kw_only=True)
class RerunOptions:
    """What `nmt rerun` takes beside overrides of places."""

    run: str = option("", "a run: its id, a unique beginning of one, or its directory, archives included")
    verify: bool = option(False, "compare with what the run recorded, and stop at the first difference")
    replay: bool = option(False, "of an asynchronous run: keep the order of updates that its traces recorded")
    steps: int | None = option(None, "with verify: only the first so many steps", minimum=1)
    to: str = option("", "directory of runs that receives the new run; unset: a scratch directory, with verify")
    runs: str = option("", "directory of runs; unset: $NMT_RUNS, else runs", key="paths.runs")


def main(argv: Sequence[str]) -> int:
    """Rerun as the command line asks; returns the exit code."""
    options, words = parse(
        RerunOptions,
        argv,
        verb="nmt rerun",
        summary="Train a run once more from what its directory says, and with verify=true say whether every bit that "
        "it recorded comes out again: losses, digests of parameters and optimizer, scores, hypotheses.",
        epilog=_EXAMPLES,
        rest=True,
    )
    _check(options, words)
    from rich.console import Console

    from nmt.provenance.evidence import read_evidence
    from nmt.runs import locate_run, runs_directory

    store, run_id = locate_run(options.run, options.runs)
    original = read_evidence(store.directory(run_id))
    place = Path(options.to).expanduser() if options.to else _scratch(runs_directory(options.runs), original)
    config = _config(original, words, place)
    config = replace(config, distribution=_distribution(config, original, options.replay))
    if options.verify and not _comparable(original):
        raise UserError("recorded no bits to compare with", where=f"run {run_id}", hint="rerun it without verify")
    console = Console(stderr=True)
    console.print(f"run {original.run_id} again, in {place}", highlight=False, markup=False, soft_wrap=True)
    if not options.verify:
        return _train(config, place, original, console)
    from nmt.provenance.replay import OtherDataError, abandon, begin_at, replay
    from nmt.training.console import ConsoleObserver

    begin_at(place, original, disposable=not options.to)
    try:
        done = replay(original, config, place, options.steps, [ConsoleObserver(console)])
    except OtherDataError as error:
        print(f"differs: {error}")
        return DIFFERS
    if done.state == "interrupted":
        console.print("interrupted; the same command goes on from the checkpoint that was just written")
        return INTERRUPTED
    made = read_evidence(place / done.run_id)
    lines, equal = verdict(original, made, done)
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    if not options.to and equal and done.state != "stopped":
        abandon(place)
    elif not equal:
        print(f"the rerun is kept: nmt why a={original.directory} b={made.directory}")
    return EQUAL if equal else DIFFERS


def verdict(original: Evidence, made: Evidence, done: Replay) -> tuple[list[str], bool]:
    """What a person is told of a verification, and whether the bits are equal."""
    from nmt.provenance.differences import differences, shown

    comparison = done.comparison
    equal = bool(comparison.compared) and comparison.first is None
    extent = f"the first {done.reached} steps" if done.state in ("stopped", "parted") else f"{done.reached} steps"
    if equal:
        lines = [f"bit-equal over {extent}: {comparison.in_words()}"]
    elif comparison.first is not None:
        mark, before, after = comparison.first
        up_to = f"; equal up to step {comparison.last_equal_step}" if comparison.last_equal_step is not None else ""
        lines = [f"differs: {mark}{up_to}", f"  recorded  {before}", f"  now       {after}"]
        lines.append(f"  equal: {comparison.in_words()}")
    else:
        lines = [f"nothing was recorded over {extent} that could be compared; give more steps"]
    if comparison.only_a and comparison.first is None:
        left = ", ".join(f"{count} × {kind}" for kind, count in comparison.only_a.items())
        lines.append(f"on record, and not made again: {left}")
    found = differences(original, made)
    beside = dict(found.arithmetic) | {f"code {name}": pair for name, pair in found.code.items() if found.other_code}
    if beside:
        title = "although these differ" if equal else "what may explain it"
        pairs = (f"{name} {shown(one)} | {shown(other)}" for name, (one, other) in beside.items())
        lines.append(f"{title}: {', '.join(pairs)}")
    return lines, equal


def _check(options: RerunOptions, words: Sequence[str]) -> None:
    if not options.run:
        raise UserError("is missing", where="run", hint="nmt rerun run=<run id or directory> verify=true")
    if options.steps is not None and not options.verify:
        raise UserError("goes with verify=true", where="steps")
    if not options.verify and not options.to:
        raise UserError("is missing", where="to", hint="to=<directory of runs>, or verify=true to compare only")
    for word in words:
        key = word.partition("=")[0]
        if key not in PLACES:
            raise UserError(
                "cannot be overridden: a rerun is the run as it was",
                where=key,
                allowed=PLACES,
                hint=did_you_mean(key, [*names(RerunOptions), *PLACES]),
            )


def _config(original: Evidence, words: Sequence[str], place: Path) -> RunConfig:
    from nmt.config.override import override
    from nmt.provenance.replay import replayed_config

    config = override(original.config, words, overridable=PLACES)
    return replayed_config(original, replace(config, data=at_usual_place(config.data)), place)


def _distribution(config: RunConfig, original: Evidence, replay: bool) -> DistributionConfig:
    """How the rerun is distributed: without the failures that were injected, and in the recorded order if asked for.

    Raises UserError where the run was asynchronous and its order is not asked for, and where there is none to keep.
    """
    distribution = replace(config.distribution, faults=[])
    asynchronous = distribution.name == "parameter_server" and distribution.mode != "bsp"
    where = f"run {original.run_id}"
    if replay != asynchronous:
        if replay:
            raise UserError(
                "was not trained asynchronously, and repeats by itself", where=where, hint="leave out replay"
            )
        raise UserError(
            "was trained asynchronously: bits depend on the order of updates", where=where, hint="replay=true"
        )
    if not replay:
        return distribution
    journals = original.directory / "journals"
    if not list(journals.glob("trace-*.bin")):
        raise UserError("has no traces of its updates", where=str(journals), hint="archives leave them out")
    return replace(distribution, replay=str(journals.resolve()))


def _scratch(runs: Path, original: Evidence) -> Path:
    """A place of its own for each original, so that the same command finds what it was interrupted in."""
    import hashlib

    where = hashlib.sha256(str(original.directory.resolve()).encode()).hexdigest()[:8]
    return runs / SCRATCH / f"{original.run_id.replace('/', '-')}-{where}"


def _comparable(original: Evidence) -> bool:
    from nmt.provenance.trace import trace_of

    return bool(trace_of(original))


def _train(config: RunConfig, place: Path, original: Evidence, console: Any) -> int:
    """Train it anew, compare nothing; what is there of an interrupted call is gone on with."""
    from nmt.provenance.replay import begin_at
    from nmt.train import EXIT_CODES, train
    from nmt.training.console import ConsoleObserver

    begin_at(place, original)
    outcome = train(config, observer=ConsoleObserver(console))
    print(f"{outcome.state}: {place / outcome.run_id}")
    return EXIT_CODES[outcome.state]
