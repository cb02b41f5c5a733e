"""What planning a large sweep costs its driver: CPU time and memory, of a grid that is planned and never run.

    python scripts/plan_cost.py                        # 5,000 runs: 1,250 rows in 4 replicates
    python scripts/plan_cost.py rows=100 replicates=50

Times are of this process alone, whatever else the machine does; memory is what its peak rises by.
"""

from __future__ import annotations

import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from nmt.arguments import exit_code, option, parse
from sweeps.ad_hoc import ad_hoc_spec
from sweeps.aggregate import aggregate
from sweeps.plan import make_plan
from sweeps.progress import Watch

Result = TypeVar("Result")


@dataclass(frozen=True, kw_only=True)
class CostOptions:
    """What the script takes."""

    rows: int = option(1250, "rows of the sweep, which differ in their budget", minimum=1)
    replicates: int = option(4, "replicates of each row", minimum=1)


def main(argv: Sequence[str]) -> int:
    """Plan, and print a JSON line for each stage; returns the exit code."""
    options = parse(CostOptions, argv, verb="python scripts/plan_cost.py", summary="What planning a sweep costs.")
    budgets = ",".join(str(1000 + number) for number in range(options.rows))
    with tempfile.TemporaryDirectory() as folder:
        words = ["experiment=baseline", f"replicates={options.replicates}", f"paths.runs={folder}"]
        spec, here = measured("rows", lambda: ad_hoc_spec([f"training.max_steps={budgets}"], words))
        plan = measured("plan", lambda: make_plan(spec, here))
        measured("work items", plan.work_items)
        watch = measured("first look at all runs", lambda: Watch(plan))
        measured("a look while runs wait", watch.look)
        measured("reading all runs for the table", lambda: aggregate(plan))
    return 0


def measured(stage: str, work: Callable[[], Result]) -> Result:
    """Do the work, and print what it took."""
    memory, begin = _peak(), time.process_time()
    result = work()
    seconds = time.process_time() - begin
    print(json.dumps({"stage": stage, "cpu_seconds": round(seconds, 3), "more_MB": round(_peak() - memory, 1)}))
    return result


def _peak() -> float:
    """The largest memory that this process held so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    sys.exit(exit_code(main, sys.argv[1:]))
