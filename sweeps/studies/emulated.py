"""An experiment's emulated machines: the stages of a model are timed here, and steps played on paper. Always labelled.

Points of a row, under conditions such as `emulated`, `100 Mbit/s`, `8 nodes`: the figures of `EMULATED_FIGURES`; of
rings of stages `crossing_tokens`, the target tokens a step from which their busiest link carries more than that of a
ring all-reduce, once as the measured stages have it and once by the formula that counts stage links alone.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from typing import Any

from nmt import registry
from nmt.config import RunConfig, compose
from nmt.config.schema import TRAIN
from nmt.config.widths import encoder_output_units
from nmt.errors import UserError
from nmt.strict_json import strict_json
from sweeps.studies.points import EMULATED, FORMULA, Findings, Picture, Point, line, table_of
from sweeps.studies.study import EmulatedRow, EmulatedSpec
from sweeps.wording import NOTHING

MBIT = 1e6 / 8  # bytes
_MEASURED: dict[str, Any] = {}  # shapes by what counts of their configuration
SENTENCES = 2000  # of synthetic text: as many as one step takes, and some
TITLES = {
    "idle_mean": ("idle, % of a step, mean over nodes", 0.01, ".0f"),
    "idle_max": ("idle, % of a step, the idlest node", 0.01, ".0f"),
    "step_seconds": ("seconds a step", 1.0, ".3g"),
    "tokens_per_second": ("target tokens a second", 1.0, ",.0f"),
    "busiest_bytes": ("MB a step, the busiest process", 1e6, ",.1f"),
}


def emulate(spec: EmulatedSpec, name: str, words: Sequence[str]) -> Findings:
    """Play all rows on all machines. Imports torch; the first time for a model, its stages are timed.

    words: config overrides of the command line. Raises UserError for a scheme that there is not.
    """
    schemes = registry.load("distributed.emulation:SCHEMES")
    for row in spec.rows:
        if row.scheme not in schemes:
            raise UserError(f"unknown scheme '{row.scheme}'", where=f"row '{row.label}'", allowed=sorted(schemes))
    later = ["experiment=baseline", "device=cpu", "threads=1", *spec.overrides, *words]
    config = compose(list({word.partition("=")[0]: word for word in later}.values()))  # the last of a key counts
    shape = measured(config)
    points = [point for row in spec.rows for point in _points(spec, row, shape)]
    points += _crossings(spec, config, shape)
    said = (
        f"Emulated: the stages of a model of {shape.elements / 1e6:.1f} million parameters were timed here, with one "
        f"thread, on micro-batches of {shape.tokens:.0f} target tokens ({shape.seconds:.3g} s each for all stages); "
        "machines, links and their use exist on paper only, and other sizes are taken in proportion."
    )
    return Findings(
        points=tuple(points),
        tables=(*_tables(spec, points), *_crossing_table(points)),
        pictures=tuple(_pictures(spec, name, points)),
        remarks=(said,),
    )


def measured(config: RunConfig) -> Any:
    """The shape of a configuration's model on synthetic sentences, timed once in a process for each model."""
    from nmt.config.identity import canonical
    from nmt.profiling.synthetic import synthetic_data
    from nmt.training.device import prepare_arithmetic
    from nmt.training.workload import TranslationWorkload

    key = strict_json(canonical(config, {TRAIN}))
    if key not in _MEASURED:
        prepare_arithmetic("cpu", config.deterministic)
        text = synthetic_data(SENTENCES, vocabulary=config.tokenizer.vocab_size, evaluated=10)
        _MEASURED[key] = registry.load("distributed.emulation:measure")(TranslationWorkload(config, "cpu", text))
    return _MEASURED[key]


def _points(spec: EmulatedSpec, row: EmulatedRow, shape: Any) -> Iterator[Point]:
    play, machine, work = (registry.load(f"distributed.emulation:{name}") for name in ("emulate", "Machine", "Work"))
    error = registry.load("distributed.errors:DistributedError")
    for scaling, tokens, slowest, link, nodes in _grid(spec):
        condition = condition_of(spec, scaling, tokens, slowest, link, nodes)
        step = tokens * (nodes if scaling == "weak" else 1)
        try:
            found = play(
                row.scheme,
                shape,
                machine(nodes, link * MBIT, slowest=slowest),
                work(step, spec.micro_batches),
                **row.options,
            )
        except error as refused:
            yield Point(row=row.label, figure="step_seconds", condition=condition, kind=EMULATED, refused=str(refused))
            continue
        values = {
            "idle_mean": statistics.fmean(found.idle),
            "idle_max": max(found.idle),
            "step_seconds": found.seconds,
            "tokens_per_second": step / found.seconds,
            "busiest_bytes": max(found.sent),
        }
        for figure, value in values.items():
            yield Point(row=row.label, figure=figure, value=value, condition=condition, kind=EMULATED)


def _grid(spec: EmulatedSpec) -> Iterator[tuple[str, float, float, float, int]]:
    for scaling in spec.scaling:
        for tokens in spec.tokens:
            for slowest in spec.slowest:
                for link in spec.links_mbit:
                    for nodes in spec.nodes:
                        yield scaling, tokens, slowest, link, nodes


