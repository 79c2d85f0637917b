"""The pages over a real store on loopback, for the tests of each.

async with pages(tmp_path) as p:                          # the sites shop and other (store_fixtures.py)
    answer = await p.get("/ui/history")                   # as an administrator; answer.text is the page
    answer = await p.post("/ui/queue/retry", {"id": "1"}) # with the session's CSRF token; redirects are not followed
    viewer = await p.user("viewer", "shop")               # somebody else: viewer.get(…)
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from argon2 import PasswordHasher

from relay.store import users
from relay.store.sites import SiteDefinition
from tests.store_fixtures import World
from tests.webapi_fixtures import Api, serving
from webapi import passwords
from webapi.ui import session

#: What a browser sends with a form of the page itself.
OWN_FORM = {"Sec-Fetch-Site": "same-origin"}
#: Hashes with little work: a real one takes 64 MiB and as long as everything else of a test together.
HASHER = PasswordHasher(time_cost=1, memory_cost=64, parallelism=1)


@dataclass(frozen=True)
class Answer:
    status: int
    text: str
    headers: Mapping[str, str]

    @property
    def location(self) -> str:
        return self.headers.get("Location", "")


@dataclass
class Pages:
    """What one user sees of the pages. ``cookie`` is the session's."""

    api: Api
    name: str
    cookie: str
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def world(self) -> World:
        return self.api.w

    @property
    def csrf(self) -> str:
        return session.csrf_token(self.cookie)

    async def get(self, path: str, **headers: str) -> Answer:
        return await self.send("GET", path, headers=headers)

    async def post(
        self, path: str, form: Mapping[str, str | list[str]] | None = None, *, csrf: str | None = None, **headers: str
    ) -> Answer:
        fields = {"csrf": self.csrf if csrf is None else csrf, **(form or {})}
        pairs = [
            (name, one) for name, value in fields.items() for one in ([value] if isinstance(value, str) else value)
        ]
        return await self.send("POST", path, data=pairs, headers=OWN_FORM | headers)

    async def send(self, method: str, path: str, *, data: Any = None, headers: Mapping[str, str]) -> Answer:
        sent = {"Cookie": f"{session.COOKIE}={self.cookie}"} | self.headers | dict(headers)
        async with self.api.session.request(
            method, self.api.url + path, data=data, headers=sent, allow_redirects=False
        ) as response:
            return Answer(response.status, (await response.read()).decode(), response.headers)

    async def user(self, role: str = "admin", *sites: str) -> Pages:
        """Somebody else, for these sites; for all without any."""
        name = f"{role}-{'-'.join(sites) or 'all'}"
        now = self.world.now
        made = await self.world.store.write(lambda tx: users.create(tx, name, role, list(sites) or None, now))
        return Pages(self.api, name, await session.begin(self.api.context, made.id, "127.0.0.1", "test"))


@contextlib.asynccontextmanager
async def pages(directory: Path, *definitions: SiteDefinition, **changes: Any) -> AsyncIterator[Pages]:
    """The pages as the administrator "admin-all" sees them, with HASHER for passwords; ``changes`` as for serving."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passwords, "_HASHER", HASHER)
        async with serving(directory, *definitions, **changes) as api:
            yield await Pages(api, "", "").user("admin")
