"""POST /v1/bind: which visit this page view belongs to, and which addresses it shows (PRODUCT.md, "Binding API").

Who may ask for a site: pages of its origins, by the Origin that every browser sends with a POST; without an Origin
only who has a token (role manager) for the site, for a server that renders pages itself. Nobody sends credentials.

This is the busiest path of the web API: a page view each, durable before it is answered.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Annotated
from urllib.parse import unquote

from aiohttp import web
from multidict import CIMultiDict
from pydantic import BaseModel, BeforeValidator, Field, ValidationError
from pydantic.json_schema import SkipJsonSchema
from pydantic_core import to_json

from relay.agents import BOT, describe
from relay.config import Limits
from relay.core.address import AddressError, lookup_keys, parse
from relay.core.attribution import NUMBER_DIGITS
from relay.core.channel import Source, SourceRule
from relay.core.classify import classify
from relay.core.model import RouteKind
from relay.core.privacy import kept_ip
from relay.core.source import URL_LIMIT, PageMarks, clean, parse_page
from relay.sources import referrers
from relay.store import bindings
from relay.store.directory import SiteView, TargetView
from relay.store.engine import StoreUnavailable
from relay.store.store import Store
from relay.store.visits import Visitor
from webapi.auth import GATE, Role
from webapi.context import CONTEXT, Context, client_of, read_body
from webapi.limits import Rate
from webapi.operation import JSON, Operation, Strict
from webapi.problems import Problem, invalid, not_found, too_many
from webapi.seen import SIGHTS

PATH = "/v1/bind"
#: Lease in seconds that is answered where no target is asked for.
DEFAULT_LEASE = 900
#: What the script remembers a browser by, and for how many seconds (webapi/script/src has the same).
VISIT_COOKIE, VISIT_COOKIE_LIFE = "mailtrack_visit", 14 * 86_400
FIRST_COOKIE, FIRST_COOKIE_LIFE = "mailtrack_first", 365 * 86_400
#: Characters of page and referrer beyond which a page view is not remembered: they have marks that nobody else has.
LONG = 300
#: Seconds that a browser may remember the answer to a preflight.
PREFLIGHT_AGE = 600

#: The answer while the disk is nearly full.
_UNWRITTEN = to_json({"visit": None, "first_visit": None, "lease": DEFAULT_LEASE, "addresses": {}})

_BODY_TYPES = ("text/plain", JSON)
_SUBDOMAIN = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?").fullmatch

Number = Annotated[str, Field(pattern=rf"^[0-9]{{1,{NUMBER_DIGITS}}}$")]


def _text(value: object) -> object:
    """Pages write numbers as they like; what is stored is text."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


Param = Annotated[str | None, Field(max_length=2048), BeforeValidator(_text)]


class BindParams(Strict):
    """The additional parameters of a visit."""

    one: Param = Field(default=None, alias="1")
    two: Param = Field(default=None, alias="2")
    three: Param = Field(default=None, alias="3")
    four: Param = Field(default=None, alias="4")
    five: Param = Field(default=None, alias="5")


class BindBody(Strict):
    """One page view. ``visit`` is the visit that the browser believes it is in; the answer says which it is."""

    site: Annotated[str, Field(max_length=64, description="Public key of the site.")]
    visit: Number | None = None
    first_visit: Number | None = None
    page: Annotated[str, Field(max_length=URL_LIMIT)] | None = None
    referrer: Annotated[str, Field(max_length=URL_LIMIT)] | None = None
    addresses: Annotated[
        tuple[str, ...],
        Field(
            max_length=50, strict=False, description="Addresses as they stand on the page; what is none is left out."
        ),
    ] = ()
    params: BindParams | None = None
    google_client_id: Annotated[str, Field(max_length=256)] | None = None
    marker: Annotated[
        # As long as a cookie may be: what is stored of it is cut.
        Annotated[str, Field(max_length=4096)] | None,
        Field(description="The marker that another counter's cookie holds."),
    ] = None
    ours: Annotated[bool, Field(description="``visit`` stands in our own cookie, no other counter has one.")] = False
    ym_uid: Annotated[str, Field(max_length=4096)] | None = None
    interacted: Annotated[bool, Field(description="Somebody has moved, scrolled or typed on the page.")] = False
    webdriver: Annotated[bool, Field(description="The browser says that a program steers it.")] = False


