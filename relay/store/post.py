"""A post as the poster has it: what is to be sent to whom, and what came of it. Nothing here needs a database."""

from __future__ import annotations

from dataclasses import dataclass

from relay.core.extras import PayloadExtras
from relay.core.hook import HookSettings
from relay.core.mime import Part
from relay.core.model import Attribution
from relay.core.payload import PayloadMessage, PayloadVisit

#: Seconds until a claim ends unless it is renewed.
CLAIM = 600.0
#: Characters of a receiver's answer that the delivery log keeps.
ANSWER_KEPT = 2000
#: Posts a second to one webhook when many are to be posted again, so that what comes in meanwhile need not wait behind
#: them, and posts in one such transaction.
PACE = 50.0
BITE = 200


@dataclass(frozen=True, slots=True)
class Hook:
    """A webhook as an attempt needs it. ``secret``, ``previous_secret`` and ``access`` are sealed.

    ``previous_until``: when the previous secret signs no more, seconds since the epoch; None: not by itself.
    """

    id: int
    url: str
    secret: str
    settings: HookSettings
    previous_secret: str | None = None
    previous_until: float | None = None
    access: str | None = None


@dataclass(frozen=True, slots=True)
class PostJob:
    """One event to be posted to one webhook. ``parts`` still need their links; ``extras`` only where they are sent.

    A copy of rows: before an attempt its ``edition`` is compared with the writer's.
    """

    post_id: int
    claim: str
    attempts: int
    uid: str
    hook: Hook
    site_id: int
    message_id: int
    created_at: float
    message: PayloadMessage
    parts: tuple[Part, ...]
    visit: PayloadVisit | None
    attribution: Attribution
    extras: PayloadExtras | None = None
    due: float = 0.0
    edition: int = 0


@dataclass(frozen=True, slots=True)
class PostResult:
    """``state`` is delivered, failed, withheld or waiting (then ``next_at`` counts). ``deal`` is (id, url) as answered.

    ``digest`` and ``size`` are of the body that was sent; None when nothing was.
    ``put_off``: until when a Retry-After asks us to wait, seconds since the epoch.
    """

    job: PostJob
    state: str
    next_at: float
    status: int | None
    answer: str
    started_at: float
    duration: float
    deal: tuple[str | None, str | None] | None = None
    disable_webhook: str | None = None
    put_off: float | None = None
    digest: bytes | None = None
    size: int | None = None