def condition_of(
    spec: EmulatedSpec, scaling: str, tokens: float, slowest: float, link: float, nodes: int
) -> tuple[str, ...]:
    """A machine in words; what does not vary in the experiment is left out."""
    parts = ["emulated"]
    parts += [scaling] * (len(spec.scaling) > 1)
    parts += [f"{tokens:,.0f} tokens"] * (len(spec.tokens) > 1)
    parts += ["equal nodes" if slowest == 1 else f"one node at {slowest:g} of the speed"] * (len(spec.slowest) > 1)
    return (*parts, f"{link:g} Mbit/s", f"{nodes} nodes")


def _tables(spec: EmulatedSpec, points: Sequence[Point]) -> Iterator[Any]:
    """Of each figure and machine a table: rows by link and nodes."""
    known = {(one.row, one.figure, one.condition): one for one in points}
    columns = [(link, nodes) for link in spec.links_mbit for nodes in spec.nodes]
    heads = ["row (emulated)", *(f"{link:g} Mbit/s × {nodes}" for link, nodes in columns)]
    for figure in spec.figures:
        title, unit, form = TITLES[figure]
        for scaling in spec.scaling:
            for tokens in spec.tokens:
                for slowest in spec.slowest:
                    conditions = [condition_of(spec, scaling, tokens, slowest, *one) for one in columns]
                    rows = [
                        [row.label, *(_cell(known.get((row.label, figure, one)), unit, form) for one in conditions)]
                        for row in spec.rows
                    ]
                    yield table_of(", ".join([title, *conditions[0][:-2]]), heads, rows)


def _cell(point: Point | None, unit: float, form: str) -> str:
    return NOTHING if point is None or point.value is None else format(point.value / unit, form)


def _pictures(spec: EmulatedSpec, name: str, points: Sequence[Point]) -> Iterator[Picture]:
    """Of each figure and link a picture over the nodes."""
    known = {(one.row, one.figure, one.condition): one.value for one in points}
    for figure in spec.figures:
        title, unit, _ = TITLES[figure]
        for scaling in spec.scaling:
            for link in spec.links_mbit:
                curves = []
                for row in spec.rows:
                    there = []
                    for nodes in spec.nodes:
                        condition = condition_of(spec, scaling, spec.tokens[0], spec.slowest[0], link, nodes)
                        value = known.get((row.label, figure, condition))
                        there += [] if value is None else [(float(nodes), value / unit)]
                    if there:
                        curves.append(line(row.label, *zip(*there, strict=True)))
                yield Picture(
                    name=f"{name}-{figure}-{scaling}-{link:g}mbit",
                    title=f"{title}; emulated, {scaling} scaling, {link:g} Mbit/s",
                    x_title="nodes",
                    y_title=title.partition(",")[0],
                    curves=tuple(curves),
                )


def _crossings(spec: EmulatedSpec, config: RunConfig, shape: Any) -> Iterator[Point]:
    """Bytes of a ring of stages grow with the tokens of a step, those of an all-reduce do not: where they cross."""
    play, machine, work, formula = (
        registry.load(f"distributed.emulation:{name}") for name in ("emulate", "Machine", "Work", "crossing_tokens")
    )
    error = registry.load("distributed.errors:DistributedError")
    width = (encoder_output_units(config.model) or 0) + config.model.decoder.units
    for row in spec.rows:
        if row.scheme != "ring_tmp":
            continue
        for nodes in (one for one in spec.nodes if one > 1):
            here, condition = machine(nodes, MBIT * 1e6), ("emulated", f"{nodes} nodes")
            try:
                low, high = (
                    max(play("ring_tmp", shape, here, work(tokens, spec.micro_batches), **row.options).sent)
                    for tokens in (1e5, 2e5)
                )
            except error:
                continue
            slope, most = (high - low) / 1e5, max(play("ring_allreduce", shape, here, work(1e5, 1)).sent)
            found = (most - (low - slope * 1e5)) / slope
            yield Point(row=row.label, figure="crossing_tokens", value=found, condition=condition, kind=EMULATED)
            yield Point(
                row=row.label,
                figure="crossing_tokens_formula",
                value=formula(shape, nodes, width),
                condition=condition,
                kind=FORMULA,
            )


def _crossing_table(points: Sequence[Point]) -> Iterator[Any]:
    found = [one for one in points if one.figure == "crossing_tokens"]
    formula = {(one.row, one.condition): one.value for one in points if one.figure == "crossing_tokens_formula"}
    rows = [
        [f"{one.row}, {one.condition[-1]}", f"{one.value:,.0f}", f"{formula[one.row, one.condition]:,.0f}"]
        for one in found
    ]
    if rows:
        note = "formula: (N - 1)/N P / (d_H + d), which counts the links between stages and neither softmax nor copies"
        heads = ("from so many target tokens a step, all-reduce sends less", "emulated", "by formula")
        yield table_of("Where the bytes cross", heads, rows, [note])