class BindAnswer(BaseModel):
    """``addresses`` maps what was sent to what is to be shown; what is missing stays as it is on the page.

    ``visit`` null: nothing could be written, for the disk is nearly full; a page keeps what it shows and its number.
    """

    visit: str | None
    first_visit: str | None
    lease: Annotated[int, Field(description="Seconds after which the page, while it is visible, binds again.")]
    addresses: dict[str, str]
    reserved: bool | SkipJsonSchema[None] = Field(
        default=None, description="An address is there for whoever interacts: bind again when somebody does."
    )
    mails: int | SkipJsonSchema[None] = Field(
        default=None, description="Letters of this visit so far; only for sites that tell an analytics counter."
    )


@dataclass(slots=True)
class Rates:
    """``views`` and ``leases`` by the visitor's network, ``sites`` by the site's key."""

    views: Rate
    leases: Rate
    sites: Rate

    @classmethod
    def of(cls, limits: Limits) -> Rates:
        return cls(
            Rate(limits.binds_per_address_per_minute),
            Rate(limits.leases_per_address_per_minute),
            Rate(limits.binds_per_site_per_minute),
        )


RATES = web.AppKey("bind_rates", Rates)


@dataclass(slots=True)
class Tally:
    """Page views since the start by site and outcome, and those that found a whole pool held by site and target.

    The site is "" where none was named that there is.
    """

    views: Counter[tuple[str, str]] = field(default_factory=Counter)
    exhausted: Counter[tuple[str, str]] = field(default_factory=Counter)


TALLY = web.AppKey("bind_tally", Tally)
#: What a page view came to that was answered with a problem, by its status; all others are "invalid".
_OUTCOMES = {401: "refused", 403: "refused", 429: "limited", 503: "unavailable", 500: "failed"}
_SITE = web.RequestKey("bind_site", str)


async def bind(request: web.Request) -> web.Response:
    """Number the visit and lease its addresses."""
    outcome = "failed"
    try:
        outcome, response = await _bind(request)
        return response
    except Problem as problem:
        outcome = _OUTCOMES.get(problem.status, "invalid")
        raise
    except web.HTTPException:
        outcome = "invalid"
        raise
    except StoreUnavailable:
        outcome = "unavailable"
        raise
    finally:
        request.app[TALLY].views[request.get(_SITE, ""), outcome] += 1


async def _bind(request: web.Request) -> tuple[str, web.Response]:
    context = request.app[CONTEXT]
    rates = request.app[RATES]
    client = client_of(request)
    if not client.exempt and (wait := rates.views.take(client.bucket, context.clock())):
        raise too_many(wait, "page views from this network")
    body = await _body(request, context.http.max_bind_body)
    now = context.clock()  # a body may take its time; what comes of it begins when it is there
    site = context.store.sites.by_key.get(body.site)
    if site is None:
        raise not_found("site", "site")
    request[_SITE] = site.name
    headers, agent = await _asker(request, site)
    if not client.exempt and (wait := rates.sites.take(site.key, now)):
        raise too_many(wait, "page views of this site")
    if not context.room():
        return "no_room", web.Response(body=_UNWRITTEN, headers=headers)
    wanted = await _targets(context.store, site, body.addresses)
    asked = {target.id: target for target in wanted.values()}
    # The address of a server says nothing of its visitor, neither where he is nor how often he asks.
    limited = not client.exempt and agent is not None
    address = "" if agent is None else client.address
    # Taken before it is known whether anything is leased: page views of one moment must share what is left.
    granted = not limited or not rates.leases.take(client.bucket, now)
    view = _view(context, site, body, asked.values(), address, agent, new_leases=granted)
    bound = None
    try:
        bound = await context.store.write(lambda tx: bindings.bind(tx, view, now))
    finally:
        if limited and granted and not (bound and bound.leased):
            rates.leases.give_back(client.bucket, now)
    if bound.created:
        context.store.routes.forget(bound.created)
    request.app[SIGHTS].viewed(site.id, request.headers.get("Origin"), body.page, now)
    shown = bound.substitutes
    document = {
        "visit": bound.visit,
        "first_visit": bound.first_visit,
        "lease": max(1, int(min((target.lease for target in asked.values()), default=DEFAULT_LEASE))),
        "addresses": {sent: shown[target.id] for sent, target in wanted.items() if target.id in shown},
    }
    if bound.reserved:
        document["reserved"] = True
    if bound.mails is not None:
        document["mails"] = bound.mails
    if site.settings.server_cookies:
        secure = context.public_url.startswith("https:")
        _set_cookies(headers, site.settings.cookie_domain, bound, secure=secure)
    tally = request.app[TALLY]
    for target_id in bound.exhausted:
        tally.exhausted[site.name, str(target_id)] += 1
    return "shown" if document["addresses"] else "plain", web.Response(body=to_json(document), headers=headers)


