"""The secret that the processes of one run share, and the only way in."""

from __future__ import annotations

import hmac
import os
import secrets
import stat
from pathlib import Path

from distributed.errors import DistributedError

ENVIRONMENT = "S2S_LINK_TOKEN"
FILE_ENVIRONMENT = "S2S_LINK_TOKEN_FILE"
_LEAST_BYTES = 16


class Token:
    """A shared secret. It comes from a file or the environment, never from a command line, and never shows itself."""

    __slots__ = ("_secret",)

    def __init__(self, secret: bytes, where: str = "the link token"):
        if len(secret) < _LEAST_BYTES:
            raise DistributedError(
                "is missing" if not secret else f"has fewer than {_LEAST_BYTES} characters",
                where=where,
                hint="make one with: python -c 'import secrets; print(secrets.token_hex(32))'",
            )
        self._secret = secret

    @classmethod
    def generate(cls) -> Token:
        """A new one, for a run whose processes are all started from here."""
        return cls(secrets.token_hex(32).encode())

    @classmethod
    def from_file(cls, path: Path | str) -> Token:
        """The content of a file that only its owner can read, without the white space around it."""
        where = f"token file {path}"
        try:
            with Path(path).open("rb") as file:
                mode = os.fstat(file.fileno()).st_mode
                secret = file.read().strip()
        except OSError as error:
            raise DistributedError(error.strerror or str(error), where=where) from None
        if stat.S_IMODE(mode) & 0o077:
            raise DistributedError("others may read it", where=where, hint="chmod 600 makes it yours alone")
        return cls(secret, where)

    @classmethod
    def from_environment(cls) -> Token:
        """What S2S_LINK_TOKEN holds, or the file that S2S_LINK_TOKEN_FILE names."""
        secret, path = os.environ.get(ENVIRONMENT, ""), os.environ.get(FILE_ENVIRONMENT, "")
        if path and not secret:
            return cls.from_file(path)
        return cls(secret.strip().encode(), f"the link token ({ENVIRONMENT} or {FILE_ENVIRONMENT})")

    def reveal(self) -> str:
        """The secret itself: for the environment of a process that is started, and nothing else."""
        return self._secret.decode()

    def proof(self, side: str, transcript: bytes) -> str:
        """What only a holder of the secret can say about a handshake (HMAC-SHA256)."""
        return hmac.new(self._secret, side.encode() + b"\0" + transcript, "sha256").hexdigest()

    def proves(self, proof: object, side: str, transcript: bytes) -> bool:
        """Whether `proof` is that of the other side; takes the same time whatever is wrong with it."""
        return hmac.compare_digest(self.proof(side, transcript).encode(), str(proof).encode())

    def __repr__(self) -> str:
        return "Token(…)"
