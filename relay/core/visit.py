"""Is it still the same visit, and what is its number (PRODUCT.md, "Binding API").

The browser says which visit it believes it is in; the server decides. In this order:

    the visit's number came from another counter          same: that counter decides, we never renumber
    marks or outside referrer, both as the visit's own    same, however late: a reload or a restored tab
    marks that are not the visit's own                    new
    an outside referrer that is not the visit's own       new
    nothing seen for longer than the time-out             new
    anything else: inner pages, a cleaned-up address      same

A visit without marks and without outside referrer has nothing of its own that a reload could repeat, so for direct
visitors the time-out decides.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from relay.core.attribution import NUMBER_DIGITS
from relay.core.source import PageMarks, host_of, strip_scheme

#: Seconds without a sign of life after which a visit is over; the reference's cookie lives as long.
TIMEOUT = 14 * 86400.0


@dataclass(frozen=True, slots=True)
class VisitMarks:
    """The source fields that a visit began with; they are never overwritten. ``referrer`` as stored or as sent."""

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

    ``own_hosts`` are the site's hosts in lower case, without ports; the arriving page's own host always counts as
    one of them, and "www." makes no difference. ``foreign``: the number is another counter's.
    """
    if foreign:
        return False
    marks = _marks(arriving)
    own_marks = _marks(current)
    came_from = _outside(referrer, arriving, own_hosts)
    own_referrer = _outside(current.referrer, arriving, own_hosts)
    if (marks, came_from) == (own_marks, own_referrer) and (any(marks) or came_from):
        return False
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
    host = host_of(referrer)
    if host is None:
        return None
    own = {name.removeprefix("www.") for name in own_hosts}
    if page.host:
        own.add(page.host.removeprefix("www."))
    return None if host.removeprefix("www.") in own else strip_scheme(referrer)


def visit_number(random: int) -> str:
    """A visit number of ten digits out of a random number of at least 64 bits.

    Not counted upwards: whoever knows one number must not be able to guess the next.
    """
    return str(10**9 + random % (9 * 10**9))


def is_number(text: str) -> bool:
    """Whether a text may be a visit number, ours or another counter's: 1 to 20 ASCII digits."""
    return text.isascii() and text.isdigit() and len(text) <= NUMBER_DIGITS
