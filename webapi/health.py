"""Is the process alive, can the store be written, how deep are the queues; and the description of the API."""

from __future__ import annotations

import asyncio
import functools

from aiohttp import web
from pydantic import BaseModel

from relay.core.metrics import text
from relay.store.engine import Tx
from webapi.auth import GATE, Caller
from webapi.context import CONTEXT, is_local
from webapi.metrics import families
from webapi.operation import JSON, Operation
from webapi.problems import Problem

#: Seconds that the store has to answer a readiness check.
PATIENCE = 5.0
#: Media type of the metrics (Prometheus, "Text-based format").
METRICS = "text/plain; version=0.0.4; charset=utf-8"
#: What makes the description of the API, as JSON, when somebody asks for it.
DOCUMENT = web.AppKey("openapi", functools.partial[str])


class Health(BaseModel):
    status: str


async def alive(request: web.Request) -> web.Response:
    return _json(Health(status="ok").model_dump_json())


async def ready(request: web.Request) -> web.Response:
    """200 when a transaction went through just now, no damage is known and the daemon is not stopping."""
    context = request.app[CONTEXT]
    if context.draining():
        raise Problem(503, "stopping")
    if (trouble := context.store.damage.trouble) is not None:
        raise Problem(503, f"{trouble.partition(':')[0]}: see the log")
    try:
        await asyncio.wait_for(context.store.write(_nothing), PATIENCE)
    except TimeoutError:
        raise Problem(503, "the database does not answer") from None
    return _json(Health(status="ready").model_dump_json())


def _nothing(_: Tx) -> None:
    pass


async def metrics(request: web.Request) -> web.Response:
    caller = await let_in(request)
    if caller is not None and caller.sites is not None:
        raise Problem(403, "this takes a token for all sites")
    body = text(await families(request.app)).encode()
    return web.Response(body=body, headers={"Content-Type": METRICS, "Cache-Control": "no-store"})


async def openapi(request: web.Request) -> web.Response:
    await let_in(request)
    return _json(await asyncio.to_thread(request.app[DOCUMENT]))


async def let_in(request: web.Request) -> Caller | None:
    """Whoever has a token, or asks from this very machine; raises Problem 401."""
    caller = await request.app[GATE].optional(request)
    if caller is None and not is_local(request):
        raise Problem(401, "a bearer token is needed", headers={"WWW-Authenticate": "Bearer"})
    return caller


def _json(text: str) -> web.Response:
    return web.Response(body=text.encode(), headers={"Content-Type": JSON, "Cache-Control": "no-store"})


OPERATIONS = (
    Operation("GET", "/healthz", "The process is alive.", alive, None, Health),
    Operation("GET", "/readyz", "The database can be written.", ready, None, Health, problems=(503,)),
    Operation("GET", "/metrics", "Figures for Prometheus.", metrics, None, METRICS, problems=(401, 403, 429)),
    Operation("GET", "/openapi.json", "This description.", openapi, None, JSON, problems=(401, 429)),
)
