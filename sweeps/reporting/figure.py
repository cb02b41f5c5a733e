"""The picture of a sweep: every replicate's score as a point, mean ± sd beside it, one line a row."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nmt.evaluation.catalogue import METRICS
from sweeps.aggregate import RowResult
from sweeps.plan import SweepPlan
from sweeps.wording import mean_and_sd

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID, POINT, BASELINE, PUBLISHED = "#1b1f24", "#59636e", "#e6e9ec", "#2f6fb3", "#9a6a00", "#a03050"
TITLE_WIDTH = 72  # characters
SPREAD = 0.11  # vertical distance between points of one row, so that equal scores stay two points


def draw(plan: SweepPlan, results: Sequence[RowResult]) -> Figure:
    """Draw the rows from top to bottom in the table's order. Needs matplotlib, and no display."""
    from matplotlib.figure import Figure

    metric = plan.config.validation.metric
    figure = Figure(figsize=(8.0, 1.7 + 0.62 * len(results)), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    for position, row in enumerate(results):
        _draw_row(axes, position, row, metric)
    _draw_baseline(axes, plan, results, metric)
    axes.set_ylim(len(results) - 0.5, -0.5)
    axes.set_yticks(range(len(results)), [_name(row) for row in results], color=INK)
    axes.set_xlabel(_axis_title(results, metric), color=INK)
    title = textwrap.fill(plan.spec.title, TITLE_WIDTH)
    figure.suptitle(title, x=0.012, ha="left", color=INK, fontsize=12, fontweight="bold")
    axes.margins(x=0.08)
    axes.grid(axis="x", color=GRID, linewidth=0.9)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelcolor=MUTED)
    axes.tick_params(axis="y", labelcolor=INK, labelsize=10.5)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    _legend(figure, axes)
    return figure


def render(figure: Figure, form: str) -> bytes:
    """The picture's bytes, as `png` or `svg`; the same bytes for the same picture."""
    import matplotlib

    out = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "nmt", "svg.fonttype": "path"}):
        metadata = {"Date": None} if form == "svg" else {"Software": None}
        figure.savefig(out, format=form, dpi=160, metadata=metadata)
    return out.getvalue()


def _draw_row(axes: Axes, position: int, row: RowResult, metric: str) -> None:
    scores = [replicate.metrics[metric] for replicate in row.complete if metric in replicate.metrics]
    values = row.metrics.get(metric)
    if values is None:
        axes.annotate("no result yet", (0.01, position), xycoords=("axes fraction", "data"), va="center", color=MUTED)
        return
    centre = position - 0.16
    heights = [
        position + 0.16 + SPREAD * (i - (len(scores) - 1) / 2) * min(1.0, 3 / len(scores)) for i in range(len(scores))
    ]
    axes.plot(scores, heights, "o", markersize=6, color=POINT, alpha=0.8, markeredgewidth=0, label="replicate")
    axes.errorbar(
        values.mean, centre, xerr=values.sd, fmt="D", markersize=5.5, color=INK, elinewidth=1.6, capsize=4,
        label="mean ± sd",
    )  # fmt: skip
    axes.annotate(
        mean_and_sd(values), (values.mean, centre), xytext=(0, 7), textcoords="offset points", ha="center",
        fontsize=9, color=INK, bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.9},
    )  # fmt: skip
    if row.published and row.published.mean is not None and not row.differs:
        axes.errorbar(
            row.published.mean, position, xerr=row.published.std, fmt="s", markersize=5, markerfacecolor="white",
            color=PUBLISHED, elinewidth=1.0, capsize=3, label="published mean ± sd",
        )  # fmt: skip


def _draw_baseline(axes: Axes, plan: SweepPlan, results: Sequence[RowResult], metric: str) -> None:
    row = next((row for row in results if row.label == plan.spec.baseline), None)
    if row and metric in row.metrics:
        axes.axvline(
            row.metrics[metric].mean,
            color=BASELINE,
            linestyle=(0, (4, 3)),
            linewidth=1.1,
            zorder=1,
            label=f"mean of {row.label} (baseline)",
        )


def _name(row: RowResult) -> str:
    n = len(row.complete)
    return f"{row.label}\nn = {n}" if not row.missing else f"{row.label}\nn = {n} of {row.requested}"


def _axis_title(results: Sequence[RowResult], metric: str) -> str:
    sentences = {replicate.sentences for row in results for replicate in row.complete if replicate.sentences}
    count = f", {sentences.pop():,} sentences" if len(sentences) == 1 else ""
    return f"{METRICS[metric].title} (test split{count})"


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    if unique:
        figure.legend(
            unique.values(),
            unique.keys(),
            loc="outside lower left",
            ncols=len(unique),
            frameon=False,
            fontsize=9,
            labelcolor=MUTED,
        )
