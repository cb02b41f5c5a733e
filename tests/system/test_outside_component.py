"""docs/components.md as a reader follows it: the package is installed, swept, and counts in the runs' identity."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from nmt.runs import LocalRunStore

PAGE = Path(__file__).resolve().parents[2] / "docs" / "components.md"
SMALL = ["scale=smoke", "replicates=1", "search=greedy", "data.options.test_size=10", "tracking=none"]


def block(language: str) -> str:
    """The page's one block of code in a language."""
    (text,) = re.findall(rf"^```{language}\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return str(text)


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which the page's package is installed, in a folder of its own and without a network."""
    folder = tmp_path_factory.mktemp("package")
    (folder / "cosine_attention.py").write_text(block("python"), encoding="utf-8")
    (folder / "pyproject.toml").write_text(block("toml"), encoding="utf-8")
    site = tmp_path_factory.mktemp("site")
    options = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    pip = [sys.executable, "-m", "pip", "install", *options, "--target", str(site), str(folder)]
    subprocess.run(pip, check=True, timeout=600)
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH", "")]))}


def nmt(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    """A command in that environment, on the store of the test that calls."""
    command = [sys.executable, "-m", "nmt.cli", *words]
    own = environment | {"NMT_RUNS": os.environ["NMT_RUNS"]}
    return subprocess.run(command, env=own, capture_output=True, text=True, timeout=600)


def test_an_installed_attention_is_swept(environment: dict[str, str], tmp_path: Path, isolated_runs: Path) -> None:
    sweep = tmp_path / "cosine.yaml"
    sweep.write_text(block("yaml"), encoding="utf-8")
    done = nmt(environment, "sweep", f"sweep={sweep}", "executor=inline", *SMALL)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "cosine" in done.stdout
    store = LocalRunStore(isolated_runs)
    identities = [store.read_json(run_id, "identity.json") for run_id in store.list_runs()]
    by_name = {identity["model"]["attention"]["name"]: identity for identity in identities if identity}
    assert by_name.keys() == {"multiplicative", "cosine"}
    assert "components" not in by_name["multiplicative"]
    (about,) = by_name["cosine"]["components"].values()
    assert about["target"] == "cosine_attention:CosineAttention"
    assert (about["package"], about["version"]) == ("cosine-attention", "0.1")
    counted = [(store.read_json(run_id, "result.json") or {})["parameters"] for run_id in store.list_runs()]
    assert abs(counted[0] - counted[1]) == 1  # the sharpness


def run_id(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_an_edit_of_its_source_makes_another_run(environment: dict[str, str]) -> None:
    words = ["train", "dry_run=true", "model.attention.name=cosine"]
    before, plain = run_id(nmt(environment, *words)), run_id(nmt(environment, "train", "dry_run=true"))
    source = Path(environment["PYTHONPATH"].split(os.pathsep)[0]) / "cosine_attention.py"
    text = source.read_text(encoding="utf-8")
    try:
        source.write_text(text.replace("dim=-1", "dim=2"), encoding="utf-8")
        assert run_id(nmt(environment, *words)) != before
        assert run_id(nmt(environment, "train", "dry_run=true")) == plain
    finally:
        source.write_text(text, encoding="utf-8")
    assert run_id(nmt(environment, *words)) == before


def test_its_mistakes_are_told_like_ours(environment: dict[str, str]) -> None:
    done = nmt(environment, "train", "model.attention.name=cosin")
    assert done.returncode == 2
    assert "did you mean cosine" in done.stderr
    options = "model.attention.options={sharpnes: 2}"
    done = nmt(environment, "train", *SMALL[2:4], "model.attention.name=cosine", options, "tracking=none")
    assert done.returncode == 2, done.stderr
    assert "did you mean sharpness" in done.stderr
