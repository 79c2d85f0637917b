"""How messages look in the API: the models, and what they are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from pydantic import BaseModel, Field

from relay.core.attribution import best
from relay.core.mimetext import file_name
from relay.core.model import WORST_FIRST, Attribution, AttributionState
from relay.store.history import DeliveryRow, MessageRow, Receipt
from relay.store.life import Life
from relay.store.messages import NEVER
from webapi import links
from webapi.context import Context
from webapi.values import moment, moment_or_none


class CandidateView(BaseModel):
    visit: str
    probability: float


class AttributionView(BaseModel):
    state: str = Field(description="exact, likely, claimed, inferred or none; readers tolerate new values.")
    method: str | None = Field(description="The rule, with its version.")
    candidates: list[CandidateView]


class DealView(BaseModel):
    id: str | None
    url: str | None


class PostingView(BaseModel):
    """``reason``: why it is not sent to the CRM."""

    site: str
    state: str = Field(description="waiting (for its text), posted or withheld; readers tolerate new values.")
    reason: str | None


class AttachmentView(BaseModel):
    name: str = Field(description="Safe to save under, on Windows and on Unix.")
    url: str | None = Field(description="A signed link that expires; null once the message's bytes are removed.")
    size: int = Field(description="Octets, decoded.")
    type: str = Field(description="As the sender stated it; the link may serve it as application/octet-stream.")
    inline: bool = Field(description="A picture that is shown in the text of the letter.")


class AuthView(BaseModel):
    spf: str | None = None
    dkim: str | None = None
    dmarc: str | None = None


class MessageItem(BaseModel):
    """A message in the history. ``visit`` is the number of the stated visit, or the number that is claimed."""

    id: str
    received_at: str
    site: str | None
    sender: str
    receivers: list[str]
    subject: str | None
    visit: str | None
    attribution: AttributionView
    deal: DealView
    posting: list[PostingView] = Field(description="What becomes of it in the CRM, by site.")
    state: str = Field(description="The worst of its deliveries' states; readers tolerate new values.")
    size: int
    attachments: list[AttachmentView]
    auth: AuthView


class MessagePage(BaseModel):
    items: list[MessageItem]
    next: str | None = Field(
        description="Give it as cursor to read on; null at the end. There may be few items, or none, and yet a next."
    )


class DeliveryView(BaseModel):
    id: str
    site: str | None
    recipient: str
    forward_to: str
    state: str
    attempts: int
    next_at: str | None
    code: int | None
    answer: str | None
    host: str | None
    possibly_repeated: bool
    attribution: AttributionView
    visit: str | None
    finished_at: str | None


class PathView(BaseModel):
    recipient: str
    kind: str
    received_at: str
    ip: str


class AttemptView(BaseModel):
    delivery: str
    started_at: str
    finished_at: str
    outcome: str
    code: int | None
    answer: str
    host: str


class EventView(BaseModel):
    id: str = Field(description="The webhook-id of its posts.")
    site: str
    type: str
    state: str
    reason: str | None
    webhooks: list[WebhookPostView]


class WebhookPostView(BaseModel):
    """An event on its way to one webhook; ``answer``: the receiver's, or why there is none."""

    webhook: str
    url: str
    state: str
    attempts: int
    next_at: str | None
    status: int | None
    answer: str | None


class PostView(BaseModel):
    """One attempt."""

    event: str
    url: str
    state: str
    started_at: str
    seconds: float
    status: int | None
    answer: str


class MessageDetail(MessageItem):
    """A message with its life."""

    written_at: str
    mail_from: str
    message_id: str | None
    ip: str
    helo: str
    tls: str | None
    automatic: str | None
    bounce: bool
    extraction: str
    text: str | None
    raw_removed_at: str | None
    deliveries: list[DeliveryView]
    paths: list[PathView]
    attempts: list[AttemptView]
    events: list[EventView]
    posts: list[PostView]


def item(context: Context, row: MessageRow, sites: frozenset[int] | None) -> MessageItem:
    """A message as far as somebody sees it who sees ``sites``."""
    chosen = spokesman(row)
    deal_id, deal_url = row.deal_at(chosen.site if chosen else None)
    return MessageItem(
        id=str(row.id),
        received_at=moment(row.received_at),
        site=chosen.site if chosen else None,
        sender=row.sender,
        receivers=list(dict.fromkeys(delivery.recipient for delivery in row.deliveries)),
        subject=row.subject,
        visit=chosen.visit if chosen else None,
        attribution=_attribution(chosen),
        deal=DealView(id=deal_id, url=deal_url),
        posting=[_posting(receipt) for receipt in row.receipts],
        state=state_of(row, sites),
        size=row.size,
        attachments=_attachments(context, row, sites),
        auth=AuthView(),
    )


