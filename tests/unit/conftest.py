"""Fixtures that unit tests share."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


def pytest_collection_finish(session: pytest.Session) -> None:
    """What the imports have made lives as long as the tests, and the collector need not look through it each time.

    Composing a configuration makes many small objects: looking for cycles took a tenth of all the time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small products only lose by a second thread, and much where other processes want the cores; draws are alike."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)  # what a test draws does not hang on those before it, which depend on who had time for them
    yield
    torch.set_num_threads(before)
