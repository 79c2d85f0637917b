"""Rates: token buckets, one a key, in bounded memory."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

#: Buckets kept; the ones unused for longest are forgotten, which fills them.
BUCKETS = 65_536


@dataclass(slots=True)
class Rate:
    """At most ``per_minute`` takings a minute for each key, and as many at once after a minute of silence."""

    per_minute: int
    buckets: int = BUCKETS
    _filled: OrderedDict[str, tuple[float, float]] = field(default_factory=OrderedDict)  # key: (level, at)

    def take(self, key: str, now: float) -> float:
        """Take one: 0 when it is allowed, else the seconds until the next one is. ``now`` in seconds."""
        level = self._level(key, now)
        if level < 1.0:
            return (1.0 - level) * 60.0 / self.per_minute
        self._filled[key] = (level - 1.0, now)
        self._filled.move_to_end(key)
        if len(self._filled) > self.buckets:
            self._filled.popitem(last=False)
        return 0.0

    def give_back(self, key: str, now: float) -> None:
        """Undo a taking that was not needed."""
        self._filled[key] = (min(float(self.per_minute), self._level(key, now) + 1.0), now)

    def wait(self, key: str, now: float) -> float:
        """As :meth:`take`, without taking."""
        level = self._level(key, now)
        return 0.0 if level >= 1.0 else (1.0 - level) * 60.0 / self.per_minute

    def _level(self, key: str, now: float) -> float:
        level, at = self._filled.get(key, (float(self.per_minute), now))
        if at > now:  # the clock was set back: the bucket keeps its level and is filled from now on
            at = now
            self._filled[key] = (level, now)
        return min(float(self.per_minute), level + (now - at) * self.per_minute / 60.0)
