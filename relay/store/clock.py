"""What the store does when the system's clock was set: nothing may wait for a time that lies that far ahead, and no
mail may be given up for a time that has not passed.

The daemon notes what the clock says now and then: so a start knows when one ran last. A clock that is ahead then is not
to be told from a machine that was off. Either way mail has the time left that it had.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import BindParameter, ScalarSelect, and_, bindparam, case, func, insert, or_, select, update

from relay.store.engine import Statement, Tx
from relay.store.reader import Reader
from relay.store.schema import LISTED, OPEN, bindings, clock, deliveries, messages, posts, routes

#: Seconds by which the clock may differ from the time that passed before it counts as set.
TOLERANCE = 10.0
#: Seconds by which a start may be later than the last note before that counts. More than between two notes
#: (relay/clockwatch.py): else a daemon that is started again and again would never give anything up.
AWAY = 3600.0
#: Seconds by which the clock has leapt ahead when it is doubted, and for how long nothing is deleted by it then. At a
#: start it is doubted where no daemon ran for longer than that: a machine that is off at night has to delete, too.
LEAP = 3600.0
DISTRUST = 86400.0

#: Rows of the table.
RAN, DOUBTED = 1, 2
_NOTE = Statement(update(clock).where(clock.c.id == bindparam("row")), "noted_at")
_FIRST_NOTE = Statement(insert(clock), "id noted_at")
_NOTED = Statement(select(clock.c.noted_at).where(clock.c.id == bindparam("row")))
_LATER: BindParameter[float] = bindparam("now")
_BY: BindParameter[float] = bindparam("by")
_DELIVERIES = Statement(
    update(deliveries)
    .where(OPEN, deliveries.c.joined_id.is_(None), deliveries.c.next_at > _LATER)
    .values(next_at=deliveries.c.next_at - _BY)
)
# What was received since the clock was set has its time already.
_SHORTEN = Statement(
    update(deliveries)
    .where(OPEN, deliveries.c.expires_at - _BY > _LATER)
    .values(expires_at=deliveries.c.expires_at - _BY)
)
_RECEIVED: ScalarSelect[float] = (
    select(messages.c.received_at).where(messages.c.id == deliveries.c.message_id).scalar_subquery()
)
# The second condition is for a clock that was wrong before and is right now.
_EXTEND = Statement(
    update(deliveries)
    .where(OPEN, or_(bindparam("before") >= _RECEIVED, deliveries.c.expires_at < _LATER))
    .values(expires_at=deliveries.c.expires_at + _BY)
)
_POSTS = Statement(
    update(posts).where(posts.c.state == "waiting", posts.c.next_at > _LATER).values(next_at=posts.c.next_at - _BY)
)
# Who was given a pool address meanwhile began later than now: mail would be stated to be of whoever had it before.
_POOLS = bindings.c.route_id.in_(select(routes.c.id).where(LISTED))
_FUTURE = and_(bindings.c.started_at > _LATER, _POOLS)
_FIND_HOLDINGS = Statement(
    select(func.min(bindings.c.id), func.max(bindings.c.id), func.max(bindings.c.started_at)).where(_FUTURE)
)
_START = case((bindings.c.started_at - _BY > _LATER, _LATER), else_=bindings.c.started_at - _BY)
_HOLDINGS = Statement(
    update(bindings)
    .where(_FUTURE)
    .values(started_at=_START, ended_at=_START + bindings.c.ended_at - bindings.c.started_at)
)
_HOLDINGS_BACK = Statement(
    update(bindings)
    .where(
        bindings.c.id.between(bindparam("first"), bindparam("last")),
        bindings.c.started_at <= bindparam("until"),
        _POOLS,
    )
    .values(started_at=bindings.c.started_at + _BY, ended_at=bindings.c.ended_at + _BY)
)
_LEASES = Statement(
    update(routes)
    .where(
        routes.c.kind == "pool",
        routes.c.retired_at.is_(None),
        or_(
            routes.c.leased_until > bindparam("alive"),
            and_(routes.c.leased_until > _LATER, routes.c.binding_id.in_(select(bindings.c.id).where(_FUTURE))),
        ),
    )
    .values(leased_until=routes.c.leased_until - _BY)
)


@dataclass(frozen=True, slots=True)
class Moved:
    """Holdings of pool addresses that were moved ``by`` seconds back: from the ``first`` binding to the ``last``, all
    that begin no later than ``until`` now. The clock may be set ahead again, since it was right before."""

    by: float
    first: int
    last: int
    until: float


@dataclass(frozen=True, slots=True)
class Began:
    """``by``: seconds that the clock is ahead of the last note (< 0: behind); 0.0: of no account. ``moved``: as
    ``was_set`` answers it."""

    by: float
    moved: Moved | None = None


def note(tx: Tx, now: float) -> None:
    """A daemon runs, and the clock says ``now``."""
    _note(tx, RAN, now)


async def is_doubted(reader: Reader, now: float) -> bool:
    """Whether the clock, which says ``now``, was far ahead lately: it may be corrected. Raises StoreUnavailable."""
    rows = await reader.run(_NOTED, row=DOUBTED)
    return bool(rows) and 0 <= now - rows[0][0] < DISTRUST  # set back since, it is as it was before


def _note(tx: Tx, row: int, now: float) -> None:
    if not tx.run(_NOTE, row=row, noted_at=now):
        tx.run(_FIRST_NOTE, id=row, noted_at=now)


def was_set(tx: Tx, by: float, now: float, moved: Moved | None = None) -> Moved | None:
    """The clock was set ``by`` seconds ahead (< 0: back) and says ``now``.

    ``moved``: what this answered when it was set back last; where it is set ahead again, that is undone.
    """
    note(tx, now)
    if by < 0:
        return _set_back(tx, -by, now) or moved
    if by > LEAP:
        _note(tx, DOUBTED, now)
    tx.run(_EXTEND, by=by, now=now, before=now - by)
    if moved is not None:
        tx.run(_HOLDINGS_BACK, by=min(by, moved.by), first=moved.first, last=moved.last, until=moved.until)
    return None


def began(tx: Tx, now: float) -> Began:
    """The daemon begins and the clock says ``now``: long after the last note, or before it.

    Before it, or where holdings begin later than now, the clock was set back while nobody saw it, by as much at least.
    """
    row = tx.one(_NOTED, row=RAN)
    noted = row[0] if row else now
    if now - noted > AWAY:
        away = now - noted
        note(tx, now)
        if away > DISTRUST:
            _note(tx, DOUBTED, now)
        tx.run(_EXTEND, by=away, now=now, before=now)
        return Began(away)
    _, _, latest = tx.all(_FIND_HOLDINGS, now=now)[0]
    back = max(noted, latest or noted) - now
    if back <= TOLERANCE:
        return Began(0.0)
    note(tx, now)
    return Began(-back, _set_back(tx, back, now))


def _set_back(tx: Tx, by: float, now: float) -> Moved | None:
    """Move what waits, what was held later than now, and the leases that were alive.

    A delivery or post that was to be tried within these seconds anyway is due at once.
    """
    tx.run(_SHORTEN, now=now, by=by)
    tx.run(_DELIVERIES, now=now, by=by)
    tx.run(_POSTS, now=now, by=by)
    first, last, _ = tx.all(_FIND_HOLDINGS, now=now)[0]
    tx.run(_LEASES, alive=now + by, by=by, now=now)  # first: it asks whose holding lies ahead
    if first is None:
        return None
    tx.run(_HOLDINGS, now=now, by=by)
    return Moved(by, first, last, now)
