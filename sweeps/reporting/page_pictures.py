"""The pictures of a page: scores and differences row by row, learning curves, and the paper's Figure 2."""

from __future__ import annotations

from collections.abc import Sequence

from sweeps.reporting.charts import (
    curve_picture,
    difference_scale,
    difference_strip,
    score_scale,
    score_strip,
    strip_axis,
    style_of,
)
from sweeps.reporting.curves import Curve
from sweeps.reporting.differences import Difference, interval_names
from sweeps.reporting.findings import Findings
from sweeps.reporting.markup import Markup, element, join
from sweeps.reporting.significance import signed
from sweeps.results import LOG_PERPLEXITY

MANY = 12  # curves in one picture, from which on bands only hint
AXIS_TITLES = {"steps": "steps", "tokens": "target tokens", "seconds": "seconds of training"}
REPLICATE = Markup('<circle class="run" cx="9" cy="8" r="4"/>')
MEAN = Markup('<line class="bar" x1="0" x2="18" y1="8" y2="8"/><path class="mean" d="M9,2V14"/>')
DIFFERENCE = Markup('<line class="bar" x1="0" x2="18" y1="8" y2="8"/><path class="diamond" d="M9,2L14,8L9,14L4,8Z"/>')
PUBLISHED = Markup('<rect class="published" x="4.5" y="3.5" width="9" height="9"/>')


def forest(findings: Findings) -> Markup:
    """Each row's scores, and its difference to the baseline with interval, published beside measured."""
    if not any(row.values for row in findings.scores):
        return element("p", "No row has a result yet.", class_="lead")
    panels = [_scores(findings), _differences(findings)] if findings.differences else [_scores(findings)]
    return element("div", panels, class_="panels" if len(panels) > 1 else "panels alone")


def curves(findings: Findings) -> Markup:
    """Validation metric and log-perplexity of all rows, against steps, tokens or seconds; empty without a curve."""
    drawn = {curve.label for found in findings.curves.values() for curve in found}
    if not drawn:
        return Markup()
    pictures = []
    for axis, axis_title in AXIS_TITLES.items():
        figures = [
            _figure(findings, found, axis_title, title, findings.baseline)
            for quantity, title in _quantities(findings)
            if (found := findings.curves[quantity, axis])
        ]
        pictures.append(element("div", figures, class_=f"charts by-{axis}{' many' if len(drawn) > MANY else ''}"))
    choices = [
        element(
            "label", Markup(f'<input type="radio" name="axis" id="by-{axis}"{" checked" * (axis == "steps")}>'), title
        )
        for axis, title in AXIS_TITLES.items()
    ]
    said = (
        "The mean over a row's replicates at every evaluation of the validation split; the band goes from the lowest "
        "to the highest. A line is thin where some replicates have ended already."
    )
    shared = list(
        dict.fromkeys(curve.label for found in findings.curves.values() for curve in found if curve.timing == "shared")
    )
    if shared:
        who = "all rows" if len(shared) == len(drawn) else ", ".join(shared)
        said += f" Seconds of {who} are of runs that shared the machine."
    group = element("div", element("span", "against", class_="muted"), choices, class_="choice", role="radiogroup")
    legend = _legend(findings, [label for label in findings.labels if label in drawn])
    return join(element("p", said, class_="lead"), element("div", group, legend, pictures, class_="curves"))


def figure_2(findings: Findings) -> Markup:
    """Log-perplexity of the deep decoders; empty where the sweep has none with and none without residuals."""
    if not findings.deep:
        return Markup()
    found = [curve for curve in findings.curves[LOG_PERPLEXITY, "steps"] if curve.label in findings.deep]
    said = "Log-perplexity of deep decoders with and without residual connections, as in Figure 2 of Britz et al. 2017."
    there = [curve.label for curve in found]
    if absent := [label for label in findings.deep if label not in there]:
        said += f" Not trained yet: {', '.join(absent)}."
    picture = [_figure(findings, found, "steps", "log-perplexity", "")] if found else []
    legend = _legend(findings, there) if found else Markup()
    return join(element("p", said, class_="lead"), legend, element("div", picture, class_="charts one"))


