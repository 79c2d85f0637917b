"""What a webhook's failures in a row come to; pure, the poster (webhooks.py) keeps time.

The breaker counts attempts without an answer, 429 and 5xx; other answers are about one event.

    fewer than FAILING    as many attempts at once as the webhook takes
    FAILING               one at a time, so that dead ones leave the pool to the others
    RESTING               and a rest after each, doubling to MOST_RESTS, so that what waits is not used up on it
    a success             all of it is over; after RESTING what waits for its next attempt is tried soon

Nobody knows how many failures there were before the start: at the first success what waited then is tried soon, too.
"""

from __future__ import annotations

from dataclasses import dataclass

#: Failed attempts in a row after which a webhook gets one attempt at a time, and those after which it rests.
FAILING = 3
RESTING = 10
#: The longest rest, as a multiple of the first.
MOST_RESTS = 30.0
#: Seconds between two times that what waits for a webhook is tried at once because it answers again.
HASTEN_AGAIN = 600.0


@dataclass(slots=True)
class Breaker:
    """``not_before``: the latest time that a Retry-After has named, seconds since the epoch.

    ``answered``: whether the webhook has answered well since the start.
    """

    failures: int = 0
    not_before: float = 0.0
    answered: bool = False
    _hastened_at: float = float("-inf")

    @property
    def is_sound(self) -> bool:
        return self.failures < FAILING

    def slots(self, concurrency: int) -> int:
        """Attempts that a webhook may have under way which takes ``concurrency``."""
        return concurrency if self.is_sound else 1

    def failed(self, put_off_until: float | None) -> float | None:
        """One more failure; the rest that follows, as a multiple of the first, or None for none."""
        self.failures += 1
        if put_off_until is not None:
            self.not_before = max(self.not_before, put_off_until)
        if self.failures < RESTING:
            return None
        return min(2.0 ** min(self.failures - RESTING, 10), MOST_RESTS)

    def succeeded(self, at: float) -> bool:
        """It answers, at this time of a clock that runs evenly. Whether what waits for it is to be tried soon.

        So it is when it was down. One that stumbles, or comes and goes, keeps to the schedule.
        """
        hasten = self.failures >= RESTING and at - self._hastened_at >= HASTEN_AGAIN
        if hasten:
            self._hastened_at = at
        self.failures = 0
        self.answered = True
        return hasten


@dataclass(frozen=True, slots=True)
class Standing:
    """How a webhook stands just now: attempts in a row that failed; seconds it still rests, None when it does not."""

    failures: int = 0
    rests_for: float | None = None

    @classmethod
    def at(cls, now: float, failures: int, rests_until: float | None) -> Standing:
        """Of times of one clock."""
        return cls(failures, None if rests_until is None else max(0.0, rests_until - now))


def says_ill(state: str, status: int | None) -> bool:
    """Whether an attempt says that the receiver is not well, rather than something about its event."""
    if state == "delivered":
        return False
    return status is None or status == 429 or status >= 500
