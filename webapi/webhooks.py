"""The poster: claim, one attempt, finish. Polling the store is the truth; what extraction hands over is a short cut.

    extraction ── submit (claimed, in memory) ──┐   but for webhooks that are backed up
    store ── claim_posts, by webhook ───────────┴▶ lane of the webhook ─▶ post ─▶ settle ─▶ record ─▶ store: finish_post

A webhook's first attempts start in order. So when its lane is full, newer posts are given back and follow the older
ones through the store. A claim is never renewed: it lasts 600 s, an attempt at most 15. A job that has waited for half
the claim is given back instead of attempted, and so is one that was read before something of it changed: its letter was
erased, its webhook switched off or given another URL.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence

import structlog

from relay import background
from relay.store.errors import StoreUnavailable
from relay.store.post import BITE, PACE, PostJob, PostResult
from webapi.breaker import FAILING, RESTING, Standing, says_ill
from webapi.compose import Composer
from webapi.lane import Lane
from webapi.post import Client, settle
from webapi.post_store import PostStore
from webapi.requests import Requester
from webapi.tally import Tally

log = structlog.get_logger()

#: Attempts under way at once, of all webhooks.
ATTEMPTS = 50
#: One in so many of all attempts is kept for webhooks that have none under way.
KEPT = 5
#: Characters of text that may wait in memory, of all webhooks.
MEMORY = 32 * 1024 * 1024
#: Jobs claimed at once: their text, 1 MB each at most, comes through the daemon's event loop in one piece.
TAKEN = 20
#: Jobs to be given back that are worth a transaction of their own.
UNUSED = 200
#: Seconds between two looks at the store when nothing wakes us, and at least.
POLL = 5.0
PAUSE = 0.05
#: Seconds in which results gather for one transaction: each costs the disk a turn, which a message may be waiting for.
#: What a crash within them repeats is that much more.
GATHER = 0.05
#: Seconds until results that could not be recorded are tried again, and what waits is looked at again at the start.
RECORD_AGAIN = 1.0


class Poster:
    """Posts every event of this node.

    ``total``: attempts under way, of all webhooks. ``rest``: the first, in s. ``on_change`` is told when what
    ``backed_up``, ``standings`` or ``tally`` say may have changed.
    """

    def __init__(
        self,
        store: PostStore,
        composer: Composer,
        requester: Requester,
        *,
        clock: Callable[[], float],
        total: int = ATTEMPTS,
        rest: float = 1.0,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._requester = requester
        self._client = Client(composer, requester)
        self._rest = rest
        self._on_change = on_change
        self._clock = clock
        self._began_at = clock()
        self._total = total
        self.tally = Tally()
        self._lanes: dict[int, Lane] = {}
        self._turns: dict[int, Lane] = {}  # lanes that may have something to do, the next one first
        self._under_way: set[asyncio.Task[None]] = set()
        self._held: set[int] = set()  # posts in the lanes and under way
        self._hastening: set[asyncio.Task[None]] = set()
        self._unused: list[PostJob] = []
        self._results: list[PostResult] = []
        self._work = asyncio.Event()
        self._finished = asyncio.Event()
        self._urgent = asyncio.Event()  # something waits for the results
        self._closing = False
        self._poller: asyncio.Task[None] | None = None
        self._recorder: asyncio.Task[None] | None = None

    @property
    def claim(self) -> str:
        """What names this run in the store."""
        return self._store.claim

    async def start(self) -> None:
        """Begin to post; what waits in the store is claimed before anything newer can be handed over."""
        await self._requester.open()
        self._recorder = background.begin("recording of posts", self._record)
        wait = await self._first_look()
        self._poller = background.begin("posting", lambda: self._poll(wait))

    def backed_up(self) -> frozenset[int]:
        """Webhooks for which nothing more is to be claimed and submitted: that would have to be given back."""
        crowded = self._crowded
        return frozenset(webhook for webhook, lane in self._lanes.items() if lane.is_backed_up(crowded=crowded))

    def submit(self, jobs: Sequence[PostJob], passed_over: Collection[int] = ()) -> None:
        """Post these, claimed by :attr:`claim`, in this order.

        The webhooks ``passed_over`` were backed up when the jobs were claimed, and have posts in the store now that
        newer ones must not overtake.
        """
        now = self._clock()
        for webhook in passed_over:
            self._fall_behind(lane := self._lanes.setdefault(webhook, Lane()))
            if not lane.is_looked_after:
                self._work.set()
        for job in jobs:
            lane = self._lanes.setdefault(job.hook.id, Lane())
            if self._closing or lane.is_backed_up(crowded=self._crowded):
                self._give_back(lane, job)
            else:
                self._enqueue(lane, job, now)
        self._take_turns()
        self._on_change()

    def _fall_behind(self, lane: Lane) -> None:
        lane.behind = True
        lane.given_back += 1

    def standing(self, webhook: int) -> Standing:
        lane = self._lanes.get(webhook)
        if lane is None:
            return Standing()
        return Standing.at(asyncio.get_running_loop().time(), lane.breaker.failures, lane.rests_until)

    def standings(self) -> dict[int, tuple[int, float | None]]:
        """By webhook, of those that fail: failures in a row, and when the rest is over in the event loop's time."""
        return {
            webhook: (lane.breaker.failures, lane.rests_until)
            for webhook, lane in self._lanes.items()
            if lane.breaker.failures
        }

    def wake(self) -> None:
        """Something may be due in the store."""
        self._work.set()

    def set_log_level(self, level: str) -> None:
        """Its log is this process's."""

    async def close(self, grace: float) -> None:
        """Stop claiming, give what is under way ``grace`` seconds, give back the claims that were not used."""
        self._closing = True
        if self._poller is not None:
            self._poller.cancel()
            await asyncio.gather(self._poller, return_exceptions=True)
        for lane in self._lanes.values():
            self._unused += lane.drain()
            if lane.rest is not None:
                lane.rest.cancel()
        if self._under_way:
            _, late = await asyncio.wait(self._under_way, timeout=grace)
            for task in late:
                task.cancel()  # it may have arrived: posted again, under the same id, at the next start
            await asyncio.gather(*late, return_exceptions=True)
        for task in tuple(self._hastening):
            task.cancel()
        self._finished.set()
        self._urgent.set()
        try:
            if self._recorder is not None:
                await self._recorder
            await self._release()
        except StoreUnavailable as error:
            log.error("claims not given back", error=str(error))
        finally:
            await self._requester.close()

    async def _poll(self, wait: float) -> None:
        while True:
            try:
                async with asyncio.timeout(wait):
                    await self._work.wait()
            except TimeoutError:
                pass  # look again
            self._work.clear()
            wait = await self._look() or POLL

    async def _first_look(self) -> float:
        """Look until the store was there for it: what is handed over from then on must not overtake what waits."""
        while True:
            try:
                wait = await self._look()
            except Exception:  # it would be the same the next time, and others must not wait for it
                log.exception("what waits was not claimed")
                return RECORD_AGAIN
            if wait is not None:
                return wait
            await asyncio.sleep(RECORD_AGAIN)

    async def _look(self) -> float | None:
        """Claim what is due and there is room for; seconds until the next look, None when the store was not there."""
        # Counted first: what is given back from here on is not in the store yet when what waits there is claimed.
        before = {webhook: (lane.given_back, lane.drained) for webhook, lane in self._lanes.items()}
        try:
            await self._release()
            now = self._clock()
            await self._claim(await self._store.due(now), now, before)
            next_at = await self._store.next_at(now)
        except StoreUnavailable as error:
            log.error("posting waits for the store", error=str(error))
            return None
        return POLL if next_at is None else min(POLL, max(PAUSE, next_at - now))

    async def _claim(self, due: Sequence[int], now: float, before: Mapping[int, tuple[int, int]]) -> None:
        for webhook in due:
            self._lanes.setdefault(webhook, Lane())
        crowded, left = self._crowded, TAKEN
        capacity: dict[int, int] = {}
        for webhook in due:
            if (room := min(left, self._lanes[webhook].room(crowded=crowded))) > 0:
                capacity[webhook] = room
                left -= room
        jobs: list[PostJob] = []
        if capacity:
            jobs = await self._store.take(capacity, now, frozenset(self._held))
            if jobs and not left:
                self._work.set()  # there is more
        claimed = Counter(job.hook.id for job in jobs)
        for webhook, lane in self._lanes.items():
            given_back, _ = before.get(webhook, (0, 0))
            more = webhook in due and claimed[webhook] >= capacity.get(webhook, 0)
            lane.behind = more or (lane.behind and lane.given_back != given_back)
        for job in jobs:
            lane = self._lanes[job.hook.id]
            if lane.drained == before.get(job.hook.id, (0, 0))[1]:
                self._enqueue(lane, job, now)
            else:
                self._give_back(lane, job)  # older ones were given back while this one was claimed
        self._take_turns()
        self._on_change()

    @property
    def _crowded(self) -> bool:
        """Whether what waits in memory is enough for now."""
        return sum(lane.memory for lane in self._lanes.values()) > MEMORY

    def _enqueue(self, lane: Lane, job: PostJob, claimed_at: float) -> None:
        lane.put(job, claimed_at)
        self._held.add(job.post_id)
        self._turns.setdefault(job.hook.id, lane)

    def _give_back(self, lane: Lane, job: PostJob) -> None:
        self._fall_behind(lane)
        self._held.discard(job.post_id)
        self._unused.append(job)
        if len(self._unused) >= UNUSED or not lane.running:
            self._work.set()

    async def _release(self) -> None:
        unused, self._unused = self._unused, []
        if not unused:
            return
        try:
            await self._store.release(unused)
        except StoreUnavailable:
            self._unused += unused
            raise

    def _take_turns(self) -> None:
        """Begin as many attempts as the limits allow, one webhook after the other."""
        while (webhook := self._whose_turn()) is not None:
            lane = self._turns.pop(webhook)
            job = self._next(lane) if lane.is_free else None
            if job is not None:
                lane.running += 1
                task = asyncio.create_task(self._attempt(lane, job))
                self._under_way.add(task)
                self._turns[webhook] = lane

    def _whose_turn(self) -> int | None:
        """The last slots are for webhooks with nothing under way: slow ones must not take all of them."""
        free = self._total - len(self._under_way)
        if free > self._total // KEPT:
            return next(iter(self._turns), None)
        sound = (webhook for webhook, lane in self._turns.items() if not lane.running and lane.breaker.is_sound)
        return next(sound, None) if free > 0 else None

    def _next(self, lane: Lane) -> PostJob | None:
        if not lane.waiting:
            return None
        now = self._clock()
        if lane.is_stale(now, self._store.edition):
            self._empty(lane)
            return None
        return lane.take()

    def _empty(self, lane: Lane) -> None:
        """Give back all that waits: to be read again, or to fail for a webhook that is disabled now."""
        for job in lane.drain():
            self._give_back(lane, job)
        self._work.set()

    async def _attempt(self, lane: Lane, job: PostJob) -> None:
        task, loop = asyncio.current_task(), asyncio.get_running_loop()
        assert task is not None
        started_at, start = self._clock(), loop.time()
        try:
            reply = await self._client.post(job, started_at)
            duration = loop.time() - start
            result = settle(job, reply, started_at, duration, self._clock(), random.random())  # noqa: S311 (jitter)
            self._judge(lane, result)
            lane.gone = lane.gone or result.disable_webhook is not None
            lane.telling += result.deal is not None
            self._note(result)
        except Exception:
            log.exception("attempt not judged", webhook=job.hook.id, uid=job.uid)  # it is due again after its claim
            self._held.discard(job.post_id)
        finally:
            self._under_way.discard(task)
            lane.running -= 1
            if lane.waiting:
                self._turns.setdefault(job.hook.id, lane)
            if lane.behind and len(lane.waiting) <= lane.slots:
                self._work.set()
            self._take_turns()
            self._on_change()

    def _judge(self, lane: Lane, result: PostResult) -> None:
        """What the attempt says of its receiver goes to the breaker; nothing where nothing was sent."""
        if result.digest is None:
            return
        webhook, loop, failures = result.job.hook.id, asyncio.get_running_loop(), lane.breaker.failures
        if says_ill(result.state, result.status):
            pause = lane.breaker.failed(result.put_off)
            if lane.breaker.failures in (FAILING, RESTING):
                log.warning("webhook keeps failing", webhook=webhook, failures=lane.breaker.failures)
            if pause is not None and lane.rest is None and not self._closing:
                lane.rest = loop.call_later(pause * self._rest, self._rested, webhook, lane)
            return
        if failures >= FAILING:
            log.info("webhook answers again", webhook=webhook, after=failures)
        first = not lane.breaker.answered
        if lane.breaker.succeeded(loop.time()):
            self._hasten(webhook, lane)
        elif first:
            self._hasten(webhook, lane, before=self._began_at)
        if lane.rest is not None:  # an attempt that was under way beside this one had begun it
            lane.rest.cancel()
            self._rested(webhook, lane)

    def _hasten(self, webhook: int, lane: Lane, before: float | None = None) -> None:
        """What waits for hours because the receiver was down need not, but for what a Retry-After said.

        ``before``: only what was last tried before that time.
        """

        async def bites() -> None:
            begin = max(self._clock(), lane.breaker.not_before)
            try:
                waiting = await self._store.tried(webhook, before)
                for start in range(0, len(waiting), BITE):
                    bite = waiting[start : start + BITE]
                    await self._store.hasten(bite, begin + start / PACE, self._clock())
            except StoreUnavailable:
                return  # the schedule holds
            except Exception:
                log.exception("posts not hastened", webhook=webhook)
            self._work.set()

        task = asyncio.create_task(bites())
        self._hastening.add(task)
        task.add_done_callback(self._hastening.discard)

    def _rested(self, webhook: int, lane: Lane) -> None:
        lane.rest = None
        self._on_change()
        if lane.waiting:
            self._turns.setdefault(webhook, lane)
            self._take_turns()
        else:
            self._work.set()

    def _note(self, result: PostResult) -> None:
        self._results.append(result)
        self._finished.set()
        if result.deal is not None or result.disable_webhook is not None:
            self._urgent.set()
        self.tally.note(result)

    async def _record(self) -> None:
        """Write results soon after they come, all that wait in one transaction; ends when the poster is closed."""
        while not self._closing or self._under_way or self._results:
            await self._finished.wait()
            if not self._closing:
                await self._gather()
            self._finished.clear()
            self._urgent.clear()
            results, self._results = self._results, []
            while results and not await self._write(results):
                if self._closing:
                    log.error("results not recorded, these are posted again", count=len(results))
                    break
                await asyncio.sleep(RECORD_AGAIN)
            for result in results:
                lane = self._lanes[result.job.hook.id]
                lane.telling -= result.deal is not None
                if result.disable_webhook is not None:
                    lane.gone = False
                    self._empty(lane)
                elif lane.waiting:
                    self._turns.setdefault(result.job.hook.id, lane)
            self._take_turns()

    async def _gather(self) -> None:
        """Let more results come; not for long, nor when somebody waits."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GATHER):
                await self._urgent.wait()

    async def _write(self, results: Sequence[PostResult]) -> bool:
        """False when the store is not there. A result that cannot be written by itself is lost, and posted again."""
        try:
            await self._store.finish(results, self._clock())
        except StoreUnavailable:
            return False  # they stay in hand
        except Exception:
            if len(results) > 1:
                return all([await self._write([result]) for result in results])
            log.exception("result not recorded", uid=results[0].job.uid)
        else:
            for result in results:
                _tell(result)
        self._held.difference_update(result.job.post_id for result in results)
        return True


def _tell(result: PostResult) -> None:
    """The log says what is recorded: who reads it may act upon it."""
    level = log.info if result.state == "delivered" else log.warning
    level(
        "post",
        webhook=result.job.hook.id,
        uid=result.job.uid,
        message=result.job.message_id,
        status=result.status,
        state=result.state,
        attempt=result.job.attempts,
        seconds=round(result.duration, 3),
    )
