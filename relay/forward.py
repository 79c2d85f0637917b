"""Forwarding: claim, one attempt, finish. Polling the store is the truth; what intake hands over is a short cut.

    intake ── submit (claimed, bytes in memory) ──┐
    store ── claim_due, by destination ───────────┴▶ attempt ─▶ smtp_out ─▶ Outcome ─▶ settle ─▶ store: finish

Which destination may have how much under way, and which is left alone: core/destinations.py. So dead and slow ones with
long queues cost the others nothing.
"""

from __future__ import annotations

import asyncio
import math
import random
import secrets
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import structlog

from relay import background
from relay.bodies import INLINE, Bodies
from relay.core.address import parse
from relay.core.backoff import delay
from relay.core.destinations import Destinations
from relay.core.metrics import LONG_SECONDS, Histogram
from relay.core.model import DeliveryState, Outcome, OutcomeKind
from relay.destination import NextHops
from relay.envelope import return_path, stamped_at
from relay.outgoing import content_of
from relay.secrets import Keys, SealError
from relay.smtp_out import Sender
from relay.store import moves, queue
from relay.store.engine import StoreUnavailable
from relay.store.messages import Job
from relay.store.post import CLAIM
from relay.store.queue import Expired, Finish
from relay.store.store import Store

log = structlog.get_logger()

#: Deliveries under way for each destination, as a multiple of its connections.
AHEAD = 4
#: What waits beyond its time for a destination that is down is held so many at a time.
HELD_AT_ONCE = 100
#: Seconds between two looks at the store when nothing wakes us.
POLL = 5.0
#: Seconds between two looks at least, and until an outcome that could not be recorded is tried again.
PAUSE = 0.05
RECORD_AGAIN = 1.0


def settle(job: Job, outcome: Outcome, started_at: float, now: float, jitter: float, expires_at: float) -> Finish:
    """What an outcome makes of a delivery. Pure.

    What would be tried again after its time is over is held, as is what was refused for good.
    """
    state, next_at = DeliveryState.FORWARDED, now
    if outcome.kind is OutcomeKind.PERMANENT:
        state = DeliveryState.FAILED
    elif outcome.kind in (OutcomeKind.TEMPORARY, OutcomeKind.AMBIGUOUS):
        next_at = now + delay(job.attempts, jitter)
        state = DeliveryState.DEFERRED if next_at < expires_at else DeliveryState.FAILED
    return Finish(
        job=job,
        outcome=outcome,
        state=state,
        next_at=next_at,
        started_at=started_at,
        finished_at=now,
        possibly_repeated=outcome.kind is OutcomeKind.AMBIGUOUS,
    )


@dataclass(slots=True)
class _Flight:
    """``turn``: its destination's when it began (core/destinations.py). ``is_over``: its outcome is recorded, so that a
    claim of its delivery is for another.
    """

    job: Job
    turn: int
    past_dot: bool = False
    is_over: bool = False
    more_time: float = 0.0  # seconds: the clock was set ahead meanwhile
    task: asyncio.Task[None] | None = field(default=None, repr=False)


def _jitter() -> float:
    return random.random()  # noqa: S311 - spreads load, guards nothing


def _not_sent(job: Job, why: str) -> Outcome:
    """The trouble is ours: of the destination it says nothing."""
    return Outcome(OutcomeKind.TEMPORARY, None, f"not sent: {why}", job.destination, reached=None)


