"""GET /mailtrack.js: the website script with a site's targets and our address baked in."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources

from aiohttp import web

from relay.store.directory import SiteView
from webapi.context import CONTEXT
from webapi.operation import Operation

_SETTINGS = "/*settings*/"
#: Seconds that a browser may use its copy: a new target shows within this time.
MAX_AGE = 300
_HEADERS = {
    "Content-Type": "text/javascript; charset=utf-8",
    "Cache-Control": f"public, max-age={MAX_AGE}",
    "Cross-Origin-Resource-Policy": "cross-origin",
    "Access-Control-Allow-Origin": "*",
}


@cache
def _source() -> str:
    return resources.files("webapi").joinpath("script/mailtrack.js").read_text(encoding="utf-8")


async def script(request: web.Request) -> web.Response:
    """The script for ?site=KEY; 404 with a comment for a key that no site has, so that a page shows no error."""
    context = request.app[CONTEXT]
    site = context.store.sites.by_key.get(request.query.get("site", ""))
    if site is None:
        headers = {**_HEADERS, "Cache-Control": "no-store"}
        return web.Response(status=404, text="/* visit-relay: no site has this key */\n", headers=headers)
    return web.Response(text=_source().replace(_SETTINGS, _settings(site, context.public_url)), headers=_HEADERS)


def _settings(site: SiteView, public_url: str) -> str:
    settings = {
        "url": public_url,
        "key": site.key,
        "targets": [str(target.address).lower() for target in site.targets],
        "domains": sorted({target.domain for target in site.targets if target.domain}),
    }
    # Valid in a script element as well, should somebody inline it.
    return json.dumps(settings).replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


OPERATIONS = (
    Operation(
        "GET",
        "/mailtrack.js",
        "The website script of a site",
        script,
        role=None,
        answer="text/javascript",
        problems=(404,),
    ),
)
