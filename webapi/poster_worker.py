"""The poster's process: started by webapi/poster_process.py.

Its standard input is a socket to the daemon. When the daemon dies the socket ends, and with it this process and what is
under way.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any, cast

from relay import eventloop, logs
from relay.store.edition import Edition
from relay.store.errors import StoreUnavailable
from relay.store.post import PostJob, PostResult
from webapi.compose import Composer
from webapi.poster_frames import (
    Answered,
    Ask,
    Close,
    LogLevel,
    Settings,
    State,
    Submit,
    Wake,
    bare,
    bare_result,
    pack,
)
from webapi.poster_frames import read as read_message
from webapi.request_frames import READY
from webapi.request_process import RequestProcess
from webapi.webhooks import ATTEMPTS, Poster

#: Seconds within which a change of state is told; and between two signs of life.
SOON = 0.02
ALIVE = 5.0


class AskedFailed(Exception):
    """The store's method raised, not because it is unavailable; the daemon has logged why."""


def _tell(writer: asyncio.StreamWriter, message: object) -> None:
    """Without a daemon nothing happens: soon nobody is left who would wait for an answer."""
    if not writer.is_closing():
        writer.write(pack(message))


class AskedStore:
    """The daemon's store, as a PostStore (webapi/post_store.py)."""

    def __init__(self, writer: asyncio.StreamWriter, claim: str, edition: Edition) -> None:
        self.claim = claim
        self._writer = writer
        self._edition = edition
        self._number = 0
        self._waiting: dict[int, asyncio.Future[Any]] = {}

    @property
    def edition(self) -> int:
        return self._edition.number

    async def due(self, now: float) -> list[int]:
        return cast(list[int], await self._ask("due", now))

    async def take(self, capacity: Mapping[int, int], now: float, held: Collection[int]) -> list[PostJob]:
        return cast(list[PostJob], await self._ask("take", capacity, now, held))

    async def next_at(self, now: float) -> float | None:
        return cast(float | None, await self._ask("next_at", now))

    async def release(self, jobs: Sequence[PostJob]) -> None:
        await self._ask("release", [bare(job) for job in jobs])

    async def tried(self, webhook: int, before: float | None) -> list[int]:
        return cast(list[int], await self._ask("tried", webhook, before))

    async def hasten(self, post_ids: Sequence[int], begin: float, now: float) -> None:
        await self._ask("hasten", post_ids, begin, now)

    async def finish(self, results: Sequence[PostResult], now: float) -> None:
        await self._ask("finish", [bare_result(result) for result in results], now)

    async def _ask(self, method: str, *arguments: Any) -> Any:
        self._number += 1
        number = self._number
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            _tell(self._writer, Ask(number, method, arguments))
            return await answer
        finally:
            del self._waiting[number]

    def answered(self, answer: Answered) -> None:
        future = self._waiting.get(answer.number)
        if future is None or future.done():
            return
        if answer.unavailable is not None:
            future.set_exception(StoreUnavailable(answer.unavailable))
        elif answer.failed is not None:
            future.set_exception(AskedFailed(answer.failed))
        else:
            future.set_result(answer.value)


class Teller:
    """Tells the daemon of the poster's state soon after it changed, and now and then."""

    def __init__(self, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._soon: asyncio.TimerHandle | None = None
        self.poster: Poster | None = None

    def changed(self) -> None:
        if self._soon is None:
            self._soon = asyncio.get_running_loop().call_later(SOON, self.tell)

    def tell(self) -> None:
        if self._soon is not None:
            self._soon.cancel()
            self._soon = None
        poster = self.poster
        if poster is not None:
            _tell(self._writer, State(poster.backed_up(), poster.standings(), poster.tally))

    async def live(self) -> None:
        while True:
            await asyncio.sleep(ALIVE)
            self.tell()


async def serve(channel: socket.socket, edition: Edition) -> None:
    reader, writer = await asyncio.open_connection(sock=channel)
    writer.write(READY)
    try:
        settings: Settings = await read_message(reader)
    except (asyncio.IncompleteReadError, ConnectionError):
        return  # the daemon is gone already
    logs.setup(*settings.log)  # type: ignore[arg-type]
    store, teller = AskedStore(writer, settings.claim, edition), Teller(writer)
    poster = Poster(
        store,
        Composer(settings.keys, settings.public_url, settings.links_live_for),
        RequestProcess(settings.allow_private_addresses, ATTEMPTS),
        clock=time.time,
        on_change=teller.changed,
    )
    listening = asyncio.create_task(_listen(reader, store, poster))
    life = asyncio.create_task(teller.live())
    await poster.start()
    teller.poster = poster
    teller.tell()
    grace = await listening
    if grace is not None:
        listening = asyncio.create_task(_listen(reader, store, poster))  # answers still come
        await poster.close(grace)
        teller.tell()
        listening.cancel()
    life.cancel()
    writer.close()
    await asyncio.gather(listening, life, writer.wait_closed(), return_exceptions=True)


async def _listen(reader: asyncio.StreamReader, store: AskedStore, poster: Poster) -> float | None:
    """Until the daemon says that this is the end: the seconds of grace; None when the daemon is gone."""
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            match await read_message(reader):
                case Answered() as answer:
                    store.answered(answer)
                    await asyncio.sleep(0)  # who asked goes on before what was said after it
                case Submit(jobs, passed_over):
                    poster.submit(jobs, passed_over)
                case Wake():
                    poster.wake()
                case LogLevel(level):
                    logs.set_level(cast(logs.Level, level))
                case Close(grace):
                    return grace
    os._exit(0)  # nobody is left to tell anything


def main(arguments: list[str]) -> None:
    """``arguments``: the descriptor of the store's edition."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the daemon ends us when its last post is done
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # keys are no one else's
    os.nice(10)  # mail goes first
    gc.freeze()
    with socket.socket(fileno=sys.stdin.fileno()) as channel:
        eventloop.run(serve(channel, Edition(int(arguments[0]))))


if __name__ == "__main__":
    main(sys.argv[1:])
