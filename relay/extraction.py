"""Reading accepted messages: text and attachments from the worker processes into the store, then the search index.

Posting waits for this and for nothing else. Polling the store is the truth; what intake hands over is a short cut.

Mail goes first: while messages come in thick they wait to be read, each for LAG at most (relay/pace.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import structlog

from relay import background
from relay.bodies import Bodies, Body
from relay.extract import Extractor, ExtractorClosed
from relay.pace import LAG, WINDOW, Pace, is_ahead
from relay.store import events, search
from relay.store.engine import StoreUnavailable, Turn
from relay.store.post import PostJob
from relay.store.store import Store

log = structlog.get_logger()

#: Octets of bodies held in memory until a worker has read them, and messages in hand.
MEMORY = 64 * 1024 * 1024
IN_HAND = 10_000
#: Messages read at once: enough for the workers to have a batch each and the next one ready.
AT_ONCE = 256
#: Messages taken from the store at once.
BITE = 100
#: Seconds between two looks at the store when nothing wakes us.
POLL = 5.0
#: Seconds in which messages gather for the index: a transaction for each would keep the writer from more urgent ones.
GATHER = 0.25


@dataclass(frozen=True, slots=True)
class _Message:
    """A message in hand that is not being read yet; ``latest`` is when it is begun, however thick mail comes in."""

    id: int
    data: bytes | None
    file: str | None
    latest: float


class Extraction:
    """Hands messages to the workers and their results to the store; ``on_posts`` takes the posts that come of it.

    ``claim`` says by what posts are claimed, None: none is; ``passes_over`` for which webhooks they are not.
    ``on_posts`` is told which webhooks have one in the store.
    ``pace`` is told of every message, and says when to wait.
    """

    def __init__(
        self,
        store: Store,
        bodies: Bodies,
        extractor: Extractor,
        *,
        claim: Callable[[], str | None],
        on_posts: Callable[[list[PostJob], set[int]], None],
        passes_over: Callable[[], frozenset[int]] = frozenset,
        clock: Callable[[], float],
        pace: Pace | None = None,
    ) -> None:
        self._store = store
        self._bodies = bodies
        self._extractor = extractor
        self._claim = claim
        self._on_posts = on_posts
        self._passes_over = passes_over
        self._clock = clock
        self._pace = pace or Pace()
        self._waiting: dict[int, _Message] = {}  # the oldest first
        self._reading: dict[int, asyncio.Task[None]] = {}
        self._memory = 0
        self._left = 0  # messages that were left in the store, since ever
        self._behind = False  # some are there still; newer ones follow them
        self._behind_until = 0.0  # then they are taken, however thick mail comes in
        self._look_at = 0.0  # when to look into the store though nobody left anything there
        self._work = asyncio.Event()
        self._unindexed = asyncio.Event()
        self._loops: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        await self._extractor.start()
        self._unindexed.set()
        self._loops = [background.begin("extraction", self._poll), background.begin("indexing", self._index)]

    def submit(self, message_id: int, body: Body) -> None:
        """Read this message when its turn comes; if there is no room for it, it is found in the store later."""
        now = self._clock()
        if self._behind or not self._has_room(len(body.data or b"")):
            self._leave(now)
        else:
            held = bool(self._waiting)
            self._take(_Message(message_id, body.data, body.file, now + LAG))
            self._advance(now)
            if self._waiting and not held:
                self._work.set()  # _poll looks after it from now on
        self._pace.note(now, body.size)  # last: no message makes itself wait

    async def close(self, grace: float) -> None:
        """Let what is being read finish for ``grace`` seconds; the rest is found again at the next start."""
        for loop in self._loops:
            loop.cancel()
        self._waiting.clear()
        if self._reading and self._extractor.pids:  # without a worker none of it would end
            await asyncio.wait(self._reading.values(), timeout=grace)
        for task in self._reading.values():
            task.cancel()
        await asyncio.gather(*self._reading.values(), *self._loops, return_exceptions=True)
        await self._extractor.close()

    def _has_room(self, size: int) -> bool:
        return len(self._waiting) + len(self._reading) < IN_HAND and self._memory + size <= MEMORY

    def _leave(self, now: float) -> None:
        self._left += 1
        if not self._behind:
            self._behind, self._behind_until = True, now + LAG
            self._work.set()

    def _take(self, message: _Message) -> None:
        self._memory += len(message.data or b"")
        self._waiting[message.id] = message

    def _advance(self, now: float) -> None:
        """Begin with what waits, in order; while mail comes in thick only with what has waited for long enough."""
        hold = self._pace.is_thick(now) and not self._is_late(now)
        while self._waiting and len(self._reading) < AT_ONCE:
            message = next(iter(self._waiting.values()))
            if hold and is_ahead(message.latest, now, LAG):
                return
            del self._waiting[message.id]
            task = asyncio.create_task(self._read(message.id, message.data, message.file))
            self._reading[message.id] = task
            task.add_done_callback(partial(self._end, message))

    def _is_late(self, now: float) -> bool:
        return self._behind and not is_ahead(self._behind_until, now, LAG)

    def _end(self, message: _Message, task: asyncio.Task[None]) -> None:
        del self._reading[message.id]
        self._memory -= len(message.data or b"")
        if self._waiting:
            self._advance(self._clock())
        elif self._behind:
            self._work.set()

    async def _read(self, message_id: int, data: bytes | None, file: str | None) -> None:
        source = data if data is not None else self._bodies.path(file or "")
        try:
            result = await self._extractor.extract(source, html=self._store.sites.wants_html)
            await self._pace.lull(self._clock)
            now, over, claim = self._clock(), self._passes_over(), self._claim()
            posts, left = await self._store.write(lambda tx: events.extracted(tx, message_id, result, now, claim, over))
        except ExtractorClosed:
            return
        except StoreUnavailable as error:
            log.error("extraction waits for the store", message=message_id, error=str(error))
            self._leave(self._clock())
            return
        except Exception:
            log.exception("message not read", message=message_id)  # and looked at again, POLL seconds from now
            return
        self._unindexed.set()
        if posts or left:
            self._on_posts(posts, left)

    async def _poll(self) -> None:
        """Begin with what had to wait; find what was not handed over: after a start, a full house, a failure."""
        while True:
            self._work.clear()
            now = self._clock()
            self._advance(now)
            behind = self._is_late(now) or (self._behind and not self._pace.is_thick(now))
            failed = False
            if not self._waiting and (behind or not is_ahead(self._look_at, now, POLL)):
                self._look_at = now + POLL
                try:
                    await self._catch_up()
                except StoreUnavailable:
                    failed = True  # the writer has logged why
            soon = (self._waiting or self._behind) and not failed
            try:
                async with asyncio.timeout(WINDOW if soon else POLL):
                    await self._work.wait()
            except TimeoutError:
                pass  # look again

    async def _catch_up(self) -> None:
        """Take the oldest messages that wait in the store; they have waited for long enough."""
        left, after = self._left, 0
        while not self._waiting and self._has_room(0):
            found = await self._store.write(lambda tx: events.unextracted(tx, after, BITE), turn=Turn.IDLE)  # noqa: B023
            for message_id, data, file in found:
                if message_id not in self._reading and message_id not in self._waiting:
                    self._take(_Message(message_id, data, file, 0.0))
            self._advance(self._clock())
            if len(found) < BITE:
                self._behind = left != self._left
                return
            after = found[-1][0]
        self._behind = True  # more may wait there: to be taken as soon as these are read, not at the next look

    async def _index(self) -> None:
        """Feed the search index in small bites, each when the writer has nothing else to do."""
        while True:
            await self._unindexed.wait()
            self._unindexed.clear()
            await self._pace.lull(self._clock)
            try:
                while await self._store.write(search.index, turn=Turn.IDLE) == search.BATCH:
                    pass
            except StoreUnavailable as error:
                log.error("indexing waits for the store", error=str(error))
                await asyncio.sleep(POLL)
                self._unindexed.set()
            await asyncio.sleep(GATHER)
