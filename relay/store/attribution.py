"""Whose visit a message came from, by what the database knows of it (core/attribution.py has the rules)."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import ColumnElement, Select, bindparam, func, select

from relay.core import attribution as rules
from relay.core.model import Attribution, AttributionState, Candidate, Holding, RouteKind
from relay.core.visit import is_number
from relay.store.engine import Row, Statement, Tx
from relay.store.incoming import Incoming, Recipient
from relay.store.routes import NOBODY, Route
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
    an exact match; ``known_sender``: seconds for which a sender's visit explains a mail that nothing else does, and is
    remembered at a pool address that is another's by now; ``kept``: seconds after which retention removes who held an
    address."""

    window: float
    known_sender: float = 90 * 86_400.0
    delays: rules.Delays = rules.NO_DELAYS
    kept: float = math.inf


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


def _visit_of(letters: Select[Any], *which: ColumnElement[bool]) -> Statement:
    """The visit that is stated of these letters' latest delivery that has one. Exact and inferred ones have."""
    return Statement(
        select(deliveries.c.visit_id)
        .where(deliveries.c.message_id.in_(letters), deliveries.c.visit_id.is_not(None), *which)
        .order_by(deliveries.c.id.desc())
        .limit(1)
    )


_ANSWERED = (
    select(messages.c.id)
    .where(messages.c.message_id == bindparam("answered"), messages.c.id < bindparam("before"))
    .order_by(messages.c.id.desc())
    .limit(SENDER_REACH)
)
_OF_SENDER = (
    select(messages.c.id)
    .where(
        messages.c.sender == bindparam("sender"),
        messages.c.received_at > bindparam("after"),
        messages.c.id < bindparam("before"),
    )
    .order_by(messages.c.id.desc())
    .limit(SENDER_REACH)
)
_AT_SITE = deliveries.c.site_id == bindparam("site")
_AT_ADDRESS = deliveries.c.route_id == bindparam("route")
_IS_EXACT = deliveries.c.attribution == AttributionState.EXACT.value
FIND_ANSWERED = _visit_of(_ANSWERED, _AT_SITE)
FIND_KNOWN_SENDER = _visit_of(_OF_SENDER, _AT_SITE, _IS_EXACT)  # else one visit would explain a sender for ever
FIND_ANSWERED_HERE = _visit_of(_ANSWERED, _AT_ADDRESS, _IS_EXACT)
FIND_SENDER_HERE = _visit_of(_OF_SENDER, _AT_ADDRESS, _IS_EXACT)
FIND_VISIT = Statement(
    select(visits.c.number, visits.c.marker).where(visits.c.id == bindparam("visit"), visits.c.erased_at.is_(None))
)
# What an erased visit is called, too.
FIND_LAST_NUMBER = Statement(select(visits.c.number).where(visits.c.id == bindparam("visit")))
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
    return rules.agreed(found, _people(tx, (*certain, *others)))


def _people(tx: Tx, visit_ids: Iterable[int]) -> dict[int, str]:
    """By its first visit, who each of these visits was."""
    rows = {visit: tx.one(FIND_FIRST_VISIT, visit=visit) for visit in list(dict.fromkeys(visit_ids))[:PEOPLE]}
    return {visit: row[0] for visit, row in rows.items() if row is not None and row[0] is not None}


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
    if route is None:
        return Attribution(AttributionState.NONE, "operator/1")
    if not route.attributed:
        return Attribution(AttributionState.NONE, "retired/1" if route.retired else "off/1")
    now = incoming.received_at if now is None else now
    found = _by_address(tx, route, recipient.tag, incoming, evidence, now)
    if found.visit is not None and tx.one(FIND_VISIT, visit=found.visit) is None:
        found = Attribution(AttributionState.NONE, _why_gone(tx, found.visit))
    if found.state is not AttributionState.NONE:
        is_leased = found.method in (rules.POOL_METHOD, rules.LEARNED_METHOD)
        return _again(tx, found, route, incoming, evidence, before) if is_leased else found
    return _inferred(tx, route.site_id, incoming, evidence, before) or found


