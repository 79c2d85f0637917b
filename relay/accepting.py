"""Listening sockets: how many connections may wait for us, and how many are taken in one turn of the event loop.

asyncio has one number for both, and tries to accept as often as it says even when there is no descriptor left, with a
traceback for the log each time.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Callable
from typing import Any

Listen = tuple[str, int] | socket.socket

#: Connections that the kernel holds for us while the event loop is busy.
BACKLOG = 512
#: Connections accepted in one turn. Without a descriptor each try that fails plans another turn a second later, so that
#: several in a turn become ever more.
A_TURN = 1
#: Seconds in which a client must have agreed upon TLS, and in which it must answer that we end it.
HANDSHAKE = 10.0
SHUTDOWN = 5.0


async def serve(
    protocol: Callable[[], asyncio.BaseProtocol], where: Listen, tls: ssl.SSLContext | None = None
) -> asyncio.Server:
    """Listen on (host, port), port 0 for any free one, or on a bound socket, which becomes ours. Raises OSError."""
    loop = asyncio.get_running_loop()
    place: dict[str, Any] = (
        {"sock": where} if isinstance(where, socket.socket) else {"host": where[0], "port": where[1]}
    )
    server: asyncio.Server = await loop.create_server(
        protocol,
        **place,
        backlog=A_TURN,
        ssl=tls,
        ssl_handshake_timeout=HANDSHAKE if tls else None,
        ssl_shutdown_timeout=SHUTDOWN if tls else None,
    )
    for listening in server.sockets:
        with socket.socket(fileno=os.dup(listening.fileno())) as same:
            same.listen(BACKLOG)
    return server
