"""What the store does when the system's clock was set: nothing may wait for a time that lies that far ahead, and no
mail may be given up for a time that has not passed.
"""

from __future__ import annotations

from sqlalchemy import BindParameter, ScalarSelect, bindparam, or_, select, update

from relay.core.model import DeliveryState
from relay.store.engine import Statement, Tx
from relay.store.schema import bindings, deliveries, messages, posts, routes

#: Seconds by which the clock may differ from the time that passed before it counts as set.
TOLERANCE = 10.0

_OPEN = deliveries.c.state.in_([DeliveryState.QUEUED.value, DeliveryState.DEFERRED.value])
_LATER: BindParameter[float] = bindparam("now")
_BY: BindParameter[float] = bindparam("by")
_DELIVERIES = Statement(
    update(deliveries)
    .where(_OPEN, deliveries.c.joined_id.is_(None), deliveries.c.next_at > _LATER)
    .values(next_at=deliveries.c.next_at - _BY)
)
# What was received since the clock was set has its time already.
_SHORTEN = Statement(
    update(deliveries)
    .where(_OPEN, deliveries.c.expires_at - _BY > _LATER)
    .values(expires_at=deliveries.c.expires_at - _BY)
)
_RECEIVED: ScalarSelect[float] = (
    select(messages.c.received_at).where(messages.c.id == deliveries.c.message_id).scalar_subquery()
)
# The second condition is for a clock that was wrong before and is right now.
_EXTEND = Statement(
    update(deliveries)
    .where(_OPEN, or_(bindparam("before") >= _RECEIVED, deliveries.c.expires_at < _LATER))
    .values(expires_at=deliveries.c.expires_at + _BY)
)
_POSTS = Statement(
    update(posts).where(posts.c.state == "waiting", posts.c.next_at > _LATER).values(next_at=posts.c.next_at - _BY)
)
_LEASES = Statement(
    update(routes)
    .where(routes.c.leased_until > bindparam("alive"), routes.c.kind == "pool", routes.c.retired_at.is_(None))
    .values(leased_until=routes.c.leased_until - _BY)
)
# Who was given an address meanwhile began later than now: mail would find nobody there.
_HOLDERS = Statement(
    update(bindings)
    .where(
        bindings.c.started_at > _LATER,
        bindings.c.id.in_(select(routes.c.binding_id).where(routes.c.leased_until > bindparam("alive"))),
    )
    .values(started_at=_LATER, ended_at=bindings.c.ended_at - _BY)
)


def was_set(tx: Tx, by: float, now: float) -> None:
    """The clock was set ``by`` seconds ahead (< 0: back) and says ``now``."""
    if by < 0:
        _set_back(tx, -by, now)
    else:
        tx.run(_EXTEND, by=by, now=now, before=now - by)


def _set_back(tx: Tx, by: float, now: float) -> None:
    """Move what waits, and the leases that were alive.

    A delivery or post that was to be tried within these seconds anyway is due at once.
    """
    tx.run(_SHORTEN, now=now, by=by)
    tx.run(_DELIVERIES, now=now, by=by)
    tx.run(_POSTS, now=now, by=by)
    tx.run(_HOLDERS, now=now, by=by, alive=now + by)
    tx.run(_LEASES, alive=now + by, by=by)
