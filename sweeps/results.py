"""What a run directory says about one replicate: how training ended, and the test metrics of the search asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nmt.config import RunConfig, decode_id
from nmt.config.identity import run_id
from nmt.evaluation.catalogue import METRICS, key
from nmt.runs import RunStore
from sweeps.process_figures import read_figures
from sweeps.reuse import code_name

LOG_PERPLEXITY = "val/teacher_forced/log_perplexity"


@dataclass(frozen=True, kw_only=True)
class Replicate:
    """One replicate as its run directory tells it.

    `metrics` are test metrics by their short names (`bleu`, `chrf`, …), empty without a decode record for this search;
    `complete` says that nothing is left to do. Times are in seconds, and `timing` says whether the run had the machine
    to itself (`exclusive`) or not (`shared`). `code` names what trained it (`sweeps.reuse.code_name`), empty where that
    is unknown. `validation` are decoded metrics of the validation split at the chosen checkpoint, by their short names;
    `log_perplexity` is of the same split, in nats per target token. `processes` are those of `sweeps.process_figures`,
    and `refused` says why times are not among them. `directory` is where the run's files can be read, among the
    runs or in an archive.
    """

    run_id: str
    seed: int
    state: str
    complete: bool = False
    reason: str = ""
    error: str = ""
    metrics: Mapping[str, float] = field(default_factory=dict)
    validation: Mapping[str, float] = field(default_factory=dict)
    signatures: Mapping[str, str] = field(default_factory=dict)
    decode_id: str = ""
    sentences: int | None = None
    log_perplexity: float | None = None
    parameters: int | None = None
    steps: int | None = None
    best_step: int | None = None
    tokens_per_second: float | None = None
    convergence_steps: int | None = None
    convergence_tokens: int | None = None
    convergence_seconds: float | None = None
    peak_memory_bytes: int | None = None
    joules_per_1000_tokens: float | None = None
    idle_workers: float | None = None
    staleness: float | None = None
    processes: Mapping[str, float] = field(default_factory=dict)
    refused: str = ""
    timing: str = ""
    code: str = ""
    directory: Path = Path()


def read_replicate(store: RunStore, config: RunConfig, name: str | None = None, decoding: str = "") -> Replicate:
    """Read the run of `config` (its seed included) from the store; a run that is not there has state `queued`.

    `name` is its run id, and `decoding` the id of the decoding that is meant, where these are known: computing them may
    need the corpus.
    """
    name = name or run_id(config)
    status = store.status(name)
    result = store.read_json(name, "result.json")
    if status.state == "queued" and result is None:
        return Replicate(run_id=name, seed=config.seed, state=status.state, directory=store.directory(name))
    environment = store.read_json(name, "env.json") or {}
    code = code_name(environment.get("code"))
    if result is None or status.state not in ("finished", "diverged"):
        where = store.directory(name)
        return Replicate(
            run_id=name, seed=config.seed, state=status.state, error=status.error, code=code, directory=where
        )
    best = result.get("best") or {}
    record: dict[str, Any] = {}
    wanted = ""
    if best.get("checkpoint_digest"):
        wanted = decoding or decode_id(best["checkpoint_digest"], config)
        record = store.read_json(name, f"decodes/{wanted}.json") or {}
    convergence = result.get("convergence") or {}
    figures = read_figures(config, result, environment, store.directory(name))
    return Replicate(
        run_id=name,
        seed=config.seed,
        state=status.state,
        # A run that diverged before its first checkpoint has nothing to decode, and never will have.
        complete=bool(record) or (status.state == "diverged" and not wanted),
        reason=result.get("reason") or "",
        error=status.error,
        metrics={
            metric: value
            for metric in METRICS
            if (value := record.get("metrics", {}).get(key("test", metric))) is not None  # an older record has fewer
        },
        validation={
            metric: value
            for metric in METRICS
            if (value := (best.get("metrics") or {}).get(key("val", metric))) is not None
        },
        signatures=record.get("signatures", {}),
        decode_id=wanted,
        sentences=record.get("sentences"),
        log_perplexity=(best.get("metrics") or {}).get(LOG_PERPLEXITY),
        parameters=result.get("parameters"),
        steps=result.get("steps"),
        best_step=best.get("step"),
        tokens_per_second=result.get("tokens_per_second"),
        convergence_steps=convergence.get("steps"),
        convergence_tokens=convergence.get("target_tokens"),
        convergence_seconds=convergence.get("seconds"),
        peak_memory_bytes=result.get("peak_memory_bytes"),
        joules_per_1000_tokens=_number(result, "energy", "joules_per_1000_tokens"),
        idle_workers=_number(result, "distribution", "idle", "workers"),
        staleness=_number(result, "distribution", "staleness", "mean"),
        processes=figures.values,
        refused=figures.refused,
        timing=result.get("timing") or "",
        code=code,
        directory=store.directory(name),
    )


def _number(result: Mapping[str, Any], *path: str) -> float | None:
    """A number at a path into a result, None where there is none: words, or another kind of run."""
    found: Any = result
    for name in path:
        found = found.get(name) if isinstance(found, Mapping) else None
    return float(found) if isinstance(found, int | float) else None
