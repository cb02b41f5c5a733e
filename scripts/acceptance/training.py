"""Trainings as a user starts them, in processes of their own: what they reach, and what an interruption changes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from acceptance.outcome import Outcome
from acceptance.setting import ROOT, Setting
from nmt.evaluation.catalogue import key
from nmt.runs import LocalRunStore

LEAST_BLEU = 70.0  # two replicates on a CPU reach 86.6 (docs/results.md, quickstart, Add-512)
BF16 = "training.precision=bf16"
_TIMES = {"seconds", "evaluation_seconds", "tokens_per_second", "timing", "peak_memory_bytes", "convergence", "energy"}


@dataclass(frozen=True)
class Run:
    """A run that is there to its end."""

    store: LocalRunStore
    run_id: str

    @property
    def result(self) -> dict[str, Any]:
        """How training ended."""
        found = self.store.read_json(self.run_id, "result.json")
        assert found is not None
        return found

    @property
    def bleu(self) -> float:
        """Of the test split."""
        (decode,) = (self.store.directory(self.run_id) / "decodes").glob("*.json")
        return float(json.loads(decode.read_text())["metrics"][key("test", "bleu")])

    def bits(self) -> dict[str, Any]:
        """All that was recorded but times: losses to the last bit, digests of parameters and moments, scores."""
        directory = self.store.directory(self.run_id)
        lines = (directory / "metrics.jsonl").read_text().splitlines()
        return {
            "records": [_without_times(json.loads(line)) for line in lines],
            "result": _without_times(self.result),
            "outputs": {path.name: path.read_text() for path in sorted((directory / "decodes").glob("*.txt"))},
        }


@cache
def trained(setting: Setting, name: str, *overrides: str) -> Run:
    """The run of the built-in task in the directory `name`, trained now if it is not there."""
    done = nmt_train(setting, name, *overrides)
    if done.returncode:
        raise RuntimeError(f"nmt train ended with {done.returncode}: {_last_line(done.stderr)}")
    return _run(setting, name)


def nmt_train(setting: Setting, name: str, *overrides: str) -> subprocess.CompletedProcess[str]:
    """`nmt train` in a process of its own, with `name` as its directory of runs."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return subprocess.run(
        [sys.executable, "-m", "nmt.cli", "train", *setting.words(f"paths.runs={setting.work / name}", *overrides)],
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=setting.remaining,
    )


def check_training(setting: Setting) -> Outcome:
    """fp32 learns the built-in task as it does on a CPU."""
    return _learned(setting, trained(setting, "fp32"))


def check_bf16(setting: Setting) -> Outcome:
    """So does bf16."""
    return _learned(setting, trained(setting, "bf16", BF16))


def check_resume(setting: Setting) -> Outcome:
    """A run that is killed in the middle of a step and started again ends with the bits of the undisturbed one."""
    undisturbed = trained(setting, "fp32")
    step = max(2, undisturbed.result["steps"] * 5 // 8)
    killed = nmt_train(setting, "resumed", f"faults=[kill@slot:{step}]")
    resumed = trained(setting, "resumed")
    mine, theirs = undisturbed.bits(), resumed.bits()
    return Outcome(
        demands={
            f"the process died at step {step}": killed.returncode == -signal.SIGKILL,
            "records, digests, scores and outputs are those of the undisturbed run, bit for bit": mine == theirs,
        },
        figures={"records compared": len(mine["records"]), "parameters": mine["result"]["best"]["checkpoint_digest"]},
        note="" if mine == theirs else f"First difference: {_first_difference(mine['records'], theirs['records'])}",
    )


def _learned(setting: Setting, run: Run) -> Outcome:
    result, least = run.result, 0.0 if setting.tiny else LEAST_BLEU
    return Outcome(
        demands={
            f"test BLEU is at least {least:g}": run.bleu >= least,
            "the run ended by its budget": result["reason"] == "budget",
        },
        figures={
            "test BLEU, beam 5": run.bleu,
            "steps": result["steps"],
            "seconds of training": result["seconds"],
            "target tokens/s": result["tokens_per_second"],
            "peak memory, MB": result["peak_memory_bytes"] / 1e6,
        },
    )


def _run(setting: Setting, name: str) -> Run:
    store = LocalRunStore(setting.work / name)
    (run_id,) = store.list_runs()
    return Run(store, run_id)


def _without_times(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in _TIMES}


def _first_difference(mine: list[Any], theirs: list[Any]) -> str:
    for one, other in zip(mine, theirs, strict=False):
        if one != other:
            names = [name for name in one if one[name] != other.get(name)]
            return f"{one['kind']} of step {one.get('step')}: {', '.join(names)}"
    return f"{len(mine)} records instead of {len(theirs)}"


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["nothing was printed"])[-1]


def checkpoint_of(run: Run) -> Path:
    """The file of its best checkpoint."""
    from nmt.training.checkpoint import find_checkpoint

    return find_checkpoint(run.store, run.run_id)
