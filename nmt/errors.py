"""Errors that speak to the person at the keyboard."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from nmt.passwords import without_password

if TYPE_CHECKING:
    from distributed.strategy import DistributedError


class UserError(Exception):
    """A mistake that a person can mend, told in one line: what was wrong, where, what is allowed, what to do next.

    The command line prints it without a traceback and exits with code 2; anything else that is raised is a bug of
    ours. Passwords in addresses are left out of the line.

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

    @classmethod
    def of(cls, error: DistributedError) -> UserError:
        """What `distributed`, which knows nothing of us, says in the same four parts.

        Its class has no base in common with ours: this module has to be there before anything of `distributed` is
        loaded, to say that another package answers to that name.
        """
        return cls(error.what, where=error.where, allowed=error.allowed, hint=error.hint)

    def __str__(self) -> str:
        parts = [f"{self.where}: {self.what}" if self.where else self.what]
        if self.allowed:
            parts.append(f"allowed: {', '.join(self.allowed)}")
        if self.hint:
            parts.append(self.hint)
        return without_password("; ".join(parts))

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions cross process borders (executors); keyword-only arguments need help to be pickled.
        return (_rebuild, (type(self), self.what, self.where, self.allowed, self.hint))


def _rebuild(
    cls: type[UserError], what: str, where: str | None, allowed: Sequence[str] | None, hint: str | None
) -> UserError:
    return cls(what, where=where, allowed=allowed, hint=hint)


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """`"did you mean a or b?"` for the known names nearest to `word`, or None where none is near."""
    near = difflib.get_close_matches(word, list(dict.fromkeys(known)), n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}?" if near else None
