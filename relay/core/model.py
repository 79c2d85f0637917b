"""The words of the product as values (PRODUCT.md, "Words").

Every time is a float: seconds since the Unix epoch, UTC. Every duration is in seconds. Sizes are in octets.
The core never reads a clock; whoever calls it says what time it is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum


class Method(StrEnum):
    """How a target's substitutes come to be."""

    POOL = "pool"
    PLUS = "plus"
    UNIQUE = "unique"


class IpDetail(StrEnum):
    """How much of a visitor's IP address is kept."""

    FULL = "full"
    NETWORK = "network"  # the first 24 bits of IPv4, 48 of IPv6; the rest is zero
    NONE = "none"


class RouteKind(StrEnum):
    """What sort of address a route's substitute is."""

    POOL = "pool"  # leased from a list
    UNIQUE = "unique"  # minted for one visit, never reused
    STATIC = "static"  # never leased; carries a label
    BASE = "base"  # a target's own local part at its substitute domain; plus tags hang on it


class AttributionState(StrEnum):
    EXACT = "exact"
    LIKELY = "likely"
    CLAIMED = "claimed"
    INFERRED = "inferred"
    NONE = "none"


class DeliveryState(StrEnum):
    """State of one message on its way to one real address. A message's own state is its worst delivery's."""

    QUEUED = "queued"
    DEFERRED = "deferred"
    FORWARDED = "forwarded"
    FAILED = "failed"  # held: the bytes are kept, a person decides
    QUARANTINED = "quarantined"
    DROPPED = "dropped"
    LOOPED = "looped"


#: Worst first: the first state that any delivery of a message has is the message's state.
WORST_FIRST = (
    DeliveryState.FAILED,
    DeliveryState.LOOPED,
    DeliveryState.QUARANTINED,
    DeliveryState.DEFERRED,
    DeliveryState.QUEUED,
    DeliveryState.DROPPED,
    DeliveryState.FORWARDED,
)


class OutcomeKind(StrEnum):
    DELIVERED = "delivered"  # 2xx to the final dot (or to this recipient)
    TEMPORARY = "temporary"  # try again later
    PERMANENT = "permanent"  # 5xx to RCPT or after DATA, and nothing else
    AMBIGUOUS = "ambiguous"  # the connection died after the final dot: it may have arrived


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one attempt at one recipient came to. Every branch of the sender ends in one of these.

    ``code`` is the SMTP reply code, or None where no reply was read. ``text`` is one line for the operator.
    ``host`` names the next hop that answered ("mail.example.com[192.0.2.1]:25"), or what was tried. ``reached`` is
    False when no session came about (DNS, connection, greeting, TLS, login): then every other message would fail too.
    It is None when that is not known, for what went wrong has nothing to do with the next hop.
    """

    kind: OutcomeKind
    code: int | None
    text: str
    host: str
    reached: bool | None = True


@dataclass(frozen=True, slots=True)
class Address:
    """A mailbox address. ``local`` as written (unquoted), ``domain`` as lower-case A-labels."""

    local: str
    domain: str

    @property
    def key(self) -> tuple[str, str]:
        """(domain, local part) for look-ups: ASCII letters of the local part folded."""
        return self.domain, fold(self.local)

    def __str__(self) -> str:
        return f"{quote_local(self.local)}@{self.domain}"


_UPPER = {code: code + 32 for code in range(ord("A"), ord("Z") + 1)}
_ATOM = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\x80-\U0010ffff-]++"
_dot_atom = re.compile(rf"{_ATOM}(?:\.{_ATOM})*+").fullmatch


def fold(local: str) -> str:
    """Lower-case the ASCII letters of a local part and leave everything else as it is."""
    return local.lower() if local.isascii() else local.translate(_UPPER)


def folded(address: str) -> str:
    """An address as senders are stored: ASCII letters of the local part folded, the domain in lower case.

    What has no local part stays as it is; white space around an address is none of it.
    """
    address = address.strip()
    local, _, domain = address.rpartition("@")
    return f"{fold(local)}@{domain.lower()}" if local else address


def quote_local(local: str) -> str:
    """The local part as it stands on the wire: a dot-atom where it can be, else a quoted string (RFC 5321 §4.1.2)."""
    if _dot_atom(local):
        return local
    return '"' + local.replace("\\", "\\\\").replace('"', '\\"') + '"'


@dataclass(frozen=True, slots=True)
class Holding:
    """One binding of a pool address: ``visit`` (row id) held it from ``start`` until ``end`` (lease end)."""

    visit: int
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Candidate:
    visit: int
    probability: float


@dataclass(frozen=True, slots=True)
class Attribution:
    """Whose visit a delivery came from, frozen when the message is accepted.

    ``visit`` is the row id of the visit that is stated (exact, inferred), or None; ``number`` is set for a
    claimed visit only: the digits of a plus tag that no known visit has. ``label`` is a static substitute's, which
    stands for a marker. ``method`` names the rule and its version.
    """

    state: AttributionState
    method: str
    visit: int | None = None
    number: str | None = None
    candidates: tuple[Candidate, ...] = ()
    label: str | None = None
