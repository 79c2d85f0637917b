"""POST /v1/bind over loopback: who may ask, what is answered, what is refused and changes nothing."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from sqlalchemy import func, select

from relay.config import Http, Limits
from relay.core.channel import Channel, SourceRule
from relay.core.model import IpDetail, Method
from relay.core.site import SiteSettings
from relay.geoip import GeoIp
from relay.store.engine import StoreUnavailable
from relay.store.schema import bindings, visits
from tests.geoip_files import FLAT, write
from tests.store_fixtures import OTHER, SHOP, TRACK, pool_target, site, target_of
from tests.webapi_fixtures import SHOP_ORIGIN, Api, fields, of_all, serving
from webapi.bind import BindBody, allows


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with serving(tmp_path) as found:
        yield found


async def counted(api: Api) -> tuple[int, int]:
    """Visits and bindings there are."""
    ((seen,),) = await api.w.rows(select(func.count()).select_from(visits))
    ((bound,),) = await api.w.rows(select(func.count()).select_from(bindings))
    return seen, bound


class TestAnswer:
    async def test_a_page_view_gets_its_number_and_its_address(self, api: Api) -> None:
        status, answer = await api.bind()
        assert status == 200
        assert set(answer) == {"visit", "first_visit", "lease", "addresses"}
        assert answer["visit"].isdecimal()
        assert answer["first_visit"] == answer["visit"]
        assert answer["lease"] == 900
        assert answer["addresses"] == {"sales@example.com": f"info1@{TRACK}"}

    async def test_the_same_visit_keeps_its_address(self, api: Api) -> None:
        _, first = await api.bind()
        _, again = await api.bind(visit=first["visit"], first_visit=first["first_visit"])
        assert again == first
        assert await counted(api) == (1, 1)

    async def test_new_marks_begin_a_new_visit_of_the_same_browser(self, api: Api) -> None:
        _, first = await api.bind()
        _, second = await api.bind(visit=first["visit"], page="https://www.shop.example/?utm_source=google")
        assert second["visit"] != first["visit"]
        assert second["first_visit"] == first["visit"]

    async def test_a_number_of_another_counter_is_kept(self, api: Api) -> None:
        _, answer = await api.bind(visit="777", first_visit="1001")
        assert (answer["visit"], answer["first_visit"]) == ("777", "1001")

    async def test_what_the_page_says_of_itself_is_stored(self, api: Api) -> None:
        _, answer = await api.bind(
            page="https://www.shop.example/new?utm_source=fb&roistat_param_2=from-page#part",
            referrer="https://fb.com/",
            params={"1": "one", "3": ""},
            google_client_id="12.34",
        )
        (row,) = await api.w.rows(
            select(
                visits.c.number,
                visits.c.landing_page,
                visits.c.domain,
                visits.c.referrer,
                visits.c.marker,
                visits.c.params,
                visits.c.google_client_id,
                visits.c.ip,
                visits.c.user_agent,
            )
        )
        assert row[:5] == (
            answer["visit"],
            "www.shop.example/new?utm_source=fb&roistat_param_2=from-page",
            "www.shop.example",
            "fb.com",
            "fb",
        )
        assert json.loads(row[5]) == {"1": "one", "2": "from-page"}
        assert row[6:] == ("12.34", "127.0.0.1", "Mozilla/5.0 (X11)")

    async def test_numbers_among_the_parameters_are_stored_as_text(self, api: Api) -> None:
        await api.bind(params={"1": 5, "2": 1.5, "3": "x"})
        ((params,),) = await api.w.rows(select(visits.c.params))
        assert json.loads(params) == {"1": "5", "2": "1.5", "3": "x"}

    async def test_addresses_are_found_in_any_case_and_answered_as_they_were_sent(self, api: Api) -> None:
        sent = ["Sales@Example.COM", "sales@example.com", "nobody@example.com"]
        _, answer = await api.bind(addresses=sent)
        assert answer["addresses"] == dict.fromkeys(sent[:2], f"info1@{TRACK}")
        assert await counted(api) == (1, 1)

    async def test_each_method_gives_its_kind_of_address(self, api: Api) -> None:
        _, answer = await api.bind(addresses=["help@example.com", "jobs@example.com"])
        assert answer["addresses"]["help@example.com"] == f"help+{answer['visit']}@{TRACK}"
        local, _, domain = answer["addresses"]["jobs@example.com"].partition("@")
        assert (len(local), domain) == (15, TRACK)

    async def test_mail_to_a_minted_address_is_known_at_once(self, api: Api) -> None:
        await api.w.recipient(f"unknown@{TRACK}")
        _, answer = await api.bind(addresses=["jobs@example.com"])
        recipient = await api.w.recipient(answer["addresses"]["jobs@example.com"])
        assert recipient.forward_to == "jobs@example.com"

    async def test_the_shortest_lease_of_the_targets_asked_is_answered(self, tmp_path: Path) -> None:
        targets = (pool_target(), target_of(Method.UNIQUE, "jobs@example.com", lease=60.5))
        async with serving(tmp_path, replace(SHOP, targets=targets, statics=())) as api:
            assert (await api.bind())[1]["lease"] == 900
            assert (await api.bind(addresses=["sales@example.com", "jobs@example.com"]))[1]["lease"] == 60

    async def test_a_page_without_addresses_is_counted(self, api: Api) -> None:
        status, answer = await api.bind(addresses=[])
        assert (status, answer["addresses"], answer["lease"]) == (200, {}, 900)
        assert await counted(api) == (1, 0)

    async def test_the_answer_is_on_disk_before_it_is_sent(self, api: Api, tmp_path: Path) -> None:
        _, answer = await api.bind()
        with sqlite3.connect(f"file:{tmp_path}/relay.db?mode=ro", uri=True) as database:
            rows = database.execute("SELECT number FROM visits").fetchall()
        database.close()
        assert rows == [(answer["visit"],)]

    async def test_text_plain_and_json_mean_the_same(self, api: Api) -> None:
        body = json.dumps({"site": "pk_shop"})
        for content_type in ("text/plain", "text/plain;charset=UTF-8", "application/json", "Text/Plain; charset=utf-8"):
            headers = {"Origin": SHOP_ORIGIN, "Content-Type": content_type}
            status, _ = await api.call("POST", "/v1/bind", data=body, headers=headers)
            assert status == 200


class TestSubstitutesFromCachedPages:
    async def test_a_substitute_is_answered_like_its_target(self, api: Api) -> None:
        await api.bind()
        _, answer = await api.bind(addresses=[f"INFO1@{TRACK}"])
        assert answer["addresses"] == {f"INFO1@{TRACK}": f"info2@{TRACK}"}

    async def test_a_plus_address_of_an_old_visit_is_answered_like_its_target(self, api: Api) -> None:
        _, answer = await api.bind(addresses=[f"help+123@{TRACK}"])
        assert answer["addresses"] == {f"help+123@{TRACK}": f"help+{answer['visit']}@{TRACK}"}

    @pytest.mark.parametrize(
        "sent",
        ["nonsense", "a@" + "b" * 400, "", "@", f"to...info1@{TRACK}", f"{'x' * 65}@{TRACK}", f".@{TRACK.upper()}"],
    )
    async def test_what_only_looks_like_a_substitute_stays_and_spoils_nothing(self, api: Api, sent: str) -> None:
        """The script takes whatever stands before the "@" of one of our domains."""
        status, answer = await api.bind(addresses=[sent, "sales@example.com"])
        assert (status, answer["addresses"]) == (200, {"sales@example.com": f"info1@{TRACK}"})

    async def test_a_static_substitute_stays(self, api: Api) -> None:
        assert (await api.bind(addresses=[f"card@{TRACK}"]))[1]["addresses"] == {}

    async def test_another_sites_substitute_stays(self, api: Api) -> None:
        assert (await api.bind(addresses=["other1@track.other.example"]))[1]["addresses"] == {}

    async def test_a_substitute_of_a_removed_target_stays(self, api: Api) -> None:
        await api.w.declare(replace(SHOP, targets=SHOP.targets[1:], statics=()), OTHER)
        assert (await api.bind(addresses=[f"info1@{TRACK}"]))[1]["addresses"] == {}


class TestCountedOnly:
    async def test_while_tracking_is_off_visits_are_counted(self, tmp_path: Path) -> None:
        async with serving(tmp_path, replace(SHOP, tracking=False)) as api:
            status, answer = await api.bind()
            assert (status, answer["addresses"]) == (200, {})
            assert await counted(api) == (1, 0)

    @pytest.mark.parametrize("agent", ["Mozilla/5.0 (compatible; Googlebot/2.1)", "HeadlessChrome/120", ""])
    async def test_an_automated_browser_is_counted_and_gets_no_address(self, api: Api, agent: str) -> None:
        status, answer = await api.bind(headers={"User-Agent": agent})
        assert (status, answer["addresses"]) == (200, {})
        assert await counted(api) == (1, 0)

    async def test_a_browser_that_says_it_is_steered_gets_no_address(self, api: Api) -> None:
        assert (await api.bind(webdriver=True))[1]["addresses"] == {}

    async def test_bots_lease_gives_them_addresses(self, tmp_path: Path) -> None:
        async with serving(tmp_path, replace(SHOP, bots="lease")) as api:
            _, answer = await api.bind(webdriver=True, headers={"User-Agent": "HeadlessChrome/120"})
            assert answer["addresses"] == {"sales@example.com": f"info1@{TRACK}"}


class TestOrigin:
    async def test_only_the_pages_origin_may_read_the_answer(self, api: Api) -> None:
        headers = {"Origin": SHOP_ORIGIN, "Content-Type": "text/plain"}
        response, _ = await api.request("POST", "/v1/bind", data='{"site":"pk_shop"}', headers=headers)
        assert response.headers["Access-Control-Allow-Origin"] == SHOP_ORIGIN
        assert response.headers["Vary"] == "Origin"
        assert response.headers["Cache-Control"] == "no-store"
        assert "Access-Control-Allow-Credentials" not in response.headers

    @pytest.mark.parametrize(
        "origin",
        [
            "https://evil.example",
            "https://www.other.example",  # another site's
            "http://www.shop.example",
            "https://www.shop.example:8443",
            "https://www.shop.example.evil.example",
            "null",
        ],
    )
    async def test_a_foreign_origin_is_refused_and_nothing_is_counted(self, api: Api, origin: str) -> None:
        status, problem = await api.bind(headers={"Origin": origin})
        assert (status, fields(problem)) == (403, ["Origin"])
        assert await counted(api) == (0, 0)

    @pytest.mark.parametrize(
        ("origin", "allowed"),
        [
            ("https://www.shop.example", True),
            ("https://a.b.shop.example", True),
            ("https://shop.example", False),
            ("https://evilshop.example", False),
            ("http://www.shop.example", False),
            ("https://www.shop.example:444", False),
            ("https://evil.example/.shop.example", False),
            ("https://.shop.example", False),
        ],
    )
    async def test_a_wildcard_stands_for_subdomains_only(self, tmp_path: Path, origin: str, allowed: bool) -> None:
        async with serving(tmp_path, replace(SHOP, origins=("https://*.shop.example",))) as api:
            assert allows(api.w.site(), origin) is allowed

    async def test_a_wildcard_with_a_port_is_for_that_port(self, tmp_path: Path) -> None:
        async with serving(tmp_path, replace(SHOP, origins=("http://*.shop.example:8080",))) as api:
            assert allows(api.w.site(), "http://www.shop.example:8080")
            assert not allows(api.w.site(), "http://www.shop.example")

    async def test_without_an_origin_a_token_is_needed(self, api: Api) -> None:
        status, _ = await api.call("POST", "/v1/bind", {"site": "pk_shop"})
        assert status == 401
        for token, expected in (
            (await api.token("viewer"), 403),
            (await api.token("manager", "other"), 404),
            ("vr_wrong", 401),
            (await api.token("manager", "shop"), 200),
        ):
            status, _ = await api.call("POST", "/v1/bind", {"site": "pk_shop"}, token=token)
            assert status == expected
        assert await counted(api) == (1, 0)

    async def test_a_servers_own_user_agent_says_nothing_about_its_visitor(self, api: Api) -> None:
        body = {"site": "pk_shop", "addresses": ["sales@example.com"]}
        token = await api.token("manager")
        _, answer = await api.call("POST", "/v1/bind", body, token=token, headers={"User-Agent": "python-requests"})
        assert answer["addresses"] == {"sales@example.com": f"info1@{TRACK}"}

    async def test_a_preflight_is_answered_for_origins_of_sites_only(self, api: Api) -> None:
        asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "content-type"}
        response, body = await api.request("OPTIONS", "/v1/bind", headers=asked | {"Origin": SHOP_ORIGIN})
        assert (response.status, body) == (204, b"")
        assert response.headers["Access-Control-Allow-Origin"] == SHOP_ORIGIN
        assert response.headers["Access-Control-Allow-Methods"] == "POST"
        assert response.headers["Access-Control-Allow-Headers"] == "Content-Type"
        assert "Access-Control-Allow-Credentials" not in response.headers
        for headers in (asked | {"Origin": "https://evil.example"}, asked):
            status, problem = await api.call("OPTIONS", "/v1/bind", headers=headers)
            assert (status, fields(problem)) == (403, ["Origin"])


class TestRefused:
    @of_all
    @pytest.mark.parametrize(
        ("changes", "field"),
        [
            ({"site": 5}, "site"),
            ({"site": "x" * 65}, "site"),
            ({"visit": 123}, "visit"),
            ({"visit": "12a"}, "visit"),
            ({"visit": "1" * 21}, "visit"),
            ({"first_visit": ""}, "first_visit"),
            ({"page": ["https://www.shop.example/"]}, "page"),
            ({"referrer": 1}, "referrer"),
            ({"addresses": "sales@example.com"}, "addresses"),
            ({"addresses": ["a@example.com"] * 51}, "addresses"),
            ({"addresses": [None]}, "addresses[0]"),
            ({"params": {"6": "six"}}, "params.6"),
            ({"params": {"1": "x" * 2049}}, "params.1"),
            ({"google_client_id": "x" * 257}, "google_client_id"),
            ({"webdriver": "true"}, "webdriver"),
            ({"interacted": 1}, "interacted"),
            ({"ours": 1}, "ours"),
            ({"marker": "x" * 4097}, "marker"),
            ({"marker": ["x"]}, "marker"),
            ({"ym_uid": "1" * 4097}, "ym_uid"),
            ({"ym_uid": 17}, "ym_uid"),
            ({"vist": "1"}, "vist"),
        ],
    )
    async def test_a_wrong_field_is_named_and_nothing_is_counted(
        self, shared: Api, changes: dict[str, Any], field: str
    ) -> None:
        status, problem = await shared.bind(**changes)
        assert (status, fields(problem)) == (400, [field])
        assert problem["title"] == "Bad Request"
        assert await counted(shared) == (0, 0)

    @of_all
    @pytest.mark.parametrize(
        "octets",
        [b"", b"{", b"[]", b"null", b'"pk_shop"', b'{"site":"\xff"}', b'{"site":"\\ud800"}', b"[" * 10_000],
    )
    async def test_what_is_no_json_object_is_refused(self, shared: Api, octets: bytes) -> None:
        headers = {"Origin": SHOP_ORIGIN, "Content-Type": "text/plain"}
        response, body = await shared.request("POST", "/v1/bind", data=octets, headers=headers)
        assert response.status == 400
        assert response.headers["Content-Type"] == "application/problem+json"
        assert json.loads(body)["status"] == 400
        assert await counted(shared) == (0, 0)

    async def test_an_unknown_site_is_named(self, api: Api) -> None:
        status, problem = await api.bind("nobody")
        assert (status, fields(problem)) == (404, ["site"])

    async def test_a_body_over_the_limit_is_refused_however_it_is_sent(self, tmp_path: Path) -> None:
        async def pieces() -> AsyncIterator[bytes]:
            for _ in range(5):
                yield b" " * 1000

        async with serving(tmp_path, http=Http(max_bind_body=2000)) as api:
            headers = {"Origin": SHOP_ORIGIN, "Content-Type": "text/plain"}
            for data in (b" " * 2001, pieces()):
                status, problem = await api.call("POST", "/v1/bind", data=data, headers=headers)
                assert (status, problem["title"]) == (413, "Content Too Large")
            assert (await api.bind())[0] == 200

    async def test_another_content_type_is_refused(self, api: Api) -> None:
        headers = {"Origin": SHOP_ORIGIN, "Content-Type": "application/x-www-form-urlencoded"}
        status, _ = await api.call("POST", "/v1/bind", data=b"{}", headers=headers)
        assert status == 415

    async def test_get_is_refused_with_what_is_allowed(self, api: Api) -> None:
        response, _ = await api.request("GET", "/v1/bind")
        assert (response.status, response.headers["Allow"]) == (405, "OPTIONS,POST")

    async def test_a_store_that_cannot_write_is_a_503_with_a_time_to_come_back(
        self, api: Api, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def full(*_: object, **__: object) -> None:
            raise StoreUnavailable("disk full at /var/secret")

        monkeypatch.setattr(api.w.store.writer, "run", full)
        headers = {"Origin": SHOP_ORIGIN, "Content-Type": "text/plain"}
        response, body = await api.request("POST", "/v1/bind", data='{"site":"pk_shop"}', headers=headers)
        assert (response.status, response.headers["Retry-After"]) == (503, "5")
        assert b"secret" not in body


class TestRates:
    async def test_a_network_that_asks_too_often_waits(self, tmp_path: Path) -> None:
        limits = Limits(exempt=(), binds_per_address_per_minute=3)
        async with serving(tmp_path, limits=limits) as api:
            assert [(await api.bind())[0] for _ in range(4)] == [200, 200, 200, 429]
            headers = {"Origin": SHOP_ORIGIN, "Content-Type": "text/plain"}
            response, _ = await api.request("POST", "/v1/bind", data='{"site":"pk_shop"}', headers=headers)
            assert (response.status, response.headers["Retry-After"]) == (429, "20")
            assert (await counted(api))[0] == 3
            api.w.pass_time(20)
            assert (await api.bind())[0] == 200

    async def test_exempt_networks_do_not_wait(self, tmp_path: Path) -> None:
        async with serving(tmp_path, limits=Limits(binds_per_address_per_minute=1)) as api:
            assert [(await api.bind())[0] for _ in range(3)] == [200, 200, 200]

    async def test_a_site_that_is_asked_too_often_waits_and_the_others_do_not(self, tmp_path: Path) -> None:
        async with serving(tmp_path, limits=Limits(exempt=(), binds_per_site_per_minute=2)) as api:
            assert [(await api.bind())[0] for _ in range(3)] == [200, 200, 429]
            assert (await api.bind("other"))[0] == 200

    async def test_clients_behind_a_trusted_proxy_are_told_apart(self, tmp_path: Path) -> None:
        limits = Limits(exempt=(), binds_per_address_per_minute=1)
        http = Http.model_validate({"trusted_proxies": ["127.0.0.0/8"]})
        async with serving(tmp_path, limits=limits, http=http) as api:
            for forwarded, expected in (
                ("198.51.100.7", 200),
                ("198.51.100.200", 429),  # the same /24
                ("203.0.113.9, 198.51.100.7", 429),  # what the client itself claims counts for nothing
                ("203.0.113.9", 200),
                ("2001:db8::1", 200),
                ("2001:db8::ffff", 429),  # the same /64
            ):
                status, _ = await api.bind(headers={"X-Forwarded-For": forwarded})
                assert status == expected, forwarded


async def stored(api: Api, *names: str) -> tuple[Any, ...]:
    """These columns of the newest visit."""
    query = select(*(visits.c[name] for name in names)).order_by(visits.c.id.desc()).limit(1)
    (row,) = await api.w.rows(query)
    return row


RULES = (
    SourceRule("partner_acme", Channel.REFERRAL, referrer="acme.example"),
    SourceRule("print_spring", parameter="qr", value="7"),
    SourceRule("fair_stand", Channel.EMAIL, page="/fair/*"),
)


class TestSource:
    @pytest.mark.parametrize(
        ("changes", "marker", "channel", "mark"),
        [
            pytest.param({}, None, "direct", None, id="nothing"),
            pytest.param(
                {"referrer": "https://www.google.com/"}, "search_google", "search", None, id="a search engine"
            ),
            pytest.param(
                {"referrer": "https://forum.example/"}, "referral_forum.example", "referral", None, id="a link"
            ),
            pytest.param({"referrer": "https://www.shop.example/x"}, None, "direct", None, id="an inner page"),
            pytest.param({"page": "?gclid=Cj0K"}, "ads_google", "ads", "ads_google", id="a click id"),
            pytest.param({"page": "?utm_source=fb&utm_medium=cpc"}, "fb_cpc", "ads", "fb_cpc", id="an advertisement"),
            pytest.param({"page": "?rs=fb_new"}, "fb_new", "campaign", "fb_new", id="a mark"),
            pytest.param(
                {"page": "?rs=fb_new", "referrer": "https://acme.example/"},
                "partner_acme",
                "referral",
                "fb_new",
                id="the site's rule goes before everything",
            ),
            pytest.param({"page": "?qr=7"}, "print_spring", "campaign", None, id="a rule on a parameter"),
            pytest.param({"page": "?qr=8"}, None, "direct", None, id="another value"),
            pytest.param({"page": "fair/map?gclid=1"}, "fair_stand", "email", "ads_google", id="a rule on the page"),
            pytest.param({"marker": "vk_ads"}, "vk_ads", "campaign", None, id="another counter's marker cookie"),
            pytest.param(
                {"marker": "vk_ads", "referrer": "https://ya.ru/"},
                "search_yandex",
                "search",
                None,
                id="what the page view says itself goes before the cookie",
            ),
        ],
    )
    async def test_a_visit_has_the_source_that_its_first_page_view_says(
        self, tmp_path: Path, changes: dict[str, Any], marker: str | None, channel: str, mark: str | None
    ) -> None:
        said = changes | {"page": f"https://www.shop.example/{changes.get('page', '')}"}
        async with serving(tmp_path, replace(SHOP, settings=SiteSettings(rules=RULES))) as api:
            status, answer = await api.bind(**said)
            assert status == 200
            assert await stored(api, "marker", "channel", "mark") == (marker, channel, mark)
            assert (await api.bind(visit=answer["visit"], **said))[1]["visit"] == answer["visit"]

    async def test_another_counters_visit_goes_on_from_ours(self, api: Api) -> None:
        _, own = await api.bind(page="https://www.shop.example/?rs=ads_1")
        _, answer = await api.bind(visit="9001", first_visit=own["first_visit"])
        assert (answer["visit"], answer["first_visit"]) == ("9001", own["visit"])
        assert await stored(api, "first_id", "touch_id") == (1, 1)

    async def test_metricas_client_id_is_stored(self, api: Api) -> None:
        await api.bind(ym_uid="1700000000123456789")
        assert await stored(api, "ym_uid") == ("1700000000123456789",)

    async def test_a_link_from_the_sites_other_domain_goes_on_with_the_visit(self, tmp_path: Path) -> None:
        origins = ("https://www.shop.example", "https://*.blog.example")
        async with serving(tmp_path, replace(SHOP, origins=origins)) as api:
            blog = "https://m.blog.example"
            _, first = await api.bind(page=f"{blog}/", headers={"Origin": blog})
            page = f"https://www.shop.example/?roistat_visit={first['visit']}"
            assert (await api.bind(page=page, referrer=f"{blog}/post"))[1] == first
            assert (await api.bind(page=page, referrer="https://forum.example/"))[1]["visit"] != first["visit"]


class TestReserve:
    async def test_the_last_tenth_of_a_pool_is_kept_for_people(self, tmp_path: Path) -> None:
        pool = tuple(f"p{number}@{TRACK}" for number in range(10))
        async with serving(tmp_path, site("shop", pool_target("sales@example.com", *pool, domain=None))) as api:
            answers = [(await api.bind())[1] for _ in range(10)]
            assert [len(answer["addresses"]) for answer in answers] == [1] * 9 + [0]
            _, back = await api.bind(visit=answers[-1]["visit"], interacted=True)
            assert list(back["addresses"].values()) == [pool[-1]]

    async def test_reserve_nothing_gives_everything(self, tmp_path: Path) -> None:
        shop = site("shop", pool_target(domain=None), settings=SiteSettings(reserve=0))
        async with serving(tmp_path, shop) as api:
            assert [len((await api.bind())[1]["addresses"]) for _ in range(2)] == [1, 1]

    async def test_half_a_pool(self, tmp_path: Path) -> None:
        shop = site("shop", pool_target(domain=None), settings=SiteSettings(reserve=50))
        async with serving(tmp_path, shop) as api:
            assert [len((await api.bind(interacted=moved))[1]["addresses"]) for moved in (False, False, True)] == [
                1,
                0,
                1,
            ]


class TestLeases:
    async def test_beyond_its_share_a_network_is_counted_and_keeps_what_it_has(self, tmp_path: Path) -> None:
        async with serving(tmp_path, limits=Limits(exempt=(), leases_per_address_per_minute=2)) as api:
            wanted: dict[str, Any] = {"addresses": ["jobs@example.com", "help@example.com"]}
            seen = [(await api.bind(**wanted))[1] for _ in range(4)]
            assert [len(answer["addresses"]) for answer in seen] == [2, 2, 1, 1]  # plus costs nothing
            assert (await counted(api))[0] == 4
            _, again = await api.bind(visit=seen[0]["visit"], **wanted)
            assert again["addresses"] == seen[0]["addresses"]
            _, later = await api.bind(visit=seen[3]["visit"], **wanted)
            assert list(later["addresses"]) == ["help@example.com"]
            api.w.pass_time(60)
            _, later = await api.bind(visit=seen[3]["visit"], **wanted)
            assert set(later["addresses"]) == set(wanted["addresses"])

    async def test_page_views_of_a_visit_cost_no_share(self, tmp_path: Path) -> None:
        async with serving(tmp_path, limits=Limits(exempt=(), leases_per_address_per_minute=2)) as api:
            _, first = await api.bind()
            for _ in range(5):
                await api.bind(visit=first["visit"])
            assert (await api.bind())[1]["addresses"] == {"sales@example.com": f"info2@{TRACK}"}

    async def test_page_views_at_the_same_moment_have_one_share_together(self, tmp_path: Path) -> None:
        async with serving(tmp_path, limits=Limits(exempt=(), leases_per_address_per_minute=2)) as api:
            answers = await asyncio.gather(*(api.bind(addresses=["jobs@example.com"]) for _ in range(10)))
            assert sum(len(answer["addresses"]) for _, answer in answers) == 2
            assert (await counted(api))[0] == 10

    async def test_who_was_only_counted_costs_a_share_when_it_comes_back(self, tmp_path: Path) -> None:
        """Else a network that has its visits counted first gets an address for each of them later."""
        async with serving(tmp_path, limits=Limits(exempt=(), leases_per_address_per_minute=1)) as api:
            jobs = ["jobs@example.com"]
            seen = [(await api.bind(addresses=jobs))[1] for _ in range(4)]
            assert [len(answer["addresses"]) for answer in seen] == [1, 0, 0, 0]
            api.w.pass_time(60)
            later = [(await api.bind(visit=answer["visit"], addresses=jobs))[1] for answer in seen]
            assert [len(answer["addresses"]) for answer in later] == [1, 1, 0, 0]

    async def test_a_page_view_that_leases_nothing_costs_no_share(self, tmp_path: Path) -> None:
        async with serving(tmp_path, limits=Limits(exempt=(), leases_per_address_per_minute=1)) as api:
            await api.bind(addresses=[])
            await api.bind(addresses=["help@example.com"])  # plus costs nothing
            await api.bind(webdriver=True)
            assert (await api.bind())[1]["addresses"] == {"sales@example.com": f"info1@{TRACK}"}

    async def test_another_network_has_its_own_share(self, tmp_path: Path) -> None:
        limits = Limits(exempt=(), leases_per_address_per_minute=1)
        http = Http.model_validate({"trusted_proxies": ["127.0.0.0/8"]})
        async with serving(tmp_path, limits=limits, http=http) as api:
            for visitor, given in (("198.51.100.7", 1), ("198.51.100.8", 0), ("203.0.113.9", 1)):
                _, answer = await api.bind(headers={"X-Forwarded-For": visitor})
                assert len(answer["addresses"]) == given, visitor

    async def test_exempt_networks_have_no_end_of_it(self, tmp_path: Path) -> None:
        async with serving(tmp_path, limits=Limits(leases_per_address_per_minute=1)) as api:
            assert [len((await api.bind())[1]["addresses"]) for _ in range(3)] == [1, 1, 1]


VISITOR = "161.185.160.93"
PROXIED = Http.model_validate({"trusted_proxies": ["127.0.0.0/8"]})
IPHONE = (
    "Mozilla/5.0 (iPhone; CPU iPhone OS 17_5 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) "
    "Version/17.5 Mobile/15E148 Safari/604.1"
)


class TestVisitor:
    @pytest.mark.parametrize(
        ("detail", "kept"), [(IpDetail.FULL, VISITOR), (IpDetail.NETWORK, "161.185.160.0"), (IpDetail.NONE, None)]
    )
    async def test_of_the_ip_as_much_is_kept_as_is_wanted_and_the_place_always(
        self, tmp_path: Path, detail: IpDetail, kept: str | None
    ) -> None:
        places = write(tmp_path / "city.mmdb", FLAT)
        geoip = GeoIp((places,), tmp_path / "geoip")
        async with serving(tmp_path, http=PROXIED, visitor_ip=detail, geoip=geoip) as api:
            await api.bind(headers={"X-Forwarded-For": VISITOR, "User-Agent": IPHONE})
            assert await stored(api, "ip", "city", "country") == (kept, "New York", "USA")
            assert await stored(api, "user_agent", "device", "browser", "os") == (
                IPHONE,
                "mobile",
                "Mobile Safari",
                "iOS",
            )

    async def test_without_a_file_there_is_no_place(self, api: Api) -> None:
        await api.bind()
        assert await stored(api, "city", "country") == (None, None)

    async def test_of_a_server_that_asks_for_its_visitor_nothing_is_kept(self, tmp_path: Path) -> None:
        geoip = GeoIp((write(tmp_path / "city.mmdb", {"127.0.0.0/8": FLAT["161.185.160.0/24"]}),), tmp_path / "geoip")
        async with serving(tmp_path, geoip=geoip) as api:
            await api.bind()
            assert await stored(api, "ip", "city") == ("127.0.0.1", "New York")  # of a browser at the same address
            token = await api.token("manager")
            headers = {"User-Agent": "python-requests/2"}
            assert (await api.call("POST", "/v1/bind", {"site": "pk_shop"}, token=token, headers=headers))[0] == 200
            names = ("ip", "city", "country", "user_agent", "browser", "os")
            assert await stored(api, *names) == (None,) * len(names)


class TestMails:
    @pytest.mark.parametrize(
        ("settings", "told"),
        [
            (SiteSettings(), False),
            (SiteSettings(google_analytics=True), True),
            (SiteSettings(metrica=17), True),
        ],
    )
    async def test_only_who_tells_an_analytics_counter_is_told(
        self, tmp_path: Path, settings: SiteSettings, told: bool
    ) -> None:
        async with serving(tmp_path, replace(SHOP, settings=settings)) as api:
            _, answer = await api.bind()
            assert answer.get("mails") == (0 if told else None)
            await api.letter(*answer["addresses"].values())
            _, answer = await api.bind(visit=answer["visit"])
            assert answer.get("mails") == (1 if told else None)
            assert ("mails" in answer) is told


class TestServerCookies:
    COOKIES = SiteSettings(server_cookies=True, cookie_domain="shop.example")

    async def asked(self, api: Api, **body: Any) -> Any:
        """The response's headers, and the answer."""
        headers = {"Origin": SHOP_ORIGIN, "Content-Type": "text/plain", "User-Agent": "Mozilla/5.0"}
        data = json.dumps({"site": "pk_shop"} | body)
        response, octets = await api.request("POST", "/v1/bind", data=data, headers=headers)
        return response.headers, json.loads(octets)

    @pytest.mark.parametrize(("scheme", "secure"), [("https", "; Secure"), ("http", "")])
    async def test_the_server_sets_what_the_script_would(self, tmp_path: Path, scheme: str, secure: str) -> None:
        site, url = replace(SHOP, settings=self.COOKIES), f"{scheme}://t.shop.example"
        async with serving(tmp_path, site, public_url=url) as api:
            headers, answer = await self.asked(api, first_visit="1001")
            common = f"Domain=shop.example; Path=/; SameSite=Lax{secure}"
            assert headers.getall("Set-Cookie") == [
                f"mailtrack_visit={answer['visit']}; Max-Age={14 * 86400}; {common}",
                f"mailtrack_first=1001; Max-Age={365 * 86400}; {common}",
            ]
            assert headers["Access-Control-Allow-Credentials"] == "true"
            assert headers["Access-Control-Allow-Origin"] == SHOP_ORIGIN
            assert headers["Cache-Control"] == "no-store"

    async def test_without_that_there_are_none(self, api: Api) -> None:
        headers, _ = await self.asked(api)
        assert "Set-Cookie" not in headers
        assert "Access-Control-Allow-Credentials" not in headers

    async def test_a_refused_page_view_sets_none(self, tmp_path: Path) -> None:
        async with serving(tmp_path, replace(SHOP, settings=self.COOKIES)) as api:
            headers = {"Content-Type": "text/plain", "User-Agent": "Mozilla/5.0"}
            for origin, body in (
                ("https://evil.example", {"site": "pk_shop"}),
                (SHOP_ORIGIN, {"site": "pk_shop", "visit": "x"}),
                (SHOP_ORIGIN, {"site": "pk_nobody"}),
            ):
                sent = json.dumps(body)
                response, _ = await api.request("POST", "/v1/bind", data=sent, headers=headers | {"Origin": origin})
                assert response.status in (400, 403, 404)
                assert "Set-Cookie" not in response.headers


