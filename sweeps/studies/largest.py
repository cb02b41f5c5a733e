"""The largest model: a model is grown until the kernel kills the node that outgrows its memory.

memory_mib: 96                 # that each node may hold, beyond what all processes are forked from
overrides: [...]               # of every run; few steps are enough
rungs: [[...], ...]            # overrides of each size, from small to large
rows:
  - label: PS worker
    overrides: [...]
    words: 2                   # that a node keeps of each parameter, by the formula
    share: 1                   # of the parameters that it has: 1, or 1/N by `divided_by: N`

Rungs are searched by halves: of each row the largest size that trains and the smallest that does not are both run.
Points of a row: `most_parameters` (trained), `killed_parameters`, `peak_bytes` of the largest that trained, and beside
it `formula_bytes`; `bound_parameters`, the most that the limit has room for by the formula, nothing else being there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nmt.config import RunConfig, compose
from nmt.config.compose import groups
from nmt.errors import UserError
from sweeps.rows import layered
from sweeps.spec import known_keys_only, read_override_list, read_text
from sweeps.studies.gang import GangEnd, run_gang
from sweeps.studies.limits import refusal_of_memory
from sweeps.studies.points import FORMULA, Findings, Point, table_of
from sweeps.wording import NOTHING

KEYS = ("memory_mib", "overrides", "rungs", "rows")
ROW_KEYS = ("label", "overrides", "words", "divided_by")
BYTES = 4  # of a value
TRAINED, KILLED = "trained", "killed"


@dataclass(frozen=True)
class Ladder:
    """What became of the rungs of a row that were tried, by number, and how many parameters each has."""

    ends: Mapping[int, GangEnd]
    parameters: Mapping[int, int]

    @property
    def most(self) -> int | None:
        """The highest rung that trained."""
        return max((rung for rung, end in self.ends.items() if end.ended == TRAINED), default=None)

    @property
    def killed(self) -> int | None:
        """The lowest that did not for want of memory."""
        return min((rung for rung, end in self.ends.items() if end.ended == KILLED), default=None)

    @property
    def trouble(self) -> str:
        """What went wrong otherwise, as a clause; empty where nothing did."""
        bad = [(rung, end) for rung, end in self.ends.items() if end.ended not in (TRAINED, KILLED)]
        return "; ".join(
            f"size {rung + 1}: the run was {end.ended} ({end.directory.parent.parent})" for rung, end in bad
        )


def grow(spec: Mapping[str, Any], words: Sequence[str], where: str = "largest") -> Findings:
    """Run the ladder of every row, where this machine limits memory. Raises UserError for what cannot be meant."""
    known_keys_only(spec, KEYS, where)
    rows, rungs, limit = spec.get("rows"), spec.get("rungs"), spec.get("memory_mib")
    if not isinstance(rows, list) or not isinstance(rungs, list) or not isinstance(limit, int):
        raise UserError("needs memory_mib, rungs and rows", where=where)
    for number, row in enumerate(rows):
        known_keys_only(row, ROW_KEYS, f"{where}.rows[{number}]")
    if refused := refusal_of_memory():
        points = tuple(Point(row=row["label"], figure="most_parameters", refused=refused) for row in rows)
        return Findings(points=points, remarks=(f"Not measured: {refused}.",))
    bytes_ = limit << 20
    ladders = []
    for number, row in enumerate(rows):
        own = read_override_list(row, f"{where}.rows[{number}]")
        sizes = [
            _config([*read_override_list(spec, where), *own], read_override_list({"overrides": rung}, where), words)
            for rung in rungs
        ]
        ladders.append(climb(sizes, bytes_))
    labels = [read_text(row, "label", where) for row in rows]
    keeps = [float(row["words"]) / float(row.get("divided_by", 1)) for row in rows]
    points = tuple(point for one in zip(labels, keeps, ladders, strict=True) for point in _points(*one, bytes_))
    return Findings(points=points, tables=(_table(labels, keeps, ladders, limit),), remarks=(_remark(limit),))


def climb(sizes: Sequence[RunConfig], limit: int) -> Ladder:
    """Find by halves where sizes stop to train under a limit of bytes a node."""
    from nmt.models.parameters import planned_parameters

    ends: dict[int, GangEnd] = {}
    low, high = -1, len(sizes)  # the highest that is known to train, the lowest that is known not to
    while high - low > 1:
        rung = (low + high) // 2
        ends[rung] = run_gang(sizes[rung], memory=limit)
        if ends[rung].ended == TRAINED:
            low = rung
        else:
            high = rung
    return Ladder(ends, {rung: planned_parameters(sizes[rung]) for rung in ends})


def _config(lower: Sequence[str], rung: Sequence[str], words: Sequence[str]) -> RunConfig:
    return compose(layered([["experiment=transformer"], lower, rung, list(words)], set(groups())))


def _points(label: str, keeps: float, ladder: Ladder, limit: int) -> Iterator[Point]:
    yield Point(row=label, figure="bound_parameters", value=limit / BYTES / keeps, kind=FORMULA)
    if ladder.trouble:
        yield Point(row=label, figure="most_parameters", refused=ladder.trouble)
        return
    most, killed = ladder.most, ladder.killed
    yield Point(row=label, figure="most_parameters", value=float(ladder.parameters[most]) if most is not None else 0.0)
    if most is not None:
        yield Point(row=label, figure="peak_bytes", value=float(ladder.ends[most].peak_bytes))
        formula = BYTES * keeps * ladder.parameters[most]
        yield Point(row=label, figure="formula_bytes", value=formula, kind=FORMULA)
    if killed is not None:
        yield Point(row=label, figure="killed_parameters", value=float(ladder.parameters[killed]))


def _table(labels: Sequence[str], keeps: Sequence[float], ladders: Sequence[Ladder], limit: int) -> Any:
    rows = []
    for label, words, ladder in zip(labels, keeps, ladders, strict=True):
        most, killed = ladder.most, ladder.killed
        rows.append(
            [
                label,
                NOTHING if most is None else f"{ladder.parameters[most] / 1e6:.2f}",
                NOTHING if killed is None else f"{ladder.parameters[killed] / 1e6:.2f}",
                NOTHING if most is None else f"{ladder.ends[most].peak_bytes / 2**20:.0f}",
                NOTHING if most is None else f"{BYTES * words * ladder.parameters[most] / 2**20:.0f}",
                f"{words:.3g}",
                f"{(limit << 20) / BYTES / words / 1e6:.1f}",
                ladder.trouble or NOTHING,
            ]
        )
    heads = ("row", "trained, M", "killed, M", "held, MiB", "formula, MiB", "words a parameter", "bound, M", "trouble")
    notes = (
        "trained, killed: millions of parameters of the largest model that trained, and of the smallest whose node the "
        "kernel killed; held: the most that a node held of the former, without what all were forked from",
        "formula: parameters, gradients, optimizer's state and copies, no more; bound: what the limit has room for",
    )
    return table_of(f"The largest model on nodes of {limit} MiB", heads, rows, notes)


def _remark(limit: int) -> str:
    return (
        f"Each worker or node is a process in a control group of {limit} MiB; servers and the coordinator, which "
        "evaluates with a whole model, are not limited. Stages are cut by their time, so that parameters are not "
        "shared out evenly."
    )
