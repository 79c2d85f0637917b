"""Notices that the clock of the system was set: what is planned by the time of day must not wait for a wrong year."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

import structlog

from relay.store import clock as clock_verbs
from relay.store.clock import TOLERANCE
from relay.store.engine import StoreUnavailable, Turn
from relay.store.store import Store

log = structlog.get_logger()

#: Seconds between two looks, and between two notes of what the clock says.
INTERVAL = 5.0
NOTE = 600.0


class ClockWatch:
    """Compares the clock with the time that passed; ``on_set`` is told the seconds that it went back (< 0: ahead)."""

    def __init__(self, store: Store, clock: Callable[[], float], on_set: Callable[[float], None]) -> None:
        self._store = store
        self._clock = clock
        self._on_set = on_set
        self._ahead = self._now_ahead()
        self._moved: clock_verbs.Moved | None = None
        self._note_at = time.monotonic() + NOTE

    async def begin(self) -> float:
        """Before mail and page views are taken: mend what a clock left that was set while no daemon ran.

        Answers the seconds that it is ahead of when one ran last, if that is long: it is wrong, or none ran meanwhile.
        """
        now = self._clock()
        began = await self._store.write(lambda tx: clock_verbs.began(tx, now))
        self._moved = began.moved
        await self._note()  # apart: a full disk is no reason not to start
        if began.by < 0:
            log.error("the clock was set", seconds=round(began.by, 1), hint="before this start, or it is slow")
        elif began.by > 0:
            log.warning("no daemon ran, or the clock is ahead", seconds=round(began.by))
        return max(0.0, began.by)

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
        if time.monotonic() >= self._note_at:
            await self._note()

    async def _note(self) -> None:
        now = self._clock()
        self._note_at = time.monotonic() + NOTE
        with contextlib.suppress(StoreUnavailable):  # the writer has logged why
            await self._store.write(lambda tx: clock_verbs.note(tx, now), turn=Turn.IDLE)

    def is_doubtful(self) -> bool:
        """Whether it was set since the last look: what it says must not give anything up. A slow drift is no reason."""
        return abs(self._now_ahead() - self._ahead) > TOLERANCE

    def _now_ahead(self) -> float:
        return self._clock() - time.monotonic()
