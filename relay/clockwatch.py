"""Notices that the clock of the system was set: what is planned by the time of day must not wait for a wrong year."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog

from relay.store import clock as clock_verbs
from relay.store.clock import TOLERANCE
from relay.store.engine import StoreUnavailable
from relay.store.store import Store

log = structlog.get_logger()

#: Seconds between two looks.
INTERVAL = 5.0


class ClockWatch:
    """Compares the clock with the time that passed; ``on_set`` is told the seconds that it went back (< 0: ahead)."""

    def __init__(self, store: Store, clock: Callable[[], float], on_set: Callable[[float], None]) -> None:
        self._store = store
        self._clock = clock
        self._on_set = on_set
        self._ahead = self._now_ahead()
        self._moved: clock_verbs.Moved | None = None

    async def begin(self) -> None:
        """Before mail and page views are taken: mend what a clock left that was set while no daemon ran."""
        now = self._clock()
        self._moved = await self._store.write(lambda tx: clock_verbs.began(tx, now))
        if self._moved is not None:
            log.error("the clock was set", seconds=-round(self._moved.by, 1), hint="before this start, or it is slow")

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            await asyncio.sleep(INTERVAL)
            await self.look()

    async def look(self) -> None:
        """Compare once. What the store could not take is tried again at the next look."""
        ahead = self._now_ahead()
        step = ahead - self._ahead
        if abs(step) > TOLERANCE:
            log.error("the clock was set", seconds=round(step, 1), hint="times in History may be wrong")
            now = self._clock()
            try:
                moved = self._moved
                self._moved = await self._store.write(lambda tx: clock_verbs.was_set(tx, step, now, moved))
            except StoreUnavailable:
                return  # the writer has logged why
            self._on_set(-step)
        self._ahead = ahead

    def is_doubtful(self) -> bool:
        """Whether it was set since the last look: what it says must not give anything up. A slow drift is no reason."""
        return abs(self._now_ahead() - self._ahead) > TOLERANCE

    def _now_ahead(self) -> float:
        return self._clock() - time.monotonic()
