"""Curves and strips of a page as SVG, drawn with its style sheet: lines, bands and points follow its colours.

Written out instead of drawn with matplotlib: a page's pictures take the reader's colour scheme, are pointed at and
switched row by row, and a thousand curves are a fraction of a second. Numbers stand in `data-` attributes, rounded for
reading, and nothing is drawn that is not in `Findings`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from sweeps.reporting.axes import Scale, spanning, tick_labels
from sweeps.reporting.curves import Curve
from sweeps.reporting.differences import Difference
from sweeps.reporting.findings import Scores
from sweeps.reporting.markup import Markup

WIDTH, HEIGHT = 420, 270
LEFT, RIGHT, TOP, BOTTOM = 42, 10, 8, 38
COLOURS, DASHES = 10, 3  # of the style sheet; beyond them colours come again with other dashes


def curve_picture(
    curves: Sequence[Curve], numbers: Mapping[str, int], x_title: str, y_title: str, name: str, thick: str = ""
) -> Markup:
    """A line for each curve and the band of its replicates.

    Parameters
    ----------
    numbers: of each row, by label: its colour, and what switches it on and off.
    thick: label of the row that stands out, the baseline.
    """
    x = spanning((value for curve in curves for value in curve.x), LEFT, WIDTH - RIGHT, 0.02)
    y = spanning((value for curve in curves for value in (*curve.low, *curve.high)), HEIGHT - BOTTOM, TOP, 0.04)
    parts = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" tabindex="0" aria-label="{escape(name)}"'
        f' data-x="{escape(x_title)}" data-y="{escape(y_title)}">',
        *_axes(x, y, x_title, y_title),
    ]
    for curve in curves:
        parts.append(_curve(curve, numbers[curve.label], x, y, curve.label == thick))
    parts.append('<g class="cursor"></g></svg>')
    return Markup("".join(parts))


def style_of(number: int) -> str:
    """The classes that give a row its colour and dashes."""
    dashes = number // COLOURS % DASHES
    return f"c{number % COLOURS}" + (f" d{dashes}" if dashes else "")


def score_strip(scores: Scores, scale: Scale) -> Markup:
    """One row's replicates as points, mean ± sd, and what was published under the same conditions."""
    parts = []
    if scores.statistics is not None:
        mean, sd = scores.statistics.mean, scores.statistics.sd or 0.0
        if math.isfinite(mean):
            parts += _bar(mean - sd, mean + sd, scale) if math.isfinite(sd) and sd else []
            parts.append(_glyph(mean, scale, '<path class="mean" d="M0,-6V6"/>'))
    for run_id, value in scores.values:
        if math.isfinite(value):
            parts.append(
                _glyph(value, scale, f'<circle class="run" r="4"><title>{value:.2f}  {run_id}</title></circle>')
            )
    if scores.published is not None:
        parts.append(_glyph(scores.published, scale, _published(f"published {scores.published:.2f}")))
    return _strip(parts)


def difference_strip(difference: Difference, scale: Scale) -> Markup:
    """One row's difference to the baseline with its interval, and the published difference."""
    parts = [f'<line class="zero" x1="{scale(0):.2f}%" x2="{scale(0):.2f}%" y1="0" y2="100%"/>']
    if difference.interval is not None:
        low, high = difference.interval
        parts += _bar(max(low, scale.low), min(high, scale.high), scale)
        # Few replicates can leave an interval wider than the picture; an arrow says that it goes on.
        parts += [_glyph(scale.low, scale, '<path class="on" d="M6,-4L1,0L6,4"/>')] if low < scale.low else []
        parts += [_glyph(scale.high, scale, '<path class="on" d="M-6,-4L-1,0L-6,4"/>')] if high > scale.high else []
    if difference.measured is not None and math.isfinite(difference.measured):
        parts.append(_glyph(difference.measured, scale, '<path class="diamond" d="M0,-6L5,0L0,6L-5,0Z"/>'))
    if difference.published is not None:
        parts.append(_glyph(difference.published, scale, _published(f"published {difference.published:+.2f}")))
    return _strip(parts)


def strip_axis(scale: Scale, most: int = 5) -> Markup:
    """Ticks and labels of strips that stand above each other on one scale."""
    ticks = scale.ticks(most)
    parts = [
        f'<line x1="{scale(tick):.2f}%" x2="{scale(tick):.2f}%" y1="0" y2="5"/>'
        f'<text x="{scale(tick):.2f}%" y="18">{label}</text>'
        for tick, label in zip(ticks, tick_labels(ticks), strict=True)
    ]
    return Markup(f'<svg class="strip axis" aria-hidden="true">{"".join(parts)}</svg>')


