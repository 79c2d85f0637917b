"""The store as the poster's (webapi/post_store.py)."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

from relay.store import posts
from relay.store.post import PostJob, PostResult
from relay.store.store import Store


async def _at_once() -> None:
    pass


class StoredPosts:
    """The store itself. ``lull`` waits for a good moment: for a transaction that nobody waits for."""

    def __init__(self, store: Store, claim: str | None = None, lull: Callable[[], Awaitable[None]] = _at_once) -> None:
        self._store = store
        self.claim = claim or new_claim()
        self._lull = lull

    @property
    def edition(self) -> int:
        return self._store.writer.edition.number

    async def due(self, now: float) -> list[int]:
        return [row[0] for row in await self._store.reader.run(posts.DUE_WEBHOOKS, now=now)]

    async def take(self, capacity: Mapping[int, int], now: float, held: Collection[int]) -> list[PostJob]:
        await self._lull()
        return await self._store.write(lambda tx: posts.claim_posts(tx, capacity, self.claim, now, held))

    async def next_at(self, now: float) -> float | None:
        ((found,),) = await self._store.reader.run(posts.NEXT_POST, now=now)
        at: float | None = found
        return at

    async def release(self, jobs: Sequence[PostJob]) -> None:
        await self._store.write(lambda tx: posts.release_posts(tx, jobs))

    async def tried(self, webhook: int, before: float | None) -> list[int]:
        if before is None:
            rows = await self._store.reader.run(posts.TRIED, webhook=webhook)
        else:
            rows = await self._store.reader.run(posts.TRIED_BEFORE, webhook=webhook, before=before)
        return sorted(row[0] for row in rows)

    async def hasten(self, post_ids: Sequence[int], begin: float, now: float) -> None:
        await self._store.write(lambda tx: posts.hasten(tx, post_ids, begin, now))

    async def finish(self, results: Sequence[PostResult], now: float) -> None:
        disables = any(result.disable_webhook is not None for result in results)
        if not disables and all(result.deal is None for result in results):
            await self._lull()
        # A disabled webhook shows in the directory of sites.
        write = self._store.redefine if disables else self._store.write
        await write(lambda tx: [posts.finish_post(tx, result, now) for result in results])


def new_claim() -> str:
    return secrets.token_hex(8)
