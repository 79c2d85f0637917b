"""What waits goes the way that its target has now: it gets the name of that destination, and is due at once.

The name stands in the delivery from its receipt on. A next hop that was redefined since has another, and so has every
one after an update that names them otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import bindparam, select, update

from relay.store.engine import Statement, Tx
from relay.store.schema import OPEN, deliveries, targets

#: Deliveries that are moved in one transaction at most.
AT_ONCE = 1000

_WAITS = (OPEN, deliveries.c.joined_id.is_(None))
#: Of what waits: destination, target, real address, the target's own next hop.
WAYS = Statement(
    select(deliveries.c.destination, deliveries.c.target_id, deliveries.c.forward_to, targets.c.next_hop)
    .outerjoin(targets, targets.c.id == deliveries.c.target_id)
    .where(*_WAITS)
    .distinct()
)
_MOVE = Statement(
    update(deliveries)
    .where(
        deliveries.c.id.in_(
            select(deliveries.c.id)
            .where(
                *_WAITS,
                deliveries.c.destination == bindparam("before"),
                deliveries.c.target_id.is_not_distinct_from(bindparam("target")),
                deliveries.c.forward_to == bindparam("real_address"),
            )
            .limit(AT_ONCE)
        )
    )
    .values(destination=bindparam("after"), next_at=bindparam("now"))
)


@dataclass(frozen=True, slots=True)
class Move:
    target: int | None
    forward_to: str
    before: str
    after: str


def move(tx: Tx, wanted: Move, now: float) -> bool:
    """Whether there may be more of it."""
    moved = tx.run(
        _MOVE,
        target=wanted.target,
        real_address=wanted.forward_to,
        before=wanted.before,
        after=wanted.after,
        now=now,
    )
    return moved == AT_ONCE
