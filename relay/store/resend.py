"""Sending a letter again to its real address, because somebody asks for it: it was lost there, or given up here.

    state of the delivery      what sending it again is
    -------------------------  -----------------------------------------------------------------------------------
    failed (held), dropped     another try, as by queue_by_hand, and for who may do that; what it carries shares what
                               comes of it, unless whoever asks does so for other sites: then that stays as it is
    forwarded                  a second copy, and flagged so: what another site was told of the first stays true
    queued, deferred           refused: it will be tried anyway, so that two would arrive
    looped, quarantined        refused: it would loop again; what is quarantined is not a matter of one click

A delivery that another site's carried stands for itself from then on.
"""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import bindparam, case, func, or_, select, update

from relay.core.model import DeliveryState
from relay.store.engine import Statement, Tx
from relay.store.joined import part
from relay.store.queue import settle_message
from relay.store.schema import bodies, deliveries, messages

_AGAIN = (DeliveryState.FAILED.value, DeliveryState.DROPPED.value, DeliveryState.FORWARDED.value)
_CARRIER = deliveries.alias("carrier")
_FIND = Statement(
    select(
        deliveries.c.message_id,
        deliveries.c.state,
        func.coalesce(_CARRIER.c.attempts, deliveries.c.attempts),  # as it is shown
        or_(messages.c.body_file.is_not(None), bodies.c.message_id.is_not(None)),
    )
    .join(messages, messages.c.id == deliveries.c.message_id)
    .outerjoin(bodies, bodies.c.message_id == messages.c.id)
    .outerjoin(_CARRIER, _CARRIER.c.id == deliveries.c.joined_id)
    .where(deliveries.c.id == bindparam("delivery"))
)
_QUEUE = Statement(
    update(deliveries)
    .where(deliveries.c.id == bindparam("delivery"))
    .values(
        state=DeliveryState.QUEUED.value,
        attempts=bindparam("made"),
        next_at=bindparam("now"),
        finished_at=None,
        expires_at=func.max(deliveries.c.expires_at, bindparam("expires")),
        possibly_repeated=case(
            (deliveries.c.state == DeliveryState.FORWARDED.value, 1), else_=deliveries.c.possibly_repeated
        ),
        joined_id=None,
        claim=None,
        claimed_until=0,
    )
)
_CARRIED = (deliveries.c.message_id == bindparam("message"), deliveries.c.joined_id == bindparam("delivery"))
_PART = Statement(update(deliveries).where(*_CARRIED).values(joined_id=None, attempts=bindparam("made")))
_CARRIED_TOO = Statement(update(deliveries).where(*_CARRIED).values(state=DeliveryState.QUEUED.value, finished_at=None))


class NotAgain(Exception):
    """This delivery can't be sent again; its text says why."""


class NotAllowed(Exception):
    """This delivery can be sent again, but not by who asks; its text says why."""


def resend(
    tx: Tx,
    delivery_id: int,
    attempts: int | None,
    now: float,
    expires_at: float,
    sites: Collection[int] | None = None,
    *,
    only_copies: bool = False,
) -> None:
    """Queue a delivery once more. Raises NotAgain, NotAllowed and LookupError.

    ``attempts``: how many whoever asks knows of. Has there been another since, it is not sent: so a click that comes
    twice sends one copy. ``expires_at``: until when it is tried at least. ``sites``: ids of those for whom it is asked,
    None: all. ``only_copies``: whoever asks may have a second copy sent of what was forwarded, but undo neither that it
    is held nor that somebody gave it up.
    """
    row = tx.one(_FIND, delivery=delivery_id)
    if row is None:
        raise LookupError(delivery_id)
    message_id, state, made, has_bytes = row
    if state not in _AGAIN:
        raise NotAgain(_WHY.get(state, f"its state is {state}"))
    if only_copies and state != DeliveryState.FORWARDED.value:
        raise NotAllowed("it was given up" if state == DeliveryState.DROPPED.value else "it is held")
    if attempts is not None and attempts != made:
        raise NotAgain("it was sent again meanwhile")
    if not has_bytes:
        raise NotAgain("the message's bytes are no longer here")
    if state == DeliveryState.FORWARDED.value:
        tx.run(_PART, message=message_id, delivery=delivery_id, made=made)
    else:
        part(tx, message_id, delivery_id, sites)
        tx.run(_CARRIED_TOO, message=message_id, delivery=delivery_id)
    tx.run(_QUEUE, delivery=delivery_id, made=made, now=now, expires=expires_at)
    settle_message(tx, message_id)


_WHY = {
    DeliveryState.QUEUED.value: "it waits to be forwarded",
    DeliveryState.DEFERRED.value: "it waits for its next attempt",
    DeliveryState.LOOPED.value: "it has come back to us before, and would do so again",
    DeliveryState.QUARANTINED.value: "it is quarantined",
}
