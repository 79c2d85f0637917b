"""POST /v1/bind over loopback: who may ask, what is answered, what is refused and changes nothing."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from relay.config import Http, Limits
from relay.core.model import Method
from relay.store.engine import StoreUnavailable
from relay.store.schema import bindings, visits
from tests.store_fixtures import OTHER, SHOP, TRACK, pool_target, site, target_of
from tests.webapi_fixtures import SHOP_ORIGIN, Api, fields, serving
from webapi import bind as bind_module
from webapi.bind import allows, is_automated


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

    @pytest.mark.parametrize(
        ("agent", "automated"),
        [
            ("Mozilla/5.0 (Linux; Android 11; CUBOT NOTE 20) Chrome/120", False),
            ("Mozilla/5.0 (Windows NT 10.0) Firefox/121.0", False),
            ("bingbot/2.0", True),
            ("YandexBot", True),
            ("curl/8.1", True),
            ("", True),
            (None, False),
        ],
    )
    def test_user_agents_are_judged(self, agent: str | None, automated: bool) -> None:
        assert is_automated(agent) is automated


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
            ({"addresses": ["sales@example.com", "nonsense"]}, "addresses[1]"),
            ({"addresses": [None]}, "addresses[0]"),
            ({"addresses": ["a@" + "b" * 400]}, "addresses[0]"),
            ({"params": {"6": "six"}}, "params.6"),
            ({"params": {"1": "x" * 2049}}, "params.1"),
            ({"google_client_id": "x" * 257}, "google_client_id"),
            ({"webdriver": "true"}, "webdriver"),
            ({"vist": "1"}, "vist"),
        ],
    )
    async def test_a_wrong_field_is_named_and_nothing_is_counted(
        self, api: Api, changes: dict[str, Any], field: str
    ) -> None:
        status, problem = await api.bind(**changes)
        assert (status, fields(problem)) == (400, [field])
        assert problem["title"] == "Bad Request"
        assert await counted(api) == (0, 0)

    @pytest.mark.parametrize(
        "octets",
        [b"", b"{", b"[]", b"null", b'"pk_shop"', b'{"site":"\xff"}', b'{"site":"\\ud800"}', b"[" * 10_000],
    )
    async def test_what_is_no_json_object_is_refused(self, api: Api, octets: bytes) -> None:
        headers = {"Origin": SHOP_ORIGIN, "Content-Type": "text/plain"}
        response, body = await api.request("POST", "/v1/bind", data=octets, headers=headers)
        assert response.status == 400
        assert response.headers["Content-Type"] == "application/problem+json"
        assert json.loads(body)["status"] == 400
        assert await counted(api) == (0, 0)

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
                assert (status, problem["title"]) == (413, "Request Entity Too Large")
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

    async def test_a_site_that_is_asked_too_often_waits_and_the_others_do_not(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(bind_module, "SITE_BINDS_PER_MINUTE", 2)
        async with serving(tmp_path, limits=Limits(exempt=())) as api:
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


async def test_many_page_views_at_once_get_different_addresses(tmp_path: Path) -> None:
    pool = tuple(f"p{number}@{TRACK}" for number in range(40))
    async with serving(tmp_path, site("shop", pool_target("sales@example.com", *pool))) as api:
        answers = await asyncio.gather(*(api.bind() for _ in range(40)))
        assert {status for status, _ in answers} == {200}
        assert len({answer["addresses"]["sales@example.com"] for _, answer in answers}) == 40
