"""Joined deliveries: several sites' to one real address, of which the first carries the others, so that one copy goes.

What one site's people do to their letter is none of the other sites' affair: :func:`part` keeps these out of it.
"""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import bindparam, func, select, update

from relay.store.engine import Statement, Tx
from relay.store.schema import deliveries

_CARRIED = Statement(
    select(deliveries.c.id, deliveries.c.site_id)
    .where(deliveries.c.message_id == bindparam("message"), deliveries.c.joined_id == bindparam("carrier"))
    .order_by(deliveries.c.id)
)
_CARRIER = Statement(
    select(
        deliveries.c.attempts,
        deliveries.c.next_at,
        deliveries.c.expires_at,
        deliveries.c.claim,
        deliveries.c.possibly_repeated,
    ).where(deliveries.c.id == bindparam("carrier"))
)
_STAND = Statement(
    update(deliveries)
    .where(deliveries.c.id == bindparam("delivery"))
    .values(
        joined_id=None,
        attempts=bindparam("made"),
        next_at=bindparam("at"),
        expires_at=bindparam("expires"),
        possibly_repeated=func.max(deliveries.c.possibly_repeated, bindparam("repeated")),
    )
)
_JOIN = Statement(update(deliveries).where(deliveries.c.id == bindparam("delivery")), "joined_id")


def part(tx: Tx, message_id: int, carrier: int, sites: Collection[int] | None) -> None:
    """Of what this delivery carries, leave it only what is of these sites (ids; None: all, so that nothing changes).

    The first of the others carries them from now on: in the state that they have, and with the attempts and the times
    that the carrier had for them all.
    """
    if sites is None:
        return
    others = [row[0] for row in tx.all(_CARRIED, message=message_id, carrier=carrier) if row[1] not in sites]
    if not others:
        return
    row = tx.one(_CARRIER, carrier=carrier)
    assert row is not None
    made, next_at, expires_at, claim, repeated = row
    first, *rest = others
    tx.run(
        _STAND,
        delivery=first,
        made=made,
        at=next_at,
        expires=expires_at,
        repeated=1 if claim is not None else repeated,  # of an attempt without a result nobody knows how far it came
    )
    for other in rest:
        tx.run(_JOIN, delivery=other, joined_id=first)
