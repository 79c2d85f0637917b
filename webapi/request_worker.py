"""The process that makes the poster's requests to receivers: started by webapi/request_process.py.

It talks to strangers and is given nothing, no key, no database, no file; its standard input is a socket to the poster.
When that dies the socket ends, and with it this process and what is under way.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import resource
import signal
import socket
import sys

from webapi.direct import Direct
from webapi.request_frames import READY, REQUEST, pack_answer, read_request
from webapi.requests import Request


async def serve(channel: socket.socket, requester: Direct) -> None:
    reader, writer = await asyncio.open_connection(sock=channel)
    await requester.open()
    writer.write(READY)
    under_way: set[asyncio.Task[None]] = set()

    async def answer(number: int, request: Request) -> None:
        writer.write(pack_answer(number, await requester.request(request)))

    try:
        while True:
            number, head, body = REQUEST.unpack(await reader.readexactly(REQUEST.size))
            request = read_request(await reader.readexactly(head), await reader.readexactly(body))
            task = asyncio.create_task(answer(number, request))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
    except (asyncio.IncompleteReadError, ConnectionError):
        pass  # the daemon wants no more, or is gone
    for task in under_way:
        task.cancel()
    await asyncio.gather(*under_way, return_exceptions=True)
    await requester.close()


def main(arguments: list[str]) -> None:
    """``arguments``: whether private addresses are allowed (0 or 1), connections at once, octets of memory."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the daemon ends us when its last post is done
    allow_private, connections, memory = map(int, arguments)
    for kind, most in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CORE, 0)):
        with contextlib.suppress(OSError, ValueError):  # macOS has no RLIMIT_AS; a limit may be lower already
            resource.setrlimit(kind, (most, most))
    gc.freeze()
    with socket.socket(fileno=sys.stdin.fileno()) as channel:
        asyncio.run(serve(channel, Direct(bool(allow_private), connections)))


if __name__ == "__main__":
    main(sys.argv[1:])
