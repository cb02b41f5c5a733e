"""Errors that speak to the person at the keyboard."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class UserError(Exception):
    """A mistake that a person can mend, told in one line: what was wrong, where, what is allowed, what to do next.

    The command line prints it without a traceback and exits with code 2; anything else that is raised is a bug of
    ours.

    Parameters
    ----------
    what: the mistake itself, as a short clause.
    where: config key, `file:line` or command-line word that it concerns.
    allowed: the values that would have been accepted.
    hint: the next thing to do.
    """

    def __init__(
        self, what: str, *, where: str | None = None, allowed: Sequence[str] | None = None, hint: str | None = None
    ):
        self.what, self.where, self.allowed, self.hint = what, where, allowed, hint
        super().__init__(str(self))

    def __str__(self) -> str:
        parts = [f"{self.where}: {self.what}" if self.where else self.what]
        if self.allowed:
            parts.append(f"allowed: {', '.join(self.allowed)}")
        if self.hint:
            parts.append(self.hint)
        return "; ".join(parts)

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions cross process borders (executors); keyword-only arguments need help to be pickled.
        return (_rebuild, (type(self), self.what, self.where, self.allowed, self.hint))


def _rebuild(
    cls: type[UserError], what: str, where: str | None, allowed: Sequence[str] | None, hint: str | None
) -> UserError:
    return cls(what, where=where, allowed=allowed, hint=hint)


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """`"did you mean a or b?"` for the known names nearest to `word`, or None where none is near."""
    near = difflib.get_close_matches(word, list(known), n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else None
