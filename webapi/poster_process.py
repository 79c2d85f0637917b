"""The poster in a process of its own: composing, signing and keeping track of posts holds no mail up.

    extraction ── submit ──▶ PosterProcess ──▶ poster_worker.py: Poster ──▶ request_process.py ──▶ receivers
    store ◀── claims and results ── asks ◀─────┘

Its store is the daemon's, which it asks by name (webapi/post_store.py). While there is no process, or it has not yet
looked at what waits, nothing is claimed for it: posts wait in the store. When it dies the claims of its run are void,
what was under way is posted again under its id, and another is started.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Protocol

import structlog

from relay import background
from relay.child import Child, patience, popen
from relay.pace import Pace
from relay.store import posts
from relay.store.engine import StoreUnavailable
from relay.store.post import PostJob
from relay.store.store import Store
from webapi.breaker import Standing
from webapi.poster_frames import Answered, Ask, Close, LogLevel, Settings, State, Submit, Wake, pack, read
from webapi.request_frames import READY
from webapi.stored_posts import StoredPosts, new_claim
from webapi.tally import Tally

log = structlog.get_logger()

#: Seconds between two starts of the process.
PAUSE = 1.0
#: Seconds without a sign of life after which it is taken to hang.
PATIENCE = 60.0
#: Seconds that it may take to end when its grace is over.
LATE = 5.0
#: Octets that may wait for it to read them; then posts are left in the store.
WAITING = 16 * 1024 * 1024
#: Octets of the socket.
_BUFFER = 1024 * 1024
#: What it may ask: the methods of PostStore.
_METHODS = frozenset(("due", "take", "next_at", "release", "tried", "hasten", "finish"))


class Posting(Protocol):
    """What the rest of the daemon asks of a Poster (webapi/webhooks.py), wherever that is."""

    @property
    def claim(self) -> str | None:
        """By what to claim posts that are submitted next; None: leave them in the store."""
        ...

    @property
    def tally(self) -> Tally: ...
    def submit(self, jobs: Sequence[PostJob], passed_over: Collection[int] = ()) -> None: ...
    def backed_up(self) -> frozenset[int]: ...
    def wake(self) -> None: ...
    def standing(self, webhook: int) -> Standing: ...
    def set_log_level(self, level: str) -> None: ...
    async def start(self) -> None: ...
    async def close(self, grace: float) -> None: ...


class PosterProcess:
    """A Posting, and its process.

    Claims and results are written when ``pace`` says that no message is being taken (relay/pace.py).
    """

    def __init__(self, store: Store, settings: Settings, clock: Callable[[], float], pace: Pace | None = None) -> None:
        self._store = store
        self._settings = settings
        self._clock = clock
        self._pace = pace or Pace()
        self._child: Child | None = None
        self._claim: str | None = None
        self._missed: set[int] = set()  # webhooks whose posts came while nobody claimed any
        self._state = State()
        self._before = Tally()  # of earlier runs
        self._asks: set[asyncio.Task[None]] = set()
        self._recording: set[asyncio.Task[None]] = set()
        self._closing = False
        self._keeper: asyncio.Task[None] | None = None

    @property
    def claim(self) -> str | None:
        child = self._child
        if self._claim is None or child is None or child.writer.transport.get_write_buffer_size() > WAITING:
            return None
        return self._claim

    @property
    def pid(self) -> int | None:
        """The process's, None while there is none."""
        return None if self._child is None else self._child.process.pid

    @property
    def tally(self) -> Tally:
        """Since the daemon's start."""
        return self._before + self._state.tally

    async def start(self) -> None:
        """Start the process; it need not be ready."""
        self._keeper = background.begin("the poster's process", self._keep)

    def backed_up(self) -> frozenset[int]:
        return self._state.backed_up

    def submit(self, jobs: Sequence[PostJob], passed_over: Collection[int] = ()) -> None:
        """As Poster.submit. Jobs of another claim than that of now are not posted: it is void."""
        if self._claim is None:
            self._missed.update(passed_over)
        else:
            self._tell(Submit([job for job in jobs if job.claim == self._claim], frozenset(passed_over)))

    def wake(self) -> None:
        if self._claim is not None:
            self._tell(Wake())

    def set_log_level(self, level: str) -> None:
        self._settings = replace(self._settings, log=(level, self._settings.log[1]))
        if self._claim is not None:
            self._tell(LogLevel(level))

    def standing(self, webhook: int) -> Standing:
        found = self._state.standings.get(webhook)
        return Standing() if found is None else Standing.at(time.monotonic(), *found)

    async def close(self, grace: float) -> None:
        """As Poster.close; the process ends. One that is being started is killed: the next start voids its claims."""
        self._closing = True
        if self._keeper is not None:
            if self._claim is not None:
                self._tell(Close(grace))
                await asyncio.wait({self._keeper}, timeout=grace + LATE)
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        if self._child is not None:
            await self._end(self._child)

    def _tell(self, message: object) -> None:
        if self._child is not None:
            self._send(self._child, message)

    def _send(self, child: Child, message: object) -> None:
        """What cannot be sent is found again in the store by the next process."""
        try:
            child.write(pack(message))
        except Exception:
            log.exception("the poster's process was not told", what=type(message).__name__)
            child.process.kill()

    async def _keep(self) -> None:
        """Start it, answer it, and start another when it ended."""
        if self._child is not None:  # after a failure of ours
            await self._end(self._child)
            await self._void()
        while not self._closing:
            try:
                child = await Child.spawn(self._popen, READY, _BUFFER)
            except OSError as error:
                log.error("the poster's process can't be started", reason=f"{type(error).__name__}: {error}")
                await asyncio.sleep(PAUSE)
                continue
            self._child = child
            claim = new_claim()
            self._tell(replace(self._settings, claim=claim))
            reason = ""
            try:
                await self._listen(child, claim)
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"
            await self._end(child)
            if not self._closing:
                log.error("the poster's process ended", reason=reason, exit_code=child.process.returncode)
                await asyncio.sleep(PAUSE)
                await self._void()

    async def _end(self, child: Child) -> None:
        self._child = self._claim = None
        self._before += self._state.tally
        self._state = State()
        if self._recording:  # what was answered need not be posted again
            await asyncio.wait(tuple(self._recording), timeout=LATE)
        for task in tuple(self._asks):
            task.cancel()
        await child.end()

    async def _void(self) -> None:
        """Before another is started: what the last one had claimed is due again."""
        while True:
            try:
                now = self._clock()
                await self._store.write(lambda tx: posts.void_post_claims(tx, now))  # noqa: B023
                return
            except Exception as error:
                log.error("posting waits for the store", error=f"{type(error).__name__}: {error}")
                await asyncio.sleep(PAUSE)

    async def _listen(self, child: Child, claim: str) -> None:
        store = StoredPosts(self._store, claim, lambda: self._pace.lull(self._clock))
        while True:
            async with patience(PATIENCE):
                message = await read(child.reader)
            if isinstance(message, Ask):
                task = asyncio.create_task(self._answer(child, store, message))
                asks = self._recording if message.method == "finish" else self._asks
                asks.add(task)
                task.add_done_callback(asks.discard)
            elif isinstance(message, State):
                self._state = message
                if self._claim is None and not self._closing:  # it has looked at what waits
                    self._claim = claim
                    missed, self._missed = self._missed, set()
                    self._tell(Submit([], frozenset(missed)))

    async def _answer(self, child: Child, store: StoredPosts, ask: Ask) -> None:
        try:
            if ask.method not in _METHODS:
                raise ValueError(f"no method {ask.method!r}")
            answer = Answered(ask.number, await getattr(store, ask.method)(*ask.arguments))
        except StoreUnavailable as error:
            answer = Answered(ask.number, unavailable=str(error))
        except Exception as error:
            log.exception("the poster asked in vain", method=ask.method)
            answer = Answered(ask.number, failed=f"{type(error).__name__}: {error}")
        self._send(child, answer)

    def _popen(self, channel: int) -> subprocess.Popen[bytes]:
        """It is one of us: the whole environment is its, too."""
        shared = self._store.writer.edition.descriptor
        return popen("webapi.poster_worker", channel, [str(shared)], os.environ, [shared])
