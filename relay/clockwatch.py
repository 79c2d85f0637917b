"""Notices that the clock of the system was set: what is planned by the time of day must not wait for a wrong year."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import structlog

from relay.store import clock as clock_verbs
from relay.store.engine import StoreUnavailable
from relay.store.store import Store

log = structlog.get_logger()

#: Seconds between two looks.
INTERVAL = 5.0
#: Seconds by which the clock may differ from the time that passed before it counts as set.
TOLERANCE = 10.0


class ClockWatch:
    """Compares the clock with the time that passed; ``on_set_back`` is told how many seconds it went back."""

    def __init__(self, store: Store, clock: Callable[[], float], on_set_back: Callable[[float], None]) -> None:
        self._store = store
        self._clock = clock
        self._on_set_back = on_set_back
        self._ahead = self._now_ahead()

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
        if step < -TOLERANCE:
            now = self._clock()
            try:
                await self._store.write(lambda tx: clock_verbs.set_back(tx, -step, now))
            except StoreUnavailable:
                return  # the writer has logged why
            self._on_set_back(-step)
        self._ahead = ahead

    def _now_ahead(self) -> float:
        return self._clock() - time.monotonic()
