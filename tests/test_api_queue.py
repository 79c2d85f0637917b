"""Visits, the forwarding queue and the report of sources over HTTP."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

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

    async def test_an_item_says_why_until_when_and_what_it_is_about(self, api: Api) -> None:
        accepted = await api.letter(f"card@{TRACK}", claim="forwarder")
        (item,) = (await api.get("/v1/queue"))["items"]
        assert (item["subject"], item["destination"], item["in_flight"]) == ("Hi", "example.com", True)
        assert (item["code"], item["answer"], item["held_at"]) == (None, None, None)
        await api.w.finish(accepted.jobs[0], OutcomeKind.PERMANENT)
        (item,) = (await api.get("/v1/queue"))["items"]
        assert (item["code"], item["held_at"], item["in_flight"]) == (550, "2027-01-15T08:00:00.000Z", False)

    async def test_pages_and_filters(self, api: Api) -> None:
        for number in range(3):
            await api.letter(f"card@{TRACK}", number=number)
            api.w.pass_time(1)
        held = await api.letter("postmaster@mx.example", number=9, claim="forwarder", sender="bob@example.org")
        await api.w.finish(held.jobs[0], OutcomeKind.PERMANENT)
        seen, path = [], "/v1/queue?limit=3"
        while path:
            answer = await api.get(path)
            seen += [item["message"] for item in answer["items"]]
            path = answer["next"] and f"/v1/queue?limit=3&cursor={answer['next']}"
        assert seen == ["1", "2", "3", "4"]
        for query, expected in (
            ("state=failed", ["4"]),
            ("state=deferred", []),
            ("site=shop", ["1", "2", "3"]),
            ("destination=example.net", ["4"]),
            ("sender=bob@EXAMPLE.org", ["4"]),
        ):
            assert [item["message"] for item in (await api.get(f"/v1/queue?{query}"))["items"]] == expected, query
        for query in ("state=forwarded", "cursor=", "cursor=AAAAAAAAAAAAAAAAAAAAAA", "cursor=f_8AAAAAAAAAAAAAAAAAAQ"):
            status, problem = await api.call("GET", f"/v1/queue?{query}", token=await api.token())
            assert (status, fields(problem)) == (400, [query.partition("=")[0]])

    async def many(self, api: Api) -> list[str]:
        """A held and a deferred letter of the shop, one that is queued, one for the operator; their deliveries."""
        found = []
        for number, (to, kind) in enumerate(
            (
                (f"card@{TRACK}", OutcomeKind.PERMANENT),
                (f"card@{TRACK}", OutcomeKind.TEMPORARY),
                (f"card@{TRACK}", None),
                ("postmaster@mx.example", OutcomeKind.TEMPORARY),
            )
        ):
            (job,) = (await api.letter(to, number=number, claim="forwarder")).jobs
            if kind is not None:
                await api.w.finish(job, kind)
            found.append(str(job.delivery_id))
        return found

    async def test_named_deliveries_are_tried_and_the_others_are_told(self, api: Api) -> None:
        held, deferred, _, operator = await self.many(api)
        token = await api.token("admin", "shop")
        body = {"deliveries": [held, deferred, operator, "999", deferred]}
        status, answer = await api.call("POST", "/v1/queue/retry", body, token=token)
        assert (status, answer) == (200, {"changed": 2, "left": [operator, "999"]})
        assert api.woken == ["deliveries"]
        states = {item["id"]: item["state"] for item in (await api.get("/v1/queue"))["items"]}
        assert (states[held], states[deferred], states[operator]) == ("queued", "queued", "deferred")

    @pytest.mark.parametrize(
        ("body", "sites", "expected"),
        [
            ({}, (), [0, 1, 3]),
            ({}, ("shop",), [0, 1]),
            ({"site": "shop"}, (), [0, 1]),
            ({"state": "failed"}, (), [0]),
            ({"destination": "example.net"}, (), [3]),
            ({"sender": "nobody@example.org"}, (), []),
        ],
    )
    async def test_all_that_is_deferred_or_held_and_fits_is_tried(
        self, api: Api, body: dict[str, str], sites: tuple[str, ...], expected: list[int]
    ) -> None:
        made = await self.many(api)
        token = await api.token("admin", *sites)
        status, answer = await api.call("POST", "/v1/queue/retry", {"all": True} | body, token=token)
        assert (status, answer) == (200, {"changed": len(expected), "left": []})
        queued = {item["id"] for item in (await api.get("/v1/queue?state=queued"))["items"]}
        assert queued == {made[number] for number in (*expected, 2)}
        assert bool(api.woken) == bool(expected)

    async def test_what_another_site_carries_is_tried_but_not_dropped(self, api: Api) -> None:
        _, mine = await api.w.shown()
        _, theirs = await api.w.shown(name="other")
        accepted = await api.letter(mine, theirs, claim="forwarder")
        await api.w.finish(accepted.jobs[0], OutcomeKind.PERMANENT)
        (item,) = (await api.get("/v1/queue", "other"))["items"]
        assert (item["recipient"], item["state"], item["site"]) == (theirs, "failed", "other")
        token, body = await api.token("admin", "other"), {"deliveries": [item["id"]]}
        status, answer = await api.call("POST", "/v1/queue/drop", body, token=token)
        assert (status, answer) == (200, {"changed": 0, "left": [item["id"]]})
        status, answer = await api.call("POST", "/v1/queue/retry", body, token=token)
        assert (status, answer) == (200, {"changed": 1, "left": []})
        assert [item["state"] for item in (await api.get("/v1/queue", "other"))["items"]] == ["queued"]
        assert (await api.call("POST", f"/v1/queue/{item['id']}/retry", token=token))[0] == 204

    @pytest.mark.parametrize("sites", [("other",), ("shop", "other"), ()])
    async def test_what_is_carried_is_shown_and_tried_as_what_carries_it(
        self, api: Api, sites: tuple[str, ...]
    ) -> None:
        _, mine = await api.w.shown()
        _, theirs = await api.w.shown(name="other")
        accepted = await api.letter(mine, theirs, claim="forwarder")
        await api.w.finish(accepted.jobs[0], OutcomeKind.TEMPORARY)
        shown = (await api.get(f"/v1/messages/{accepted.message_id}", *sites))["deliveries"]
        (carried,) = [one for one in shown if one["site"] == "other"]
        assert (carried["state"], carried["attempts"], carried["next_at"] is None) == ("deferred", 1, False)
        token, path = await api.token("admin", *sites), f"/v1/queue/{carried['id']}"
        status, problem = await api.call("POST", f"{path}/drop", token=token)
        assert (status, "another site's carries it" in problem["detail"]) == (409, True)
        assert (await api.call("POST", f"{path}/retry", token=token))[0] == 204
        body = {"deliveries": [one["id"] for one in shown]}
        assert await api.call("POST", "/v1/queue/retry", body, token=token) == (
            200,
            {"changed": len(shown), "left": []},
        )
        assert {one["state"] for one in (await api.get("/v1/queue"))["items"]} == {"queued"}

    @pytest.mark.parametrize("path", ["/v1/queue/drop", "/v1/queue/{id}/drop"])
    @pytest.mark.parametrize("sites", [("shop",), ("shop", "other"), ()])
    async def test_what_it_carries_of_another_site_goes_on(self, api: Api, path: str, sites: tuple[str, ...]) -> None:
        _, mine = await api.w.shown()
        _, theirs = await api.w.shown(name="other")
        (job,) = (await api.letter(mine, theirs, claim="forwarder")).jobs
        await api.w.finish(job, OutcomeKind.TEMPORARY)
        body = None if "{" in path else {"deliveries": [str(job.delivery_id)]}
        token = await api.token("admin", *sites)
        assert (await api.call("POST", path.format(id=job.delivery_id), body, token=token))[0] in (200, 204)
        assert (await api.get("/v1/queue", "shop"))["items"] == []
        left = [(item["state"], item["attempts"]) for item in (await api.get("/v1/queue", "other"))["items"]]
        assert left == ([("deferred", 1)] if sites == ("shop",) else [])

    async def test_many_are_dropped_but_not_what_is_in_flight(self, api: Api) -> None:
        held, deferred, in_flight, operator = await self.many(api)
        body = {"deliveries": [held, deferred, in_flight, operator]}
        status, answer = await api.call("POST", "/v1/queue/drop", body, token=await api.token("admin", "shop"))
        assert (status, answer) == (200, {"changed": 2, "left": [in_flight, operator]})
        assert {item["id"] for item in (await api.get("/v1/queue"))["items"]} == {in_flight, operator}

    @pytest.mark.parametrize(
        "body",
        [
            {},
            {"all": True, "deliveries": ["1"]},
            {"deliveries": ["1"], "site": "shop"},
            {"deliveries": []},
            {"deliveries": [1]},
            {"deliveries": ["-1"]},
            {"deliveries": ["1"] * 1001},
            {"all": True, "state": "queued"},
            {"all": 1},
        ],
        ids=lambda body: str(body)[:40],
    )
    async def test_a_retry_says_which_or_all(self, api: Api, body: dict[str, Any]) -> None:
        status, problem = await api.call("POST", "/v1/queue/retry", body, token=await api.token())
        assert (status, problem["title"]) == (400, "Bad Request")

    async def test_a_retry_of_all_of_an_unknown_site_changes_nothing(self, api: Api) -> None:
        body = {"all": True, "site": "nobody"}
        assert (await api.call("POST", "/v1/queue/retry", body, token=await api.token()))[0] == 404

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
