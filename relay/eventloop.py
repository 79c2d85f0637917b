"""The event loop of the daemon and its poster: uvloop, which does in C what asyncio's own does in Python.

With one message a connection half as many again pass (docs/performance.md). Requests to receivers are made on asyncio's
own, which goes by the methods of a socket (webapi/guard.py): uvloop takes its descriptor and goes past them.

Where the two differ: a transport whose connection is lost takes no call any more, time goes by milliseconds, and
``start_tls`` may return a transport that is closed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TypeVar

import uvloop

T = TypeVar("T")

new = uvloop.new_event_loop


def run(main: Coroutine[object, object, T]) -> T:
    """asyncio.run() with our loop."""
    with asyncio.Runner(loop_factory=new) as runner:
        return runner.run(main)


async def apart(main: Callable[[], Coroutine[object, object, T]]) -> T:
    """What ``main`` makes, run on a loop of asyncio's own in a thread of its own: it shares nothing with this one."""
    return await asyncio.to_thread(lambda: asyncio.run(main()))
