"""`nmt evaluate grid=<sweep>`: stored checkpoints, each decoded with the search of every row of a sweep, untrained.

A grid is a sweep whose rows differ in their search only, such as `table6_beam`; so one list of rows serves both verbs.
Its cells are the `decodes/` of the runs, found by (checkpoint, search, test text): a cell that is there is never
decoded again, and a grid that was interrupted goes on where it was.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from nmt.archives import ArchivedRunStore
from nmt.config import RunConfig, load_run_config
from nmt.config.compose import groups
from nmt.config.override import override
from nmt.errors import UserError
from nmt.evaluate import EvaluateOptions, evaluate_run, placed
from nmt.evaluation.catalogue import key
from sweeps.chosen import Configuration, of_runs, of_sweep
from sweeps.conditions import differences_from_published
from sweeps.plan import PlannedRow, PlannedRun, SweepPlan
from sweeps.results import read_replicate
from sweeps.rows import layered, names_test_text, scored_on
from sweeps.screen import say, standard_output
from sweeps.spec import RowSpec, SweepSpec, load_spec

if TYPE_CHECKING:
    from rich.console import Console


def main(options: EvaluateOptions, words: Sequence[str]) -> int:
    """Decode what is missing of the grid that the command line asks for, and print a table a configuration."""
    from sweeps.aggregate import aggregate_row
    from sweeps.reporting.findings import find
    from sweeps.reporting.report import write_report
    from sweeps.reporting.table import to_markdown, to_screen

    if not options.grid:
        raise UserError("is for a grid", where=f"sweep={options.sweep}", hint="give grid=<sweep> too, or use nmt sweep")
    for name in ("checkpoint", "hypotheses", "references"):
        if getattr(options, name):
            raise UserError("does not go with a grid", where=name, hint="give run=...")
    searched, others = split_words(words)
    spec = load_spec(options.grid)
    searches = row_searches(spec, searched)
    if options.sweep and options.run:
        raise UserError("give one of run=... and sweep=...", where="nmt evaluate", hint="see --help")
    configurations = (
        of_sweep(options.sweep, others) if options.sweep else of_runs(options.run, options.runs, "nmt evaluate")
    )
    evaluation_words = [] if options.sweep else others

    console = standard_output()
    for configuration in configurations:
        plan = grid_plan(spec, searches, configuration, evaluation_words, options)
        decode_grid(plan, console)
        results = [
            aggregate_row(row, [read_replicate(plan.store, run.config, run.run_id) for run in row.runs])
            for row in plan.rows
        ]
        findings = find(plan, results)
        report = write_report(plan, results, findings=findings)
        if console.is_terminal:
            console.print(to_screen(findings.table))
        else:
            say(console, to_markdown(findings.table))
        for run_id in configuration.left_out:
            say(console, f"run {run_id} has not ended and is left out")
        say(console, f"table and picture: {report.directory}")
    return 0


def split_words(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Overrides of the search, and the others."""
    searched = [word for word in words if _of_search(word)]
    return searched, [word for word in words if not _of_search(word)]


def row_searches(spec: SweepSpec, words: Sequence[str] = ()) -> dict[str, list[str]]:
    """By label, the overrides of the search that each row of a grid stands for; `words` are the command line's.

    Of the overrides for all rows only those of the search are taken: the rest is how the sweep trains. Raises UserError
    where rows differ in more than their search.
    """
    known = set(groups())
    shared = [word for word in spec.overrides if _of_search(word)]
    for row in spec.rows:
        beyond = [word for word in row.overrides if not _of_search(word)]
        if row.experiment != spec.rows[0].experiment:
            beyond.append(f"experiment={row.experiment}")
        if beyond:
            raise UserError(
                f"row '{row.label}' differs in more than its search: {beyond[0]}",
                where=f"grid={spec.name}",
                hint="a grid decodes stored checkpoints; nmt sweep trains such rows",
            )
    return {row.label: layered([shared, list(row.overrides), list(words)], known) for row in spec.rows}


