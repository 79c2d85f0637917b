"""Links to attachments: /a/{token}/{name}, signed and expiring, so that a CRM needs no login to fetch one.

    token  = base64url(claim MAC)            without padding, 32 to 42 characters
    claim  = expires:u40 part:u16 message    (message: 1 to 8 octets; integers in network order)
    MAC    = first 128 bits of HMAC-SHA256(key, "attachment link" claim)

The name is not signed: it is for people, and what is served is named by the stored message.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Sequence

_CONTEXT = b"attachment link"
_MAC = 16
_HEAD = 7
_SHORTEST, _LONGEST = _HEAD + 1 + _MAC, _HEAD + 8 + _MAC


class LinkInvalid(ValueError):
    """Not a token of ours: mistyped, forged, or signed with a key that we no longer have."""


class LinkExpired(ValueError):
    """A token of ours, for ``part`` of ``message``, whose time was over at ``expires`` (epoch seconds)."""

    def __init__(self, message: int, part: int, expires: int) -> None:
        super().__init__("this link has expired")
        self.message = message
        self.part = part
        self.expires = expires


def make(key: bytes, message: int, part: int, expires: int) -> str:
    """A token for attachment ``part`` (its index) of ``message`` (its id), good until ``expires`` (epoch seconds).

    Raises ValueError for a negative or absurdly large number.
    """
    try:
        octets = message.to_bytes(max(1, (message.bit_length() + 7) // 8), "big")
        claim = expires.to_bytes(5, "big") + part.to_bytes(2, "big") + octets
    except OverflowError:
        raise ValueError("message, part or expires is out of range") from None
    if len(octets) > 8:
        raise ValueError("message is out of range")
    return base64.urlsafe_b64encode(claim + _mac(key, claim)).rstrip(b"=").decode("ascii")


def read(keys: Sequence[bytes], token: str, now: float) -> tuple[int, int]:
    """(message, part) of a token signed with any of ``keys``; raises LinkInvalid or LinkExpired.

    Takes the same time whatever is wrong with a signature.
    """
    octets = _decode(token)
    claim, mac = octets[:-_MAC], octets[-_MAC:]
    matches = [hmac.compare_digest(mac, _mac(key, claim)) for key in keys]
    if not any(matches):
        raise LinkInvalid("this link was not made here")
    message, part = int.from_bytes(claim[_HEAD:], "big"), int.from_bytes(claim[5:_HEAD], "big")
    expires = int.from_bytes(claim[:5], "big")
    if now >= expires:
        raise LinkExpired(message, part, expires)
    return message, part


def _mac(key: bytes, claim: bytes) -> bytes:
    return hmac.digest(key, _CONTEXT + claim, "sha256")[:_MAC]


def _decode(token: str) -> bytes:
    """The octets of a token, only from the one spelling that ``make`` gives them."""
    try:
        octets = base64.urlsafe_b64decode(token.encode("ascii") + b"=" * (-len(token) % 4))
    except (binascii.Error, ValueError):
        raise LinkInvalid("this link is damaged") from None
    if not _SHORTEST <= len(octets) <= _LONGEST or base64.urlsafe_b64encode(octets).rstrip(b"=") != token.encode():
        raise LinkInvalid("this link is damaged")
    return octets
