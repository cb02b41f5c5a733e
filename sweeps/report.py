"""`nmt report`: the report of a sweep as far as its runs are there; nothing is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nmt.archives import RESULTS_HELP, archive_directories
from nmt.arguments import option, parse
from nmt.errors import UserError
from sweeps.plan import make_plan
from sweeps.reporting.columns import COLUMNS_HELP, choose_columns
from sweeps.reporting.report import FORMATS, write_report
from sweeps.screen import near, say, standard_output
from sweeps.spec import available_sweeps, load_spec

EXAMPLES = """\
Examples:
  nmt report sweep=quickstart results=docs/results         # of the runs that this repository has
  nmt report sweep=table5_attention scale=cpu_table        # with the overrides that the sweep was run with
  nmt report sweep=quickstart formats=html to=public       # one page, to be shown
"""


@dataclass(frozen=True, kw_only=True)
class ReportOptions:
    """What `nmt report` takes beside config overrides."""

    sweep: str = option("", "name of a sweep in conf/sweep, or a YAML file of your own")
    results: str = option("", RESULTS_HELP)
    formats: list[str] = option(
        lambda: ["md", "csv", "latex", "html"],
        "what is written: md report.md and table.md, csv table.csv, latex table.tex (booktabs), html report.html, json "
        "sweep.json, png and svg figure.*; unset: md,csv,latex,html",
        choices=FORMATS,
    )
    columns: list[str] = option(list, COLUMNS_HELP)
    to: str = option("", "directory to write to; unset: <paths.reports>/<sweep>, where nmt sweep writes too")


def main(argv: Sequence[str]) -> int:
    """Write the report that the command line asks for; returns 0, whatever is missing in it."""
    options, overrides = parse(
        ReportOptions,
        argv,
        verb="nmt report",
        summary="Write the report of a sweep as far as its runs are there: a page for the browser that needs no "
        "network, Markdown, CSV and LaTeX. Nothing is trained; rows without runs stay, and say so. Other words are "
        "config overrides, as for nmt sweep.",
        epilog=EXAMPLES,
        rest=True,
    )
    if not options.sweep:
        raise UserError(
            "is needed", where="sweep", allowed=sorted(available_sweeps()), hint="nmt report sweep=quickstart"
        )
    choose_columns(options.columns)  # a mistake is told before anything is read
    plan = make_plan(load_spec(options.sweep), overrides, archives=archive_directories(options.results))

    from sweeps.aggregate import aggregate
    from sweeps.reporting.findings import find
    from sweeps.reporting.table import fitted, to_markdown, to_screen

    results = aggregate(plan)
    findings = find(plan, results, options.columns)
    to = Path(options.to).expanduser().resolve() if options.to else None
    report = write_report(plan, results, formats=options.formats, to=to, findings=findings)
    console = standard_output()
    if console.is_terminal:
        console.print(to_screen(findings.table if options.columns else fitted(findings.table, console.width)))
    else:
        say(console, to_markdown(findings.table))
    if missing := sum(row.missing for row in results):
        say(console, f"{missing} of {len(plan.runs)} runs are missing; nmt sweep with the same words trains them")
    for path in report.written:
        say(console, near(path))
    return 0
