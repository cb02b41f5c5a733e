"""An agent's end of its link to the coordinator."""

from __future__ import annotations

import json
from typing import Any

from distributed.agent import Control
from distributed.errors import LinkClosed
from distributed.links.frames import Frame


class RecordedLink:
    """Notes what is asked of it. `ends_at`: what it fails at."""

    def __init__(self, ends_at: str = ""):
        self.asked: list[Any] = []
        self._ends_at = ends_at

    def start(self, *callbacks: Any) -> None:
        pass

    def send(self, frame: Frame, payload: bytes) -> None:
        self._ask("send", json.loads(bytes(payload)))

    def flush(self) -> None:
        self._ask("flush")

    def _ask(self, what: str, *about: Any) -> None:
        self.asked.append((what, *about))
        if what == self._ends_at:
            raise LinkClosed("closed by the other side", orderly=True)


def test_a_word_that_has_to_arrive_is_written_before_anything_else_is_done() -> None:
    link = RecordedLink()
    control = Control(link)  # type: ignore[arg-type]
    control.tell({"say": "pulse"})
    control.tell({"say": "computed"}, written=True)
    assert link.asked == [("send", {"say": "pulse"}), ("send", {"say": "computed"}), ("flush",)]


def test_where_the_coordinator_is_gone_nobody_is_told() -> None:
    for step in ("send", "flush"):
        link = RecordedLink(ends_at=step)
        Control(link).tell({"say": "computed"}, written=True)  # type: ignore[arg-type]
        assert link.asked[-1][0] == step
