"""The poster over a real store, for the tests of what it posts and of when."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from aiohttp.abc import AbstractResolver
from sqlalchemy import Executable, select

from relay.core.hook import HookSettings
from relay.secrets import Keys
from relay.store.post import PostJob
from relay.store.schema import post_attempts, posts
from tests.store_fixtures import DAY, TRACK, World
from tests.webhook_receiver import Post, Step
from webapi.compose import Composer
from webapi.direct import Direct
from webapi.requests import Requester
from webapi.stored_posts import StoredPosts
from webapi.webhooks import Poster

CARD = f"card@{TRACK}"
#: Seconds between two looks at what no event announces.
LOOK = 0.005
SECRET = "whsec_" + "c2VjcmV0IHNlY3JldCBzZWNyZXQgc2VjcmV0ISE="


@contextlib.asynccontextmanager
async def posting(
    w: World,
    keys: Keys,
    grace: float = 30.0,
    per_webhook: int | None = None,
    requester: Requester | None = None,
    allow_private_addresses: bool = True,
    resolver: AbstractResolver | None = None,
    **changes: Any,
) -> AsyncIterator[Poster]:
    """``per_webhook``: every webhook's concurrency from now on. Without ``requester`` requests are made right here."""
    if per_webhook is not None:
        settings_of_all = HookSettings(concurrency=per_webhook).to_json()
        await w.store.redefine(lambda tx: tx.sql("UPDATE webhooks SET settings = ?", (settings_of_all,)))
    settings: dict[str, Any] = {"clock": lambda: w.now, "total": 50} | changes
    if requester is None:
        requester = Direct(allow_private_addresses, settings["total"], resolver)
    poster = Poster(StoredPosts(w.store), Composer(keys, "https://relay.example/", DAY), requester, **settings)
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
            await asyncio.sleep(LOOK)  # the poster's processes are nice: who looks without a pause starves them
    return rows


async def until_recorded(w: World, count: int = 1) -> list[tuple[Any, ...]]:
    """(state, status, answer) of each post, once ``count`` attempts are recorded."""
    await until(w, select(post_attempts.c.id), lambda rows: len(rows) >= count)
    return await w.rows(select(posts.c.state, posts.c.status, posts.c.answer).order_by(posts.c.id))


async def settled() -> None:
    """Let everything happen that can happen without the network."""
    for _ in range(100):
        await asyncio.sleep(0)


class Held:
    """A script that answers nobody until it is opened."""

    def __init__(self, step: Step = 200) -> None:
        self.step = step
        self._open = asyncio.Event()

    async def __call__(self, post: Post) -> Step:
        await self._open.wait()
        return self.step

    def open(self) -> None:
        self._open.set()
