"""What an operator does about the forwarding queue by hand: trying deliveries now, and giving them up.

Sending again what has left the queue is in resend.py.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from sqlalchemy import bindparam, func, or_, update

from relay.core.model import DeliveryState
from relay.store.engine import Statement, Tx
from relay.store.joined import part
from relay.store.queue import message_of, mirror, settle_message
from relay.store.schema import OPEN, deliveries

_HELD = deliveries.c.state == DeliveryState.FAILED.value
_WAITING_OR_HELD = or_(OPEN, _HELD)
_RETRY = Statement(
    update(deliveries)
    .where(deliveries.c.id == bindparam("delivery"), _WAITING_OR_HELD, deliveries.c.joined_id.is_(None))
    .values(
        state=DeliveryState.QUEUED.value,
        next_at=bindparam("now"),
        finished_at=None,
        expires_at=func.max(deliveries.c.expires_at, bindparam("expires")),
    )
)
_DROP = Statement(
    update(deliveries)
    .where(
        deliveries.c.id == bindparam("delivery"),
        _WAITING_OR_HELD,
        deliveries.c.claimed_until < bindparam("now"),
        deliveries.c.joined_id.is_(None),
    )
    .values(state=DeliveryState.DROPPED.value, finished_at=bindparam("now"), answer="dropped by the operator")
)


def retry(tx: Tx, delivery_ids: Sequence[int], now: float, expires_at: float) -> list[int]:
    """Try these deliveries now. The ids of those that were waiting or held."""
    changed = [id_ for id_ in delivery_ids if tx.run(_RETRY, delivery=id_, now=now, expires=expires_at)]
    _settle(tx, changed)
    return changed


def drop(tx: Tx, delivery_ids: Sequence[int], now: float, sites: Collection[int] | None = None) -> list[int]:
    """Give these deliveries up; the bytes stay until retention. The ids that were waiting or held and not in flight.

    ``sites`` are the ids of those for whom somebody acts, None: all. What a delivery carries of others goes on.
    """
    changed = [id_ for id_ in delivery_ids if tx.run(_DROP, delivery=id_, now=now)]
    for delivery_id in changed:
        part(tx, message_of(tx, delivery_id), delivery_id, sites)
    _settle(tx, changed)
    return changed


def _settle(tx: Tx, delivery_ids: Sequence[int]) -> None:
    for delivery_id in delivery_ids:
        message_id = message_of(tx, delivery_id)
        mirror(tx, message_id, delivery_id)
        settle_message(tx, message_id)
