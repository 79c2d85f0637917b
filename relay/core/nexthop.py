"""Where mail is handed on to: ``smtp://host:25``, ``smtps://user:password@host:465``, ``smtp+starttls://host:587``."""

from __future__ import annotations

import hmac
import re
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address
from typing import Literal
from urllib.parse import quote, unquote_to_bytes

import idna

Tls = Literal["none", "opportunistic", "starttls", "implicit"]

#: scheme → TLS and the port that is meant when none is given (RFC 5321 §2.3.4, RFC 8314 §3.3, RFC 6409 §3.1).
_SCHEMES: dict[str, tuple[Tls, int]] = {
    "smtp": ("opportunistic", 25),
    "smtps": ("implicit", 465),
    "smtp+starttls": ("starttls", 587),
}
_HOST = re.compile(r"(?=.{1,253}\Z)[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*")
#: Characters of a user that a name shows: it stays shorter than 320, with which lists are filtered.
_SHOWN = 32
_BAD_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")


@dataclass(frozen=True, slots=True)
class NextHop:
    """One host that takes our mail.

    ``tls``: "none" plain; "opportunistic" STARTTLS where offered, unverified, plain where it fails; "starttls" and
    "implicit" (RFC 8314) required, and the certificate verified for ``host``.
    ``host``: lower-case A-labels or an IP address without brackets. ``password`` never shows in the repr.
    """

    host: str
    port: int
    tls: Tls
    user: str | None = None
    password: str | None = field(default=None, repr=False)

    def name(self, key: bytes) -> str:
        """What deliveries are counted by, and back off by: whoever gets in, or not, in the same way.

        ``mail.example.com:25``; where TLS is required or there is a login, ``smtps://user@mail.example.com:465#1f2e3d4c``.
        The digits tell logins apart, and without the secret ``key`` they say nothing about the password.
        """
        place = f"{self.host}:{self.port}"
        if self.user is None and self.tls in ("none", "opportunistic"):
            return place
        scheme = next((scheme for scheme, (tls, _) in _SCHEMES.items() if tls == self.tls), "smtp")
        if self.user is None:
            return f"{scheme}://{place}"
        login = f"visit-relay login\0{self.user}\0{self.password}".encode()
        shown = quote(self.user, safe="@")[:_SHOWN]
        return f"{scheme}://{shown}@{place}#{hmac.digest(key, login, 'sha256').hex()[:8]}"


def parse_next_hop(url: str) -> NextHop:
    """Read a next hop's URL.

    :raises ValueError: with one sentence naming what is wrong; it never repeats the password.
    """
    if not url.isprintable() or " " in url:
        raise ValueError("the next hop must not contain spaces or control characters")
    scheme, separator, rest = url.partition("://")
    if not separator or scheme.lower() not in _SCHEMES:
        raise ValueError("the next hop must start with smtp://, smtps:// or smtp+starttls://")
    tls, default_port = _SCHEMES[scheme.lower()]
    login, at, place = rest.rpartition("@")
    place = place.removesuffix("/")
    if any(mark in login + place for mark in "/?#"):
        raise ValueError("nothing may follow the port of a next hop; in a login write / as %2F, ? as %3F, # as %23")
    host, port = _host_and_port(place, default_port)
    if not at:
        return NextHop(host, port, tls)
    user, password = _login(login)
    if tls == "opportunistic" and not _is_loopback(host):
        raise ValueError("a login over smtp:// could be read on the way: use smtps:// or smtp+starttls://")
    return NextHop(host, port, tls, user, password)


def _host_and_port(place: str, default_port: int) -> tuple[str, int]:
    if place.startswith("["):
        literal, bracket, after = place[1:].partition("]")
        try:
            host = str(IPv6Address(literal))
        except ValueError:
            raise ValueError("the brackets of a next hop must hold an IPv6 address") from None
        if not bracket or (after and not after.startswith(":")):
            raise ValueError("after the ] of an IPv6 address only :port may follow")
        return host, _port(after[1:]) if after else default_port
    name, colon, port = place.partition(":")
    if ":" in port:
        raise ValueError("an IPv6 address in a next hop needs brackets: smtp://[::1]:25")
    return _host(name), _port(port) if colon else default_port


def _host(name: str) -> str:
    if not name:
        raise ValueError("the next hop names no host")
    host = name.lower()
    if not host.isascii():
        try:
            host = idna.encode(host, uts46=True).decode("ascii")
        except idna.IDNAError:
            raise ValueError("the host of the next hop is not a valid international domain name") from None
    host = host.removesuffix(".")
    if not _HOST.fullmatch(host):
        raise ValueError("the host of the next hop is not a valid host name")
    if host.replace(".", "").isdigit():
        try:
            ip_address(host)
        except ValueError:
            raise ValueError("the host of the next hop is not a valid IPv4 address") from None
    return host


def _port(digits: str) -> int:
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 5 and 1 <= int(digits) <= 65535):
        raise ValueError("the port of the next hop must be a number from 1 to 65535")
    return int(digits)


def _login(login: str) -> tuple[str, str]:
    raw_user, colon, raw_password = login.partition(":")
    user, password = _decoded(raw_user, "user"), _decoded(raw_password, "password")
    if not user or not colon or not password:
        raise ValueError("the login of the next hop needs a user and a password: user:password@host")
    return user, password


def _decoded(text: str, what: str) -> str:
    """Percent-decoded (RFC 3986 §2.1) UTF-8, without control characters: RFC 4616 forbids NUL, RFC 4013 the rest."""
    if _BAD_PERCENT.search(text):
        raise ValueError(f"a % in the {what} of the next hop must be written as %25")
    try:
        decoded = unquote_to_bytes(text).decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"the {what} of the next hop is not UTF-8 after percent-decoding") from None
    if any(ord(char) < 32 or ord(char) == 127 for char in decoded):
        raise ValueError(f"the {what} of the next hop must not contain control characters")
    return decoded


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
