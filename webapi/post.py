"""One attempt to post one event: the request, its answer, and what that makes of the post.

15 seconds in all, 64 kB of the answer, no redirects, no proxy from the environment, no cookies, and only public
addresses (webapi/guard.py).
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, replace

import aiohttp
import structlog
from aiohttp.abc import AbstractResolver
from yarl import URL

from relay.core.backoff import retry_after, webhook_delay
from relay.core.template import TemplateError
from relay.secrets import SealError
from relay.store.posts import ANSWER_KEPT, PostJob, PostResult
from webapi.compose import Composer, NotWanted, Request
from webapi.deal import Deal, read_deal
from webapi.guard import ForbiddenAddress, guarded_connector

log = structlog.get_logger()

#: Seconds that an attempt may take in all, and octets of its answer that are read.
TIMEOUT = 15.0
ANSWER = 64 * 1024
#: Parsed URLs kept.
URLS = 1000
_OURS = "the attempt failed here, the log says why"


@dataclass(frozen=True, slots=True)
class Reply:
    """What one attempt came to. ``text`` is the answer's, without our secrets; without a status nothing was answered,
    and it says why."""

    status: int | None
    text: str
    retry_after: str | None = None
    deal: Deal | None = None
    withheld: bool = False  # nothing was sent, and nothing is to be
    digest: bytes | None = None
    size: int | None = None


def settle(job: PostJob, reply: Reply, started_at: float, duration: float, now: float, jitter: float) -> PostResult:
    """What a reply makes of a post (Standard Webhooks, "Delivery attempts"). Pure.

    2xx is success, 410 the end of this webhook, everything else (redirects, too) is tried again by the schedule.
    """
    state, next_at, disable, put_off = "failed", now, None, False
    if reply.withheld:
        state = "withheld"
    elif reply.status is not None and 200 <= reply.status < 300:
        state = "delivered"
    elif reply.status == 410:
        disable = "the receiver answered 410 Gone"
    elif (delay := webhook_delay(job.attempts, jitter)) is not None:
        if reply.retry_after is not None and reply.status in (429, 503):
            asked = retry_after(reply.retry_after, now)
            put_off = asked is not None
            delay = max(delay, asked or 0.0)
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
        put_off=put_off,
        digest=reply.digest,
        size=reply.size,
    )


class Client:
    """Makes the requests that ``composer`` composes."""

    def __init__(self, composer: Composer) -> None:
        self._composer = composer
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
        try:
            request = self._composer.compose(job, now)
        except NotWanted as error:
            return Reply(None, str(error), withheld=True)
        except (SealError, TemplateError) as error:
            return Reply(None, unmade(error))
        except Exception:
            log.exception("post failed", webhook=job.hook.id, uid=job.uid)
            return Reply(None, _OURS)
        reply = await self.send(request, job)
        return replace(reply, digest=hashlib.sha256(request.body).digest(), size=len(request.body))

    async def send(self, request: Request, job: PostJob) -> Reply:
        """Make the request as it is; whatever goes wrong is a reply without a status."""
        assert self._session is not None
        try:
            async with self._session.request(
                request.method,
                self._url(request.url),
                data=request.body if request.method != "GET" else None,
                headers=request.headers,
                allow_redirects=False,
            ) as response:
                answer = await _read(response)
                success = 200 <= response.status < 300
                kept = self._composer.kept(answer[: 4 * ANSWER_KEPT], request, job.hook)
                return Reply(
                    response.status,
                    kept.decode("utf-8", "replace"),
                    response.headers.get("Retry-After"),
                    read_deal(answer, job.hook, self._composer.access(job.hook)) if success and answer else None,
                )
        except (aiohttp.ClientError, OSError) as error:
            return Reply(None, _reason(error))
        except Exception:
            log.exception("post failed", webhook=job.hook.id, uid=job.uid)
            return Reply(None, _OURS)

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


def unmade(error: SealError | TemplateError) -> str:
    """Why there is no request: something of the webhook is to be put right, then the next attempt goes through."""
    if isinstance(error, SealError):
        return f"the webhook's secret cannot be read: {error}"
    return f"the webhook's template fails: {error}"


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
