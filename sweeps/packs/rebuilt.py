"""A sweep's plan as a pack tells it, so that the table can be made again by the code that makes every table."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from nmt.archives import ArchivedRunStore
from nmt.config import RunConfig, from_dict
from nmt.errors import UserError
from sweeps.aggregate import RowResult, aggregate_row
from sweeps.packs.files import ABOUT, FORMAT_VERSION, RUNS, SPEC
from sweeps.plan import PlannedRow, PlannedRun, SweepPlan
from sweeps.results import Replicate, read_replicate
from sweeps.reuse import PresentCode
from sweeps.spec import load_spec
from sweeps.until import decide, split_until

# Both become paths: a pack from elsewhere must not lead out of itself.
_RUN_ID, _DECODE_ID = re.compile(r"[0-9a-f]{12}/s\d+"), re.compile(r"[0-9a-f]{12}|")


@dataclass(frozen=True)
class Rebuilt:
    """A pack's sweep: its plan, the rows summed up from the runs in the pack, and what the pack says of itself."""

    plan: SweepPlan
    results: list[RowResult]
    about: Mapping[str, Any]


class CodeOfThen(PresentCode):
    """The code that counted as present when the pack was made."""

    def __init__(self, name: str, same: Collection[str]):
        super().__init__(name or "unknown")
        self._same = frozenset(same)

    def made(self, name: str) -> bool:
        """Whether the code called `name` counted as this."""
        return name in self._same


def rebuild(folder: Path) -> Rebuilt:
    """Read a pack's sweep and sum up its rows. Raises UserError where its own files contradict its form."""
    about = json.loads((folder / ABOUT).read_bytes())
    if about.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"was made in format {about.get('format_version')}, and this version reads {FORMAT_VERSION}",
            where=str(folder / ABOUT),
        )
    store = ArchivedRunStore(folder / RUNS)
    spec = dataclasses.replace(load_spec(str(folder / SPEC)), name=about["sweep"])
    labels = {row.label: row for row in spec.rows}
    rows = []
    for row in about["rows"]:
        if row["label"] not in labels:
            raise UserError(f"has a row '{row['label']}' that {SPEC} does not have", where=ABOUT)
        config = from_dict(row["config"])
        runs = tuple(_run(row["label"], number, config, run, store) for number, run in enumerate(row["runs"]))
        rows.append(
            PlannedRow(
                spec=labels[row["label"]],
                config=config,
                runs=runs,
                differs=tuple(row["differs"]),
                same_runs_as=row["same_runs_as"],
            )
        )
    rule, _ = split_until(about["overrides"])
    scores = {row.label: partial(_score, row.runs, about["metric"]) for row in rows}
    made_with = about["made_with"]
    code = CodeOfThen(made_with["code"], about["codes_that_count_as_one"])
    plan = SweepPlan(
        spec=spec,
        rows=tuple(rows),
        store=store,
        overrides=tuple(about["overrides"]),
        code=code,
        until=rule,
        decisions={} if rule is None else decide(rule, scores, spec.baseline),
        references_sha256=about["test_sets"][0]["references_sha256"],
    )
    results = []
    for planned in rows:
        result = aggregate_row(planned, [run.found for run in planned.runs])
        others = (one.code for one in result.complete if one.code and not code.made(one.code))
        results.append(dataclasses.replace(result, other_code=tuple(others)))
    return Rebuilt(plan, results, about)


def _score(runs: Sequence[PlannedRun], metric: str, number: int) -> float | None:
    """A replicate's test score as the rule for stopping looks at it: None where there is none (yet)."""
    if number >= len(runs) or not runs[number].found.complete:
        return None
    return runs[number].found.metrics.get(metric, math.nan)


def _run(label: str, number: int, config: RunConfig, run: Mapping[str, Any], store: ArchivedRunStore) -> PlannedRun:
    if not _RUN_ID.fullmatch(run["run_id"]) or not _DECODE_ID.fullmatch(run["decode_id"]):
        raise UserError(f"names no run: {run['run_id']}, {run['decode_id']}", where=ABOUT)
    seeded = dataclasses.replace(config, seed=run["seed"])
    if run["complete"]:
        found = read_replicate(store, seeded, run["run_id"], run["decode_id"])
    else:
        found = Replicate(run_id=run["run_id"], seed=run["seed"], state="queued")
    return PlannedRun(label=label, replicate=number, config=seeded, found=found)