def score_scale(rows: Sequence[Scores]) -> Scale:
    """The scale on which all rows' scores stand, in percent of a strip's width."""
    values = [value for row in rows for _, value in row.values]
    values += [row.published for row in rows if row.published is not None]
    for row in rows:
        if row.statistics is not None and row.statistics.sd is not None:
            values += [row.statistics.mean - row.statistics.sd, row.statistics.mean + row.statistics.sd]
    return spanning(values, 2.0, 98.0)


def difference_scale(rows: Sequence[Difference]) -> Scale:
    """The scale of the differences, zero on it. Intervals may stick out of it: at n = 2 they can be very wide."""
    points = [value for row in rows for value in (row.measured, row.published) if value is not None]
    spread = max((abs(value) for value in points if math.isfinite(value)), default=1.0)
    ends = [end for row in rows for end in row.interval or () if abs(end) <= 2 * spread]
    return spanning([*points, *ends], 3.0, 97.0, around=0.0)


def _axes(x: Scale, y: Scale, x_title: str, y_title: str) -> list[str]:
    across, up = x.ticks(6), y.ticks(6)
    parts = ['<g class="axes">']
    for tick, label in zip(up, tick_labels(up), strict=True):
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>')
        parts.append(f'<text class="up" x="{LEFT - 5}" y="{y(tick) + 3.5:.1f}">{label}</text>')
    for tick, label in zip(across, tick_labels(across), strict=True):
        parts.append(f'<text class="across" x="{x(tick):.1f}" y="{HEIGHT - BOTTOM + 14}">{label}</text>')
    parts.append(f'<line class="base" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{HEIGHT - BOTTOM}" y2="{HEIGHT - BOTTOM}"/>')
    parts.append(f'<text class="title" x="{WIDTH - RIGHT}" y="{HEIGHT - 6}">{escape(x_title)}</text></g>')
    return parts


def _curve(curve: Curve, number: int, x: Scale, y: Scale, thick: bool) -> str:
    points = [(x(at), y(mean)) for at, mean in zip(curve.x, curve.mean, strict=True)]
    band = [(x(at), y(high)) for at, high in zip(curve.x, curve.high, strict=True)]
    band += [(x(at), y(low)) for at, low in zip(reversed(curve.x), reversed(curve.low), strict=True)]
    whole = max(curve.n)
    ended = next((number for number, n in enumerate(curve.n) if n < whole and number), len(points))
    parts = [
        f'<g class="curve {style_of(number)}{" thick" if thick else ""}" data-row="{number}"'
        f' data-label="{escape(curve.label)}" data-at="{_numbers(curve.x)}" data-mean="{_numbers(curve.mean)}"'
        f' data-low="{_numbers(curve.low)}" data-high="{_numbers(curve.high)}" data-n="{" ".join(map(str, curve.n))}"'
        f' data-points="{" ".join(f"{px:.1f},{py:.1f}" for px, py in points)}">'
    ]
    if whole > 1:
        parts.append(f'<path class="band" d="{_path(band)}Z"/>')
    parts.append(f'<path class="line" d="{_path(points[:ended])}"/>')
    if ended < len(points):  # not all replicates went on
        parts.append(f'<path class="line fewer" d="{_path(points[ended - 1 :])}"/>')
    if len(points) == 1:
        parts.append(f'<circle class="line" cx="{points[0][0]:.1f}" cy="{points[0][1]:.1f}" r="2.5"/>')
    return "".join([*parts, "</g>"])


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _numbers(values: Sequence[float]) -> str:
    return " ".join(f"{value:.5g}" for value in values)


def _strip(parts: Sequence[str]) -> Markup:
    return Markup(f'<svg class="strip">{"".join(parts)}</svg>')


def _bar(low: float, high: float, scale: Scale) -> list[str]:
    return [f'<line class="bar" x1="{scale(low):.2f}%" x2="{scale(high):.2f}%" y1="50%" y2="50%"/>']


def _glyph(value: float, scale: Scale, shape: str) -> str:
    """A shape of fixed size at a place that moves with the strip's width."""
    return f'<svg class="glyph" x="{scale(value):.2f}%" y="50%">{shape}</svg>'


def _published(title: str) -> str:
    return f'<rect class="published" x="-4.5" y="-4.5" width="9" height="9"><title>{title}</title></rect>'