class Forwarder:
    """Every delivery of this node. ``claim`` names this run of the process in the store.

    ``on_held`` is told when a delivery has failed for good, which webhooks may want to know.
    """

    def __init__(
        self,
        store: Store,
        bodies: Bodies,
        sender: Sender,
        keys: Keys,
        *,
        hostname: str,
        next_hop: str | None,
        per_destination: int,
        clock: Callable[[], float],
        clock_is_doubtful: Callable[[], bool] = lambda: False,
        on_held: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._bodies = bodies
        self._on_held = on_held
        self._sender = sender
        self._keys = keys
        self._hostname = hostname
        self._next_hops = NextHops(keys, next_hop)
        self._defined: object = None  # the sites as they were when what waits was last named; None: it is to be
        self._clock = clock
        self._clock_is_doubtful = clock_is_doubtful
        self.claim = secrets.token_hex(8)
        self._destinations = Destinations(per_destination * AHEAD, INLINE)
        self._flights: dict[int, _Flight] = {}
        self._work = asyncio.Event()
        self._poller: asyncio.Task[None] | None = None
        self._closing = False
        self.outcomes: Counter[str] = Counter()
        self.durations = Histogram()  # of attempts
        self.delays = Histogram(LONG_SECONDS)  # from receipt to the next hop's 250

    async def start(self) -> None:
        """Begin to poll."""
        self._poller = background.begin("forwarding", self._poll)

    def takes(self, destination: str, size: int) -> bool:
        """Whether a new delivery may be handed over in memory instead of waiting in the store."""
        return not self._closing and self._destinations.takes(destination, size)

    def submit(self, jobs: tuple[Job, ...] | list[Job]) -> None:
        """Attempt these deliveries, claimed by :attr:`claim`."""
        for job in jobs:
            self._begin(job)

    def _begin(self, job: Job) -> bool:
        """False for one that is under way: its claim seems to have ended when the clock leaps ahead."""
        under_way = self._flights.get(job.delivery_id)
        if under_way is not None and not under_way.is_over:
            return False
        flight = _Flight(job, self._destinations.begin(job.destination, job.stored_size))
        self._flights[job.delivery_id] = flight
        flight.task = asyncio.create_task(self._fly(flight))
        return True

    def wake(self) -> None:
        """Something may be due in the store."""
        self._work.set()

    def retry_now(self) -> None:
        """Somebody wants deliveries tried now: destinations that are down get their next attempt at once.

        What was held goes the way that its target has now, too.
        """
        self._destinations.retry(self._clock())
        self._defined = None
        self._work.set()

    def clock_set_back(self, by: float) -> None:
        """The clock went back (< 0: ahead): back-offs, and the time that mail is tried, end when they would have."""
        now = self._clock()
        for flight in self._flights.values():
            if by > 0:  # a retry from now on is known by a later time than this
                flight.job = replace(flight.job, due_at=min(flight.job.due_at, now))
            if by < 0 or flight.job.expires_at + flight.more_time - by > now:  # else it came since the clock was set
                flight.more_time -= by
        if by > 0:
            self._destinations.clock_set_back(by)
        self._work.set()

    async def close(self, grace: float) -> None:
        """Stop claiming, give what is under way ``grace`` seconds, then give back the claims that were not used."""
        self._closing = True
        self._work.set()
        if self._poller is not None:
            # Not cancelled: what it is claiming at this moment would be claimed by nobody.
            await asyncio.wait([self._poller], timeout=grace)
            self._poller.cancel()
        tasks = {flight.task: flight for flight in self._flights.values() if flight.task is not None}
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=grace)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
            unused = [tasks[task].job for task in late if not tasks[task].past_dot]
            try:
                if unused:
                    await self._store.write(lambda tx: queue.release(tx, unused))
            except StoreUnavailable as error:
                log.error("claims not given back", error=str(error))
        await self._sender.close()

    async def _poll(self) -> None:
        renew_at = time.monotonic() + CLAIM / 3
        while not self._closing:
            self._work.clear()
            try:
                if time.monotonic() >= renew_at:
                    renew_at = time.monotonic() + CLAIM / 3
                    await self._renew()
                await self._move()
                wait = await self._claim()
            except StoreUnavailable as error:
                log.error("forwarding waits for the store", error=str(error))
                wait = POLL
            try:
                async with asyncio.timeout(wait):
                    await self._work.wait()
            except TimeoutError:
                pass  # look again

    async def _claim(self) -> float:
        """Claim what is due and there is room for; seconds until the next look."""
        now = self._clock()
        waiting = await self._store.reader.run(queue.WAITING, now=now)
        due = [name for name, is_due, _ in waiting if is_due]
        capacity = self._destinations.capacity(due, now)
        if capacity:
            _, memory = self._destinations.free
            down = {name for name in capacity if self._destinations.is_down(name)}
            jobs = await self._store.write(lambda tx: queue.claim_due(tx, capacity, self.claim, now, memory, down))
            begun = [job for job in jobs if self._begin(job)]
            self._destinations.filled({job.destination for job in begun})
            if jobs:
                return PAUSE  # more may be due than there was room for
        # What is due and has no room is no reason to look soon: whoever makes room wakes us, or a back-off ends.
        times = [next_at for _, _, next_at in waiting if next_at is not None] + self._destinations.next_tries(due)
        soon = min((time for time in times if time > now), default=now + POLL)
        return min(POLL, max(PAUSE, soon - now))

    async def _move(self) -> None:
        """After sites were defined anew, what waits goes the way that its target has now, without the old back-off."""
        defined = self._store.sites.by_id
        if defined is self._defined:
            return
        self._defined = defined  # first: who retries what was held during this look wants another
        try:
            await self._move_all()
        except BaseException:
            self._defined = None
            raise

    async def _move_all(self) -> None:
        for before, target, forward_to, sealed in await self._store.reader.run(moves.WAYS):
            try:
                after = self._next_hops.name(sealed, forward_to)
            except (SealError, ValueError):
                continue  # the attempt says so
            if after != before:
                move = moves.Move(target, forward_to, before, after)
                log.info("what waits goes another way", to=forward_to, destination=after)
                while await self._store.write(partial(moves.move, wanted=move, now=self._clock())):
                    pass

    async def _renew(self) -> None:
        claims = [(flight.job.delivery_id, flight.job.claim) for flight in self._flights.values()]
        until = self._clock() + CLAIM
        if claims:
            await self._store.write(lambda tx: queue.renew(tx, claims, until))

    async def _fly(self, flight: _Flight) -> None:
        job = flight.job
        try:
            started_at = self._clock()
            try:
                outcome = await self._attempt(flight)
            except Exception as error:
                log.exception("attempt failed unexpectedly", delivery=job.delivery_id, message=job.message_id)
                outcome = _not_sent(job, type(error).__name__)
            failures = self._destinations.note(job.destination, outcome.reached, flight.turn, self._clock(), _jitter())
            expires_at = self._expires_at(flight, is_first=outcome.reached is False and failures <= 1)
            end = settle(flight.job, outcome, started_at, self._clock(), _jitter(), expires_at)
            self.outcomes[outcome.kind.value] += 1
            self.durations.observe(end.finished_at - started_at)
            if end.state is DeliveryState.FORWARDED:
                self.delays.observe(end.finished_at - job.received_at)
            await self._record(end)
            flight.is_over = True
            if failures > 1 and not self._clock_is_doubtful():
                await self._hold_expired(job.destination, outcome)
        finally:
            if self._flights.get(job.delivery_id) is flight:
                del self._flights[job.delivery_id]
            if self._destinations.end(job.destination, job.stored_size, flight.turn):
                self._work.set()

    def _expires_at(self, flight: _Flight, *, is_first: bool) -> float:
        """When the delivery is given up. Never by a clock that was set and has not been looked at yet (ClockWatch).

        Nor by the first failure to reach its destination, or one that says no more than that: after a long standstill
        the network may be a minute later than we are.
        """
        if is_first or self._clock_is_doubtful():
            return math.inf
        return flight.job.expires_at + flight.more_time

    async def _attempt(self, flight: _Flight) -> Outcome:
        job = flight.job
        try:
            next_hop = self._next_hops.of(job.next_hop)
            address = parse(job.forward_to)
            content = await content_of(job, self._bodies, self._hostname, self._keys.current("loop"))
        except (SealError, ValueError, OSError, StoreUnavailable, LookupError) as error:
            return _not_sent(job, str(error))
        domain = parse(job.recipient).domain if "@" in job.recipient else self._hostname
        day = stamped_at(job.received_at, self._clock())
        mail_from = return_path(job.mail_from, job.message_id, domain, self._keys.current("srs"), day)

        def on_final_dot() -> None:
            flight.past_dot = True

        return await self._sender.send(next_hop, address.domain, mail_from, str(address), content, on_final_dot)

    async def _hold_expired(self, destination: str, outcome: Outcome) -> None:
        """One message tries a destination that is down for all that wait: whose time is over is held by its answer."""
        now, any_held = self._clock(), False
        try:
            while expired := await self._expired(destination, now):
                hold = partial(queue.hold_expired, expired=expired, outcome=outcome, now=now)
                for held in await self._store.write(hold):
                    any_held = True
                    log.warning(
                        "delivery",
                        id=held.delivery_id,
                        message=held.message_id,
                        to=held.forward_to,
                        host=outcome.host,
                        state=DeliveryState.FAILED.value,
                        code=outcome.code,
                        answer=outcome.text,
                        attempt=held.attempts,
                    )
        except StoreUnavailable as error:
            log.error("mail whose time is over is not held yet", destination=destination, error=str(error))
        if any_held:
            self._on_held()

    async def _expired(self, destination: str, now: float) -> list[Expired]:
        rows = await self._store.reader.run(queue.EXPIRED, destination=destination, now=now, most=HELD_AT_ONCE)
        return [Expired(*row) for row in rows]

    async def _record(self, end: Finish) -> None:
        """Until it is written the delivery stays under way, its claim renewed: what arrived is not sent again."""
        job, outcome = end.job, end.outcome
        while True:
            try:
                recorded = await self._store.write(lambda tx: queue.finish(tx, end))
                break
            except StoreUnavailable as error:
                log.error(
                    "outcome not recorded", delivery=job.delivery_id, outcome=outcome.kind.value, error=str(error)
                )
            except Exception:
                log.exception("outcome can't be recorded", delivery=job.delivery_id, outcome=outcome.kind.value)
                return  # it is attempted again when its claim ends, as possibly repeated
            await asyncio.sleep(RECORD_AGAIN)
        if recorded is None:
            log.warning("claim lost", delivery=job.delivery_id, outcome=outcome.kind.value, answer=outcome.text)
            return
        if recorded.state is DeliveryState.FAILED:
            self._on_held()
        level = log.info if recorded.state is DeliveryState.FORWARDED else log.warning
        level(
            "delivery",
            id=job.delivery_id,
            message=job.message_id,
            to=job.forward_to,
            host=outcome.host,
            state=recorded.state.value,
            code=outcome.code,
            answer=outcome.text,
            attempt=job.attempts,
            duration=round(end.finished_at - end.started_at, 3),
            seconds=round(end.finished_at - job.received_at, 3),
        )
