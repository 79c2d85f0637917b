"""One verb of the API, stated once: from it come its route, its checks and its place in /openapi.json.

An operation says who may call it, what parameters and body it takes and what it answers; its handler only runs when
all of that is right, with everything parsed.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from aiohttp import web
from pydantic import BaseModel, ConfigDict, ValidationError

from relay.store.engine import Verb
from relay.store.noting import Note
from webapi import audit
from webapi.auth import GATE, Caller, Role
from webapi.context import CONTEXT, Context, read_body
from webapi.problems import Problem, invalid

JSON = "application/json"
T = TypeVar("T")


class Strict(BaseModel):
    """A body of a request: nothing is coerced, nothing unknown passes."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class Parameters(BaseModel):
    """The query of a request; its values are text, so they are read as what they should be."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True, slots=True)
class Call:
    """A request that passed the checks: ``query`` and ``body`` are of the operation's models.

    ``path`` has what the operation's path names. ``request`` may be a page's that performs the operation. ``note`` is
    what the log of changes will say, of operations that are audited.
    """

    request: web.Request
    context: Context
    caller: Caller
    path: Mapping[str, str]
    query: Any
    body: Any
    note: Note | None = None

    async def write(self, verb: Verb[T], changed: Callable[[T], bool] = bool) -> T:
        """Store.write, with the note in the same transaction when the answer says that something was ``changed``."""
        if self.note is None:
            return await self.context.store.write(verb)
        return await self.note.write(verb, changed)

    async def redefine(self, verb: Verb[T], changed: Callable[[T], bool] = bool) -> T:
        """Store.redefine, likewise."""
        if self.note is None:
            return await self.context.store.redefine(verb)
        return await self.note.redefine(verb, changed)


#: A handler answers a model, a whole response, or None where there is nothing to say (204).
Answer = BaseModel | web.StreamResponse | None
Handler = Callable[[Call], Awaitable[Answer]]
PublicHandler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True)
class Operation:
    """``path`` in aiohttp's and OpenAPI's common notation. ``answer`` is a model, a media type, or None for 204.

    ``role`` is the least that may call it; None: anybody, and the handler sees to its own checks. ``problems`` are
    the statuses of problems that only this operation answers, besides those that all have; ``alike`` are further
    statuses that are answered in the media type of ``answer``. What is not ``audited`` changes nothing that lasts; a
    function tells so by the answer.
    """

    method: str
    path: str
    summary: str
    handler: Handler | PublicHandler
    role: Role | None
    answer: type[BaseModel] | str | None
    query: type[BaseModel] | None = None
    body: type[BaseModel] | None = None
    status: int = 200
    problems: tuple[int, ...] = ()
    alike: tuple[int, ...] = ()
    body_types: tuple[str, ...] = (JSON,)
    audited: bool | Callable[[Any], bool] = True

    def endpoint(self) -> PublicHandler:
        """What aiohttp calls."""
        if self.role is None:
            handler: Any = self.handler
            return handler  # type: ignore[no-any-return]  # its own checks: see above

        async def checked(request: web.Request) -> web.StreamResponse:
            return await self._run(request)

        return checked

    async def _run(self, request: web.Request) -> web.StreamResponse:
        assert self.role is not None
        caller = await request.app[GATE].caller(request, self.role)
        query = parameters(request.query, self.query)
        answer = await self._handle(
            Call(request, request.app[CONTEXT], caller, request.match_info, query, await self._body(request))
        )
        if isinstance(answer, web.StreamResponse):
            return answer
        headers = {"Cache-Control": "no-store"}
        if answer is None:
            return web.Response(status=204, headers=headers)
        return web.Response(
            status=self.status, body=answer.model_dump_json().encode(), headers=headers | {"Content-Type": JSON}
        )

    async def perform(
        self,
        request: web.Request,
        caller: Caller,
        path: Mapping[str, str],
        query: Mapping[str, str],
        body: Mapping[str, Any] | None,
    ) -> Any:
        """Do what the operation does, for a page: the same checks, model and handler. Raises Problem."""
        assert self.role is not None
        if caller.role < self.role:
            raise Problem(403, f"this takes the role {self.role.name.lower()}, yours is {caller.role.name.lower()}")
        judged: BaseModel | None = None
        if self.body is not None:
            try:
                judged = self.body.model_validate_json(json.dumps(body or {}))
            except ValidationError as error:
                raise invalid(error, self.body) from None
        return await self._handle(
            Call(request, request.app[CONTEXT], caller, path, parameters(query, self.query), judged)
        )

    async def _handle(self, call: Call) -> Answer:
        """Run the handler. What it has not noted with its change is noted before anybody is told."""
        handler: Any = self.handler
        if self.method == "GET" or self.audited is False:
            return await handler(call)  # type: ignore[no-any-return]
        note = await audit.begin(call.context, call.caller, self.action, call.path, call.body)
        answer: Answer = await handler(replace(call, note=note))
        if not callable(self.audited) or self.audited(answer):
            await note.finish()
        return answer

    @property
    def action(self) -> str:
        """What the log of changes calls it."""
        return f"{self.method} {self.path}"

    async def _body(self, request: web.Request) -> BaseModel | None:
        if self.body is None:
            return None
        if request.content_type not in (JSON, "application/octet-stream"):  # the latter: no Content-Type at all
            raise Problem(415, f"the body must be {JSON}")
        octets = await read_body(request, request.app[CONTEXT].http.max_body)
        try:
            return self.body.model_validate_json(octets)
        except ValidationError as error:
            raise invalid(error, self.body) from None


def parameters(query: Mapping[str, str], model: type[BaseModel] | None) -> BaseModel | None:
    """The query as ``model``; raises Problem 400 for what is unknown, wrong or given twice."""
    if model is None:
        for name in query:
            raise Problem(400, "this path takes no parameters", field=name)
        return None
    given: dict[str, str] = {}
    for name, value in query.items():
        if name in given:
            raise Problem(400, "is given more than once", field=name)
        given[name] = value
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise invalid(error, model) from None
