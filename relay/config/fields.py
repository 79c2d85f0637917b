"""The types of single settings: what may stand in relay.toml, and what it becomes.

Every function here takes one value as TOML gave it and raises ValueError with the message for the operator. None of
them repeats a value that can hold a password.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Annotated, Literal, TypeVar
from urllib.parse import SplitResult, urlsplit

from pydantic import BeforeValidator, Field, PlainValidator, Strict, ValidationInfo
from pydantic_core import PydanticKnownError

from relay import presets
from relay.core.address import AddressError, domain_of, is_odd_sender, parse, sender_key
from relay.core.model import Address
from relay.core.nexthop import parse_next_hop
from relay.core.template import TemplateError
from relay.core.visit import is_number

T = TypeVar("T")

SYSTEMD: Literal["systemd"] = "systemd"

_SUFFIX = ".toml"
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_duration = re.compile(r"([0-9]{1,9})(ms|s|m|h|d)").fullmatch
_DEFAULT_PORTS = {"http": 80, "https": 443}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}").fullmatch
_PATH = re.compile(r"(/[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}){1,8}").fullmatch
_TOKEN = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}").fullmatch  # RFC 9110 §5.6.2
_COOKIE = re.compile(r"[A-Za-z0-9_-]{1,64}").fullmatch
_KEY = re.compile(r"pk_[A-Za-z0-9_-]{1,61}").fullmatch


def by(read: Callable[..., object]) -> PlainValidator:
    """Let ``read`` alone make the value, out of a string."""
    return PlainValidator(read, json_schema_input_type=str)


def text(value: object) -> str:
    if not isinstance(value, str):
        raise PydanticKnownError("string_type")
    return value


def optional(read: Callable[[object], T]) -> Callable[[object], T | None]:
    """As ``read``, but the empty string stands for "not set"."""

    def read_optional(value: object) -> T | None:
        return None if value in ("", None) else read(value)

    return read_optional


def duration(value: object) -> float:
    """Seconds of "250ms", "90s", "15m", "24h", "5d"."""
    match = _duration(value) if isinstance(value, str) else None
    if match is None:
        raise ValueError('must be a duration such as "90s", "15m", "24h" or "5d"')
    return int(match[1]) * _UNITS[match[2]]


def format_duration(seconds: float) -> str:
    """The shortest way to write a duration in relay.toml."""
    for unit in ("d", "h", "m", "s"):
        if seconds >= _UNITS[unit] and seconds % _UNITS[unit] == 0:
            return f"{seconds / _UNITS[unit]:.0f}{unit}"
    return f"{seconds * 1000:.0f}ms" if seconds else "0s"


def between(low: str, high: str) -> PlainValidator:
    """A duration from ``low`` to ``high``, both in relay.toml's notation."""
    shortest, longest = duration(low), duration(high)

    def read(value: object) -> float:
        seconds = duration(value)
        if not shortest <= seconds <= longest:
            raise ValueError(f'must be from "{low}" to "{high}", not "{value}"')
        return seconds

    return by(read)


def domain(value: object) -> str:
    """A domain name, as lower-case A-labels."""
    try:
        name = domain_of(text(value))
    except AddressError as error:
        raise ValueError(f'"{value}" is not a domain name: {error}') from error
    if name.rpartition(".")[2].isdigit():
        raise ValueError(f'"{value}" is not a domain name: its last label is a number')
    return name


def address(value: object) -> Address:
    """A bare mailbox address, without a display name."""
    try:
        return parse(text(value))
    except AddressError as error:
        raise ValueError(f'"{value}" is not an address: {error}') from error


