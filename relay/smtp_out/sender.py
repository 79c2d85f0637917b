"""Destinations: how many connections each may have, which are kept, and which hosts and addresses are tried in turn."""

from __future__ import annotations

import asyncio
import ssl
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from relay.core.model import Outcome, OutcomeKind
from relay.core.nexthop import NextHop
from relay.core.outcome import Stage, classify
from relay.dns import DnsError, Resolver
from relay.smtp_out.connection import QUIT_TIME, Connection
from relay.smtp_out.handshake import Handshake, NoSession, Target, unverified
from relay.smtp_out.replies import printable
from relay.smtp_out.session import Content, OnFinalDot, Session, Timeouts, Verdict
from relay.smtp_out.slots import Slots

#: Addresses tried in one attempt (RFC 5321 §5.1: at least two).
MAX_ADDRESSES = 8
#: Of these at one host, while there is another behind it.
MAX_OF_HOST = 4
#: Seconds after which a session is not kept again, so that changes in DNS and of preference are seen under load too.
MAX_AGE = 300.0

_STAGES = list(Stage)
_NO_SESSION = frozenset((Stage.DNS, Stage.CONNECT, Stage.GREETING, Stage.EHLO, Stage.TLS, Stage.AUTH))


class _Mail(NamedTuple):
    mail_from: str
    recipient: str
    content: Content
    on_final_dot: OnFinalDot | None


class _Destination:
    """One next hop, or the hosts of one domain. ``idle``: its kept sessions, the one used last at the end.

    ``open``: every connection that became a session, until it is closed, with the label of its target.
    """

    def __init__(
        self, next_hop: NextHop | None, domain: str, connections: int, on_all: Callable[[_Destination], None]
    ) -> None:
        self.next_hop = next_hop
        self.domain = domain
        self.slots = Slots(connections, partial(on_all, self))
        self.users = 0
        self.idle: list[Session] = []
        self.open: dict[Connection, str] = {}

    @property
    def key(self) -> NextHop | str:
        return self.next_hop or self.domain


