"""Where a visit came from: one source out of everything that a page view says.

The first of these that says anything:

    a rule of the site's own              its marker and channel
    a mark in the page's address          that mark (core/source.py); the channel by utm_medium, else by a click id
    a click id in the page's address      the marker that stands for it
    an outside referrer in the lists      kind and name: "search_google" (core/referrer.py)
    any other outside referrer            "referral_" and its host without "www."
    another counter's marker cookie       its marker, a campaign
    nothing                               direct, no marker

utm_medium without utm_source is no mark; with a click id alone it still tells an advertisement from a plain link.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from urllib.parse import unquote

from relay.core.channel import Arrival, Channel, Source, SourceRule, matches, medium_channel
from relay.core.referrer import HOST_LIMIT, Referrers, slug
from relay.core.source import URL_LIMIT, PageMarks, clean, host_of, outside_host, parameters, split


def classify(
    page: PageMarks,
    page_url: str | None,
    referrer: str | None,
    own_hosts: Collection[str],
    rules: Sequence[SourceRule],
    referrers: Referrers,
    marker_cookie: str | None = None,
) -> Source:
    """The source of a page view. ``page`` is what ``parse_page(page_url)`` says, ``own_hosts`` as in outside_host."""
    rule = _first(rules, page_url, referrer)
    if rule is not None:
        return Source(rule.marker, rule.channel or Channel.CAMPAIGN)
    if page.marker is not None:
        return Source(page.marker, _marked_channel(page, referrers))
    host = outside_host(referrer, page.host, own_hosts)
    if host is not None:
        return _referred(referrer, host, referrers)
    cookie = clean((marker_cookie or "").strip())
    return Source(cookie, Channel.CAMPAIGN) if cookie else Source(None, Channel.DIRECT)


def _first(rules: Sequence[SourceRule], page_url: str | None, referrer: str | None) -> SourceRule | None:
    if not rules:
        return None
    path = split(page_url).path
    # The query is read from the address itself: what split() answers is cut to the length that is stored.
    query = (page_url or "")[:URL_LIMIT].partition("#")[0].partition("?")[2]
    arrival = Arrival(unquote(path), parameters(query), host_of(referrer))
    return next((rule for rule in rules if matches(rule, arrival)), None)


def _marked_channel(page: PageMarks, referrers: Referrers) -> Channel:
    channel = medium_channel(page.utm_medium)
    if channel in (None, Channel.SEARCH) and _is_assistant(page.utm_source, referrers):
        return Channel.AI
    if channel is Channel.SEARCH and page.utm_source:
        # "organic" is also said of posts that nobody paid for.
        social = referrers.kinds.get(slug(page.utm_source)) is Channel.SOCIAL
        return Channel.SOCIAL if social else Channel.SEARCH
    if channel is not None:
        return channel
    return Channel(page.click.partition("_")[0]) if page.click else Channel.CAMPAIGN


def _is_assistant(utm_source: str | None, referrers: Referrers) -> bool:
    """Assistants mark the links in their answers themselves, by their host or their name: utm_source=chatgpt.com."""
    if not utm_source:
        return False
    found = referrers.find(f"https://{utm_source}/")
    return referrers.kinds.get(slug(utm_source)) is Channel.AI or (found is not None and found.kind is Channel.AI)


def _referred(referrer: str | None, host: str, referrers: Referrers) -> Source:
    found = referrers.find(referrer)
    if found is not None:
        return Source(found.marker, found.kind)
    return Source(clean(f"{Channel.REFERRAL.value}_{host[:HOST_LIMIT]}"), Channel.REFERRAL)
