"""POST /v1/bind: which visit this page view belongs to, and which addresses it shows (PRODUCT.md, "Binding API").

Who may ask for a site: pages of its origins, by the Origin that every browser sends with a POST; without an Origin
only who has a token (role manager) for the site, for a server that renders pages itself. Nobody sends credentials.

This is the busiest path of the web API: a page view each, durable before it is answered.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Annotated

from aiohttp import web
from pydantic import BaseModel, Field, ValidationError
from pydantic_core import to_json

from relay.core.address import AddressError, lookup_keys, parse
from relay.core.attribution import NUMBER_DIGITS
from relay.core.model import RouteKind
from relay.core.source import URL_LIMIT, clean, parse_page
from relay.store import bindings
from relay.store.directory import SiteView, TargetView
from relay.store.store import Store
from webapi.auth import GATE, Role
from webapi.context import CONTEXT, client_of, read_body
from webapi.limits import Rate
from webapi.operation import JSON, Operation, Strict
from webapi.problems import Problem, invalid, not_found, too_many

#: Binds of one site a minute, whoever sends them; pages beyond it keep their real addresses.
SITE_BINDS_PER_MINUTE = 60_000
#: Lease in seconds that is answered where no target is asked for.
DEFAULT_LEASE = 900
#: Seconds that a browser may remember the answer to a preflight.
PREFLIGHT_AGE = 600

_BODY_TYPES = ("text/plain", JSON)
# What automated browsers and clients call themselves. "Cubot" makes telephones.
_AUTOMATED = re.compile(
    r"(?<!cu)bot(?![a-z])|crawler|spider|slurp|headless|phantomjs|puppeteer|playwright|selenium|lighthouse"
    r"|facebookexternalhit|curl/|wget/|python-|go-http-client",
    re.IGNORECASE,
)
_SUBDOMAIN = re.compile(r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?").fullmatch

Number = Annotated[str, Field(pattern=rf"^[0-9]{{1,{NUMBER_DIGITS}}}$")]
Param = Annotated[str | None, Field(max_length=2048)]


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
        tuple[Annotated[str, Field(max_length=320)], ...],
        Field(max_length=50, strict=False, description="Addresses as they stand on the page."),
    ] = ()
    params: BindParams | None = None
    google_client_id: Annotated[str, Field(max_length=256)] | None = None
    webdriver: Annotated[bool, Field(description="The browser says that a program steers it.")] = False


class BindAnswer(BaseModel):
    """``addresses`` maps what was sent to what is to be shown; what is missing stays as it is on the page."""

    visit: str
    first_visit: str | None
    lease: Annotated[int, Field(description="Seconds after which the page, while it is visible, binds again.")]
    addresses: dict[str, str]


BIND_RATE = web.AppKey("bind_rate", Rate)
SITE_RATE = web.AppKey("site_rate", Rate)


async def bind(request: web.Request) -> web.Response:
    """Number the visit and lease its addresses."""
    context = request.app[CONTEXT]
    now = context.clock()
    client = client_of(request)
    if not client.exempt and (wait := request.app[BIND_RATE].take(client.bucket, now)):
        raise too_many(wait, "page views from this network")
    body = await _body(request, context.http.max_bind_body)
    site = context.store.sites.by_key.get(body.site)
    if site is None:
        raise not_found("site", "site")
    headers, agent = await _asker(request, site)
    if not client.exempt and (wait := request.app[SITE_RATE].take(site.key, now)):
        raise too_many(wait, "page views of this site")
    wanted = await _targets(context.store, site, body.addresses)
    asked = {target.id: target for target in wanted.values()}
    answer = bindings.BindRequest(
        site_id=site.id,
        tracking=site.tracking,
        visit_timeout=site.visit_timeout,
        own_hosts=site.own_hosts,
        number=body.visit,
        first_visit=body.first_visit,
        marks=parse_page(body.page),
        referrer=body.referrer,
        params=_params(body.params) if body.params is not None else {},
        google_client_id=clean(body.google_client_id),
        ip=client.address or None,
        user_agent=clean(agent),
        asked=tuple(
            bindings.Asked(target.id, target.method, target.address.local, target.domain, target.lease)
            for target in asked.values()
        ),
        leasable=site.bots == "lease" or not (body.webdriver or is_automated(agent)),
    )
    bound = await context.store.write(lambda tx: bindings.bind(tx, answer, now))
    if bound.created:
        context.store.routes.forget(bound.created)
    shown = bound.substitutes
    document = {
        "visit": bound.visit,
        "first_visit": bound.first_visit,
        "lease": max(1, int(min((target.lease for target in asked.values()), default=DEFAULT_LEASE))),
        "addresses": {sent: shown[target.id] for sent, target in wanted.items() if target.id in shown},
    }
    return web.Response(body=to_json(document), headers=headers)


async def _body(request: web.Request, limit: int) -> BindBody:
    if request.headers.get("Content-Type") not in _BODY_TYPES and request.content_type not in _BODY_TYPES:
        raise Problem(415, "the body must be text/plain or application/json")
    octets = await read_body(request, limit)
    try:
        return BindBody.model_validate_json(octets)
    except ValidationError as error:
        raise invalid(error, BindBody) from None


async def _asker(request: web.Request, site: SiteView) -> tuple[dict[str, str], str | None]:
    """The answer's headers, and the User-Agent to judge; raises Problem for whoever may not ask for this site."""
    origin = request.headers.get("Origin")
    if origin is not None:
        if not allows(site, origin):
            raise Problem(403, "this origin is not one of the site's", field="Origin", headers={"Vary": "Origin"})
        return _cors(origin), request.headers.get("User-Agent", "")
    caller = await request.app[GATE].caller(request, Role.MANAGER)
    if not caller.sees(site.id):
        raise not_found("site", "site")
    # A server asks for its visitor: what it calls itself says nothing about the browser.
    return {"Content-Type": JSON, "Cache-Control": "no-store"}, None


