"""What the page shows, as it happens: entries that are put here and followed from there.

An entry has a kind and an id; putting the same one again replaces it. Whoever follows gets everything that is there,
then every change, in order.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["letter", "mail", "history", "crm"]

#: Entries of each kind that are kept, the last ones put.
KEPT = 50


@dataclass(frozen=True, slots=True)
class Entry:
    """``version`` counts all changes of the board from 1."""

    version: int
    kind: Kind
    id: str
    content: dict[str, Any]


class Board:
    """Lives in one event loop."""

    def __init__(self) -> None:
        self._entries: dict[Kind, dict[str, Entry]] = {"letter": {}, "mail": {}, "history": {}, "crm": {}}
        self._version = 0
        self._changed = asyncio.Event()
        self._closed = False
        #: How many are following now.
        self.followers = 0

    def put(self, kind: Kind, entry_id: str, content: dict[str, Any]) -> None:
        """Show ``content`` (JSON) as the newest entry; what is shown already changes nothing."""
        entries = self._entries[kind]
        known = entries.get(entry_id)
        if known is not None and known.content == content:
            return
        self._version += 1
        entries.pop(entry_id, None)
        entries[entry_id] = Entry(self._version, kind, entry_id, content)
        if len(entries) > KEPT:
            del entries[next(iter(entries))]
        self._wake()

    def shown(self, kind: Kind) -> list[Entry]:
        """The entries of one kind in the order they were put."""
        return list(self._entries[kind].values())

    def close(self) -> None:
        """End every ``follow``."""
        self._closed = True
        self._wake()

    async def follow(self, silence: float) -> AsyncGenerator[Entry | None]:
        """Every entry, then every change; None after each ``silence`` seconds in which nothing changed."""
        seen = 0
        self.followers += 1
        try:
            while not self._closed:
                changed = self._changed
                fresh = [entry for entries in self._entries.values() for entry in entries.values()]
                fresh = sorted((entry for entry in fresh if entry.version > seen), key=lambda entry: entry.version)
                seen = self._version
                for entry in fresh:
                    yield entry
                if not changed.is_set():
                    try:
                        async with asyncio.timeout(silence):
                            await changed.wait()
                    except TimeoutError:
                        yield None
        finally:
            self.followers -= 1

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
