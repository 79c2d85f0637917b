"""Which search engine, social network, AI assistant or webmail a referrer is, by lists of their hosts.

The lists are Matomo's (github.com/matomo-org/searchengine-and-social-list), with additions of ours. An entry means:

    google.com           that host, with or without "www." or "m."
    google.{}            a country's domain in place of {}: "de", or one of com org net co it edu before it ("co.uk")
    {}.bing.com          a country's code as one label
    x.com/i/grok         that path of the host and what lies below it

Browsers send only the origin of the page that a link was on (Referrer Policy, "strict-origin-when-cross-origin"), so a
host alone suffices and the search term is not asked for; except for *portals*, whose front page is more than its search
field: a referrer of theirs counts only with one of the parameters in which the list finds the term.

Social networks, assistants and webmail are meant with their subdomains ("old.reddit.com"), as Matomo means them. Search
engines are not: docs.google.com is no search. Only what is called "search" below somebody's domain is one on every host
under it, as the list's hosts of Yahoo! show.

The most specific entry wins: the host itself before its pattern before a host above it, then the longest path. Of
entries for the same place webmail wins, then AI, social, search: the search lists also name assistants and Facebook.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple
from urllib.parse import unquote

from relay.core.channel import Channel
from relay.core.source import Address, parameters, split

#: Longest name of a host (RFC 1035 §2.3.4, as text); what is longer is none.
HOST_LIMIT = 253

# ISO 3166-1 alpha-2, the country domains that are not in it (ac, eu, su, uk), and cat, where Google has
# its Catalan site. A fixed list, so that nobody becomes google.{} by registering a name under a new domain.
_COUNTRY_CODES = (
    "ac ad ae af ag ai al am ao aq ar as at au aw ax az ba bb bd be bf bg bh bi bj bl bm bn bo bq br bs bt bv bw by bz "
    "ca cat cc cd cf cg ch ci ck cl cm cn co cr cu cv cw cx cy cz de dj dk dm do dz ec ee eg eh er es et eu fi fj fk "
    "fm fo fr ga gb gd ge gf gg gh gi gl gm gn gp gq gr gs gt gu gw gy hk hm hn hr ht hu id ie il im in io iq ir is it "
    "je jm jo jp ke kg kh ki km kn kp kr kw ky kz la lb lc li lk lr ls lt lu lv ly ma mc md me mf mg mh mk ml mm mn mo "
    "mp mq mr ms mt mu mv mw mx my mz na nc ne nf ng ni nl no np nr nu nz om pa pe pf pg ph pk pl pm pn pr ps pt pw py "
    "qa re ro rs ru rw sa sb sc sd se sg sh si sj sk sl sm sn so sr ss st su sv sx sy sz tc td tf tg th tj tk tl tm tn "
    "to tr tt tv tw tz ua ug uk um us uy uz va vc ve vg vi vn vu wf ws ye yt za zm zw"
)
COUNTRIES = frozenset(_COUNTRY_CODES.split())
# The list's own definition (its README, "urls").
_SECOND_LEVEL = frozenset({"com", "org", "net", "co", "it", "edu"})

#: Name → hosts, as in Socials.yml and AIAssistants.yml.
Hosts = Mapping[str, Collection[str]]
#: Name → definitions with "urls" and "params", as in SearchEngines.yml.
Engines = Mapping[str, Sequence[Mapping[str, Any]]]


class Found(NamedTuple):
    """Who a referrer is."""

    kind: Channel
    name: str  # as slug() makes it

    @property
    def marker(self) -> str:
        return f"{self.kind.value}_{self.name}"


class Entry(NamedTuple):
    path: str  # "" or "/i/grok"
    found: Found
    below: bool  # means subdomains too
    needs: frozenset[str]  # parameters of which a portal's referrer must carry one

    def fits(self, at: Address, below: bool) -> bool:
        if below and not self.below:
            return False
        if self.path and at.path != self.path and not at.path.startswith(self.path + "/"):
            return False
        return not self.needs or bool(parameters(at.query, self.needs))


@dataclass(frozen=True, slots=True)
class Referrers:
    """The lists as look-up tables: ``entries`` by host or pattern, longest path first; ``kinds`` by name."""

    entries: Mapping[str, tuple[Entry, ...]]
    kinds: Mapping[str, Channel]

    @classmethod
    def of(
        cls,
        *,
        email: Hosts | None = None,
        ai: Hosts | None = None,
        social: Hosts | None = None,
        search: Engines | None = None,
        portals: Collection[str] = (),
    ) -> Referrers:
        """Out of the lists. ``portals`` are hosts of ``search`` that are more than a search."""
        entries: dict[str, dict[str, Entry]] = {}
        kinds: dict[str, Channel] = {}
        # The first entry for a place stays, so the order is the precedence.
        for kind, hosts in ((Channel.EMAIL, email), (Channel.AI, ai), (Channel.SOCIAL, social)):
            for name, urls in (hosts or {}).items():
                found = Found(kind, slug(name))
                kinds.setdefault(found.name, kind)
                for host, path in map(_place, urls):
                    entries.setdefault(host, {}).setdefault(path, Entry(path, found, True, frozenset()))
        for name, definitions in (search or {}).items():
            found = Found(Channel.SEARCH, slug(name))
            kinds.setdefault(found.name, Channel.SEARCH)
            for definition in definitions:
                # A parameter that is written as /…/ is an expression on the whole address.
                terms = frozenset(term.lower() for term in definition["params"] if not term.startswith("/"))
                for host, path in map(_place, definition["urls"]):
                    below = "search" in host.split(".")[:-2]
                    entry = Entry(path, found, below, terms if host in portals else frozenset())
                    entries.setdefault(host, {}).setdefault(path, entry)
        return cls(
            MappingProxyType({host: tuple(sorted(at.values(), key=_longest)) for host, at in entries.items()}),
            MappingProxyType(kinds),
        )

    def find(self, referrer: str | None) -> Found | None:
        """Who the referrer is, or None when no list knows it. A few look-ups, whatever the lists hold."""
        at = split(referrer)
        # A host that is itself written with {} would be taken for the pattern.
        if at.host is None or len(at.host) > HOST_LIMIT or "{" in at.host:
            return None
        host, below = at.host.removeprefix("www."), False
        while "." in host:
            for place in (host,) if below else (host, *_patterns(host)):
                for entry in self.entries.get(place, ()):
                    if entry.fits(at, below):
                        return entry.found
            label, _, host = host.partition(".")
            below = below or label != "m"
        return None


def _place(url: str) -> tuple[str, str]:
    """Host and path of an entry; the path is empty for all of the host."""
    host, slash, path = url.removeprefix("android-app//").partition("/")
    return host.lower().removeprefix("www."), (slash + path).rstrip("/")


def _longest(entry: Entry) -> int:
    return -len(entry.path)


def _patterns(host: str) -> Iterator[str]:
    """The patterns with {} that could mean the host."""
    labels = host.split(".")
    if labels[-1] in COUNTRIES:
        tail = 2 if len(labels) > 2 and labels[-2] in _SECOND_LEVEL else 1
        yield ".".join((*labels[:-tail], "{}"))
    inner = ["{}" if label in COUNTRIES else label for label in labels[:-1]]
    if "{}" in inner:
        yield ".".join((*inner, labels[-1]))


def slug(name: str) -> str:
    """A list's name as the second level of a marker: lower-case letters, digits, "-" and ".", never "_".

    >>> slug("Yahoo! Images"), slug("Cốc Cốc"), slug("Google%2B"), slug("Duck.ai")
    ('yahoo-images', 'coc-coc', 'googleplus', 'duck.ai')
    """
    text = unicodedata.normalize("NFKD", unquote(name).replace("+", "plus")).lower()
    letters = (char if char.isalnum() or char in ".-" else " " for char in text if not unicodedata.combining(char))
    return unicodedata.normalize("NFC", "-".join("".join(letters).split()))