def allows(site: SiteView, origin: str) -> bool:
    """Whether a page of ``origin`` may ask for this site: one of its origins, or a subdomain where it has "*."."""
    if origin in site.origins:
        return True
    for pattern in site.origins:
        scheme, wild, domain = pattern.partition("://*.")
        if wild and origin.startswith(f"{scheme}://") and origin.endswith(f".{domain}"):
            return _SUBDOMAIN(origin[len(scheme) + 3 : -len(domain) - 1]) is not None
    return False


def _cors(origin: str) -> dict[str, str]:
    return {
        "Content-Type": JSON,
        "Cache-Control": "no-store",
        "Access-Control-Allow-Origin": origin,
        "Vary": "Origin",
    }


async def _targets(store: Store, site: SiteView, addresses: tuple[str, ...]) -> dict[str, TargetView]:
    """The targets meant by what stands on the page: their own addresses, or substitutes from a page kept in a cache.

    A static substitute is there on purpose and stays.
    """
    found: dict[str, TargetView] = {}
    for index, sent in enumerate(addresses):
        try:
            address = parse(sent)
        except AddressError as error:
            raise Problem(400, f"addresses[{index}]: {error}", errors=((f"addresses[{index}]", str(error)),)) from None
        target = site.by_address.get(address.key)
        if target is None and address.domain in await store.routes.domains():
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


@lru_cache(maxsize=4096)
def is_automated(user_agent: str | None) -> bool:
    """Whether a User-Agent says that no person looks at the page. None: nobody's User-Agent is known."""
    return user_agent is not None and (not user_agent or _AUTOMATED.search(user_agent) is not None)


async def preflight(request: web.Request) -> web.Response:
    """The CORS question of a browser whose page sends JSON. Which site is meant, only the body would say."""
    origin = request.headers.get("Origin")
    if origin is None or not any(allows(site, origin) for site in request.app[CONTEXT].store.sites.by_key.values()):
        raise Problem(403, "this origin is not one of any site's", field="Origin", headers={"Vary": "Origin"})
    return web.Response(
        status=204,
        headers={
            "Access-Control-Allow-Origin": origin,
            "Access-Control-Allow-Methods": "POST",
            "Access-Control-Allow-Headers": "Content-Type",
            "Access-Control-Max-Age": str(PREFLIGHT_AGE),
            "Vary": "Origin",
        },
    )


OPERATIONS = (
    Operation(
        "POST",
        "/v1/bind",
        "The visit of a page view and the addresses it shows; called by the script.",
        bind,
        None,
        BindAnswer,
        body=BindBody,
        body_types=_BODY_TYPES,
        problems=(401, 403, 404, 413, 415, 429),
    ),
    Operation("OPTIONS", "/v1/bind", "CORS preflight.", preflight, None, None, status=204, problems=(403,)),
)
