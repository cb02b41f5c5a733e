"""Stands in for `nmt.train.train` in tests of executors: what happens is told by the run's label, in milliseconds.

steady    finishes at once, with BLEU 10 + seed
crashes   the process dies without a word at its first attempt, then finishes
dies      the process dies at every attempt
raises    fails at every attempt
waits     runs until SIGTERM, then ends as interrupted
"""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
from types import SimpleNamespace

from finished_runs import finish

from nmt.config import RunConfig
from nmt.config.identity import run_id
from nmt.runs import LocalRunStore


def train(config: RunConfig, *, timing: str) -> SimpleNamespace:
    """The signature of `nmt.train.train`, as far as executors use it."""
    store, name = LocalRunStore(config.paths.runs), run_id(config)
    with store.claim(name):
        before = store.status(name)
        status = dataclasses.replace(before, state="running", attempts=before.attempts + 1, max_steps=100)
        waits = config.label == "waits" and threading.current_thread() is threading.main_thread()
        if waits:
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        store.set_status(name, status)
        if config.label == "dies" or (config.label == "crashes" and status.attempts == 1):
            os._exit(9)
        if config.label == "raises":
            raise ValueError("no luck")
        if config.label == "waits":
            if waits:
                signal.sigwait([signal.SIGTERM])
            else:
                threading.Event().wait()
            store.set_status(name, dataclasses.replace(status, state="interrupted", step=40))
            return SimpleNamespace(state="interrupted")
        finish(config, 10.0 + config.seed, timing=timing)
        store.set_status(name, dataclasses.replace(status, state="finished", step=100))
        return SimpleNamespace(state="finished")
