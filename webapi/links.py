"""Links to attachments: /a/{token}/{name}, signed and expiring, so that a CRM needs no login to fetch one.

    token  = base64url(claim MAC)            without padding, 32 to 54 characters
    claim  = expires:u40 part:u16 length:u8 site message    (site: length octets, message: 1 to 8 octets)
    MAC    = first 128 bits of HMAC-SHA256(key, "file of a site" claim)

Integers are in network order; site and message take as few octets as they need. A link of a site is good as long as the
message is that site's: a message may be several sites', and one of them may have its share erased. A link that is not a
site's, as all were once, has no length and no site, and "attachment link" before its claim.

The name is not signed: it is for people, and what is served is named by the stored message.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Sequence
from typing import NamedTuple

# Neither begins with the other: no claim means one thing with the one and another with the other.
_ANYBODYS = b"attachment link"
_OF_A_SITE = b"file of a site"
_MAC = 16
_HEAD = 7
_NUMBER = 8
_SHORTEST, _LONGEST = _HEAD + 1 + _MAC, _HEAD + 1 + 2 * _NUMBER + _MAC


class Link(NamedTuple):
    """What a token is good for: attachment ``part`` of ``message``, as ``site``'s (all ids); None: whosever it is."""

    message: int
    part: int
    site: int | None


class LinkInvalid(ValueError):
    """Not a token of ours: mistyped, forged, or signed with a key that we no longer have."""


class LinkExpired(ValueError):
    """A token of ours, for ``link``, whose time was over at ``expires`` (epoch seconds)."""

    def __init__(self, link: Link, expires: int) -> None:
        super().__init__("this link has expired")
        self.link = link
        self.expires = expires


def make(key: bytes, message: int, part: int, expires: int, site: int | None) -> str:
    """A token for attachment ``part`` (its index) of ``message`` (its id), good until ``expires`` (epoch seconds) and
    as long as ``site`` (its id) has the message; None: as long as anybody has.

    Raises ValueError for a negative or absurdly large number.
    """
    try:
        claim = expires.to_bytes(5, "big") + part.to_bytes(2, "big")
        if site is None:
            context = _ANYBODYS
        else:
            context, octets = _OF_A_SITE, _octets(site)
            claim += len(octets).to_bytes(1, "big") + octets
        claim += _octets(message)
    except OverflowError:
        raise ValueError("message, part, expires or site is out of range") from None
    return base64.urlsafe_b64encode(claim + _mac(key, context, claim)).rstrip(b"=").decode("ascii")


def read(keys: Sequence[bytes], token: str, now: float) -> Link:
    """What a token signed with any of ``keys`` is good for; raises LinkInvalid or LinkExpired.

    Takes the same time whatever is wrong with a signature.
    """
    octets = _decode(token)
    claim, mac = octets[:-_MAC], octets[-_MAC:]
    matches = [
        context
        for key in keys
        for context in (_OF_A_SITE, _ANYBODYS)
        if hmac.compare_digest(mac, _mac(key, context, claim))
    ]
    if not matches:
        raise LinkInvalid("this link was not made here")
    expires, part, rest = int.from_bytes(claim[:5], "big"), int.from_bytes(claim[5:_HEAD], "big"), claim[_HEAD:]
    site = None
    if matches[0] is _OF_A_SITE:
        length, rest = rest[0], rest[1:]
        site, rest = int.from_bytes(rest[:length], "big"), rest[length:]
    link = Link(int.from_bytes(rest, "big"), part, site)
    if now >= expires:
        raise LinkExpired(link, expires)
    return link


def _octets(number: int) -> bytes:
    """As few octets as it needs; raises OverflowError for a negative number and for one of more than 64 bits."""
    return number.to_bytes(_NUMBER, "big").lstrip(b"\0") or b"\0"


def _mac(key: bytes, context: bytes, claim: bytes) -> bytes:
    return hmac.digest(key, context + claim, "sha256")[:_MAC]


def _decode(token: str) -> bytes:
    """The octets of a token, only from the one spelling that ``make`` gives them."""
    try:
        octets = base64.urlsafe_b64decode(token.encode("ascii") + b"=" * (-len(token) % 4))
    except (binascii.Error, ValueError):
        raise LinkInvalid("this link is damaged") from None
    if not _SHORTEST <= len(octets) <= _LONGEST or base64.urlsafe_b64encode(octets).rstrip(b"=") != token.encode():
        raise LinkInvalid("this link is damaged")
    return octets