def _view(
    context: Context,
    site: SiteView,
    body: BindBody,
    asked: Iterable[TargetView],
    address: str,
    agent: str | None,
    *,
    new_leases: bool,
) -> bindings.BindRequest:
    """What the store is told of a page view."""
    settings = site.settings
    marks, source = _arrival(site, body)
    visitor = describe(agent)
    place = context.geoip.place(address)
    return bindings.BindRequest(
        site_id=site.id,
        tracking=site.tracking,
        visit_timeout=site.visit_timeout,
        own_hosts=site.own_hosts,
        number=body.visit,
        ours=body.ours,
        first_visit=body.first_visit,
        marks=marks,
        source=source,
        referrer=body.referrer,
        params=_params(body.params) if body.params is not None else {},
        google_client_id=clean(body.google_client_id),
        ym_uid=clean(body.ym_uid),
        visitor=Visitor(
            ip=kept_ip(address or None, context.visitor_ip),
            city=place.city,
            country=place.country,
            user_agent=clean(agent),
            device=BOT if body.webdriver else visitor.device,
            browser=visitor.browser,
            os=visitor.os,
        ),
        asked=tuple(
            bindings.Asked(
                target.id,
                target.method,
                target.address.local,
                target.domain,
                target.lease,
                target.pool_size * settings.reserve // 100,
            )
            for target in asked
        ),
        leasable=site.bots == "lease" or not (body.webdriver or visitor.automated),
        new_leases=new_leases,
        interacted=body.interacted,
        count_mails=settings.counts_mails,
    )


def _arrival(site: SiteView, body: BindBody) -> tuple[PageMarks, Source]:
    """What the page's address says, and where the page view came from."""
    page, referrer, rules = body.page or "", body.referrer or "", site.settings.rules
    # Most page views are of few pages from few places. Rules are not hashed for each of them.
    if rules or body.marker or len(page) + len(referrer) > LONG:
        return _arrived(page, referrer, site.own_hosts, rules, unquote(body.marker or ""))
    return _remembered(page, referrer, site.own_hosts)


@lru_cache(maxsize=4096)
def _remembered(page: str, referrer: str, own_hosts: Collection[str]) -> tuple[PageMarks, Source]:
    return _arrived(page, referrer, own_hosts, (), "")


def _arrived(
    page: str, referrer: str, own_hosts: Collection[str], rules: Sequence[SourceRule], marker: str
) -> tuple[PageMarks, Source]:
    marks = parse_page(page)
    return marks, classify(marks, page, referrer, own_hosts, rules, referrers(), marker)


def _set_cookies(headers: CIMultiDict[str], domain: str | None, bound: bindings.Bound, *, secure: bool) -> None:
    """The visit's cookies, set by the server: browsers that cut the life of a script's cookies leave these alone.

    The script reads them, so they are not HttpOnly; a number is no secret that opens anything.
    """
    more = f"Domain={domain}; Path=/; SameSite=Lax{'; Secure' if secure else ''}"
    numbers = ((VISIT_COOKIE, bound.visit, VISIT_COOKIE_LIFE), (FIRST_COOKIE, bound.first_visit, FIRST_COOKIE_LIFE))
    for name, number, life in numbers:
        if number is not None:
            headers.add("Set-Cookie", f"{name}={number}; Max-Age={life}; {more}")


async def _body(request: web.Request, limit: int) -> BindBody:
    if request.headers.get("Content-Type") not in _BODY_TYPES and request.content_type not in _BODY_TYPES:
        raise Problem(415, "the body must be text/plain or application/json")
    octets = await read_body(request, limit)
    try:
        return BindBody.model_validate_json(octets)
    except ValidationError as error:
        raise invalid(error, BindBody) from None


