"""Commands as a user types them, in the test's own process."""

from __future__ import annotations

from collections.abc import Callable

Command = Callable[..., tuple[int, str, str]]  # words and stdin to exit code, stdout and stderr
