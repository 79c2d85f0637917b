"""What runs on a loop of its own beside the daemon's."""

from __future__ import annotations

import asyncio
import threading

import pytest

from relay import eventloop
from tests.smtp_client import PATIENCE

#: More than any pool of threads would hold here.
MANY = 40


async def test_what_runs_apart_takes_no_thread_from_the_pool_and_is_cancelled_with_who_waits_for_it() -> None:
    begun, ended = threading.Semaphore(0), threading.Semaphore(0)

    async def hangs() -> None:
        begun.release()
        try:
            await asyncio.Event().wait()
        finally:
            ended.release()

    waiting = [asyncio.create_task(eventloop.apart(hangs)) for _ in range(MANY)]
    async with asyncio.timeout(PATIENCE):
        await asyncio.to_thread(lambda: [begun.acquire() for _ in waiting])
        for task in waiting:
            task.cancel()
        await asyncio.to_thread(lambda: [ended.acquire() for _ in waiting])
    assert {type(one) for one in await asyncio.gather(*waiting, return_exceptions=True)} == {asyncio.CancelledError}


async def test_what_fails_apart_fails_here() -> None:
    async def fails() -> None:
        raise LookupError("so it is")

    with pytest.raises(LookupError, match="so it is"):
        await eventloop.apart(fails)
