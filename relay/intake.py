"""From a whole SMTP transaction to 250: whose mail is it, may it pass, whose visit was it, and all of it on disk."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import structlog

from relay.bodies import Bodies, Body
from relay.core import message, reply, substitute
from relay.core.address import lookup_keys
from relay.core.attribution import Delays, written_at
from relay.core.model import Address, fold, folded
from relay.destination import NextHops
from relay.envelope import Return, read_return
from relay.pace import Pace
from relay.secrets import Keys, SealError
from relay.smtp_transaction import Recipient as Addressee
from relay.smtp_transaction import Refused, Transaction
from relay.space import Space
from relay.store import messages
from relay.store.engine import CommitUnknown, StoreUnavailable, Turn
from relay.store.messages import Evidence, Incoming, Job, Recipient
from relay.store.routes import Route
from relay.store.store import Store

log = structlog.get_logger()

#: Local parts that reach the operator at every domain of ours (RFC 5321 §4.5.1, RFC 2142).
OPERATOR_NAMES = frozenset(("postmaster", "abuse"))
#: Page views are no longer written below so many times the space below which mail is put off: a visit is worth less.
VIEWS_FLOOR = 2
#: Characters of the raw subject that History shows until the message has been read.
SUBJECT_SHOWN = 500


@dataclass(frozen=True, slots=True)
class Policy:
    """The settings that decide about a message; durations in seconds, sizes in octets."""

    hostname: str
    operator: Address | None
    next_hop: str | None
    retry_for: float
    evidence: Evidence
    min_free: int
    received_limit: int = 50
    header_size: int = message.HEAD_LIMIT
    header_fields: int = message.FIELD_LIMIT


@dataclass(frozen=True, slots=True)
class ToOperator:
    """Postmaster and abuse: forwarded without attribution."""

    address: str


@dataclass(frozen=True, slots=True)
class ToTarget:
    route: Route
    tag: str | None


class Forwarding(Protocol):
    """What intake asks of the forwarder (relay/forward.py)."""

    def takes(self, destination: str, size: int) -> bool: ...
    def submit(self, jobs: tuple[Job, ...]) -> None: ...
    def wake(self) -> None: ...
    @property
    def claim(self) -> str: ...


class Reading(Protocol):
    """What intake asks of the extraction (relay/extraction.py)."""

    def submit(self, message_id: int, body: Body) -> None: ...


class Intake:
    """The handler behind every SMTP session (relay/smtp_transaction.py, Intake)."""

    def __init__(
        self,
        store: Store,
        keys: Keys,
        policy: Policy,
        forwarding: Forwarding,
        reading: Reading,
        bodies: Bodies,
        data_dir: Path,
        clock: Callable[[], float],
        pace: Pace | None = None,
    ) -> None:
        self._store = store
        self._pace = pace or Pace()
        self._keys = keys
        self._policy = policy
        self._forwarding = forwarding
        self._reading = reading
        self._bodies = bodies
        self.space = Space(data_dir, clock)
        self._clock = clock
        self._next_hops = NextHops(keys, policy.next_hop)
        self._evidence = policy.evidence

    def configure(self, policy: Policy) -> None:
        """Decide by this policy from now on. Its next hop is the one there was: connections and back-off hang on it."""
        self._policy = policy
        self._evidence = replace(policy.evidence, delays=self._evidence.delays)

    @property
    def evidence(self) -> Evidence:
        """What attribution goes by, with the delays that were learned so far."""
        return self._evidence

    def learn(self, delays: Delays) -> None:
        """From now on earlier holders of a pool address weigh by these delays."""
        self._evidence = replace(self._evidence, delays=delays)

    async def route(self, recipient: Addressee, mail_from: Address | None) -> object | None:
        """ToTarget, ToOperator or Return; None for an address that is not ours. Raises Refused (451)."""
        try:
            found = await self._route(recipient)
        except StoreUnavailable:
            raise Refused(reply.STORE_UNAVAILABLE) from None
        if found is None and self._store.damage.trouble is not None:  # what is damaged may miss a route that there is
            raise Refused(reply.STORE_UNAVAILABLE)
        if isinstance(found, Return) and mail_from is not None:  # reports alone go back, and they have no sender
            return None
        if found is not None:  # who guesses addresses holds nothing up
            self._pace.hurry(self._clock())
        return found

    async def _route(self, recipient: Addressee) -> object | None:
        operator = self._policy.operator
        if isinstance(recipient, str):
            return ToOperator(str(operator)) if operator else None
        found = await self._store.routes.find(lookup_keys(recipient))
        if found is not None:
            return ToTarget(*found)
        heard = substitute.normalise(recipient.local)
        if heard is not None and (found := await self._store.routes.find([(recipient.domain, heard, None)])):
            return ToTarget(*found)
        ours = recipient.domain == self._policy.hostname or recipient.domain in await self._store.routes.domains()
        if not ours:
            return None
        if operator and fold(recipient.local) in OPERATOR_NAMES:
            return ToOperator(str(operator))
        return read_return(recipient, self._keys.all("srs"), self._clock())

    def room(self, size: int) -> bool:
        """Whether the disk has room for ``size`` octets and the reserve besides."""
        self._pace.hurry(self._clock())
        return self.space.free() - size >= self._policy.min_free

    def room_for_views(self) -> bool:
        """Whether page views may be written: what room is left is for mail."""
        return self.space.free() >= VIEWS_FLOOR * self._policy.min_free

    async def accept(self, transaction: Transaction) -> str:
        """Write the message durably, hand it on in memory, answer our id; raises Refused."""
        self._pace.hurry(self._clock())
        policy = self._policy
        headers = message.scan(transaction.head, policy.hostname, policy.header_size, policy.header_fields)
        if not headers.complete:
            raise Refused(reply.HEADERS_TOO_BIG)
        if headers.received > policy.received_limit:
            raise Refused(reply.LOOP)
        now = self._clock()
        looped = any(message.is_own_token(token, self._keys.all("loop")) for token in headers.loop_tokens)
        incoming = _incoming(transaction, headers, now)
        recipients = [self._recipient(addressee, route) for addressee, route in transaction.recipients]
        forwarding = self._forwarding
        claim = None
        if not looped and all(forwarding.takes(r.destination, incoming.stored_size) for r in recipients):
            claim = forwarding.claim
        expires_at = now + policy.retry_for
        evidence = self._evidence
        try:
            accepted = await self._store.write(
                lambda tx: messages.accept(
                    tx, incoming, recipients, claim=claim, expires_at=expires_at, evidence=evidence, looped=looped
                ),
                turn=Turn.FIRST,
            )
        except StoreUnavailable as error:
            refusal = reply.INSUFFICIENT_STORAGE if error.no_room else reply.STORE_UNAVAILABLE
            raise Refused(refusal, body_stays=isinstance(error, CommitUnknown)) from None
        if claim is not None:
            forwarding.submit(accepted.jobs)
        else:
            forwarding.wake()
        if not accepted.repeated:
            self._reading.submit(accepted.message_id, transaction.body)
        elif transaction.body.file is not None:
            await asyncio.to_thread(self._bodies.remove, [transaction.body.file])
        self._log(transaction, accepted, looped)
        return str(accepted.message_id)

    def _recipient(self, addressee: Addressee, route: object) -> Recipient:
        address = addressee if isinstance(addressee, str) else str(addressee)
        if isinstance(route, ToTarget):
            target, next_hop = route.route, self._next_hop(route.route)
            destination = self._destination(next_hop, target.real_address)
            return Recipient(address, target, route.tag, target.real_address, next_hop, destination)
        if isinstance(route, ToOperator):
            return Recipient(address, None, None, route.address, None, self._next_hops.name(None, route.address))
        return Recipient(address, None, None, "", None, "")

    def _next_hop(self, route: Route) -> str | None:
        """The target's own, sealed, as it is now: since RCPT it may have got another, and what waits has gone there."""
        site = self._store.sites.by_id.get(route.site_id)
        targets = site.targets if site else ()
        return next((target.next_hop for target in targets if target.id == route.target_id), route.next_hop)

    def _destination(self, next_hop: str | None, real_address: str) -> str:
        try:
            return self._next_hops.name(next_hop, real_address)
        except (SealError, ValueError):
            # Mail is taken all the same. Its attempts say what is wrong, and once the target has another next hop it
            # goes there (relay/forward.py).
            return real_address.rpartition("@")[2]

    def _log(self, transaction: Transaction, accepted: messages.Accepted, looped: bool) -> None:
        if looped:
            log.error("message looped", id=accepted.message_id, hint="its real address forwards back to a substitute")
        log.info(
            "message",
            id=accepted.message_id,
            session=transaction.client.session,
            sender=str(transaction.mail_from or ""),
            recipients=len(transaction.recipients),
            deliveries=len(accepted.jobs),
            size=transaction.body.size,
            ip=transaction.client.ip,
            resent=accepted.repeated,
        )


def _incoming(transaction: Transaction, headers: message.Headers, now: float) -> Incoming:
    body = transaction.body
    mail_from = str(transaction.mail_from or "")
    return Incoming(
        received_at=now,
        written_at=written_at(headers.date, now),
        mail_from=mail_from,
        sender=folded(headers.from_ or mail_from),
        subject=headers.subject[:SUBJECT_SHOWN].decode("utf-8", "replace") or None,
        message_id=headers.message_id,
        in_reply_to=headers.in_reply_to,
        references=headers.references,
        size=body.size,
        stored_size=body.size,
        data=body.data,
        file=body.file,
        # An mbox "From " line has to stay the first: the forwarder puts our fields behind it.
        cut=((0, headers.mbox_line), *headers.cut) if headers.mbox_line else headers.cut,
        digest=body.digest,
        ip=transaction.client.ip,
        helo=transaction.client.helo,
        tls=transaction.client.tls,
        esmtp=transaction.client.esmtp,
        automatic=headers.auto,
        bounce=headers.bounce,
        bare_lf=transaction.bare_lf,
        identified=headers.date is not None or headers.message_id is not None,
    )
