"""Visits over HTTP: all that is known of one, and erasing it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from relay.core.site import SiteSettings
from relay.store.schema import visits
from tests.store_fixtures import DAY, OTHER, SHOP
from tests.webapi_fixtures import Api, fields, serving
from webapi.visits import VisitShown

HOME = "https://www.shop.example/"


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with serving(tmp_path, replace(SHOP, settings=SiteSettings(reserve=0)), OTHER) as found:
        yield found


async def seen(api: Api, *pages: str) -> list[str]:
    """The numbers of the visits of one browser, each begun 15 days after the one before."""
    numbers: list[str] = []
    for page in pages:
        _, answer = await api.bind(visit=numbers[-1] if numbers else None, page=HOME + page)
        numbers.append(answer["visit"])
        api.w.pass_time(15 * DAY)
    return numbers


async def left(api: Api) -> list[str]:
    return [number for (number,) in await api.w.rows(select(visits.c.number).order_by(visits.c.id))]


async def delete(api: Api, path: str, role: str = "admin", *sites: str) -> tuple[int, Any]:
    return await api.call("DELETE", f"/v1/visits/{path}", token=await api.token(role, *sites))


class TestShown:
    async def test_every_field_is_there_and_nothing_of_our_own_book_keeping(self, api: Api) -> None:
        (number,) = await seen(api, "?utm_source=news&utm_medium=email")
        shown = await api.get(f"/v1/visits/{number}", "shop")
        assert set(shown) == set(VisitShown.model_fields)
        assert (shown["marker"], shown["channel"], shown["device"], shown["own"]) == (
            "news_email",
            "email",
            "desktop",
            True,
        )

    @pytest.mark.parametrize(
        ("pages", "first", "last"),
        [
            (["?rs=ads_1"], "ads_1", "ads_1"),
            (["?rs=ads_1", ""], "ads_1", "ads_1"),
            (["?rs=ads_1", "?rs=mail_2", ""], "ads_1", "mail_2"),
            (["", "?rs=mail_2"], None, "mail_2"),
            (["", ""], None, None),
        ],
    )
    async def test_a_visit_tells_the_first_and_the_last_source_of_its_browser(
        self, api: Api, pages: list[str], first: str | None, last: str | None
    ) -> None:
        numbers = await seen(api, *pages)
        shown = await api.get(f"/v1/visits/{numbers[-1]}", "shop")
        assert (shown["first_touch"], shown["last_non_direct_touch"]) == (first, last)
        assert shown["first_visit"] == numbers[0]

    async def test_of_an_erased_first_visit_it_tells_nothing(self, api: Api) -> None:
        first, last = await seen(api, "?rs=ads_1", "?rs=mail_2")
        assert await delete(api, first) == (200, {"visits": 1})
        shown = await api.get(f"/v1/visits/{last}", "shop")
        assert (shown["first_touch"], shown["last_non_direct_touch"]) == (None, "mail_2")

    async def test_nor_of_one_that_was_gone_when_the_browser_came_back(self, api: Api) -> None:
        _, answer = await api.bind(first_visit="1001", page=f"{HOME}?rs=mail_2")
        shown = await api.get(f"/v1/visits/{answer['visit']}", "shop")
        assert (shown["first_visit"], shown["first_touch"]) == ("1001", None)

    async def test_what_is_left_of_an_erased_visit_is_not_there(self, api: Api) -> None:
        (number,) = await seen(api, "")
        await delete(api, number)
        (anonymous,) = await left(api)
        for method in ("GET", "DELETE"):
            for name in (number, anonymous):
                assert (await api.call(method, f"/v1/visits/{name}", token=await api.token()))[0] == 404, name


class TestErasing:
    async def test_the_visit_is_gone_and_its_messages_stay(self, api: Api) -> None:
        _, answer = await api.bind()
        await api.letter(*answer["addresses"].values())
        assert await delete(api, answer["visit"], "admin", "shop") == (200, {"visits": 1})
        assert (await delete(api, answer["visit"]))[0] == 404
        (item,) = (await api.get("/v1/messages"))["items"]
        assert (item["visit"], item["attribution"]["state"]) == (None, "exact")

    async def test_with_the_browser_all_its_visits_go(self, api: Api) -> None:
        numbers = await seen(api, "?rs=a", "?rs=b", "?rs=c")
        _, stranger = await api.bind(addresses=[])
        assert await delete(api, f"{numbers[1]}?browser=true") == (200, {"visits": 3})
        assert not {*numbers} & {*await left(api)}
        assert stranger["visit"] in await left(api)

    @pytest.mark.parametrize(
        ("role", "sites", "status"),
        [
            ("viewer", (), 403),
            ("manager", (), 403),
            ("manager", ("shop",), 403),
            ("admin", ("other",), 404),
            ("admin", ("shop",), 200),
            ("admin", (), 200),
        ],
    )
    async def test_an_admin_of_its_site_erases_it_and_nobody_else(
        self, api: Api, role: str, sites: tuple[str, ...], status: int
    ) -> None:
        _, answer = await api.bind(addresses=[])
        assert (await delete(api, answer["visit"], role, *sites))[0] == status
        assert (await left(api) == []) is (status == 200)

    async def test_without_a_token_nothing_is_erased(self, api: Api) -> None:
        _, answer = await api.bind()
        assert (await api.call("DELETE", f"/v1/visits/{answer['visit']}"))[0] == 401

    async def test_of_two_sites_one_has_to_be_named(self, api: Api) -> None:
        for name in ("shop", "other"):
            await api.bind(name, visit="777", addresses=[])
        status, problem = await delete(api, "777")
        assert (status, fields(problem)) == (409, ["site"])
        assert len(await left(api)) == 2
        assert await delete(api, "777?site=other") == (200, {"visits": 1})
        assert (await api.get("/v1/visits/777"))["site"] == "shop"
        assert (await delete(api, "777?site=other", "admin", "shop"))[0] == 404  # not one of its sites

    @pytest.mark.parametrize("path", ["1", "abc", "%00", "9" * 50, "777?site=nowhere"])
    async def test_what_is_not_there_is_not_erased(self, api: Api, path: str) -> None:
        assert (await delete(api, path))[0] in (400, 404)

    @pytest.mark.parametrize(("query", "field"), [("browser=perhaps", "browser"), ("brwser=true", "brwser")])
    async def test_nonsense_is_named_and_erases_nothing(self, api: Api, query: str, field: str) -> None:
        _, answer = await api.bind(addresses=[])
        status, problem = await delete(api, f"{answer['visit']}?{query}")
        assert (status, fields(problem)) == (400, [field])
        assert await left(api) == [answer["visit"]]

    async def test_its_unique_address_is_known_to_be_retired_at_once(self, api: Api) -> None:
        _, answer = await api.bind(addresses=["jobs@example.com"])
        unique = answer["addresses"]["jobs@example.com"]
        assert (await api.w.recipient(unique)).route is not None
        await delete(api, answer["visit"])
        route = (await api.w.recipient(unique)).route
        assert route is not None
        assert not route.attributed
