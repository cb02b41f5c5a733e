"""Shared by integration tests: one local Ray cluster a session, for those that are marked `ray`."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """A cluster of 2 CPUs in this session's name; skips with a reason where ray is not installed."""
    ray = pytest.importorskip("ray", reason="ray is not installed")
    from sweeps.executors.ray_tune import ENVIRONMENT

    here = Path(__file__).resolve().parent
    path = [str(here), str(here.parent), os.environ.get("PYTHONPATH", "")]  # for fake_training and what it imports
    os.environ.update(ENVIRONMENT, PYTHONPATH=os.pathsep.join(filter(None, path)))
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=100 * 2**20,
        logging_level=logging.ERROR,
        log_to_driver=False,
    )
    yield
    ray.shutdown()
