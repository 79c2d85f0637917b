"""The web application: every route with its checks, problems for every error, security headers on every answer."""

from __future__ import annotations

import functools
import json
from collections import Counter

from aiohttp import web

from relay.config import Limits
from webapi import (
    auth,
    bind,
    blocked,
    checks,
    files,
    health,
    hook_log,
    hooks,
    messages,
    metrics,
    openapi,
    people,
    problems,
    queue,
    reports,
    resend,
    schemas,
    script,
    seen,
    sites,
    visits,
)
from webapi.context import CLIENTS, CONTEXT, Clients, Context, client_address
from webapi.door import HANDLING, SECURITY_HEADERS, SERVER, door
from webapi.limits import Rate
from webapi.operation import Operation
from webapi.ui import login, message_letter, pages

__all__ = ["Context", "build", "client_address", "door", "runner"]

#: Seconds that requests under way have when the server stops.
GRACE = 5.0

OPERATIONS: tuple[Operation, ...] = (
    *bind.OPERATIONS,
    *script.OPERATIONS,
    *messages.OPERATIONS,
    *files.OPERATIONS,
    *visits.OPERATIONS,
    *sites.OPERATIONS,
    *seen.OPERATIONS,
    *hooks.OPERATIONS,
    *hook_log.OPERATIONS,
    *blocked.OPERATIONS,
    *queue.OPERATIONS,
    *resend.OPERATIONS,
    *checks.OPERATIONS,
    *reports.OPERATIONS,
    *people.OPERATIONS,
    *schemas.OPERATIONS,
    *health.OPERATIONS,
)


def build(context: Context) -> web.Application:
    """The application over an open store; serve it by :func:`runner`."""
    app = web.Application(middlewares=[problems.middleware, pages.middleware])
    app[CONTEXT] = context
    app[CLIENTS] = Clients(tuple(context.http.trusted_proxies), tuple(context.limits.exempt))
    app[auth.GATE] = auth.Gate(context.store, Rate(context.limits.api_failures_per_address_per_minute))
    app[bind.RATES] = bind.Rates.of(context.limits)
    app[bind.TALLY] = bind.Tally()
    app[metrics.ANSWERED] = Counter()
    app[script.RENDERED] = {}
    app[seen.SIGHTS] = seen.Sights()
    checks.install(app)
    app[health.DOCUMENT] = functools.partial(_document)
    other_names = {script.PATH: context.http.script_path, bind.PATH: context.http.bind_path}
    for operation in OPERATIONS:
        for path in {operation.path, other_names.get(operation.path, operation.path)}:
            app.router.add_route(operation.method, path, operation.endpoint())
            if operation.method == "GET":
                app.router.add_route("HEAD", path, operation.endpoint())
    pages.add(app)
    app[message_letter.LETTERS] = message_letter.Letters()
    app.on_cleanup.append(message_letter.close)
    app.on_response_prepare.append(_secure)
    return app


def limit(app: web.Application, limits: Limits) -> None:
    """From now on the application goes by these limits; what was taken of the old ones counts."""
    app[CLIENTS].exempt_from_now_on(tuple(limits.exempt))
    app[auth.GATE].failures.per_minute = limits.api_failures_per_address_per_minute
    app[bind.RATES].views.per_minute = limits.binds_per_address_per_minute
    app[bind.RATES].leases.per_minute = limits.leases_per_address_per_minute
    app[bind.RATES].sites.per_minute = limits.binds_per_site_per_minute
    app[login.DOOR].by_address.per_minute = limits.login_failures_per_address_per_minute


@functools.cache
def _document() -> str:
    """What the API is; the same for every application. It takes 0.1 s, and hardly anybody asks for it."""
    return json.dumps(openapi.document(OPERATIONS))


def runner(context: Context) -> web.AppRunner:
    """What serves the application. aiohttp's access log would note everybody's visit."""
    return web.AppRunner(build(context), handle_signals=False, shutdown_timeout=GRACE, **HANDLING)


async def _secure(request: web.Request, response: web.StreamResponse) -> None:
    for name, value in SECURITY_HEADERS:
        response.headers.setdefault(name, value)
    response.headers["Server"] = SERVER
    metrics.note(request, response.status)
