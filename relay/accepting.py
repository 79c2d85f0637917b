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

Listen = tuple[str, int] | socket.socket

#: Connections that the kernel holds for us while the event loop is busy.
BACKLOG = 512
#: Connections accepted in one turn.
A_TURN = 8


async def serve(
    protocol: Callable[[], asyncio.BaseProtocol], where: Listen, tls: ssl.SSLContext | None = None
) -> asyncio.Server:
    """Listen on (host, port), port 0 for any free one, or on a bound socket, which becomes ours. Raises OSError."""
    loop = asyncio.get_running_loop()
    if isinstance(where, socket.socket):
        server = await loop.create_server(protocol, sock=where, backlog=A_TURN, ssl=tls)
    else:
        server = await loop.create_server(protocol, *where, backlog=A_TURN, ssl=tls)
    for listening in server.sockets:
        with socket.socket(fileno=os.dup(listening.fileno())) as same:
            same.listen(BACKLOG)
    return server
