"""Bytes out of the stored message: the message itself, and its attachments by signed link.

Nothing is kept twice: an attachment is cut out of the message and decoded while it is sent, so a large one passes
through in pieces. What strangers attached is always a download and never a page of ours.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Mapping
from typing import cast
from urllib.parse import quote

import structlog
from aiohttp import web

from relay.core.mime import OCTET_STREAM, Part, PartDecoder
from relay.core.wire import Unstuffer, unstuff
from relay.store import history
from webapi import links
from webapi.auth import Role
from webapi.context import CONTEXT, Context
from webapi.messages import visible_message
from webapi.operation import Call, Operation
from webapi.problems import Problem, not_found

log = structlog.get_logger()

Octets = AsyncGenerator[bytes, None]

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
_NAMED_PREFIX = "application/vnd."  # office documents; what is "+xml" is not
_SAFE_IN_NAME = "!#$&+-.^_`|~"  # RFC 8187 §3.2.1, attr-char besides letters and digits
_HEADERS = {
    "Content-Security-Policy": "sandbox; default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "private, no-store",
    "X-Robots-Tag": "noindex",
}
_GONE = "the message's bytes are no longer kept"


async def raw(call: Call) -> web.StreamResponse:
    """The message as it was received."""
    row = await visible_message(call)
    headers = {
        **_HEADERS,
        "Content-Type": "message/rfc822",
        "Content-Disposition": disposition(f"message-{row.id}.eml"),
    }
    data, file = await _body(call.context, row.id)
    if data is not None:
        return web.Response(body=unstuff(data), headers=headers)
    return await _stream(call.request, headers, _unstuffed(call.context, file), None)


async def attachment(request: web.Request) -> web.StreamResponse:
    """An attachment, for whoever has the link. The name in it is for people; the stored message's own counts."""
    context = request.app[CONTEXT]
    try:
        message_id, index = links.read(context.keys.all("links"), request.match_info["token"], context.clock())
    except links.LinkExpired as error:
        raise Problem(410, str(error)) from None
    except links.LinkInvalid:
        raise not_found("link") from None
    row = await history.one(context.store.reader, message_id, None)
    if row is None:
        raise Problem(410, "the message was erased")
    part = next((part for part in row.attachments if part.index == index), None)
    if part is None:
        raise not_found("link")
    data, file = await _body(context, message_id)
    headers = {**_HEADERS, "Content-Type": served_type(part.type), "Content-Disposition": disposition(part.name)}
    if data is not None:
        decoder = PartDecoder(part.encoding)
        octets = decoder.feed(unstuff(data)[part.start : part.start + part.length])
        return web.Response(body=octets + decoder.flush(), headers=headers)
    return await _stream(request, headers, _decoded(_unstuffed(context, file), part), part.size)


async def _body(context: Context, message_id: int) -> tuple[bytes | None, str]:
    """The stored body, or the name of its file; raises Problem 404 or 410."""
    found = await history.raw(context.store.reader, message_id)
    if found is None:
        raise not_found("message")
    data, file = found
    if data is None and file is None:
        raise Problem(410, _GONE)
    return data, file or ""


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


async def _stream(
    request: web.Request, headers: Mapping[str, str], octets: Octets, length: int | None
) -> web.StreamResponse:
    """Send as it comes. A failure after the answer has begun can only be told by breaking the connection."""
    response = web.StreamResponse(headers=headers)
    response.content_length = length
    async with contextlib.aclosing(octets):
        try:
            first = await anext(octets, b"")  # a file that is gone shows now
        except OSError as error:
            log.error("http.body_unreadable", error=str(error))
            raise Problem(410, _GONE) from None
        await response.prepare(request)
        if request.method == "HEAD":
            return response
        try:
            await response.write(first)
            async for chunk in octets:
                await response.write(chunk)
            await response.write_eof()
        except OSError as error:
            if not isinstance(error, ConnectionError):
                log.error("http.body_unreadable", error=str(error))
            if request.transport is not None:
                request.transport.abort()
    return response


def served_type(stated: str) -> str:
    """The type under which an attachment is served."""
    if stated in _NAMED_TYPES or (stated.startswith(_NAMED_PREFIX) and "+" not in stated):
        return stated
    return OCTET_STREAM


def disposition(name: str) -> str:
    """Content-Disposition of a download (RFC 6266), its name in both spellings where ASCII is not enough."""
    clean = "".join(char if char.isprintable() and char not in '/\\"' else "_" for char in name) or "attachment"
    plain = "".join(char if char.isascii() and char != "%" else "_" for char in clean)
    if plain == clean:
        return f'attachment; filename="{plain}"'
    encoded = quote(clean.encode("utf-8", "replace"), safe=_SAFE_IN_NAME)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{encoded}"


OPERATIONS = (
    Operation(
        "GET",
        "/v1/messages/{id}/raw",
        "The bytes as received.",
        raw,
        Role.VIEWER,
        "message/rfc822",
        problems=(404, 410),
    ),
    Operation(
        "GET",
        "/a/{token}/{name}",
        "An attachment, by its signed link.",
        attachment,
        None,
        OCTET_STREAM,
        problems=(404, 410),
    ),
)
