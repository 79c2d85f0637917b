"""Trying a webhook: one made-up letter posted just now, to see what the receiver answers. Nothing of it is stored."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from aiohttp.abc import AbstractResolver

from relay import eventloop
from relay.core.extras import PayloadExtras
from relay.core.model import Attribution, AttributionState
from relay.core.payload import PayloadMessage, PayloadVisit
from relay.core.template import TemplateError
from relay.secrets import SealError
from relay.store.post import Hook, PostJob
from webapi.compose import Composer, NotWanted
from webapi.deal import Deal
from webapi.direct import Direct
from webapi.post import Client, Reply, unmade
from webapi.problems import Problem
from webapi.requests import TIMEOUT, Request

#: Trials under way at once: each has a thread, with an event loop of its own, for as long as the receiver takes.
TRIALS = 4

#: The reference's printed example, with what it leaves null.
_MESSAGE = PayloadMessage(
    id="0",
    email_id="0",
    subject="Test of the webhook",
    text="This is a test: no letter came in.",
    email_from="email_1@mail.com",
    email_to="email+123456@mail.com",
)
_VISIT = PayloadVisit(
    number="123456",
    first_visit="1001",
    referrer="fb.com",
    marker="fb_new",
    city="New York",
    country="USA",
    ip="161.185.160.93",
    domain="test.com",
    landing_page="test.com/new",
    utm_source="fb",
    utm_medium="cpc",
    utm_campaign="new",
    google_client_id="1034567890.1769860700",
)
_ATTRIBUTION = Attribution(AttributionState.EXACT, "plus/1")


@dataclass(frozen=True, slots=True)
class Trial:
    """``request`` without its secrets, None where none could be made. ``status`` None: no answer, ``answer`` says why.

    ``seconds`` that it took.
    """

    request: Request | None
    status: int | None
    answer: str
    seconds: float
    deal: Deal | None

    @property
    def succeeded(self) -> bool:
        return self.status is not None and 200 <= self.status < 300


@dataclass(slots=True)
class Trials:
    """How many of the daemon are under way."""

    under_way: int = 0

    @contextmanager
    def one(self) -> Iterator[None]:
        """A place for one more; raises Problem 429 when there is none."""
        if self.under_way >= TRIALS:
            detail = f"{TRIALS} webhooks are being tested just now; try again in a moment"
            raise Problem(429, detail, headers={"Retry-After": f"{TIMEOUT:.0f}"})
        self.under_way += 1
        try:
            yield
        finally:
            self.under_way -= 1


async def trial(
    composer: Composer,
    hook: Hook,
    site: str,
    uid: str,
    *,
    allow_private_addresses: bool,
    clock: Callable[[], float],
    resolver: AbstractResolver | None = None,
) -> Trial:
    """Post the made-up letter under the webhook-id ``uid``, as any other would be posted."""
    now = clock()
    job = _job(hook, site, uid, now)
    try:
        request = composer.compose(job, now)
        shown = await asyncio.to_thread(composer.shown, request, hook)
    except NotWanted as error:
        return Trial(None, None, f"the template does not take the letter: {error}", 0.0, None)
    except (SealError, TemplateError) as error:
        return Trial(None, None, unmade(error), 0.0, None)

    async def send() -> tuple[Reply, float]:
        requester = Direct(allow_private_addresses, 1, resolver)
        await requester.open()
        start = time.monotonic()
        try:
            return await Client(composer, requester).send(request, job), time.monotonic() - start
        finally:
            await requester.close()

    reply, seconds = await eventloop.apart(send)
    return Trial(shown, reply.status, reply.text, seconds, reply.deal)


def _job(hook: Hook, site: str, uid: str, now: float) -> PostJob:
    extras = PayloadExtras(
        event="message.received",
        site=site,
        received_at=now,
        written_at=now,
        message_id="test@mail.com",
        in_reply_to=None,
        references=(),
        mail_from="email_1@mail.com",
        size=1024,
        automatic=None,
        bounce=False,
        html=None,
        channel="campaign",
        candidates=(),
        first_touch=_VISIT,
        deal_id=None,
        deal_url=None,
    )
    return PostJob(
        post_id=0,
        claim="",
        attempts=1,
        uid=uid,
        hook=hook,
        site_id=0,
        message_id=0,
        created_at=now,
        message=_MESSAGE,
        parts=(),
        visit=_VISIT,
        attribution=_ATTRIBUTION,
        extras=extras,
    )
