"""Who calls the management API: a bearer token, its role, and the sites it may see (RFC 6750)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum

from aiohttp import web

from relay.secrets import token_hash
from relay.store import tokens
from relay.store.directory import SiteView
from relay.store.store import Store
from webapi.context import CONTEXT, client_of
from webapi.limits import Rate
from webapi.problems import Problem, not_found, too_many

#: Seconds for which a token that was found is believed: a revoked one ends within them.
BELIEVED = 5.0
#: Tokens remembered.
REMEMBERED = 1024


class Role(IntEnum):
    """What a token may do; each role may do what the lower ones may."""

    VIEWER = 1  # read
    MANAGER = 2  # replay, deals, switches, pool additions
    ADMIN = 3  # everything


@dataclass(frozen=True, slots=True)
class Caller:
    """``sites`` are the ids of the live sites it may see; None: everything. ``kind``: token, or user of the pages."""

    name: str
    role: Role
    sites: frozenset[int] | None
    kind: str = "token"

    def sees(self, site_id: int | None) -> bool:
        return self.sites is None or site_id in self.sites


@dataclass(slots=True)
class Gate:
    """Finds the caller of a request. Wrong tokens are counted by client network, before the store is asked."""

    store: Store
    failures: Rate
    _believed: dict[str, tuple[tokens.Token, float]] = field(default_factory=dict)

    async def caller(self, request: web.Request, role: Role) -> Caller:
        """The caller, who has ``role``; raises Problem 401, 403 or 429."""
        token = await self._token(request)
        if token is None:
            raise Problem(401, "a bearer token is needed", headers={"WWW-Authenticate": "Bearer"})
        own = Role[token.role.upper()]
        if own < role:
            raise Problem(403, f"this takes a token with the role {role.name.lower()}, this one is {token.role}")
        return Caller(token.name, own, site_ids(self.store, token.sites))

    async def optional(self, request: web.Request) -> Caller | None:
        """The caller if the request carries a token at all; raises Problem 401 or 429 for a wrong one."""
        return await self.caller(request, Role.VIEWER) if "Authorization" in request.headers else None

    async def _token(self, request: web.Request) -> tokens.Token | None:
        scheme, _, presented = request.headers.get("Authorization", "").partition(" ")
        presented = presented.strip()
        if scheme.lower() != "bearer" or not presented:
            return None
        now = request.app[CONTEXT].clock()
        hashed = token_hash(presented)
        known = self._believed.get(hashed)
        if known is not None and 0 <= now - known[1] < BELIEVED:
            return known[0]
        client = client_of(request)
        wait = 0.0 if client.exempt else self.failures.wait(client.bucket, now)
        if wait:
            raise too_many(wait, "wrong tokens from this address")
        token = await tokens.find(self.store.reader, hashed)
        if token is None:
            self._believed.pop(hashed, None)
            if not client.exempt:
                self.failures.take(client.bucket, now)
            raise Problem(401, "this token is not valid", headers={"WWW-Authenticate": 'Bearer error="invalid_token"'})
        if len(self._believed) >= REMEMBERED:
            self._believed.clear()
        self._believed[hashed] = (token, now)
        return token


GATE = web.AppKey("gate", Gate)


def site_ids(store: Store, names: Iterable[str] | None) -> frozenset[int] | None:
    """The ids of those of these sites that live; None stands for all."""
    if names is None:
        return None
    by_name = store.sites.by_name
    return frozenset(by_name[name].id for name in names if name in by_name)


def visible_site(store: Store, caller: Caller, name: str, parameter: str | None = None) -> SiteView:
    """The site of this name; raises Problem 404 whether it does not exist or is not the caller's."""
    site = store.sites.by_name.get(name)
    if site is None or not caller.sees(site.id):
        raise not_found("site", parameter)
    return site
