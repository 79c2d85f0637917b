"""A post with everything that an attempt needs, read from the rows it is about: one copy to retain, one to erase."""

from __future__ import annotations

import json
from dataclasses import dataclass

from sqlalchemy import bindparam, select

from relay.core.attribution import Fill, stated_visit
from relay.core.mime import Part
from relay.core.model import Attribution, AttributionState, Candidate
from relay.core.payload import PayloadMessage, PayloadVisit
from relay.core.site import SiteSettings, Touch
from relay.core.source import Params
from relay.store.engine import Row, Statement, Tx
from relay.store.schema import deliveries, events, messages, posts, routes, sites, texts, visits, webhooks


@dataclass(frozen=True, slots=True)
class PostJob:
    """One event to be posted to one webhook. ``parts`` still need their links; ``secret`` is sealed."""

    post_id: int
    claim: str
    attempts: int
    uid: str
    webhook_id: int
    url: str
    secret: str
    message_id: int
    created_at: float
    message: PayloadMessage
    parts: tuple[Part, ...]
    visit: PayloadVisit | None
    attribution: Attribution


_POST = Statement(
    select(
        posts.c.id,
        posts.c.attempts,
        events.c.uid,
        webhooks.c.id,
        webhooks.c.url,
        webhooks.c.secret,
        webhooks.c.fill,
        messages.c.id,
        events.c.created_at,
        messages.c.sender,
        deliveries.c.recipient,
        texts.c.subject,
        texts.c.head,
        texts.c.rest,
        messages.c.attachments,
        deliveries.c.attribution,
        deliveries.c.attribution_method,
        deliveries.c.visit_id,
        deliveries.c.claimed_number,
        deliveries.c.candidates,
        routes.c.label,
        sites.c.settings,
    )
    .join(events, events.c.id == posts.c.event_id)
    .join(webhooks, webhooks.c.id == posts.c.webhook_id)
    .join(sites, sites.c.id == events.c.site_id)
    .join(messages, messages.c.id == events.c.message_id)
    .join(deliveries, deliveries.c.id == events.c.delivery_id)
    .outerjoin(texts, texts.c.message_id == messages.c.id)
    .outerjoin(routes, routes.c.id == deliveries.c.route_id)
    .where(posts.c.id == bindparam("post"))
)
#: What a touch says of a visit: the rest, its place and its client ids, is always the stated visit's own.
_SOURCE_FIELDS = (
    "referrer",
    "marker",
    "domain",
    "landing_page",
    "utm_source",
    "utm_medium",
    "utm_campaign",
    "utm_term",
    "utm_content",
)
_VISIT_FIELDS = ("number", "first_visit", "city", "country", "ip", "google_client_id", *_SOURCE_FIELDS)
_VISIT = Statement(
    select(visits.c.params, visits.c.first_id, visits.c.touch_id, *(visits.c[name] for name in _VISIT_FIELDS)).where(
        visits.c.id == bindparam("visit"), visits.c.erased_at.is_(None)
    )
)
_SOURCE = Statement(
    select(visits.c.params, *(visits.c[name] for name in _SOURCE_FIELDS)).where(
        visits.c.id == bindparam("visit"), visits.c.erased_at.is_(None)
    )
)


def post_job(tx: Tx, post_id: int, claim: str) -> PostJob:
    """The post with this id, which ``claim`` holds."""
    row = tx.one(_POST, post=post_id)
    assert row is not None
    _, attempts, uid, webhook_id, url, secret, fill, message_id, created_at = row[:9]
    sender, recipient, subject, head, rest, attachments = row[9:15]
    attribution = _attribution(row[15:20])
    return PostJob(
        post_id=post_id,
        claim=claim,
        attempts=attempts,
        uid=uid,
        webhook_id=webhook_id,
        url=url,
        secret=secret,
        message_id=message_id,
        created_at=created_at,
        message=PayloadMessage(
            id=str(message_id),
            email_id=str(message_id),
            subject=subject,
            text=(head or "") + (rest or ""),
            email_from=sender,
            email_to=recipient,
        ),
        parts=tuple(Part(**part) for part in json.loads(attachments)) if attachments else (),
        visit=_stated(tx, attribution, fill, row[20], SiteSettings.from_json(row[21]).touch),
        attribution=attribution,
    )


def _attribution(columns: Row) -> Attribution:
    state, method, visit_id, number, candidates = columns
    return Attribution(
        AttributionState(state),
        method,
        visit=visit_id,
        number=number,
        candidates=tuple(Candidate(*pair) for pair in json.loads(candidates)) if candidates else (),
    )


def _stated(tx: Tx, attribution: Attribution, fill: Fill, label: str | None, touch: Touch) -> PayloadVisit | None:
    """The visit that may be stated as fact; a static substitute states its label as the marker, without a visit."""
    visit_id = stated_visit(attribution, fill)
    if visit_id is None:
        certain = attribution.state is AttributionState.EXACT  # the substitute of a retired route states nothing
        return PayloadVisit(number="", marker=label) if certain and label is not None else None
    row = tx.one(_VISIT, visit=visit_id)
    if row is None:
        return None  # erased since
    params, first_id, touch_id, *values = row
    fields = dict(zip(_VISIT_FIELDS, values, strict=True))
    touched = {Touch.FIRST: first_id, Touch.LAST_NON_DIRECT: touch_id}.get(touch)
    # The visit of that touch may be past its retention: then the stated visit's own source is all that is known.
    if touched is not None and (source := tx.one(_SOURCE, visit=touched)):
        params, *values = source
        fields |= dict(zip(_SOURCE_FIELDS, values, strict=True))
    return PayloadVisit(**fields, params=_params(params))


def _params(text: str | None) -> Params:
    values: dict[str, str] = json.loads(text) if text else {}
    first, second, third, fourth, fifth = (values.get(str(i)) for i in range(1, 6))
    return first, second, third, fourth, fifth
