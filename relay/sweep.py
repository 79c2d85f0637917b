"""Once an hour: what is past its retention goes, and so do body files that no message names."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from relay.bodies import Bodies
from relay.store import changes, retention
from relay.store.clock import DISTRUST, LEAP, is_doubted
from relay.store.engine import StoreUnavailable, Turn
from relay.store.retention import Cut
from relay.store.store import Store

log = structlog.get_logger()

#: Seconds between two sweeps.
INTERVAL = 3600.0
#: Seconds until the first one: a clock that was wrong when the machine started has been set by then. Who starts the
#: daemon more often than that keeps everything for ever.
FIRST = 600.0
#: Seconds that a body file must have been left alone before it may be an orphan. One of a message that is still being
#: received or stored is none, however old (Bodies.names).
ORPHAN_AGE = 3600.0


@dataclass(frozen=True, slots=True)
class Ages:
    """Seconds after which each class of data ends (relay.toml, [retention])."""

    raw: float
    messages: float
    visits: float
    routes: float
    visitor_ip: float
    changes: float

    def cut(self, now: float) -> Cut:
        ages = (self.raw, self.messages, self.visits, self.routes, self.visitor_ip)
        return Cut(*(now - age for age in ages))


class Sweeper:
    def __init__(self, store: Store, bodies: Bodies, ages: Ages, clock: Callable[[], float]) -> None:
        self._store = store
        self._bodies = bodies
        self._ages = ages
        self._clock = clock
        self._ahead = clock() - time.monotonic()
        self._trusted_at = 0.0

    async def run(self) -> None:
        """Sweep until cancelled."""
        await asyncio.sleep(FIRST)
        while True:
            try:
                if await self.trusts_clock():
                    await self.sweep()
            except (StoreUnavailable, OSError) as error:
                log.error("sweep failed", error=str(error))
            except Exception:
                log.exception("sweep failed")  # a bug here must not keep anything for ever
            await asyncio.sleep(INTERVAL)

    async def trusts_clock(self) -> bool:
        """Whether things may be deleted by the clock: not on the day after it leapt ahead, for it may be corrected.

        Raises StoreUnavailable.
        """
        passed = time.monotonic()
        ahead = self._clock() - passed
        leap, self._ahead = ahead - self._ahead, ahead
        if leap > LEAP:
            log.error("nothing is deleted: the clock leapt ahead", seconds=round(leap), hours=DISTRUST / 3600)
            self._trusted_at = passed + DISTRUST  # ClockWatch may not have looked yet, which notes it for later starts
        return passed >= self._trusted_at and not await is_doubted(self._store.reader, self._clock())

    async def sweep(self) -> int:
        """Everything that is past its time, in small bites; the number of body files removed."""
        removed = 0
        more = True
        while more:
            now = self._clock()
            swept = await self._store.write(lambda tx: retention.sweep(tx, self._ages.cut(now), now), turn=Turn.IDLE)  # noqa: B023
            if swept.routes:
                self._store.routes.forget_all()
            await asyncio.to_thread(self._bodies.remove, swept.files)
            removed += len(swept.files)
            more = swept.more
        before = self._clock() - self._ages.changes
        while await self._store.write(lambda tx: changes.forget(tx, before), turn=Turn.IDLE):
            pass
        return removed + await self._remove_orphans()

    async def _remove_orphans(self) -> int:
        names = await asyncio.to_thread(lambda: list(self._bodies.names(self._clock() - ORPHAN_AGE)))
        removed = 0
        for start in range(0, len(names), retention.BITE):
            some = names[start : start + retention.BITE]
            orphans = await self._store.write(lambda tx: retention.orphans(tx, some), turn=Turn.IDLE)  # noqa: B023
            await asyncio.to_thread(self._bodies.remove, orphans)
            removed += len(orphans)
        if removed:
            log.info("body files without a message removed", count=removed)
        return removed
