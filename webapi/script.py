"""GET /mailtrack.js: the script of the website, with one site's targets baked in."""

from __future__ import annotations

import gzip
import hashlib
import json
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Annotated, Literal

from aiohttp import web
from pydantic import Field

from relay.core.address import domain_of, parse, written_domain
from relay.core.model import Address
from relay.core.site import LeaseOn
from relay.store.directory import SiteView
from relay.store.store import Store
from webapi.context import CONTEXT
from webapi.operation import Operation, Parameters
from webapi.seen import SIGHTS

PATH = "/mailtrack.js"
MEDIA_TYPE = "text/javascript; charset=utf-8"
#: Seconds that browsers keep the script: a changed target shows within them, or one page view later. That it comes from
#: the cache at once is what swaps the later pages of a session before they are drawn.
KEPT_FOR = 300
STALE_FOR = 86_400

_SOURCE = files("webapi").joinpath("script/mailtrack.js").read_text("utf-8")
_PLACE = "__MAILTRACK__"  # where the site's settings go
_UNKNOWN = b"/* mailtrack: no such site */\n"


class ScriptQuery(Parameters):
    """Whatever else is in the query is ignored: pages put marks of their own there to get past caches."""

    site: str
    consent: Annotated[
        Literal["required"] | None, Field(description='As data-consent="required", for tag managers that drop it.')
    ] = None


@dataclass(frozen=True, slots=True)
class Rendered:
    site: SiteView
    body: bytes
    packed: bytes
    etag: str


RENDERED = web.AppKey("rendered_scripts", dict[tuple[int, bool], Rendered])


async def script(request: web.Request) -> web.Response:
    context = request.app[CONTEXT]
    site = context.store.sites.by_key.get(request.query.get("site", ""))
    headers = {
        "Content-Type": MEDIA_TYPE,
        "Cache-Control": f"public, max-age={KEPT_FOR}, stale-while-revalidate={STALE_FOR}",
        "Cross-Origin-Resource-Policy": "cross-origin",
        "Vary": "Accept-Encoding",
    }
    if site is None:
        return web.Response(status=404, body=_UNKNOWN, headers=headers)
    request.app[SIGHTS].fetched(site.id, context.clock())
    kept = request.app[RENDERED]
    consent = request.query.get("consent") == "required"
    rendered = kept.get((site.id, consent))
    if rendered is None or rendered.site is not site:  # the directory makes a new view when anything changed
        api = context.public_url + context.http.bind_path
        rendered = kept[site.id, consent] = await render(context.store, site, api, consent=consent)
    headers["ETag"] = rendered.etag
    if rendered.etag in request.headers.get("If-None-Match", ""):
        return web.Response(status=304, headers=headers)
    if "gzip" in request.headers.get("Accept-Encoding", ""):
        return web.Response(body=rendered.packed, headers={**headers, "Content-Encoding": "gzip"})
    return web.Response(body=rendered.body, headers=headers)


async def render(store: Store, site: SiteView, api: str, *, consent: bool) -> Rendered:
    """The script of a site: its key, where to bind, its targets, the domains whose addresses may be substitutes, and
    what else it was told. What is off is left out (webapi/script/src/settings.ts)."""
    domains = {domain_of(target.domain) for target in site.targets if target.domain}
    for target in site.targets:
        domains |= {parse(row["address"]).domain for row in await store.sites.substitutes(target.id)}
    told = site.settings
    optional = {
        "cookie": told.visit_cookie,
        "marker": told.marker_cookie,
        "domain": told.cookie_domain,
        "credentials": "include" if told.server_cookies else None,
        "gpc": told.respect_gpc,
        "lazy": told.lease_on is LeaseOn.INTERACTION,
        "consent": consent,
        "google": told.google_analytics,
        "metrica": told.metrica,
    }
    settings = {
        "site": site.key,
        "api": api,
        "targets": [text for target in site.targets if not target.additional for text in _written(target.address)],
        "domains": sorted(domains | set(map(written_domain, domains))),
    } | {name: 1 if value is True else value for name, value in optional.items() if value}
    body = _SOURCE.replace(_PLACE, baked(settings)).encode()
    etag = f'"{hashlib.sha256(body).hexdigest()[:24]}"'
    return Rendered(site, body, gzip.compress(body, mtime=0), etag)


def _written(address: Address) -> dict[str, None]:
    """The address as it may stand on a page: its domain in A-labels, or in U-labels as people write it."""
    return dict.fromkeys((str(address), str(replace(address, domain=written_domain(address.domain)))))


def baked(settings: object) -> str:
    """JSON that is also JavaScript, wherever it stands: no "<" to end a script element with."""
    return json.dumps(settings, ensure_ascii=True, separators=(",", ":")).replace("<", "\\u003c")


OPERATIONS = (
    Operation(
        "GET",
        PATH,
        "The script of a site's pages.",
        script,
        None,
        MEDIA_TYPE,
        query=ScriptQuery,
        alike=(404,),
    ),
)
