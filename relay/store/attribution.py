"""Whose visit a message came from, by what the database knows of it (core/attribution.py has the rules)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import bindparam, func, select

from relay.core import attribution as rules
from relay.core.model import Attribution, AttributionState, Candidate, Holding, RouteKind
from relay.core.visit import is_number
from relay.store.engine import Row, Statement, Tx
from relay.store.incoming import Incoming, Recipient
from relay.store.routes import Route
from relay.store.schema import bindings, deliveries, messages, visits

#: Holdings of a pool address that are looked at, the latest: ten days of leases of 15 minutes are 960.
HOLDINGS = 20_000
#: References of a message that are looked up, the latest first; a thread of thousands is still known by these.
THREAD_REACH = 20
#: Latest messages of a sender that are looked at.
SENDER_REACH = 50
#: Seconds ahead of now that a holding may begin: it is written while the mail is.
AHEAD = 10.0
#: Visits whose browser is looked up when a letter's recipients name several; each of the others counts as a person.
PEOPLE = 200
#: The least probability of a candidate that is stored.
LEAST = 0.000_001
#: An id that every stored message is before.
NEWEST = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Evidence:
    """What attribution goes by besides the bindings. ``window``: seconds without another holder of a pool address for
    an exact match; ``known_sender``: seconds for which a sender's visit explains a mail that nothing else does."""

    window: float
    known_sender: float = 90 * 86_400.0
    delays: rules.Delays = rules.NO_DELAYS


_EARLIER = bindings.alias()
# An address has one holder after the other, so whoever began last before ``since`` is the first that may count.
FIND_HOLDINGS = Statement(
    select(bindings.c.visit_id, bindings.c.started_at, bindings.c.ended_at)
    .where(
        bindings.c.route_id == bindparam("route"),
        bindings.c.started_at <= bindparam("until"),
        bindings.c.started_at
        >= func.coalesce(
            select(_EARLIER.c.started_at)
            .where(_EARLIER.c.route_id == bindparam("route"), _EARLIER.c.started_at <= bindparam("since"))
            .order_by(_EARLIER.c.started_at.desc())
            .limit(1)
            .scalar_subquery(),
            0.0,
        ),
    )
    .order_by(bindings.c.started_at.desc())
    .limit(HOLDINGS)
)
# What begins later than now was leased under a wrong clock (store/clock.py moves what it notices).
FIND_ASTRAY = Statement(
    select(bindings.c.visit_id)
    .where(bindings.c.route_id == bindparam("route"), bindings.c.started_at > bindparam("after"))
    .limit(HOLDINGS)
)
# A unique address has had one visit for ever, whatever the clock said.
FIND_ONLY_HOLDER = Statement(
    select(bindings.c.visit_id)
    .where(bindings.c.route_id == bindparam("route"))
    .order_by(bindings.c.started_at.desc())
    .limit(1)
)
FIND_NUMBER = Statement(
    select(visits.c.id).where(visits.c.site_id == bindparam("site"), visits.c.number == bindparam("number"))
)
# A visit is stated only for exact and inferred deliveries, so each of these is one of the two.
FIND_ANSWERED = Statement(
    select(deliveries.c.visit_id)
    .where(
        deliveries.c.message_id.in_(
            select(messages.c.id)
            .where(messages.c.message_id == bindparam("answered"), messages.c.id < bindparam("before"))
            .order_by(messages.c.id.desc())
            .limit(SENDER_REACH)
        ),
        deliveries.c.site_id == bindparam("site"),
        deliveries.c.visit_id.is_not(None),
    )
    .order_by(deliveries.c.id.desc())
    .limit(1)
)
_LATEST = (
    select(messages.c.id)
    .where(
        messages.c.sender == bindparam("sender"),
        messages.c.received_at > bindparam("after"),
        messages.c.id < bindparam("before"),
    )
    .order_by(messages.c.id.desc())
    .limit(SENDER_REACH)
)
FIND_KNOWN_SENDER = Statement(
    select(deliveries.c.visit_id)
    .where(
        deliveries.c.message_id.in_(_LATEST),
        deliveries.c.site_id == bindparam("site"),
        deliveries.c.attribution == AttributionState.EXACT.value,  # else one visit would explain a sender for ever
        deliveries.c.visit_id.is_not(None),
    )
    .order_by(deliveries.c.id.desc())
    .limit(1)
)
FIND_VISIT = Statement(
    select(visits.c.number, visits.c.marker).where(visits.c.id == bindparam("visit"), visits.c.erased_at.is_(None))
)

FIND_FIRST_VISIT = Statement(select(visits.c.first_visit).where(visits.c.id == bindparam("visit")))


def read_attribution(columns: Row) -> Attribution:
    """Of a delivery's attribution, attribution_method, visit_id, claimed_number, candidates and label."""
    state, method, visit_id, number, candidates, label = columns
    return Attribution(
        AttributionState(state),
        method,
        visit=visit_id,
        number=number,
        candidates=tuple(Candidate(*pair) for pair in json.loads(candidates)) if candidates else (),
        label=label,
    )


def columns_of(attribution: Attribution) -> Row:
    """The same columns of an attribution that is to be stored."""
    candidates = [(one.visit, _written(one.probability)) for one in attribution.candidates]
    shares = json.dumps(candidates) if candidates else None
    return (
        attribution.state.value,
        attribution.method,
        attribution.visit,
        attribution.number,
        shares,
        attribution.label,
    )


