"""An experiment's sweep: its runs are trained, and what their directories say become points.

Points of a row: every figure of `sweeps.process_figures` and of `sweeps.undisturbed`, and at each evaluation (condition
`step 20`) `loss`, the validation log-perplexity, and `bits`, 48 bits of the digest of all parameters; `end_loss` is the
loss at the last one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sweeps.aggregate import RowResult, aggregate
from sweeps.plan import SweepPlan
from sweeps.process_figures import TIMED
from sweeps.reporting.curves import AXES, make_curves
from sweeps.reporting.table import make_table
from sweeps.results import LOG_PERPLEXITY
from sweeps.studies.points import Findings, Picture, Point
from sweeps.undisturbed import evaluations

AXIS_TITLES = {"steps": "iterations", "tokens": "target tokens", "seconds": "seconds of training"}
DIGITS = 12  # of a digest, hexadecimal: as many bits as a float holds without rounding


def read_trained(plan: SweepPlan, name: str, curves: bool) -> Findings:
    """What the sweep's runs say so far.

    name: of the experiment, for its pictures. curves: whether to draw the loss against iterations, tokens and seconds.
    """
    results = aggregate(plan)
    table = make_table(plan, results)
    pictures = _pictures(results, plan.config.validation.metric, name) if curves else ()
    return Findings(points=tuple(_points(results)), tables=(table,), pictures=pictures)


def _points(results: Sequence[RowResult]) -> Iterator[Point]:
    for row in results:
        if not row.complete:
            missing = next((one.error for one in row.replicates if one.error), "its run is not complete")
            yield Point(row=row.label, figure="loss", refused=missing)
            continue
        for figure, values in row.processes.items():
            yield Point(row=row.label, figure=figure, value=values.mean)
        if row.refused:
            yield from (Point(row=row.label, figure=figure, refused=row.refused) for figure in TIMED)
        first = evaluations(row.complete[0].directory)  # replicates have other seeds: curves are compared of one
        for step in sorted(first):
            condition = (f"step {step}",)
            digest = first[step]["parameters_sha256"][:DIGITS]
            yield Point(row=row.label, figure="loss", value=first[step][LOG_PERPLEXITY], condition=condition)
            yield Point(row=row.label, figure="bits", value=float(int(digest, 16)), condition=condition)
        if first:
            yield Point(row=row.label, figure="end_loss", value=first[max(first)][LOG_PERPLEXITY])


def _pictures(results: Sequence[RowResult], metric: str, name: str) -> tuple[Picture, ...]:
    found = make_curves(results, metric)
    refused = {row.label for row in results if row.refused}
    pictures = []
    for axis in AXES:
        curves = [one for one in found[LOG_PERPLEXITY, axis] if axis != "seconds" or one.label not in refused]
        if curves and (axis != "seconds" or len(curves) > 1):  # one alone compares nothing
            title = f"Validation loss against {AXIS_TITLES[axis]}"
            pictures.append(
                Picture(
                    name=f"{name}-{axis}",
                    title=title,
                    x_title=AXIS_TITLES[axis],
                    y_title="log-perplexity",
                    curves=tuple(curves),
                )
            )
    return tuple(pictures)
