"""Accepting a message: everything that 250 promises is written in one transaction."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from sqlalchemy import bindparam, or_, select
from sqlalchemy import insert as insert_into

from relay.core import attribution as rules
from relay.core.model import Attribution, DeliveryState
from relay.store.attribution import FIND_VISIT, attribute_all, columns_of
from relay.store.attribution import Evidence as Evidence
from relay.store.engine import Statement, Tx
from relay.store.incoming import Incoming as Incoming
from relay.store.incoming import Recipient as Recipient
from relay.store.post import CLAIM
from relay.store.schema import bodies, deliveries, events, messages, paths

#: Seconds within which the same bytes from the same sender to the same recipient are one mail resent, unless what came
#: of the first was given up: it failed or was dropped. A queue that missed our 250 may be hours in coming again.
RESEND_WINDOW = 24 * 3600.0
#: The same where neither Date nor Message-ID tells one mail from the next: two customers may have filled in one form
#: alike. What sends those has no queue and tries again at once, or a queue that adds nothing, and those come again
#: within five to ten minutes (Postfix: minimal_backoff_time, 300 s, and the next run of the queue).
RESEND_WINDOW_UNIDENTIFIED = 600.0
#: When a delivery that another one carries comes due: never.
NEVER = 1e15
#: State of a message without deliveries: a return to one of our own envelope addresses.
COLLECTED = "collected"


@dataclass(frozen=True, slots=True)
class Job:
    """One delivery to be attempted, with all that the attempt needs. ``data`` is None when the body is in a file.

    ``due_at``: since when it is, which is no longer so in the store once somebody has asked for a retry.
    ``visit`` is the number of the visit that is stated, never one that the sender claims; ``source`` its marker, or the
    label. ``joined``: another site's delivery may share its outcome.
    """

    delivery_id: int
    message_id: int
    claim: str
    attempts: int
    recipient: str
    forward_to: str
    next_hop: str | None
    destination: str
    mail_from: str
    received_at: float
    due_at: float
    expires_at: float
    stored_size: int
    data: bytes | None
    file: str | None
    cut: tuple[tuple[int, int], ...]
    ip: str
    helo: str
    tls: str | None
    esmtp: bool
    visit: str | None
    source: str | None
    joined: bool


@dataclass(frozen=True, slots=True)
class Accepted:
    """``jobs`` are to be attempted; empty for a resend, whose ``message_id`` is the first message's."""

    message_id: int
    jobs: tuple[Job, ...]
    repeated: bool


INSERT_MESSAGE = Statement(
    insert_into(messages),
    "received_at written_at mail_from sender subject message_id in_reply_to references size stored_size body_file "
    "cut digest ip helo tls esmtp automatic bounce bare_lf state extraction",
)
INSERT_BODY = Statement(insert_into(bodies), "message_id data")
INSERT_DELIVERY = Statement(
    insert_into(deliveries),
    "message_id site_id target_id route_id recipient forward_to destination state attempts next_at "
    "expires_at claim claimed_until joined_id attribution attribution_method visit_id claimed_number candidates "
    "label",
)
INSERT_PATH = Statement(insert_into(paths), "message_id delivery_id recipient kind received_at ip")
INSERT_EVENT = Statement(insert_into(events), "uid message_id site_id delivery_id type state reason created_at data")
FIND_RESENT = Statement(
    select(messages.c.id, paths.c.recipient, paths.c.delivery_id)
    .join(paths, paths.c.message_id == messages.c.id)
    .outerjoin(deliveries, deliveries.c.id == paths.c.delivery_id)  # what was collected has none
    .where(
        messages.c.digest == bindparam("digest"),
        messages.c.mail_from == bindparam("mail_from"),
        messages.c.received_at > bindparam("after"),
        or_(
            deliveries.c.state.is_(None),
            deliveries.c.state.not_in((DeliveryState.FAILED.value, DeliveryState.DROPPED.value)),
        ),
    )
    .order_by(messages.c.id)
)