async def _asker(request: web.Request, site: SiteView) -> tuple[CIMultiDict[str], str | None]:
    """The answer's headers, and the User-Agent to judge; raises Problem for whoever may not ask for this site."""
    origin = request.headers.get("Origin")
    if origin is not None:
        if not allows(site, origin):
            request.app[SIGHTS].refused(site.id, origin, request.app[CONTEXT].clock())
            raise Problem(403, "this origin is not one of the site's", field="Origin", headers={"Vary": "Origin"})
        return _cors(origin, site), request.headers.get("User-Agent", "")
    caller = await request.app[GATE].caller(request, Role.MANAGER)
    if not caller.sees(site.id):
        raise not_found("site", "site")
    # A server asks for its visitor: what it calls itself says nothing about the browser.
    return CIMultiDict({"Content-Type": JSON, "Cache-Control": "no-store"}), None


def allows(site: SiteView, origin: str) -> bool:
    """Whether a page of ``origin`` may ask for this site: one of its origins, or a subdomain where it has "*."."""
    if origin in site.origins:
        return True
    for pattern in site.origins:
        scheme, wild, domain = pattern.partition("://*.")
        if wild and origin.startswith(f"{scheme}://") and origin.endswith(f".{domain}"):
            return _SUBDOMAIN(origin[len(scheme) + 3 : -len(domain) - 1]) is not None
    return False


def _cors(origin: str, site: SiteView) -> CIMultiDict[str]:
    headers = CIMultiDict(
        {
            "Content-Type": JSON,
            "Cache-Control": "no-store",
            "Access-Control-Allow-Origin": origin,
            "Vary": "Origin",
        }
    )
    if site.settings.server_cookies:  # else a browser would not keep them from an answer to another origin
        headers["Access-Control-Allow-Credentials"] = "true"
    return headers


async def _targets(store: Store, site: SiteView, addresses: tuple[str, ...]) -> dict[str, TargetView]:
    """The targets meant by what stands on the page: their own addresses, or substitutes from a page kept in a cache.

    A static substitute is there on purpose and stays.
    """
    found: dict[str, TargetView] = {}
    domains = await store.routes.domains()
    for sent in addresses:
        try:
            address = parse(sent)
        except AddressError:
            continue  # what stands on a page is anybody's text, and the others are addresses
        target = site.by_address.get(address.key)
        if target is None and address.domain in domains:
            route = await store.routes.find(lookup_keys(address))
            if route is not None and route[0].site_id == site.id and route[0].kind is not RouteKind.STATIC:
                target = next((target for target in site.targets if target.id == route[0].target_id), None)
        if target is not None:
            found[sent] = target
    return found


def _params(params: BindParams) -> dict[str, str]:
    values = (params.one, params.two, params.three, params.four, params.five)
    cleaned = ((str(index), clean(value)) for index, value in enumerate(values, 1))
    return {index: value for index, value in cleaned if value}


async def preflight(request: web.Request) -> web.Response:
    """The CORS question of a browser whose page sends JSON. Which site is meant, only the body would say."""
    origin = request.headers.get("Origin")
    sites = request.app[CONTEXT].store.sites.by_key.values()
    allowing = [site for site in sites if origin is not None and allows(site, origin)]
    if origin is None or not allowing:
        raise Problem(403, "this origin is not one of any site's", field="Origin", headers={"Vary": "Origin"})
    headers = {
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Allow-Methods": "POST",
        "Access-Control-Allow-Headers": "Content-Type",
        "Access-Control-Max-Age": str(PREFLIGHT_AGE),
        "Vary": "Origin",
    }
    if any(site.settings.server_cookies for site in allowing):
        headers["Access-Control-Allow-Credentials"] = "true"
    return web.Response(status=204, headers=headers)


OPERATIONS = (
    Operation(
        "POST",
        PATH,
        "The visit of a page view and the addresses it shows; called by the script.",
        bind,
        None,
        BindAnswer,
        body=BindBody,
        body_types=_BODY_TYPES,
        problems=(401, 403, 404, 413, 415, 429),
    ),
    Operation("OPTIONS", PATH, "CORS preflight.", preflight, None, None, status=204, problems=(403,)),
)
