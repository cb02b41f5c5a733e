"""The arrows of docs/architecture.md: who may import whom, and what a verb may load."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from nmt.cli import VERBS

ROOT = Path(__file__).resolve().parents[2]


def imports(path: Path) -> set[str]:
    """Every module that a file imports, at any depth of its code."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or "")
    return found


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("path", files("nmt"), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nmt_knows_only_the_strategy_interface(path: Path) -> None:
    for module in imports(path):
        assert module.split(".")[0] not in ("sweeps", "ray", "mlflow"), module
        if module.split(".")[0] == "distributed":
            assert module == "distributed.strategy"


@pytest.mark.parametrize("path", files("distributed"), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_distributed_knows_nothing_of_translation(path: Path) -> None:
    roots = {module.split(".")[0] for module in imports(path)}
    assert not roots & {"nmt", "sweeps", "conf", "mlflow"}


def test_conf_holds_recipes_only() -> None:
    assert files("conf") == [ROOT / "conf" / "__init__.py"]
    assert imports(ROOT / "conf" / "__init__.py") == set()


HEAVY = ("torch", "mlflow", "ray", "pandas", "matplotlib", "scipy", "sentencepiece", "sacrebleu")


@pytest.mark.parametrize(
    "words",
    [["--help"]] + [[verb, "--help"] for verb in VERBS],
    ids=" ".join,
)
def test_help_loads_nothing_heavy(words: list[str]) -> None:
    code = f"""
import sys
from nmt.cli import main
try:
    code = main({words!r})
except SystemExit as stop:
    code = stop.code
loaded = sorted(name for name in {HEAVY!r} if name in sys.modules)
print("loaded:", loaded, file=sys.stderr)
sys.exit(code)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "loaded: []" in done.stderr
    assert done.stdout.startswith("Usage: nmt")


def test_two_files_are_scored_without_composing_anything(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("a word or two\n")
    code = f"""
import sys
from nmt.cli import main
code = main(["evaluate", "hypotheses={text}", "references={text}"])
print([name for name in ("hydra", "torch") if name in sys.modules], file=sys.stderr)
sys.exit(code)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "[]\n")


def test_the_strategy_interface_loads_no_torch() -> None:
    code = "import sys, distributed.strategy; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_a_stranger_under_our_name_is_refused_in_one_line(tmp_path: Path) -> None:
    """Dask's `distributed` may come first on the path."""
    (tmp_path / "distributed").mkdir()
    (tmp_path / "distributed" / "__init__.py").write_text("")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from nmt.cli import main; sys.exit(main(['train']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr.startswith("error: the package 'distributed' that Python finds is not ours")
    assert done.stderr.count("\n") == 1
