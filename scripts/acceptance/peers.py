"""OpenNMT-py on the same device."""

from __future__ import annotations

from importlib.util import find_spec

from acceptance.outcome import Outcome, Skipped
from acceptance.setting import Setting


def check_peers(setting: Setting) -> Outcome:
    """Training speed beside OpenNMT-py's, where it is installed."""
    if find_spec("onmt") is None:
        raise Skipped("OpenNMT-py is not installed in this environment")
    raise Skipped("scripts/bench_peers.py compares on a CPU only")
