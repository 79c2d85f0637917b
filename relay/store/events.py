"""What happens to a message becomes events, and an event becomes posts to the site's webhooks, or is withheld.

A message's first event, ``message.received``, is written when it is accepted and waits until its text and attachments
are known. The body of a post is composed when it is attempted, from the rows it is about: one copy to retain, one to
erase.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

from sqlalchemy import Integer, bindparam, func, literal, or_, select, update
from sqlalchemy import insert as insert_into

from relay.core.address import sender_key
from relay.core.conditions import Conditions, Facts, overlaid, verdict
from relay.core.hook import EventType, HookSettings
from relay.core.mime import Extracted
from relay.core.model import AttributionState
from relay.store import deals, posts, search
from relay.store.engine import Row, Statement, Tx
from relay.store.messages import INSERT_EVENT
from relay.store.post import PostJob
from relay.store.post_jobs import post_jobs
from relay.store.schema import (
    blocked_senders,
    bodies,
    deliveries,
    events,
    messages,
    paths,
    sites,
    texts,
    webhooks,
)
from relay.store.schema import posts as post_table
from relay.store.webhooks import ON_PURPOSE

#: Steps back at most to the sender's letter before, 2 µs each: bounds what a flood of automatic mail costs the writer.
#: A letter farther away counts as none: rather one enquiry too many than one lost.
SENDER_REACH = 2000
#: Characters of text that are searched; the rest is stored apart.
SEARCHED = 8192
#: Why events are withheld whatever the conditions say.
SWITCHED_OFF = "Send to CRM is off"
NO_WEBHOOK = "no webhook"
LOOP = "loop"

_UNEXTRACTED = Statement(
    select(messages.c.id, bodies.c.data, messages.c.body_file)
    .outerjoin(bodies, bodies.c.message_id == messages.c.id)
    .where(messages.c.extraction == "waiting", messages.c.id > bindparam("after"))
    .order_by(messages.c.id)
    .limit(bindparam("most"))
)
_EXTRACTED = Statement(
    update(messages)
    .where(messages.c.id == bindparam("message"), messages.c.extraction == "waiting")
    .values(
        subject=bindparam("title"),
        attachments=bindparam("files"),
        extraction=bindparam("result"),
        thread_id=bindparam("thread"),
    )
)
_INSERT_TEXT = Statement(insert_into(texts), "message_id subject addresses head rest html")
_EVENT = (
    select(
        events.c.id,
        events.c.type,
        events.c.site_id,
        events.c.message_id,
        sites.c.send_to_crm,
        sites.c.conditions,
        deliveries.c.attribution,
        messages.c.automatic,
        messages.c.bounce,
        messages.c.mail_from,
        messages.c.sender,
        messages.c.size,
        messages.c.subject,
        messages.c.received_at,
        events.c.data,
    )
    .join(sites, sites.c.id == events.c.site_id)
    .join(deliveries, deliveries.c.id == events.c.delivery_id)
    .join(messages, messages.c.id == events.c.message_id)
)
_WAITING_EVENTS = Statement(
    _EVENT.where(events.c.message_id == bindparam("message"), events.c.state == "waiting").order_by(events.c.id)
)
_ONE_EVENT = Statement(_EVENT.where(events.c.id == bindparam("event")))
_EVENT_STATE = Statement(update(events).where(events.c.id == bindparam("event")), "state reason")
_WEBHOOKS = Statement(
    select(webhooks.c.id, webhooks.c.settings, webhooks.c.disabled_reason)
    .where(
        webhooks.c.site_id == bindparam("site"),
        webhooks.c.removed_at.is_(None),
        or_(webhooks.c.enabled == 1, webhooks.c.disabled_reason.not_in(ON_PURPOSE)),
    )
    .order_by(webhooks.c.id)
)
_BLOCKED = Statement(
    select(blocked_senders.c.address).where(
        blocked_senders.c.site_id == bindparam("site"),
        blocked_senders.c.address.in_([bindparam(name) for name in ("sender", "host", "path", "path_host")]),
    )
)
# The sender's last letter to the site before this one, automatic mail left out. Two indexes are walked backwards
# together: a step goes from a letter to the sender's next older one, and from there to the site's newest that is not
# younger. So neither what the sender writes to other sites nor what others write to this one is passed one by one.
# What a step lands on is the sender's own or not; the walk ends at the first that counts.
_LETTERS = messages.alias()
_THEIRS = deliveries.alias()
_COUNTS = (messages.c.sender == bindparam("sender"), messages.c.automatic.is_(None), messages.c.bounce == 0)
_WALK = select(bindparam("message", type_=Integer).label("at"), literal(0).label("steps")).cte("walk", recursive=True)
_OLDER = (
    select(func.max(_LETTERS.c.id))
    .where(_LETTERS.c.sender == bindparam("sender"), _LETTERS.c.id < _WALK.c.at)
    .correlate(_WALK)
    .scalar_subquery()
)
_WALK = _WALK.union_all(
    select(
        select(func.max(_THEIRS.c.message_id))
        .where(_THEIRS.c.site_id == bindparam("site"), _THEIRS.c.message_id <= _OLDER)
        .correlate(_WALK)
        .scalar_subquery(),
        _WALK.c.steps + 1,
    ).where(
        _WALK.c.at.is_not(None),
        _WALK.c.steps < bindparam("reach"),
        or_(_WALK.c.steps == 0, ~select(messages.c.id).where(messages.c.id == _WALK.c.at, *_COUNTS).exists()),
    )
)
_PREVIOUS = Statement(
    select(messages.c.received_at)
    .select_from(_WALK.join(messages, messages.c.id == _WALK.c.at))
    .where(_WALK.c.steps > 0, *_COUNTS)
)
_WAS_POSTED = Statement(
    select(post_table.c.id)
    .join(events, events.c.id == post_table.c.event_id)
    .where(
        events.c.message_id == bindparam("message"),
        events.c.site_id == bindparam("site"),
        events.c.type == EventType.RECEIVED.value,
        post_table.c.webhook_id == bindparam("webhook"),
        post_table.c.state != "withheld",
    )
)
_SENT_TO = Statement(
    select(paths.c.recipient, deliveries.c.forward_to)
    .join(deliveries, deliveries.c.id == paths.c.delivery_id)
    .where(paths.c.message_id == bindparam("message"), deliveries.c.site_id == bindparam("site"))
)
_RECIPIENTS = Statement(
    select(func.count(paths.c.recipient.distinct())).where(paths.c.message_id == bindparam("message"))
)


@dataclass(frozen=True, slots=True)
class Event:
    """One event with what the conditions of webhooks are judged by."""

    id: int
    type: str
    site_id: int
    message_id: int
    send_to_crm: int
    conditions: str
    attribution: str
    automatic: str | None
    bounce: int
    mail_from: str
    sender: str
    size: int
    subject: str | None
    received_at: float
    data: str | None


def unextracted(tx: Tx, after: int, most: int) -> list[tuple[int, bytes | None, str | None]]:
    """Messages that wait for extraction: (id, body or None, name of the body's file or None), oldest first."""
    return [(row[0], row[1], row[2]) for row in tx.all(_UNEXTRACTED, after=after, most=most)]


def extracted(
    tx: Tx,
    message_id: int,
    result: Extracted,
    now: float,
    claim: str | None,
    passed_over: Collection[int] = (),
) -> tuple[list[PostJob], set[int]]:
    """Record what a message says and turn its events into posts; those that are claimed by ``claim``, if it is given.

    The posts of the webhooks ``passed_over`` are not: they are found in the store behind older ones. Second: which
    webhooks have one that is not claimed.
    """
    files = json.dumps([asdict(part) for part in result.attachments]) if result.attachments else None
    state = "partial" if result.partial else "done"
    threads = deals.threads_of(tx, message_id)
    thread = min(threads, default=None)
    if not tx.run(_EXTRACTED, message=message_id, title=result.subject, files=files, result=state, thread=thread):
        return [], set()  # erased, or another worker was quicker
    # Composed here and not as it is indexed: to take a message out again, the index wants what it was given.
    text = search.composed(result.text or "")
    tx.insert(
        _INSERT_TEXT,
        message_id=message_id,
        subject=search.composed(result.subject or ""),
        addresses=search.addresses(tx, message_id),
        head=text[:SEARCHED],
        rest=text[SEARCHED:] or None,
        html=result.html,
    )
    if thread is not None:
        deals.rejoin(tx, message_id, thread)
    jobs: list[PostJob] = []
    left: set[int] = set()
    for row in tx.all(_WAITING_EVENTS, message=message_id):
        event = Event(*row)
        if event.type == EventType.RECEIVED:
            deals.inherit(tx, event.id, message_id, event.site_id, threads)
        made, its_left = offer(tx, event, now, claim, passed_over)
        left |= its_left
        if claim is not None:
            jobs += post_jobs(tx, made, claim)
    return jobs, left


def offer(
    tx: Tx, event: Event, now: float, claim: str | None = None, passed_over: Collection[int] = ()
) -> tuple[list[int], set[int]]:
    """Post the event to each webhook of its site that takes it and whose conditions it meets.

    To one that a 410 has disabled it fails at once, and is replayed with whatever else has failed.

    The ids of the posts that ``claim`` claims; and the webhooks that have another: without a claim all, else those
    ``passed_over``.
    """
    hooks = takers(tx, event.site_id, event.type)
    if not event.send_to_crm or not hooks:
        why = NO_WEBHOOK if event.send_to_crm else SWITCHED_OFF
        tx.run(_EVENT_STATE, event=event.id, state="withheld", reason=why)
        return [], set()
    made: list[int] = []
    left: set[int] = set()
    reasons: list[str] = []
    judge = _Judge(tx, event)
    for webhook_id, settings, disabled in hooks:
        withheld = judge.reason(webhook_id, settings)
        if reason := withheld or disabled:
            posts.leave_out(tx, event.id, webhook_id, "withheld" if withheld else "failed", reason, now)
            reasons.append(reason)
        elif claim is None or webhook_id in passed_over:
            posts.add(tx, event.id, webhook_id, now)
            left.add(webhook_id)
        else:
            made.append(posts.add(tx, event.id, webhook_id, now, claim))
    taken = bool(made or left)
    said = None if taken else "; ".join(dict.fromkeys(reasons))
    tx.run(_EVENT_STATE, event=event.id, state="posted" if taken else "withheld", reason=said)
    return made, left


def find(tx: Tx, event_id: int) -> Event | None:
    """The event with this id."""
    row = tx.one(_ONE_EVENT, event=event_id)
    return Event(*row) if row else None


def reason_against(tx: Tx, event: Event, webhook_id: int, settings: HookSettings) -> str | None:
    """Why the event is not for this webhook, which has these settings, or None: as :func:`offer` judges it."""
    if not event.send_to_crm:
        return SWITCHED_OFF
    return _Judge(tx, event).reason(webhook_id, settings)


def posted(tx: Tx, event_id: int) -> None:
    """Some webhook gets the event now."""
    tx.run(_EVENT_STATE, event=event_id, state="posted", reason=None)


def takers(tx: Tx, site_id: int, kind: str) -> list[tuple[int, HookSettings, str | None]]:
    """The webhooks of a site that take events of this type: (id, settings, why it is disabled or None) each.

    Those that are disabled on purpose take none.
    """
    rows = [(row[0], HookSettings.from_json(row[1]), row[2]) for row in tx.all(_WEBHOOKS, site=site_id)]
    return [row for row in rows if kind in row[1].events]


@lru_cache(maxsize=256)
def _asked(of_site: str, settings: HookSettings) -> Conditions:
    return overlaid(json.loads(of_site), settings.conditions)


@dataclass(slots=True)
class _Judge:
    """Judges one event for several webhooks; what few conditions ask for is looked up only where one does."""

    tx: Tx
    event: Event
    _blocked: bool | None = None
    _last: tuple[float | None] | None = None

    def reason(self, webhook_id: int, settings: HookSettings) -> str | None:
        """Why not; None for an event that is to be posted. A failed delivery is told to whoever asked for that.

        A change is told as well to whom the letter was posted, and to whom what was stated before would have been for:
        it may have to be taken back there.
        """
        event = self.event
        if event.type == EventType.FAILED:
            return None
        asked = _asked(event.conditions, settings)
        facts = Facts(
            attribution=AttributionState(event.attribution),
            bounce=bool(event.bounce),
            null_sender=event.mail_from == "",
            auto=event.automatic,
            blocked=asked.refuse_blocked and self._is_blocked(),
            size=event.size,
            recipients=self._recipients() if asked.max_recipients else 1,
            addresses=self._addresses() if asked.addresses else frozenset(),
            subject=event.subject or "",
            previous=self._previous() if asked.first_letter else None,
        )
        why = verdict(facts, asked)
        if why is not None and event.type == EventType.REATTRIBUTED and event.data is not None:
            if self.tx.one(_WAS_POSTED, message=event.message_id, site=event.site_id, webhook=webhook_id) is not None:
                return None
            before = AttributionState(json.loads(event.data)["previous"]["state"])
            return why if verdict(replace(facts, attribution=before), asked) is not None else None
        return why

    def _is_blocked(self) -> bool:
        if self._blocked is None:
            sender, path = sender_key(self.event.sender), sender_key(self.event.mail_from)
            host, path_host = (address[address.rfind("@") :] for address in (sender, path))
            found = self.tx.one(
                _BLOCKED, site=self.event.site_id, sender=sender, host=host, path=path, path_host=path_host
            )
            self._blocked = found is not None
        return self._blocked

    def _recipients(self) -> int:
        row = self.tx.one(_RECIPIENTS, message=self.event.message_id)
        return row[0] if row else 0

    def _addresses(self) -> frozenset[str]:
        rows = self.tx.all(_SENT_TO, message=self.event.message_id, site=self.event.site_id)
        return frozenset(address.lower() for row in rows for address in row)

    def _previous(self) -> float | None:
        event = self.event
        if self._last is None:
            row = self.tx.one(
                _PREVIOUS, sender=event.sender, message=event.message_id, site=event.site_id, reach=SENDER_REACH
            )
            self._last = (None if row is None else max(0.0, event.received_at - row[0]),)
        return self._last[0]


_DELIVERY = Statement(
    select(
        deliveries.c.message_id,
        deliveries.c.site_id,
        deliveries.c.recipient,
        deliveries.c.forward_to,
        deliveries.c.code,
        deliveries.c.answer,
        deliveries.c.host,
    ).where(deliveries.c.id == bindparam("delivery"))
)
_MESSAGE = Statement(select(messages.c.digest, messages.c.extraction).where(messages.c.id == bindparam("message")))
_NUMBER = Statement(
    select(func.count()).where(events.c.message_id == bindparam("message"), events.c.site_id == bindparam("site"))
)


def delivery_failed(tx: Tx, delivery_id: int, now: float) -> None:
    """A delivery is held: tell the webhooks of its site that want to know."""
    row = tx.one(_DELIVERY, delivery=delivery_id)
    if row is None or row[1] is None:
        return
    message_id, site_id, recipient, forward_to, code, answer, host = row
    failure = {"recipient": recipient, "forward_to": forward_to, "code": code, "answer": answer, "host": host}
    happened(tx, EventType.FAILED, message_id, site_id, delivery_id, {"failure": failure}, now)


def happened(
    tx: Tx,
    kind: EventType,
    message_id: int,
    site_id: int,
    delivery_id: int,
    data: Mapping[str, Any],
    now: float,
) -> None:
    """A further event of a message; none where no webhook takes such. It waits as long as the message is not read."""
    message = tx.one(_MESSAGE, message=message_id)
    if message is None or not takers(tx, site_id, kind.value):
        return
    digest, extraction = message
    number: Row = tx.one(_NUMBER, message=message_id, site=site_id) or (0,)
    event_id = tx.insert(
        INSERT_EVENT,
        uid=f"evt_{message_id}_{site_id}_{digest[:8].hex()}_{number[0]}",
        message_id=message_id,
        site_id=site_id,
        delivery_id=delivery_id,
        type=kind.value,
        state="waiting",
        reason=None,
        created_at=now,
        data=json.dumps(data),
    )
    event = find(tx, event_id) if extraction != "waiting" else None
    if event is not None:
        offer(tx, event, now)


_RECEIVED_OF = Statement(
    select(events.c.id, events.c.site_id)
    .join(messages, messages.c.id == events.c.message_id)
    .where(
        events.c.message_id == bindparam("message"),
        events.c.type == EventType.RECEIVED.value,
        messages.c.extraction != "waiting",
    )
)


def of_sites(tx: Tx, message_id: int, allowed: Sequence[int] | None) -> list[tuple[int, int]]:
    """(event, site) of what a message's receipt was to the sites (None: all); none before it was read."""
    rows = tx.all(_RECEIVED_OF, message=message_id)
    return [(event, site) for event, site in rows if allowed is None or site in allowed]
