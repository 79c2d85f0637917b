"""Mail goes first. Reading and posting a message cost as much as accepting and forwarding it, and nobody waits for them
on an open connection: while messages come in thick they wait, each for LAG at most.
"""

from __future__ import annotations

#: More messages a second than this, looked at over so many seconds, are thick; so many octets count as one more.
THICK = 200.0
WINDOW = 0.1
OCTETS = 50_000
#: Seconds that a message waits at most because of other mail.
LAG = 4.0


def is_ahead(time: float, now: float, most: float) -> bool:
    """Whether ``time`` is still to come. More than ``most`` ahead it is not: a clock set back holds nothing up."""
    return time - most <= now < time


class Pace:
    """Whether messages come in thick. Times are seconds of any clock."""

    def __init__(self) -> None:
        self._since = 0.0
        self._weight = 0.0
        self._was_thick = False

    def note(self, now: float, size: int) -> None:
        """One more message, of ``size`` octets."""
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
