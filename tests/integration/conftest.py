"""Shared by integration tests: one local Ray cluster a session for those marked `ray`, a browser, and certificates."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from chromium import FLAGS, find_chromium, missing
from logical_cluster import LogicalCluster

if TYPE_CHECKING:
    from playwright.sync_api import Browser

LAUNCH_MILLISECONDS = 180_000  # for a browser to come up on a loaded machine


@pytest.fixture(scope="session")
def ray_environment() -> Iterator[None]:
    """Puts the token of this session's clusters into the environment; skips where ray is absent."""
    pytest.importorskip("ray", reason="ray is not installed")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in LogicalCluster().environment.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="session")
def ray_cluster(ray_environment: None) -> Iterator[str]:
    """The address of a cluster of 4 CPUs and a GPU in Ray's books."""
    with LogicalCluster(nodes=1, cpus=4, gpus=1) as cluster:
        yield cluster.address


@pytest.fixture(scope="session")
def chromium() -> str:
    """The program of a Chromium; skips where there is none, and fails with CI=true."""
    return find_chromium()


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Browser]:
    """A browser that playwright drives; skips where there is none, and fails with CI=true."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        missing("playwright is not installed: pip install '.[test]'")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, headless=True, args=list(FLAGS), timeout=LAUNCH_MILLISECONDS
        )
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two self-signed certificates, `run` and `other`, with their keys."""
    if shutil.which("openssl") is None:
        pytest.skip("the openssl command is not here to make certificates with")
    folder = tmp_path_factory.mktemp("certificates")
    for name in ("run", "other"):
        words = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj".split()
        files = ["-keyout", folder / f"{name}.key", "-out", folder / f"{name}.pem"]
        subprocess.run(["openssl", *words, f"/CN={name}", *files], check=True, capture_output=True)
    return folder
