"""Once an hour: what is past its retention goes, and so do body files that no message names."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from relay.bodies import Bodies
from relay.store import changes, retention
from relay.store import clock as clock_verbs
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
#: Seconds by which the clock has leapt ahead when it is not to be trusted, and for how long it is not. At a start it is
#: not where no daemon ran for longer than that: a machine that is off at night must come to delete, too.
LEAP = 3600.0
DISTRUST = 86400.0


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
    """:meth:`begin`, then :meth:`run`."""

    def __init__(self, store: Store, bodies: Bodies, ages: Ages, clock: Callable[[], float]) -> None:
        self._store = store
        self._bodies = bodies
        self._ages = ages
        self._clock = clock
        self._ahead = clock() - time.monotonic()
        self._trusted_at = 0.0

    async def begin(self, away: float) -> None:
        """``away``: seconds for which no daemon ran before this start, by the clock. Raises StoreUnavailable.

        A start on the day after the clock was doubted goes on to doubt it.
        """
        if away > DISTRUST:
            await self._doubt()
        elif (since := await clock_verbs.doubted(self._store.reader)) is not None:
            left = since + DISTRUST - self._clock()
            if 0 < left <= DISTRUST:  # beyond that it was set back since
                self._trusted_at = time.monotonic() + left

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
        """Whether things may be deleted by the clock: not on the day after it leapt ahead, for it may be corrected."""
        passed = time.monotonic()
        ahead = self._clock() - passed
        leap, self._ahead = ahead - self._ahead, ahead
        if leap > LEAP:
            log.error("nothing is deleted: the clock leapt ahead", seconds=round(leap), hours=DISTRUST / 3600)
            await self._doubt()
        return passed >= self._trusted_at

    async def _doubt(self) -> None:
        self._trusted_at = time.monotonic() + DISTRUST
        now = self._clock()
        with contextlib.suppress(StoreUnavailable):  # the writer has logged why; a full disk is no reason not to start
            await self._store.write(lambda tx: clock_verbs.doubt(tx, now), turn=Turn.IDLE)

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
