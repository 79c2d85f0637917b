"""A post with everything that an attempt needs, read from the rows it is about: one copy to retain, one to erase."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy import bindparam, select

from relay.core.attribution import Fill, stated_visit
from relay.core.extras import PayloadExtras
from relay.core.hook import EventType, HookSettings
from relay.core.mime import Part
from relay.core.model import Attribution
from relay.core.payload import PayloadMessage, PayloadVisit
from relay.core.site import SiteSettings, Touch
from relay.core.source import Params
from relay.store.attribution import read_attribution
from relay.store.engine import Row, Statement, Tx
from relay.store.post import Hook, PostJob
from relay.store.schema import deliveries, events, messages, posts, sites, texts, visits, webhooks

#: The columns of a webhook that make a Hook.
HOOK_COLUMNS = (
    webhooks.c.id,
    webhooks.c.url,
    webhooks.c.secret,
    webhooks.c.settings,
    webhooks.c.previous_secret,
    webhooks.c.previous_until,
    webhooks.c.access,
)
_MESSAGE_COLUMNS = (
    posts.c.attempts,
    posts.c.next_at,
    events.c.uid,
    webhooks.c.fill,
    messages.c.id,
    events.c.created_at,
    messages.c.sender,
    deliveries.c.recipient,
    texts.c.subject,
    texts.c.head,
    texts.c.rest,
    messages.c.attachments,
)
_ATTRIBUTION_COLUMNS = (
    deliveries.c.attribution,
    deliveries.c.attribution_method,
    deliveries.c.visit_id,
    deliveries.c.claimed_number,
    deliveries.c.candidates,
    deliveries.c.label,
)
_REST = (sites.c.id, sites.c.settings, events.c.id, events.c.type)
_POST = Statement(
    select(*HOOK_COLUMNS, *_MESSAGE_COLUMNS, *_ATTRIBUTION_COLUMNS, *_REST)
    .join(events, events.c.id == posts.c.event_id)
    .join(webhooks, webhooks.c.id == posts.c.webhook_id)
    .join(sites, sites.c.id == events.c.site_id)
    .join(messages, messages.c.id == events.c.message_id)
    .join(deliveries, deliveries.c.id == events.c.delivery_id)
    .outerjoin(texts, texts.c.message_id == messages.c.id)
    .where(posts.c.id == bindparam("post"))
)
_A = len(HOOK_COLUMNS)
_B = _A + len(_MESSAGE_COLUMNS)
_C = _B + len(_ATTRIBUTION_COLUMNS)

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
_OWN_FIELDS = ("number", "first_visit", "city", "country", "ip", "google_client_id")
_VISIT_COLUMNS = ("first_id", "touch_id", "channel", "params", *_OWN_FIELDS, *_SOURCE_FIELDS)
_OWN = _VISIT_COLUMNS.index(_OWN_FIELDS[0])  # where they begin
_SOURCE = _VISIT_COLUMNS.index(_SOURCE_FIELDS[0])
_VISIT = Statement(
    select(*(visits.c[name] for name in _VISIT_COLUMNS)).where(
        visits.c.id == bindparam("visit"), visits.c.erased_at.is_(None)
    )
)


_POST_ALONE = Statement(
    select(*HOOK_COLUMNS, posts.c.attempts, posts.c.next_at, webhooks.c.fill)
    .join(webhooks, webhooks.c.id == posts.c.webhook_id)
    .where(posts.c.id == bindparam("post"))
)


#: Of other events none is posted again: a change of the attribution is one of its own.
_RECEIPT_STATES = Statement(
    select(*_ATTRIBUTION_COLUMNS)
    .join(events, events.c.delivery_id == deliveries.c.id)
    .join(posts, posts.c.event_id == events.c.id)
    .where(posts.c.id == bindparam("post"), events.c.type == EventType.RECEIVED.value)
)


def post_job(tx: Tx, post_id: int, claim: str) -> PostJob:
    """The post with this id, which ``claim`` holds."""
    job = find_job(tx, post_id, claim)
    assert job is not None
    return job


def post_jobs(tx: Tx, post_ids: Sequence[int], claim: str) -> list[PostJob]:
    """Posts of one event, which ``claim`` holds. What several say alike is read once, and is the same object."""
    if len(post_ids) == 1:
        return [post_job(tx, post_ids[0], claim)]
    found: list[PostJob] = []
    alike: dict[tuple[str, bool], PostJob] = {}
    for post_id in post_ids:
        row = tx.one(_POST_ALONE, post=post_id)
        assert row is not None
        hook, (attempts, due, fill) = read_hook(row[:_A]), row[_A:]
        first = alike.get((fill, hook.settings.extended))
        if first is None:
            job = alike[fill, hook.settings.extended] = post_job(tx, post_id, claim)
        else:
            job = replace(first, post_id=post_id, attempts=attempts, hook=hook, due=due)
        found.append(job)
    return found


def find_job(tx: Tx, post_id: int, claim: str) -> PostJob | None:
    """The same; None when it is gone, erased with its message."""
    row = tx.one(_POST, post=post_id)
    if row is None:
        return None
    hook = read_hook(row[:_A])
    attempts, due, uid, fill, message_id, created_at, sender, recipient, subject, head, rest, attachments = row[_A:_B]
    attribution = read_attribution(row[_B:_C])
    site_id, settings, event_id, event_type = row[_C:]
    extended = hook.settings.extended or event_type != EventType.RECEIVED.value
    stated = _stated(tx, attribution, fill, SiteSettings.from_json(settings).touch)
    # A static substitute states its label as the marker, without a visit.
    labelled = None if attribution.label is None else PayloadVisit(number="", marker=attribution.label)
    return PostJob(
        post_id=post_id,
        claim=claim,
        attempts=attempts,
        uid=uid,
        hook=hook,
        site_id=site_id,
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
        visit=_with_source(*stated) if stated else labelled,
        attribution=attribution,
        extras=_extras(tx, event_id, attribution, stated) if extended else None,
        due=due,
        edition=tx.edition,
    )


def has_another_visit(tx: Tx, job: PostJob) -> bool:
    """Whether its letter was attributed anew since the job was read; a visit that was only erased is not another."""
    if job.edition == tx.edition:
        return False
    row = tx.one(_RECEIPT_STATES, post=job.post_id)
    said = job.attribution
    return row is not None and read_attribution(row) not in (said, replace(said, visit=None))


def read_hook(columns: Row) -> Hook:
    """A Hook of HOOK_COLUMNS."""
    webhook_id, url, secret, settings, previous_secret, previous_until, access = columns
    return Hook(webhook_id, url, secret, HookSettings.from_json(settings), previous_secret, previous_until, access)


def _stated(tx: Tx, attribution: Attribution, fill: Fill, touch: Touch) -> tuple[Row, Row] | None:
    """The visit that may be stated as fact and the one whose source is stated for it, as _VISIT reads them."""
    visit = _visit(tx, stated_visit(attribution, fill))
    if visit is None:
        return None  # or erased since
    first_id, touch_id, *_ = visit
    touched = {Touch.FIRST: first_id, Touch.LAST_NON_DIRECT: touch_id}.get(touch)
    # The visit of that touch may be past its retention: then the stated visit's own source is all that is known.
    return visit, _visit(tx, touched) or visit


def _visit(tx: Tx, visit_id: int | None) -> Row | None:
    return None if visit_id is None else tx.one(_VISIT, visit=visit_id)


def _first_touch(tx: Tx, visit: Row) -> PayloadVisit | None:
    """The same browser's first visit; None where it is not known, or no more: ``first_visit`` may still name it."""
    number = _with_source(visit, visit).first_visit
    row = visit if visit[0] is None else _visit(tx, visit[0])
    first = _with_source(row, row) if row else None
    return first if first and first.number == number else None


