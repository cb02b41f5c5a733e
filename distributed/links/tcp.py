"""Links between hosts."""

from __future__ import annotations

from distributed.links.socket_link import SocketLink


class TcpLink(SocketLink):
    """A link over TCP, with or without TLS: payloads go from the sender's memory to the socket to their place."""

    def local_host(self) -> str:
        """The address under which the peer can reach this host."""
        return str(self._stream.socket.getsockname()[0])
