"""Where a visit came from, read out of the address of the page it began on.

The marker is the first of these that the address carries (the reference's order up to ``from``; what the referrer says
is a further step, core/classify.py):

    roistat=, rs=          the marker as it stands
    utm_source=            utm_source, utm_medium and utm_campaign as far as they are there, joined by "_"
    _openstat=             its parts (base64 of "service;campaign;ad;place", or plain), joined by "_"
    from=                  the marker as it stands
    a click id             the marker that stands for it (CLICK_IDS)

Two more parameters are the reference's: ``roistat_visit`` carries a visit number from another of the site's domains,
``utm_nooverride=1`` asks that this arrival does not begin a new visit.

Addresses are what a stranger's browser sent: nothing here raises, everything is bounded. Absent or empty is None.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import unquote_plus

from relay.core.attribution import NUMBER_DIGITS

#: Longest text of one field, in octets of UTF-8.
FIELD_LIMIT = 2048
#: Characters of an address that are looked at; the marks of longer ones are lost, the page is not.
URL_LIMIT = 16384
#: Query parameters that are looked at.
PARAMETER_LIMIT = 500

UTM_NAMES = ("utm_source", "utm_medium", "utm_campaign", "utm_term", "utm_content")
PARAM_NAMES = ("roistat_param_1", "roistat_param_2", "roistat_param_3", "roistat_param_4", "roistat_param_5")
#: Parameters that platforms add to links by themselves, in lower case → marker. Its first level is the channel. When an
#: address carries several, the first of this order counts: those of advertisements before those that plain links carry
#: too, which stay in addresses that people copy. Where no other source stands beside a name, it is the table of
#: simoahava.com/analytics/common-mistakes-click-identifiers.
CLICK_IDS = {
    "gclid": "ads_google",  # developers.google.com/google-ads/api/docs/reporting/valuetrack-mapping: auto-tagging
    "gbraid": "ads_google",  # support.google.com/analytics/answer/16297842: iOS, instead of gclid
    "wbraid": "ads_google",
    "dclid": "ads_google",  # "display click ID" (Google Data Manager API, AdIdentifiers)
    "yclid": "ads_yandex",  # yandex.com.tr/support/metrica/general/source-tags: added by Yandex Direct
    "msclkid": "ads_bing",  # Microsoft Advertising's auto-tagging
    "ttclid": "ads_tiktok",
    "twclid": "ads_x",
    "li_fat_id": "ads_linkedin",  # learn.microsoft.com/linkedin/marketing/conversions/enabling-first-party-cookies
    "rdt_cid": "ads_reddit",  # sourceloop.ai/help/click-ids-explained
    "epik": "ads_pinterest",  # help.pinterest.com: _epik "based on information sent … with promoted traffic"
    "sccid": "ads_snapchat",  # written ScCid
    "rb_clickid": "ads_vk",  # ads.vk.com/en/help/articles/click_links: VK Ads, formerly myTarget
    "mc_eid": "email_mailchimp",  # the recipient; urleditor.online/guides/mailchimp
    "mc_cid": "email_mailchimp",  # the campaign
    "_hsenc": "email_hubspot",  # linkclean.app/trackers/hsenc
    "ysclid": "search_yandex",  # on plain results: public texts hold it in links to github.com, docs, recipes
    "fbclid": "social_facebook",  # on advertisements and on plain links (linkutm.com/glossary/fbclid), so not "ads"
}
_WANTED = frozenset(
    (*UTM_NAMES, *PARAM_NAMES, *CLICK_IDS, "roistat", "rs", "_openstat", "from", "roistat_visit", "utm_nooverride")
)

# RFC 3986 §3.1: scheme = ALPHA *( ALPHA / DIGIT / "+" / "-" / "." ); bounded, so a long word costs nothing.
_SCHEME = re.compile(r"(?:[A-Za-z][A-Za-z0-9+.-]{0,31}:)?//")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]+")
_VISIT = re.compile(rf"[0-9]{{1,{NUMBER_DIGITS}}}").fullmatch

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
    click: str | None = None  # the marker of its click id, also where another mark gave ``marker``
    visit: str | None = None  # the number in roistat_visit, 1 to 20 digits
    no_override: bool = False  # utm_nooverride=1


class Address(NamedTuple):
    """An address taken apart, as :func:`split` does."""

    host: str | None  # lower case, without port
    path: str  # as it stands; "/" when there is none
    query: str


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


def split(url: str | None) -> Address:
    """Host, path and query of an address, with or without its scheme."""
    stripped = strip_scheme(url) or ""
    path, _, query = _split_authority(stripped)[1].partition("?")
    return Address(_host(stripped), path or "/", query)


def outside_host(referrer: str | None, page_host: str | None, own_hosts: Collection[str]) -> str | None:
    """The referrer's host without "www." if it is another site's, else None.

    ``own_hosts`` are the site's hosts in lower case, without ports, "*.host" for all subdomains of one; the page's own
    host always counts as one of them, and "www." makes no difference.
    """
    host = host_of(referrer)
    if host is None:
        return None
    host = host.removeprefix("www.")
    if page_host and host == page_host.removeprefix("www."):
        return None
    return None if any(_is_own(host, own) for own in own_hosts) else host


def _is_own(host: str, own: str) -> bool:
    return host.endswith(own[1:]) if own.startswith("*.") else host == own.removeprefix("www.")


def parse_page(url: str | None) -> PageMarks:
    """Read the marks of a page's address. Any text is taken; what cannot be read is None."""
    text = (url or "")[:URL_LIMIT]
    found = parameters(text.partition("#")[0].partition("?")[2], _WANTED)
    click = next((marker for name, marker in CLICK_IDS.items() if name in found), None)
    visit = found.get("roistat_visit")
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
        marker=_marker(found) or click,
        params=(first, second, third, fourth, fifth),
        click=click,
        visit=visit if visit and _VISIT(visit) else None,
        no_override=found.get("utm_nooverride") == "1",
    )


def parameters(query: str, wanted: Collection[str] | None = None) -> dict[str, str]:
    """The parameters of a query, or the wanted ones; the first that is not empty wins, names in lower case."""
    found: dict[str, str] = {}
    for pair in query.split("&", PARAMETER_LIMIT)[:PARAMETER_LIMIT]:
        name, _, raw = pair.partition("=")
        name = _decoded(name).lower() if len(name) <= 64 else ""
        if name and name not in found and (wanted is None or name in wanted):
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
