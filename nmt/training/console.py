"""What a person sees of one run: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from nmt.config.schema import RunConfig
from nmt.training.state import RunState
from nmt.training.tracker import Tracker
from nmt.training.trainer import Observer, Record


class SilentObserver:
    """Shows nothing: for runs whose progress somebody else reads from status.json."""

    def started(self, state: RunState, config: RunConfig) -> None:
        """Do nothing."""

    def trained(self, step: int, record: Record | None) -> None:
        """Do nothing."""

    def evaluated(self, record: Record) -> None:
        """Do nothing."""

    def ended(self) -> None:
        """Do nothing."""


class ConsoleObserver(SilentObserver):
    """A bar over the steps with loss, speed and time left; a line for every evaluation."""

    def __init__(self, console: Console):
        self.console = console
        self._metric = "bleu"
        self._progress = Progress(
            TextColumn("[bold]training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )

    def started(self, state: RunState, config: RunConfig) -> None:
        """Draw the bar, at the step that an interrupted run goes on from."""
        self._metric = config.validation.metric
        if state.step:
            self.console.print(f"resuming after step {state.step}")
        self._progress.start()
        self._task = self._progress.add_task(
            "", total=config.training.max_steps, completed=state.step, loss="", speed=""
        )

    def trained(self, step: int, record: Record | None) -> None:
        """Move the bar."""
        self._progress.update(self._task, completed=step)
        if record:
            loss, speed = f"loss {record['loss']:.3f}", f"{record['tokens_per_second']:,.0f} tokens/s"
            self._progress.update(self._task, loss=loss, speed=speed)
            if not self.console.is_terminal:
                self.console.print(f"step {step:>7}  {loss}  {speed}", highlight=False, soft_wrap=True)

    def evaluated(self, record: Record) -> None:
        """Print the decoded metric and the teacher-forced log-perplexity of a validation."""
        self.console.print(
            f"step {record['step']:>7}  validation {self._metric} {record[f'val/decode/{self._metric}']:.2f}  "
            f"log-perplexity {record['val/teacher_forced/log_perplexity']:.3f} (teacher-forced)  "
            f"after {record['seconds'] / 60:.1f} min of training{'  [green]best[/]' if record['best'] else ''}",
            highlight=False,
            soft_wrap=True,
        )

    def ended(self) -> None:
        """Take the bar away."""
        self._progress.stop()


class TrackerObserver(SilentObserver):
    """Lets a tracker look at the run directory after each evaluation."""

    def __init__(self, tracker: Tracker):
        self._tracker = tracker

    def evaluated(self, record: Record) -> None:
        """Mirror what was written."""
        self._tracker.poll()


class Observers:
    """Several observers as one, told in order."""

    def __init__(self, observers: Sequence[Observer]):
        self._observers = observers

    def started(self, state: RunState, config: RunConfig) -> None:
        """Tell all."""
        for observer in self._observers:
            observer.started(state, config)

    def trained(self, step: int, record: Record | None) -> None:
        """Tell all."""
        for observer in self._observers:
            observer.trained(step, record)

    def evaluated(self, record: Record) -> None:
        """Tell all."""
        for observer in self._observers:
            observer.evaluated(record)

    def ended(self) -> None:
        """Tell all."""
        for observer in self._observers:
            observer.ended()
