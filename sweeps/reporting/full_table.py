"""The table of a sweep as CSV: all figures with full precision, a line for each row."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from sweeps.aggregate import TIMINGS, RowResult, Statistics
from sweeps.imported.rows import imported_rows
from sweeps.plan import SweepPlan
from sweeps.process_figures import FIGURES as PROCESS_FIGURES
from sweeps.reporting.significance import significance_record
from sweeps.reporting.table import baseline_tests, marks
from sweeps.significance import RowContrast, Significance
from sweeps.undisturbed import FIGURES as DIFFERENCES

FIGURES = (
    "log_perplexity", "steps", "convergence_steps", "convergence_tokens", "peak_memory_bytes", "joules_per_1000_tokens",
    "idle_workers", "staleness",
)  # fmt: skip


def to_csv(plan: SweepPlan, results: Sequence[RowResult], tests: Significance | None = None) -> str:
    """All figures with full precision, a line for each row; times of either timing in columns of their own.

    `tests` are those of `baseline_tests`, where they have been made already.
    """
    tests = tests or baseline_tests(plan, results)
    results = [*results, *imported_rows(plan)]
    metrics, chosen_by = (
        list(dict.fromkeys(name for row in results for name in row.metrics)),
        plan.config.validation.metric,
    )
    own = [name for name in plan.spec.columns if name in (*PROCESS_FIGURES, *DIFFERENCES)]
    records = [_record(row, metrics, chosen_by, tests.rows.get(row.label), own) for row in results]
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return out.getvalue()


def _record(
    row: RowResult, metrics: Sequence[str], chosen_by: str, tested: RowContrast | None, own: Sequence[str]
) -> dict[str, object]:
    best = row.best_run(chosen_by)
    record: dict[str, object] = {
        "row": row.label,
        "n": len(row.complete),
        "requested": row.requested,
        "missing": row.missing,
        "diverged": row.diverged,
        "best_at_the_end": row.still_improving,
        "parameters": row.parameters,
    }
    for name in metrics:
        values = row.metrics.get(name)
        for part in ("mean", "sd", "sd_over_n", "max", "median", "min"):
            record[f"{name}_{part}"] = getattr(values, part) if values else None
    for part in ("mean", "std", "max", "params_M"):
        record[f"published_{part}"] = getattr(row.published, part) if row.published else None
    record |= significance_record(tested)
    for name in FIGURES:
        record |= _mean_and_sd(name, getattr(row, name))
    for timing in TIMINGS:
        for name in ("tokens_per_second", "convergence_seconds"):
            values = getattr(row, name).get(timing)
            record |= _mean_and_sd(f"{name}_{timing}", values) | {f"{name}_{timing}_n": values.n if values else 0}
    record["best_run"] = best.run_id if best else None
    record["best_step"] = best.best_step if best else None
    record["notes"] = "; ".join(marks(row))
    record |= {part: value for name in own for part, value in _mean_and_sd(name, row.processes.get(name)).items()}
    record["runs"] = " ".join(replicate.run_id for replicate in row.replicates)
    return record


def _mean_and_sd(name: str, values: Statistics | None) -> dict[str, object]:
    return {f"{name}_{part}": getattr(values, part) if values else None for part in ("mean", "sd")}
