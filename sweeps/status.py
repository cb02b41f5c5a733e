"""`nmt status`: how sweeps and runs stand, at once, or kept on screen."""

from __future__ import annotations

import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nmt.arguments import option, parse
from nmt.runs import runs_directory
from nmt.strict_json import strict_json
from sweeps.survey import ORDER, Survey, SurveyedRun, SurveyedSweep, survey
from sweeps.tracking.store import plain_words

if TYPE_CHECKING:
    from rich.text import Text

PERIOD_SECONDS = 1.0
COLOURS = {"running": "cyan", "finished": "green", "diverged": "magenta", "failed": "red", "interrupted": "yellow"}
SWEEP_COLUMNS = ("sweep", "rows", "runs", *ORDER, "steps")
RUN_COLUMNS = ("run", "row", "state", "step", "heartbeat", "where", "attempts", "error")
RIGHT = ("rows", "runs", *ORDER, "steps", "step", "heartbeat", "attempts")
EXAMPLES = """\
Examples:
  nmt status
  nmt status sweep=quickstart watch=true
  nmt status json=true | jq '.runs[] | select(.state == "failed") | .run_id'
"""

Row = Sequence[str]
Look = Callable[[], Survey]


@dataclass(frozen=True, kw_only=True)
class StatusOptions:
    """Command line of `nmt status`."""

    sweep: str = option("", "only this sweep, as <name> or <name>@<scale>")
    runs: str = option("", "directory of runs; unset: NMT_RUNS, or runs")
    watch: bool = option(False, "keep it on screen until Ctrl-C; into a file or pipe, again at each change")
    json: bool = option(False, "as one JSON object: sweeps, and runs with all that their status says")


def main(argv: Sequence[str]) -> int:
    """Show what the command line asks for; returns 0, after Ctrl-C too."""
    options = parse(
        StatusOptions,
        plain_words(argv),
        verb="nmt status",
        summary="Show sweeps and runs: state, step, time since the last sign of life, host and process, attempts, last "
        "error. A damaged file of a run is named, and set aside in the run's folder quarantine.",
        epilog=EXAMPLES,
    )
    root = runs_directory(options.runs)
    try:
        if options.json and not options.watch:
            sys.stdout.write(strict_json(survey(root, options.sweep).record()) + "\n")
        elif not options.watch:
            _show(survey(root, options.sweep))
        elif sys.stdout.isatty() and not options.json:
            _watch(lambda: survey(root, options.sweep))
        else:
            _follow(lambda: survey(root, options.sweep), options.json)
    except KeyboardInterrupt:
        if not options.watch:
            raise
    return 0


def lines_of(found: Survey, now: float, height: int | None = None) -> list[tuple[str, str]]:
    """What is shown: lines of text, each with the state that it is about, empty where it is about none.

    With `height`, at most so many lines, the last of which counts the runs that have no room.
    """
    lines: list[tuple[str, str]] = []
    if found.sweeps:
        lines += _table(SWEEP_COLUMNS, [(_sweep_row(sweep), "") for sweep in found.sweeps])
        lines.append(("", ""))
    if not found.runs:
        return [*lines, ("no runs yet", "")]
    room = len(found.runs) if height is None else max(1, height - len(lines) - 2)  # header, and a count
    shown = found.runs if len(found.runs) <= room + 1 else found.runs[:room]
    lines += _table(RUN_COLUMNS, [(_run_row(run, now), run.status.state) for run in shown])
    if len(shown) < len(found.runs):
        rest = [run.status.state for run in found.runs[len(shown) :]]
        lines.append((f"… and {', '.join(f'{rest.count(state)} {state}' for state in dict.fromkeys(rest))}", ""))
    return lines


def age(seconds: float) -> str:
    """A time span in one unit, as people say it: `12 s`, `3 min`, `5 h`, `2 d`."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def _sweep_row(sweep: SurveyedSweep) -> Row:
    share = f"{100 * sweep.steps // sweep.max_steps}%" if sweep.max_steps else ""
    states = (str(sweep.states.get(state, "")) for state in ORDER)
    return (sweep.name, str(sweep.rows), str(sweep.runs), *states, share)


def _run_row(run: SurveyedRun, now: float) -> Row:
    status = run.status
    return (
        run.run_id,
        run.label,
        status.state,
        f"{status.step}/{status.max_steps}" if status.max_steps else str(status.step),
        age(now - status.heartbeat) if status.heartbeat else "",
        f"{status.host}:{status.pid}" if status.host else "",
        str(status.attempts) if status.attempts else "",
        (status.error.strip().splitlines() or [""])[-1],
    )


def _table(names: Row, rows: Sequence[tuple[Row, str]]) -> Iterator[tuple[str, str]]:
    """Columns as wide as what stands in them; those without a value are left out."""
    used = [number for number, name in enumerate(names) if any(cells[number] for cells, _ in rows)]
    widths = {number: max(len(names[number]), *(len(cells[number]) for cells, _ in rows)) for number in used}
    for cells, state in [(names, ""), *rows]:
        padded = (
            cells[number].rjust(widths[number]) if names[number] in RIGHT else cells[number].ljust(widths[number])
            for number in used
        )
        yield "  ".join(padded).rstrip(), state


def _show(found: Survey) -> None:
    lines = lines_of(found, time.time())
    if not sys.stdout.isatty():
        sys.stdout.write("".join(f"{text}\n" for text, _ in lines))
        return
    from rich.console import Console

    Console().print(_coloured(lines), soft_wrap=True)


def _watch(look: Look) -> None:
    """Draw it anew in place, once a period, until Ctrl-C."""
    from rich.console import Console
    from rich.live import Live

    console, never = Console(), threading.Event()
    with Live(console=console, auto_refresh=False) as live:
        while True:
            height = shutil.get_terminal_size().lines - 1
            live.update(_coloured(lines_of(look(), time.time(), height)), refresh=True)
            never.wait(PERIOD_SECONDS)


def _follow(look: Look, as_json: bool) -> None:
    """Write it again whenever something has changed, without control characters."""
    before, never = None, threading.Event()
    while True:
        found = look()
        present = [(run.run_id, run.status.state, run.status.step, run.status.attempts) for run in found.runs]
        if present != before:
            before = present
            if as_json:
                sys.stdout.write(strict_json(found.record()) + "\n")
            else:
                sys.stdout.write("".join(f"{text}\n" for text, _ in lines_of(found, time.time())) + "\n")
            sys.stdout.flush()
        never.wait(PERIOD_SECONDS)


def _coloured(lines: Sequence[tuple[str, str]]) -> Text:
    from rich.text import Text

    whole = Text(no_wrap=True, overflow="ellipsis")
    for number, (line, state) in enumerate(lines):
        text = Text(("\n" if number else "") + line)
        if state in COLOURS:
            text.highlight_words([f" {state} "], COLOURS[state])
        whole.append_text(text)
    return whole