class Sender:
    """Sends mail to next hops and to the MX of domains.

    ``hostname``: ours, for EHLO and to recognise ourselves among MX hosts. ``mx_port``: where MX hosts listen.
    ``per_destination``: connections to one next hop or domain at a time; who comes later waits in turn. Where it
    refuses one (4xx) while others are open, no more than these are tried for some minutes, and the mail waits for them.
    ``idle_timeout``: seconds a connection is kept unused; ``max_kept``: unused connections kept in all.
    ``verified`` and ``opportunistic``: TLS contexts; by default the system's authorities, and no verification.
    """

    def __init__(
        self,
        hostname: str,
        resolver: Resolver,
        *,
        mx_port: int = 25,
        per_destination: int = 20,
        idle_timeout: float = 20.0,
        max_kept: int = 100,
        timeouts: Timeouts | None = None,
        verified: ssl.SSLContext | None = None,
        opportunistic: ssl.SSLContext | None = None,
    ) -> None:
        self._hostname = hostname.lower()
        self._resolver = resolver
        self._mx_port = mx_port
        self._per_destination = per_destination
        self._idle_timeout = idle_timeout
        self._max_kept = max_kept
        self._handshake = Handshake(
            hostname, timeouts or Timeouts(), verified or ssl.create_default_context(), opportunistic or unverified()
        )
        self._destinations: dict[NextHop | str, _Destination] = {}
        self._kept: OrderedDict[Session, _Destination] = OrderedDict()  # the one unused for longest first
        self._reaper: asyncio.TimerHandle | None = None
        self._closing = False

    async def send(
        self,
        next_hop: NextHop | None,
        domain: str,
        mail_from: str,
        recipient: str,
        content: Content,
        on_final_dot: OnFinalDot | None = None,
    ) -> Outcome:
        """One attempt to hand one message to one recipient; raises nothing but CancelledError.

        ``next_hop`` None: the MX of ``domain`` (A-labels, or an address literal). ``mail_from`` (empty: the null
        reverse-path) and ``recipient`` are as they stand between the angle brackets. ``on_final_dot`` is
        called just before the dot that ends the message may leave.

        Hosts and addresses are tried in turn until one has answered RCPT otherwise than with 421; its answer stands. A
        kept session that no longer takes mail is replaced, once, by a new one.
        """
        destination = self._destination(next_hop, domain)
        destination.users += 1
        try:
            return await self._in_turn(destination, _Mail(mail_from, recipient, content, on_final_dot))
        except Exception as error:
            text = printable(f"{type(error).__name__}: {error}".encode(errors="replace")[:300])
            return Outcome(OutcomeKind.TEMPORARY, None, text, next_hop.host if next_hop else domain, reached=None)
        finally:
            destination.users -= 1
            self._drop_if_unused(destination)

    async def close(self) -> None:
        """Say QUIT on kept connections; transactions that still run have the same two seconds, then all is cut."""
        self._closing = True
        if self._reaper is not None:
            self._reaper.cancel()
        for session in list(self._kept):
            self._forget(session)
            session.connection.quit()
        connections = self._handshake.connections
        if connections:
            await asyncio.wait([connection.closed for connection in connections], timeout=QUIT_TIME)
        for connection in list(connections):
            connection.abort()
        if connections:
            await asyncio.wait([connection.closed for connection in connections], timeout=QUIT_TIME)

    def stats(self) -> dict[str, int]:
        """``open``: connections, ``idle``: those of them that are kept unused."""
        return {"open": len(self._handshake.connections), "idle": len(self._kept)}

    # turns

    async def _in_turn(self, destination: _Destination, mail: _Mail) -> Outcome:
        """One connection too many is no failure: the mail waits for one of the sessions that work.

        Where these are of other destinations at the same server, those that nobody uses give way.
        """
        slots = destination.slots
        refused: Outcome | None = None
        has_waited = False
        while await slots.take(was_refused=refused is not None):
            try:
                outcome = await self._attempt(destination, mail)
                if outcome.reached is not False:
                    return outcome
                others = slots.taken - 1 + len(destination.idle)
                is_limit = outcome.code is not None and outcome.code // 100 == 4
                if outcome.code == 421 and self._is_shared(destination, outcome.host):
                    outcome = replace(outcome, reached=None)  # the server is well, and has enough of us
                if others and is_limit:
                    slots.lower(others)
                elif is_limit and not has_waited and (leaving := self._make_room(destination, outcome)):
                    has_waited = True  # it may still count one that is saying QUIT
                    await asyncio.wait(leaving, timeout=2 * QUIT_TIME, return_when=asyncio.FIRST_COMPLETED)
                else:
                    if not others:
                        slots.fail_refused()
                    return outcome
                refused = outcome
            finally:
                slots.give()
        assert refused is not None
        return refused

    def _is_shared(self, destination: _Destination, label: str) -> bool:
        """Whether other destinations have sessions with the server of this label."""
        others = (other for other in self._destinations.values() if other is not destination)
        return any(_server(label) in map(_server, other.open.values()) for other in others)

    def _make_room(self, destination: _Destination, refused: Outcome) -> list[asyncio.Future[None]]:
        """When each session is closed that the server may still count: those of this destination, of which nobody uses
        one, and where it says that it takes no more of us, those that others keep there, which are retired.

        With any other code it may be this login alone that it does not like.
        """
        leaving = [connection.closed for connection in destination.open]
        if refused.code != 421:
            return leaving
        for session in [session for session in self._kept if _server(session.host) == _server(refused.host)]:
            leaving.append(session.connection.closed)
            self._retire(session)
        return leaving

    async def _attempt(self, destination: _Destination, mail: _Mail) -> Outcome:
        session = self._take(destination)
        if session is not None:
            verdict = await self._transact(destination, session, mail)
            if not verdict.is_unanswered or (verdict.is_lasting and destination.next_hop is not None):
                return _outcome(verdict, session.host)
        return await self._try_hosts(destination, mail)

    # hosts and addresses

    async def _try_hosts(self, destination: _Destination, mail: _Mail) -> Outcome:
        """Each address of each host in turn. When none answers, the failure that came furthest is the outcome."""
        failures: list[tuple[Verdict, str]] = []
        try:
            hosts = await self._hosts(destination)
        except DnsError as error:
            return _outcome(Verdict(Stage.DNS, None, str(error)), destination.domain)
        tries = 0
        for host in hosts:
            if tries == MAX_ADDRESSES:
                break
            try:
                addresses = await self._resolver.addresses(host) or _no_address(host)
            except DnsError as error:
                failures.append((Verdict(Stage.DNS, None, str(error)), host))
                continue
            most = MAX_ADDRESSES - tries
            for address in _some(addresses, most if host == hosts[-1] else min(MAX_OF_HOST, most)):
                tries += 1
                target = self._target(destination.next_hop, host, address)
                verdict = await self._try_address(destination, target, mail)
                if not verdict.is_unanswered:
                    return _outcome(verdict, target.label)
                failures.append((verdict, target.label))
        return _told(failures)

    async def _hosts(self, destination: _Destination) -> list[str]:
        """:raises DnsError: there is no host to try, with the reason."""
        if destination.next_hop is not None:
            return [destination.next_hop.host]
        return (await mx_hosts(self._resolver, destination.domain, self._hostname))[:MAX_ADDRESSES]

    def _target(self, next_hop: NextHop | None, host: str, address: str) -> Target:
        if next_hop is None:
            name = address if host.startswith("[") else host
            return Target(name, address, self._mx_port, "opportunistic")
        return Target(host, address, next_hop.port, next_hop.tls, next_hop.user, next_hop.password)

    async def _try_address(self, destination: _Destination, target: Target, mail: _Mail) -> Verdict:
        try:
            session = await self._handshake.open(target)
        except NoSession as error:
            return Verdict(error.stage, error.code, error.text)
        connection = session.connection
        connection.on_idle_event = partial(self._on_idle_event, session)
        destination.open[connection] = target.label
        connection.closed.add_done_callback(lambda _: self._closed(destination, connection))
        return await self._transact(destination, session, mail)

    async def _transact(self, destination: _Destination, session: Session, mail: _Mail) -> Verdict:
        verdict = await session.transact(*mail)
        if not session.is_usable:
            session.discard()
        elif verdict.is_unanswered or session.left <= 0:
            session.connection.quit()  # it has had enough of this session, or may have: "too many messages"
        else:
            self._keep(destination, session)
        return verdict

    # kept sessions

    def _destination(self, next_hop: NextHop | None, domain: str) -> _Destination:
        key = next_hop or domain
        destination = self._destinations.get(key)
        if destination is None:
            destination = self._destinations[key] = _Destination(
                next_hop, domain, self._per_destination, self._drop_if_unused
            )
        return destination

    def _drop_if_unused(self, destination: _Destination) -> None:
        if not destination.users and not destination.open and not destination.slots.are_fewer:
            self._destinations.pop(destination.key, None)

    def _closed(self, destination: _Destination, connection: Connection) -> None:
        del destination.open[connection]
        self._drop_if_unused(destination)

    def _keep(self, destination: _Destination, session: Session) -> None:
        now = asyncio.get_running_loop().time()
        if self._closing or now - session.opened > MAX_AGE:
            session.connection.quit()
            return
        session.kept_since = now
        session.connection.is_idle = True
        destination.idle.append(session)
        self._kept[session] = destination
        if len(self._kept) > self._max_kept:
            self._retire(next(iter(self._kept)))
        if self._reaper is None:
            self._reap()

    def _take(self, destination: _Destination) -> Session | None:
        if not destination.idle:
            return None
        session = destination.idle.pop()
        del self._kept[session]
        session.connection.is_idle = False
        return session

    def _forget(self, session: Session) -> None:
        """The session is kept no longer."""
        session.connection.is_idle = False
        self._kept.pop(session).idle.remove(session)

    def _retire(self, session: Session) -> None:
        self._forget(session)
        session.connection.quit()

    def _on_idle_event(self, session: Session) -> None:
        """The next hop closed a kept connection or said something (421 before closing, mostly): it is of no use."""
        self._forget(session)
        session.discard()

    def _reap(self) -> None:
        """Retire what was kept for long enough, and come again when the next one is due."""
        loop = asyncio.get_running_loop()
        self._reaper = None
        while self._kept:
            oldest = next(iter(self._kept))
            due = oldest.kept_since + self._idle_timeout
            if due > loop.time():
                self._reaper = loop.call_at(due, self._reap)
                return
            self._retire(oldest)


