"""One attempt to post one event: the request, its answer, and what that makes of the post.

15 seconds in all, 64 kB of the answer, no redirects, no proxy from the environment, no cookies, and only public
addresses (webapi/guard.py).
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from urllib.parse import quote, urlsplit

import aiohttp
import structlog
from aiohttp.abc import AbstractResolver
from yarl import URL

from relay.core import payload
from relay.core.backoff import retry_after, webhook_delay
from relay.core.payload import PayloadAttachment
from relay.secrets import Keys, SealError
from relay.store.events import ANSWER_KEPT, PostJob, PostResult
from webapi import links, signature
from webapi.guard import ForbiddenAddress, guarded_connector

log = structlog.get_logger()

#: Seconds that an attempt may take in all, and octets of its answer that are read.
TIMEOUT = 15.0
ANSWER = 64 * 1024
#: Characters of a deal's number and of its address.
DEAL_ID, DEAL_URL = 200, 2000
#: Parsed URLs kept.
URLS = 1000


@dataclass(frozen=True, slots=True)
class Reply:
    """What one attempt came to. Without a status nothing was answered, and ``text`` says why."""

    status: int | None
    text: str
    retry_after: str | None = None
    deal: tuple[str | None, str | None] | None = None


def settle(job: PostJob, reply: Reply, started_at: float, duration: float, now: float, jitter: float) -> PostResult:
    """What a reply makes of a post (Standard Webhooks, "Delivery attempts"). Pure.

    2xx is success, 410 the end of this webhook, everything else (redirects, too) is tried again by the schedule.
    """
    state, next_at, disable = "failed", now, None
    if reply.status is not None and 200 <= reply.status < 300:
        state = "delivered"
    elif reply.status == 410:
        disable = "the receiver answered 410 Gone"
    elif (delay := webhook_delay(job.attempts, jitter)) is not None:
        if reply.retry_after is not None and reply.status in (429, 503):
            delay = max(delay, retry_after(reply.retry_after, now) or 0.0)
        state, next_at = "waiting", now + delay
    return PostResult(
        job=job,
        state=state,
        next_at=next_at,
        status=reply.status,
        answer=reply.text,
        started_at=started_at,
        duration=duration,
        deal=reply.deal,
        disable_webhook=disable,
    )


def read_deal(answer: bytes) -> tuple[str | None, str | None] | None:
    """(``deal_id``, ``deal_url``) of a JSON answer, None when it has neither. What is not a plain value is ignored."""
    if b'"deal_' not in answer:
        return None
    try:
        found = json.loads(answer)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    deal_id, url = _plain(found.get("deal_id"), DEAL_ID), _plain(found.get("deal_url"), DEAL_URL)
    if url is not None and not _is_web_address(url):
        url = None
    return None if deal_id is None and url is None else (deal_id, url)


def _plain(value: object, longest: int) -> str | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    if isinstance(value, float) and not math.isfinite(value):
        return None
    text = str(value).strip()
    return text if text.isprintable() and 0 < len(text) <= longest else None


def _is_web_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and " " not in text
    except ValueError:
        return False


class Client:
    """Makes the requests. Attachments' links begin with ``public_url`` and live for ``links_live_for`` seconds."""

    def __init__(self, keys: Keys, public_url: str, links_live_for: float) -> None:
        self._keys = keys
        self._links_at = public_url.rstrip("/") + "/a/"
        self._links_live_for = links_live_for
        self._agent = _user_agent()
        self._unsealed: dict[int, tuple[str, str]] = {}
        self._urls: dict[str, URL] = {}
        self._session: aiohttp.ClientSession | None = None

    def open(self, allow_private_addresses: bool, connections: int, resolver: AbstractResolver | None) -> None:
        """Call inside the event loop that will make the requests."""
        self._session = aiohttp.ClientSession(
            connector=guarded_connector(allow_private_addresses, limit=connections, resolver=resolver),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=TIMEOUT, ceil_threshold=2 * TIMEOUT),
            skip_auto_headers=("Accept", "Accept-Encoding"),
            auto_decompress=False,
        )

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def post(self, job: PostJob, now: float) -> Reply:
        """One attempt; whatever goes wrong is a reply without a status."""
        assert self._session is not None
        try:
            body = self._body(job)
            async with self._session.post(
                self._url(job.url), data=body, headers=self._headers(job, body, int(now)), allow_redirects=False
            ) as response:
                answer = await _read(response)
                success = 200 <= response.status < 300
                return Reply(
                    response.status,
                    answer[: 4 * ANSWER_KEPT].decode("utf-8", "replace"),
                    response.headers.get("Retry-After"),
                    read_deal(answer) if success else None,
                )
        except (aiohttp.ClientError, OSError, SealError) as error:
            return Reply(None, _reason(error))
        except Exception:
            log.exception("post failed", webhook=job.webhook_id, uid=job.uid)
            return Reply(None, "the attempt failed here, the log says why")

    def _body(self, job: PostJob) -> bytes:
        message = job.message
        if job.parts:
            key, expires = self._keys.current("links"), int(job.created_at + self._links_live_for)
            attachments = tuple(
                PayloadAttachment(
                    part.name,
                    f"{self._links_at}{links.make(key, job.message_id, part.index, expires)}/{_in_url(part.name)}",
                )
                for part in job.parts
            )
            message = replace(message, attachments=attachments)
        return payload.encode(payload.build(message, job.visit, job.attribution))

    def _headers(self, job: PostJob, body: bytes, timestamp: int) -> dict[str, str]:
        sealed, secret = self._unsealed.get(job.webhook_id, ("", ""))
        if sealed != job.secret:
            secret = self._keys.unseal(job.secret)
            self._unsealed[job.webhook_id] = (job.secret, secret)
        return {
            "Content-Type": "application/json",
            "User-Agent": self._agent,
            "webhook-id": job.uid,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": signature.sign([secret], job.uid, timestamp, body),
        }

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


def _user_agent() -> str:
    try:
        return f"visit-relay/{version('visit-relay')}"
    except PackageNotFoundError:  # run from a source tree
        return "visit-relay"


def _in_url(name: str) -> str:
    return quote(name.encode("utf-8", "replace"), safe="") or "attachment"


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
    if isinstance(error, SealError):
        return f"the webhook's secret cannot be read: {error}"
    return f"the attempt failed: {type(error).__name__}"
