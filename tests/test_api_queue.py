"""Visits, the forwarding queue and the report of sources over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from relay.config import Forward
from relay.core.model import OutcomeKind
from relay.store import deals
from tests.store_fixtures import TRACK
from tests.webapi_fixtures import Api, fields, serving


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with serving(tmp_path) as found:
        yield found


class TestVisits:
    async def test_a_visit_has_what_bind_was_told(self, api: Api) -> None:
        _, answer = await api.bind(
            page="https://www.shop.example/new?utm_source=fb&utm_medium=cpc",
            referrer="https://fb.com/",
            params={"2": "two"},
            first_visit="1001",
        )
        seen = await api.get(f"/v1/visits/{answer['visit']}", "shop")
        assert seen["number"] == answer["visit"]
        assert (seen["own"], seen["site"], seen["first_visit"]) == (True, "shop", "1001")
        assert (seen["marker"], seen["referrer"], seen["params"]) == ("fb_cpc", "fb.com", {"2": "two"})
        assert seen["started_at"] == "2027-01-15T08:00:00.000Z"

    async def test_a_foreign_number_of_two_sites_needs_the_site(self, api: Api) -> None:
        for name in ("shop", "other"):
            await api.bind(name, visit="777")
        status, problem = await api.call("GET", "/v1/visits/777", token=await api.token())
        assert (status, fields(problem)) == (409, ["site"])
        assert (await api.get("/v1/visits/777?site=other"))["site"] == "other"
        assert (await api.get("/v1/visits/777", "shop"))["site"] == "shop"

    @pytest.mark.parametrize("number", ["1", "abc", "%00", "9" * 50])
    async def test_an_unknown_number_is_not_there(self, api: Api, number: str) -> None:
        assert (await api.call("GET", f"/v1/visits/{number}", token=await api.token()))[0] == 404


class TestQueue:
    async def test_shows_what_waits_and_what_is_held(self, api: Api) -> None:
        _, substitute = await api.w.shown()
        held = await api.letter(substitute, claim="forwarder")
        await api.w.finish(held.jobs[0], OutcomeKind.PERMANENT)
        await api.letter("postmaster@mx.example", number=2)
        items = (await api.get("/v1/queue"))["items"]
        assert {(item["site"], item["state"]) for item in items} == {("shop", "failed"), (None, "queued")}
        (item,) = (await api.get("/v1/queue?limit=1", "shop"))["items"]
        assert (item["message"], item["recipient"], item["next_at"]) == (str(held.message_id), substitute, None)
        assert item["answer"] == "it is permanent"
        assert (await api.get("/v1/queue", "other"))["items"] == []

    async def test_a_held_delivery_is_tried_again_for_as_long_as_a_new_one(self, tmp_path: Path) -> None:
        async with serving(tmp_path, forward=Forward.model_validate({"retry_for": "1h"})) as api:
            _, substitute = await api.w.shown()
            held = await api.letter(substitute, claim="forwarder")
            await api.w.finish(held.jobs[0], OutcomeKind.PERMANENT)
            api.w.pass_time(30 * 86_400)
            path = f"/v1/queue/{held.jobs[0].delivery_id}/retry"
            assert await api.call("POST", path, token=await api.token("admin", "shop")) == (204, None)
            assert api.woken == ["deliveries"]
            (item,) = (await api.get("/v1/queue"))["items"]
            assert (item["state"], item["expires_at"]) == ("queued", "2027-02-14T09:00:00.000Z")

    async def test_a_dropped_delivery_leaves_the_queue_and_stays_in_the_history(self, api: Api) -> None:
        accepted = await api.letter(f"card@{TRACK}")
        (item,) = (await api.get("/v1/queue"))["items"]
        path = f"/v1/queue/{item['id']}/drop"
        assert await api.call("POST", path, token=await api.token()) == (204, None)
        assert (await api.get("/v1/queue"))["items"] == []
        assert (await api.get(f"/v1/messages/{accepted.message_id}"))["state"] == "dropped"
        for verb in ("drop", "retry"):
            assert (await api.call("POST", f"/v1/queue/{item['id']}/{verb}", token=await api.token()))[0] == 409

    async def test_what_is_in_flight_is_not_dropped(self, api: Api) -> None:
        accepted = await api.letter(f"card@{TRACK}", claim="forwarder")
        path = f"/v1/queue/{accepted.jobs[0].delivery_id}/drop"
        assert (await api.call("POST", path, token=await api.token()))[0] == 409

    async def test_the_operators_mail_is_for_tokens_for_all_sites(self, api: Api) -> None:
        await api.letter("postmaster@mx.example")
        (item,) = (await api.get("/v1/queue"))["items"]
        path = f"/v1/queue/{item['id']}/drop"
        assert (await api.call("POST", path, token=await api.token("admin", "shop")))[0] == 404
        assert (await api.call("POST", path, token=await api.token("admin")))[0] == 204

    async def test_nonsense_is_refused(self, api: Api) -> None:
        status, problem = await api.call("GET", "/v1/queue?limit=1001", token=await api.token())
        assert (status, fields(problem)) == (400, ["limit"])
        assert (await api.call("POST", "/v1/queue/999/retry", token=await api.token()))[0] == 404


class TestReport:
    async def test_counts_visits_messages_and_deals_by_marker(self, api: Api) -> None:
        _, substitute = await api.w.shown(page="https://www.shop.example/?rs=fb_new")
        await api.w.shown("jobs@example.com", page="https://www.shop.example/?rs=fb_new", number="55")
        await api.w.shown("jobs@example.com", page="https://www.shop.example/", number="56")
        with_deal = await api.letter(substitute)
        await api.letter(substitute, number=2)
        await api.w.store.write(lambda tx: deals.set_deal(tx, with_deal.message_id, "D-1", None))
        api.w.pass_time(1)
        answer = await api.get("/v1/reports/sources?site=shop", "shop")
        named = ("marker", "source_level_1", "source_level_2", "visits", "messages", "deals")
        assert [tuple(item[name] for name in named) for item in answer["items"]] == [
            ("fb_new", "fb", "new", 2, 2, 1),
            (None, None, None, 1, 0, 0),
        ]
        assert (await api.get("/v1/reports/sources?site=shop&since=2027-01-16&until=2027-01-17"))["items"] == []

    async def test_the_site_must_be_named(self, api: Api) -> None:
        status, problem = await api.call("GET", "/v1/reports/sources", token=await api.token())
        assert (status, fields(problem)) == (400, ["site"])
