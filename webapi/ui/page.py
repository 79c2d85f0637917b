"""A page or an action of the pages, stated once: who may see it, and what is checked before its handler runs."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, quote, urlencode

from aiohttp import web

from relay.store.directory import SiteView
from webapi.auth import Caller, Role
from webapi.context import CONTEXT, Context, read_body
from webapi.operation import Operation
from webapi.problems import Problem
from webapi.ui import session
from webapi.ui.session import ROOT, Visitor

#: Octets and fields of a form.
MAX_FORM = 262_144
MAX_FIELDS = 2_000


@dataclass(frozen=True, slots=True)
class View:
    """A request by somebody logged in. ``form`` is empty but for POST, and comes from a page of ours."""

    request: web.Request
    context: Context
    visitor: Visitor
    form: Mapping[str, list[str]]

    @property
    def caller(self) -> Caller:
        return self.visitor.caller

    @property
    def csrf(self) -> str:
        return self.visitor.csrf

    @property
    def path(self) -> Mapping[str, str]:
        return self.request.match_info

    @property
    def sites(self) -> list[SiteView]:
        """The live sites that the caller sees, by name."""
        by_name = self.context.store.sites.by_name
        return [by_name[name] for name in sorted(by_name) if self.caller.sees(by_name[name].id)]

    def may(self, role: Role) -> bool:
        return self.caller.role >= role

    @property
    def is_manager(self) -> bool:
        return self.may(Role.MANAGER)

    @property
    def is_admin(self) -> bool:
        return self.may(Role.ADMIN)

    @property
    def is_operator(self) -> bool:
        """Whether the whole instance is theirs: an administrator of all sites."""
        return self.is_admin and self.caller.sites is None

    def field(self, name: str, default: str = "") -> str:
        """The last value of a form's field."""
        return self.form[name][-1] if self.form.get(name) else default

    def query(self, name: str, default: str = "") -> str:
        return self.request.query.get(name, default)


Handler = Callable[[View], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Page:
    """``role`` is the least that sees it. Who is not logged in is asked to, and comes back."""

    method: str
    path: str
    handler: Handler
    role: Role = Role.VIEWER

    def endpoint(self) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        async def checked(request: web.Request) -> web.StreamResponse:
            return await self._run(request)

        return checked

    async def _run(self, request: web.Request) -> web.StreamResponse:
        visitor = await session.visitor(request)
        if visitor is None:
            return _to_login(request)
        if visitor.caller.role < self.role:
            raise Problem(403, f"this takes the role {self.role.name.lower()}, yours is {visitor.session.user.role}")
        form: Mapping[str, list[str]] = {}
        if request.method not in ("GET", "HEAD"):
            form = await read_form(request)
            if not hmac.compare_digest(form.get("csrf", [""])[-1].encode(), visitor.csrf.encode()):
                raise Problem(403, "this form is out of date: go back, reload the page and send it again")
        return await self.handler(View(request, request.app[CONTEXT], visitor, form))


def _to_login(request: web.Request) -> web.Response:
    came_from = request.path_qs if request.method == "GET" else ""
    target = f"{ROOT}/login" + (f"?next={quote(came_from, safe='')}" if came_from else "")
    if "HX-Request" in request.headers:  # the whole page is to go there, not a part of it
        return web.Response(status=401, headers={"HX-Redirect": f"{ROOT}/login", "Cache-Control": "no-store"})
    return web.Response(status=303, headers={"Location": target, "Cache-Control": "no-store"})


async def read_form(request: web.Request) -> dict[str, list[str]]:
    """The fields of a posted form, from a page of ours; raises Problem 400, 403 and 415."""
    if not session.is_own_form(request):
        raise Problem(403, "this form was sent by a page of another website")
    if request.content_type != "application/x-www-form-urlencoded":
        raise Problem(415, "send it as a form")
    octets = await read_body(request, MAX_FORM)
    try:
        return parse_qs(octets.decode(), keep_blank_values=True, errors="strict", max_num_fields=MAX_FIELDS)
    except ValueError:
        raise Problem(400, "the form is broken") from None


async def perform(
    view: View,
    operation: Operation,
    *,
    path: Mapping[str, str] | None = None,
    query: Mapping[str, str] | None = None,
    body: Mapping[str, Any] | None = None,
) -> Any:
    """Do what an operation of the API does, with its checks and models; what its handler answers. Raises Problem."""
    return await operation.perform(view.request, view.caller, path or {}, query or {}, body)


def see_other(path: str, done: str = "", **query: str) -> web.Response:
    """Where to look after a change (303, so that a reload sends nothing again); ``done`` is a key of notices.DONE."""
    asked = {name: value for name, value in {"done": done, **query}.items() if value}
    page, mark, place = path.partition("#")
    location = page + (("&" if "?" in page else "?") + urlencode(asked) if asked else "") + mark + place
    return web.Response(status=303, headers={"Location": location, "Cache-Control": "no-store"})
