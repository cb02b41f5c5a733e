"""`nmt why`: why two runs differ: configuration, data, code, environment, and the first step at which they part."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from nmt.arguments import option, parse
from nmt.errors import UserError
from nmt.provenance.differences import ABSENT, shown
from nmt.provenance.trace import HYPOTHESES, TEST
from nmt.strict_json import strict_json

if TYPE_CHECKING:
    from nmt.provenance.differences import RunDifferences
    from nmt.provenance.evidence import Evidence, Record
    from nmt.provenance.trace import Comparison

SHOWN = 12  # differences of one kind on screen; json=true has all
_EXAMPLES = """
Runs are told by an id, a unique beginning of one, or a run directory anywhere (an archive, another machine's copy).

Examples:
  nmt why a=da1d780ff1d7/s1 b=da1d780ff1d7/s2 paths.runs=docs/results
  nmt why a=runs/da1d780ff1d7/s1 b=docs/results/da1d780ff1d7/s1
  nmt why a=3f2a b=91c0 json=true
"""


@dataclass(frozen=True, kw_only=True)
class WhyOptions:
    """What `nmt why` takes."""

    a: str = option("", "a run: its id, a unique beginning of one, or its directory")
    b: str = option("", "the run that it is compared with")
    runs: str = option("", "directory of runs; unset: $NMT_RUNS, else runs", key="paths.runs")
    json: bool = option(False, "everything that differs, as one JSON object")


@dataclass(frozen=True, kw_only=True)
class Explanation:
    """In what two runs differ, where their records part, and what follows from both in one sentence."""

    a: Evidence
    b: Evidence
    differences: RunDifferences
    trace: Comparison
    conclusion: str


def explain(a: Evidence, b: Evidence) -> Explanation:
    """Compare two runs by what their directories say."""
    from nmt.provenance.differences import differences
    from nmt.provenance.trace import compare, trace_of

    found, trace = differences(a, b), compare(trace_of(a), trace_of(b))
    return Explanation(a=a, b=b, differences=found, trace=trace, conclusion=conclusion(found, trace))


def conclusion(found: RunDifferences, trace: Comparison) -> str:
    """One sentence: what explains that the runs differ, and where they part.

    What comes first counts: another configuration explains whatever other code would.
    """
    parted = _parting(trace)
    if found.training or found.seed:
        reasons = _listed("other configuration", found.training) + _listed(
            "other seed", {"seed": found.seed} if found.seed else {}
        )
        return f"{' and '.join(reasons)}: {parted}"
    if found.data:
        return f"same configuration and seed, other data ({', '.join(list(found.data)[:3])}): {parted}"
    kind = trace.first[0].kind if trace.first is not None else ""
    if found.decoding and (not kind or kind in _AFTER_TRAINING):
        return f"same training, {_listed('other decoding', found.decoding)[0]}: {parted}"
    if kind == TEST:
        return f"same training and outputs, scored otherwise: {parted}"
    if not kind:
        beside = [name for name, there in (("code", found.other_code), ("environment", found.environment)) if there]
        although = f", although another {' and '.join(beside)} made them" if beside and trace.compared else ""
        return f"{parted}{although}"
    if found.other_code:
        return f"same configuration, seed and data, {_listed('other code', found.code)[0]}: {parted}"
    if found.arithmetic:
        return f"same configuration, seed, data and code, {_listed('other arithmetic', found.arithmetic)[0]}: {parted}"
    if found.placement or found.environment:
        others = {**found.placement, **found.environment}
        return f"same configuration, seed, data and code, {_listed('ran elsewhere', others)[0]}: {parted}"
    return f"nothing on record explains it (same configuration, seed, data, code and environment): {parted}"


_AFTER_TRAINING = (HYPOTHESES, TEST)


def main(argv: Sequence[str]) -> int:
    """Explain as the command line asks; returns 0, whatever the explanation."""
    options = parse(
        WhyOptions,
        argv,
        verb="nmt why",
        summary="Explain why two runs differ: configuration by the part it plays, seed, data, code, environment, the "
        "first recorded step at which their bits part, and what came of both.",
        epilog=_EXAMPLES,
    )
    from nmt.provenance.evidence import read_evidence
    from nmt.runs import locate_run

    found = []
    for name in ("a", "b"):
        if not getattr(options, name):
            raise UserError("is missing", where=name, hint="give two runs: nmt why a=... b=...")
        store, run_id = locate_run(getattr(options, name), options.runs)
        found.append(read_evidence(store.directory(run_id)))
    explanation = explain(*found)
    if options.json:
        sys.stdout.write(strict_json(record_of(explanation), default=str) + "\n")
    else:
        sys.stdout.write("".join(f"{line}\n" for line in lines_of(explanation)))
    return 0


def record_of(explanation: Explanation) -> dict[str, Any]:
    """The explanation as plain data."""
    differences = asdict(explanation.differences)
    first = explanation.trace.first
    return {
        "a": {"run_id": explanation.a.run_id, "directory": str(explanation.a.directory)},
        "b": {"run_id": explanation.b.run_id, "directory": str(explanation.b.directory)},
        **differences,
        "equal": dict(explanation.trace.equal),
        "first_difference": first and {"at": str(first[0]), "step": _step(first[0].step), "a": first[1], "b": first[2]},
        "differences": [str(mark) for mark, _, _ in explanation.trace.different],
        "only_a": dict(explanation.trace.only_a),
        "only_b": dict(explanation.trace.only_b),
        "conclusion": explanation.conclusion,
    }


def lines_of(explanation: Explanation) -> Iterator[str]:
    """The explanation for a screen."""
    a, b, found = explanation.a, explanation.b, explanation.differences
    yield f"a  {_about(a)}"
    yield f"b  {_about(b)}"
    sections = {
        "training": found.training,
        "seed": {"seed": found.seed} if found.seed else {},
        "decoding": found.decoding,
        "data": found.data,
        "code": found.code,
        "environment": found.environment,
        "placement": found.placement,
    }
    same = [name for name, pairs in sections.items() if not pairs]
    for name, pairs in sections.items():
        if pairs:
            note = " (no source of ours differs)" if name == "code" and found.same_sources else ""
            yield ""
            yield f"{name} differs{note}"
            yield from _table([(key, shown(one), shown(other)) for key, (one, other) in pairs.items()])
    if same:
        yield ""
        yield f"the same: {', '.join(same)}"
    yield ""
    yield from _trace_lines(explanation.trace)
    yield from _evaluation_lines(a, b)
    yield ""
    yield f"conclusion: {explanation.conclusion}"


def _trace_lines(trace: Comparison) -> Iterator[str]:
    yield f"bits: equal in {trace.in_words()}"
    if trace.first is not None:
        mark, one, other = trace.first
        yield f"  first difference: {mark}: {shown(one)} | {shown(other)}; {len(trace.different)} in all"
    for name, lacking in (("a", trace.only_a), ("b", trace.only_b)):
        if lacking:
            yield f"  only {name} records {', '.join(f'{count} × {kind}' for kind, count in lacking.items())}"


def _evaluation_lines(a: Evidence, b: Evidence) -> Iterator[str]:
    """The first evaluation that both have, and how both ended."""
    ours = {record["step"]: record for record in a.records if record.get("kind") == "evaluation"}
    theirs = {record["step"]: record for record in b.records if record.get("kind") == "evaluation"}
    metric = a.config.validation.metric
    rows: list[tuple[str, str, str]] = []
    if both := sorted(ours.keys() & theirs.keys()):
        first = both[0]
        for name in (f"val/decode/{metric}", "val/teacher_forced/log_perplexity"):
            if name in ours[first] and name in theirs[first]:
                rows.append((f"step {first} {name}", f"{ours[first][name]:.4f}", f"{theirs[first][name]:.4f}"))
    rows += [
        (name, shown(a.result.get(name, ABSENT)), shown(b.result.get(name, ABSENT))) for name in ("state", "steps")
    ]
    rows += _scores(a, b)
    yield ""
    yield "first evaluation, and the end"
    yield from _table(rows)


def _scores(a: Evidence, b: Evidence) -> list[tuple[str, str, str]]:
    """Test scores of both, where one kind of decoding stands on each side."""
    metric = f"test/decode/{a.config.validation.metric}"
    pairs: list[str] = []
    for one in (a, b):
        values: list[Record] = [decoding.record for decoding in one.decodings.values()]
        scores = [record["metrics"][metric] for record in values if metric in record.get("metrics", {})]
        pairs.append(", ".join(f"{score:.2f}" for score in scores) or ABSENT)
    return [(metric, pairs[0], pairs[1])] if pairs != [ABSENT, ABSENT] else []


def _about(one: Evidence) -> str:
    label = f"  {one.config.label}" if one.config.label else ""
    return f"{one.run_id}{label}  {one.directory}"


def _table(rows: Sequence[tuple[str, str, str]]) -> Iterator[str]:
    shown = rows[:SHOWN]
    widths = [max((len(row[column]) for row in shown), default=0) for column in (0, 1)]
    for name, one, other in shown:
        yield f"  {name:<{widths[0]}}  {one:<{widths[1]}} | {other}"
    if len(rows) > SHOWN:
        yield f"  … and {len(rows) - SHOWN} more (json=true has all)"


def _listed(title: str, pairs: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """`title (key: 1 | 2, …)`, in a list of one, empty without pairs."""
    if not pairs:
        return []
    words = [f"{name} {shown(one)} | {shown(other)}" for name, (one, other) in list(pairs.items())[:2]]
    more = [f"{len(pairs) - 2} more"] if len(pairs) > 2 else []
    return [f"{title} ({', '.join([*words, *more])})"]


def _parting(trace: Comparison) -> str:
    """Where two traces part, as a clause."""
    if not trace.compared:
        return "nothing that both recorded can be compared"
    if trace.first is None:
        return f"bit-equal in everything that both recorded ({trace.in_words()})"
    mark = trace.first[0]
    equal = f", equal up to step {trace.last_equal_step}" if trace.last_equal_step is not None else ""
    return f"the runs part in {mark}{equal}"


def _step(step: int) -> int | None:
    from nmt.provenance.trace import AFTER

    return None if step == AFTER else step
