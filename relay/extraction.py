"""Reading accepted messages: text and attachments from the worker processes into the store, then the search index.

Posting waits for this and for nothing else. Polling the store is the truth; what intake hands over is a short cut.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from relay.bodies import Bodies, Body
from relay.extract import Extractor, ExtractorClosed
from relay.store import events, search
from relay.store.engine import StoreUnavailable
from relay.store.events import PostJob
from relay.store.store import Store

log = structlog.get_logger()

#: Octets of bodies held in memory until a worker has read them, and messages under way.
MEMORY = 32 * 1024 * 1024
IN_FLIGHT = 2000
#: Messages taken from the store at once.
BITE = 100
#: Seconds between two looks at the store when nothing wakes us.
POLL = 5.0


class Extraction:
    """Hands messages to the workers and their results to the store; ``on_posts`` takes the posts that come of it."""

    def __init__(
        self,
        store: Store,
        bodies: Bodies,
        extractor: Extractor,
        *,
        claim: str,
        on_posts: Callable[[list[PostJob]], None],
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._bodies = bodies
        self._extractor = extractor
        self._claim = claim
        self._on_posts = on_posts
        self._clock = clock
        self._under_way: dict[int, asyncio.Task[None]] = {}
        self._memory = 0
        self._left_behind = False  # messages wait in the store that nobody has in hand
        self._work = asyncio.Event()
        self._unindexed = asyncio.Event()
        self._loops: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        await self._extractor.start()
        self._work.set()
        self._unindexed.set()
        self._loops = [asyncio.create_task(self._poll()), asyncio.create_task(self._index())]

    def submit(self, message_id: int, body: Body) -> None:
        """Read this message now, if there is room; else it is found in the store later."""
        size = len(body.data or b"")
        if len(self._under_way) >= IN_FLIGHT or self._memory + size > MEMORY:
            self._left_behind = True
            return
        self._begin(message_id, body.data, body.file)

    async def close(self, grace: float) -> None:
        """Let what is under way finish for ``grace`` seconds; the rest is found again at the next start."""
        for loop in self._loops:
            loop.cancel()
        if self._under_way:
            await asyncio.wait(self._under_way.values(), timeout=grace)
        for task in self._under_way.values():
            task.cancel()
        await asyncio.gather(*self._under_way.values(), *self._loops, return_exceptions=True)
        await self._extractor.close()

    def _begin(self, message_id: int, data: bytes | None, file: str | None) -> None:
        size = len(data or b"")
        self._memory += size
        task = asyncio.create_task(self._read(message_id, data, file))
        self._under_way[message_id] = task
        task.add_done_callback(lambda _: self._end(message_id, size))

    def _end(self, message_id: int, size: int) -> None:
        del self._under_way[message_id]
        self._memory -= size
        if self._left_behind and len(self._under_way) < IN_FLIGHT // 4:
            self._work.set()

    async def _read(self, message_id: int, data: bytes | None, file: str | None) -> None:
        source = data if data is not None else self._bodies.path(file or "")
        try:
            result = await self._extractor.extract(source)
            now = self._clock()
            posts = await self._store.write(lambda tx: events.extracted(tx, message_id, result, now, self._claim))
        except ExtractorClosed:
            return
        except StoreUnavailable as error:
            log.error("extraction waits for the store", message=message_id, error=str(error))
            return
        self._unindexed.set()
        if posts:
            self._on_posts(posts)

    async def _poll(self) -> None:
        """Find what was not handed over: after a start, a full house or a failed store."""
        while True:
            try:
                async with asyncio.timeout(POLL):
                    await self._work.wait()
            except TimeoutError:
                pass  # look again
            self._work.clear()
            self._left_behind = False
            try:
                await self._catch_up()
            except StoreUnavailable:
                continue  # the writer has logged why

    async def _catch_up(self) -> None:
        after = 0
        while len(self._under_way) < IN_FLIGHT // 2 and self._memory < MEMORY:
            found = await self._store.write(lambda tx: events.unextracted(tx, after, BITE), idle=True)  # noqa: B023
            for message_id, data, file in found:
                if message_id not in self._under_way:
                    self._begin(message_id, data, file)
            if len(found) < BITE:
                return
            after = found[-1][0]
        self._left_behind = True

    async def _index(self) -> None:
        """Feed the search index in small bites, each when the writer has nothing else to do."""
        while True:
            await self._unindexed.wait()
            self._unindexed.clear()
            try:
                while await self._store.write(search.index, idle=True):
                    pass
            except StoreUnavailable as error:
                log.error("indexing waits for the store", error=str(error))
                await asyncio.sleep(POLL)
                self._unindexed.set()