def grid_plan(
    spec: SweepSpec,
    searches: dict[str, list[str]],
    configuration: Configuration,
    words: Sequence[str],
    options: EvaluateOptions,
) -> SweepPlan:
    """The grid over one configuration as a plan whose runs are given: each row has all of them, with its own search.

    `words` are overrides of the test text and its place. Raises UserError for what does not fit the runs.
    """
    store = configuration.store
    trained = [
        placed(load_run_config(store.directory(run_id) / "config.yaml"), store.directory(run_id), options.device,
               options.threads)
        for run_id in configuration.run_ids
    ]  # fmt: skip
    rows = []
    for row in spec.rows:
        configs = [_row_config(row, config, searches[row.label], words) for config in trained]
        runs = tuple(
            PlannedRun(label=row.label, replicate=number, config=config, found=read_replicate(store, config, run_id))
            for number, (config, run_id) in enumerate(zip(configs, configuration.run_ids, strict=True))
        )
        differs = differences_from_published(row, configs[0], spec, words) if row.published else ()
        rows.append(PlannedRow(spec=row, config=configs[0], runs=runs, differs=differs))
    train_id = configuration.run_ids[0].partition("/")[0]
    named = dataclasses.replace(spec, name=f"{spec.name}-{train_id}", title=f"{spec.title} ({configuration.label})")
    return SweepPlan(spec=named, rows=tuple(rows), store=ArchivedRunStore(store.root), overrides=tuple(words))


def decode_grid(plan: SweepPlan, console: Console) -> None:
    """Decode the cells that are missing, replicate by replicate."""
    cells = [(row, run) for row in plan.rows for run in row.runs]
    missing = sorted((cell for cell in cells if not cell[1].found.complete), key=lambda cell: cell[1].replicate)
    there = len(cells) - len(missing)
    what = f"{len(plan.rows)} searches × {len(plan.rows[0].runs)} replicates"
    say(console, f"{what}: {there} of {len(cells)} decodings are there already")
    metric = plan.config.validation.metric
    with _progress(len(missing)) as cell_progress:
        for number, (row, run) in enumerate(missing):
            record = evaluate_run(
                plan.store, run.run_id, config=run.config, progress=cell_progress(number, f"{row.label} {run.run_id}")
            )
            value = record["metrics"][key("test", metric)]
            say(console, f"{row.label:<12} {run.run_id}  {metric} {value:.2f}  {record['seconds']:.1f} s")


def _row_config(row: RowSpec, config: RunConfig, search: Sequence[str], words: Sequence[str]) -> RunConfig:
    try:
        config = override(config, [*search, *words])
    except UserError as error:
        where = f"row '{row.label}': {error.where or 'search'}"
        raise UserError(error.what, where=where, allowed=error.allowed, hint=error.hint) from error
    if not any(names_test_text(word) for word in words):
        config = scored_on(config, row.test)
    return dataclasses.replace(config, label=row.label)


def _of_search(word: str) -> bool:
    return word.startswith(("search=", "search."))


@contextmanager
def _progress(cells: int) -> Iterator[Callable[[int, str], Callable[[int, int], None] | None]]:
    """Two bars on stderr, over cells and over the sentences of the present one; nothing where stderr is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    if not console.is_terminal or not cells:
        yield lambda number, name: None
        return
    columns = (TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        total = progress.add_task("decodings", total=cells)
        sentences = progress.add_task("", total=None)

        def begin(number: int, name: str) -> Callable[[int, int], None]:
            progress.update(total, completed=number)
            progress.update(sentences, description=name, completed=0)
            return partial(count, number)

        def count(number: int, done: int, of: int) -> None:
            progress.update(sentences, completed=done, total=of)
            progress.update(total, completed=number + done / max(of, 1))

        yield begin
