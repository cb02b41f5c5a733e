"""TLS for links between hosts: one certificate for the run, shown and demanded by both sides."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from distributed.errors import DistributedError, HandshakeError, LinkClosed, LinkTimeout
from distributed.links.stream import SocketStream

_PLAIN_BYTES = 1 << 18  # encrypted at once
_RAW_BYTES = 1 << 18  # received at once


def tls_context(certificate: Path | str, key: Path | str, server_side: bool) -> ssl.SSLContext:
    """A context for one side of every link of a run.

    Both sides show `certificate` and trust it alone, whatever host name it bears: who has its key belongs to the run.
    A self-signed one does, made by
    `openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=run -days 99
    -keyout KEY -out CERTIFICATE`.

    Raises DistributedError where the files cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server_side else ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # a certificate that an authority issued is trusted by itself
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_cert_chain(certificate, key)
        context.load_verify_locations(certificate)
    except (OSError, ssl.SSLError) as error:
        reason = getattr(error, "reason", None) or error.strerror or str(error)
        raise DistributedError(
            f"certificate {certificate} with key {key} cannot be used: {reason}", where="TLS", hint="both in PEM format"
        ) from None
    return context


def tls_contexts(certificate: Path | str, key: Path | str) -> tuple[ssl.SSLContext, ssl.SSLContext] | tuple[None, None]:
    """The contexts of those who listen and of those who connect; none where there is no certificate."""
    if not certificate:
        return None, None
    return tls_context(certificate, key, server_side=True), tls_context(certificate, key, server_side=False)


class TlsStream(SocketStream):
    """A stream within TLS.

    OpenSSL's state may be used by one thread at a time, and a link has two. So encryption works on buffers in memory
    under a lock, and waits for the network are outside it.
    """

    def __init__(
        self,
        connected: socket.socket,
        context: ssl.SSLContext,
        server_side: bool,
        stall_seconds: float,
        silence_seconds: float | None = None,
    ):
        super().__init__(connected, stall_seconds, silence_seconds)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=server_side)
        self._state = threading.Lock()
        self._order = threading.Lock()  # records leave in the order in which they were encrypted
        self._raw = memoryview(bytearray(_RAW_BYTES))

    @property
    def trusted(self) -> bool:
        """See `SocketStream.trusted`: every record is authenticated."""
        return True

    def agree(self, until: float) -> None:
        """TLS's own handshake, up to a deadline by `time.monotonic()`.

        Raises HandshakeError, LinkTimeout.
        """
        try:
            while True:
                try:
                    self._tls.do_handshake()
                except ssl.SSLWantReadError:
                    super().send(self._outgoing.read())
                    if not self._feed(begun=True, until=until):
                        raise HandshakeError(
                            "the peer hung up during TLS's handshake", hint="does it use TLS?"
                        ) from None
                else:
                    super().send(self._outgoing.read())
                    return
        except ssl.SSLError as error:
            with contextlib.suppress(LinkClosed, LinkTimeout):
                super().send(self._outgoing.read())  # the alert that tells the peer why
            reason = (error.reason or str(error)).lower().replace("_", " ")
            raise HandshakeError(
                f"TLS failed: {reason}", hint="do both sides use TLS, with the same certificate?"
            ) from None

    def send(self, *parts: bytes | memoryview, descriptors: Sequence[int] = ()) -> None:
        """See `SocketStream.send`."""
        assert not descriptors, "open files travel over Unix sockets only"
        with self._order:
            for part in parts:
                for start in range(0, len(part), _PLAIN_BYTES):
                    with self._state:
                        self._tls.write(part[start : start + _PLAIN_BYTES])
                        records = self._outgoing.read()
                    super().send(records)

    def receive(self, buffer: memoryview, begun: bool = True, until: float | None = None) -> int:
        """See `SocketStream.receive`."""
        count = 0
        while count < len(buffer):
            try:
                with self._state:
                    # With a buffer to read into it returns the number of bytes.
                    arrived = cast(int, self._tls.read(len(buffer) - count, buffer[count:]))
            except ssl.SSLWantReadError:
                self._answer()
                if not self._feed(begun or count > 0, until):
                    break
                continue
            except ssl.SSLError as error:
                if isinstance(error, (ssl.SSLZeroReturnError, ssl.SSLEOFError)):
                    break
                raise LinkClosed(f"TLS failed: {(error.reason or str(error)).lower().replace('_', ' ')}") from None
            if not arrived:
                break
            count += arrived
        return count

    def _feed(self, begun: bool, until: float | None) -> int:
        """Wait for bytes from the network and hand them to TLS; 0 at the end of the stream."""
        arrived = self._arrive(self._raw, begun, until)
        with self._state:
            self._incoming.write(self._raw[:arrived])
        return arrived

    def _answer(self) -> None:
        """Send what TLS itself has to say (a key update); a writer that is at work takes it along."""
        if self._outgoing.pending and self._order.acquire(blocking=False):
            try:
                with self._state:
                    records = self._outgoing.read()
                super().send(records)
            finally:
                self._order.release()
