"""The event loop of the daemon and its poster: uvloop, which does in C what asyncio's own does in Python.

With one message a connection a third more pass (docs/performance.md). Requests to receivers are made on asyncio's
own, which goes by the methods of a socket (webapi/guard.py): uvloop takes its descriptor and goes past them.

Where the two differ: a transport whose connection is lost takes no call any more, time goes by milliseconds, and
``start_tls`` may return a transport that is closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import TypeVar

import uvloop

T = TypeVar("T")

new = uvloop.new_event_loop


def run(main: Coroutine[object, object, T]) -> T:
    """asyncio.run() with our loop."""
    with asyncio.Runner(loop_factory=new) as runner:
        return runner.run(main)


async def apart(main: Callable[[], Coroutine[object, object, T]]) -> T:
    """What ``main`` makes, run on a loop of asyncio's own in a thread of its own: it shares nothing with this one.

    Not a thread of the loop's pool: the few there write letters, which must not wait for a receiver. Who is cancelled
    here cancels ``main``.
    """
    made: Future[T] = Future()
    made.set_running_or_notify_cancel()
    begun: Future[Callable[[], object]] = Future()

    async def within() -> T:
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        begun.set_result(lambda: loop.call_soon_threadsafe(task.cancel))
        return await main()

    def run() -> None:
        try:
            result = asyncio.run(within())
        except BaseException as error:
            made.set_exception(error)
        else:
            made.set_result(result)

    threading.Thread(target=run, name="apart", daemon=True).start()
    try:
        return await asyncio.wrap_future(made)
    except asyncio.CancelledError:
        begun.add_done_callback(_stop)
        raise


def _stop(begun: Future[Callable[[], object]]) -> None:
    with contextlib.suppress(RuntimeError):  # its loop has ended by itself
        begun.result()()
