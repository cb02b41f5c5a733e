"""What a registry of many runs costs: `nmt status` on it, and `nmt sync` into MLflow, the first time and again.

    python scripts/registry_cost.py                    # 500 runs: 125 rows in 4 replicates, 20 points each
    python scripts/registry_cost.py rows=25 uri=postgresql://ann@host/empty

The runs are written by hand, as finished trainings leave them. `nmt status` is timed as a person runs it, a process
from start to end, the median of five; `nmt sync` in this process, MLflow's import included the first time, into a new
sqlite file or into an empty store that `uri` names, whose own times are not in it.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from nmt.arguments import exit_code, option, parse
from nmt.config import RunConfig, to_dict
from nmt.config.identity import decode_id, run_id
from nmt.runs import LocalRunStore, RunStatus
from sweeps.ad_hoc import ad_hoc_spec
from sweeps.launches import record_launch
from sweeps.plan import make_plan
from sweeps.tracking.store import resolve_uri
from sweeps.tracking.sync import synchronise

EVERY = 50  # steps between the lines of a run's curves
TIMES = 5  # that a command is timed


@dataclass(frozen=True, kw_only=True)
class CostOptions:
    """What the script takes."""

    rows: int = option(125, "rows of the sweep, which differ in their budget", minimum=1)
    replicates: int = option(4, "replicates of each row", minimum=1)
    points: int = option(20, "points of each run's curves, one in ten of them an evaluation", minimum=1)
    uri: str = option("", "an empty tracking store; unset: a new sqlite file")


def main(argv: Sequence[str]) -> int:
    """Write runs, show them twice, and print a JSON line for each time; returns the exit code."""
    options = parse(CostOptions, argv, verb="python scripts/registry_cost.py", summary="What many runs cost.")
    budgets = ",".join(str(1000 + number) for number in range(options.rows))
    with tempfile.TemporaryDirectory() as folder:
        # A model that is registered would be measured too, and needs a checkpoint.
        words = ["experiment=baseline", f"replicates={options.replicates}", f"paths.runs={folder}"]
        spec, here = ad_hoc_spec([f"training.max_steps={budgets}"], [*words, "tracking.register=none"])
        plan = make_plan(spec, here)
        record_launch(plan)
        for run in plan.runs:
            write_run(plan.store, run.config, options.points)
        seconds = statistics.median(seconds_of_status(folder) for _ in range(TIMES))
        print(
            json.dumps({"command": "nmt status", "runs": len(plan.runs), "wall_seconds": round(seconds, 3)}), flush=True
        )
        uri = resolve_uri(options.uri, Path(folder))
        for time_of in ("first", "second"):
            wall, begin = time.monotonic(), time.process_time()
            counts = synchronise(Path(folder), uri)
            seconds, wall = time.process_time() - begin, time.monotonic() - wall
            record = {"command": "nmt sync", "time": time_of, "runs": len(counts.runs), "new_points": counts.points}
            print(json.dumps(record | {"cpu_seconds": round(seconds, 2), "wall_seconds": round(wall, 2)}), flush=True)
    return 0


def seconds_of_status(folder: str) -> float:
    """Seconds that one `nmt status` takes, from the start of its process to its end."""
    begin = time.monotonic()
    subprocess.run([sys.executable, "-m", "nmt.cli", "status", f"runs={folder}"], check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - begin


def write_run(store: LocalRunStore, config: RunConfig, points: int) -> None:
    """The directory of a finished run, as far as MLflow is shown it."""
    name, digest = run_id(config), "0" * 64
    store.write_text(name, "config.yaml", yaml.safe_dump(to_dict(config), sort_keys=False))
    lines = [json.dumps({"kind": "header", "format_version": 1})]
    for number in range(1, points + 1):
        step = number * EVERY
        line = {"step": step, "seconds": step / 100, "target_tokens": step * 1000}
        if number % 10:
            line |= {"kind": "train", "loss": 5 / number, "learning_rate": 1e-3, "gradient_norm": 1.0}
        else:
            scores = {"val/decode/bleu": 20.0, "val/decode/chrf": 40.0, "val/teacher_forced/log_perplexity": 1.0}
            line |= {"kind": "evaluation", "evaluation_seconds": 0.5} | scores
        lines.append(json.dumps(line))
    store.write_text(name, "metrics.jsonl", "\n".join(lines) + "\n")
    best = {"step": points * EVERY, "checkpoint_digest": digest, "checkpoint": "", "metrics": {"val/decode/bleu": 20.0}}
    store.write_json(name, "result.json", {"state": "finished", "steps": points * EVERY, "best": best})
    decoded = decode_id(digest, config)
    store.write_json(name, f"decodes/{decoded}.json", {"metrics": {"test/decode/bleu": 20.0 + config.seed}})
    store.set_status(name, dataclasses.replace(RunStatus(), state="finished", step=points * EVERY))


if __name__ == "__main__":
    sys.exit(exit_code(main, sys.argv[1:]))
