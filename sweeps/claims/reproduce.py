"""`nmt reproduce`: a table of the paper from what is missing to the verdicts on what it claims."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nmt.archives import RESULTS_HELP, archive_directories
from nmt.arguments import option, parse
from nmt.errors import UserError
from sweeps.screen import standard_output

if TYPE_CHECKING:
    from pathlib import Path

    from sweeps.claims.claim import Claim
    from sweeps.plan import SweepPlan

DONE, RUNS_MISSING, INTERRUPTED = 0, 2, 75
TABLE = re.compile(r"table(\d+)_")  # sweeps of conf/sweep are called after the table they hold
HARMLESS = ("training.probe.",)  # overrides that change no bit of a run: the table's own runs may have them
EXAMPLES = """\
Examples:
  nmt reproduce table=5 scale=cpu_table                # run what is missing, report, judge
  nmt reproduce table=5 scale=cpu_table dry_run=true   # what would run, and what it would cost
  nmt reproduce table=all scale=cpu_table results=docs/results
  nmt reproduce study=ringtmp                          # five experiments on RingTMP and the parameter server

Exit codes: those of `nmt claims` (0 none reversed, 1 some reversed, 2 runs missing), and 75 interrupted and resumable.
Of a study: 0 every run is there, whatever the verdicts, 2 some are missing, 75 interrupted and resumable.
"""


@dataclass(frozen=True, kw_only=True)
class ReproduceOptions:
    """What `nmt reproduce` takes beside config overrides."""

    table: str = option("", "number of a table of the paper, or all")
    study: str = option("", "a study of conf/study instead of a table: experiments and the claims that they test")
    experiments: list[str] = option(list, "of a study, those to run and judge, a,b,…; unset: all")
    claims: bool = option(True, "also run what the table's claims need beyond its rows: false leaves those not run")
    results: str = option("", RESULTS_HELP)
    dry_run: bool = option(False, "print rows, runs and what would be done, and start nothing")


def main(argv: Sequence[str]) -> int:
    """Reproduce what the command line asks for; returns the exit code."""
    options, words = parse(
        ReproduceOptions,
        argv,
        verb="nmt reproduce",
        summary="Train what a table of the paper, or a study, still lacks, write its report, and judge what is claimed "
        "of it. Other words are config overrides for all runs, as in `nmt sweep`.",
        epilog=EXAMPLES,
        rest=True,
    )
    if options.study:
        if options.table:
            raise UserError("goes with no table", where=f"study={options.study}", hint="give one of table= and study=")
        from sweeps.studies.command import reproduce_study

        return reproduce_study(options.study, options.experiments, words, options.dry_run)
    if options.experiments:
        raise UserError("are those of a study", where="experiments", hint="give study=… with them")
    from sweeps.claims.claim import load_claims
    from sweeps.execution import run_sweep

    sweeps = sweeps_of(options.table)
    console = standard_output()
    claims = [claim for claim in load_claims() if options.table in ("all", claim.table)]
    archives = archive_directories(options.results)
    incomplete = False
    for plan, asked_by in plans_of(sweeps, claims if options.claims else [], words, archives):
        if options.dry_run:
            from sweeps.dry_run import show_plan

            show_plan(plan, console)
        elif not asked_by or plan.missing:
            code = run_sweep(plan, console, asked_by or [f"sweep={plan.name}", *words])
            if code == INTERRUPTED:
                return INTERRUPTED
            incomplete = incomplete or code != DONE
    if options.dry_run:
        console.print(f"{len(claims)} claims would be judged: {', '.join(claim.id for claim in claims)}", markup=False)
        return DONE
    return _judge(claims, words, archives) or (RUNS_MISSING if incomplete else DONE)


def sweeps_of(table: str) -> list[str]:
    """The sweeps that hold a table of the paper, or with `all` every table. Raises UserError for another word."""
    from sweeps.spec import available_sweeps

    numbered = {name: match[1] for name in available_sweeps() if (match := TABLE.match(name))}
    found = [name for name, number in numbered.items() if table in ("all", number)]
    if not found:
        known = [*dict.fromkeys(sorted(numbered.values(), key=int)), "all"]
        raise UserError(f"'{table}' is no table of the paper with rows to train", where="table", allowed=known)
    return sorted(found, key=lambda name: (int(numbered[name]), name))


def plans_of(
    sweeps: Sequence[str], claims: Sequence[Claim], words: Sequence[str], archives: Sequence[Path]
) -> list[tuple[SweepPlan, list[str]]]:
    """What has to be run: each table as a whole, then of further sweeps the rows that claims need.

    Beside each plan the words of `nmt sweep` that make such runs, empty for a table. Overrides that change no run are
    given to the table's own, so that its runs serve the claims too. Further plans have names of their own, lest their
    reports take the tables' place.
    """
    from sweeps.claims.runs import Source, rows_needed
    from sweeps.plan import make_plan

    needed = rows_needed(claims)
    tables: dict[str, list[str]] = {name: [] for name in sweeps}
    further: dict[Source, set[str]] = {}
    for source, labels in needed.items():
        if source.sweep in tables and all(word.startswith(HARMLESS) for word in source.overrides):
            tables[source.sweep] += [word for word in source.overrides if word not in tables[source.sweep]]
        else:
            further[source] = labels
    plans = []
    for name, added in tables.items():
        plans.append((make_plan(Source(name, tuple(added)).spec(), words, archives=archives), list[str]()))
    for source, labels in further.items():
        spec = source.spec(labels)
        asked_by = next(claim.id for claim in claims if source in rows_needed([claim]))
        named = dataclasses.replace(spec, name=f"{source.sweep}-{asked_by}")
        plans.append((make_plan(named, words, archives=archives), source.words(words)))
    return plans


def _judge(claims: Sequence[Claim], words: Sequence[str], archives: Sequence[Path]) -> int:
    from sweeps.claims.command import exit_code_of, show
    from sweeps.claims.runs import ClaimRuns
    from sweeps.claims.verdicts import assess

    if not claims:
        return DONE
    board = assess(claims, ClaimRuns(claims, words, archives))
    print()
    show(board, "text")
    return exit_code_of(board)
