"""`hydra/launcher=<executor>`: the jobs of `nmt train -m` in other processes, from fresh installations too."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from nmt.cli import main
from nmt.runs import LocalRunStore

ROOT = Path(__file__).resolve().parents[2]
TINY = [
    "data=toy_reverse", "data.options={train_size: 100, validation_size: 8, test_size: 8}", "scale=smoke",
    "tokenizer.vocab_size=24", "search=greedy", "threads=1", "device=cpu",
]  # fmt: skip
COMMAND = ["train", "-m", "experiment=baseline,t2_lstm", "seed=1,2", *TINY]


def nmt(program: list[str], *words: str, runs: Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"NMT_RUNS": str(runs), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*program, *words], capture_output=True, text=True, cwd=cwd, env=environment, timeout=900
    )  # fmt: skip


def assert_trained(done: subprocess.CompletedProcess[str], runs: Path) -> None:
    assert done.returncode == 0, done.stderr
    store = LocalRunStore(runs)
    assert len(store.list_runs()) == 4
    assert {store.status(run_id).state for run_id in store.list_runs()} == {"finished"}
    assert "4 jobs: 4 finished" in done.stdout


@pytest.mark.exhaustive
def test_jobs_in_child_processes_are_those_of_the_serial_command(tmp_path: Path) -> None:
    program, runs = [sys.executable, "-m", "nmt.cli"], tmp_path / "runs"
    done = nmt(program, *COMMAND, "hydra/launcher=inline", "tracking=mlflow", runs=runs, cwd=ROOT)
    assert_trained(done, runs)
    assert "4 of 4 runs to do, executor=inline" in done.stderr
    assert "experiment=t2_lstm · seed 2" in done.stderr
    store = LocalRunStore(runs)
    assert len({store.status(run_id).pid for run_id in store.list_runs()}) == 4
    again = nmt(program, *COMMAND, "tracking=none", "dry_run=true", runs=runs, cwd=ROOT)
    assert again.stdout == done.stdout

    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{runs / 'mlflow.db'}")
    (experiment,) = [one for one in client.search_experiments() if one.name == "train@smoke"]
    names = {run.data.tags.get("mlflow.parentRunId") for run in client.search_runs([experiment.experiment_id])}
    assert len(names - {None}) == 2  # two configurations, with their replicates


@pytest.mark.ray
@pytest.mark.exhaustive
def test_jobs_on_a_ray_cluster(
    ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NMT_RUNS", str(tmp_path))
    words = ["train", "-m", "hydra/launcher=ray_tune", "seed=1,2", "executor.retries=0", "tracking=none", *TINY]
    assert main(words) == 0
    shown = capfd.readouterr()
    assert "2 jobs: 2 finished" in shown.out
    assert "2 of 2 runs to do, executor=ray_tune" in shown.err
    store = LocalRunStore(tmp_path)
    assert os.getpid() not in {store.status(run_id).pid for run_id in store.list_runs()}
    assert main(words) == 0
    assert "runs to do" not in capfd.readouterr().err


@pytest.mark.exhaustive
@pytest.mark.parametrize("how", ["editable", "wheel"])
def test_a_fresh_installation_finds_the_launcher(tmp_path: Path, how: str) -> None:
    """The packages that we need are lent by this environment; ours are installed anew, from a clean copy."""
    source, environment = tmp_path / "source", tmp_path / "venv"
    tracked = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in filter(None, tracked.split("\0")):
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, source / name)
    venv.create(environment, with_pip=False, symlinks=True)
    python = environment / "bin" / "python"
    installed = Path(sysconfig.get_paths(vars={"base": str(environment)})["purelib"])
    # A path file inside a lent folder is not read, so this environment's own editable install stays out of it.
    (installed / "lent.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    words = ["--no-deps", "--no-build-isolation", "--ignore-installed", *["--editable"][: how == "editable"], source]
    subprocess.run([python, "-m", "pip", "install", "-q", *words], check=True)
    program, runs, here = [str(environment / "bin" / "nmt")], tmp_path / "runs", tmp_path / "elsewhere"
    here.mkdir()
    asked = [python, "-c", "import sweeps; print(sweeps.__file__)"]
    where = subprocess.run(asked, cwd=here, capture_output=True, text=True)
    assert where.stdout.startswith(str(source if how == "editable" else installed))
    launcher = "ray_tune" if how == "editable" else "inline"
    done = nmt(program, *COMMAND, f"hydra/launcher={launcher}", "tracking=none", runs=runs, cwd=here)
    assert_trained(done, runs)
    assert f"executor={launcher}" in done.stderr
