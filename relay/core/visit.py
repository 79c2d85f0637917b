"""Is it still the same visit, and what is its number (PRODUCT.md, "Binding API").

The browser says which visit it believes it is in; the server decides. In this order:

    the visit's number came from another counter          same: that counter decides, we never renumber
    marks or outside referrer, both as the visit's own    same, however late: a reload or a restored tab
    marks that are not the visit's own                    new
    an outside referrer that is not the visit's own       new
    nothing seen for longer than the time-out             new
    anything else: inner pages, a cleaned-up address      same

A visit without marks and without outside referrer has nothing of its own that a reload could repeat, so for direct
visitors the time-out decides. It decides as well where the page says ``utm_nooverride=1`` (the reference; Urchin,
support.google.com/urchin/answer/2633744): then neither marks nor an outside referrer begin a visit.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from relay.core.attribution import NUMBER_DIGITS
from relay.core.source import PageMarks, host_of, outside_host, strip_scheme

#: Seconds without a sign of life after which a visit is over; the reference's cookie lives as long.
TIMEOUT = 14 * 86400.0
#: Seconds since a visit was seen within which a link between the site's domains hands it over.
HAND_OVER = 1800.0


@dataclass(frozen=True, slots=True)
class VisitMarks:
    """The source fields that a visit began with; they are never overwritten. ``referrer`` as stored or as sent.

    ``marker`` is the page's own, roistat … click id (core/source.py), never one that a rule, the referrer or a cookie
    gave: a page view has none of those to repeat, so it would seem to come from elsewhere.
    """

    marker: str | None = None
    utm_source: str | None = None
    utm_medium: str | None = None
    utm_campaign: str | None = None
    utm_term: str | None = None
    utm_content: str | None = None
    referrer: str | None = None


def is_new_visit(
    current: VisitMarks,
    arriving: PageMarks,
    referrer: str | None,
    own_hosts: Collection[str],
    last_seen: float,
    now: float,
    timeout: float = TIMEOUT,
    *,
    foreign: bool = False,
) -> bool:
    """Whether a page view starts a new visit instead of going on with ``current``.

    ``own_hosts`` as in :func:`~relay.core.source.outside_host`. ``foreign``: the number is another counter's.
    """
    if foreign:
        return False
    marks = _marks(arriving)
    own_marks = _marks(current)
    came_from = _outside(referrer, arriving, own_hosts)
    own_referrer = _outside(current.referrer, arriving, own_hosts)
    if (marks, came_from) == (own_marks, own_referrer) and (any(marks) or came_from):
        return False
    if not arriving.no_override:
        if any(marks) and marks != own_marks:
            return True
        if came_from and came_from != own_referrer:
            return True
    return now - last_seen > timeout


def _marks(page: PageMarks | VisitMarks) -> tuple[str | None, ...]:
    utm = (page.utm_source, page.utm_medium, page.utm_campaign, page.utm_term, page.utm_content)
    return (page.marker, *utm)


def _outside(referrer: str | None, page: PageMarks, own_hosts: Collection[str]) -> str | None:
    """The referrer without its scheme if it is another site's, else None."""
    return None if outside_host(referrer, page.host, own_hosts) is None else strip_scheme(referrer)


def is_handed_over(
    page: PageMarks, referrer: str | None, own_hosts: Collection[str], last_seen: float | None, now: float
) -> bool:
    """Whether ``roistat_visit`` in a page's address stands for this browser's visit on another domain of the site.

    A link with a number in it is also copied, shared, found by search engines and put before others on purpose, and
    whoever follows it is somebody else. So it counts only when the browser says that it comes from a page of the site
    on another host, and that visit was seen a moment ago; whoever names no referrer begins anew. ``last_seen`` is None
    for a visit that is not known: one of another counter that we meet here first.
    """
    came_from = host_of(referrer)
    if page.visit is None or came_from is None or came_from == page.host:
        return False
    if outside_host(referrer, None, own_hosts) is not None:
        return False
    return last_seen is None or now - last_seen <= HAND_OVER


def visit_number(random: int) -> str:
    """A visit number of fifteen digits out of a random number of at least 64 bits.

    Not counted upwards, and sparse: among a million visits one guess in a billion names one, so that nobody finds
    another's visit by trying, nor writes to its plus address. Programs that read it as a number keep every digit.
    """
    return str(10**14 + random % (9 * 10**14))


def is_number(text: str) -> bool:
    """Whether a text may be a visit number, ours or another counter's: 1 to 20 ASCII digits."""
    return text.isascii() and text.isdigit() and len(text) <= NUMBER_DIGITS
