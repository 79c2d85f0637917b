"""The settings of the SMTP server, how much one client may ask of it, and the count of who is in."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Literal

from relay.core import reply
from relay.core.reply import Reply
from relay.tls import TlsFiles

#: IPv6 clients are counted by this prefix: one host usually has the whole /64 to choose its address from.
IPV6_PREFIX = 64
#: Seconds after RCPT at which an unknown recipient is refused, whatever it took to find that out: longer than any
#: look-up takes as a rule, so that the time says nothing about what was found, and no sender's undoing.
UNKNOWN_TIME = 0.1
#: Seconds by which it is later than that, by chance: a timer rings up to a millisecond late, and how late hangs on how
#: long the look-up took.
SPREAD = 0.05
#: Seconds for which a client that has brought a message gives way to nobody, and one that has just come and is the only
#: one of its address, or whose message has just begun: an ordinary session is over by then.
KEPT = 60.0
SETTLED = 2.0
#: The address with most connections must have more by such a part of those of who knocks, rounded down. Addresses that
#: have about as many and come again and again would else drive each other out without end, and each session costs time.
MORE = 8

Network = IPv4Network | IPv6Network
BareLf = Literal["normalise", "refuse"]


@dataclass(frozen=True, slots=True)
class Limits:
    """Counts, and times in seconds. Clients in ``exempt`` are spared the counts, but not ``recipients``.

    ``recipients``: of one message (452 for the next). ``connections``: open at once, in all and from one address
    (421). ``commands`` and ``errors`` (5xx replies): of one session. ``idle_commands``: NOOP, RSET, HELP, VRFY and
    repeated EHLO and HELO between two messages. ``unknown_recipients``: of one session that are refused at once, as it
    seems; each further one is refused later than the one before, by ``tarpit`` seconds at most. ``command_timeout``:
    for a whole command line, and for a client to read our replies (RFC 5321 §4.5.3.2.7 says 300). ``data_timeout``:
    between two pieces of a message. ``data_rate``: octets a second that a message must make on average once it
    has been waited for ``data_grace`` seconds.
    """

    recipients: int = 100
    connections: int = 1000
    connections_per_address: int = 50
    commands: int = 1000
    errors: int = 20
    idle_commands: int = 20
    unknown_recipients: int = 5
    tarpit: float = 30.0
    command_timeout: float = 300.0
    data_timeout: float = 180.0
    data_grace: float = 60.0
    data_rate: int = 256
    exempt: tuple[Network, ...] = (ip_network("127.0.0.0/8"), ip_network("::1/128"))


@dataclass(frozen=True, slots=True)
class Settings:
    """``max_message_size``: octets, without doubled dots. ``bare_lf``: what becomes of a bare LF inside a message."""

    hostname: str
    max_message_size: int = 50 * 1024 * 1024
    bare_lf: BareLf = "normalise"
    tls: TlsFiles | None = None
    limits: Limits = field(default_factory=Limits)


def unknown_delay(count: int, limits: Limits) -> float:
    """Seconds after RCPT at which the ``count``-th unknown recipient of a session is refused: 1, 2, 4, … in the tarpit.

    That holds up the one session, and only as long as its client can bear: RFC 5321 §4.5.3.2.3 lets it wait 300.
    """
    late = count - limits.unknown_recipients
    return max(UNKNOWN_TIME, min(limits.tarpit, 2.0 ** min(late - 1, 30))) if late > 0 else UNKNOWN_TIME


@dataclass(frozen=True, slots=True, eq=False)
class Ticket:
    """What the turnstile says of a new connection: the reply that refuses it or None, and whether it is exempt.

    ``since``: seconds of the turnstile's clock. ``give_way`` ends its session. ``busy`` says whether that would cost a
    message which comes in as fast as is demanded.
    """

    key: str
    exempt: bool
    refusal: Reply | None
    since: float
    give_way: Callable[[], None]
    busy: Callable[[], bool]


def _since(ticket: Ticket) -> float:
    return ticket.since


def _never() -> bool:
    return False


class Turnstile:
    """Counts connections. Exempt ones are let in however full it is, and count for the total.

    When it is full somebody has to give way, or whoever opens connections and does nothing would shut everybody out.
    It is the longest inside of the address that has most here, if that has more than the address of who knocks (MORE).
    Who has brought a message gives way to nobody for a while, who is alone has a moment, and the exempt never do.

    Of those whose turn it would be, who is in the middle of a message that keeps up with ``data_rate`` goes last, or a
    first large message over a slow line would never arrive while it is full. But he goes:

    - Addresses are compared first, messages only among those that have most here. So an address has one message spared
      for it, whatever it opens, and twenty addresses with fifty messages each outlive nobody.
    - Where nobody else is left the oldest message gives way. So there is always room for somebody new.
    - The rate is demanded without the grace (relay/smtp_data.py, keeps_up): but for its first moment, every second of
      a message that is to be spared costs ``data_rate`` octets. A drop now and then spares nobody, and ends after the
      grace.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._inside: set[Ticket] = set()
        self._by_key: Counter[str] = Counter()
        self._strangers: dict[str, dict[Ticket, None]] = {}  # by address, the longest inside first
        self._known: dict[Ticket, float] = {}  # when they brought their last message, the longest ago first
        self.configure(limits)

    def configure(self, limits: Limits) -> None:
        """Admit by these limits from now on; who is in stays."""
        self._limits = limits
        self._who = lru_cache(maxsize=4096)(self._classify)

    def enter(self, ip: str, give_way: Callable[[], None], busy: Callable[[], bool] = _never) -> Ticket:
        """Admit or refuse; only who is admitted is counted, and must leave()."""
        key, exempt = self._who(ip)
        now = self._clock()
        if not exempt:
            if self._by_key[key] >= self._limits.connections_per_address:
                return Ticket(key, exempt, reply.TOO_MANY_FROM_ADDRESS, now, give_way, busy)
            if len(self._inside) >= self._limits.connections and not self._make_room(key, now):
                return Ticket(key, exempt, reply.TOO_MANY_CONNECTIONS, now, give_way, busy)
        ticket = Ticket(key, exempt, None, now, give_way, busy)
        self._inside.add(ticket)
        self._by_key[key] += 1
        if not exempt:
            self._strangers.setdefault(key, {})[ticket] = None
        return ticket

    def trust(self, ticket: Ticket) -> None:
        """A message was brought."""
        if ticket in self._inside and not ticket.exempt:
            self._forget(ticket)
            self._known[ticket] = self._clock()

    def leave(self, ticket: Ticket) -> None:
        """Somebody goes; who was refused, or gave way, has gone already."""
        if ticket not in self._inside:
            return
        self._inside.remove(ticket)
        self._forget(ticket)
        self._by_key[ticket.key] -= 1
        if not self._by_key[ticket.key]:
            del self._by_key[ticket.key]

    def _make_room(self, key: str, now: float) -> bool:
        """End the session of somebody who has less of a claim than one more of ``key``; False if there is nobody."""
        while self._known and (first := next(iter(self._known.items())))[1] <= now - KEPT:
            self._forget(first[0])
            crowd = (*self._strangers.get(first[0].key, ()), first[0])
            self._strangers[first[0].key] = dict.fromkeys(sorted(crowd, key=_since))
        crowds = self._strangers.values()
        most = max(map(len, crowds), default=0)
        own = len(self._strangers.get(key, ()))
        if most <= own + own // MORE:
            return False
        ticket = self._whose_turn(most, now - SETTLED if most == 1 else now)
        if ticket is None:
            return False
        self.leave(ticket)
        ticket.give_way()
        return True

    def _whose_turn(self, most: int, latest: float) -> Ticket | None:
        """Of the addresses with ``most`` strangers, the longest inside of the idle ones, or else of the busy ones.

        Who has come after ``latest`` is left out. Few are asked whether they are busy: this is done at every connection
        of a flood.
        """
        idle = busy = None
        for crowd in self._strangers.values():
            if len(crowd) != most:
                continue
            for ticket in crowd:
                if ticket.since > latest or (idle is not None and ticket.since >= idle.since):
                    break
                if not ticket.busy():
                    idle = ticket
                    break
                if busy is None or ticket.since < busy.since:
                    busy = ticket
        return idle or busy

    def _forget(self, ticket: Ticket) -> None:
        self._known.pop(ticket, None)
        crowd = self._strangers.get(ticket.key, {})
        crowd.pop(ticket, None)
        if not crowd:
            self._strangers.pop(ticket.key, None)

    def _classify(self, ip: str) -> tuple[str, bool]:
        try:
            address = ip_address(ip)
        except ValueError:  # "": the client was gone before we could ask
            return ip, False
        exempt = any(address in network for network in self._limits.exempt)
        if address.version == 6:
            return str(ip_network(f"{ip.partition('%')[0]}/{IPV6_PREFIX}", strict=False)), exempt
        return ip, exempt
