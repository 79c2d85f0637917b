"""Addresses: what a target shows instead of itself, who holds which, and whether the pool will do.

A change is the API's (webapi/sites.py); what a pool should have is worked out by webapi/advisor.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlencode

from aiohttp import web

from relay.core.model import Address, Method
from relay.store import addresses
from relay.store.addresses import Latest, Letter, Row, State
from relay.store.directory import SiteView, TargetView
from webapi import sites as site_verbs
from webapi.advisor import ATTENDANCE, USUAL_LEASE, Attendance
from webapi.auth import Role, visible_site
from webapi.problems import Problem, not_found
from webapi.site_models import MOST_ADDRESSES
from webapi.ui import addresses_plot as plot
from webapi.ui.page import Page, View, perform, see_other
from webapi.ui.render import render
from webapi.ui.session import ROOT

HERE = f"{ROOT}/addresses"
#: Addresses of one page of the list.
PAGE = 100
#: Names proposed for a provider, at most.
MOST_NAMES = 1_000

_API = {operation.action: operation for operation in site_verbs.OPERATIONS}
_ADD = _API["POST /v1/sites/{name}/targets/{address}/pool"]
_RETIRE = _API["DELETE /v1/sites/{name}/substitutes/{address}"]
_SPACE = re.compile(r"[\s,;]+")


@dataclass(frozen=True, slots=True)
class Fullness:
    """A target in the row of targets: how many of its pool are leased now, and its last letter."""

    target: TargetView
    counts: Mapping[State, int]
    letter: Letter | None
    url: str

    @property
    def leased(self) -> int:
        return self.counts.get(State.LEASED, 0)

    @property
    def statics(self) -> int:
        return self.counts.get(State.STATIC, 0)


@dataclass(frozen=True, slots=True)
class Advised:
    """What to do about a pool.

    ``verdict``: empty (no address), unknown (nobody came), short, enough. ``missing`` addresses are to be added;
    ``names`` are proposed where the pool cannot grow by itself. ``room``: for how many times as many visits it does.
    """

    attendance: Attendance
    verdict: str
    missing: int
    room: float
    exhausted: int
    since: str
    curve: plot.Curve
    hours: plot.Hours
    names: tuple[str, ...] = ()
    domain: str | None = None


@dataclass(frozen=True, slots=True)
class Listed:
    """A page of the list. ``chosen`` None: every state."""

    rows: list[Row]
    letters: Mapping[int, Letter]
    older: bool
    counts: Mapping[State, int]
    chosen: State | None
    text: str
    total: int
    number: int
    pages: int
    base: str

    @property
    def first(self) -> int:
        return (self.number - 1) * PAGE

    def url(self, **changes: object) -> str:
        """This list with another filter or page."""
        asked = {"state": self.chosen, "q": self.text} | changes
        more = urlencode({name: value for name, value in asked.items() if value})
        return f"{self.base}{'&' if more else ''}{more}#list"


async def show(view: View) -> web.StreamResponse:
    site, target = _chosen(view)
    return await _page(view, site, target)


async def grow(view: View) -> web.StreamResponse:
    """More addresses with made-up names, where the domain is ours."""
    site, target = _posted(view)
    wanted = view.field("count").strip()
    try:
        if not re.fullmatch(r"[0-9]{1,9}", wanted):
            raise Problem(400, "must be a whole number", field="grow")
        await _perform_add(view, site, target, {"grow": int(wanted)})
    except Problem as problem:
        return await _refused(view, site, target, problem, count=wanted)
    return _back(view, site, target, "pool_grown")


async def add(view: View) -> web.StreamResponse:
    """Addresses that somebody has made at their provider, or a retired one again."""
    site, target = _posted(view)
    text = view.field("addresses")
    words = [word for word in _SPACE.split(text) if word]
    try:
        if not words:
            raise Problem(400, "write at least one address", field="addresses")
        await _perform_add(view, site, target, {"addresses": words})
    except Problem as problem:
        return await _refused(view, site, target, problem, text=text)
    return _back(view, site, target, "pool_added")


async def retire(view: View) -> web.StreamResponse:
    site, target = _posted(view)
    try:
        await perform(view, _RETIRE, path={"name": site.name, "address": view.field("address")})
    except Problem as problem:
        return await _refused(view, site, target, problem)
    return _back(view, site, target, "address_retired")


async def _perform_add(view: View, site: SiteView, target: TargetView, body: Mapping[str, object]) -> None:
    await perform(view, _ADD, path={"name": site.name, "address": str(target.address)}, body=body)


async def _refused(
    view: View, site: SiteView, target: TargetView, problem: Problem, count: str = "", text: str | None = None
) -> web.StreamResponse:
    """The page again with what was given and what is wrong with it; raises what is no error of the form."""
    if problem.status not in (400, 409):
        raise problem
    return await _page(view, site, target, problem=problem, count=count, text=text)


def _chosen(view: View) -> tuple[SiteView | None, TargetView | None]:
    """The site and target that the query names, else the first; raises Problem 404 for what the caller cannot see."""
    name = view.query("site")
    if name:
        site = visible_site(view.context.store, view.caller, name)
    elif view.sites:
        site = next((found for found in view.sites if found.targets), view.sites[0])
    else:
        return None, None
    return site, _target(site, view.query("target"))


def _target(site: SiteView, text: str) -> TargetView | None:
    if not text:
        pools = (target for target in site.targets if target.method is Method.POOL)
        return next(pools, site.targets[0] if site.targets else None)
    for target in site.targets:
        if str(target.address) == text:
            return target
    raise not_found("target")


def _posted(view: View) -> tuple[SiteView, TargetView]:
    site = visible_site(view.context.store, view.caller, view.field("site"))
    target = _target(site, view.field("target"))
    if target is None:
        raise not_found("target")
    return site, target


def _back(view: View, site: SiteView, target: TargetView, done: str) -> web.Response:
    """To the place in the list where the form stood."""
    place = {name: view.field(name) for name in ("state", "q", "page")}
    return see_other(_url(site, target), done, **place)


def _url(site: SiteView, target: TargetView | None = None) -> str:
    asked = {"site": site.name} | ({} if target is None else {"target": str(target.address)})
    return f"{HERE}?{urlencode(asked)}"


async def _page(
    view: View,
    site: SiteView | None,
    target: TargetView | None,
    problem: Problem | None = None,
    count: str = "",
    text: str | None = None,
) -> web.StreamResponse:
    advised = listed = minted = expected = None
    reader, now, advisor = view.context.store.reader, view.context.clock(), view.context.advisor
    fullness: list[Fullness] = []
    if site is not None and target is None:
        expected = (await advisor.attendance(reader, site.id, USUAL_LEASE, now)).advice
    if site is not None and target is not None:
        latest = await advisor.letters(reader, site.id, now)
        fullness = await _fullness(view, site, latest)
        counts = next(found.counts for found in fullness if found.target is target)
        if target.method is Method.POOL:
            advised = await _advice(view, site, target)
        if target.domain is not None and target.method is not Method.PLUS:
            minted = await addresses.minted(reader, target.id, now)
        if counts or target.method is Method.POOL:
            listed = await _list(view, site, target, counts, latest)
    return render(
        view,
        "addresses.html",
        status=200 if problem is None else problem.status,
        here=HERE,
        chosen=site,
        target=target,
        fullness=fullness,
        advised=advised,
        expected=expected,
        minted=minted,
        listed=listed,
        problem=problem,
        count=count,
        text=text,
        LATEST=addresses.LATEST,
        MOST=MOST_ADDRESSES,
        plot=plot,
    )


async def _fullness(view: View, site: SiteView, latest: Latest) -> list[Fullness]:
    reader, now = view.context.store.reader, view.context.clock()
    letters = await addresses.last_letters(reader, latest.by_target, [target.id for target in site.targets])
    return [
        Fullness(target, await addresses.counts(reader, target.id, now), letters.get(target.id), _url(site, target))
        for target in site.targets
    ]


async def _advice(view: View, site: SiteView, target: TargetView) -> Advised:
    reader, now, size = view.context.store.reader, view.context.clock(), target.pool_size
    attendance = await view.context.advisor.attendance(reader, site.id, target.lease, now)
    wanted = attendance.advice.recommendation.size
    verdict = "enough"
    if not size:
        verdict = "empty"
    elif not attendance.advice.visits:
        verdict = "unknown"
    elif size < wanted:
        verdict = "short"
    missing = max(0, wanted - size)
    domain, names = await _proposed(view, target, missing)
    return Advised(
        attendance=attendance,
        verdict=verdict,
        missing=missing,
        room=await view.context.advisor.room(size, wanted),
        exhausted=await addresses.exhausted(reader, site.id, now - ATTENDANCE),
        since=plot.day(now - ATTENDANCE),
        curve=plot.curve(attendance.advice, size),
        hours=plot.hours(attendance, size, wanted),
        names=names,
        domain=domain,
    )


async def _proposed(view: View, target: TargetView, missing: int) -> tuple[str | None, tuple[str, ...]]:
    """A domain that is not ours and names to create there, as a pool that grows by itself would have them."""
    if target.domain is not None:
        return None, ()
    store = view.context.store
    domain = await addresses.usual_domain(store.reader, target.id) or target.address.domain
    mailboxes: list[Address] = [other.address for site in store.sites.by_id.values() for other in site.targets]
    try:
        free = await addresses.free_names(
            store.reader, target.address.local, domain, min(missing, MOST_NAMES), mailboxes
        )
    except ValueError:  # a local part that needs quotes: no name is made of it
        free = []
    return domain, tuple(str(address) for address in free)


async def _list(view: View, site: SiteView, target: TargetView, counts: Mapping[State, int], latest: Latest) -> Listed:
    reader, now = view.context.store.reader, view.context.clock()
    chosen = State(view.query("state")) if view.query("state") in list(State) else None
    text = view.query("q").strip()[:320].replace("\0", "")
    total = await addresses.count(reader, target.id, now, chosen, text)
    pages = max(1, -(-total // PAGE))
    asked = view.query("page")
    number = min(int(asked), pages) if re.fullmatch(r"[1-9][0-9]{0,8}", asked) else 1
    rows = await addresses.page(reader, target.id, now, chosen, text, first=(number - 1) * PAGE, most=PAGE)
    letters = await addresses.last_letters(reader, latest.by_route, [row.id for row in rows])
    return Listed(rows, letters, latest.older, counts, chosen, text, total, number, pages, _url(site, target))


PAGES: tuple[Page, ...] = (
    Page("GET", HERE, show),
    Page("POST", f"{HERE}/grow", grow, Role.MANAGER),
    Page("POST", f"{HERE}/add", add, Role.MANAGER),
    Page("POST", f"{HERE}/retire", retire, Role.ADMIN),
)
