"""How a gang of processes ended, told from what is known of its processes when somebody looks."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from sweeps.studies.gang_process import Gang

FAILED, KILLED = 1 << 8, 9  # wait statuses


@pytest.mark.parametrize(
    ("ended", "kills", "told"),
    [
        ({0: 0}, 0, "trained"),
        ({0: 0, 1: 0, 2: 0}, 0, "trained"),
        ({1: KILLED}, 1, "killed"),
        ({1: KILLED}, 0, "lost"),
        ({0: FAILED}, 0, "failed"),
        ({0: FAILED, 1: KILLED}, 1, "killed"),  # the coordinator was quicker to end than anybody to look
        ({0: FAILED, 1: KILLED}, 0, "failed"),
    ],
)
def test_who_the_kernel_killed_is_said_whatever_ended_of_it(ended: dict[int, int], kills: int, told: str) -> None:
    gang = Gang({"log": "log", "roles": ["worker", "worker"], "mbit": 0.0, "seconds": 60.0})
    gang.ended = ended
    gang.groups = {1: SimpleNamespace(kills=kills, peak_bytes=5)}  # type: ignore[dict-item]
    assert gang._wait() == {"ended": told, "peak_bytes": 5, "statuses": ended}
