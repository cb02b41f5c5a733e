from __future__ import annotations

import json
import os
import subprocess
from importlib import metadata
from pathlib import Path

import pytest
import torch

from nmt import environment


def git(root: Path, *words: str) -> str:
    names = {f"GIT_{who}_{what}": "x@y" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    done = subprocess.run(
        ["git", "-C", str(root), *words], env=os.environ | names, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    root = tmp_path / "checkout"
    for name in ("nmt/model.py", "docs/page.md"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("first\n")
    git(tmp_path, "init", "--quiet", str(root))
    git(root, "add", ".")
    git(root, "commit", "--quiet", "-m", "first")
    return root


def test_clean_checkout_is_its_commit(checkout: Path) -> None:
    code = environment.describe_code(checkout)
    assert code["commit"] == git(checkout, "rev-parse", "HEAD")
    assert (code["dirty"], code["patch_sha256"]) == (False, None)


def test_patch_hash_follows_the_sources_and_nothing_else(checkout: Path) -> None:
    seen = []
    for name, text in [("nmt/model.py", "second\n"), ("nmt/new.py", "a\n"), ("nmt/new.py", "b\n"), ("conf/c.yaml", "")]:
        (checkout / name).parent.mkdir(exist_ok=True)
        (checkout / name).write_text(text)
        code = environment.describe_code(checkout)
        assert code["dirty"] is True
        seen.append(code["patch_sha256"])
    assert len(set(seen)) == 4
    (checkout / "docs/page.md").write_text("rewritten\n")
    assert environment.describe_code(checkout)["patch_sha256"] == seen[-1]
    git(checkout, "add", "nmt", "conf")  # staged or not, it is the same code
    (checkout / "conf/c.yaml").write_text("key: 1\n")
    changed = environment.describe_code(checkout)["patch_sha256"]
    (checkout / "conf/c.yaml").write_text("")
    assert changed != environment.describe_code(checkout)["patch_sha256"]


def test_outside_a_checkout_the_version_has_to_do(checkout: Path, tmp_path: Path) -> None:
    inside_another = checkout / "site-packages"
    inside_another.mkdir()
    for root in (tmp_path, inside_another, tmp_path / "absent"):
        code = environment.describe_code(root)
        assert code["commit"] is None and code["dirty"] is None and code["patch_sha256"] is None
        assert code["version"] == environment.nmt.__version__


def test_a_git_hooks_environment_does_not_mislead(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_DIR", "/nonexistent/.git")
    assert environment.describe_code(checkout)["commit"] is not None


def test_versions_come_from_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "PACKAGES", ("torch", "surely-not-installed"))
    assert environment.package_versions() == {"torch": metadata.version("torch"), "surely-not-installed": None}


def test_the_record_is_json_and_says_what_decides_bits() -> None:
    record = environment.describe_environment("cpu")
    assert json.loads(json.dumps(record)) == record
    assert record["cpu"]["capability"] == torch.backends.cpu.get_cpu_capability()
    assert record["threads"] == torch.get_num_threads()
    assert record["device"] == {"type": "cpu", "name": environment.cpu_model()}
    assert record["packages"]["torch"] == metadata.version("torch")
