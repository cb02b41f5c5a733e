"""A heat map of attention weights: source tokens across, output tokens down."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

INK, MUTED = "#1b1f24", "#59636e"
CELL = 0.27  # inches; smaller where a sentence would need more than `LARGEST`
LARGEST = 26.0  # inches of cells either way
CHARACTER = 0.077  # inches that a character of a label takes at `FONT` points
FONT = 9.0
LONGEST_LABEL = 24  # characters
DPI = 110


def draw_heat_map(weights: np.ndarray, source: Sequence[str], output: Sequence[str]) -> bytes:
    """The picture of `weights` [output tokens, source tokens] as the bytes of a PNG file.

    Every token has its label; a long sentence makes a larger picture, then smaller cells. The colours span 0 to 1 in
    every picture, so pictures can be compared. Needs matplotlib, and no display; the same input gives the same bytes.
    """
    from matplotlib.figure import Figure

    across, down = ([_label(token) for token in tokens] for tokens in (source, output))
    cell = min(CELL, LARGEST / max(len(across), len(down)))
    font = max(3.5, FONT * min(1.0, cell / 0.19))
    left = max(0.75, CHARACTER * font / FONT * max(map(len, down)) + 0.3)  # room for "output" at least
    top = CHARACTER * font / FONT * max(map(len, across)) + 0.36
    width, height = cell * len(across), cell * len(down)
    right, bottom = 0.95, 0.15
    total = (left + width + right, top + max(height, 1.2) + bottom)

    figure = Figure(figsize=total, facecolor="white")
    place = (left / total[0], 1 - (top + height) / total[1], width / total[0], height / total[1])
    axes = figure.add_axes(place)
    picture = axes.imshow(weights, cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto", interpolation="nearest")
    axes.set_xticks(range(len(across)), across, rotation=90, fontsize=font, color=INK, parse_math=False)
    axes.set_yticks(range(len(down)), down, fontsize=font, color=INK, parse_math=False)
    axes.tick_params(length=0, top=True, bottom=False, labeltop=True, labelbottom=False, pad=4)
    axes.set_xticks(np.arange(-0.5, len(across)), minor=True)
    axes.set_yticks(np.arange(-0.5, len(down)), minor=True)
    axes.grid(which="minor", color="white", linewidth=min(1.2, 3 * cell))
    axes.tick_params(which="minor", length=0)
    for spine in axes.spines.values():
        spine.set_color("#d0d7de")
    notes: dict[str, Any] = {"fontsize": FONT, "color": MUTED, "va": "top"}
    figure.text(left / total[0], 1 - 0.07 / total[1], "source →", ha="left", **notes)
    figure.text((left - 0.08) / total[0], 1 - (top - 0.24) / total[1], "output ↓", ha="right", **notes)
    bar_height = min(max(height, 1.2), 2.5)
    bar = figure.add_axes(
        ((left + width + 0.18) / total[0], 1 - (top + bar_height) / total[1], 0.13 / total[0], bar_height / total[1])
    )
    scale = figure.colorbar(picture, cax=bar, ticks=[0, 0.5, 1])
    scale.ax.tick_params(length=0, labelsize=FONT - 1, labelcolor=MUTED)
    scale.outline.set_visible(False)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=DPI, metadata={"Software": None})
    return out.getvalue()


def _label(token: str) -> str:
    return token if len(token) <= LONGEST_LABEL else f"{token[: LONGEST_LABEL - 1]}…"
