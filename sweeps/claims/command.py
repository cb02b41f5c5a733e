"""`nmt claims`: what the paper claims, and what the runs say to it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nmt.archives import RESULTS_HELP, archive_directories
from nmt.arguments import option, parse
from nmt.errors import UserError
from nmt.strict_json import strict_json
from sweeps.screen import standard_output

if TYPE_CHECKING:
    from sweeps.claims.verdicts import Assessment

ALL_WELL, SOME_REVERSED, RUNS_MISSING = 0, 1, 2
EXAMPLES = """\
Examples:
  nmt claims scale=cpu_table results=docs/results      # the whole scoreboard, from committed results
  nmt claims table=5 scale=cpu_table                   # the claims on one table
  nmt claims claims=attention_beats_none_input scale=cpu_table    # one in full: runs, numbers, test, notes
  nmt claims format=md > claims.md

Exit codes: 0 none reversed, 1 some reversed (missing runs or not), 2 none reversed and runs missing (or a mistake in
what was asked).
"""


@dataclass(frozen=True, kw_only=True)
class ClaimsOptions:
    """What `nmt claims` takes beside config overrides."""

    claims: list[str] = option(list, "ids of claims, files of conf/claims; one alone is shown in full; unset: all")
    table: str = option("", "claims on this table of the paper", choices=("1", "2", "3", "4", "5", "6"))
    results: str = option("", RESULTS_HELP)
    format: str = option("text", "how the scoreboard is printed", choices=("text", "md", "json"))
    json: bool = option(False, "the same as format=json")


def main(argv: Sequence[str]) -> int:
    """Show verdicts as the command line asks; returns the exit code."""
    options, words = parse(
        ClaimsOptions,
        argv,
        verb="nmt claims",
        summary="The paper's claims with the verdict of the runs that are there: held, reversed, undecided (with the "
        "replicates it would take) or not run. Nothing is trained. Other words are config overrides for all sweeps, as "
        "in `nmt sweep`: a scale, above all.",
        epilog=EXAMPLES,
        rest=True,
    )
    from sweeps.claims.claim import load_claims
    from sweeps.claims.runs import ClaimRuns
    from sweeps.claims.verdicts import assess

    claims = load_claims(options.claims)
    if options.table:
        claims = [claim for claim in claims if claim.table == options.table]
    if not claims:
        raise UserError("is not about this table", where=f"claims={','.join(options.claims)}")
    runs = ClaimRuns(claims, words, archive_directories(options.results))
    board = assess(claims, runs)
    form = "json" if options.json else options.format
    if len(options.claims) == 1 and form == "text":
        from sweeps.claims.scoreboard import in_full

        (one,) = board
        print(in_full(one, {source: runs.cost(source) for source in one.commands}))
    else:
        show(board, form)
    return exit_code_of(board)


def exit_code_of(board: Sequence[Assessment]) -> int:
    """1 with a claim reversed, else 2 with one not run, else 0: a reversal stands, whatever is still to come."""
    from sweeps.claims.judging import NOT_RUN, REVERSED

    verdicts = {one.verdict for one in board}
    if REVERSED in verdicts:
        return SOME_REVERSED
    return RUNS_MISSING if NOT_RUN in verdicts else ALL_WELL


def show(board: Sequence[Assessment], form: str) -> None:
    """Print a scoreboard; `form` is text, md or json."""
    from sweeps.claims.scoreboard import to_json, to_markdown, to_screen

    if form == "json":
        sys.stdout.write(strict_json(to_json(board), indent=1) + "\n")
    elif form == "md":
        sys.stdout.write(to_markdown(board))
    else:
        standard_output().print(to_screen(board))
