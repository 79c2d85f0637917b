"""The settings of the SMTP server, how much one client may ask of it, and the count of who is in."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Literal

from relay.core import reply
from relay.core.reply import Reply
from relay.tls import TlsFiles

#: IPv6 clients are counted by this prefix: one host usually has the whole /64 to choose its address from.
IPV6_PREFIX = 64

Network = IPv4Network | IPv6Network
BareLf = Literal["normalise", "refuse"]


@dataclass(frozen=True, slots=True)
class Limits:
    """Counts, and times in seconds. Clients in ``exempt`` are spared the counts, but not ``recipients``.

    ``recipients``: of one message (452 for the next). ``connections``: open at once, in all and from one address
    (421). ``commands`` and ``errors`` (5xx replies): of one session. ``idle_commands``: NOOP, RSET, HELP and VRFY
    between two messages. ``command_timeout``: for a whole command line, and for a client to read our replies
    (RFC 5321 §4.5.3.2.7 says 300). ``data_timeout``: between two pieces of a message. ``data_rate``: octets a second
    that a message must make on average once ``data_grace`` seconds have passed.
    """

    recipients: int = 100
    connections: int = 1000
    connections_per_address: int = 50
    commands: int = 1000
    errors: int = 20
    idle_commands: int = 20
    command_timeout: float = 300.0
    data_timeout: float = 180.0
    data_grace: float = 60.0
    data_rate: int = 256
    exempt: tuple[Network, ...] = (ip_network("127.0.0.0/8"), ip_network("::1/128"))


@dataclass(frozen=True, slots=True)
class Settings:
    """``max_message_size``: octets of the wire form. ``bare_lf``: what becomes of a bare LF inside a message."""

    hostname: str
    max_message_size: int = 50 * 1024 * 1024
    bare_lf: BareLf = "normalise"
    tls: TlsFiles | None = None
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, slots=True)
class Ticket:
    """What the turnstile says of a new connection: the reply that refuses it or None, and whether it is exempt."""

    key: str
    exempt: bool
    refusal: Reply | None


class Turnstile:
    """Counts connections. Exempt ones are let in however full it is, and count for the total."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._inside: Counter[str] = Counter()
        self._total = 0
        self._who = lru_cache(maxsize=4096)(self._classify)

    def enter(self, ip: str) -> Ticket:
        """Admit or refuse; only who is admitted is counted, and must leave()."""
        key, exempt = self._who(ip)
        if not exempt:
            if self._total >= self._limits.connections:
                return Ticket(key, exempt, reply.TOO_MANY_CONNECTIONS)
            if self._inside[key] >= self._limits.connections_per_address:
                return Ticket(key, exempt, reply.TOO_MANY_FROM_ADDRESS)
        self._inside[key] += 1
        self._total += 1
        return Ticket(key, exempt, None)

    def leave(self, ticket: Ticket) -> None:
        if ticket.refusal is not None:
            return
        self._total -= 1
        self._inside[ticket.key] -= 1
        if not self._inside[ticket.key]:
            del self._inside[ticket.key]

    def _classify(self, ip: str) -> tuple[str, bool]:
        try:
            address = ip_address(ip)
        except ValueError:  # "": the client was gone before we could ask
            return ip, False
        exempt = any(address in network for network in self._limits.exempt)
        if address.version == 6:
            return str(ip_network(f"{ip.partition('%')[0]}/{IPV6_PREFIX}", strict=False)), exempt
        return ip, exempt