def spokesman(row: MessageRow) -> DeliveryRow | None:
    """The best-attributed delivery, which speaks for the message; None where there is none."""
    return row.deliveries[best([_stated(delivery) for delivery in row.deliveries])] if row.deliveries else None


def telling(receipts: Sequence[Receipt]) -> Receipt | None:
    """What is worth saying of several: why it is not sent, else that it is."""
    return next((one for one in receipts if one.state == "withheld"), receipts[0] if receipts else None)


def state_of(row: MessageRow, sites: frozenset[int] | None) -> str:
    """The worst state of the deliveries that somebody sees who sees ``sites``."""
    if sites is None:
        return row.state
    states = {delivery.state for delivery in row.deliveries}
    return next((known.value for known in WORST_FIRST if known.value in states), row.state)


def detail(context: Context, row: MessageRow, life: Life, sites: frozenset[int] | None) -> MessageDetail:
    """A message with its life, as far as somebody sees it who sees ``sites``."""
    return MessageDetail(
        **item(context, row, sites).model_dump(),
        written_at=moment(row.written_at),
        mail_from=row.mail_from,
        message_id=row.message_id,
        ip=row.ip,
        helo=row.helo,
        tls=row.tls,
        automatic=row.automatic,
        bounce=row.bounce,
        extraction=row.extraction,
        text=life.text,
        raw_removed_at=moment_or_none(row.raw_removed_at),
        deliveries=[_delivery(delivery) for delivery in row.deliveries],
        paths=[PathView(**path | {"received_at": moment(path["received_at"])}) for path in life.paths],
        attempts=[_attempt(attempt) for attempt in life.attempts],
        events=[_event(event, life) for event in life.events],
        posts=[_post(post) for post in life.post_attempts],
    )


def _attempt(attempt: dict[str, Any]) -> AttemptView:
    times = {name: moment(attempt[name]) for name in ("started_at", "finished_at")}
    return AttemptView(**attempt | times, delivery=str(attempt["delivery_id"]))


def _event(event: dict[str, Any], life: Life) -> EventView:
    own = [post for post in life.posts if post["uid"] == event["uid"]]
    shown = {name: event[name] for name in ("site", "type", "state", "reason")}
    return EventView(id=event["uid"], **shown, webhooks=[_webhook_post(post) for post in own])


def _webhook_post(post: dict[str, Any]) -> WebhookPostView:
    return WebhookPostView(
        webhook=str(post["webhook_id"]),
        url=post["url"],
        state=post["state"],
        attempts=post["attempts"],
        next_at=moment(post["next_at"]) if post["state"] == "waiting" else None,
        status=post["status"],
        answer=post["answer"],
    )


def _posting(receipt: Receipt) -> PostingView:
    return PostingView(site=receipt.site, state=receipt.state, reason=receipt.reason)


def _post(post: dict[str, Any]) -> PostView:
    started_at = moment(post["started_at"])
    return PostView(**post | {"started_at": started_at}, event=post["uid"], seconds=post["duration"])


def _stated(delivery: DeliveryRow) -> Attribution:
    return Attribution(AttributionState(delivery.attribution), delivery.method)


def _attribution(delivery: DeliveryRow | None) -> AttributionView:
    if delivery is None:
        return AttributionView(state=AttributionState.NONE.value, method=None, candidates=[])
    return AttributionView(
        state=delivery.attribution,
        method=delivery.method,
        candidates=[CandidateView(visit=visit, probability=share) for visit, share in delivery.candidates],
    )


def _attachments(context: Context, row: MessageRow, sites: frozenset[int] | None) -> list[AttachmentView]:
    """The links are a site's that the reader sees the message by; who sees all sites sees it whosever it is."""
    site = None if sites is None else next((one.site_id for one in row.deliveries if one.site_id is not None), None)
    expires = int(context.clock() + context.http.links_live_for)
    key = context.keys.current("links")
    found = []
    for part in row.attachments:
        name = file_name(part.name, part.type, part.index)  # an older version may have stored another
        token = links.make(key, row.id, part.index, expires, site) if row.raw_removed_at is None else None
        url = token and f"{context.public_url}/a/{token}/{_in_url(name)}"
        found.append(AttachmentView(name=name, url=url, size=part.size, type=part.type, inline=part.inline))
    return found


def _in_url(name: str) -> str:
    return quote(name.encode(), safe="")


def _delivery(row: DeliveryRow) -> DeliveryView:
    waits = row.state in ("queued", "deferred")
    return DeliveryView(
        id=str(row.id),
        site=row.site,
        recipient=row.recipient,
        forward_to=row.forward_to,
        state=row.state,
        attempts=row.attempts,
        next_at=moment(row.next_at) if waits and row.next_at < NEVER else None,
        code=row.code,
        answer=row.answer,
        host=row.host,
        possibly_repeated=row.possibly_repeated,
        attribution=_attribution(row),
        visit=row.visit,
        finished_at=moment_or_none(row.finished_at),
    )
