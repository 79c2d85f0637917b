"""Envelope addresses of our own: the return path of what we forward, and the way back (SRS, or an opaque token).

A return path is made in the domain of the substitute, whose MX we are. Both kinds carry a MAC, so that nobody can use
us to send mail to an address of their choice, and take only the null sender.
"""

from __future__ import annotations

import base64
import hmac
from collections.abc import Sequence
from dataclasses import dataclass

from relay.core import srs
from relay.core.address import AddressError, parse
from relay.core.model import Address, fold

_PREFIX = "vr0="
_MAC_OCTETS = 10
#: Seconds for which a message's return path is the same. Whoever is told it last may still return it for two weeks: it
#: is good for ``srs.MAX_AGE_DAYS`` from the first on.
SAME_FOR = 7 * 86_400.0


@dataclass(frozen=True, slots=True)
class Return:
    """A verified return path: ``original`` is the sender it stands for, or None where only ``message_id`` is known."""

    original: Address | None
    message_id: int | None


def stamped_at(received_at: float, now: float) -> float:
    """The ``now`` of :func:`return_path` for an attempt at a message that came then.

    Greylisting knows a retry by its envelope, so a message's must not change whenever a day begins.
    """
    return received_at + (now - received_at) // SAME_FOR * SAME_FOR


def return_path(mail_from: str, message_id: int, domain: str, key: bytes, now: float) -> str:
    """The reverse-path for the next hop: ASCII, in ``domain``; "" for the null sender (RFC 5321 §6.1)."""
    if not mail_from:
        return ""
    try:
        rewritten = srs.forward(parse(mail_from), domain, key, now)
    except AddressError:
        rewritten = None
    if rewritten is not None:
        return str(rewritten)
    return f"{_PREFIX}{message_id}={_mac(message_id, key)}@{domain}"


def read_return(address: Address, keys: Sequence[bytes], now: float) -> Return | None:
    """What a recipient stands for, or None when it is no return path of ours."""
    local = fold(address.local)
    if local.startswith(("srs0", "srs1")):
        try:
            return Return(srs.reverse(address, address.domain, keys, now), None)
        except srs.SrsError:
            return None
    if not local.startswith(_PREFIX):
        return None
    number, _, mac = local.removeprefix(_PREFIX).partition("=")
    if not (number.isascii() and number.isdigit() and len(number) <= 18):
        return None
    if any(hmac.compare_digest(mac.encode(), _mac(int(number), key).encode()) for key in keys):
        return Return(None, int(number))
    return None


def _mac(message_id: int, key: bytes) -> str:
    digest = hmac.digest(key, b"visit-relay return path\x00%d" % message_id, "sha256")
    return base64.b32encode(digest[:_MAC_OCTETS]).decode().lower()