def _scores(findings: Findings) -> Markup:
    scale = score_scale(findings.scores)
    rows = []
    for row in findings.scores:
        n = f"n = {row.complete}" + (f" of {row.requested}" if row.complete < row.requested else "")
        strip = score_strip(row, scale) if row.values else element("span", "no result yet", class_="muted")
        rows.append((row.label, strip, Markup(n)))
    keys = [(REPLICATE, "a replicate"), (MEAN, "mean ± sd")]
    if any(row.published is not None for row in findings.scores):
        keys.append((PUBLISHED, "published"))
    return _panel(findings, f"Test {findings.metric_title}", keys, rows, strip_axis(scale))


def _differences(findings: Findings) -> Markup:
    scale = difference_scale(findings.differences)
    by_label = {one.label: one for one in findings.differences}
    rows = []
    for label in findings.labels:
        one = by_label.get(label)
        words = _in_words(one) if one else element("span", "baseline", class_="muted")
        rows.append((label, difference_strip(one or Difference(label=label), scale), words))
    keys = [(DIFFERENCE, f"difference of means, 95 % interval ({interval_names(findings.differences)})")]
    if any(one.published is not None for one in findings.differences):
        keys.append((PUBLISHED, "published difference"))
    return _panel(findings, f"Difference to {findings.baseline}", keys, rows, strip_axis(scale))


def _panel(
    findings: Findings,
    title: str,
    keys: Sequence[tuple[Markup, str]],
    rows: Sequence[tuple[str, Markup, Markup]],
    axis: Markup,
) -> Markup:
    """A strip a row on one scale, with its label before and words behind it."""
    explained = [element("span", element("svg", shape, class_="key", aria_hidden="true"), text) for shape, text in keys]
    lines = [
        element(
            "div",
            element("span", label, class_="label"),
            strip,
            element("span", words, class_="value"),
            class_=style_of(findings.number(label)),
        )
        for label, strip, words in rows
    ]
    foot = element("div", element("span"), axis, element("span"), class_="foot")
    grid = element("div", lines, foot, class_="forest")
    return element("figure", element("figcaption", title), element("div", explained, class_="keys"), grid)


def _in_words(one: Difference) -> Markup:
    """Measured difference with mark and interval, published beside it."""
    if one.measured is None:
        ours, base = one.runs
        said = "no result yet" if not ours else "the same runs" if base else "no result of the baseline yet"
    else:
        said = f"{signed(one.measured)} {one.mark}".rstrip()
        said += f" [{signed(one.interval[0])}, {signed(one.interval[1])}]" if one.interval else ", no interval"
    published = [] if one.published is None else [element("small", f"published {signed(one.published)}")]
    return join(element("span", said, class_="muted" if one.measured is None else None), published)


def _legend(findings: Findings, labels: Sequence[str]) -> Markup:
    """Rows to switch on and off."""
    line = Markup('<svg width="20" height="8" aria-hidden="true"><line x1="0" x2="20" y1="4" y2="4"/></svg>')
    boxes = [
        element(
            "label",
            Markup(f'<input type="checkbox" value="{findings.number(label)}" checked>'),
            line,
            label,
            class_=style_of(findings.number(label)),
        )
        for label in labels
    ]
    button = element("button", "all / none", type="button")
    return element("div", boxes, button, class_="legend", role="group", aria_label="rows shown")


def _figure(findings: Findings, found: Sequence[Curve], x_title: str, y_title: str, thick: str) -> Markup:
    name = f"{y_title} of the validation split against {x_title}, {len(found)} rows"
    picture = curve_picture(
        found, {label: findings.number(label) for label in findings.labels}, x_title, y_title, name, thick
    )
    return element("figure", element("figcaption", f"{y_title} ", element("span", "(validation)")), picture)


def _quantities(findings: Findings) -> list[tuple[str, str]]:
    quantities = dict.fromkeys(quantity for quantity, _ in findings.curves)
    return [(one, "log-perplexity" if one == LOG_PERPLEXITY else findings.metric_title) for one in quantities]
