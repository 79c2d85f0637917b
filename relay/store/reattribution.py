"""Attributing a stored message anew, after bindings, routes or settings were mended. Only somebody's hand does this.

What the message was attributed to before may have been forgotten since, by age or by request; then its bindings are
gone as well, and a new look would find less than the old one. Such a delivery keeps what was found when it came, and so
does one whose address was retired since, has changed between pool and static, or was another site's meanwhile (of which
nothing was said may still find a label); and one whose site's tracking is off now.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from sqlalchemy import bindparam, func, select, update

from relay.core import attribution as rules
from relay.core.hook import EventType
from relay.core.model import Attribution, AttributionState, RouteKind
from relay.store import events as event_verbs
from relay.store.attribution import FIND_VISIT, Evidence, agreed, attribute, columns_of, named, read_attribution
from relay.store.engine import Row, Statement, Tx
from relay.store.incoming import Incoming, Recipient
from relay.store.routes import Route
from relay.store.schema import deliveries, events, messages, paths

#: Where an address leads now: its route and the tag behind its plus.
Routing = Mapping[str, tuple[Route, str | None]]

#: Whom a message was sent to: what a Routing is wanted for.
RECIPIENTS = Statement(select(paths.c.recipient).where(paths.c.message_id == bindparam("message")).distinct())
_DELIVERIES = Statement(
    select(
        deliveries.c.id,
        deliveries.c.site_id,
        deliveries.c.recipient,
        deliveries.c.route_id,
        deliveries.c.attribution,
        deliveries.c.attribution_method,
        deliveries.c.visit_id,
        deliveries.c.claimed_number,
        deliveries.c.candidates,
        deliveries.c.label,
    )
    .where(deliveries.c.message_id == bindparam("message"), deliveries.c.site_id.is_not(None))
    .order_by(deliveries.c.id)
)
_PATHS = Statement(
    select(paths.c.recipient)
    .where(paths.c.delivery_id == bindparam("delivery"), paths.c.message_id == bindparam("message"))
    .group_by(paths.c.recipient)
    .order_by(func.min(paths.c.id))  # as when it came: the first recipient wins a tie
)
_MESSAGE = Statement(
    select(
        messages.c.received_at,
        messages.c.written_at,
        messages.c.mail_from,
        messages.c.sender,
        messages.c.message_id,
        messages.c.in_reply_to,
        messages.c.references,
        messages.c.automatic,
        messages.c.bounce,
        messages.c.digest,
    ).where(messages.c.id == bindparam("message"))
)
_CHANGE = Statement(
    update(deliveries).where(deliveries.c.id == bindparam("delivery")),
    "recipient route_id attribution attribution_method visit_id claimed_number candidates label",
)
_RECEIVED = Statement(
    select(events.c.id, events.c.delivery_id, events.c.reason).where(
        events.c.message_id == bindparam("message"),
        events.c.site_id == bindparam("site"),
        events.c.type == EventType.RECEIVED.value,
    )
)
_STATE_DELIVERY = Statement(update(events).where(events.c.id == bindparam("event")), "delivery_id")


@dataclass(frozen=True, slots=True)
class _Delivery:
    id: int
    site_id: int
    recipient: str
    route_id: int | None
    attribution: Attribution


def reattribute(
    tx: Tx, message_id: int, routing: Routing, evidence: Evidence, now: float, sites: Collection[int] | None = None
) -> int:
    """Attribute the message's deliveries to these sites (None: all) anew; the number of those that came out otherwise.

    ``routing`` has the route of every recipient that has one now. Webhooks that ask for ``attribution.changed`` are
    told where what is stated of the message has changed.
    """
    row = tx.one(_MESSAGE, message=message_id)
    if row is None:
        return 0
    incoming = _incoming(row)
    found = [
        _Delivery(delivery_id, site_id, recipient, route_id, read_attribution(tuple(columns)))
        for delivery_id, site_id, recipient, route_id, *columns in tx.all(_DELIVERIES, message=message_id)
        if sites is None or site_id in sites
    ]
    changed = 0
    for site_id in dict.fromkeys(delivery.site_id for delivery in found):
        own = [delivery for delivery in found if delivery.site_id == site_id]
        look = _Look(tx, message_id, routing, incoming, evidence, now)
        renewed = _renewed(tx, own, [look.options(delivery) for delivery in own])
        moved = [new for old, new in zip(own, renewed, strict=True) if new != old]
        for delivery in moved:
            _write(tx, delivery)
        if moved:
            tx.revise()
            changed += len(moved)
            _restate(tx, message_id, site_id, own, renewed, now)
    return changed


@dataclass(frozen=True, slots=True)
class _Look:
    """A new look at one message."""

    tx: Tx
    message_id: int
    routing: Routing
    incoming: Incoming
    evidence: Evidence
    now: float

    def options(self, delivery: _Delivery) -> list[_Delivery]:
        """What the delivery may become, by each of its recipients; nothing where it stays as it is."""
        if _is_forgotten(self.tx, delivery.attribution):
            return []
        options: list[_Delivery] = []
        for (address,) in self.tx.all(_PATHS, delivery=delivery.id, message=self.message_id):
            route, tag = self.routing.get(address, (None, None))
            if route is not None and _may_say(route, address, delivery):
                recipient = Recipient(address, route, tag, "", None, "")
                found = attribute(self.tx, recipient, self.incoming, self.evidence, self.message_id, self.now)
                options.append(replace(delivery, recipient=address, route_id=route.id, attribution=found))
            elif delivery.attribution.method == rules.SEVERAL_METHOD:
                return []  # one that contradicts the others is looked up no more
            elif address == delivery.recipient:
                options.append(delivery)
        return options


def _may_say(route: Route, address: str, delivery: _Delivery) -> bool:
    """Whether a look at what the address is now says more of the letter than what was found when it came.

    Not where it was given a label since: the label is of later letters. Nor, of the address that was stated, where that
    had one, which may be another now or none, or where it went to another site and came back: its new route knows
    nothing of the old one's visits.
    """
    if not route.attributed or route.site_id != delivery.site_id:
        return False
    said = delivery.attribution
    is_static, was_static = route.kind is RouteKind.STATIC, said.method == rules.STATIC_METHOD
    if is_static and not was_static and said.state is not AttributionState.NONE:
        return False
    return address != delivery.recipient or (route.id == delivery.route_id and not was_static)


def _renewed(tx: Tx, own: Sequence[_Delivery], options: Sequence[Sequence[_Delivery]]) -> list[_Delivery]:
    """The deliveries to one site, each as the best of its ``options`` has it, which are seen together."""
    several = [delivery.attribution.method == rules.SEVERAL_METHOD for delivery in own]
    if any(one and not found for one, found in zip(several, options, strict=True)):
        options = [[] if one else found for one, found in zip(several, options, strict=True)]
    asked = [
        [option.attribution for option in found] or [kept.attribution] for kept, found in zip(own, options, strict=True)
    ]
    said = iter(agreed(tx, [attribution for found in asked for attribution in found]))
    renewed: list[_Delivery] = []
    for kept, found in zip(own, options, strict=True):
        if not found:
            next(said)
            renewed.append(kept)
            continue
        settled = [replace(option, attribution=_as_stored(next(said))) for option in found]
        renewed.append(settled[rules.best([option.attribution for option in settled])])
    return renewed


def _is_forgotten(tx: Tx, attribution: Attribution) -> bool:
    """Whether a visit that it names is there no more."""
    if attribution.state in (AttributionState.EXACT, AttributionState.INFERRED) and attribution.visit is None:
        return attribution.method != rules.STATIC_METHOD
    return any(tx.one(FIND_VISIT, visit=visit) is None for visit in named(attribution))


def _as_stored(attribution: Attribution) -> Attribution:
    """With probabilities as they are written, so that an equal result is equal."""
    return read_attribution(columns_of(attribution))


def _write(tx: Tx, delivery: _Delivery) -> None:
    state, method, visit, number, candidates, label = columns_of(delivery.attribution)
    tx.run(
        _CHANGE,
        delivery=delivery.id,
        recipient=delivery.recipient,
        route_id=delivery.route_id,
        attribution=state,
        attribution_method=method,
        visit_id=visit,
        claimed_number=number,
        candidates=candidates,
        label=label,
    )


def _restate(
    tx: Tx, message_id: int, site_id: int, before: Sequence[_Delivery], after: Sequence[_Delivery], now: float
) -> None:
    """The event states the best-attributed delivery; tell who wants to know when that says something else now."""
    row = tx.one(_RECEIVED, message=message_id, site=site_id)
    if row is None:
        return
    event_id, stated_id, reason = row
    old = next((delivery for delivery in before if delivery.id == stated_id), before[0]).attribution
    ranked = sorted(after, key=lambda delivery: delivery.id != stated_id)  # what was stated wins a tie
    new = ranked[rules.best([delivery.attribution for delivery in ranked])]
    tx.run(_STATE_DELIVERY, event=event_id, delivery_id=new.id)
    said = (old.state, old.visit, old.number, old.candidates)
    says = (new.attribution.state, new.attribution.visit, new.attribution.number, new.attribution.candidates)
    if said == says or reason == event_verbs.LOOP:
        return
    visit, number = old.visit, old.number
    became = tx.one(FIND_VISIT, visit=new.attribution.visit) if number is not None else None
    if became is not None and became[0] == number:
        visit, number = new.attribution.visit, None  # by its row, so that it is forgotten with the visit
    previous = {"state": old.state.value, "method": old.method, "visit": visit, "number": number}
    event_verbs.happened(tx, EventType.REATTRIBUTED, message_id, site_id, new.id, {"previous": previous}, now)


def _incoming(columns: Row) -> Incoming:
    received_at, written_at, mail_from, sender, message_id, in_reply_to, references, automatic, bounce, digest = columns
    return Incoming(
        received_at=received_at,
        written_at=written_at,
        mail_from=mail_from,
        sender=sender,
        subject=None,
        message_id=message_id,
        in_reply_to=in_reply_to,
        references=tuple(json.loads(references)) if references else (),
        size=0,
        stored_size=0,
        data=None,
        file=None,
        cut=(),
        digest=digest,
        ip="",
        helo="",
        tls=None,
        esmtp=True,
        automatic=automatic,
        bounce=bool(bounce),
        bare_lf=0,
    )