#: What would be noticed in a page, in a header and in JSON, and a mark to know it by.
HOSTILE = "zq\"'<script>alert(1)</script>\r\nSet-Cookie: a=b;\u2028\x00${7*7}zq"


class TestNothingComesBack:
    """What a stranger sends is stored at the most: no answer repeats it. Of an unknown key an error tells the name."""

    async def test_no_value_in_an_error_in_the_answer_or_in_a_header(self, tmp_path: Path) -> None:
        settings = SiteSettings(server_cookies=True, cookie_domain="shop.example")
        async with serving(tmp_path, replace(SHOP, settings=settings)) as api:
            headers = {"Origin": SHOP_ORIGIN, "Content-Type": "text/plain", "User-Agent": "Mozilla/5.0 zqzq"}
            nested = ([HOSTILE], {"1": HOSTILE}, {"unknown": HOSTILE}, [{"unknown": HOSTILE}])
            for field in (*BindBody.model_fields, "unknown"):
                for value in (HOSTILE, "https://zq.example/?rs=" + HOSTILE, *nested):
                    data = json.dumps({"site": "pk_shop", field: value})
                    response, octets = await api.request("POST", "/v1/bind", data=data, headers=headers)
                    assert response.status in (200, 400, 404), octets
                    assert b"zq" not in octets, field
                    assert "zq" not in str(response.headers), field

    async def test_the_name_of_an_unknown_key_only_as_json_that_no_browser_renders(self, api: Api) -> None:
        headers = {"Origin": SHOP_ORIGIN, "Content-Type": "text/plain"}
        data = json.dumps({"site": "pk_shop", HOSTILE: 1})
        response, _ = await api.request("POST", "/v1/bind", data=data, headers=headers)
        assert response.status == 400
        assert response.headers["Content-Type"] == "application/problem+json"
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert await counted(api) == (0, 0)

    async def test_not_in_the_script(self, api: Api) -> None:
        plain = (await api.request("GET", "/mailtrack.js?site=pk_shop"))[1]
        await api.bind(page=f"https://www.shop.example/?rs={HOSTILE}", marker=HOSTILE, params={"1": HOSTILE})
        for query in (
            {"site": HOSTILE},
            {"site": "pk_shop", "consent": HOSTILE},
            {"site": "pk_shop", HOSTILE: HOSTILE},
        ):
            response, octets = await api.request("GET", f"/mailtrack.js?{urlencode(query)}")
            assert octets in (plain, b"/* mailtrack: no such site */\n")
            assert "zq" not in str(response.headers)


async def test_many_page_views_at_once_get_different_addresses(tmp_path: Path) -> None:
    pool = tuple(f"p{number}@{TRACK}" for number in range(40))
    async with serving(tmp_path, site("shop", pool_target("sales@example.com", *pool))) as api:
        answers = await asyncio.gather(*(api.bind() for _ in range(40)))
        assert {status for status, _ in answers} == {200}
        assert len({answer["addresses"]["sales@example.com"] for _, answer in answers}) == 40
