"""The web application: every route with its checks, problems for every error, security headers on every answer."""

from __future__ import annotations

from collections.abc import Sequence

from aiohttp import web

from webapi import auth, bind, problems
from webapi.context import CLIENTS, CONTEXT, Clients, Context, client_address
from webapi.limits import Rate
from webapi.operation import Operation

__all__ = ["Context", "build", "client_address"]

#: On every answer that does not say otherwise: nothing here is to be framed, guessed at, or to run anything.
SECURITY_HEADERS = (
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"),
    ("Server", "visit-relay"),
)

OPERATIONS: tuple[Operation, ...] = (*bind.OPERATIONS,)


def build(context: Context, operations: Sequence[Operation] = OPERATIONS) -> web.Application:
    """The application over an open store. Serve it without aiohttp's access log, which would note everybody's visit."""
    app = web.Application(middlewares=[problems.middleware])
    app[CONTEXT] = context
    app[CLIENTS] = Clients(tuple(context.http.trusted_proxies), tuple(context.limits.exempt))
    app[auth.GATE] = auth.Gate(context.store, Rate(context.limits.api_failures_per_address_per_minute))
    app[bind.BIND_RATE] = Rate(context.limits.binds_per_address_per_minute)
    app[bind.SITE_RATE] = Rate(bind.SITE_BINDS_PER_MINUTE)
    for operation in operations:
        # allow_head only where a GET is: HEAD is answered as GET without the body.
        app.router.add_route(operation.method, operation.path, operation.endpoint())
    app.on_response_prepare.append(_secure)
    return app


async def _secure(request: web.Request, response: web.StreamResponse) -> None:
    for name, value in SECURITY_HEADERS:
        response.headers.setdefault(name, value)
