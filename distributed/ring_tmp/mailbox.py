"""What has come for a node and was not taken yet. Here, and nowhere else, does a node wait.

Threads that receive put messages in; the thread that computes takes them out between two tasks. Activations and their
gradients lie by key until the task that they are for is due; everything else comes out in the order in which it came.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

from distributed.errors import FrameError
from distributed.ring_tmp.messages import Kind


class Key(NamedTuple):
    """What an activation, or a gradient of one, is: `stage` is the one that reads the activation."""

    step: int
    kind: Kind
    stage: int
    slot: int

    def __str__(self) -> str:
        return f"{self.kind.name} for stage {self.stage}, slot {self.slot} of step {self.step}"


class Mailbox:
    """Messages by key, and events in order.

    A neighbour may have entered an epoch that this node is still to enter: what it sends is kept, and looked at by
    `enter`.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._epoch, self._is_closed = 0, False
        self._expects: Callable[[Key], bool] = lambda key: False
        self._limit = 0
        self._payloads: dict[Key, Any] = {}
        self._ahead: dict[int, dict[Key, Any]] = {}
        self._events: deque[Any] = deque()
        self._news = 0  # counts what came
        self._seen = 0  # of it, when the node last looked

    def enter(self, epoch: int, expects: Callable[[Key], bool], limit: int) -> None:
        """Forget the messages of older epochs, and take those of this one.

        expects: whether a message is one that the node still needs; called by threads that receive.
        limit: the most messages that can wait if neighbours keep to the rules.

        Raises FrameError where one that came ahead is refused.
        """
        with self._changed:
            self._epoch, self._expects, self._limit, self._is_closed = epoch, expects, limit, False
            self._payloads = {}
            ahead = self._ahead.pop(epoch, {})
            self._ahead = {later: some for later, some in self._ahead.items() if later > epoch}
            for key, payload in ahead.items():
                self._put(key, payload)

    def close(self) -> None:
        """Throw away what comes of this epoch from now on: a new neighbour may not know yet that it is over."""
        with self._changed:
            self._is_closed = True

    def put(self, epoch: int, key: Key, payload: Any) -> None:
        """Take a message in; one of an epoch that is over is thrown away.

        Raises FrameError for one that has come before, that nobody here waits for, or that is one too many: the link
        that brought it is not to be trusted any more.
        """
        with self._changed:
            if epoch == self._epoch and not self._is_closed:
                self._put(key, payload)
            elif epoch > self._epoch:
                self._insert(self._ahead.setdefault(epoch, {}), key, payload)
            else:
                return
            self._wake()

    def post(self, event: Any) -> None:
        """Take in something that is no activation: other messages, ends of links, wishes of the process around."""
        with self._changed:
            self._events.append(event)
            self._wake()

    def events(self) -> list[Any]:
        """What was posted since the last call, in order."""
        with self._changed:
            self._seen = self._news
            events = list(self._events)
            self._events.clear()
            return events

    def take(self, key: Key) -> Any:
        """The payload of a message that is here."""
        with self._changed:
            return self._payloads.pop(key)

    def __contains__(self, key: object) -> bool:
        with self._changed:
            return key in self._payloads

    def __len__(self) -> int:
        with self._changed:
            return len(self._payloads) + sum(map(len, self._ahead.values()))

    def wait(self, seconds: float | None = None) -> bool:
        """Return once something has come since the last call of `events`, or False after so many seconds.

        A node that finds no task calls `events` first: what comes while it looks for one is news again.
        """
        with self._changed:
            return self._changed.wait_for(lambda: self._news != self._seen, seconds)

    def _put(self, key: Key, payload: Any) -> None:
        if not self._expects(key):
            raise FrameError(f"nobody here waits for {key}")
        self._insert(self._payloads, key, payload)

    def _insert(self, into: dict[Key, Any], key: Key, payload: Any) -> None:
        if key in into:
            raise FrameError(f"{key} has come twice")
        if self._limit and len(into) >= self._limit:
            raise FrameError(f"{key} is more than the {self._limit} messages that can wait here")
        into[key] = payload

    def _wake(self) -> None:
        self._news += 1
        self._changed.notify_all()
