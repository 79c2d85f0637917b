"""The web API on loopback over a real store, for the tests of its parts.

async with serving(tmp_path) as api:                  # the sites shop and other (store_fixtures.py)
    status, body = await api.call("GET", "/v1/messages", token=await api.token("viewer"))
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.abc import AbstractResolver, ResolveResult

from relay.bodies import Bodies
from relay.config import Forward, Http, Limits
from relay.geoip import GeoIp
from relay.secrets import new_token, token_hash
from relay.store import tokens
from relay.store.messages import Accepted, Evidence
from relay.store.sites import SiteDefinition
from tests.store_fixtures import DAY, OTHER, SHOP, World, fresh_keys, world
from webapi.app import runner
from webapi.compose import Composer
from webapi.context import Context

SHOP_ORIGIN = "https://www.shop.example"
#: For tests that use ``shared`` (conftest.py), which lives in the event loop of the whole module.
of_all = pytest.mark.asyncio(loop_scope="module")


@dataclass
class Api:
    """A running API. ``woken`` notes the hints it gave; ``headers`` go with every request."""

    w: World
    context: Context
    url: str
    session: aiohttp.ClientSession
    woken: list[str]
    draining: list[bool]
    headers: dict[str, str] = field(default_factory=dict)

    async def token(self, role: str = "admin", *sites: str) -> str:
        """A new token for these sites; for all without any."""
        text = new_token()
        name, now = f"{role}-{text[-6:]}", self.w.now
        await self.w.store.write(lambda tx: tokens.create(tx, name, token_hash(text), role, list(sites) or None, now))
        return text

    async def request(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        token: str | None = None,
        headers: Mapping[str, str] | None = None,
        data: Any = None,
    ) -> tuple[aiohttp.ClientResponse, bytes]:
        """A request and its whole answer. ``body`` is sent as JSON, ``data`` as it is."""
        sent = dict(self.headers) | dict(headers or {})
        if token is not None:
            sent["Authorization"] = f"Bearer {token}"
        if body is not None:
            data = json.dumps(body)
            sent.setdefault("Content-Type", "application/json")
        async with self.session.request(method, self.url + path, data=data, headers=sent) as response:
            return response, await response.read()

    async def call(self, method: str, path: str, body: Any = None, **options: Any) -> tuple[int, Any]:
        """Status and JSON of an answer (None without a body)."""
        response, octets = await self.request(method, path, body, **options)
        return response.status, json.loads(octets) if octets else None

    async def bind(self, name: str = "shop", *, headers: Mapping[str, str] | None = None, **changes: Any) -> Any:
        """Status and answer of a page view."""
        body = {
            "site": f"pk_{name}",
            "visit": None,
            "first_visit": None,
            "page": f"https://www.{name}.example/",
            "referrer": "",
            "addresses": ["sales@example.com"],
            "params": None,
            "google_client_id": None,
        } | changes
        sent = {"Origin": f"https://www.{name}.example", "User-Agent": "Mozilla/5.0 (X11)"} | dict(headers or {})
        return await self.call("POST", "/v1/bind", body, headers=sent | {"Content-Type": "text/plain"})

    async def get(self, path: str, *sites: str) -> Any:
        """The answer to a viewer of these sites."""
        status, answer = await self.call("GET", path, token=await self.token("viewer", *sites))
        assert status == 200, answer
        return answer

    async def letter(self, *addresses: str, number: int = 0, **changes: Any) -> Accepted:
        """Accept a letter; one with another number is another letter. Nobody forwards it unless ``claim`` says so."""
        body = b"From: ann@example.org\r\n\r\n%d\r\n" % number
        return await self.w.accept(*addresses, **{"claim": None, "body": body} | changes)


class Nowhere(AbstractResolver):
    """Knows no name: no test asks the network."""

    async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[ResolveResult]:
        raise OSError(None, "no such name")

    async def close(self) -> None:
        pass


@contextlib.asynccontextmanager
async def serving(
    directory: Path,
    *definitions: SiteDefinition,
    http: Http | None = None,
    limits: Limits | None = None,
    forward: Forward | None = None,
    **changes: Any,
) -> AsyncIterator[Api]:
    """The API over a new store in ``directory``; ``changes`` are to its Context."""
    woken: list[str] = []
    draining: list[bool] = []
    async with world(directory, *(definitions or (SHOP, OTHER))) as w:
        bodies = Bodies(directory / "bodies")
        bodies.prepare()
        listener = socket.create_server(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        keys = fresh_keys(directory / "keys")
        context = Context(
            store=w.store,
            bodies=bodies,
            keys=keys,
            http=http or Http(),
            limits=limits or Limits(),
            forward=forward or Forward(),
            public_url=url,
            composer=Composer(keys, url, 180 * DAY),
            evidence=lambda: Evidence(DAY),
            allow_private_addresses=True,
            resolver=Nowhere(),
            geoip=GeoIp((), directory / "geoip"),
            clock=lambda: w.now,
            on_posts_due=lambda: woken.append("posts"),
            on_deliveries_due=lambda: woken.append("deliveries"),
            draining=lambda: bool(draining),
        )
        context = replace(context, **changes)
        server = runner(context)
        await server.setup()
        await web.SockSite(server, listener).start()
        async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:
            try:
                yield Api(w, context, url, session, woken, draining)
            finally:
                await server.cleanup()


def fields(problem: Mapping[str, Any]) -> list[str]:
    """The fields that a problem names."""
    return [error["field"] for error in problem.get("errors", [])]