def _written(probability: float) -> float:
    """To four digits, to six where those would make it 0 or 1: a candidate is neither impossible nor certain."""
    rounded = round(probability, 4)
    return rounded if 0.0 < rounded < 1.0 else min(max(round(probability, 6), LEAST), 1.0 - LEAST)


def attribute_all(tx: Tx, recipients: Sequence[Recipient], incoming: Incoming, evidence: Evidence) -> list[Attribution]:
    """What each recipient of a letter says, with regard to the others of its site."""
    found = [attribute(tx, recipient, incoming, evidence) for recipient in recipients]
    of_site: dict[int, list[int]] = {}
    for i, recipient in enumerate(recipients):
        if recipient.route is not None:
            of_site.setdefault(recipient.route.site_id, []).append(i)
    for own in of_site.values():
        for i, attribution in zip(own, agreed(tx, [found[i] for i in own]), strict=True):
            found[i] = attribution
    return found


def agreed(tx: Tx, found: Sequence[Attribution]) -> list[Attribution]:
    """``rules.agreed``, for recipients of one site. Nothing is read where one visit at most is named."""
    certain = [one.visit for one in found if one.state is AttributionState.EXACT and one.visit is not None]
    others = [candidate.visit for one in found for candidate in one.candidates]
    if not certain or len({*certain, *others}) == 1:
        return list(found)
    people: dict[int, str] = {}
    for visit in list(dict.fromkeys((*certain, *others)))[:PEOPLE]:
        row = tx.one(FIND_FIRST_VISIT, visit=visit)
        if row is not None and row[0] is not None:
            people[visit] = row[0]
    return rules.agreed(found, people)


def attribute(
    tx: Tx,
    recipient: Recipient,
    incoming: Incoming,
    evidence: Evidence,
    before: int = NEWEST,
    now: float | None = None,
) -> Attribution:
    """What the address says; where it says nothing, what the thread or the sender does.

    ``before``: id of the message itself where it is stored already; only earlier ones say anything of it. ``now``:
    when that is asked, None: when it came.
    """
    route = recipient.route
    if route is None or not route.attributed:
        return Attribution(AttributionState.NONE, "retired/1" if route else "operator/1")
    now = incoming.received_at if now is None else now
    found = _by_address(tx, route, recipient.tag, incoming, evidence, now)
    if found.visit is not None and tx.one(FIND_VISIT, visit=found.visit) is None:
        found = Attribution(AttributionState.NONE, "erased/1")
    if found.state is not AttributionState.NONE:
        return found
    return _inferred(tx, route.site_id, incoming, evidence, before) or found


def _by_address(
    tx: Tx, route: Route, tag: str | None, incoming: Incoming, evidence: Evidence, now: float
) -> Attribution:
    """What the substitute that the mail was sent to says of its visit."""
    if route.kind is RouteKind.STATIC:
        return rules.attribute_static(route.label)
    if route.kind is RouteKind.BASE:
        if tag is None or not is_number(tag):
            return Attribution(AttributionState.NONE, rules.PLUS_METHOD)
        row = tx.one(FIND_NUMBER, site=route.site_id, number=tag)
        return rules.attribute_plus(tag, row[0] if row else None)
    if route.kind is RouteKind.UNIQUE:
        holder = tx.one(FIND_ONLY_HOLDER, route=route.id)
        return rules.attribute_unique(holder[0] if holder else None)
    # The base of a plus target may have gone into a pool: its addresses are still the visits' that they name.
    if tag is not None and is_number(tag) and (row := tx.one(FIND_NUMBER, site=route.site_id, number=tag)):
        return rules.attribute_plus(tag, row[0])
    since = incoming.written_at - max(evidence.window, rules.LATE_WINDOW)
    held = holdings(tx, route.id, since, incoming.received_at)
    astray = {visit for (visit,) in tx.all(FIND_ASTRAY, route=route.id, after=now + AHEAD)}
    written, received = incoming.written_at, incoming.received_at
    return rules.attribute_pool(held, written, received, evidence.window, evidence.delays, astray)


def holdings(tx: Tx, route_id: int, since: float, until: float) -> list[Holding]:
    """Who held an address from ``since`` to ``until``, and whoever held it last before; the latest first."""
    return [Holding(*row) for row in tx.all(FIND_HOLDINGS, route=route_id, since=since, until=until)]


def _inferred(tx: Tx, site_id: int, incoming: Incoming, evidence: Evidence, before: int) -> Attribution | None:
    """The visit of the message that this one answers, else of its sender's last attributed one, at the same site.

    Bounces and automatic mail name no person: only their thread counts.
    """
    answered = (incoming.in_reply_to, *reversed(incoming.references[-THREAD_REACH:]))
    for reference in dict.fromkeys(filter(None, answered)):
        if row := tx.one(FIND_ANSWERED, answered=reference, site=site_id, before=before):
            return rules.attribute_thread(row[0])
    if incoming.bounce or incoming.automatic or not incoming.mail_from or not incoming.sender:
        return None
    after = incoming.received_at - evidence.known_sender
    row = tx.one(FIND_KNOWN_SENDER, sender=incoming.sender, after=after, site=site_id, before=before)
    return rules.attribute_sender(row[0]) if row else None