def _why_gone(tx: Tx, visit: int) -> str:
    """Why nothing is known of the visit that held an address: it was erased, or was never one and only keeps that
    somebody had the address (``routes.keep_holding``)."""
    row = tx.one(FIND_LAST_NUMBER, visit=visit)
    return "unknown/1" if row is not None and row[0].startswith(NOBODY) else "erased/1"


def _by_address(
    tx: Tx, route: Route, tag: str | None, incoming: Incoming, evidence: Evidence, now: float
) -> Attribution:
    """What the substitute that the mail was sent to says of its visit."""
    if route.kind is RouteKind.STATIC:
        return _by_label(tx, route, incoming, evidence)
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
    written, received = incoming.written_at, incoming.received_at
    window = max(evidence.window, rules.LATE_WINDOW)
    held = holdings(tx, route.id, written - window, received)
    if (reach := rules.reach(held, written, evidence.window)) > window:
        held = holdings(tx, route.id, written - reach, received)
    astray = {visit for (visit,) in tx.all(FIND_ASTRAY, route=route.id, after=now + AHEAD)}
    known_since = now - evidence.kept
    return rules.attribute_pool(held, written, received, evidence.window, evidence.delays, astray, known_since)


def _by_label(tx: Tx, route: Route, incoming: Incoming, evidence: Evidence) -> Attribution:
    """What a static substitute says. Where it was a pool's lately, visits that were shown it may write to it as well:
    its label stands among them as the holding of nobody that ``routes.create`` began, which has not ended."""
    written, received = incoming.written_at, incoming.received_at
    window = max(evidence.window, rules.LATE_WINDOW)
    held = holdings(tx, route.id, written - window, received)
    held[:1] = [replace(label, end=received) for label in held[:1]]
    found = rules.attribute_pool(held, written, received, window, evidence.delays)
    return found if found.state is AttributionState.LIKELY else rules.attribute_static(route.label)


def holdings(tx: Tx, route_id: int, since: float, until: float) -> list[Holding]:
    """Who held an address from ``since`` to ``until``, and whoever held it last before; the latest first."""
    return [Holding(*row) for row in tx.all(FIND_HOLDINGS, route=route_id, since=since, until=until)]


def _again(tx: Tx, said: Attribution, route: Route, incoming: Incoming, evidence: Evidence, before: int) -> Attribution:
    """What a pool address says, less certain where who wrote to it before, as another visit, writes to it again."""
    known = _earlier(tx, FIND_ANSWERED_HERE, FIND_SENDER_HERE, incoming, evidence, before, route=route.id)
    if known is None or known[0] == said.visit:
        return said
    visit = known[0]
    return rules.attribute_again(said, visit, _people(tx, (visit, *named(said))))


def named(attribution: Attribution) -> list[int]:
    """The visits that it states or has as candidates."""
    stated = [attribution.visit] if attribution.visit is not None else []
    return [*stated, *(candidate.visit for candidate in attribution.candidates)]


def _inferred(tx: Tx, site_id: int, incoming: Incoming, evidence: Evidence, before: int) -> Attribution | None:
    """The visit of the message that this one answers, else of its sender's last attributed one, at the same site."""
    known = _earlier(tx, FIND_ANSWERED, FIND_KNOWN_SENDER, incoming, evidence, before, site=site_id)
    if known is None:
        return None
    visit, is_answer = known
    return rules.attribute_thread(visit) if is_answer else rules.attribute_sender(visit)


def _earlier(
    tx: Tx,
    answered: Statement,
    of_sender: Statement,
    incoming: Incoming,
    evidence: Evidence,
    before: int,
    **place: int,
) -> tuple[int, bool] | None:
    """The visit that ``answered`` finds of what this message answers, and True; else the one that ``of_sender`` finds
    of its sender's latest, and False.

    Bounces and automatic mail name no person: only their thread counts.
    """
    references = (incoming.in_reply_to, *reversed(incoming.references[-THREAD_REACH:]))
    for reference in dict.fromkeys(filter(None, references)):
        if row := tx.one(answered, answered=reference, before=before, **place):
            return row[0], True
    if incoming.bounce or incoming.automatic or not incoming.mail_from or not incoming.sender:
        return None
    after = incoming.received_at - evidence.known_sender
    row = tx.one(of_sender, sender=incoming.sender, after=after, before=before, **place)
    return (row[0], False) if row else None
