"""How late the event loop is: what everybody waits for when something holds it up."""

from __future__ import annotations

import asyncio

import structlog

from relay.core.metrics import Histogram

log = structlog.get_logger()

#: Seconds between two looks.
INTERVAL = 0.05
#: Seconds of lag that are worth a line in the log.
LONG = 1.0
#: Seconds over which the largest lag is remembered at least.
REMEMBERED = 60.0
BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)


class LoopWatch:
    """Asks to be woken, again and again, and notes how much later it was."""

    def __init__(self) -> None:
        self.lag = Histogram(BOUNDS)
        self._largest = self._before = 0.0
        self._since = 0.0

    @property
    def largest(self) -> float:
        """The largest lag in seconds of the last one to two minutes; reading it changes nothing."""
        return max(self._largest, self._before)

    async def run(self) -> None:
        """Watch until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + INTERVAL
            await asyncio.sleep(INTERVAL)
            now = loop.time()
            self.note(now - due, now)

    def note(self, lag: float, now: float) -> None:
        """One look. ``now`` in seconds of a clock that runs evenly."""
        self.lag.observe(lag)
        if now - self._since >= REMEMBERED:
            self._before, self._largest, self._since = self._largest, 0.0, now
        self._largest = max(self._largest, lag)
        if lag >= LONG:
            log.warning("event loop held up", seconds=round(lag, 3))
