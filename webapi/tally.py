"""What became of attempts to post, for /metrics."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from relay.core.metrics import LONG_SECONDS, Histogram
from relay.store.post import PostResult


@dataclass(slots=True)
class Tally:
    """``outcomes``: attempts by the state that they left their post in. Seconds: of attempts, and from an event to its
    delivery."""

    outcomes: Counter[str] = field(default_factory=Counter)
    durations: Histogram = field(default_factory=Histogram)
    delays: Histogram = field(default_factory=lambda: Histogram(LONG_SECONDS))

    def note(self, result: PostResult) -> None:
        self.outcomes[result.state] += 1
        self.durations.observe(result.duration)
        if result.state == "delivered":
            self.delays.observe(result.started_at + result.duration - result.job.created_at)

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            self.outcomes + other.outcomes,
            self.durations + other.durations,
            self.delays + other.delays,
        )
