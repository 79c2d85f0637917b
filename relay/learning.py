"""Once an hour: how long after the end of its lease mail to an address is still written, by this server's own mail."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from relay.core.attribution import Delays
from relay.store import figures
from relay.store.engine import StoreUnavailable
from relay.store.reader import Reader

log = structlog.get_logger()

#: Seconds between two looks.
INTERVAL = 3600.0


class Learning:
    """``learned`` is told what was found; with too little mail that is nothing, and the half-life goes on counting."""

    def __init__(self, reader: Reader, learned: Callable[[Delays], None]) -> None:
        self._reader = reader
        self._learned = learned

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            try:
                await self.look()
            except StoreUnavailable as error:
                log.error("delays not read", error=str(error))
            await asyncio.sleep(INTERVAL)

    async def look(self) -> None:
        self._learned(Delays.of(await figures.delays(self._reader)))