def _with_source(visit: Row, source: Row) -> PayloadVisit:
    values = (*visit[_OWN:_SOURCE], *source[_SOURCE:])
    fields = dict(zip((*_OWN_FIELDS, *_SOURCE_FIELDS), values, strict=True))
    return PayloadVisit(**fields, params=_params(source[3]))


def _params(text: str | None) -> Params:
    values: dict[str, str] = json.loads(text) if text else {}
    first, second, third, fourth, fifth = (values.get(str(i)) for i in range(1, 6))
    return first, second, third, fourth, fifth


_RECEIPT = events.alias()  # of the same message to the same site: it has the deal
_EXTRAS = Statement(
    select(
        events.c.type,
        events.c.data,
        _RECEIPT.c.deal_id,
        _RECEIPT.c.deal_url,
        sites.c.name,
        messages.c.received_at,
        messages.c.written_at,
        messages.c.message_id,
        messages.c.in_reply_to,
        messages.c.references,
        messages.c.mail_from,
        messages.c.size,
        messages.c.automatic,
        messages.c.bounce,
        texts.c.html,
    )
    .join(sites, sites.c.id == events.c.site_id)
    .join(messages, messages.c.id == events.c.message_id)
    .outerjoin(texts, texts.c.message_id == messages.c.id)
    .outerjoin(
        _RECEIPT,
        (_RECEIPT.c.message_id == events.c.message_id)
        & (_RECEIPT.c.site_id == events.c.site_id)
        & (_RECEIPT.c.type == EventType.RECEIVED.value),
    )
    .where(events.c.id == bindparam("event"))
)
_NUMBER = Statement(select(visits.c.number).where(visits.c.id == bindparam("visit"), visits.c.erased_at.is_(None)))


def _extras(tx: Tx, event_id: int, attribution: Attribution, stated: tuple[Row, Row] | None) -> PayloadExtras:
    row = tx.one(_EXTRAS, event=event_id)
    assert row is not None
    event_type, data, deal_id, deal_url, site, received_at, written_at, message_id, in_reply_to = row[:9]
    references, mail_from, size, automatic, bounce, html = row[9:]
    return PayloadExtras(
        event=event_type,
        site=site,
        received_at=received_at,
        written_at=written_at,
        message_id=message_id,
        in_reply_to=in_reply_to,
        references=tuple(json.loads(references)) if references else (),
        mail_from=mail_from,
        size=size,
        automatic=automatic,
        bounce=bool(bounce),
        html=html,
        channel=stated[1][2] if stated else None,
        candidates=_numbered(tx, attribution),
        first_touch=_first_touch(tx, stated[0]) if stated else None,
        deal_id=deal_id,
        deal_url=deal_url,
        data=_data(tx, data),
    )


def _data(tx: Tx, text: str | None) -> Mapping[str, Any]:
    """What the event is about. A visit that it names is shown by its number, as long as that is known."""
    found: dict[str, Any] = json.loads(text) if text else {}
    previous = found.get("previous")
    if previous is None:
        return found
    visit = tx.one(_NUMBER, visit=previous["visit"]) if previous["visit"] is not None else None
    shown = visit[0] if visit else previous["number"]
    return {"previous": {"state": previous["state"], "method": previous["method"], "visit_id": shown}}


def _numbered(tx: Tx, attribution: Attribution) -> tuple[tuple[str, float], ...]:
    """The candidates by their visits' numbers; those that were erased since are left out."""
    rows = [(tx.one(_NUMBER, visit=candidate.visit), candidate.probability) for candidate in attribution.candidates]
    return tuple((row[0], probability) for row, probability in rows if row is not None)
