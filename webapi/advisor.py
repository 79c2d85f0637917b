"""How large a site's pools should be, by the visits of the last three days: worked out in a thread, kept for a minute.
The letters that its addresses got lately are kept so, too.

Who grows a pool reads the page again at once, and the advice says of every size what it is worth, so it stays true.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from relay.core import sizing
from relay.store import addresses, figures
from relay.store.addresses import Latest
from relay.store.reader import Reader

#: Seconds of attendance that advice looks at, and visits at most: the latest.
ATTENDANCE = 3 * 86_400.0
MOST_VISITS = 200_000
#: Seconds that advice, and the latest letters, are kept for the page.
KEPT = 60.0
#: Deliveries that are walked in a moment: for as few the latest letters are never old.
FEW = 500
#: The lease of a pool that is still to be made, in seconds.
USUAL_LEASE = 900.0
_HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class Attendance:
    """What a pool of this lease would have lived through until ``at``.

    ``busy`` are the most addresses held at once in each hour, the last one ends at ``at``; ``since`` is when the
    first begins. ``cut``: there were more visits than are looked at, the hours before the first seen say nothing.
    """

    at: float
    since: float
    advice: sizing.Advice
    busy: tuple[int, ...]
    cut: bool


@dataclass(slots=True)
class Advisor:
    """Attendance by site and lease. One is worked out at a time: it takes a core for a while.

    ``_letters``: of a site, with when they were looked through.
    """

    _kept: dict[tuple[int, float], Attendance] = field(default_factory=dict)
    _letters: dict[int, tuple[float, Latest]] = field(default_factory=dict)
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    _walk: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def attendance(self, reader: Reader, site_id: int, lease: float, now: float) -> Attendance:
        """The attendance of at most :data:`KEPT` seconds ago; raises StoreUnavailable."""
        async with self._turn:
            self._kept = {key: found for key, found in self._kept.items() if 0 <= now - found.at < KEPT}
            if (found := self._kept.get((site_id, lease))) is None:
                stays = await figures.stays(reader, site_id, now - ATTENDANCE, MOST_VISITS)
                found = await asyncio.to_thread(attended, stays, lease, now)
                self._kept[site_id, lease] = found
            return found

    async def room(self, size: int, needed: int) -> float:
        """For how many times as many visits a pool does; takes some 30 ms for one of 10,000 addresses."""
        async with self._turn:
            return await asyncio.to_thread(sizing.headroom, size, needed)

    async def letters(self, reader: Reader, site_id: int, now: float) -> Latest:
        """The latest letters of a site, where they are many as of :data:`KEPT` seconds ago; raises StoreUnavailable."""
        async with self._walk:
            self._letters = {key: found for key, found in self._letters.items() if 0 <= now - found[0] < KEPT}
            if (known := self._letters.get(site_id)) is None:
                known = now, await addresses.latest(reader, site_id)
                if known[1].walked > FEW:
                    self._letters[site_id] = known
            return known[1]


def attended(stays: Sequence[sizing.Stay], lease: float, now: float) -> Attendance:
    """Blocks for a second or so with the most visits."""
    since = now - ATTENDANCE
    busy = sizing.at_once(sizing.held_by(stays, lease), since, _HOUR, int(ATTENDANCE / _HOUR))
    return Attendance(now, since, sizing.advise(stays, lease), tuple(busy), cut=len(stays) >= MOST_VISITS)
