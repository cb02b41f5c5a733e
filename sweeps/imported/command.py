"""`nmt import`: outputs of any toolkit, put beside our runs and into every table of their test set."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nmt.arguments import option, parse
from nmt.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from nmt.config import RunConfig
    from sweeps.imported.store import ImportedSystem

EXAMPLES = """
Each file is a replicate: the outputs of one training, a line a sentence, in the order of the test set, as plain text
(detokenised; .gz will do). The test set is that of a sweep, or of config overrides. What is there already stays once.
Tables of every sweep with the same references then have a row for the system; nmt compare and nmt analyse know it by
its name. Without words, what is imported is listed.

Examples:
  nmt import system=joeynmt hyp=a.txt hyp=b.txt sweep=table5_attention scale=cpu_table version=2.3.0
  nmt import system=copy hyp=test.en data=multi30k_en_de data.dir=data/multi30k note="the source itself"
  nmt import
  nmt import system=joeynmt remove=true
"""


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """What `nmt import` takes beside config overrides."""

    system: str = option("", "name of the system, as tables will have it")
    hyp: tuple[str, ...] = option((), "a file of outputs; give one hyp= for each replicate")
    sweep: str = option("", "a sweep on whose test set they were made; or config overrides (data=...)")
    test: str = option("", "one of the corpus's further test sets by name (data.tests)")
    version: str = option("", "version of the system")
    note: str = option("", "what a reader of the table should know of it")
    remove: bool = option(False, "forget what was imported of the system; with sweep= or data=, on this test set only")


def main(argv: Sequence[str]) -> int:
    """Import, list or remove as the command line asks; returns the exit code."""
    options, words = parse(
        ImportOptions,
        argv,
        verb="nmt import",
        summary="Put another system's outputs of a test set beside our runs: scored by the same metrics, and shown in "
        "the tables of that test set.",
        epilog=EXAMPLES,
        rest=True,
    )
    runs = _runs(words)
    if not options.system:
        if options != ImportOptions() or any(not word.startswith("paths.runs=") for word in words):
            from nmt.config.compose import refuse_unknown_keys

            refuse_unknown_keys(words)
            raise UserError("is missing", where="system", hint="nmt import system=<name> hyp=<file> sweep=...")
        return _list(runs)
    if options.remove:
        return _remove(options, words, runs)
    if not options.hyp:
        raise UserError("is missing", where="hyp", hint="hyp=<file> for each replicate")
    from sweeps.imported.rows import find_test_set
    from sweeps.imported.store import ImportedSystem, add_outputs

    config = _config(options, words)
    test, references = find_test_set(config)
    system = ImportedSystem(system=options.system, test=test, version=options.version, note=options.note)
    paths = [Path(name).expanduser() for name in options.hyp]
    now, new = add_outputs(runs, system, references, paths)
    there = len(now.outputs) - len(new)
    sys.stdout.write(f"{len(new)} new, {there} there already\n")
    sys.stdout.write("".join(f"{line}\n" for line in _lines([now])))
    return 0


def _runs(words: Sequence[str]) -> Path:
    from nmt.runs import runs_directory
    from sweeps.words import take

    return runs_directory(take(words, "paths.runs")[0])


def _config(options: ImportOptions, words: Sequence[str]) -> RunConfig:
    """The configuration whose test split is meant."""
    from sweeps.rows import scored_on

    if options.sweep:
        config = _of_sweep(options, words)
    else:
        from nmt.config import compose

        config = compose(words)
        if not any(word.partition("=")[0] == "data" or word.startswith("data.") for word in words):
            raise UserError("which test set?", where="nmt import", hint="give sweep=<name>, or data=<corpus>")
    if options.test and options.test not in config.data.tests:
        known = sorted(config.data.tests)
        raise UserError(
            f"the corpus has no test set '{options.test}'",
            where="test",
            allowed=known or None,
            hint=did_you_mean(options.test, known) or (None if known else "it has one only; leave test= out"),
        )
    return scored_on(config, options.test) if options.test else config


def _of_sweep(options: ImportOptions, words: Sequence[str]) -> RunConfig:
    from nmt.config.compose import groups
    from sweeps.rows import compose_row
    from sweeps.spec import load_spec

    spec = load_spec(options.sweep)
    tests = list(dict.fromkeys(row.test for row in spec.rows))
    config = compose_row(spec, spec.rows[0], words, set(groups()))
    several = [test for test in tests if test in config.data.tests]
    if len(several) > 1 and not options.test:
        raise UserError(
            f"its rows are scored on {len(several)} test sets", where=f"sweep={options.sweep}", hint="say which: test=",
            allowed=several,
        )  # fmt: skip
    return config


def _remove(options: ImportOptions, words: Sequence[str], runs: Path) -> int:
    from sweeps.imported.rows import find_test_set
    from sweeps.imported.store import imported_systems, remove_system, systems_called

    if options.hyp:
        raise UserError("does not go with remove=true", where="hyp", hint="a system is removed as a whole")
    found = systems_called(runs, options.system)
    if not found:
        known = sorted({system.system for system in imported_systems(runs)})
        hint = did_you_mean(options.system, known)
        raise UserError("nothing is imported under this name", where="system", allowed=known or None, hint=hint)
    if options.sweep or any(word.startswith("data") for word in words):
        test, _ = find_test_set(_config(options, words))
        found = [system for system in found if system.test.references_sha256 == test.references_sha256]
    for system in found:
        remove_system(system)
        sys.stdout.write(f"removed {system.system} on {system.test.corpus}: {len(system.outputs)} files of outputs\n")
    if not found:
        raise UserError("is not imported on this test set", where=f"system={options.system}")
    return 0


def _list(runs: Path) -> int:
    from sweeps.imported.store import imported_systems

    found = imported_systems(runs)
    sys.stdout.write("".join(f"{line}\n" for line in _lines(found)) if found else f"nothing is imported in {runs}\n")
    return 0


def _lines(systems: Sequence[ImportedSystem]) -> list[str]:
    """A heading for each system and test set, and a line for each of its files."""
    from nmt.records import read_record

    lines = []
    for system in systems:
        test = system.test
        named = " ".join(part for part in (system.system, system.version) if part)
        lines.append(
            f"{named}  {test.corpus}, {test.sentences} sentences, references {test.references_sha256[:12]}"
            + (f"  ({system.note})" if system.note else "")
        )
        for replicate in system.replicates():
            name = (read_record(system.directory, f"decodes/{replicate.decode_id}.json") or {}).get("file", "")
            scores = (f"{metric} {replicate.metrics[metric]:.2f}" for metric in ("bleu", "chrf", "ter"))
            lines.append(f"  {replicate.seed}  {replicate.decode_id}  {'  '.join(scores)}  {name}")
    return lines
