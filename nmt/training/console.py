"""What a person sees of one run: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from nmt.config.schema import RunConfig
from nmt.evaluation.catalogue import key
from nmt.training.observers import Record, SilentObserver
from nmt.training.state import RunState


class ConsoleObserver(SilentObserver):
    """A bar over the steps with loss, speed and time left; a line for every evaluation."""

    def __init__(self, console: Console):
        self.console = console
        self._metric = "bleu"
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}

    def working(self, stage: str, done: int, total: int) -> None:
        """A bar of its own for each stage, taken away when it is done."""
        if stage not in self._tasks:
            self._progress.start()
            self._tasks[stage] = self._progress.add_task(stage, loss="", speed="")
        self._progress.update(self._tasks[stage], completed=done, total=total)
        if done >= total:
            self._progress.remove_task(self._tasks.pop(stage))
            if not self._tasks:
                self._progress.stop()

    def started(self, state: RunState, config: RunConfig) -> None:
        """Draw the bar, at the step that an interrupted run goes on from."""
        self._metric = config.validation.metric
        if state.step:
            self.console.print(f"resuming after step {state.step}")
        self._progress.start()
        total = config.training.max_steps
        self._training = self._progress.add_task("training", total=total, completed=state.step, loss="", speed="")

    def trained(self, step: int, record: Record | None) -> None:
        """Move the bar."""
        self._progress.update(self._training, completed=step)
        if record:
            loss, speed = f"loss {record['loss']:.3f}", f"{record['tokens_per_second']:,.0f} tokens/s"
            self._progress.update(self._training, loss=loss, speed=speed)
            if not self.console.is_terminal:
                self.console.print(f"step {step:>7}  {loss}  {speed}", highlight=False, soft_wrap=True)

    def evaluated(self, record: Record) -> None:
        """Print the decoded metric and the teacher-forced log-perplexity of a validation."""
        self.console.print(
            f"step {record['step']:>7}  validation {self._metric} {record[key('val', self._metric)]:.2f}  "
            f"log-perplexity {record['val/teacher_forced/log_perplexity']:.3f} (teacher-forced)  "
            f"after {record['seconds'] / 60:.1f} min of training{'  [green]best[/]' if record['best'] else ''}",
            highlight=False,
            soft_wrap=True,
        )

    def ended(self) -> None:
        """Take the bar away."""
        self._progress.remove_task(self._training)
        self._progress.stop()
