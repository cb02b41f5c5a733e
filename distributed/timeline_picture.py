"""A picture of timelines: a row a process, a colour a kind of time, the idle share beside it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from distributed.timeline import KINDS, WAITS
from distributed.timeline_files import RecordedSpan, Recording

# Work in blues, waiting in warm colours, so that idleness is seen before the legend is read; safe for the colour-blind.
COLOURS = {
    "busy": "#0072b2",
    "copy": "#7fc4ea",
    "wait_recv": "#e69f00",
    "wait_barrier": "#d55e00",
    "wait_send": "#cc79a7",
}
OTHER = "#eaeef2"
INK, MUTED = "#1b1f24", "#59636e"
_WIDTH, _ROW, _LANE = 13.0, 0.42, 0.16  # inches: of the picture, of a process's row, of another lane's
_LEFT, _RIGHT, _TOP, _BOTTOM = 1.5, 1.75, 0.85, 0.62
DPI = 110


def draw(recordings: Sequence[Recording], title: str) -> bytes:
    """The picture, a PNG file, of recordings that lie side by side (`timeline_files.side_by_side`).

    A row shows the main lane, with the inner of two spans on top; thin rows below it are the process's other lanes. The
    share beside it is that of the time that is shown. Needs matplotlib, and no display; the same input gives the same
    bytes.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    rows = [(one, lane) for one in recordings for lane in _lanes(one)]
    heights = [_ROW if lane == "main" else _LANE for _, lane in rows]
    size = (_WIDTH, _TOP + sum(heights) + _BOTTOM)
    figure = Figure(figsize=size, facecolor="white")
    axes = figure.add_axes((_LEFT / size[0], _BOTTOM / size[1], 1 - (_LEFT + _RIGHT) / size[0], sum(heights) / size[1]))
    end = max((span.end for one in recordings for span in one.spans()), default=1)
    begin = min((span.begin for one in recordings for span in one.spans()), default=0)
    unit, name = _unit(end - begin)
    top = 0.0
    for (one, lane), height in zip(rows, heights, strict=True):
        thickness = height * (0.78 if lane == "main" else 0.7)
        _draw_lane(axes, one.lanes.get(lane, []), (top + 0.5 * (height - thickness), thickness), begin, unit)
        if lane == "main":
            middle = top + height / 2
            axes.text(-0.008, middle, one.process, transform=axes.get_yaxis_transform(), ha="right", va="center")
            _note(axes, one, middle, begin, end)
        top += height
    axes.set_xlim(0, max((end - begin) / unit, 1e-9))
    axes.set_ylim(top, 0)
    axes.set_yticks([])
    axes.set_xlabel(f"{name} since the first span shown", color=MUTED, fontsize=9)
    axes.tick_params(colors=MUTED, labelsize=9)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color("#d0d7de")
    figure.text(_LEFT / size[0], 1 - 0.18 / size[1], title, color=INK, fontsize=12, va="top")
    figure.text(1 - (_RIGHT - 0.09) / size[0], 1 - 0.62 / size[1], "of the time shown", color=MUTED, fontsize=8)
    figure.legend(
        handles=[Patch(color=COLOURS[kind], label=kind.replace("_", " ")) for kind in COLOURS]
        + [Patch(color=OTHER, label="other")],
        loc="upper left",
        bbox_to_anchor=((_LEFT - 0.1) / size[0], 1 - 0.42 / size[1]),
        ncols=len(COLOURS) + 1,
        frameon=False,
        fontsize=9,
        labelcolor=INK,
        handlelength=1.1,
        columnspacing=1.4,
    )
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=DPI, metadata={"Software": None})
    return out.getvalue()


def summary(recordings: Sequence[Recording]) -> list[tuple[str, dict[str, float]]]:
    """By process, the share of its main lane's wall time of every kind, of `other` and of `idle`.

    Of the whole attempt where its totals were written, else of what was recorded; nothing of a process that ended
    before it wrote a span.
    """
    return [(one.process, _shares(one)) for one in recordings]


def _shares(recording: Recording) -> dict[str, float]:
    spans = recording.lanes.get("main", [])
    if not spans and not recording.left_out:
        return {}
    whole = max((span.end for span in spans), default=0) - min((span.begin for span in spans), default=0)
    totals = recording.totals or _totals_of(spans, whole)
    wall = totals["wall"] or 1.0
    return {kind: totals[kind] / wall for kind in (*KINDS, "other")} | {"idle": totals["idle"]}


def _totals_of(spans: Sequence[RecordedSpan], wall: int) -> dict[str, Any]:
    """Totals of a lane's spans in a time of length `wall`; an inner span's time is its own, not the outer one's."""
    own = dict.fromkeys(KINDS, 0)
    inner: list[RecordedSpan] = []  # ended, and in no span that has ended since
    for span in spans:
        inside = 0
        while inner and inner[-1].begin >= span.begin:
            inside += inner.pop().length
        own[span.kind] += span.length - inside
        inner.append(span)
    idle = sum(own[kind] for kind in WAITS) / wall if wall else 0.0
    return {**own, "other": max(0, wall - sum(own.values())), "wall": wall, "idle": idle}


def _lanes(recording: Recording) -> list[str]:
    return ["main", *sorted(lane for lane in recording.lanes if lane != "main")]


def _draw_lane(axes: Any, spans: Sequence[RecordedSpan], place: tuple[float, float], begin: int, unit: float) -> None:
    """Bars at (top, height); the longest first, so that inner spans stand on outer ones."""
    axes.axhspan(place[0], sum(place), color=OTHER, linewidth=0, zorder=0)
    longest_first = sorted(spans, key=lambda span: -span.length)
    axes.broken_barh(
        [((span.begin - begin) / unit, span.length / unit) for span in longest_first],
        place,
        facecolors=[COLOURS[span.kind] for span in longest_first],
        linewidth=0,
    )


def _note(axes: Any, recording: Recording, middle: float, begin: int, end: int) -> None:
    """The idle share, and a word where it cannot be trusted or nothing is known."""
    held, spans = recording.totals.get("oversubscribed", False), recording.lanes.get("main", [])
    text = f"idle {100 * _totals_of(spans, end - begin)['idle']:.1f} %" + (", cores shared" if held else "")
    if not spans:
        text = "nothing recorded"
    axes.text(1.008, middle, text, transform=axes.get_yaxis_transform(), ha="left", va="center", color=INK, fontsize=9)


def _unit(nanoseconds: int) -> tuple[float, str]:
    """What the axis counts in."""
    return (1e9, "seconds") if nanoseconds >= 2e9 else (1e6, "milliseconds")
