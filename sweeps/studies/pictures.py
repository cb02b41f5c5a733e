"""Pictures of a study as PNG, for its Markdown document; its page draws them itself."""

from __future__ import annotations

from sweeps.reporting.figure import GRID, INK, MUTED, render
from sweeps.studies.points import Picture

MARKERS = "osD^vPX*<>"


def draw_picture(picture: Picture) -> bytes:
    """The curves with markers, and a legend beside them. Needs matplotlib, and no display."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.0, 4.0), layout="constrained", facecolor="white")
    axes = figure.add_subplot()
    for number, curve in enumerate(picture.curves):
        marker = MARKERS[number % len(MARKERS)]
        axes.plot(curve.x, curve.mean, marker=marker, markersize=4, linewidth=1.4, alpha=0.85, label=curve.label)
    axes.set_title(picture.title, loc="left", color=INK, fontsize=10.5, fontweight="bold", wrap=True)
    axes.set_xlabel(picture.x_title, color=INK)
    axes.set_ylabel(picture.y_title, color=INK)
    axes.grid(color=GRID, linewidth=0.9)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelcolor=MUTED)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    if picture.curves:
        figure.legend(loc="outside right upper", frameon=False, fontsize=8.5, labelcolor=MUTED)
    return render(figure, "png")
