"""Errors as problem JSON (RFC 9457). Whatever goes wrong in a handler ends here, and nothing internal gets out."""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus

import structlog
from aiohttp import web
from pydantic import BaseModel, Field, ValidationError

from relay.config.problems import problems_of
from relay.store.engine import StoreUnavailable

log = structlog.get_logger()

MEDIA_TYPE = "application/problem+json"
#: Seconds after which a client should try again when the store is not available.
RETRY_STORE = 5
#: Errors of one request that are named; more would only help somebody who probes.
MOST_ERRORS = 20

#: Names of RFC 9110 (§15.5) that Python has since 3.13; before, it has those of the RFCs that were replaced.
_RENAMED = {
    413: "Content Too Large",
    414: "URI Too Long",
    416: "Range Not Satisfiable",
    422: "Unprocessable Content",
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def phrase(status: int) -> str:
    """A status in words (RFC 9110 §15), the same with every Python.

    >>> phrase(404), phrase(413)
    ('Not Found', 'Content Too Large')
    """
    return _RENAMED.get(status) or HTTPStatus(status).phrase


class FieldError(BaseModel):
    """``field`` is the path of a body's member (``targets[0].lease``), or the name of a parameter."""

    field: str
    detail: str


class ProblemDocument(BaseModel):
    """What every error is answered with (RFC 9457 §3.1)."""

    type: str = Field(description="Always about:blank: the status says what kind of problem it is.")
    title: str = Field(description="The status in words.")
    status: int
    detail: str | None = Field(description="What went wrong with this request.")
    errors: list[FieldError] = Field(default=[], description="What is wrong with which field.")
    request: str | None = Field(default=None, description="The number under which the server has logged its failure.")


class Problem(Exception):
    """An error that the client is told about. ``field`` or ``errors`` name what it gave wrongly."""

    def __init__(
        self,
        status: int,
        detail: str | None = None,
        *,
        field: str | None = None,
        errors: tuple[tuple[str, str], ...] = (),
        headers: Mapping[str, str] | None = None,
        request_id: str | None = None,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.errors = errors or (((field, detail or ""),) if field else ())
        self.headers = dict(headers or {})
        self.request_id = request_id

    def response(self) -> web.Response:
        document: dict[str, object] = {
            "type": "about:blank",
            "title": phrase(self.status),
            "status": self.status,
            "detail": self.detail,
        }
        if self.errors:
            document["errors"] = [{"field": field, "detail": detail} for field, detail in self.errors[:MOST_ERRORS]]
        if self.request_id is not None:
            document["request"] = self.request_id
        return web.Response(
            status=self.status,
            body=json.dumps(document).encode(),
            headers={"Cache-Control": "no-store", **self.headers, "Content-Type": MEDIA_TYPE},
        )


class Outdated(Problem):
    """What was read before the change is not what there is now: to be read again."""

    def __init__(self, what: str) -> None:
        super().__init__(409, f"somebody else has changed {what} meanwhile: look again")


def not_found(what: str, field: str | None = None) -> Problem:
    """One answer for what does not exist and for what the caller may not see."""
    return Problem(404, f"no such {what}", field=field)


def too_many(seconds: float, what: str) -> Problem:
    return Problem(429, f"too many {what}", headers={"Retry-After": str(max(1, math.ceil(seconds)))})


def invalid(error: ValidationError, model: type[BaseModel], prefix: str = "") -> Problem:
    """400 that names every field that is wrong."""
    found = tuple((prefix + problem.path, problem.message) for problem in problems_of(error, model))
    field, detail = found[0]
    return Problem(400, f"{field}: {detail}" if field else detail, errors=found)


@web.middleware
async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn every exception into its problem."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        if error.status < 400:
            raise  # a redirect of a page
        problem = from_exception(request, error)
    except ConnectionError:
        raise  # the client is gone: nobody to tell
    except Exception as error:
        problem = from_exception(request, error)
    return problem.response()


def from_exception(request: web.Request, error: Exception) -> Problem:
    """The problem that an exception is. Call it while the exception is handled: an unknown one is logged."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, web.HTTPException):
        headers = {name: error.headers[name] for name in ("Allow",) if name in error.headers}
        return Problem(error.status, _WORDS.get(error.status), headers=headers)
    if isinstance(error, StoreUnavailable):
        # The store has logged why.
        return Problem(
            503, "the database cannot be written or read just now", headers={"Retry-After": str(RETRY_STORE)}
        )
    if isinstance(error, web.RequestPayloadError):
        return Problem(400, "the body is broken")
    request_id = secrets.token_hex(8)
    route = request.match_info.route.resource
    # The template, not the path: a path can hold a signed link or somebody's address.
    log.exception("http.failed", request=request_id, method=request.method, route=route and route.canonical)
    return Problem(500, "an internal error; the operator finds it in the log", request_id=request_id)


_WORDS = {
    404: "there is nothing at this path",
    405: "this path does not take this method",
    408: "the body took too long",
    413: "the body is larger than this server takes",
    415: "the body must not be packed (Content-Encoding)",
}
