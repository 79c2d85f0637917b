"""What the poster has in memory for one webhook, and the rules that keep its first attempts in order. No I/O.

    waiting    jobs that were claimed, in order, each with the time of its claim
    behind     older posts wait in the store: newer ones must not overtake them, so they are given back
    drained    counts the times that everything was given back: who claimed meanwhile has claimed what is newer

A job is a copy of rows. When the copy is out of date, or the claim too old, it is given back to be read again, and all
behind it are, too: else they would overtake it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field

from relay.core.hook import CONCURRENCY
from relay.store.post import CLAIM, PostJob
from webapi.breaker import Breaker

#: Jobs that may wait after they were handed over; characters of their text.
HANDED = 1000
SHARE = 4 * 1024 * 1024
#: Jobs claimed ahead, as a multiple of the attempts that a webhook may have under way.
AHEAD = 4


@dataclass(slots=True)
class Lane:
    """``memory``: characters that wait.

    ``gone``: the receiver wants nothing more (410), which is not recorded yet. ``telling``: answers with a deal
    that are not recorded yet; the next letter of the thread is to say it.
    """

    waiting: deque[tuple[PostJob, float]] = field(default_factory=deque)
    memory: int = 0
    running: int = 0
    concurrency: int = CONCURRENCY
    breaker: Breaker = field(default_factory=Breaker)
    rest: asyncio.TimerHandle | None = None
    behind: bool = False
    gone: bool = False
    telling: int = 0
    given_back: int = 0  # counts; a look begun before the last of them does not clear ``behind``
    drained: int = 0

    @property
    def slots(self) -> int:
        """Attempts that it may have under way."""
        return self.breaker.slots(self.concurrency)

    @property
    def rests_until(self) -> float | None:
        """When its rest is over, in the event loop's time."""
        return None if self.rest is None else self.rest.when()

    @property
    def is_free(self) -> bool:
        """Whether it may begin one more attempt."""
        return self.rest is None and not self.gone and not self.telling and self.running < self.slots

    @property
    def is_looked_after(self) -> bool:
        """Whether what is under way, waits or rests here brings the next look into the store by itself."""
        return self.rest is not None or self.running >= self.slots or len(self.waiting) > self.slots

    def is_backed_up(self, *, crowded: bool) -> bool:
        """Whether it takes nothing that is handed over. ``crowded``: all lanes together hold too much."""
        full = len(self.waiting) >= HANDED or self.memory > SHARE
        return self.behind or full or (bool(self.waiting) and crowded)

    def room(self, *, crowded: bool) -> int:
        """Jobs to claim: none when too much of them waits. ``crowded``: all lanes together hold too much.

        Then it gets one at a time, so that what others have heaped up holds it up no further.
        """
        if self.memory > SHARE:
            return 0
        if crowded:
            return 0 if self.waiting or not self.is_free else 1
        return max(0, AHEAD * self.slots - len(self.waiting))

    def put(self, job: PostJob, claimed_at: float) -> None:
        self.waiting.append((job, claimed_at))
        self.memory += weight(job)
        self.concurrency = job.hook.settings.concurrency

    def is_stale(self, now: float, edition: int) -> bool:
        """Whether its first job is not to be attempted as it is."""
        job, claimed_at = self.waiting[0]
        return claimed_at < now - CLAIM / 2 or job.edition != edition

    def take(self) -> PostJob:
        job, _ = self.waiting.popleft()
        self.memory -= weight(job)
        return job

    def drain(self) -> list[PostJob]:
        """Everything, to be given back."""
        jobs = [job for job, _ in self.waiting]
        self.waiting.clear()
        self.memory = 0
        self.drained += 1
        return jobs


def weight(job: PostJob) -> int:
    """Characters that a waiting job holds in memory."""
    return len(job.message.text or "") + len((job.extras and job.extras.html) or "")
