"""One attempt to post one event: the request, its answer, and what that makes of the post."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import structlog

from relay.core.backoff import retry_after, webhook_delay
from relay.core.template import TemplateError
from relay.secrets import SealError
from relay.store.post import ANSWER_KEPT, PostJob, PostResult
from webapi.compose import Composer, NotWanted
from webapi.deal import Deal, read_deal
from webapi.requests import OURS, Answer, NoAnswer, Request, Requester

log = structlog.get_logger()

#: What is kept of an answer whose text could not be looked through for secrets.
UNREAD = "the answer could not be read here, the log says why"


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
    state, next_at, disable, put_off = "failed", now, None, None
    if reply.withheld:
        state = "withheld"
    elif reply.status is not None and 200 <= reply.status < 300:
        state = "delivered"
    elif reply.status == 410:
        disable = "the receiver answered 410 Gone"
    elif (delay := webhook_delay(job.attempts, jitter)) is not None:
        if reply.retry_after is not None and reply.status in (429, 503):
            asked = retry_after(reply.retry_after, now)
            put_off = None if asked is None else now + asked
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
    """Posts what ``composer`` composes, by ``requester``."""

    def __init__(self, composer: Composer, requester: Requester) -> None:
        self._composer = composer
        self._requester = requester

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
            return Reply(None, OURS)
        reply = await self.send(request, job)
        if reply.status is None and reply.text == OURS:
            return reply  # it says nothing of the receiver, which may not have heard of it
        return replace(reply, digest=hashlib.sha256(request.body).digest(), size=len(request.body))

    async def send(self, request: Request, job: PostJob) -> Reply:
        """Make the request as it is; whatever goes wrong is a reply without a status."""
        try:
            answer = await self._requester.request(request)
        except Exception:
            log.exception("post failed", webhook=job.hook.id, uid=job.uid)
            return Reply(None, OURS)
        if isinstance(answer, NoAnswer):
            if answer.trouble is not None:
                log.error("post failed", webhook=job.hook.id, uid=job.uid, exception=answer.trouble)
            return Reply(None, answer.reason)
        return self._answered(answer, request, job)

    def _answered(self, answer: Answer, request: Request, job: PostJob) -> Reply:
        """What the receiver said. The status counts whatever we make of the rest: a 2xx must not be posted again."""
        text = UNREAD
        deal: Deal | None = None
        try:
            kept = self._composer.kept(answer.content[: 4 * ANSWER_KEPT], request, job.hook)
            text = kept.decode("utf-8", "replace")
            if 200 <= answer.status < 300 and answer.content:
                deal = read_deal(answer.content, job.hook, self._composer.access(job.hook))
        except Exception:
            log.exception("answer not read", webhook=job.hook.id, uid=job.uid)
        return Reply(answer.status, text, answer.retry_after, deal)


def unmade(error: SealError | TemplateError) -> str:
    """Why there is no request: something of the webhook is to be put right, then the next attempt goes through."""
    if isinstance(error, SealError):
        return f"the webhook's secret cannot be read: {error}"
    return f"the webhook's template fails: {error}"