def accept(
    tx: Tx,
    incoming: Incoming,
    recipients: Sequence[Recipient],
    *,
    claim: str | None,
    expires_at: float,
    evidence: Evidence,
    looped: bool = False,
) -> Accepted:
    """Write message, body, deliveries, paths and waiting events.

    ``claim`` names the worker that gets the jobs in memory; None leaves the deliveries to whoever polls. ``looped``:
    our own copy came back, which is kept and shown but neither forwarded nor posted.
    """
    resent = _resent(tx, incoming)
    fresh = [recipient for recipient in recipients if recipient.address not in resent]
    for recipient in recipients:
        if recipient.address in resent:
            message_id, delivery_id = resent[recipient.address]
            _path(tx, message_id, delivery_id, recipient.address, "repeat", incoming)
    if not fresh:
        return Accepted(resent[recipients[0].address][0], (), True)
    delivered = [recipient for recipient in fresh if recipient.forward_to]
    state = DeliveryState.LOOPED.value if looped else DeliveryState.QUEUED.value
    found = attribute_all(tx, delivered, incoming, evidence)
    message_id = _message(tx, incoming, state if delivered else COLLECTED)
    for recipient in fresh:
        if not recipient.forward_to:
            _path(tx, message_id, None, recipient.address, "collected", incoming)
    shipment = _Shipment(tx, message_id, incoming, state, None if looped else claim, expires_at)
    chosen: dict[int, list[tuple[int, int]]] = {}  # by site: (recipient, delivery)
    for group in _by_mailbox(delivered):
        best = group[rules.best([found[i] for i in group])]
        delivery_id = shipment.add(delivered[best], found[best])
        for i in group:
            _path(tx, message_id, delivery_id, delivered[i].address, "loop" if looped else "first", incoming)
        if (route := delivered[best].route) is not None:
            chosen.setdefault(route.site_id, []).append((best, delivery_id))
    for site, options in chosen.items():
        options.sort()  # the first recipient wins a tie
        _, delivery_id = options[rules.best([found[i] for i, _ in options])]
        tx.insert(
            INSERT_EVENT,
            uid=f"evt_{message_id}_{site}_{incoming.digest[:8].hex()}",
            message_id=message_id,
            site_id=site,
            delivery_id=delivery_id,
            type="message.received",
            state="withheld" if looped else "waiting",
            reason="loop" if looped else None,
            created_at=incoming.received_at,
            data=None,
        )
    return Accepted(message_id, tuple(shipment.jobs), False)


def _resent(tx: Tx, incoming: Incoming) -> dict[str, tuple[int, int | None]]:
    """(message, delivery) by the recipients for whom this very mail was taken before and not given up since."""
    after = incoming.received_at - (RESEND_WINDOW if incoming.identified else RESEND_WINDOW_UNIDENTIFIED)
    rows = tx.all(FIND_RESENT, digest=incoming.digest, mail_from=incoming.mail_from, after=after)
    return {address: (message_id, delivery_id) for message_id, address, delivery_id in rows}


def _message(tx: Tx, incoming: Incoming, state: str) -> int:
    message_id = tx.insert(
        INSERT_MESSAGE,
        received_at=incoming.received_at,
        written_at=incoming.written_at,
        mail_from=incoming.mail_from,
        sender=incoming.sender,
        subject=incoming.subject,
        message_id=incoming.message_id,
        in_reply_to=incoming.in_reply_to,
        references=json.dumps(incoming.references) if incoming.references else None,
        size=incoming.size,
        stored_size=incoming.stored_size,
        body_file=incoming.file,
        cut=json.dumps(incoming.cut) if incoming.cut else None,
        digest=incoming.digest,
        ip=incoming.ip,
        helo=incoming.helo,
        tls=incoming.tls,
        esmtp=int(incoming.esmtp),
        automatic=incoming.automatic,
        bounce=int(incoming.bounce),
        bare_lf=incoming.bare_lf,
        state=state,
        extraction="waiting",
    )
    if incoming.data is not None:
        tx.insert(INSERT_BODY, message_id=message_id, data=incoming.data)
    return message_id


