"""A real browser for tests of pages: which program that is, how it is started, and what happens where there is none."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (  # root has no sandbox, a container no GPU, and a test no business on the internet
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def find_chromium() -> str:
    """The browser's program."""
    found = next(filter(None, map(shutil.which, PROGRAMS)), None)
    return found or missing("there is no Chromium here to open pages in: install the distribution's package chromium")


def missing(reason: str) -> NoReturn:
    """Skip the test for this reason; with CI=true nothing may be missing, and it fails."""
    if os.environ.get("CI", "").lower() == "true":
        pytest.fail(f"{reason} (with CI=true that is a failure)", pytrace=False)
    pytest.skip(reason)
