"""A real HTTP server on loopback that receives webhooks, records them and misbehaves on demand.

    async with Receiver() as crm:
        … a webhook with crm.url, or crm.at("/other") …
        post = (await crm.wait_for(1))[0]
        post.json["visit_id"]; post.headers["webhook-id"]; post.verify(secret)

``script`` says what is answered instead of 200. A step is

    503                          this status, with an empty body
    Answer(200, b"…", {…})       this status, body and header fields
    deal("17", "https://…")      200 and the JSON of a deal
    redirect("http://…")         307 to somewhere else
    Hang()                       nothing, until the client leaves
    Stall(200, b"…")             the header and these octets, and then nothing more
    Endless(200)                 the header, and octets for ever
    Abort()                      the connection is closed without an answer
    function(post)               called with the recorded post, returns one of these; it may be a coroutine function
    [step, step]                 one for each post in turn, then 200
"""

from __future__ import annotations

import asyncio
import inspect
import json
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, tzinfo
from functools import cached_property
from types import TracebackType
from typing import Any

import pytest
from aiohttp import web
from standardwebhooks import Webhook

#: Seconds for what should happen soon. Reached only when a test fails.
PATIENCE = 30.0


def stop_clock(monkeypatch: pytest.MonkeyPatch, now: float) -> None:
    """The time of the receivers' library is ``now``, Unix seconds: a signature is only good for five minutes."""

    class Stopped(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime.fromtimestamp(now, tz)

    monkeypatch.setattr("standardwebhooks.webhooks.datetime", Stopped)


@dataclass(frozen=True)
class Answer:
    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Hang:
    pass


@dataclass(frozen=True)
class Stall:
    status: int = 200
    body: bytes = b""


@dataclass(frozen=True)
class Endless:
    status: int = 200


@dataclass(frozen=True)
class Abort:
    pass


def deal(deal_id: object, url: object = None) -> Answer:
    return Answer(200, json.dumps({"deal_id": deal_id, "deal_url": url}).encode(), {"Content-Type": "application/json"})


def redirect(url: str) -> Answer:
    return Answer(307, b"", {"Location": url})


def retry_after(status: int, value: str) -> Answer:
    return Answer(status, b"", {"Retry-After": value})


@dataclass
class Post:
    """One request as it came; header names are lower case."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes
    connection: int  # tells connections apart

    @cached_property
    def json(self) -> dict[str, Any]:
        found = json.loads(self.body)
        assert isinstance(found, dict)
        return found

    def verify(self, secret: str) -> None:
        """Raises WebhookVerificationError unless the signature is good and fresh (Standard Webhooks' own library)."""
        Webhook(secret).verify(self.body, self.headers)


Step = int | Answer | Hang | Stall | Endless | Abort
Script = Step | list[Step] | Callable[[Post], Step | Awaitable[Step]]


class Receiver:
    """``posts`` are all requests in the order in which they were read whole; ``under_way`` how many are unanswered."""

    def __init__(self, script: Script = 200, *, tls: ssl.SSLContext | None = None, path: str = "/hook") -> None:
        self.script = script
        self.posts: list[Post] = []
        self.under_way = 0
        self.most_under_way = 0
        self._tls = tls
        self._path = path
        self._connections: dict[object, int] = {}
        self._changed = asyncio.Condition()
        self._closing = asyncio.Event()
        self._runner: web.AppRunner | None = None
        self._origin = ""

    @property
    def url(self) -> str:
        return self.at(self._path)

    def at(self, path: str) -> str:
        return self._origin + path

    async def wait_for(self, count: int) -> list[Post]:
        """The posts, as soon as there are ``count`` of them."""
        async with asyncio.timeout(PATIENCE), self._changed:
            await self._changed.wait_for(lambda: len(self.posts) >= count)
        return self.posts

    async def __aenter__(self) -> Receiver:
        app = web.Application(client_max_size=64 * 1024 * 1024)
        app.router.add_route("*", "/{path:.*}", self._receive)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self._tls)
        await site.start()
        port = self._runner.addresses[0][1]
        self._origin = f"{'https' if self._tls else 'http'}://127.0.0.1:{port}"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.set()
        assert self._runner is not None
        await self._runner.cleanup()

    async def _receive(self, request: web.Request) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        number = self._connections.setdefault(request.transport, len(self._connections))
        post = Post(request.method, request.path_qs, headers, await request.read(), number)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        async with self._changed:
            self.posts.append(post)
            self._changed.notify_all()
        try:
            return await self._answer(request, await self._step(post))
        finally:
            self.under_way -= 1

    async def _step(self, post: Post) -> Step:
        script = self.script
        if isinstance(script, list):
            return script.pop(0) if script else 200
        if callable(script):
            found = script(post)
            return await found if inspect.isawaitable(found) else found
        return script

    async def _answer(self, request: web.Request, step: Step) -> web.StreamResponse:
        if isinstance(step, int):
            return web.Response(status=step)
        if isinstance(step, Answer):
            return web.Response(status=step.status, body=step.body, headers=step.headers)
        if isinstance(step, Hang | Abort):
            if isinstance(step, Hang):
                await self._closing.wait()
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        response = web.StreamResponse(status=step.status)
        await response.prepare(request)
        try:
            if isinstance(step, Stall):
                await response.write(step.body)
                await self._closing.wait()
            while isinstance(step, Endless) and not self._closing.is_set():
                await response.write(b"x" * 65536)
        except ConnectionError:
            pass  # the client has had enough
        return response
