"""The web application: every route with its checks, problems for every error, security headers on every answer."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Callable
from typing import cast

from aiohttp import web

from webapi import (
    auth,
    bind,
    blocked,
    files,
    health,
    hook_log,
    hooks,
    messages,
    openapi,
    problems,
    queue,
    reports,
    schemas,
    script,
    sites,
    visits,
)
from webapi.context import CLIENTS, CONTEXT, Clients, Context, client_address
from webapi.limits import Rate
from webapi.operation import Operation

__all__ = ["Context", "build", "client_address", "door", "runner"]

#: On every answer that does not say otherwise: nothing here is to be framed, guessed at, or to run anything.
SECURITY_HEADERS = (
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"),
)
#: Seconds that requests under way have when the server stops.
GRACE = 5.0
#: Connections that are open at once; mail needs files, too. And seconds that one may be without a whole request.
CONNECTIONS = 1000
IDLE_TIMEOUT = 60.0

OPERATIONS: tuple[Operation, ...] = (
    *bind.OPERATIONS,
    *script.OPERATIONS,
    *messages.OPERATIONS,
    *files.OPERATIONS,
    *visits.OPERATIONS,
    *sites.OPERATIONS,
    *hooks.OPERATIONS,
    *hook_log.OPERATIONS,
    *blocked.OPERATIONS,
    *queue.OPERATIONS,
    *reports.OPERATIONS,
    *schemas.OPERATIONS,
    *health.OPERATIONS,
)


def build(context: Context) -> web.Application:
    """The application over an open store; serve it by :func:`runner`."""
    app = web.Application(middlewares=[problems.middleware])
    app[CONTEXT] = context
    app[CLIENTS] = Clients(tuple(context.http.trusted_proxies), tuple(context.limits.exempt))
    app[auth.GATE] = auth.Gate(context.store, Rate(context.limits.api_failures_per_address_per_minute))
    app[bind.RATES] = bind.Rates.of(context.limits)
    app[script.RENDERED] = {}
    app[health.DOCUMENT] = _document()
    other_names = {script.PATH: context.http.script_path, bind.PATH: context.http.bind_path}
    for operation in OPERATIONS:
        for path in {operation.path, other_names.get(operation.path, operation.path)}:
            app.router.add_route(operation.method, path, operation.endpoint())
            if operation.method == "GET":
                app.router.add_route("HEAD", path, operation.endpoint())
    app.on_response_prepare.append(_secure)
    return app


@functools.cache
def _document() -> str:
    """What the API is; it takes longer than everything else here, and is the same for every application."""
    return json.dumps(openapi.document(OPERATIONS))


def runner(context: Context) -> web.AppRunner:
    """What serves the application. aiohttp's access log would note everybody's visit.

    Bodies are not unpacked: nobody needs to pack what is this small, and a small one may unpack to a large one.
    """
    return web.AppRunner(
        build(context),
        access_log=None,
        handle_signals=False,
        shutdown_timeout=GRACE,
        auto_decompress=False,
        keepalive_timeout=IDLE_TIMEOUT,
    )


class _TurnedAway(asyncio.Protocol):
    """A connection too many: closed at once."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        cast(asyncio.Transport, transport).abort()


def door(runner: web.AppRunner, most: int = CONNECTIONS) -> Callable[[], asyncio.Protocol]:
    """The protocol factory of a runner that was set up, for at most ``most`` connections at once."""
    server = runner.server
    assert server is not None

    def enter() -> asyncio.Protocol:
        return server() if len(server.connections) < most else _TurnedAway()

    return enter


async def _secure(request: web.Request, response: web.StreamResponse) -> None:
    for name, value in SECURITY_HEADERS:
        response.headers.setdefault(name, value)
    response.headers["Server"] = "visit-relay"
