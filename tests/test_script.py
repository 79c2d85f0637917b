"""GET /mailtrack.js: the right settings baked in, kept by caches for a while, and safe wherever it stands."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from importlib.resources import files
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from relay.config import Http
from relay.core.channel import Channel, SourceRule
from relay.core.site import LeaseOn, SiteSettings, Touch
from relay.store import sites
from tests.store_fixtures import OTHER, SHOP, TRACK, address, pool_target
from tests.test_script_build import GZIP
from tests.webapi_fixtures import SHOP_ORIGIN, Api, serving
from webapi.script import baked, render

PATH = "/mailtrack.js?site=pk_shop"


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with serving(tmp_path) as found:
        yield found


async def text_of(api: Api, path: str = PATH) -> str:
    response, octets = await api.request("GET", path)
    assert response.status == 200
    return octets.decode()


async def settings_of(api: Api, path: str = PATH) -> Any:
    """What stands in the script where its source has the place for the settings."""
    before, place, after = (files("webapi") / "script/mailtrack.js").read_text("utf-8").partition("__MAILTRACK__")
    assert place
    text = await text_of(api, path)
    assert text.startswith(before)
    assert text.endswith(after)
    return json.loads(text[len(before) : len(text) - len(after)])


def basic(api: Api) -> dict[str, Any]:
    """The settings of the shop where nothing was switched on."""
    return {
        "site": "pk_shop",
        "api": f"{api.url}/v1/bind",
        "targets": ["sales@example.com", "help@example.com", "jobs@example.com"],
        "domains": [TRACK],
    }


def test_the_source_has_one_place_for_the_settings() -> None:
    assert (files("webapi") / "script/mailtrack.js").read_text("utf-8").count("__MAILTRACK__") == 1


async def test_the_sites_targets_and_the_api_are_baked_in(api: Api) -> None:
    assert await settings_of(api) == basic(api) | {"cookie": "roistat_visit", "marker": "roistat_marker"}


#: A setting of the site, and what the script is told of it. What is off is left out.
OPTIONS: tuple[tuple[dict[str, Any], dict[str, Any]], ...] = (
    ({"visit_cookie": "other_visit"}, {"cookie": "other_visit"}),
    ({"marker_cookie": "other_marker"}, {"marker": "other_marker"}),
    ({"cookie_domain": "shop.example"}, {"domain": "shop.example"}),
    ({"server_cookies": True}, {"credentials": "include"}),
    ({"respect_gpc": True}, {"gpc": 1}),
    ({"lease_on": LeaseOn.INTERACTION}, {"lazy": 1}),
    ({"google_analytics": True}, {"google": 1}),
    ({"metrica": 1}, {"metrica": 1}),
    ({"metrica": 12345678}, {"metrica": 12345678}),
    # what is the server's business alone
    ({"reserve": 50}, {}),
    ({"touch": Touch.FIRST}, {}),
    ({"rules": (SourceRule("x", Channel.ADS, page="/secret/*"),)}, {}),
)
OFF = SiteSettings(visit_cookie=None, marker_cookie=None)


@pytest.mark.parametrize(("given", "told"), [({}, {}), *OPTIONS], ids=str)
async def test_each_setting_is_told_where_it_is_on_and_left_out_where_it_is_off(
    tmp_path: Path, given: dict[str, Any], told: dict[str, Any]
) -> None:
    async with serving(tmp_path, replace(SHOP, settings=replace(OFF, **given))) as api:
        assert await settings_of(api) == basic(api) | told


async def test_all_settings_are_told_in_every_combination(api: Api) -> None:
    """Rendered without a server for each: two to the power of seven sites."""
    plain = replace(api.w.site(), settings=OFF)
    before, _, after = (files("webapi") / "script/mailtrack.js").read_text("utf-8").partition("__MAILTRACK__")
    seen = set()
    for chosen in product((False, True), repeat=7):
        options = [option for option, on in zip(OPTIONS, chosen, strict=False) if on]
        given = {name: value for given, _ in options for name, value in given.items()}
        told = {name: value for _, told in options for name, value in told.items()}
        for consent in (False, True):
            site = replace(plain, settings=replace(OFF, **given))
            rendered = await render(api.w.store, site, f"{api.url}/v1/bind", consent=consent)
            text = rendered.body.decode()
            found = json.loads(text[len(before) : len(text) - len(after)])
            assert found == basic(api) | told | ({"consent": 1} if consent else {})
            seen.add(rendered.etag)
    assert len(seen) == 2**8


async def test_an_additional_target_is_left_to_the_pages_that_name_it(tmp_path: Path) -> None:
    targets = (SHOP.targets[0], replace(SHOP.targets[1], additional=True), SHOP.targets[2])
    async with serving(tmp_path, replace(SHOP, targets=targets)) as api:
        found = await settings_of(api)
        assert found["targets"] == ["sales@example.com", "jobs@example.com"]
        assert found["domains"] == [TRACK]
        _, answer = await api.bind(addresses=["help@example.com"])
        assert list(answer["addresses"]) == ["help@example.com"]


@pytest.mark.parametrize(
    ("query", "consent"),
    [
        ("&consent=required", True),
        ("&consent=Required", False),
        ("&consent=1", False),
        ("&consent=", False),
        ("", False),
    ],
)
async def test_consent_may_be_required_by_the_scripts_address(api: Api, query: str, consent: bool) -> None:
    assert (await settings_of(api, PATH + query)).get("consent") == (1 if consent else None)


async def test_browsers_and_caches_tell_the_two_scripts_apart(api: Api) -> None:
    required = f"{PATH}&consent=required"
    etags = [(await api.request("GET", path))[0].headers["ETag"] for path in (PATH, required, PATH, required)]
    assert etags[:2] == etags[2:]
    assert etags[0] != etags[1]
    response, _ = await api.request("GET", required, headers={"If-None-Match": etags[0]})
    assert response.status == 200


async def test_under_other_names_script_and_bind_are_the_same_as_under_their_own(tmp_path: Path) -> None:
    """Blockers know the usual names; pages that were made before go on with those."""
    http = Http(script_path="/assets/app.js", bind_path="/assets/b-1")
    async with serving(tmp_path, http=http) as api:
        renamed, usual = "/assets/app.js?site=pk_shop", PATH
        assert await text_of(api, renamed) == await text_of(api, usual)
        assert (await settings_of(api, renamed))["api"] == f"{api.url}/assets/b-1"
        async with api.session.head(api.url + renamed) as response:
            assert response.status == 200
        headers = {"Origin": SHOP_ORIGIN, "Content-Type": "text/plain", "User-Agent": "Mozilla/5.0"}
        for path in ("/assets/b-1", "/v1/bind"):
            body = json.dumps({"site": "pk_shop", "addresses": ["help@example.com"]})
            status, answer = await api.call("POST", path, data=body, headers=headers)
            assert (status, list(answer["addresses"])) == (200, ["help@example.com"])
            status, _ = await api.call("OPTIONS", path, headers={"Origin": SHOP_ORIGIN})
            assert status == 204
        assert (await api.request("GET", "/assets/other.js"))[0].status == 404


async def test_domains_of_listed_pool_addresses_are_known_too(tmp_path: Path) -> None:
    target = pool_target("sales@example.com", f"a@{TRACK}", "b@elsewhere.example", domain=None)
    async with serving(tmp_path, replace(SHOP, targets=(target,), statics=())) as api:
        assert (await settings_of(api))["domains"] == ["elsewhere.example", TRACK]


async def test_of_internationalised_domains_both_spellings_are_known_and_bind_answers_the_one_that_was_asked(
    tmp_path: Path,
) -> None:
    target = pool_target("info@bücher.example", "a@xn--p1ai.example", domain=None)
    async with serving(tmp_path, replace(SHOP, targets=(target,), statics=())) as api:
        found = await settings_of(api)
        assert found["targets"] == ["info@xn--bcher-kva.example", "info@bücher.example"]
        assert found["domains"] == ["xn--p1ai.example", "рф.example"]
        asked = [*found["targets"], "Info@BÜCHER.example", "a@рф.example"]
        _, answer = await api.bind(addresses=asked)
        assert answer["addresses"] == dict.fromkeys(asked, "a@xn--p1ai.example")


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
    assert response.headers["Cache-Control"] == "public, max-age=300, stale-while-revalidate=86400"
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


async def test_is_packed_for_who_takes_it_and_its_settings_add_a_hundred_octets_at_most(api: Api) -> None:
    async with api.session.get(api.url + PATH, headers={"Accept-Encoding": "gzip, br"}) as response:
        assert response.headers["Content-Encoding"] == "gzip"
        assert response.headers["Vary"] == "Accept-Encoding"
        assert int(response.headers["Content-Length"]) <= GZIP + 100
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
