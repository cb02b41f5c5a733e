"""Errors of the distribution backends: one line that says what, where, what is allowed and what to do next.

`distributed` knows nothing of `nmt`, which turns what a person caused (`DistributedError`) into its own `UserError` at
the boundary. All of them can be pickled, because they cross process borders.
"""

from __future__ import annotations

from collections.abc import Sequence


class DistributedError(Exception):
    """Something about a distributed run that a person can mend or must know, told in one line.

    Parameters
    ----------
    what: the mistake or event itself, as a short clause.
    where: the config key, process or peer that it concerns.
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
        return (_rebuild, (type(self), dict(vars(self))))


def _rebuild(cls: type[DistributedError], attributes: dict[str, object]) -> DistributedError:
    error = cls.__new__(cls)
    error.__dict__.update(attributes)
    Exception.__init__(error, str(error))
    return error


class LinkError(DistributedError):
    """A link between two processes has ended, or could not be made. Its children say why."""


class LinkClosed(LinkError):
    """The link was closed by one of its ends.

    orderly: the end was meant: this side closed it, or the peer said goodbye first. False where the connection broke,
        which is how the death of a process looks.
    """

    def __init__(self, what: str, *, orderly: bool = False, where: str | None = None, hint: str | None = None):
        self.orderly = orderly
        super().__init__(what, where=where, hint=hint)


class LinkTimeout(LinkError):
    """A deadline passed: the peer took or sent nothing for too long."""


class FrameError(LinkError):
    """What arrived is no frame, or not the next one: magic, version, checksum, sequence, length or truncation."""


class HandshakeError(LinkError):
    """The other end is not who it should be, or would not have us: token, run, role, number, epoch or version."""
