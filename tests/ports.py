"""A port of loopback that refuses connections until somebody listens on it who was told to."""

from __future__ import annotations

import socket


def dead_port() -> int:
    """A port where nobody listens: bound as long as this process lives, so that the kernel gives it to nobody else,
    neither who asks for any port nor who connects. Whoever names it may listen on it, with SO_REUSEADDR as all servers.
    """
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("127.0.0.1", 0))
    port: int = sock.getsockname()[1]
    sock.detach()
    return port
