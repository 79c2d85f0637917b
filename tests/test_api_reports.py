"""The report of sources over HTTP: what it may be asked, and who may see what."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from relay.store import deals
from relay.store.reader import Reader
from tests.store_fixtures import TRACK
from tests.webapi_fixtures import Api, fields, serving

PATH = "/v1/reports/sources?site=shop"
PAGE = "https://www.shop.example/new?"
#: What the answer had before there were parameters, with what it says for those.
FIRST_FIELDS = ("marker", "source_level_1", "source_level_2", "visits", "messages", "deals")


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with serving(tmp_path) as found:
        yield found


async def filled(api: Api) -> None:
    """Two letters from fb, one with a deal and an hour after the visit, one from nobody known."""
    w = api.w
    for number, campaign in enumerate(("spring", "autumn")):
        page = f"{PAGE}utm_source=fb&utm_medium=cpc&utm_campaign={campaign}"
        _, plus = await w.shown("help@example.com", page=page)
        w.pass_time(3600)
        letter = await api.letter(plus, number=number)
        if campaign == "spring":
            await w.store.write(lambda tx: deals.set_deal(tx, letter.message_id, "D-1", None))  # noqa: B023
    await api.letter(f"help@{TRACK}", number=9, sender="x@y.example", mail_from="x@y.example")
    w.pass_time(1)


def row(answer: dict[str, Any], **expected: Any) -> dict[str, Any]:
    """The one row that is like that."""
    (found,) = [item for item in answer["items"] if all(item[name] == value for name, value in expected.items())]
    return dict(found)


async def test_without_new_parameters_it_is_what_it_was(api: Api) -> None:
    await filled(api)
    answer = await api.get(PATH)
    assert [tuple(item[name] for name in FIRST_FIELDS) for item in answer["items"]] == [
        ("fb_cpc_autumn", "fb", "cpc_autumn", 1, 1, 0),
        ("fb_cpc_spring", "fb", "cpc_spring", 1, 1, 1),
    ]
    assert all(item["known"] for item in answer["items"])


async def test_by_says_what_is_unknown_too(api: Api) -> None:
    await filled(api)
    answer = await api.get(f"{PATH}&by=source_level_1", "shop")
    fb = row(answer, source_level_1="fb")
    assert (fb["visits"], fb["enquiries"], fb["deals"], fb["known"], fb["marker"]) == (2, 2, 1, True, None)
    assert fb["delay"] == {
        "enquiries": 2,
        "median": 3600.0,
        "within_10_minutes": 0,
        "within_1_hour": 2,
        "within_1_day": 2,
        "within_7_days": 2,
    }
    unknown = row(answer, known=False)
    assert (unknown["enquiries"], unknown["unknown"], unknown["source_level_1"]) == (1, 1, None)


@pytest.mark.parametrize(
    ("by", "field", "key", "visits"),
    [
        ("campaign", "campaign", "spring", 1),
        ("landing_page", "landing_page", "www.shop.example/new", 2),
        ("target", "target", "help@example.com", None),
        ("marker", "marker", "fb_cpc_spring", 1),
    ],
)
async def test_each_key_has_its_field(api: Api, by: str, field: str, key: str, visits: int | None) -> None:
    await filled(api)
    found = row(await api.get(f"{PATH}&by={by}"), **{field: key})
    assert found["visits"] == visits
    others = {"marker", "campaign", "landing_page", "target"} - {field}
    assert {found[name] for name in others} == {None}


async def test_total_by_interval_and_source(api: Api) -> None:
    await filled(api)
    (item,) = (await api.get(f"{PATH}&by=total&interval=week&source=fb"))["items"]
    assert (item["start"], item["visits"], item["enquiries"]) == ("2027-01-11T00:00:00.000Z", 2, 2)
    assert (await api.get(f"{PATH}&by=total&source=vk"))["items"] == []


async def test_more_says_that_rows_are_left_out(api: Api) -> None:
    await filled(api)
    answer = await api.get(f"{PATH}&by=campaign&limit=1")
    assert (len(answer["items"]), answer["more"]) == (1, True)
    assert (await api.get(f"{PATH}&limit=2"))["more"] is False


@pytest.mark.parametrize(
    "query", ["by=nonsense", "touch=second", "interval=year", "limit=0", "limit=10001", "source=%00", "since=x"]
)
async def test_nonsense_is_refused_by_its_name(api: Api, query: str) -> None:
    status, problem = await api.call("GET", f"{PATH}&{query}", token=await api.token())
    assert (status, fields(problem)) == (400, [query.partition("=")[0]])


async def test_another_sites_figures_are_not_to_be_had(api: Api) -> None:
    await filled(api)
    status, _ = await api.call("GET", f"{PATH}&by=total", token=await api.token("viewer", "other"))
    assert status == 404
    assert (await api.get("/v1/reports/sources?site=other&by=total", "other"))["items"] == []


async def test_what_takes_too_long_says_so(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api.w.store.reports, "patience", 0.0)
    assert isinstance(api.w.store.reports, Reader)
    response, octets = await api.request("GET", f"{PATH}&by=total", token=await api.token())
    assert (response.status, response.headers["Retry-After"]) == (503, "10")
    assert b"shorter period" in octets


async def test_a_source_that_is_hostile_is_only_a_value(api: Api) -> None:
    source = "'; DROP TABLE visits; --"
    await api.w.shown(page=f"https://www.shop.example/?rs={source}_x")
    api.w.pass_time(1)
    assert row(await api.get(f"{PATH}&by=source_level_1"), source_level_1=source)["visits"] == 1
    assert row(await api.get(f"{PATH}&by=total&source={source}"))["visits"] == 1
