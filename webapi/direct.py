"""Requests to receivers, made right here: 15 seconds in all, 64 kB of the answer, no redirects, no proxy from the
environment, no cookies, and only public addresses (webapi/guard.py).
"""

from __future__ import annotations

import os
import traceback

import aiohttp
from aiohttp.abc import AbstractResolver
from yarl import URL

from webapi.guard import ForbiddenAddress, guarded_connector
from webapi.requests import ANSWER, OURS, TIMEOUT, Answer, NoAnswer, Request

#: Parsed URLs kept.
URLS = 1000


class Direct:
    """Makes requests in this process, so many at once. ``resolver`` replaces the system's."""

    def __init__(
        self, allow_private_addresses: bool, connections: int, resolver: AbstractResolver | None = None
    ) -> None:
        self._allow_private = allow_private_addresses
        self._connections = connections
        self._resolver = resolver
        self._urls: dict[str, URL] = {}
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        """Call inside the event loop that will make the requests."""
        self._session = aiohttp.ClientSession(
            connector=guarded_connector(self._allow_private, limit=self._connections, resolver=self._resolver),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=TIMEOUT, ceil_threshold=2 * TIMEOUT),
            skip_auto_headers=("Accept", "Accept-Encoding"),
            auto_decompress=False,
        )

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def request(self, request: Request) -> Answer | NoAnswer:
        assert self._session is not None
        try:
            async with self._session.request(
                request.method,
                self._url(request.url),
                data=request.body if request.method != "GET" else None,
                headers=request.headers,
                allow_redirects=False,
            ) as response:
                content = await _read(response)
                return Answer(response.status, content, response.headers.get("Retry-After"))
        except (aiohttp.ClientError, OSError) as error:
            return NoAnswer(_reason(error))
        except Exception:
            return NoAnswer(OURS, traceback.format_exc())

    def _url(self, text: str) -> URL:
        url = self._urls.get(text)
        if url is None:
            if len(self._urls) >= URLS:
                self._urls.clear()
            try:
                url = self._urls[text] = URL(text)
            except ValueError:
                raise aiohttp.InvalidURL(text) from None
        return url


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """As much of the answer as is wanted; what cuts it off after a 2xx does not undo that."""
    answer = bytearray()
    try:
        while len(answer) < ANSWER and (chunk := await response.content.read(ANSWER - len(answer))):
            answer += chunk
    except (aiohttp.ClientError, OSError):
        if not 200 <= response.status < 300:
            raise
    if not response.content.at_eof():
        response.close()
    return bytes(answer)


def _reason(error: Exception) -> str:
    """Why there was no answer, for History: neither the URL, which may hold a key, nor an address of the inside."""
    if isinstance(error, TimeoutError):
        return f"no answer within {TIMEOUT:.0f} s"
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return f"TLS: {getattr(error.certificate_error, 'verify_message', None) or 'the certificate is not valid'}"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "no connection: the host's name was not found"
    if isinstance(error, aiohttp.ClientConnectorError):
        cause = error.os_error
        if isinstance(cause, ForbiddenAddress):
            return f"no connection: {cause.strerror}"
        return f"no connection: {os.strerror(cause.errno) if cause.errno else type(cause).__name__}"
    if isinstance(error, aiohttp.ServerDisconnectedError):
        return "the connection was closed without an answer"
    if isinstance(error, aiohttp.InvalidURL | aiohttp.NonHttpUrlClientError):
        return "the webhook's URL is not valid"
    return f"the attempt failed: {type(error).__name__}"
