"""Where a report's numbers come from: code, versions, machines and data of the runs, and commands that repeat them."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nmt.passwords import without_password
from sweeps.aggregate import RowResult
from sweeps.plan import SweepPlan
from sweeps.results import Replicate
from sweeps.words import split_places


@dataclass(frozen=True, kw_only=True)
class Fact:
    """Something that was recorded with every run: its values, each with the runs that it was recorded with."""

    name: str
    values: tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Facts about the complete runs, and commands with what each is for."""

    facts: tuple[Fact, ...]
    commands: tuple[tuple[str, str], ...]


def trace(plan: SweepPlan, results: Sequence[RowResult]) -> Provenance:
    """Read what was recorded with the complete runs. Names of hosts and paths are not repeated: a report is shown."""
    values: dict[str, dict[str, list[str]]] = {}
    runs = {one.run_id: one for row in results for one in row.complete}
    for run_id, run in runs.items():
        environment = plan.store.read_json(run_id, "env.json") or {}
        for name, text in _facts(run, environment):
            values.setdefault(name, {}).setdefault(text, []).append(run_id)
    facts = tuple(
        Fact(name=name, values=tuple((text, tuple(found)) for text, found in texts.items()))
        for name, texts in values.items()
    )
    return Provenance(facts=facts, commands=tuple(_commands(plan, results)))


def _facts(run: Replicate, environment: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What was recorded with one run, in words. Records of earlier versions, and of other machines, may lack parts."""
    code = environment.get("code") or {}
    if run.code:
        dirty = ", with changes that no commit has" if code.get("patch_sha256") else ""
        yield "code", f"{run.code}, version {code.get('version', 'unknown')}{dirty}"
    if packages := environment.get("packages"):
        yield "packages", ", ".join(f"{name} {version}" for name, version in packages.items() if version)
    if python := environment.get("python"):
        yield "Python", str(python)
    if platform := environment.get("platform"):
        yield "platform", str(platform)
    if cpu := environment.get("cpu"):
        capability = f", {cpu['capability']}" if cpu.get("capability") else ""
        yield "processor", f"{cpu.get('model')}, {cpu.get('cores')} cores{capability}"
    device = environment.get("device") or {}
    if device.get("type", "cpu") != "cpu":
        yield "device", str(device.get("name"))
    if threads := environment.get("threads"):
        yield "threads a run", str(threads)
    if run.timing:
        yield "timing", {"exclusive": "alone on the machine", "shared": "beside other runs"}.get(run.timing, run.timing)
    if fingerprint := environment.get("fingerprint"):
        yield "fingerprint of the prepared data", str(fingerprint)
    if data := environment.get("data"):
        yield "data", "; ".join(_counts(data))
    for metric, signature in run.signatures.items():
        if metric in run.metrics and metric in ("bleu", "chrf", "ter", "rougeL"):
            yield f"signature of {metric}", signature


def _counts(data: Mapping[str, Any]) -> Iterator[str]:
    for split in ("train", "validation", "test"):
        counts = data.get(split) or {}
        if "kept" in counts:
            tokens = f", {counts['target_tokens']:,} target tokens" if "target_tokens" in counts else ""
            read = f" of {counts['read']:,}" if counts.get("read", counts["kept"]) != counts["kept"] else ""
            yield f"{split}: {counts['kept']:,}{read} sentences{tokens}"


def _commands(plan: SweepPlan, results: Sequence[RowResult]) -> Iterator[tuple[str, str]]:
    """Commands that repeat what is shown, anywhere: words that only say where things lie or run here are left out."""
    words = [without_password(word) for word in split_places(plan.overrides)[1] if not word.startswith("data.dir=")]
    asked = shlex.join([f"sweep={plan.name}", *words])
    missing = sum(row.missing for row in results)
    yield f"nmt sweep {asked}", f"trains the {missing} replicates that are missing" if missing else "trains every run"
    yield f"nmt report {asked}", "writes this report"
    one = next((one for row in results for one in row.complete), None)
    if one is not None:
        yield f"nmt rerun run={one.run_id} verify=true", "trains one run again and compares every digest"
