"""What the report of a large sweep costs: `nmt report` on runs written by hand, in all its forms.

    python scripts/report_cost.py                    # 500 runs: 125 rows in 4 replicates, 40 evaluations each
    python scripts/report_cost.py rows=1250 profile=true

The command is timed as a person runs it, a process from start to end, the median of several, on the clock and in
seconds of the processor; then the stages of the same work in this process, whose first use of a library is in the stage
that needs it.
"""

from __future__ import annotations

import cProfile
import json
import math
import pstats
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nmt.arguments import exit_code, option, parse
from nmt.config import RunConfig, to_dict
from nmt.config.identity import decode_id, run_id
from nmt.data.corpus import load_test
from nmt.environment import describe_code
from nmt.runs import LocalRunStore, RunStatus
from sweeps.ad_hoc import ad_hoc_spec
from sweeps.aggregate import aggregate
from sweeps.plan import make_plan
from sweeps.saved import save_spec
from sweeps.spec import load_spec

TIMES = 3  # that the command is timed
FORMATS = "md,csv,latex,html,json"  # png and svg load matplotlib, which takes as long as all the rest
DATA = ["data=toy_translation", "tokenizer=toy_words", "model.embedding.share=false", "tracking=none"]


@dataclass(frozen=True, kw_only=True)
class CostOptions:
    """What the script takes."""

    rows: int = option(125, "rows of the sweep, which differ in their budget", minimum=1)
    replicates: int = option(4, "replicates of each row", minimum=1)
    evaluations: int = option(40, "evaluations of each run, each behind nine lines of training", minimum=1)
    profile: bool = option(False, "print where the time goes")


def main(argv: Sequence[str]) -> int:
    """Write runs, report them, and print a JSON line for each time; returns the exit code."""
    options = parse(CostOptions, argv, verb="python scripts/report_cost.py", summary="What a large report costs.")
    with tempfile.TemporaryDirectory() as folder:
        budgets = ",".join(str(10_000 + number) for number in range(options.rows))
        words = ["experiment=t5_add_512", f"replicates={options.replicates}", f"paths.runs={folder}/runs", *DATA]
        spec, here = ad_hoc_spec([f"training.max_steps={budgets}"], words)
        path = Path(folder) / "large.yaml"
        save_spec(path, spec, words)
        path.write_text(path.read_text() + f"baseline: '{spec.rows[0].label}'\n")
        plan = make_plan(load_spec(str(path)), here)
        outputs = load_test(plan.config.data).target
        for number, run in enumerate(plan.runs):
            write_run(plan.store, run.config, number, options.evaluations, outputs)
        command = [sys.executable, "-m", "nmt.cli", "report", f"sweep={path}", f"formats={FORMATS}", *here]
        wall, cpu = zip(*(_seconds_of(command) for _ in range(TIMES)), strict=True)
        size = (plan.reports / "report.html").stat().st_size
        record = {"command": "nmt report", "runs": len(plan.runs), "page_megabytes": round(size / 1e6, 2)}
        seconds = {"wall_seconds": statistics.median(wall), "cpu_seconds": statistics.median(cpu)}
        print(json.dumps(record | {name: round(value, 2) for name, value in seconds.items()}), flush=True)
        profiler = cProfile.Profile()
        if options.profile:
            profiler.enable()
        _stages(path, here)
        if options.profile:
            profiler.disable()
            pstats.Stats(profiler).sort_stats("cumulative").print_stats(45)
    return 0


def write_run(store: LocalRunStore, config: RunConfig, number: int, evaluations: int, outputs: Sequence[str]) -> None:
    """The directory of a finished run, as far as a report reads it; no two runs have the same scores."""
    name, digest = run_id(config), "0" * 64
    store.write_text(name, "config.yaml", yaml.safe_dump(to_dict(config), sort_keys=False))
    code = describe_code()
    packages = {"torch": "2.13.0", "numpy": "2.4.6", "sacrebleu": "2.6.0"}
    store.write_json(name, "env.json", {"code": code, "packages": packages, "threads": 1, "fingerprint": "ab" * 32})
    lines = [json.dumps({"kind": "header", "format_version": 1})]
    for step in range(25, 250 * evaluations + 1, 25):
        line: dict[str, Any] = {
            "step": step,
            "seconds": step / 100,
            "target_tokens": step * 1000,
            "timing": "exclusive",
        }
        if step % 250:
            line |= {"kind": "train", "loss": 5 / step, "loss_hex": (5 / step).hex(), "learning_rate": 1e-3}
        else:
            rise = 1 - math.exp(-step / 2000)
            scores = {"val/decode/bleu": (20 + number % 17) * rise, "val/decode/chrf": 50 * rise}
            line |= {"kind": "evaluation", **scores, "val/teacher_forced/log_perplexity": 5 - 4 * rise}
        lines.append(json.dumps(line))
    store.write_text(name, "metrics.jsonl", "\n".join(lines) + "\n")
    score = 20 + number % 17 + number / 1000
    best = {
        "step": 250 * evaluations,
        "checkpoint_digest": digest,
        "metrics": {"val/decode/bleu": score, "val/teacher_forced/log_perplexity": 1.5},
    }
    result = {
        "state": "finished",
        "reason": "budget",
        "steps": 250 * evaluations,
        "best": best,
        "convergence": {"steps": 200 * evaluations, "target_tokens": 1000, "seconds": 100.0},
        "tokens_per_second": 1000.0 + number,
        "timing": "exclusive",
        "parameters": 1_000_000,
        "peak_memory_bytes": 500_000_000,
    }
    store.write_json(name, "result.json", result)
    decoded = decode_id(digest, config)
    record = {"metrics": {"test/decode/bleu": score}, "signatures": {"bleu": "tok:13a"}, "sentences": len(outputs)}
    store.write_json(name, f"decodes/{decoded}.json", record)
    wrong = [line if (place + number) % 3 else line[::-1] for place, line in enumerate(outputs)]
    store.write_text(name, f"decodes/{decoded}.txt", "".join(f"{line}\n" for line in wrong))
    store.set_status(name, RunStatus(state="finished", step=250 * evaluations))


def _seconds_of(command: Sequence[str]) -> tuple[float, float]:
    """Seconds on the clock from a process's start to its end, and of the processor."""
    begin, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.monotonic() - begin, cpu


def _stages(path: Path, words: Sequence[str]) -> None:
    from sweeps.reporting.document import to_document
    from sweeps.reporting.findings import find
    from sweeps.reporting.full_table import to_csv
    from sweeps.reporting.latex import to_latex
    from sweeps.reporting.page import to_page

    with _stage("plan"):
        plan = make_plan(load_spec(str(path)), words)
    with _stage("read runs"):
        results = aggregate(plan)
    with _stage("find"):
        findings = find(plan, results)
    with _stage("page"):
        to_page(findings)
    with _stage("document, LaTeX, CSV"):
        to_document(findings)
        to_latex(findings.table, findings.name)
        to_csv(plan, results, findings.tests)


@contextmanager
def _stage(name: str):  # type: ignore[no-untyped-def]
    begin = time.process_time()
    yield
    print(json.dumps({"stage": name, "cpu_seconds": round(time.process_time() - begin, 2)}), flush=True)


if __name__ == "__main__":
    sys.exit(exit_code(main, sys.argv[1:]))
