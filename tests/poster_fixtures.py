"""The poster over a real store, for the tests of what it posts and of when."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from sqlalchemy import Executable, select

from relay.secrets import Keys
from relay.store.events import PostJob
from relay.store.schema import post_attempts, posts
from tests.store_fixtures import DAY, TRACK, World
from webapi.webhooks import Poster

CARD = f"card@{TRACK}"
SECRET = "whsec_" + "c2VjcmV0IHNlY3JldCBzZWNyZXQgc2VjcmV0ISE="


@contextlib.asynccontextmanager
async def posting(w: World, keys: Keys, grace: float = 30.0, **changes: Any) -> AsyncIterator[Poster]:
    settings: dict[str, Any] = {
        "public_url": "https://relay.example/",
        "links_live_for": DAY,
        "allow_private_addresses": True,
        "clock": lambda: w.now,
    }
    poster = Poster(w.store, keys, **settings | changes)
    await poster.start()
    try:
        yield poster
    finally:
        await poster.close(grace)


async def jobs(w: World, count: int = 1, claim: str | None = None, **changes: Any) -> list[PostJob]:
    """New messages to the card, extracted; with ``claim`` the jobs of their posts. Their texts count from 0."""
    found = []
    for number in range(count):
        accepted = await w.accept(CARD, body=f"{number} {changes} {w.now}".encode())
        found += await w.extract(accepted.message_id, claim, **{"text": str(number)} | changes)
    return found


async def until(w: World, query: Executable, done: Callable[[list[tuple[Any, ...]]], bool]) -> list[tuple[Any, ...]]:
    """The rows of a query as soon as they are as they should be."""
    async with asyncio.timeout(30):
        while not done(rows := await w.rows(query)):
            pass
    return rows


async def until_recorded(w: World, count: int = 1) -> list[tuple[Any, ...]]:
    """(state, status, answer) of each post, once ``count`` attempts are recorded."""
    await until(w, select(post_attempts.c.id), lambda rows: len(rows) >= count)
    return await w.rows(select(posts.c.state, posts.c.status, posts.c.answer).order_by(posts.c.id))