def next_hop(value: object) -> str:
    """The URL itself, once ``parse_next_hop`` takes it: it is stored and compared as written."""
    parse_next_hop(text(value))
    return text(value)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A numeric IP address (or "localhost") and a port; port 0 is any free one."""

    host: str
    port: int

    @property
    def loopback(self) -> bool:
        return self.host == "localhost" or ip_address(self.host).is_loopback

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _endpoint(value: str, default_port: int | None) -> Endpoint | None:
    """Read "127.0.0.1:25", "[::1]:25" or, with a default port, the address alone. None when it is something else."""
    if default_port is not None and is_ip(value):
        return Endpoint(value, default_port)
    host, colon, port = value.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        host = host[1:-1]
    if not colon or not (is_ip(host) or host == "localhost") or (":" in host) != bracketed:
        return None
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 65535):
        return None
    return Endpoint(host, int(port))


def is_ip(value: str) -> bool:
    try:
        ip_address(value)
    except ValueError:
        return False
    return True


def listen(value: object) -> Endpoint | Literal["systemd"]:
    if value == SYSTEMD:
        return SYSTEMD
    endpoint = _endpoint(text(value), None)
    if endpoint is None:
        raise ValueError(f'"{value}" is not an IP address with a port ("127.0.0.1:25", "[::]:25") and not "systemd"')
    return endpoint


def nameserver(value: object) -> Endpoint:
    endpoint = _endpoint(text(value), 53)
    if endpoint is None or endpoint.host == "localhost" or endpoint.port == 0:
        raise ValueError(f'"{value}" is not an IP address ("9.9.9.9", "127.0.0.1:5353", "[::1]:53")')
    return endpoint


def network(value: object) -> IPv4Network | IPv6Network:
    name = text(value)
    try:
        return ip_network(name)
    except ValueError as error:
        raise ValueError(f'"{value}" is not an IP network ("10.0.0.0/8", "::1/128")') from error


def _split(value: str) -> SplitResult:
    """The parts of an http(s) URL whose host and port are sound. Does not repeat the URL: it may hold a password."""
    try:
        url = urlsplit(value)
        port, host = url.port, url.hostname or ""
    except ValueError as error:
        raise ValueError("is not a valid URL") from error
    if url.scheme not in _DEFAULT_PORTS or not value.isprintable() or " " in value:
        raise ValueError("must be a URL that starts with https:// or http://")
    if url.username is not None or url.password is not None:
        raise ValueError("must not contain a login")
    if not host:
        raise ValueError("names no host")
    if ":" in host and "%" in host:
        raise ValueError("must not contain an IPv6 zone (%…): it names an interface of one machine")  # RFC 6874 §1
    if not is_ip(host):
        domain(host)
    if port == 0:
        raise ValueError("must not name port 0")
    return url


def webhook_url(value: object) -> str:
    if _split(text(value)).fragment:
        raise ValueError("must not contain a fragment (#…)")
    return text(value)


def public_url(value: object) -> str:
    """The URL under which the outside reaches us, without a slash at its end."""
    url = _split(text(value))
    if url.query or url.fragment:
        raise ValueError("must not contain a query (?…) or fragment (#…)")
    return text(value).rstrip("/")


def origin(value: object) -> str:
    """What a browser sends as Origin (RFC 6454 §6.2), or the same with ``*.`` before the host for its subdomains."""
    bare = text(value).lower().replace("://*.", "://", 1)
    url = _split(bare)
    if url.path or url.query or url.fragment or "*" in bare:
        raise ValueError(f'"{value}" is not an origin ("https://www.example.com", "https://*.example.com")')
    host = url.hostname or ""
    wild = "*." if bare != text(value).lower() else ""
    if wild and (is_ip(host) or "." not in host):
        raise ValueError(f'"{value}" is not an origin: "*." must stand before a domain such as example.com')
    name = f"[{host}]" if ":" in host else host if is_ip(host) else domain(host)
    port = "" if url.port in (None, _DEFAULT_PORTS[url.scheme]) else f":{url.port}"
    return f"{url.scheme}://{wild}{name}{port}"


def storage(value: object) -> Literal["sqlite"]:
    if text(value).startswith(("postgresql:", "postgres:")):
        raise ValueError('PostgreSQL is not built yet: use "sqlite"')
    if value != "sqlite":
        raise ValueError('must be "sqlite"')
    return "sqlite"


def site_name(value: object) -> str:
    if not _NAME(text(value)):
        raise ValueError('must be 1 to 64 letters, digits, ".", "_" or "-", beginning with a letter or digit')
    return text(value)


def site_key(value: object) -> str:
    if not _KEY(text(value)):
        raise ValueError('must be "pk_" and 1 to 61 letters, digits, "_" or "-"')
    return text(value)


def webhook_secret(value: object) -> str:
    """``whsec_`` and 24 to 64 octets in base64 (Standard Webhooks, "Signature scheme")."""
    prefix, encoded = text(value)[:6], text(value)[6:]
    try:
        key = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if prefix != "whsec_" or not 24 <= len(key) <= 64:
        raise ValueError(
            'must be "whsec_" and 24 to 64 octets in base64; this makes one: echo whsec_$(openssl rand -base64 32)'
        )
    return text(value)


def url_path(value: object) -> str:
    """A path of our own web server."""
    if not _PATH(text(value)):
        raise ValueError('must be a path of letters, digits, "/", ".", "_" and "-" such as "/assets/app.js"')
    return text(value)


def visit_number(value: object) -> str:
    if not is_number(text(value)):
        raise ValueError("must be the number of a visit: 1 to 20 digits")
    return text(value)


def cookie_name(value: object) -> str:
    """The name of a cookie that a script can look for without quoting."""
    if not _COOKIE(text(value)):
        raise ValueError('must be the name of a cookie: 1 to 64 letters, digits, "_" or "-"')
    return text(value)


def short_text(value: object) -> str:
    if not 1 <= len(text(value)) <= 200 or not text(value).isprintable():
        raise ValueError("must be 1 to 200 printable characters")
    return text(value)


def path(value: object, info: ValidationInfo) -> Path:
    """A path; a relative one starts at the directory of the configuration file (``context["base"]``)."""
    name = str(value) if isinstance(value, Path) else text(value)
    if not name or "\0" in name:
        raise ValueError("must be a path")
    return Path((info.context or {}).get("base", Path()), name)


def optional_path(value: object, info: ValidationInfo) -> Path | None:
    return None if value in ("", None) else path(value, info)


def template(value: object, info: ValidationInfo) -> str:
    """A template for webhooks: a shipped one's name, an own one's text, or in relay.toml the path of its file."""
    given = text(value)
    try:
        if given and given not in presets.names():
            base = (info.context or {}).get("base")
            if base is not None and given.endswith(_SUFFIX) and "\n" not in given:
                given = Path(base, given).read_text("utf-8")
            elif "=" not in given:
                names = ", ".join(f'"{name}"' for name in presets.names())
                own = "the text of a template" if base is None else 'the file of a template, "….toml"'
                raise ValueError(f"is neither {names} nor {own}")
            presets.of(given)
    except TemplateError as error:
        raise ValueError(error.message if error.field == "template" else f"is no template: {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ValueError(f"cannot be read: {reason}") from None
    return given


def blocked_sender(value: object) -> str:
    """A bare address, or a whole domain as "@example.com", as senders are compared (``sender_key``).

    Whoever can send can be blocked, as History shows him.
    """
    given = text(value).strip()
    key = sender_key(given)
    if is_odd_sender(f"x{key}" if key.startswith("@") else key):
        return key
    if given.startswith("@"):
        return f"@{domain(given[1:])}"
    return str(address(given)).lower()


def is_token(name: str) -> bool:
    """Whether this can be the name of a header field (RFC 9110 §5.1)."""
    return _TOKEN(name) is not None


def _systemd_alone(value: object) -> object:
    return [SYSTEMD] if value == SYSTEMD else value


#: A TOML list. The list itself is lax (TOML gives a list, we keep a tuple), its members are as strict as ever.
Listed = Annotated[tuple[T, ...], Strict(False)]

Hostname = Annotated[str, by(domain)]
Domain = Annotated[str | None, by(optional(domain))]
Mailbox = Annotated[Address, by(address)]
OptionalMailbox = Annotated[Address | None, by(optional(address))]
OptionalNextHop = Annotated[str | None, by(optional(next_hop))]
Listen = Annotated[Endpoint | Literal["systemd"], by(listen)]
Listens = Annotated[Listed[Listen], Field(min_length=1), BeforeValidator(_systemd_alone)]
Nameserver = Annotated[Endpoint, by(nameserver)]
Network = Annotated[IPv4Network | IPv6Network, by(network)]
PublicUrl = Annotated[str, by(public_url)]
WebhookUrl = Annotated[str, by(webhook_url)]
WebhookSecret = Annotated[str, by(webhook_secret)]
Origin = Annotated[str, by(origin)]
Storage = Annotated[Literal["sqlite"], by(storage)]
UrlPath = Annotated[str, by(url_path)]
VisitNumber = Annotated[str, by(visit_number)]
SiteName = Annotated[str, by(site_name)]
SiteKey = Annotated[str, by(site_key)]
ShortText = Annotated[str, by(short_text)]
OptionalShortText = Annotated[str | None, by(optional(short_text))]
OptionalCookieName = Annotated[str | None, by(optional(cookie_name))]
FilePath = Annotated[Path, by(path)]
OptionalFilePath = Annotated[Path | None, by(optional_path)]
#: How many of something; at least one.
Count = Annotated[int, Field(ge=1, le=1_000_000_000)]
#: Octets.
Size = Annotated[int, Field(ge=0, le=1 << 50)]
Port = Annotated[int, Field(ge=1, le=65535)]
