"""The poster: claim, one attempt, finish. Polling the store is the truth; what extraction hands over is a short cut.

    extraction ── submit (claimed, in memory) ──┐
    store ── claim_posts, by webhook ───────────┴▶ lane of the webhook ─▶ post ─▶ settle ─▶ record ─▶ store: finish_post

A webhook's first attempts start in order. So when its lane is full, newer posts are given back and follow the older
ones through the store. A webhook that keeps failing gets one attempt at a time, so that dead ones leave the pool to
the others. A claim is never renewed: it lasts 600 s, an attempt at most 15, and a job that has waited for half the
claim is given back instead of attempted.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import structlog
from aiohttp.abc import AbstractResolver

from relay import background
from relay.secrets import Keys
from relay.store import events
from relay.store.engine import StoreUnavailable
from relay.store.events import PostJob, PostResult
from relay.store.messages import CLAIM
from relay.store.store import Store
from webapi.post import Client, settle

log = structlog.get_logger()

#: Failed attempts in a row after which a webhook gets one attempt at a time.
FAILING = 3
#: Jobs claimed ahead, as a multiple of the attempts that a webhook may have under way.
AHEAD = 4
#: Jobs of one webhook that may wait in memory after they were handed over, and characters of text of all webhooks.
HANDED = 1000
MEMORY = 32 * 1024 * 1024
#: Jobs to be given back that are worth a transaction of their own.
UNUSED = 200
#: Seconds between two looks at the store when nothing wakes us, and at least.
POLL = 5.0
PAUSE = 0.05
#: Seconds until results that could not be recorded are tried again.
RECORD_AGAIN = 1.0


@dataclass(slots=True)
class _Lane:
    """One webhook. ``behind``: older posts of it wait in the store, so newer ones must not overtake them."""

    waiting: deque[tuple[PostJob, float]] = field(default_factory=deque)  # with the time of the claim
    running: int = 0
    failures: int = 0
    behind: bool = False
    given_back: int = 0  # counts; a claim made before the last of them does not clear ``behind``


class Poster:
    """Posts every event of this node. ``claim`` names this run of the process in the store.

    ``links_live_for``: seconds from the event. ``per_webhook``, ``total``: attempts under way. ``resolver`` replaces
    the system's.
    """

    def __init__(
        self,
        store: Store,
        keys: Keys,
        *,
        public_url: str,
        links_live_for: float,
        allow_private_addresses: bool,
        clock: Callable[[], float],
        per_webhook: int = 10,
        total: int = 50,
        resolver: AbstractResolver | None = None,
    ) -> None:
        self._store = store
        self._client = Client(keys, public_url, links_live_for)
        self._allow_private = allow_private_addresses
        self._resolver = resolver
        self._clock = clock
        self._per_webhook = per_webhook
        self._total = total
        self.claim = secrets.token_hex(8)
        self.outcomes: Counter[str] = Counter()
        self._lanes: dict[int, _Lane] = {}
        self._turns: dict[int, _Lane] = {}  # lanes that may have something to do, the next one first
        self._under_way: set[asyncio.Task[None]] = set()
        self._memory = 0
        self._unused: list[PostJob] = []
        self._results: list[PostResult] = []
        self._work = asyncio.Event()
        self._finished = asyncio.Event()
        self._closing = False
        self._poller: asyncio.Task[None] | None = None
        self._recorder: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begin to post; what waits in the store is claimed before anything newer can be handed over."""
        self._client.open(self._allow_private, self._total, self._resolver)
        self._recorder = background.begin("recording of posts", self._record)
        wait = await self._look()
        self._poller = background.begin("posting", lambda: self._poll(wait))

    def submit(self, jobs: Sequence[PostJob]) -> None:
        """Post these, claimed by :attr:`claim`, in this order."""
        now = self._clock()
        for job in jobs:
            lane = self._lanes.setdefault(job.webhook_id, _Lane())
            if self._closing or lane.behind or len(lane.waiting) >= HANDED or self._memory > MEMORY:
                self._give_back(lane, job)
            else:
                self._enqueue(lane, job, now)
        self._take_turns()

    def wake(self) -> None:
        """Something may be due in the store."""
        self._work.set()

    async def close(self, grace: float) -> None:
        """Stop claiming, give what is under way ``grace`` seconds, give back the claims that were not used."""
        self._closing = True
        if self._poller is not None:
            self._poller.cancel()
            await asyncio.gather(self._poller, return_exceptions=True)
        for lane in self._lanes.values():
            self._unused += [job for job, _ in lane.waiting]
            lane.waiting.clear()
        if self._under_way:
            _, late = await asyncio.wait(self._under_way, timeout=grace)
            for task in late:
                task.cancel()  # it may have arrived: posted again, under the same id, at the next start
            await asyncio.gather(*late, return_exceptions=True)
        self._finished.set()
        try:
            if self._recorder is not None:
                await self._recorder
            await self._release()
        except StoreUnavailable as error:
            log.error("claims not given back", error=str(error))
        finally:
            await self._client.close()

    async def _poll(self, wait: float) -> None:
        while True:
            try:
                async with asyncio.timeout(wait):
                    await self._work.wait()
            except TimeoutError:
                pass  # look again
            self._work.clear()
            wait = await self._look()

    async def _look(self) -> float:
        """Claim what is due and there is room for; seconds until the next look."""
        try:
            await self._release()
            now = self._clock()
            due = [row[0] for row in await self._store.reader.run(events.DUE_WEBHOOKS, now=now)]
            await self._claim(due, now)
            ((next_at,),) = await self._store.reader.run(events.NEXT_POST, now=now)
        except StoreUnavailable as error:
            log.error("posting waits for the store", error=str(error))
            return POLL
        return POLL if next_at is None else min(POLL, max(PAUSE, next_at - now))

    async def _claim(self, due: Sequence[int], now: float) -> None:
        for webhook in due:
            self._lanes.setdefault(webhook, _Lane())
        given_back = {webhook: lane.given_back for webhook, lane in self._lanes.items()}
        capacity = {webhook: room for webhook in due if (room := self._room(self._lanes[webhook])) > 0}
        jobs = await self._store.write(lambda tx: events.claim_posts(tx, capacity, self.claim, now)) if capacity else []
        claimed = Counter(job.webhook_id for job in jobs)
        for job in jobs:
            self._enqueue(self._lanes[job.webhook_id], job, now)
        for webhook, lane in self._lanes.items():
            more = webhook in due and claimed[webhook] >= capacity.get(webhook, 0)
            lane.behind = more or (lane.behind and lane.given_back != given_back.get(webhook))
        self._take_turns()

    def _room(self, lane: _Lane) -> int:
        return 0 if self._memory > MEMORY else AHEAD * self._slots(lane) - len(lane.waiting)

    def _slots(self, lane: _Lane) -> int:
        return self._per_webhook if lane.failures < FAILING else 1

    def _enqueue(self, lane: _Lane, job: PostJob, claimed_at: float) -> None:
        lane.waiting.append((job, claimed_at))
        self._memory += len(job.message.text or "")
        self._turns.setdefault(job.webhook_id, lane)

    def _give_back(self, lane: _Lane, job: PostJob) -> None:
        lane.behind = True
        lane.given_back += 1
        self._unused.append(job)
        if len(self._unused) >= UNUSED or not lane.running:
            self._work.set()

    async def _release(self) -> None:
        unused, self._unused = self._unused, []
        if not unused:
            return
        try:
            await self._store.write(lambda tx: events.release_posts(tx, unused))
        except StoreUnavailable:
            self._unused += unused
            raise

    def _take_turns(self) -> None:
        """Begin as many attempts as the limits allow, one webhook after the other."""
        while self._turns and len(self._under_way) < self._total:
            webhook = next(iter(self._turns))
            lane = self._turns.pop(webhook)
            job = self._next(lane) if lane.running < self._slots(lane) else None
            if job is not None:
                lane.running += 1
                task = asyncio.create_task(self._attempt(lane, job))
                self._under_way.add(task)
                self._turns[webhook] = lane

    def _next(self, lane: _Lane) -> PostJob | None:
        oldest = self._clock() - CLAIM / 2
        while lane.waiting:
            job, claimed_at = lane.waiting.popleft()
            self._memory -= len(job.message.text or "")
            if claimed_at >= oldest:
                return job
            self._give_back(lane, job)
        return None

    async def _attempt(self, lane: _Lane, job: PostJob) -> None:
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        started_at, start = self._clock(), loop.time()
        try:
            reply = await self._client.post(job, started_at)
            duration = loop.time() - start
            result = settle(job, reply, started_at, duration, self._clock(), random.random())  # noqa: S311 (jitter)
            lane.failures = 0 if result.state == "delivered" else lane.failures + 1
            self._note(result)
        finally:
            self._under_way.discard(task)
            lane.running -= 1
            if lane.waiting:
                self._turns.setdefault(job.webhook_id, lane)
            if lane.behind and len(lane.waiting) <= self._slots(lane):
                self._work.set()
            self._take_turns()

    def _note(self, result: PostResult) -> None:
        self._results.append(result)
        self._finished.set()
        self.outcomes[result.state] += 1
        level = log.info if result.state == "delivered" else log.warning
        level(
            "post",
            webhook=result.job.webhook_id,
            uid=result.job.uid,
            status=result.status,
            state=result.state,
            attempt=result.job.attempts,
            seconds=round(result.duration, 3),
        )

    async def _record(self) -> None:
        """Write results as they come, all that wait in one transaction; ends when the poster is closed."""
        while not self._closing or self._under_way or self._results:
            await self._finished.wait()
            self._finished.clear()
            results, self._results = self._results, []
            while results and not await self._write(results):
                if self._closing:
                    log.error("results not recorded, these are posted again", count=len(results))
                    break
                await asyncio.sleep(RECORD_AGAIN)

    async def _write(self, results: Sequence[PostResult]) -> bool:
        """False when the store is not there. A result that cannot be written by itself is lost, and posted again."""
        now = self._clock()
        # A disabled webhook shows in the directory of sites.
        write = self._store.redefine if any(result.disable_webhook for result in results) else self._store.write
        try:
            await write(lambda tx: [events.finish_post(tx, result, now) for result in results])
        except StoreUnavailable:
            return False
        except Exception:
            if len(results) > 1:
                return all([await self._write([result]) for result in results])
            log.exception("result not recorded", uid=results[0].job.uid)
        return True
