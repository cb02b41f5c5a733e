"""The trace of a run: what it recorded on its way that is the same in every run of the same bits.

Losses at logged steps in hexadecimal, norms of probes, digests of parameters and optimizer at evaluations, validation
scores, how training ended, hypotheses and test scores. Times, speeds and names of places are no part of it. Two traces
are compared where both have something: an archived run has no losses, but its evaluations have digests.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from nmt.config.schema import SearchConfig
from nmt.provenance.evidence import Evidence, Record

# What differs between two runs of the same bits (when they ran, how fast, beside whom), and what a mark says itself.
NOT_BITS = ("seconds", "evaluation_seconds", "tokens_per_second", "timing", "energy", "kind", "step")
# Begin the names of what a strategy reports (bytes, waiting, who was lost) and of joules.
MEASURED = ("distribution/", "energy/")
LOSS, NORMS, PARAMETERS, OPTIMIZER = "loss", "norms", "parameters", "optimizer state"
VALIDATION, END, HYPOTHESES, TEST = "validation scores", "end of training", "hypotheses", "test scores"
KINDS = (LOSS, NORMS, PARAMETERS, OPTIMIZER, VALIDATION, END, HYPOTHESES, TEST)
AFTER = 1 << 62  # stands for a step behind the last


class Mark(NamedTuple):
    """Where a trace can be compared: a step (`AFTER` for what follows training), a kind, and a name within both."""

    step: int
    order: int
    name: str

    @property
    def kind(self) -> str:
        """One of `KINDS`."""
        return KINDS[self.order]

    def __str__(self) -> str:
        named = f" {self.name}" if self.name else ""
        return f"{self.kind}{named}" + (f" at step {self.step}" if self.step < AFTER else "")


Trace = Mapping[Mark, str]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two traces side by side.

    equal: marks in both with the same value, by kind. different: marks in both with other values, first ones first,
    each with the value of `a` and of `b`. only_a, only_b: marks that one of them lacks, by kind. last_equal_step: the
    last step before the first difference at which something was compared and equal, None without one.
    """

    equal: Mapping[str, int]
    different: tuple[tuple[Mark, str, str], ...]
    only_a: Mapping[str, int]
    only_b: Mapping[str, int]
    last_equal_step: int | None = None

    @property
    def compared(self) -> int:
        """How many marks both have."""
        return sum(self.equal.values()) + len(self.different)

    @property
    def first(self) -> tuple[Mark, str, str] | None:
        """The first difference, None where there is none."""
        return self.different[0] if self.different else None

    def in_words(self) -> str:
        """`8 losses, 4 parameters, …`: what is equal."""
        return ", ".join(f"{count} × {kind}" for kind, count in self.equal.items()) or "nothing"


def trace_of(evidence: Evidence) -> Trace:
    """Everything comparable that a run recorded."""
    found: dict[Mark, str] = {}
    for record in evidence.records:
        found |= marks_of(record)
    found |= _end_of(evidence.result)
    for identity, decoding in evidence.decodings.items():
        name = _search_of(decoding.record) or identity
        if decoding.hypotheses is not None:
            found[_mark(HYPOTHESES, name=name)] = _digest(decoding.hypotheses)
        for metric, value in decoding.record.get("metrics", {}).items():
            found[_mark(TEST, name=f"{name} {metric}")] = repr(value)
    return found


def marks_of(record: Record) -> dict[Mark, str]:
    """What one line of metrics.jsonl adds to a trace."""
    step = record.get("step")
    if not isinstance(step, int):
        return {}  # the header
    kind = record.get("kind")
    if kind == "train":
        found = {_mark(LOSS, step): str(record.get("loss_hex", record.get("loss")))}
        return found | {_mark(LOSS, step, name): repr(record[name]) for name in ("gradient_norm",) if name in record}
    values = {name: value for name, value in record.items() if name not in NOT_BITS and not name.startswith(MEASURED)}
    if kind != "evaluation":
        return {_mark(NORMS, step, name): repr(value) for name, value in values.items()}
    digests = {"parameters_sha256": PARAMETERS, "optimizer_sha256": OPTIMIZER}
    return {
        _mark(digests[name], step) if name in digests else _mark(VALIDATION, step, name): str(value)
        for name, value in values.items()
    }


def compare(a: Trace, b: Trace, kinds: Sequence[str] = KINDS) -> Comparison:
    """Compare two traces where both have something, in the order in which a run makes it."""
    marks = sorted(mark for mark in a.keys() | b.keys() if mark.kind in kinds)
    both = [mark for mark in marks if mark in a and mark in b]
    first = next((mark for mark in both if a[mark] != b[mark]), None)
    steps = [mark.step for mark in both if mark.step < AFTER and (first is None or mark.step < first.step)]
    return Comparison(
        last_equal_step=max(steps, default=None),
        equal=_counts(mark for mark in both if a[mark] == b[mark]),
        different=tuple((mark, a[mark], b[mark]) for mark in both if a[mark] != b[mark]),
        only_a=_counts(mark for mark in marks if mark not in b),
        only_b=_counts(mark for mark in marks if mark not in a),
    )


def _end_of(result: Record) -> dict[Mark, str]:
    best = result.get("best") or {}
    values: dict[str, Any] = {name: result.get(name) for name in ("state", "reason", "steps", "target_tokens")}
    values |= {"chosen step": best.get("step"), "chosen parameters": best.get("checkpoint_digest")}
    values |= {"number of parameters": result.get("parameters"), "data": result.get("fingerprint")}
    return {_mark(END, name=name): str(value) for name, value in values.items() if value is not None}


def _search_of(record: Record) -> str:
    """A name for how a decoding was made, whatever checkpoint it is of; empty for an older record that does not say."""
    search = record.get("search") or {}
    usual = asdict(SearchConfig())  # an older record does not name the keys that came later
    unusual = {name: value for name, value in search.items() if name != "batch_size" and value != usual.get(name)}
    several = [str(record[name]) for name in ("checkpoints", "ensemble") if name in record]
    text = json.dumps([unusual, several, record.get("sentences")], sort_keys=True)
    return f"of beam {search.get('beam')} ({_digest(text)[:6]})" if search else ""


def _mark(kind: str, step: int = AFTER, name: str = "") -> Mark:
    return Mark(step, KINDS.index(kind), name)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _counts(marks: Any) -> dict[str, int]:
    counted = Counter(mark.kind for mark in marks)
    return {kind: counted[kind] for kind in KINDS if counted[kind]}
