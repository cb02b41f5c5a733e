"""What it takes before work begins: the command line, torch, a run's first step, and a replicate of a sweep."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from bench.children import Job, Report
from bench.machine import Spread
from bench.settings import Settings
from bench.tables import Part, table

REPLICATES = 8  # runs of a sweep among which its cost is shared out
# A whole run on the built-in corpus, down to its first step.
_FIRST_STEP = """
import sys
from nmt.config import compose
from nmt.training.device import prepare_device
from nmt.training.workload import workload_spec
from distributed.single import SingleStrategy
config = compose(sys.argv[1:])
strategy = SingleStrategy()
strategy.start(workload_spec(config, prepare_device(config)))
strategy.step(1)
"""


def startup_jobs(settings: Settings) -> list[Job]:
    """Commands as a user starts them, and an executor with runs that do nothing."""
    return [
        Job("start-up", measure_commands, (settings,), units=settings.rounds),
        Job("replicates", measure_replicates, (settings,), units=settings.rounds),
    ]


def measure_commands(report: Report, settings: Settings) -> dict[str, list[float]]:
    """Seconds from the start of Python to the end, round by round."""
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        overrides = ["scale=smoke", "tracking=none", f"paths.runs={folder}", "threads=1", f"device={settings.device}"]
        commands = {
            "python alone": ["-c", "pass"],
            "nmt train --help": ["-m", "nmt.cli", "train", "--help"],
            "import of torch": ["-c", "import torch"],
            "first step of a run": ["-c", _FIRST_STEP, *overrides],
        }
        _seconds(commands["first step of a run"])  # its corpus is prepared once
        for _ in range(settings.rounds):
            for name, words in commands.items():
                found.setdefault(name, []).append(_seconds(words))
            report()
    return found


def _seconds(words: Sequence[str]) -> float:
    paths = os.pathsep.join(path for path in sys.path if path)
    begin = time.perf_counter()
    subprocess.run(
        [sys.executable, *words], check=True, stdout=subprocess.DEVNULL, env=os.environ | {"PYTHONPATH": paths}
    )
    return time.perf_counter() - begin


def no_training(config: Any, *, timing: str) -> SimpleNamespace:
    """Stands in for `nmt.train.train`: a run without work, so that only what is around it takes time."""
    return SimpleNamespace(state="finished")


def measure_replicates(report: Report, settings: Settings) -> list[float]:
    """Seconds that `executor=inline` takes for each replicate beside its training: a process with torch imported."""
    from nmt.config import compose, to_dict
    from nmt.config.schema import ExecutorConfig
    from nmt.runs import LocalRunStore
    from sweeps.executors.inline import InlineExecutor
    from sweeps.worker import WorkItem

    found = []
    with tempfile.TemporaryDirectory() as folder:
        config = to_dict(compose(["scale=smoke", "tracking=none", "executor=inline", f"paths.runs={folder}"]))
        items = [
            WorkItem(title=name, run_ids=(name,), configs=(config,), trainer="bench.startup:no_training")
            for name in (f"bench/s{number}" for number in range(1, REPLICATES + 1))
        ]
        executor = InlineExecutor(ExecutorConfig(workers=1), LocalRunStore(folder))
        executor.execute(items[:1], lambda: None)  # starts the server that the others are forked from
        for _ in range(settings.rounds):
            begin = time.perf_counter()
            executor.execute(items, lambda: None)
            found.append((time.perf_counter() - begin) / REPLICATES)
            report()
    return found


def startup_part(settings: Settings, found: Sequence[Any]) -> Part:
    """Milliseconds of each."""
    commands, replicates = found
    seconds = {**commands, "overhead of a replicate (executor=inline)": replicates}
    show = lambda value: f"{1000 * value:,.0f}"  # noqa: E731
    rows = [[name, Spread.of(values).shown(show)] for name, values in seconds.items()]
    torch_alone = Spread.of(commands["import of torch"]).median
    ratios = {
        "startup/help_over_import_of_torch": Spread.of(commands["nmt train --help"]).median / torch_alone,
        "startup/replicate_over_import_of_torch": Spread.of(replicates).median / torch_alone,
    }
    text = [
        "Wall clock from the start of a process to its end. A replicate's overhead is what the executor needs for a "
        "run that does nothing. Ray is not measured here.",
        table(["what", "ms"], rows),
    ]
    return Part("Start-up", text, seconds, ratios)
