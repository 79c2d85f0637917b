"""Today's figures above the list, counted no more often than they are worth."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from relay.store.glance import Glance, glance, newest
from relay.store.store import Store
from webapi.ui.page import View

#: As long as nothing new has come, figures are shown for so many times the seconds that counting them took: they cost
#: a twentieth of a core at most, and where they are counted in a moment they are never old.
WORTH = 20.0
#: Callers with different rights whose figures are kept.
KEPT = 100

Key = tuple[frozenset[int] | None, float]


@dataclass(slots=True)
class _Kept:
    """Figures by what is seen and since when: with the newest message then, and until when they hold."""

    figures: dict[Key, tuple[Glance, int, float]] = field(default_factory=dict)


_KEPT: WeakKeyDictionary[Store, _Kept] = WeakKeyDictionary()


async def today(view: View, midnight: float) -> tuple[Glance, int]:
    """The figures since ``midnight``, and the id of the newest message that the caller sees."""
    reader, sites = view.context.store.reader, view.caller.sites
    last = await newest(reader, sites)
    figures = _KEPT.setdefault(view.context.store, _Kept()).figures
    known = figures.get((sites, midnight))
    begin = time.monotonic()
    if known is not None and known[1] == last and begin < known[2]:
        return known[0], last
    found = await glance(reader, sites, midnight)
    if len(figures) >= KEPT:
        figures.clear()
    now = time.monotonic()
    figures[sites, midnight] = (found, last, now + WORTH * (now - begin))
    return found, last
