"""What a person sees while a sweep runs: a live table on a terminal, plain lines elsewhere, both from status.json."""

from __future__ import annotations

import time
from typing import Protocol

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from nmt.evaluation.catalogue import key
from nmt.runs import RunStatus
from sweeps.plan import PlannedRun, SweepPlan
from sweeps.results import read_replicate
from sweeps.screen import say

ENDED = ("finished", "diverged", "failed")
OVER = ("finished", "diverged")  # what no retry changes
AHEAD = 64  # waiting runs that a look reads: more than ever start between two looks
COLOURS = {"running": "cyan", "finished": "green", "diverged": "magenta", "failed": "red", "interrupted": "yellow"}
CHROME = 6  # terminal lines that the live table's frame, header and summary take


class Progress(Protocol):
    """Shows how a sweep's runs stand."""

    def update(self) -> None:
        """Look at the run directories and show what is new."""

    def close(self) -> None:
        """Show the last state and leave the terminal as it was."""


def show_progress(plan: SweepPlan, console: Console) -> Progress:
    """The display that fits: live on a terminal, lines elsewhere."""
    return LiveProgress(plan, console) if console.is_terminal else PlainProgress(plan, console)


def unfinished_runs(plan: SweepPlan) -> list[PlannedRun]:
    """The runs to watch, each run directory once."""
    return list({run.run_id: run for run in reversed(plan.missing)}.values())[::-1]


class Watch:
    """The statuses of a plan's unfinished runs; a look reads only those that may have changed.

    A run that has ended does not change any more, and runs start about in the order of the plan: so of those that wait,
    the next `AHEAD` are read. A look costs what is under way, however much the sweep still has before it.
    """

    def __init__(self, plan: SweepPlan):
        self.store = plan.store
        self.runs = unfinished_runs(plan)
        self.statuses = {run.run_id: plan.store.status(run.run_id) for run in self.runs}

    def look(self, *, everywhere: bool = False) -> list[tuple[PlannedRun, RunStatus, RunStatus]]:
        """Runs that were read, with their status before and now; `everywhere` reads those too that wait far behind."""
        found, waiting = [], 0
        for run in self.runs:
            before = self.statuses[run.run_id]
            waiting += before.state == "queued"
            if before.state in OVER or (before.state == "queued" and waiting > AHEAD and not everywhere):
                continue
            self.statuses[run.run_id] = self.store.status(run.run_id)
            found.append((run, before, self.statuses[run.run_id]))
        return found


class PlainProgress:
    """A line for every start, evaluation and end; no control characters."""

    def __init__(self, plan: SweepPlan, console: Console):
        self.plan, self.console = plan, console
        self.metric = plan.config.validation.metric
        self.watch = Watch(plan)

    def update(self, *, everywhere: bool = False) -> None:
        """Print what has changed since the last look."""
        for run, before, status in self.watch.look(everywhere=everywhere):
            if status.state == "running" and (before.state != "running" or status.attempts > before.attempts):
                again = f" (attempt {status.attempts})" if status.attempts > 1 else ""
                self._line(run, f"started{again} at step {status.step}")
            if status.latest and (status.latest, status.attempts) != (before.latest, before.attempts):
                score = status.latest.get(key("val", self.metric), float("nan"))
                self._line(
                    run,
                    f"step {status.step}/{status.max_steps}  validation {self.metric} {score:.2f}  "
                    f"{status.tokens_per_second:,.0f} tok/s",
                )
            if status.state in (*ENDED, "interrupted") and status.state != before.state:
                self._line(run, self._ending(run, status))

    def close(self) -> None:
        """Print what is left to say."""
        self.update(everywhere=True)

    def _ending(self, run: PlannedRun, status: RunStatus) -> str:
        if status.state == "failed":
            return f"failed: {status.error}"
        score = read_replicate(self.plan.store, run.config, run.run_id).metrics.get(self.metric)
        return status.state if score is None else f"{status.state}  test {self.metric} {score:.2f}"

    def _line(self, run: PlannedRun, text: str) -> None:
        name = f"{run.label} · seed {run.config.seed}"
        say(self.console, f"{name:<24}  {text}")


class LiveProgress:
    """A table that is drawn anew in place, a line a run."""

    def __init__(self, plan: SweepPlan, console: Console):
        self.plan, self.console = plan, console
        self.metric = plan.config.validation.metric
        self.watch = Watch(plan)
        self.runs, self.statuses = self.watch.runs, self.watch.statuses
        self.first_seen: dict[str, tuple[int, float]] = {}
        self.live = Live(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
        self.live.start()

    def update(self, *, everywhere: bool = False) -> None:
        """Read what may have changed, and draw."""
        for run, _, status in self.watch.look(everywhere=everywhere):
            if status.state == "running":
                self.first_seen.setdefault(run.run_id, (status.step, time.monotonic()))
        self.live.update(self._table(), refresh=True)

    def close(self) -> None:
        """Draw the last state."""
        self.update(everywhere=True)
        self.live.stop()

    def _table(self) -> Table:
        table = Table(title=self._summary(), title_justify="left", box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for name, justify in (("row", "left"), ("seed", "right"), ("state", "left"), ("", "left")):
            table.add_column(name, justify=justify, no_wrap=True)  # type: ignore[arg-type]
        for name in ("step", "tok/s", f"val {self.metric}", "ETA"):
            table.add_column(name, justify="right", no_wrap=True)
        for run in self._visible():
            status = self.statuses[run.run_id]
            colour = COLOURS.get(status.state, "dim")
            score = status.latest.get(key("val", self.metric))
            table.add_row(
                run.label,
                str(run.config.seed),
                f"[{colour}]{status.state}[/]",
                ProgressBar(total=max(1, run.config.training.max_steps), completed=status.step, width=24),
                f"{status.step}/{run.config.training.max_steps}",
                f"{status.tokens_per_second:,.0f}" if status.state == "running" else "",
                "" if score is None else f"{score:.2f}",
                self._remaining(run, status),
            )
        return table

    def _visible(self) -> list[PlannedRun]:
        """All runs where the terminal is high enough, else the busy ones before those that wait or have ended."""
        order = {"running": 0, "failed": 1, "interrupted": 2, "queued": 3}
        height = max(3, self.console.height - CHROME)
        if len(self.runs) <= height:
            return self.runs
        return sorted(self.runs, key=lambda run: order.get(self.statuses[run.run_id].state, 4))[:height]

    def _summary(self) -> str:
        states = [status.state for status in self.statuses.values()]
        counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
        return f"{self.plan.name}: {counts}"

    def _remaining(self, run: PlannedRun, status: RunStatus) -> str:
        """Time to the last step at the pace since this process first saw the run, evaluations included."""
        step, since = self.first_seen.get(run.run_id, (0, 0.0))
        if status.state != "running" or status.step <= step:
            return ""
        pace = (time.monotonic() - since) / (status.step - step)
        seconds = round(pace * (run.config.training.max_steps - status.step))
        hours, minutes = divmod(seconds // 60, 60)
        return f"{hours}:{minutes:02}:{seconds % 60:02}" if hours else f"{minutes}:{seconds % 60:02}"
