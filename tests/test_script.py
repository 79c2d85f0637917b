"""GET /mailtrack.js: the right settings baked in, kept by caches for a while, and safe wherever it stands."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from relay.store import sites
from tests.store_fixtures import OTHER, SHOP, TRACK, address, pool_target
from tests.webapi_fixtures import Api, serving
from webapi.script import baked

PATH = "/mailtrack.js?site=pk_shop"


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with serving(tmp_path) as found:
        yield found


async def settings_of(api: Api, path: str = PATH) -> Any:
    """The settings at the end of the script."""
    _, octets = await api.request("GET", path)
    match = re.search(r"\}\)\((\{.*\})\);\s*\Z", octets.decode(), re.DOTALL)
    assert match is not None
    return json.loads(match[1])


async def test_the_sites_targets_and_the_api_are_baked_in(api: Api) -> None:
    assert await settings_of(api) == {
        "site": "pk_shop",
        "api": f"{api.url}/v1/bind",
        "targets": ["sales@example.com", "help@example.com", "jobs@example.com"],
        "domains": [TRACK],
    }


async def test_domains_of_listed_pool_addresses_are_known_too(tmp_path: Path) -> None:
    target = pool_target("sales@example.com", f"a@{TRACK}", "b@elsewhere.example", domain=None)
    async with serving(tmp_path, replace(SHOP, targets=(target,), statics=())) as api:
        assert (await settings_of(api))["domains"] == ["elsewhere.example", TRACK]


async def test_a_change_of_the_site_shows_in_the_next_answer(api: Api) -> None:
    await settings_of(api)
    target = api.w.target()
    await api.w.store.redefine(
        lambda tx: sites.add_to_pool(tx, api.w.site().id, target.id, [address("x", "new.example")], api.w.now)
    )
    assert (await settings_of(api))["domains"] == ["new.example", TRACK]
    await api.w.declare(replace(SHOP, targets=SHOP.targets[:1]), OTHER)
    assert (await settings_of(api))["targets"] == ["sales@example.com"]


async def test_is_javascript_that_any_page_may_load_and_keep_for_a_while(api: Api) -> None:
    response, _ = await api.request("GET", PATH)
    assert response.headers["Content-Type"] == "text/javascript; charset=utf-8"
    assert response.headers["Cache-Control"] == "public, max-age=300"
    assert response.headers["Cross-Origin-Resource-Policy"] == "cross-origin"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert "Set-Cookie" not in response.headers


async def test_what_a_browser_has_already_is_not_sent_again(api: Api) -> None:
    response, _ = await api.request("GET", PATH)
    etag = response.headers["ETag"]
    response, octets = await api.request("GET", PATH, headers={"If-None-Match": f'"other", W/{etag}'})
    assert (response.status, octets, response.headers["ETag"]) == (304, b"", etag)
    response, octets = await api.request("GET", PATH, headers={"If-None-Match": '"other"'})
    assert (response.status, octets != b"") == (200, True)


async def test_is_packed_for_who_takes_it_and_under_three_kibibytes(api: Api) -> None:
    async with api.session.get(api.url + PATH, headers={"Accept-Encoding": "gzip, br"}) as response:
        assert response.headers["Content-Encoding"] == "gzip"
        assert response.headers["Vary"] == "Accept-Encoding"
        assert int(response.headers["Content-Length"]) < 3072
        packed = await response.read()
    async with api.session.get(api.url + PATH, headers={"Accept-Encoding": "identity"}) as response:
        assert "Content-Encoding" not in response.headers
        assert await response.read() == packed


@pytest.mark.parametrize("path", ["/mailtrack.js", "/mailtrack.js?site=pk_nobody", "/mailtrack.js?site=%00"])
async def test_an_unknown_site_is_a_comment_and_no_script_error(api: Api, path: str) -> None:
    response, octets = await api.request("GET", path)
    assert (response.status, octets) == (404, b"/* mailtrack: no such site */\n")
    assert response.headers["Content-Type"] == "text/javascript; charset=utf-8"


async def test_further_parameters_are_no_matter(api: Api) -> None:
    assert (await settings_of(api, f"{PATH}&v=17"))["site"] == "pk_shop"


def test_settings_cannot_end_the_script_element_or_the_line() -> None:
    text = baked({"a": "</script><!--\u2028"})
    assert "<" not in text
    assert text.isascii()
    assert json.loads(text) == {"a": "</script><!--\u2028"}
