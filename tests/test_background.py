"""Loops that run as long as the daemon does."""

from __future__ import annotations

import asyncio

import pytest
from structlog.testing import capture_logs

from relay import background


async def test_a_loop_that_raises_is_logged_and_begins_anew() -> None:
    turns = 0

    async def loop() -> None:
        nonlocal turns
        turns += 1
        if turns < 3:
            raise KeyError("not foreseen")

    with capture_logs() as entries:
        await background.begin("forwarding", loop, pause=0.0)
    assert turns == 3
    assert [(entry["loop"], entry["log_level"]) for entry in entries] == [("forwarding", "error")] * 2


async def test_a_loop_ends_when_it_is_cancelled() -> None:
    begun = asyncio.Event()

    async def loop() -> None:
        begun.set()
        await asyncio.Event().wait()

    task = background.begin("sweep", loop)
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
