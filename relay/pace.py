"""Mail goes first. Reading and posting a message cost as much as accepting and forwarding it, and nobody waits for them
on an open connection: while messages come in thick they wait to be read, each for LAG at most. And while one message is
taken, what is written for others stands back for a moment: its own transaction would have to wait for theirs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

#: More messages a second than this, looked at over so many seconds, are thick; so many octets count as one more.
THICK = 200.0
WINDOW = 0.1
OCTETS = 50_000
#: Seconds that a message waits at most because of other mail.
LAG = 4.0
#: Seconds from one step of a message's transaction to the next, as a rule: the time in which others stand back.
MOMENT = 0.01
#: Seconds for which they do at most, and between two looks whether they may go on.
LULL = 0.05
_STEP = 0.002


def is_ahead(time: float, now: float, most: float) -> bool:
    """Whether ``time`` is still to come. More than ``most`` ahead it is not: a clock set back holds nothing up."""
    return time - most <= now < time


class Pace:
    """Whether messages come in thick. Times are seconds of any clock."""

    def __init__(self) -> None:
        self._since = 0.0
        self._weight = 0.0
        self._was_thick = False
        self._hurried_until = 0.0

    def hurry(self, now: float) -> None:
        """A step of a mail transaction: somebody waits for the next."""
        self._hurried_until = now + MOMENT

    def is_hurried(self, now: float) -> bool:
        return is_ahead(self._hurried_until, now, MOMENT)

    def note(self, now: float, size: int) -> None:
        """One more message, of ``size`` octets, which is taken: nobody waits for it any more."""
        self._hurried_until = 0.0
        self._roll(now)
        self._weight += 1 + size / OCTETS

    def is_thick(self, now: float) -> bool:
        self._roll(now)
        return self._was_thick or self._weight > THICK * WINDOW

    def _roll(self, now: float) -> None:
        passed = now - self._since
        if not 0 <= passed < WINDOW:
            self._was_thick = passed > 0 and self._weight > THICK * passed
            self._since, self._weight = now, 0.0

    async def lull(self, clock: Callable[[], float]) -> None:
        """Wait until no message is being taken, for LULL at most."""
        for _ in range(round(LULL / _STEP)):
            if not self.is_hurried(clock()):
                return
            await asyncio.sleep(_STEP)
