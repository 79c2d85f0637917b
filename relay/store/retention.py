"""What is deleted, by age and by hand. Every verb takes a bounded bite and answers which body files have no row left.

A message that still has to be forwarded, or is held, is never deleted by age: losing it would be losing mail.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import bindparam, delete, func, null, or_, select, update

from relay.core.address import sender_key
from relay.store import routes as route_verbs
from relay.store import search
from relay.store.engine import Statement, Tx
from relay.store.queue import settle_message
from relay.store.schema import (
    OPEN,
    TRACED,
    bindings,
    blocked_senders,
    bodies,
    deliveries,
    events,
    messages,
    paths,
    routes,
    sites,
    visits,
)

#: Messages, visits or routes deleted in one transaction.
BITE = 200


@dataclass(frozen=True, slots=True)
class Cut:
    """Times before which things end: seconds since the epoch."""

    raw: float
    messages: float
    visits: float
    routes: float
    visitor_ip: float


@dataclass(frozen=True, slots=True)
class Swept:
    """``files`` have no row any more; ``more``: call again."""

    files: tuple[str, ...]
    routes: bool
    more: bool


@dataclass(frozen=True, slots=True)
class ErasedSender:
    """``left`` are still being forwarded; ``unblocked``: the address was blocked, and is no more."""

    deleted: int
    left: int
    files: tuple[str, ...]
    unblocked: bool


class StillOpen(Exception):
    """The message has deliveries that are waiting, held or in flight."""


_UNFINISHED = (
    select(deliveries.c.id)
    .where(
        deliveries.c.message_id == messages.c.id,
        or_(OPEN, deliveries.c.state.in_(["failed", "quarantined"])),
    )
    .exists()
)
_OLD_RAW = Statement(
    select(messages.c.id, messages.c.body_file)
    .where(
        messages.c.received_at < bindparam("before"),
        messages.c.raw_removed_at.is_(None),
        messages.c.extraction != "waiting",
        ~_UNFINISHED,
    )
    .limit(BITE)
)
_RAW_REMOVED = Statement(update(messages).where(messages.c.id == bindparam("message")), "raw_removed_at body_file")
_DELETE_BODY = Statement(delete(bodies).where(bodies.c.message_id == bindparam("message")))
_OLD_MESSAGES = Statement(
    select(messages.c.id, messages.c.body_file)
    .where(messages.c.received_at < bindparam("before"), messages.c.extraction != "waiting", ~_UNFINISHED)
    .limit(BITE)
)
_DELETE_MESSAGE = Statement(delete(messages).where(messages.c.id == bindparam("message")))
_MESSAGE = Statement(select(messages.c.id, messages.c.body_file).where(messages.c.id == bindparam("message")))
_WAITS = Statement(select(deliveries.c.id).where(deliveries.c.message_id == bindparam("message"), OPEN).limit(1))
_OF_SITE = (deliveries.c.message_id == bindparam("message"), deliveries.c.site_id == bindparam("site"))
_AT_SITE = Statement(select(deliveries.c.id).where(*_OF_SITE).limit(1))
_WAITS_AT_SITE = Statement(select(deliveries.c.id).where(*_OF_SITE, OPEN).limit(1))
_DELETE_AT_SITE = Statement(delete(deliveries).where(*_OF_SITE))
_DELETE_EVENTS_AT_SITE = Statement(
    delete(events).where(events.c.message_id == bindparam("message"), events.c.site_id == bindparam("site"))
)
_DELETE_PATHS_AT_SITE = Statement(
    delete(paths).where(
        paths.c.message_id == bindparam("message"), paths.c.delivery_id.in_(select(deliveries.c.id).where(*_OF_SITE))
    )
)
_CARRIER = deliveries.alias()
_PART = Statement(
    update(deliveries)
    .where(
        deliveries.c.message_id == bindparam("message"),
        deliveries.c.joined_id.in_(
            select(_CARRIER.c.id).where(
                _CARRIER.c.message_id == bindparam("message"), _CARRIER.c.site_id == bindparam("site")
            )
        ),
    )
    .values(joined_id=None)
)
_ANY_LEFT = Statement(select(deliveries.c.id).where(deliveries.c.message_id == bindparam("message")).limit(1))
_SENT = messages.c.sender == bindparam("address")
_OPEN_DELIVERY = select(deliveries.c.id).where(deliveries.c.message_id == messages.c.id, OPEN)
_SITE_DELIVERY = select(deliveries.c.id).where(
    deliveries.c.message_id == messages.c.id, deliveries.c.site_id == bindparam("site")
)
_BY_SENDER = Statement(select(messages.c.id, messages.c.body_file).where(_SENT, ~_OPEN_DELIVERY.exists()).limit(BITE))
_LEFT_OF_SENDER = Statement(select(func.count(messages.c.id)).where(_SENT, _OPEN_DELIVERY.exists()))
_BY_SENDER_AT_SITE = Statement(
    select(messages.c.id, messages.c.body_file)
    .where(_SENT, _SITE_DELIVERY.exists(), ~_SITE_DELIVERY.where(OPEN).exists())
    .limit(BITE)
)
_UNBLOCK = Statement(
    delete(blocked_senders).where(
        blocked_senders.c.address == bindparam("address"), blocked_senders.c.site_id.in_(select(sites.c.id))
    )
)
_UNBLOCK_AT_SITE = Statement(
    delete(blocked_senders).where(
        blocked_senders.c.address == bindparam("address"), blocked_senders.c.site_id == bindparam("site")
    )
)
_LEFT_AT_SITE = Statement(select(func.count(messages.c.id)).where(_SENT, _SITE_DELIVERY.where(OPEN).exists()))
_OLD_VISITS = Statement(
    select(visits.c.id)
    .where(visits.c.started_at < bindparam("before"), visits.c.last_seen_at < bindparam("before"))
    .limit(BITE)
)
_OLD_IPS = Statement(
    select(visits.c.id)
    .where(visits.c.started_at < bindparam("before"), visits.c.last_seen_at < bindparam("before"), TRACED)
    .limit(BITE)
)
_FORGET_IP = Statement(update(visits).where(visits.c.id == bindparam("visit")), "ip user_agent")
_LAST_ROUTES = Statement(
    select(routes.c.id)
    .join(bindings, bindings.c.route_id == routes.c.id)
    .where(bindings.c.visit_id == bindparam("visit"), routes.c.kind == "unique", routes.c.retired_at.is_(None))
)
_DELETE_VISIT = Statement(delete(visits).where(visits.c.id == bindparam("visit")))
_OLD_ROUTES = Statement(select(routes.c.id).where(routes.c.retired_at < bindparam("before")).limit(BITE))
_FILE = Statement(select(messages.c.id).where(messages.c.body_file == bindparam("name")).limit(1))


def sweep(tx: Tx, cut: Cut, now: float) -> Swept:
    """One bite of everything that is past its time."""
    raw = tx.all(_OLD_RAW, before=cut.raw)
    for message_id, _ in raw:
        tx.run(_DELETE_BODY, message=message_id)
        tx.run(_RAW_REMOVED, message=message_id, raw_removed_at=now, body_file=None)
    old = tx.all(_OLD_MESSAGES, before=cut.messages)
    for message_id, _ in old:
        _delete(tx, message_id)
    gone_visits = tx.all(_OLD_VISITS, before=cut.visits)
    for (visit_id,) in gone_visits:
        delete_visit(tx, visit_id, now)
    old_ips = tx.all(_OLD_IPS, before=cut.visitor_ip)
    if old_ips:
        tx.revise()
    for (visit_id,) in old_ips:
        tx.run(_FORGET_IP, visit=visit_id, ip=None, user_agent=None)
    gone_routes = tx.all(_OLD_ROUTES, before=cut.routes)
    for (route_id,) in gone_routes:
        tx.run(route_verbs.DELETE, route=route_id)
    files = tuple(row[1] for row in (*raw, *old) if row[1])
    more = max(len(raw), len(old), len(gone_visits), len(old_ips), len(gone_routes)) >= BITE
    return Swept(files, bool(gone_routes or gone_visits), more)


def delete_visit(tx: Tx, visit_id: int, now: float) -> None:
    """Forget a visit and its bindings; a unique address that was its own is retired, and goes on forwarding."""
    tx.revise()
    _retire_unique(tx, visit_id, now)
    tx.run(_DELETE_VISIT, visit=visit_id)


def _retire_unique(tx: Tx, visit_id: int, now: float) -> None:
    for (route_id,) in tx.all(_LAST_ROUTES, visit=visit_id):
        tx.run(route_verbs.RETIRE, route=route_id, retired_at=now)


_VISITS_BY_NUMBER = Statement(
    select(visits.c.id, visits.c.first_id).where(
        visits.c.site_id == bindparam("site"),
        visits.c.number == bindparam("number"),
        visits.c.erased_at.is_(None),
    )
)
_OF_BROWSER = Statement(
    select(visits.c.id).where(
        or_(visits.c.id == bindparam("first"), visits.c.first_id == bindparam("first")), visits.c.erased_at.is_(None)
    )
)


_HELD = Statement(select(bindings.c.id).where(bindings.c.visit_id == bindparam("visit")).limit(1))
_KEPT = ("id", "site_id", "number", "own", "started_at", "last_seen_at", "erased_at")
_BLANK = Statement(
    update(visits)
    .where(visits.c.id == bindparam("visit"))
    .values(
        number=bindparam("name"),
        own=0,
        erased_at=bindparam("now"),
        **{column.name: null() for column in visits.c if column.name not in _KEPT},
    )
)
_UNSTATE = Statement(update(deliveries).where(deliveries.c.visit_id == bindparam("visit")).values(visit_id=null()))


def erase_visit(tx: Tx, site_id: int, number: str, now: float, *, browser: bool) -> int:
    """Forget a visit, with ``browser`` all visits of its browser at the site; the number of visits forgotten.

    Its messages stay, with nothing of the visit: whose they are is erased by sender. That somebody held a pool address
    stays as well, without a name, until the visit would have gone by age: else a mail of that time would be stated as
    the other holder's.
    """
    row = tx.one(_VISITS_BY_NUMBER, site=site_id, number=number)
    if row is None:
        return 0
    tx.revise()
    visit_id, first_id = row
    ids = {visit_id}
    if browser:
        ids |= {found for (found,) in tx.all(_OF_BROWSER, first=first_id or visit_id)}
    for found in ids:
        _retire_unique(tx, found, now)
        if tx.one(_HELD, visit=found) is None:
            tx.run(_DELETE_VISIT, visit=found)
        else:
            tx.run(_UNSTATE, visit=found)
            tx.run(_BLANK, visit=found, name=f"-{found}", now=now)
    return len(ids)


def erase_message(tx: Tx, message_id: int, sites: Collection[int] | None = None) -> tuple[str, ...] | None:
    """Delete a message with everything about it: its body file, if any. None when there is none; raises StillOpen.

    With ``sites`` only their share goes, their deliveries and events; the rest stays as long as it is another site's.
    """
    row = tx.one(_MESSAGE, message=message_id)
    if row is None:
        return None
    if sites is None:
        if tx.one(_WAITS, message=message_id) is not None:
            raise StillOpen(message_id)
        _delete(tx, message_id)
        return (row[1],) if row[1] else ()
    own = [site for site in sites if tx.one(_AT_SITE, message=message_id, site=site) is not None]
    if any(tx.one(_WAITS_AT_SITE, message=message_id, site=site) is not None for site in own):
        raise StillOpen(message_id)
    files = [_delete_share(tx, message_id, row[1], site) for site in own]
    return tuple(filter(None, files)) if own else None


def _delete_share(tx: Tx, message_id: int, file: str | None, site: int) -> str | None:
    """What one site has of a message; the name of the body file when nobody else has anything of it."""
    tx.revise()
    tx.run(_PART, message=message_id, site=site)  # what its delivery carried stands for itself from now on
    tx.run(_DELETE_EVENTS_AT_SITE, message=message_id, site=site)
    tx.run(_DELETE_PATHS_AT_SITE, message=message_id, site=site)
    tx.run(_DELETE_AT_SITE, message=message_id, site=site)
    if tx.one(_ANY_LEFT, message=message_id) is None:
        _delete(tx, message_id)
        return file
    settle_message(tx, message_id)
    search.readdress(tx, message_id)  # else the others would find it by this site's recipients
    return None


def erase_sender(tx: Tx, address: str, sites: Collection[int] | None = None) -> ErasedSender:
    """Delete a bite of this sender's messages; call again until nothing was deleted. ``sites`` as for erase_message.

    The address is blocked no more, either, once nothing of it is left.
    """
    blocked = sender_key(address)
    if sites is None:
        rows = tx.all(_BY_SENDER, address=address)
        for message_id, _ in rows:
            _delete(tx, message_id)
        ((left,),) = tx.all(_LEFT_OF_SENDER, address=address)
        unblocked = len(rows) < BITE and not left and tx.run(_UNBLOCK, address=blocked) > 0
        return ErasedSender(len(rows), left, tuple(file for _, file in rows if file), unblocked)
    deleted, left, unblocked, files = 0, 0, False, []
    for site in sites:
        ((waiting,),) = tx.all(_LEFT_AT_SITE, address=address, site=site)
        left += waiting
        if deleted >= BITE:
            continue
        rows = tx.all(_BY_SENDER_AT_SITE, address=address, site=site)
        files += [_delete_share(tx, message_id, file, site) for message_id, file in rows]
        deleted += len(rows)
        if len(rows) < BITE and not waiting and tx.run(_UNBLOCK_AT_SITE, address=blocked, site=site):
            unblocked = True
    return ErasedSender(deleted, left, tuple(filter(None, files)), unblocked)


def _delete(tx: Tx, message_id: int) -> None:
    tx.revise()
    search.forget(tx, message_id)
    tx.run(_DELETE_MESSAGE, message=message_id)


def orphans(tx: Tx, names: list[str]) -> list[str]:
    """Of these body files, those that no message names."""
    return [name for name in names if tx.one(_FILE, name=name) is None]