def _path(tx: Tx, message_id: int, delivery_id: int | None, address: str, kind: str, incoming: Incoming) -> None:
    tx.insert(
        INSERT_PATH,
        message_id=message_id,
        delivery_id=delivery_id,
        recipient=address,
        kind=kind,
        received_at=incoming.received_at,
        ip=incoming.ip,
    )


def _by_mailbox(recipients: Sequence[Recipient]) -> list[list[int]]:
    """Indexes of the recipients of each (real address, site), in order of arrival."""
    groups: dict[tuple[str, int | None], list[int]] = {}
    for i, recipient in enumerate(recipients):
        site = recipient.route.site_id if recipient.route else None
        groups.setdefault((recipient.forward_to, site), []).append(i)
    return list(groups.values())


@dataclass(slots=True)
class _Shipment:
    """The deliveries of one message as they are written; ``jobs`` are those that somebody has to attempt."""

    tx: Tx
    message_id: int
    incoming: Incoming
    state: str
    claim: str | None
    expires_at: float
    jobs: list[Job] = field(default_factory=list)
    carriers: dict[str, int] = field(default_factory=dict)

    def add(self, recipient: Recipient, attribution: Attribution) -> int:
        """Write one delivery; its id. The second site's to one real address is carried by the first's."""
        route, received_at = recipient.route, self.incoming.received_at
        carrier = self.carriers.get(recipient.forward_to)
        claim = self.claim if carrier is None else None
        state, method, visit, number, candidates, label = columns_of(attribution)
        delivery_id = self.tx.insert(
            INSERT_DELIVERY,
            message_id=self.message_id,
            site_id=route.site_id if route else None,
            target_id=route.target_id if route else None,
            route_id=route.id if route else None,
            recipient=recipient.address,
            forward_to=recipient.forward_to,
            destination=recipient.destination,
            state=self.state,
            attempts=1 if claim else 0,
            next_at=received_at if carrier is None else NEVER,
            expires_at=self.expires_at,
            claim=claim,
            claimed_until=received_at + CLAIM if claim else 0.0,
            joined_id=carrier,
            attribution=state,
            attribution_method=method,
            visit_id=visit,
            claimed_number=number,
            candidates=candidates,
            label=label,
        )
        if carrier is not None:
            self.jobs = [replace(job, joined=True) if job.delivery_id == carrier else job for job in self.jobs]
            return delivery_id
        self.carriers[recipient.forward_to] = delivery_id
        if claim is not None:
            self.jobs.append(self._job(delivery_id, claim, recipient, attribution))
        return delivery_id

    def _job(self, delivery_id: int, claim: str, recipient: Recipient, attribution: Attribution) -> Job:
        incoming = self.incoming
        row = self.tx.one(FIND_VISIT, visit=attribution.visit) if attribution.visit is not None else None
        visit, source = row or (None, attribution.label)
        return Job(
            delivery_id=delivery_id,
            message_id=self.message_id,
            claim=claim,
            attempts=1,
            recipient=recipient.address,
            forward_to=recipient.forward_to,
            next_hop=recipient.next_hop,
            destination=recipient.destination,
            mail_from=incoming.mail_from,
            received_at=incoming.received_at,
            due_at=incoming.received_at,
            expires_at=self.expires_at,
            stored_size=incoming.stored_size,
            data=incoming.data,
            file=incoming.file,
            cut=incoming.cut,
            ip=incoming.ip,
            helo=incoming.helo,
            tls=incoming.tls,
            esmtp=incoming.esmtp,
            visit=visit,
            source=source,
            joined=False,
        )
