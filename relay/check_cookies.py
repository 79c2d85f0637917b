"""Whether two sites keep their visits in one cookie: the names of ours are the same for all sites."""

from __future__ import annotations

from itertools import combinations
from urllib.parse import urlsplit

from relay.check_findings import OK, WARN, CookieScope, Finding, Subject


async def cookies(subject: Subject) -> list[Finding]:
    """Each two sites whose visitors' browsers keep one cookie for both."""
    scopes = sorted(subject.cookies.items())
    return [
        Finding(
            WARN,
            "cookies",
            f'sites "{one}" and "{other}" share one: whoever goes from one to the other begins a new, direct visit',
            "make them one site, or give each its own hosts and a cookie_domain that holds none of the other's",
        )
        for (one, first), (other, second) in combinations(scopes, 2)
        if _reaches(first, second) or _reaches(second, first)
    ] or [Finding(OK, "cookies", "no site's are another's as well")]


def _reaches(scope: CookieScope, other: CookieScope) -> bool:
    """Whether a page of ``other`` reads the cookies that pages of ``scope`` keep. Cookies know no port."""
    kept = {urlsplit(origin).hostname or "" for origin in scope.origins}
    if scope.domain is not None:
        kept |= {scope.domain, f"*.{scope.domain}"}
    hosts = (urlsplit(origin).hostname or "" for origin in other.origins)
    return any(host in kept or any(_covers(pattern, host) for pattern in kept) for host in hosts)


def _covers(pattern: str, host: str) -> bool:
    return pattern.startswith("*.") and host.endswith(pattern[1:])
