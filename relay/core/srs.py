"""Sender Rewriting Scheme: an envelope sender in our own domain from which the original can be read back.

Forwarding with the original envelope sender fails SPF at the next hop, so the sender becomes an address of ours::

    alice@example.com                    -> SRS0=hash=tt=example.com=alice@alias
    SRS0=hhh=tt=example.com=alice@other  -> SRS1=hash=other==hhh=tt=example.com=alice@alias
    SRS1=hhh=other==...@third            -> SRS1=hash=other==...@alias

``tt`` is the day modulo 1024 in two base-32 symbols, ``hash`` the start of HMAC-SHA1 over the lower-cased fields in
base 64. Both are compared without regard to case, because some hosts lower-case local parts. The scheme (Mail::SRS,
Shevek 2004) hashes the fields without a mark between them, so ``example.com=user`` and ``example.co=muser`` share a
hash: a reversed address is proof that we once signed those letters, not a licence to mail it. Whoever reverses one
compares the result with the sender that was recorded.
"""

from __future__ import annotations

import hashlib
import hmac
from base64 import b64encode
from collections.abc import Sequence

from relay.core.address import MAX_LOCAL, MAX_PATH, AddressError, domain_of
from relay.core.model import Address, quote_local

#: Symbols of the hash: 8 of base 64 without case are some 42 bits; the reference implementation's 4 are 21.
HASH_LENGTH = 8
#: How long a rewritten address is good for, in days. Longer than any queue's five days of retries and its bounce.
MAX_AGE_DAYS = 21

_DAY = 86_400
_DAYS = 1024  # two base-32 symbols
_BASE32 = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
_SEPARATORS = "=+-"  # the first separator may be any of these, all others are "="


class SrsError(ValueError):
    """Not an SRS address of ours, altered, or too old; the message says which."""


def forward(
    sender: Address,
    alias_domain: str,
    key: bytes,
    now: float,
    *,
    hash_length: int = HASH_LENGTH,
    separator: str = "=",
) -> Address | None:
    """The sender rewritten into ``alias_domain`` (lower-case A-labels), signed with ``key``.

    None when the scheme can't carry this sender: its local part is not ASCII or needs quoting (a quoted string
    inside the new local part would no longer be a dot-atom), or the result would exceed 64 octets of local part or
    254 in all. The caller then uses an opaque token of its own as the return path.
    """
    if not sender.local.isascii() or quote_local(sender.local) != sender.local:
        return None
    guarded = _guarded(sender)
    if guarded is not None:
        host, rest = guarded
        signature = _hash(key, hash_length, host, rest)
        local = f"SRS1{separator}{signature}={host}={rest}"
    else:
        stamp = _stamp(now)
        signature = _hash(key, hash_length, stamp, sender.domain, sender.local)
        local = f"SRS0{separator}{signature}={stamp}={sender.domain}={sender.local}"
    if len(local) > MAX_LOCAL or len(local) + 1 + len(alias_domain) > MAX_PATH:
        return None
    return Address(local, alias_domain)


def reverse(
    address: Address,
    alias_domain: str,
    keys: Sequence[bytes],
    now: float,
    max_age_days: int = MAX_AGE_DAYS,
    *,
    hash_length: int = HASH_LENGTH,
) -> Address:
    """The address that ``forward`` was given, or for SRS1 the SRS0 address at the first forwarder.

    Any of ``keys`` may have signed it (rotation: new key first, old ones until max_age_days have passed). The local
    part comes back in the case in which it stands in ``address``. Raises SrsError.
    """
    if address.domain != alias_domain:
        raise SrsError("not our domain")
    tag, separator, fields = address.local[:4].upper(), address.local[4:5], address.local[5:]
    if tag not in ("SRS0", "SRS1") or not separator or separator not in _SEPARATORS or not fields.isascii():
        raise SrsError("not an SRS address")
    if tag == "SRS1":
        signature, host, rest = _split(fields, 3)
        _check(signature, keys, hash_length, host, rest)
        if rest[:1] not in _SEPARATORS:
            raise SrsError("not an SRS address")
        return Address("SRS0" + rest, _host(host))
    signature, stamp, host, local = _split(fields, 4)
    _check(signature, keys, hash_length, stamp, host, local)
    age = (int(now // _DAY) - _day(stamp)) % _DAYS
    if age > max_age_days and age != _DAYS - 1:  # stamped tomorrow: our clock was set back over midnight
        raise SrsError("too old")
    return Address(local, _host(host))


def _guarded(sender: Address) -> tuple[str, str] | None:
    """(first forwarder, what follows "SRS0" in its address) when the sender is an SRS address already, else None.

    One that only looks like it is an ordinary sender, and comes back as it was.
    """
    tag, separator, fields = sender.local[:4].upper(), sender.local[4:5], sender.local[5:]
    if not separator or separator not in _SEPARATORS:
        return None
    if tag == "SRS0" and fields.count("=") >= 3:
        return sender.domain, separator + fields
    if tag == "SRS1":
        parts = fields.split("=", 2)
        if len(parts) == 3 and parts[2] and parts[2][0] in _SEPARATORS:
            try:
                return domain_of(parts[1]), parts[2]
            except AddressError:
                return None
    return None


def _split(fields: str, count: int) -> list[str]:
    parts = fields.split("=", count - 1)
    if len(parts) != count or not all(parts):
        raise SrsError("not an SRS address")
    return parts


def _check(signature: str, keys: Sequence[bytes], hash_length: int, *fields: str) -> None:
    given = signature.lower().encode("ascii")
    for key in keys:
        if hmac.compare_digest(given, _hash(key, hash_length, *fields).lower().encode("ascii")):
            return
    raise SrsError("hash does not match")


def _hash(key: bytes, length: int, *fields: str) -> str:
    digest = hmac.digest(key, "".join(fields).lower().encode("ascii"), hashlib.sha1)
    return b64encode(digest).decode("ascii")[:length]


def _stamp(now: float) -> str:
    day = int(now // _DAY) % _DAYS
    return _BASE32[day >> 5] + _BASE32[day & 31]


def _day(stamp: str) -> int:
    if len(stamp) != 2:
        raise SrsError("not an SRS address")
    high, low = (_BASE32.find(symbol) for symbol in stamp.upper())
    if high < 0 or low < 0:
        raise SrsError("not an SRS address")
    return high << 5 | low


def _host(host: str) -> str:
    try:
        return domain_of(host)
    except AddressError as error:
        raise SrsError("not an SRS address") from error
