"""What kind of source a visit came from, and the rules by which a site names its own sources."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import fnmatchcase
from urllib.parse import unquote


class Channel(StrEnum):
    """The kind of a source: the first thing to know of it, before its name."""

    DIRECT = "direct"  # nothing says where from
    SEARCH = "search"
    SOCIAL = "social"
    AI = "ai"  # an assistant's answer
    EMAIL = "email"
    ADS = "ads"
    CAMPAIGN = "campaign"  # marked by the site's owner, who does not say as what
    REFERRAL = "referral"  # a link on any other site


@dataclass(frozen=True, slots=True)
class Source:
    """Where a visit came from. ``marker`` is what ``source_level_1`` and ``source_level_2`` are made of."""

    marker: str | None
    channel: Channel


@dataclass(frozen=True, slots=True)
class SourceRule:
    """A site's own rule: visits that meet every given condition came from ``marker``.

    ``referrer``: a host with all its subdomains, or "*.host" for its subdomains only; "www." makes no difference.
    ``parameter``: one of the page's query, in any case, that is there and not empty; with ``value`` it must be exactly
    that, and ``value`` alone is never met. ``page``: a glob on the page's path, percent-decoded, case-sensitive.
    A rule without conditions is met by every visit. Without ``channel`` it is a campaign.
    """

    marker: str
    channel: Channel | None = None
    referrer: str | None = None
    parameter: str | None = None
    value: str | None = None
    page: str | None = None


@dataclass(frozen=True, slots=True)
class Arrival:
    """What rules may ask about a page view."""

    path: str = "/"  # percent-decoded
    parameters: Mapping[str, str] = field(default_factory=dict)  # names in lower case
    referrer_host: str | None = None  # lower case


def matches(rule: SourceRule, arrival: Arrival) -> bool:
    """Whether a page view meets every condition that the rule gives."""
    if rule.referrer is not None and not _is_host(arrival.referrer_host, rule.referrer):
        return False
    value = None if rule.parameter is None else arrival.parameters.get(rule.parameter.lower())
    if rule.parameter is not None and value is None:
        return False
    if rule.value is not None and value != rule.value:
        return False
    return rule.page is None or fnmatchcase(arrival.path, unquote(rule.page))


def _is_host(host: str | None, wanted: str) -> bool:
    if host is None:
        return False
    host = host.removeprefix("www.")
    name = wanted.lower().removeprefix("*.").removeprefix("www.")
    return host.endswith("." + name) or (host == name and not wanted.startswith("*."))


# What utm_medium says, word by word, the first line that knows one of the words. The words are those of Google
# Analytics (support.google.com/analytics/answer/9756891) and of Russian practice ("smm", "cpa"). Paid comes first,
# since "social_cpc" and "paid-social" are advertisements.
_MEDIA: tuple[tuple[Channel, frozenset[str]], ...] = (
    (Channel.ADS, frozenset({"cpc", "ppc", "cpm", "cpa", "ads", "display", "retargeting", "banner"})),
    (Channel.EMAIL, frozenset({"email", "mail", "newsletter"})),
    (Channel.SOCIAL, frozenset({"social", "smm", "sm"})),
    (Channel.AI, frozenset({"ai"})),
    (Channel.REFERRAL, frozenset({"referral", "affiliate", "affiliates", "partner", "partners"})),
    (Channel.SEARCH, frozenset({"organic"})),
)
_WORDS = re.compile(r"[a-z0-9]+")


def medium_channel(medium: str | None) -> Channel | None:
    """The channel that a utm_medium names, None for one that means nothing to us.

    >>> medium_channel("E-Mail"), medium_channel("paid_social"), medium_channel("qr")
    (<Channel.EMAIL: 'email'>, <Channel.ADS: 'ads'>, None)
    """
    if not medium:
        return None
    words = frozenset(_WORDS.findall(medium.lower()))
    if any(word.startswith("paid") for word in words):
        return Channel.ADS
    return next((channel for channel, known in _MEDIA if words & known), None)
