"""Days as the pages count them: in UTC."""

from __future__ import annotations

from datetime import UTC, datetime

#: Seconds.
DAY = 86_400


def midnight(moment: float) -> float:
    """The beginning of its day."""
    return moment // DAY * DAY


def first_of(days: int, moment: float) -> float:
    """Where the last ``days`` days begin, of which the moment's own is one."""
    return midnight(moment) - (days - 1) * DAY


def day_of(moment: float) -> str:
    """Its day, as 2026-01-31."""
    return datetime.fromtimestamp(moment, UTC).date().isoformat()
