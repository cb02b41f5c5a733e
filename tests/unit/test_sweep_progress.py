"""What is shown while runs train: lines where there is no terminal, a table where there is."""

from __future__ import annotations

import io

from finished_runs import finish
from rich.console import Console

from nmt.runs import RunStatus
from sweeps.plan import SweepPlan, make_plan
from sweeps.progress import LiveProgress, PlainProgress, show_progress, unfinished_runs
from sweeps.spec import RowSpec, SweepSpec


def make() -> SweepPlan:
    rows = (RowSpec(label="A"), RowSpec(label="again"))
    return make_plan(SweepSpec(name="test", title="T", rows=rows, replicates=2), [])


def text(console: Console) -> str:
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def walk_through(plan: SweepPlan, progress: PlainProgress | LiveProgress) -> None:
    """One run starts, is evaluated twice with the same score, and finishes; another fails."""
    run, other = unfinished_runs(plan)
    with plan.store.claim(run.run_id):
        status = {"max_steps": 100, "attempts": 1}
        plan.store.set_status(run.run_id, RunStatus(state="running", **status))  # type: ignore[arg-type]
        progress.update()
        progress.update()
        for step in (40, 60):
            scored = RunStatus(
                state="running", step=step, tokens_per_second=1234.5, latest={"val/decode/bleu": 12.34}, **status
            )  # type: ignore[arg-type]
            plan.store.set_status(run.run_id, scored)
            progress.update()
    finish(run.config, 15.0)
    plan.store.set_status(other.run_id, RunStatus(state="failed", error="no memory"))
    progress.close()


def test_a_line_for_each_change_and_no_control_characters() -> None:
    plan, console = make(), Console(file=io.StringIO(), width=200)
    progress = show_progress(plan, console)
    assert isinstance(progress, PlainProgress)
    walk_through(plan, progress)
    assert [line.split("  ", 1) for line in map(str.strip, text(console).splitlines())] == [
        ["A · seed 1", "              started at step 0"],
        ["A · seed 1", "              step 40/100  validation bleu 12.34  1,234 tok/s"],
        ["A · seed 1", "              finished  test bleu 15.00"],
        ["A · seed 2", "              failed: no memory"],
    ]
    assert text(console).isprintable() or all(c.isprintable() or c == "\n" for c in text(console))


def test_the_live_table_has_a_line_a_run_whatever_rows_share_it() -> None:
    plan, console = make(), Console(file=io.StringIO(), width=160, height=40, force_terminal=True)
    progress = show_progress(plan, console)
    assert isinstance(progress, LiveProgress)
    walk_through(plan, progress)
    last = text(console).rpartition("test: ")[2]
    assert "1 finished, 1 failed" in last
    assert "100/" in last
    assert "no memory" not in last  # the reasons of failures are told at the end
    assert last.count("finished") == 2  # summary and row


def test_a_small_terminal_shows_the_busy_runs() -> None:
    plan = make_plan(SweepSpec(name="test", title="T", rows=(RowSpec(label="A"),), replicates=30), [])
    console = Console(file=io.StringIO(), width=160, height=12, force_terminal=True)
    progress = LiveProgress(plan, console)
    busy = plan.runs[27]
    with plan.store.claim(busy.run_id):
        plan.store.set_status(busy.run_id, RunStatus(state="running", step=1, max_steps=10))
        progress.update()
        shown = progress._visible()
    progress.close()
    assert len(shown) == 6
    assert shown[0] is busy
