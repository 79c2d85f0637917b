"""Where a visit came from, read out of the address of the page it began on.

The marker is the first of these that the address carries (the reference's order; lists of search engines and social
networks by referrer are a further step after the last):

    roistat=, rs=          the marker as it stands
    utm_source=            utm_source, utm_medium and utm_campaign as far as they are there, joined by "_"
    _openstat=             its parts (base64 of "service;campaign;ad;place", or plain), joined by "_"
    from=                  the marker as it stands

Addresses are what a stranger's browser sent: nothing here raises, everything is bounded. Absent or empty is None.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from urllib.parse import unquote_plus

#: Longest text of one field, in octets of UTF-8.
FIELD_LIMIT = 2048
#: Characters of an address that are looked at; the marks of longer ones are lost, the page is not.
URL_LIMIT = 16384
#: Query parameters that are looked at.
PARAMETER_LIMIT = 500

UTM_NAMES = ("utm_source", "utm_medium", "utm_campaign", "utm_term", "utm_content")
PARAM_NAMES = ("roistat_param_1", "roistat_param_2", "roistat_param_3", "roistat_param_4", "roistat_param_5")
_WANTED = frozenset((*UTM_NAMES, *PARAM_NAMES, "roistat", "rs", "_openstat", "from"))

# RFC 3986 §3.1: scheme = ALPHA *( ALPHA / DIGIT / "+" / "-" / "." ); bounded, so a long word costs nothing.
_SCHEME = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.-]{0,31}:)?//")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]+")

Params = tuple[str | None, str | None, str | None, str | None, str | None]


@dataclass(frozen=True, slots=True)
class PageMarks:
    """What the address of a page says. Each text is at most 2,048 octets of clean UTF-8."""

    host: str | None = None  # lower case, without port
    landing: str | None = None  # host, path and query as in the address
    utm_source: str | None = None
    utm_medium: str | None = None
    utm_campaign: str | None = None
    utm_term: str | None = None
    utm_content: str | None = None
    marker: str | None = None
    params: Params = (None, None, None, None, None)  # roistat_param_1 … 5


def clean(text: str | None) -> str | None:
    """A text as it may be stored: valid UTF-8, no NUL, at most 2,048 octets; None when nothing is left."""
    if not text:
        return None
    if len(text) <= FIELD_LIMIT and text.isascii():
        return text.replace("\x00", "") or None
    octets = text[:FIELD_LIMIT].replace("\x00", "").encode("utf-8", "replace")
    return octets[:FIELD_LIMIT].decode("utf-8", "ignore") or None


def strip_scheme(url: str | None) -> str | None:
    """Host, path and query of an address: no scheme, no user name, no fragment, no "/" that stands alone.

    >>> strip_scheme("https://fb.com/")
    'fb.com'
    """
    if not url:
        return None
    text = _CONTROL.sub("", url[:URL_LIMIT]).strip()
    scheme = _SCHEME.match(text)
    if scheme:
        text = text[scheme.end() :]
    text = text.partition("#")[0]
    authority, rest = _split_authority(text)
    if scheme and "@" in authority:
        authority = authority.rpartition("@")[2]
    return clean(authority + ("" if rest == "/" else rest))


def host_of(url: str | None) -> str | None:
    """Host of an address or of what ``strip_scheme`` left of one: lower case, without port."""
    return _host(strip_scheme(url) or "")


def _host(stripped: str) -> str | None:
    authority = _split_authority(stripped)[0].lower()
    if authority.startswith("["):
        return authority.partition("]")[0][1:] or None
    host, _, port = authority.partition(":")
    return host.rstrip(".") or None if not port or port.isdecimal() else None


def _split_authority(text: str) -> tuple[str, str]:
    ends = [at for at in (text.find("/"), text.find("?")) if at >= 0]
    end = min(ends, default=len(text))
    return text[:end], text[end:]


def parse_page(url: str | None) -> PageMarks:
    """Read the marks of a page's address. Any text is taken; what cannot be read is None."""
    text = (url or "")[:URL_LIMIT]
    found = _parameters(text.partition("#")[0].partition("?")[2])
    first, second, third, fourth, fifth = map(found.get, PARAM_NAMES)
    landing = strip_scheme(text)
    return PageMarks(
        host=_host(landing or ""),
        landing=landing,
        utm_source=found.get("utm_source"),
        utm_medium=found.get("utm_medium"),
        utm_campaign=found.get("utm_campaign"),
        utm_term=found.get("utm_term"),
        utm_content=found.get("utm_content"),
        marker=_marker(found),
        params=(first, second, third, fourth, fifth),
    )


def _parameters(query: str) -> dict[str, str]:
    """The wanted parameters of a query; the first that is not empty wins, names in any case."""
    found: dict[str, str] = {}
    for pair in query.split("&", PARAMETER_LIMIT)[:PARAMETER_LIMIT]:
        name, _, raw = pair.partition("=")
        name = _decoded(name).lower() if len(name) <= 64 else ""
        if name in _WANTED and name not in found:
            value = clean(_decoded(raw).strip())
            if value:
                found[name] = value
    return found


def _decoded(text: str) -> str:
    return unquote_plus(text) if "%" in text or "+" in text else text


def _marker(found: dict[str, str]) -> str | None:
    own = found.get("roistat") or found.get("rs")
    if own:
        return own
    if "utm_source" in found:
        parts = (found.get(name) for name in ("utm_source", "utm_medium", "utm_campaign"))
        return clean("_".join(part for part in parts if part))
    if "_openstat" in found:
        return _openstat(found["_openstat"])
    return found.get("from")


def _openstat(value: str) -> str | None:
    """The marker of an openstat tag: base64 (either alphabet, padding optional) of parts between ";", or plain."""
    text = value
    if ";" not in text:
        try:
            padded = value.replace(" ", "+").replace("-", "+").replace("_", "/") + "=" * (-len(value) % 4)
            text = base64.b64decode(padded, validate=True).decode("utf-8")
        except (binascii.Error, ValueError):
            text = value
    return clean("_".join(part.strip() for part in text.split(";") if part.strip()))


def levels(marker: str | None) -> tuple[str | None, str | None]:
    """``source_level_1`` and ``source_level_2``: the marker split at its first "_" (PRODUCT.md, "Webhook")."""
    first, _, second = (marker or "").partition("_")
    return first or None, second or None
