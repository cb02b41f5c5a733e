"""`python -m distributed.launch`: one process of a run whose coordinator waits for it (launcher `external`).

The run's token comes from S2S_LINK_TOKEN, or from the file that S2S_LINK_TOKEN_FILE names; never from the command line,
which everybody on a host can read.
"""

from __future__ import annotations

import difflib
import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from distributed.errors import DistributedError
from distributed.links.addresses import Addresses
from distributed.links.token import Token

USAGE = """\
Usage: python -m distributed.launch coordinator=HOST:PORT run=RUN [key=value ...]

One process of a run that is trained with distribution.launcher=external: its coordinator prints this command. It
plays the role that it is given until the run is over. One that comes later than the others joins in, where the
strategy can grow.

  coordinator=HOST:PORT    where the run's coordinator listens (distribution.bind)
  run=RUN                  its run id, <train_id>/s<seed>
  role=any                 any (what is missing: servers, then workers) | worker | server
  threads=0                CPU threads that compute; 0: all cores
  heartbeat_seconds=1      seconds between signs of life; at most those of the run
  tls_certificate=FILE     of a run whose links use TLS: the file of its certificate, on this host
  tls_key=FILE             and that of its key

The run's token is read from S2S_LINK_TOKEN or from the file that S2S_LINK_TOKEN_FILE names.
Exit codes: 0 the run is over, 1 it was lost or would not have this process, 2 a mistake in what was asked.
"""
ROLES = ("any", "worker", "server")


@dataclass(frozen=True)
class Options:
    """What a command line says."""

    coordinator: str
    run: str
    role: str = "any"
    threads: int = 0
    heartbeat_seconds: float = 1.0
    tls_certificate: str = ""
    tls_key: str = ""


def parse(words: Sequence[str]) -> Options:
    """Read `key=value` words. Raises DistributedError for what is none, unknown, missing or out of range."""
    known = Options.__dataclass_fields__
    given: dict[str, str] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise DistributedError(f"'{word}' is not key=value", allowed=list(known))
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            raise DistributedError(
                f"unknown key '{key}'", allowed=list(known), hint=f"did you mean {near[0]}?" if near else None
            )
        given[key] = value
    for key in ("coordinator", "run"):
        if not given.get(key):
            raise DistributedError("is missing", where=key, hint="the coordinator's log has the whole command")
    Addresses.parse(given["coordinator"], "coordinator")
    role = given.get("role", "any")
    if role not in ROLES:
        raise DistributedError(f"'{role}' is no role", where="role", allowed=ROLES)
    threads = int(_number(given, "threads", "0", least=0, integer=True))
    beat = _number(given, "heartbeat_seconds", "1", least=0.01)
    certificate, key = given.get("tls_certificate", ""), given.get("tls_key", "")
    if bool(certificate) != bool(key):
        raise DistributedError("is needed beside the other", where="tls_key" if certificate else "tls_certificate")
    return Options(given["coordinator"], given["run"], role, threads, beat, certificate, key)


def _number(given: dict[str, str], key: str, usual: str, least: float, integer: bool = False) -> float:
    text = given.get(key, usual)
    try:
        value = int(text) if integer else float(text)
    except ValueError:
        raise DistributedError(f"'{text}' is no number", where=key) from None
    if not least <= value < 3600:
        raise DistributedError(f"{text} is out of range", where=key, allowed=[f"{least:g} to 3600"])
    return value


def main(words: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    words = sys.argv[1:] if words is None else words
    if not words or any(word in ("--help", "-h", "help") for word in words):
        print(USAGE, end="")
        return 0
    try:
        options = parse(words)
        token = Token.from_environment()
    except DistributedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        _join(options, token)
    except DistributedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        return 130
    return 0


def _join(options: Options, token: Token) -> None:
    if options.threads:
        os.environ["OMP_NUM_THREADS"] = str(options.threads)
    import torch

    from distributed.agent import serve

    if options.threads:
        torch.set_num_threads(options.threads)
    name = f"{socket.gethostname()}:{os.getpid()}"
    tls = (options.tls_certificate, options.tls_key)
    serve(options.coordinator, token, options.run, options.role, options.heartbeat_seconds, name, tls=tls)


if __name__ == "__main__":
    sys.exit(main())
