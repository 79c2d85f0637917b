"""Bytes out of the stored message: the message itself, and its attachments by signed link.

Nothing is kept twice: an attachment is cut out of the message and decoded while it is sent, so a large one passes
through in pieces. What strangers attached is always a download and never a page of ours.
"""

from __future__ import annotations

import contextlib
import hashlib
import re
from collections.abc import Awaitable
from typing import cast
from urllib.parse import quote

import structlog
from aiohttp import web

from relay.core.mime import OCTET_STREAM, Part, PartDecoder
from relay.core.mimetext import safe_name
from relay.core.wire import Unstuffer, unstuff
from relay.store import history
from relay.store.history import MessageRow
from webapi import links, ranges
from webapi.auth import Role
from webapi.context import CONTEXT, Context
from webapi.messages import visible_message
from webapi.operation import Call, Operation
from webapi.problems import Problem, not_found
from webapi.ranges import Octets
from webapi.values import moment

log = structlog.get_logger()

#: Types that are named as they are; a browser that opened any of them would run nothing in it. All others, HTML, SVG
#: and XML among them, are octets.
_NAMED_TYPES = frozenset(
    (
        *("application/pdf", "application/zip", "application/gzip", "application/msword", "application/rtf"),
        *("text/plain", "text/csv"),
        *("image/png", "image/jpeg", "image/gif", "image/webp", "image/tiff", "image/bmp", "image/heic"),
        *("audio/mpeg", "audio/ogg", "audio/wav", "audio/mp4"),
        *("video/mp4", "video/mpeg", "video/quicktime", "video/webm"),
    )
)
_OFFICE_TYPE = re.compile(r"application/vnd\.[a-z0-9.-]{1,100}")  # what is "+xml" is not
_SAFE_IN_NAME = "!#$&+-.^_`|~"  # RFC 8187 §3.2.1, attr-char besides letters and digits
#: On every answer of this file, errors too. What is opened all the same has an origin of its own and runs nothing.
HEADERS = {
    "Content-Security-Policy": "sandbox; default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "private, no-store",
    "X-Robots-Tag": "noindex",
}
_ERASED = "the message was erased with its files: somebody asked for it, or it was older than retention.messages"
_GONE = "the message's bytes are no longer here"


async def raw(call: Call) -> web.StreamResponse:
    """The message as it was received."""
    return await _sandboxed(_raw(call))


async def attachment(request: web.Request) -> web.StreamResponse:
    """An attachment, for whoever has the link. The name in it is for people; the stored message's own counts."""
    return await _sandboxed(_attachment(request))


async def _sandboxed(answer: Awaitable[web.StreamResponse]) -> web.StreamResponse:
    try:
        return await answer
    except Problem as problem:
        problem.headers = HEADERS | problem.headers
        raise
    except FileNotFoundError as error:
        log.error("http.body_unreadable", error=str(error))
        raise Problem(410, _GONE, headers=HEADERS) from None


async def _raw(call: Call) -> web.StreamResponse:
    row = await visible_message(call)
    headers = {
        **HEADERS,
        "Content-Type": "message/rfc822",
        "Content-Disposition": disposition(f"message-{row.id}.eml"),
    }
    etag = _etag(row, None)
    data, file = await _body(call.context, row)
    if data is not None:
        octets = unstuff(data)
        return await ranges.answer(call.request, headers, etag, octets, len(octets))
    size = None
    if ranges.range_wanted(call.request, etag) is not None:  # what is stored is longer than what was received
        async with contextlib.aclosing(_unstuffed(call.context, file)) as chunks:
            size = sum([len(chunk) async for chunk in chunks])
    return await ranges.answer(call.request, headers, etag, _unstuffed(call.context, file), size)


async def _attachment(request: web.Request) -> web.StreamResponse:
    context = request.app[CONTEXT]
    expired = None
    try:
        link = links.read(context.keys.all("links"), request.match_info["token"], context.clock())
    except links.LinkExpired as error:
        link, expired = error.link, error.expires
    except links.LinkInvalid:
        raise not_found("link") from None
    # Who had its share of a message erased has no more right to its files, whoever else still holds it.
    holder = None if link.site is None else frozenset({link.site})
    row = await history.one(context.store.reader, link.message, holder)
    if row is None:
        raise Problem(410, _ERASED)
    part = next((part for part in row.attachments if part.index == link.part), None)
    if part is None:
        raise not_found("link")
    if expired is not None:
        raise Problem(410, _why_no_more(context, row, expired))
    data, file = await _body(context, row)
    headers = {**HEADERS, "Content-Type": served_type(part.type), "Content-Disposition": disposition(part.name)}
    etag = _etag(row, part)
    if data is not None:
        decoder = PartDecoder(part.encoding)
        octets = decoder.feed(unstuff(data)[part.start : part.start + part.length]) + decoder.flush()
        return await ranges.answer(request, headers, etag, octets, len(octets))
    return await ranges.answer(request, headers, etag, _decoded(_unstuffed(context, file), part), part.size)


