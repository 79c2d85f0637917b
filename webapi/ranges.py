"""Octets as an answer: all of them, one range of them, or none for who has them already (RFC 9110 §13, §14).

    request                                     answer
    If-None-Match names our ETag, or is "*"     304
    no Range; HEAD; If-Range is not our ETag    200, everything
    Range of another unit, malformed, several   200, everything (§14.2: a server may ignore a Range)
    Range: bytes=2-5, 2-, -4                    206 with Content-Range
    a range that begins behind the end          416 with Content-Range: bytes */N

What is streamed is decoded from its beginning and skipped up to the range: nothing is held but one piece.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass

import structlog
from aiohttp import web

from webapi.problems import Problem

log = structlog.get_logger()

Octets = AsyncGenerator[bytes, None]

#: ranges-specifier of one range (RFC 9110 §14.1.1): first-pos "-" [ last-pos ], or "-" suffix-length. A list may have
#: empty members (§5.6.1.2). A number of more digits than this is taken for no range.
_RANGE = re.compile(r"bytes=[ \t,]*(?:([0-9]{1,30})-([0-9]{1,30})?|-([0-9]{1,30}))[ \t,]*", re.IGNORECASE)
_ETAG = re.compile(r'(?:W/)?("[\x21\x23-\x7e\x80-\xff]*")')


class RangeUnsatisfiable(ValueError):
    """No octet of the range is there."""


@dataclass(frozen=True, slots=True)
class Span:
    """Octets from ``start`` up to, not including, ``end``."""

    start: int
    end: int


def read_range(value: str, size: int) -> Span | None:
    """The octets that a Range field asks for out of ``size``; None where the field is to be ignored.

    Raises RangeUnsatisfiable. Of nothing, everything is nothing: clients that ask for a range of every file they load
    are answered.
    """
    match = _RANGE.fullmatch(value)
    if match is None or size == 0:
        return None
    first, last, suffix = match.groups()
    if suffix is not None:
        if int(suffix) == 0:
            raise RangeUnsatisfiable
        return Span(max(0, size - int(suffix)), size)
    if last is not None and int(last) < int(first):
        return None
    if int(first) >= size:
        raise RangeUnsatisfiable
    return Span(int(first), size if last is None else min(int(last) + 1, size))


def range_wanted(request: web.Request, etag: str) -> str | None:
    """The Range field, where it counts: for GET, and only while the client's earlier part is of the same octets."""
    if request.method != "GET" or request.headers.get("If-Range", etag).strip() != etag:
        return None
    values = request.headers.getall("Range", ())
    return values[0] if len(values) == 1 else None


def is_known(request: web.Request, etag: str) -> bool:
    """Whether the client has these octets (If-None-Match, weak comparison: RFC 9110 §8.8.3.2, §13.1.2)."""
    values = request.headers.getall("If-None-Match", ())
    return any(value.strip() == "*" or etag in _ETAG.findall(value) for value in values)


async def answer(
    request: web.Request, headers: Mapping[str, str], etag: str, octets: bytes | Octets, size: int | None
) -> web.StreamResponse:
    """``octets``, of which there are ``size``, as far as they are wanted; None: nobody knows, and there are no ranges.

    Raises OSError when reading fails before the answer has begun, Problem 416.
    """
    fields = {**headers, "ETag": etag, "Accept-Ranges": "bytes"}
    if is_known(request, etag):
        return web.Response(status=304, headers={name: fields[name] for name in fields if name != "Content-Type"})
    span = _span(request, etag, size)
    if span is None:
        status, length = 200, size
    else:
        status, length = 206, span.end - span.start
        fields["Content-Range"] = f"bytes {span.start}-{span.end - 1}/{size}"
    if isinstance(octets, bytes):
        wanted = octets if span is None else octets[span.start : span.end]
        return web.Response(status=status, body=wanted, headers=fields)
    response = web.StreamResponse(status=status, headers=fields)
    response.content_length = length
    return await _stream(request, response, octets if span is None else cut(octets, span))


def _span(request: web.Request, etag: str, size: int | None) -> Span | None:
    wanted = range_wanted(request, etag)
    if wanted is None or size is None:
        return None
    try:
        return read_range(wanted, size)
    except RangeUnsatisfiable:
        fields = {"Content-Range": f"bytes */{size}", "Accept-Ranges": "bytes"}
        raise Problem(416, f"the range begins behind the end: there are {size} octets", headers=fields) from None


async def cut(octets: Octets, span: Span) -> Octets:
    """The octets of ``span`` out of a stream that is read no further than their end."""
    at = 0
    async with contextlib.aclosing(octets):
        async for chunk in octets:
            wanted = chunk[max(0, span.start - at) : max(0, span.end - at)]
            if wanted:
                yield wanted
            at += len(chunk)
            if at >= span.end:
                return


async def _stream(request: web.Request, response: web.StreamResponse, octets: Octets) -> web.StreamResponse:
    """Send as it comes. A failure after the answer has begun can only be told by breaking the connection."""
    async with contextlib.aclosing(octets):
        chunk: bytes | None = await anext(octets, None)  # a file that is gone shows now
        await response.prepare(request)
        if request.method == "HEAD":
            return response
        missing = response.content_length
        try:
            while chunk is not None:
                await response.write(chunk)
                missing = None if missing is None else missing - len(chunk)
                chunk = await anext(octets, None)
            if missing:
                raise OSError(f"{missing} octets are missing at its end")
            await response.write_eof()
        except OSError as error:
            if not isinstance(error, ConnectionError):
                log.error("http.body_unreadable", error=str(error))
            if request.transport is not None:
                request.transport.abort()
    return response
