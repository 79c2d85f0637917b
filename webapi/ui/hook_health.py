"""How a webhook does, at a glance: its success, how quickly it answers, and a bar for each of its latest posts.

a bar       one post, the newest at the right
height      the logarithm of what its last attempt took, from 10 ms (a fifth) to 15 s (all of it)
kind        ok: delivered by the first attempt; retried: by a later one; failed; trying: waits for another attempt;
            waiting: for its first
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from relay.store.post_log import RECENT, Outcome
from webapi.hook_models import WebhookDetail

#: Units of the picture: a bar with its gap, and the height.
STEP, HEIGHT = 4, 32
_SHORTEST, _LONGEST, _LEAST = 0.01, 15.0, 0.2


@dataclass(frozen=True, slots=True)
class Bar:
    x: int
    height: float
    kind: str

    @property
    def y(self) -> float:
        return HEIGHT - self.height


@dataclass(frozen=True, slots=True)
class Health:
    """``success`` from 0 to 1, None while nothing was delivered or given up. Times in seconds, None without any."""

    total: int
    counts: Counter[str]
    success: float | None
    median: float | None
    slow: float | None  # 95 of 100 answers were quicker
    since: float | None
    bars: tuple[Bar, ...]

    @property
    def width(self) -> int:
        return STEP * RECENT

    @property
    def in_words(self) -> str:
        """The picture for whoever does not see it."""
        if not self.total:
            return "nothing was posted yet"
        words = [f"{count} {_WORDS[kind]}" for kind in _WORDS if (count := self.counts[kind])]
        return f"the latest {self.total} posts: {', '.join(words)}"


_WORDS = {
    "ok": "delivered at once",
    "retried": "delivered after a failure",
    "failed": "failed",
    "trying": "to be tried again",
    "waiting": "waiting",
}


def health(outcomes: Sequence[Outcome]) -> Health:
    """Of the latest posts, newest first."""
    kinds = [_kind(outcome) for outcome in outcomes]
    counts = Counter(kinds)
    delivered = counts["ok"] + counts["retried"]
    ended = delivered + counts["failed"]
    took = sorted(outcome.seconds for outcome in outcomes if outcome.seconds is not None)
    bars = [
        Bar(STEP * (RECENT - 1 - place), _height(outcome.seconds), kind)
        for place, (outcome, kind) in enumerate(zip(outcomes, kinds, strict=True))
    ]
    return Health(
        total=len(outcomes),
        counts=counts,
        success=delivered / ended if ended else None,
        median=took[len(took) // 2] if took else None,
        slow=took[min(len(took) - 1, len(took) * 95 // 100)] if took else None,
        since=outcomes[-1].created_at if outcomes else None,
        bars=tuple(reversed(bars)),
    )


def _kind(outcome: Outcome) -> str:
    if outcome.state == "delivered":
        return "ok" if outcome.attempts <= 1 else "retried"
    if outcome.state == "waiting":
        return "trying" if outcome.attempts else "waiting"
    return "failed"


def _height(seconds: float | None) -> float:
    share = 0.0
    if seconds is not None:
        share = math.log(max(seconds, _SHORTEST) / _SHORTEST) / math.log(_LONGEST / _SHORTEST)
    return round(HEIGHT * (_LEAST + (1 - _LEAST) * min(share, 1.0)), 1)


def state_of(webhook: WebhookDetail) -> str:
    """In one word: on, off, resting or failing."""
    if not webhook.enabled:
        return "disabled"
    if webhook.rests_for is not None:
        return "resting"
    return "failing" if webhook.failures else "enabled"