async def mx_hosts(resolver: Resolver, domain: str, hostname: str) -> list[str]:
    """The hosts that ``hostname``, which is ours, may try for mail to ``domain``, in this order.

    :raises DnsError: there is none, with the reason.
    """
    answer = await resolver.mx(domain)
    if answer.null:
        raise DnsError(f"{domain} takes no mail (null MX, RFC 7505)")
    # RFC 5321 §5.1: where we are an MX ourselves, only hosts that are preferred to us may be tried.
    ours = min((preference for preference, host in answer.records if host == hostname), default=None)
    hosts = [host for preference, host in answer.records if ours is None or preference < ours]
    if not hosts:
        raise DnsError(f"the MX of {domain} is this host itself: its mail needs a next hop")
    return hosts


def _server(label: str) -> str:
    """Address and port of a target's label: a server counts a client's connections by whatever name they come."""
    return label.partition("[")[2]


def _some(addresses: list[str], most: int) -> list[str]:
    """The first of them, and the last one, for it is of the other family where there is one (relay/dns.py)."""
    few = len(addresses) <= most or most < 2
    return addresses[:most] if few else [*addresses[: most - 1], addresses[-1]]


def _no_address(host: str) -> list[str]:
    raise DnsError(f"{host} has no address")


def _told(failures: list[tuple[Verdict, str]]) -> Outcome:
    """Of those that may end otherwise the failure that came furthest. Reached is who had a session with any host."""

    def weight(failure: tuple[Verdict, str]) -> tuple[bool, int]:
        return not failure[0].is_lasting, _STAGES.index(failure[0].stage)

    reached = any(verdict.stage not in _NO_SESSION for verdict, _ in failures)
    return replace(_outcome(*max(failures, key=weight)), reached=reached)


def _outcome(verdict: Verdict, host: str) -> Outcome:
    """ "RCPT: 550 5.1.1 no such user", or "connect: Connection refused" where there was no reply."""
    code = "" if verdict.code is None else f"{verdict.code} "
    text = f"{verdict.stage.value}: {code}{verdict.text}".rstrip()
    reached = verdict.stage not in _NO_SESSION
    kind = classify(verdict.stage, verdict.code, verdict.is_lasting)
    return Outcome(kind, verdict.code, text, host, reached)
