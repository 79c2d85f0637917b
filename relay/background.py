"""Loops that run as long as the daemon does. None ends unnoticed: what it did not foresee is logged, and it goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import structlog

log = structlog.get_logger()

#: Seconds until a loop that failed begins anew.
PAUSE = 5.0


def begin(name: str, loop: Callable[[], Coroutine[Any, Any, None]], pause: float = PAUSE) -> asyncio.Task[None]:
    """Run ``loop()`` until it returns or is cancelled; after an exception it is called again, ``pause`` seconds later.

    So a loop must be able to begin at any time. ``name`` is for the log.
    """
    return asyncio.create_task(_again(name, loop, pause), name=name)


async def _again(name: str, loop: Callable[[], Coroutine[Any, Any, None]], pause: float) -> None:
    while True:
        try:
            return await loop()
        except Exception:
            log.exception("background loop failed, it begins anew", loop=name, seconds=pause)
        await asyncio.sleep(pause)
