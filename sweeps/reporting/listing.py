"""Every run of a sweep with the values that it brought, and which figure of the table each value went into."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sweeps.aggregate import RowResult
from sweeps.reporting.columns import COLUMNS
from sweeps.results import Replicate
from sweeps.wording import NOTHING


@dataclass(frozen=True, kw_only=True)
class Value:
    """A value of a run as text; `columns` are the table's columns, by their titles, that it went into."""

    text: str
    columns: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ListedRun:
    """A run: its id, whether it is in the statistics, and a value for each column of the listing."""

    run_id: str
    complete: bool
    values: tuple[Value, ...]


@dataclass(frozen=True, kw_only=True)
class RowRuns:
    """The runs of one row, in order of replicates."""

    label: str
    runs: tuple[ListedRun, ...]


@dataclass(frozen=True, kw_only=True)
class Listing:
    """The runs of all rows under common columns; `numeric` says which are aligned to the right."""

    columns: tuple[str, ...]
    numeric: tuple[bool, ...]
    rows: tuple[RowRuns, ...]

    def of(self, label: str) -> RowRuns:
        """The runs of the row called `label`."""
        return next(row for row in self.rows if row.label == label)


TESTED = tuple(name for name, column in COLUMNS.items() if column.cell is None)  # they rest on the baseline's runs too
# The columns of the listing: whether they are numbers, and which of the table's columns they feed.
LISTED: dict[str, tuple[bool, tuple[str, ...]]] = {
    "run": (False, ()),
    "seed": (True, ()),
    "state": (False, ("n", "diverged")),
    "test": (True, ("score", "median", "min", "max", *TESTED)),
    "validation": (True, ("best",)),
    "checkpoint": (True, ("convergence_steps",)),
    "steps": (True, ("steps",)),
    "decoding": (False, ()),
    "log-ppl": (True, ("log_perplexity",)),
    "params": (True, ("parameters",)),
    "tok/s": (True, ("tokens_per_second",)),
    "conv. tokens": (True, ("convergence_tokens",)),
    "conv. s": (True, ("convergence_seconds",)),
    "timing": (False, ()),
    "MiB": (True, ("peak_memory",)),
    "J/1k tok": (True, ("energy",)),
    "idle %": (True, ("idle",)),
    "staleness": (True, ("staleness",)),
    "code": (False, ()),
}


def list_runs(results: Sequence[RowResult], metric: str) -> Listing:
    """List the runs of every row; columns in which no run has anything to say are left out."""
    fed = {
        name: tuple(COLUMNS[one].title.format(metric=metric) for one in feeds) for name, (_, feeds) in LISTED.items()
    }
    rows = [[(one, _values(row, one, metric)) for one in row.replicates] for row in results]
    said = {
        name for row in rows for _, values in row for name, (text, _) in values.items() if text not in ("", NOTHING)
    }
    kept = [name for name in LISTED if name in said or name == "run"]
    return Listing(
        columns=tuple(kept),
        numeric=tuple(LISTED[name][0] for name in kept),
        rows=tuple(
            RowRuns(
                label=result.label,
                runs=tuple(
                    ListedRun(
                        run_id=one.run_id,
                        complete=one.complete,
                        values=tuple(
                            Value(text=values[name][0], columns=fed[name] if values[name][1] else ()) for name in kept
                        ),
                    )
                    for one, values in row
                ),
            )
            for result, row in zip(results, rows, strict=True)
        ),
    )


def _values(row: RowResult, run: Replicate, metric: str) -> dict[str, tuple[str, bool]]:
    """A run's values as text by the names of `LISTED`, each with whether it went into figures.

    Only complete runs are in figures, and seconds of another timing than the row's are in none.
    """
    timed = run.timing == row.timing

    def value(number: float | None, form: str, counts: bool = True) -> tuple[str, bool]:
        return (NOTHING, False) if number is None else (format(number, form), run.complete and counts)

    memory = None if run.peak_memory_bytes is None else run.peak_memory_bytes / 2**20
    return {
        "run": (run.run_id, False),
        "seed": (str(run.seed), False),
        "state": (run.state + (f" ({run.reason})" if run.reason else ""), run.complete),
        "test": value(run.metrics.get(metric), ".2f"),
        "validation": value(run.validation.get(metric), ".2f"),
        "checkpoint": value(run.best_step, ","),
        "steps": value(run.steps, ","),
        "decoding": (run.decode_id if run.metrics else NOTHING, False),
        "log-ppl": value(run.log_perplexity, ".3f"),
        "params": value(run.parameters, ","),
        "tok/s": value(run.tokens_per_second, ",.0f", timed),
        "conv. tokens": value(run.convergence_tokens, ","),
        "conv. s": value(run.convergence_seconds, ",.0f", timed),
        "timing": (run.timing, False),
        "MiB": value(memory, ",.0f"),
        "J/1k tok": value(run.joules_per_1000_tokens, ",.1f"),
        "idle %": value(None if run.idle_workers is None else 100 * run.idle_workers, ".1f"),
        "staleness": value(run.staleness, ".2f"),
        "code": (run.code, False),
    }
