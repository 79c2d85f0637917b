"""New mail, told at once: server-sent events (HTML, "Server-sent events") to every open History.

One task looks for a newer message about once a second, however many listen, and only while anybody does. An event says
no more than that there is one that this listener sees; the page then asks for its own list, with its own filters.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import structlog
from aiohttp import web

from relay.store import glance, users
from relay.store.engine import StoreUnavailable
from relay.store.reader import Reader
from relay.store.store import Store
from webapi.auth import site_ids
from webapi.problems import Problem
from webapi.ui.page import View

log = structlog.get_logger()

#: Seconds between two looks for a newer message; a listener notices within as long that its reader is gone.
STEP = 1.0
#: Seconds between two signs of life, which keep proxies from ending what is silent; the session is looked at, too.
SIGN = 15.0
#: Listeners at once, of all users and of one. Each costs a connection, of which the server has a limited number.
LISTENERS, OF_ONE = 200, 20


@dataclass(slots=True)
class Bell:
    """Rings for every listener of one store. ``newest`` is the id of the newest message of all."""

    newest: int = 0
    listeners: Counter[str] = field(default_factory=Counter)
    _rung: asyncio.Event = field(default_factory=asyncio.Event)
    _looking: asyncio.Task[None] | None = None

    @contextmanager
    def listening(self, name: str, reader: Reader) -> Iterator[None]:
        """A place for one more listener; raises Problem 429 when there is none."""
        if self.listeners.total() >= LISTENERS or self.listeners[name] >= OF_ONE:
            raise Problem(429, "too many pages listen for new mail", headers={"Retry-After": "60"})
        self.listeners[name] += 1
        if self._looking is None:
            self._looking = asyncio.create_task(self._look(reader), name="history-bell")
        try:
            yield
        finally:
            self.listeners[name] -= 1
            if not self.listeners.total():
                self.listeners.clear()
                self._looking.cancel()
                self._looking = None

    async def rung(self) -> None:
        """Return with the next look, whether it found anything or not."""
        await self._rung.wait()

    async def _look(self, reader: Reader) -> None:
        while True:
            try:
                self.newest = await glance.newest(reader, None)
            except StoreUnavailable:
                pass  # the store has logged it; it is asked again
            except Exception:  # else every listener would wait for ever
                log.exception("history.bell_failed")
            self._rung.set()
            self._rung = asyncio.Event()
            await asyncio.sleep(STEP)


_BELLS: WeakKeyDictionary[Store, Bell] = WeakKeyDictionary()


async def events(view: View) -> web.StreamResponse:
    """A stream that ends with the session, with the daemon, or with its reader."""
    store = view.context.store
    bell = _BELLS.setdefault(store, Bell())
    response = web.StreamResponse(
        headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    )
    if view.request.method == "HEAD":
        await response.prepare(view.request)
        return response
    with bell.listening(view.caller.name, store.reader):
        await response.prepare(view.request)
        try:
            await _tell(view, response, bell)
        except (ConnectionError, StoreUnavailable):
            pass  # the browser comes again
    return response


async def _tell(view: View, response: web.StreamResponse, bell: Bell) -> None:
    loop, store = asyncio.get_running_loop(), view.context.store
    known, told, looked = _known(view.request), -1, loop.time()
    await response.write(b"retry: 3000\n\n")
    sites = view.caller.sites
    while not view.context.draining():
        transport = view.request.transport
        if transport is None or transport.is_closing():
            return
        if bell.newest != told:
            told = bell.newest
            own = told if sites is None else await glance.newest(store.reader, sites)
            if own > known:
                known = own
                await response.write(b"id: %d\nevent: mail\ndata: %d\n\n" % (own, own))
        if loop.time() - looked >= SIGN:  # also while there is mail: a session ends whatever comes
            looked = loop.time()
            session = await users.session(store.reader, view.visitor.token_hash, view.context.clock())
            if session is None:
                await response.write(b"event: end\ndata: \n\n")
                return
            sites = site_ids(store, session.user.sites)
            await response.write(b":\n\n")
        await bell.rung()


def _known(request: web.Request) -> int:
    """The newest message that the page shows, or was told of before the connection broke."""
    text = request.headers.get("Last-Event-ID") or request.query.get("after", "")
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else 0
