"""The forwarding queue: claim and finish; queue_view.py lists it, queue_by_hand.py does what an operator asks for.

A claim is fenced: only the worker named in it may finish the delivery. Attempts are counted when they are claimed, so
a crash cannot loop tightly. On SQLite there is one process, so its start voids every claim.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from sqlalchemy import CTE, Select, bindparam, case, func, select, update
from sqlalchemy import insert as insert_into

from relay.core.model import WORST_FIRST, DeliveryState, Outcome, OutcomeKind
from relay.store import events
from relay.store.engine import Row, Statement, Tx
from relay.store.messages import Job
from relay.store.post import CLAIM
from relay.store.schema import OPEN, attempts, bodies, deliveries, messages, targets, visits

#: Of so many that are due for a destination that is down, the one tried least goes first.
PROBES = 1000

_DUE = (
    OPEN,
    deliveries.c.next_at <= bindparam("now"),
    deliveries.c.claimed_until < bindparam("now"),
)


def _destinations() -> CTE:
    """Every destination for which something waits, and NULL at the end: from one to the next over the index.

    A DISTINCT would read all that waits, each time that somebody looks.
    """
    first = select(func.min(deliveries.c.destination).label("name")).where(OPEN).cte("destination", recursive=True)
    following = select(func.min(deliveries.c.destination)).where(OPEN, deliveries.c.destination > first.c.name)
    return first.union_all(select(following.scalar_subquery()).where(first.c.name.is_not(None)))


def _waiting() -> Select[tuple[str, bool, float | None]]:
    destination = _destinations()
    its_own = deliveries.c.destination == destination.c.name
    later = select(func.min(deliveries.c.next_at)).where(OPEN, its_own, deliveries.c.next_at > bindparam("now"))
    return select(
        destination.c.name, select(deliveries.c.id).where(its_own, *_DUE).exists(), later.scalar_subquery()
    ).where(destination.c.name.is_not(None))


#: By destination: its name, whether something is due, and when the next after that will be (None: nothing more). What
#: this costs grows with the destinations and with what is claimed, not with what waits.
WAITING = Statement(_waiting())
_JOBS = (
    select(
        deliveries.c.id,
        deliveries.c.message_id,
        deliveries.c.attempts,
        deliveries.c.recipient,
        deliveries.c.forward_to,
        targets.c.next_hop,
        deliveries.c.destination,
        messages.c.mail_from,
        messages.c.received_at,
        deliveries.c.next_at,
        deliveries.c.expires_at,
        messages.c.stored_size,
        bodies.c.data,
        messages.c.body_file,
        messages.c.cut,
        messages.c.ip,
        messages.c.helo,
        messages.c.tls,
        messages.c.esmtp,
        visits.c.number,
        visits.c.marker,
        deliveries.c.label,
    )
    .join(messages, messages.c.id == deliveries.c.message_id)
    .outerjoin(bodies, bodies.c.message_id == messages.c.id)
    .outerjoin(targets, targets.c.id == deliveries.c.target_id)
    .outerjoin(visits, visits.c.id == deliveries.c.visit_id)
)
_OF_DESTINATION = (deliveries.c.destination == bindparam("destination"), *_DUE)
_DUE_AT = Statement(_JOBS.where(*_OF_DESTINATION).order_by(deliveries.c.next_at).limit(bindparam("most")))
_FIRST_DUE = (
    select(deliveries.c.id, deliveries.c.attempts, deliveries.c.next_at)
    .where(*_OF_DESTINATION)
    .order_by(deliveries.c.next_at)
    .limit(PROBES)
    .subquery()
)
_LEAST_TRIED = select(_FIRST_DUE.c.id).order_by(_FIRST_DUE.c.attempts, _FIRST_DUE.c.next_at).limit(1)
#: The one that goes alone to a destination that is down: not always the oldest, which may be what is not taken.
_PROBE = Statement(_JOBS.where(deliveries.c.id == _LEAST_TRIED.scalar_subquery()))
#: Deliveries to a destination that nobody works on and whose time is over, at most so many: as Expired.
EXPIRED = Statement(
    select(deliveries.c.id, deliveries.c.message_id, deliveries.c.forward_to, deliveries.c.attempts)
    .where(deliveries.c.destination == bindparam("destination"), *_DUE, deliveries.c.expires_at <= bindparam("now"))
    .limit(bindparam("most"))
)
_HOLD_EXPIRED = Statement(
    update(deliveries)
    .where(deliveries.c.id == bindparam("delivery"), *_DUE, deliveries.c.expires_at <= bindparam("now"))
    .values(
        state=DeliveryState.FAILED.value,
        code=bindparam("reply_code"),
        answer=bindparam("reply"),
        host=bindparam("from_host"),
        finished_at=bindparam("now"),
    )
)
_CLAIM = Statement(
    update(deliveries)
    .where(deliveries.c.id == bindparam("delivery"))
    .values(
        claim=bindparam("claim"),
        claimed_until=bindparam("until"),
        attempts=deliveries.c.attempts + 1,
        # A claim that ended without a result: nobody knows how far that attempt came.
        possibly_repeated=case((deliveries.c.claim.is_not(None), 1), else_=deliveries.c.possibly_repeated),
    )
)
_RENEW = Statement(
    update(deliveries).where(deliveries.c.id == bindparam("delivery"), deliveries.c.claim == bindparam("by")),
    "claimed_until",
)
_VOID = Statement(
    update(deliveries)
    .where(OPEN, deliveries.c.claim.is_not(None))
    .values(claim=None, claimed_until=0, possibly_repeated=1)
)
_RELEASE = Statement(
    update(deliveries)
    .where(deliveries.c.id == bindparam("delivery"), deliveries.c.claim == bindparam("by"))
    .values(claim=None, claimed_until=0, attempts=deliveries.c.attempts - 1)
)
_FINISH = Statement(
    update(deliveries)
    .where(deliveries.c.id == bindparam("delivery"), deliveries.c.claim == bindparam("by"))
    .values(
        state=bindparam("to_state"),
        next_at=bindparam("at"),
        code=bindparam("reply_code"),
        answer=bindparam("reply"),
        host=bindparam("from_host"),
        finished_at=bindparam("finished"),
        possibly_repeated=func.max(deliveries.c.possibly_repeated, bindparam("repeated")),
        claim=None,
        claimed_until=0,
    )
)
_MEANWHILE = Statement(
    select(deliveries.c.next_at).where(
        deliveries.c.id == bindparam("delivery"), deliveries.c.next_at > bindparam("due_at")
    )
)
_OUTCOME = Statement(
    select(
        deliveries.c.state,
        deliveries.c.code,
        deliveries.c.answer,
        deliveries.c.host,
        deliveries.c.finished_at,
        deliveries.c.possibly_repeated,
    ).where(deliveries.c.id == bindparam("delivery"))
)
_MIRROR = Statement(
    update(deliveries).where(
        deliveries.c.message_id == bindparam("message"), deliveries.c.joined_id == bindparam("carrier")
    ),
    "state code answer host finished_at possibly_repeated",
)
_CARRIED = Statement(
    select(deliveries.c.id).where(
        deliveries.c.message_id == bindparam("message"), deliveries.c.joined_id == bindparam("carrier")
    )
)
_MESSAGE_OF = Statement(select(deliveries.c.message_id).where(deliveries.c.id == bindparam("delivery")))
_STATES = Statement(select(deliveries.c.state).where(deliveries.c.message_id == bindparam("message")))
_MESSAGE_STATE = Statement(update(messages).where(messages.c.id == bindparam("message")), "state")
_LOG_ATTEMPT = Statement(insert_into(attempts), "delivery_id started_at finished_at outcome code answer host")


@dataclass(frozen=True, slots=True)
class Finish:
    """How an attempt ended: the outcome, and what it makes of the delivery."""

    job: Job
    outcome: Outcome
    state: DeliveryState
    next_at: float  # when a deferred delivery is tried again
    started_at: float
    finished_at: float
    possibly_repeated: bool = False


class Expired(NamedTuple):
    """A delivery whose time is over, and the attempts made of it."""

    delivery_id: int
    message_id: int
    forward_to: str
    attempts: int


def claim_due(
    tx: Tx,
    capacity: Mapping[str, int],
    claim: str,
    now: float,
    memory: float = math.inf,
    down: Collection[str] = (),
) -> list[Job]:
    """Claim what is due, at most ``capacity[destination]`` each, oldest first; of those ``down`` the one tried least.

    Ends with the first destination after which the bodies take ``memory`` octets.
    """
    jobs: list[Job] = []
    for destination, most in capacity.items():
        if jobs and sum(len(job.data or b"") for job in jobs) >= memory:
            break
        if destination in down:
            rows = tx.all(_PROBE, destination=destination, now=now) if most else []
        else:
            rows = tx.all(_DUE_AT, destination=destination, now=now, most=most)
        for row in rows:
            tx.run(_CLAIM, delivery=row[0], claim=claim, until=now + CLAIM)
            jobs.append(_job(row, claim))
    return jobs


def _job(row: Row, claim: str) -> Job:
    (
        delivery_id,
        message_id,
        tries,
        recipient,
        forward_to,
        next_hop,
        destination,
        mail_from,
        received_at,
        due_at,
        expires_at,
    ) = row[:11]
    stored_size, data, file, cut, ip, helo, tls, esmtp, number, marker, label = row[11:]
    return Job(
        delivery_id=delivery_id,
        message_id=message_id,
        claim=claim,
        attempts=tries + 1,
        recipient=recipient,
        forward_to=forward_to,
        next_hop=next_hop,
        destination=destination,
        mail_from=mail_from,
        received_at=received_at,
        due_at=due_at,
        expires_at=expires_at,
        stored_size=stored_size,
        data=data,
        file=file,
        cut=tuple((start, end) for start, end in json.loads(cut)) if cut else (),
        ip=ip,
        helo=helo,
        tls=tls,
        esmtp=bool(esmtp),
        visit=number,
        source=marker or label,
        joined=True,
    )


def renew(tx: Tx, jobs: Sequence[tuple[int, str]], until: float) -> None:
    """Move the end of these claims (delivery id, claim) to ``until``."""
    tx.run_many(_RENEW, [{"delivery": delivery, "by": claim, "claimed_until": until} for delivery, claim in jobs])


def void_claims(tx: Tx) -> int:
    """At start: nobody else is working on anything. The number of claims that a crash had left.

    Each may have been answered 250 just before the crash, so its next attempt is flagged as a possible repeat.
    """
    return tx.run(_VOID)


def release(tx: Tx, jobs: Sequence[Job]) -> None:
    """Give claims back that were not used: the final dot of these messages was not sent."""
    tx.run_many(_RELEASE, [{"delivery": job.delivery_id, "by": job.claim} for job in jobs])


def finish(tx: Tx, end: Finish) -> Finish | None:
    """Record an attempt and the state it leads to: how it ended in the end. None, and no change: the claim was lost."""
    end = _meanwhile(tx, end)
    job, outcome = end.job, end.outcome
    done = end.state not in (DeliveryState.QUEUED, DeliveryState.DEFERRED)
    changed = tx.run(
        _FINISH,
        delivery=job.delivery_id,
        by=job.claim,
        at=end.next_at,
        repeated=int(end.possibly_repeated),
        to_state=end.state.value,
        reply_code=outcome.code,
        reply=outcome.text,
        from_host=outcome.host,
        finished=end.finished_at if done else None,
    )
    if not changed:
        return None
    tx.insert(
        _LOG_ATTEMPT,
        delivery_id=job.delivery_id,
        started_at=end.started_at,
        finished_at=end.finished_at,
        outcome=outcome.kind.value,
        code=outcome.code,
        answer=outcome.text,
        host=outcome.host,
    )
    if job.joined:
        mirror(tx, job.message_id, job.delivery_id)
    if end.state is DeliveryState.FAILED:
        _tell_held(tx, job.message_id, job.delivery_id, end.finished_at)
    settle_message(tx, job.message_id)
    return end


def _meanwhile(tx: Tx, end: Finish) -> Finish:
    """Whoever asked for a retry meanwhile gets it: an attempt that began before neither puts it off nor gives it up."""
    if end.outcome.kind not in (OutcomeKind.TEMPORARY, OutcomeKind.AMBIGUOUS):
        return end
    row = tx.one(_MEANWHILE, delivery=end.job.delivery_id, due_at=end.job.due_at)
    return end if row is None else replace(end, state=DeliveryState.DEFERRED, next_at=row[0])


def hold_expired(tx: Tx, expired: Sequence[Expired], outcome: Outcome, now: float) -> list[Expired]:
    """Hold these deliveries: those of them that still wait and that nobody works on. ``outcome`` is why they waited."""
    held = []
    for delivery in expired:
        if tx.run(
            _HOLD_EXPIRED,
            delivery=delivery.delivery_id,
            now=now,
            reply_code=outcome.code,
            reply=outcome.text,
            from_host=outcome.host,
        ):
            mirror(tx, delivery.message_id, delivery.delivery_id)
            _tell_held(tx, delivery.message_id, delivery.delivery_id, now)
            settle_message(tx, delivery.message_id)
            held.append(delivery)
    return held


def _tell_held(tx: Tx, message_id: int, carrier: int, now: float) -> None:
    """Tell the webhooks of the sites whose deliveries are held that want to know."""
    for (held,) in [(carrier,), *tx.all(_CARRIED, message=message_id, carrier=carrier)]:
        events.delivery_failed(tx, held, now)


def mirror(tx: Tx, message_id: int, carrier: int) -> None:
    """The other sites' deliveries that this one carries share what became of it."""
    row = tx.one(_OUTCOME, delivery=carrier)
    assert row is not None
    state, code, answer, host, finished_at, repeated = row
    tx.run(
        _MIRROR,
        message=message_id,
        carrier=carrier,
        state=state,
        code=code,
        answer=answer,
        host=host,
        finished_at=finished_at,
        possibly_repeated=repeated,
    )


def settle_message(tx: Tx, message_id: int) -> None:
    """A message's state is its worst delivery's."""
    states = {row[0] for row in tx.all(_STATES, message=message_id)}
    worst = next((state.value for state in WORST_FIRST if state.value in states), None)
    if worst is not None:
        tx.run(_MESSAGE_STATE, message=message_id, state=worst)


def message_of(tx: Tx, delivery_id: int) -> int:
    row = tx.one(_MESSAGE_OF, delivery=delivery_id)
    assert row is not None
    return int(row[0])