def _why_no_more(context: Context, row: MessageRow, expired: int) -> str:
    """What became of a file whose link expired then: it is for whoever once had a right to the file."""
    if row.raw_removed_at is not None:
        return _removed(row, row.raw_removed_at)
    since = f"this link expired at {moment(expired)}"
    if context.clock() >= row.received_at + context.retention.raw:
        kept = _in_words(context.retention.raw)
        return f"{since}: files are kept for {kept} after their message came in, and no longer (retention.raw)"
    return f"{since}; the file is still kept, and GET /v1/messages/{row.id} makes a new link"


def _removed(row: MessageRow, at: float) -> str:
    kept = _in_words(at - row.received_at)
    return f"the message's bytes were kept for {kept} after it came in, and no longer (retention.raw)"


def _in_words(seconds: float) -> str:
    """A long duration in whole units; of a sweep that comes an hour later nothing is seen."""
    for unit, length in (("days", 86_400), ("hours", 3_600)):
        if seconds >= 2 * length:
            return f"{int((seconds + 1) / length)} {unit}"
    return f"{int((seconds + 1) / 60)} minutes"


async def _body(context: Context, row: MessageRow) -> tuple[bytes | None, str]:
    """The stored body, or the name of its file; raises Problem 404 or 410."""
    if row.raw_removed_at is not None:
        raise Problem(410, _removed(row, row.raw_removed_at))
    found = await history.raw(context.store.reader, row.id)
    if found is None:
        raise not_found("message")
    data, file = found
    if data is None and file is None:
        raise Problem(410, _GONE)
    return data, file or ""


def _etag(row: MessageRow, part: Part | None) -> str:
    """A strong ETag: what was received never changes, and of a part its place says which octets it is."""
    place = "" if part is None else f"{part.start} {part.length} {part.encoding}"
    return f'"{hashlib.sha256(f"{row.id} {row.received_at} {row.size} {place}".encode()).hexdigest()[:24]}"'


async def _unstuffed(context: Context, file: str) -> Octets:
    unstuffer = Unstuffer()
    async with contextlib.aclosing(cast(Octets, context.bodies.chunks(file))) as chunks:
        async for chunk in chunks:
            yield unstuffer.feed(chunk)
    yield unstuffer.flush()


async def _decoded(message: Octets, part: Part) -> Octets:
    """The decoded octets of one part."""
    decoder = PartDecoder(part.encoding)
    at, end = 0, part.start + part.length
    async with contextlib.aclosing(message) as chunks:
        async for chunk in chunks:
            yield decoder.feed(chunk[max(0, part.start - at) : max(0, end - at)])
            at += len(chunk)
            if at >= end:
                break
    yield decoder.flush()


def served_type(stated: str) -> str:
    """The type under which an attachment is served."""
    return stated if stated in _NAMED_TYPES or _OFFICE_TYPE.fullmatch(stated) else OCTET_STREAM


def disposition(name: str) -> str:
    """Content-Disposition of a download (RFC 6266), its name in both spellings where ASCII is not enough.

    The name is made safe once more: an older version may have stored it.
    """
    clean = "".join(char if char.isprintable() else "_" for char in safe_name(name)) or "attachment"
    plain = "".join(char if char.isascii() and char != "%" else "_" for char in clean)
    if plain == clean:
        return f'attachment; filename="{plain}"'
    encoded = quote(clean.encode(), safe=_SAFE_IN_NAME)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{encoded}"


OPERATIONS = (
    Operation(
        "GET",
        "/v1/messages/{id}/raw",
        "The bytes as received.",
        raw,
        Role.VIEWER,
        "message/rfc822",
        problems=(404, 410, 416),
        alike=(206,),
    ),
    Operation(
        "GET",
        "/a/{token}/{name}",
        "An attachment, by its signed link.",
        attachment,
        None,
        OCTET_STREAM,
        problems=(404, 410, 416),
        alike=(206,),
    ),
)
