"""How late the event loop is, which everybody waits for; and how much of that was its own work."""

from __future__ import annotations

import asyncio
import time

import structlog

from relay.core.metrics import Histogram

log = structlog.get_logger()

#: Seconds between two looks.
INTERVAL = 0.05
#: Seconds of lag that are worth a line in the log.
LONG = 1.0
#: Seconds over which the largest lag is remembered at least.
REMEMBERED = 60.0
BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class LoopWatch:
    """Asks to be woken, again and again, and notes how much later it was.

    ``busy`` is the CPU time of the loop's thread from one look to the next. No callback of ours has computed for
    longer. Where it is much less than the lag, others had the processor or the interpreter's lock, or it waited for a
    disk.
    """

    def __init__(self) -> None:
        self.lag = Histogram(BOUNDS)
        self.busy = Histogram(BOUNDS)
        self._largest = self._before = 0.0
        self._since = 0.0

    @property
    def largest(self) -> float:
        """The largest lag in seconds of the last one to two minutes; reading it changes nothing."""
        return max(self._largest, self._before)

    async def run(self) -> None:
        """Watch until cancelled."""
        loop, before = asyncio.get_running_loop(), time.thread_time()
        while True:
            due = loop.time() + INTERVAL
            await asyncio.sleep(INTERVAL)
            now, used = loop.time(), time.thread_time()
            self.note(now - due, now, used - before)
            before = used

    def note(self, lag: float, now: float, busy: float) -> None:
        """One look, all in seconds. ``now`` is of a clock that runs evenly."""
        self.lag.observe(lag)
        self.busy.observe(busy)
        if now - self._since >= REMEMBERED:
            self._before, self._largest, self._since = self._largest, 0.0, now
        self._largest = max(self._largest, lag)
        if lag >= LONG:
            log.warning("event loop held up", seconds=round(lag, 3), busy=round(busy, 3))
