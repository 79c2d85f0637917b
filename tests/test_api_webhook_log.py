"""Webhooks over HTTP: the delivery log and replays, who sees which webhook; blocked senders; deals by site."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import pytest_asyncio
from sqlalchemy import select, text
from sqlalchemy.dialects import sqlite

from relay.store import blocked, post_log
from relay.store.schema import deliveries
from tests.hook_fixtures import (
    CARD,
    POOLED,
    SECRET,
    SITE,
    added,
    drained,
    posted,
    state_of,
    visited_before,
)
from tests.smtp_client import LONG_SENDER
from tests.webapi_fixtures import Api, fields, of_all, serving
from tests.webhook_receiver import Answer, Receiver
from webapi.app import OPERATIONS

LOOP = asyncio.new_event_loop  # requests to receivers are made on it (webapi/guard.py)


@pytest.fixture
async def crm() -> AsyncIterator[Receiver]:
    async with Receiver() as receiver:
        yield receiver


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with serving(tmp_path) as found:
        status, answer = await found.call("POST", "/v1/sites", SITE, token=await found.token())
        assert status == 201, answer
        yield found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(shared: Api) -> Api:
    """With the garden."""
    await shared.call("POST", "/v1/sites", SITE, token=await shared.token())
    return shared


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def posted_to(shared: Api) -> Any:
    """A webhook that a letter was posted to."""
    async with Receiver() as crm:
        webhook = await added(shared, await shared.token(), crm.url)
        await posted(shared, crm)
    return webhook


@pytest.fixture
async def admin(api: Api) -> str:
    return await api.token()


class TestLog:
    async def test_it_is_read_by_state_and_by_pages(self, api: Api, admin: str, crm: Receiver) -> None:
        webhook = await added(api, admin, crm.url)
        crm.script = lambda got: {"offer 1": 500, "offer 3": 422}.get(got.json["subject"], 200)
        await posted(api, crm, 5)
        path = f"{webhook['path']}/deliveries"
        first = await api.get(f"{path}?limit=2", "garden")
        second = await api.get(f"{path}?limit=2&cursor={first['next']}", "garden")
        third = await api.get(f"{path}?limit=2&cursor={second['next']}", "garden")
        assert third["next"] is None
        items = first["items"] + second["items"] + third["items"]
        assert [item["state"] for item in items] == ["delivered", "waiting", "delivered", "waiting", "delivered"]
        assert [int(item["id"]) for item in items] == sorted((int(item["id"]) for item in items), reverse=True)
        waiting = await api.get(f"{path}?state=waiting&limit=1", "garden")
        assert [item["status"] for item in waiting["items"]] == [422]
        assert waiting["items"][0]["next_at"] is not None
        rest = await api.get(f"{path}?state=waiting&cursor={waiting['next']}", "garden")
        assert ([item["status"] for item in rest["items"]], rest["next"]) == ([500], None)
        assert (await api.get(f"{path}?state=failed", "garden"))["items"] == []
        detail = await api.get(webhook["path"], "garden")
        assert (detail["waiting"], detail["failed"], detail["last_status"]) == (2, 0, 200)

    @pytest.mark.parametrize("state", ["failed", "waiting"])
    async def test_few_of_many_are_found_by_an_index_of_their_own(self, api: Api, state: str) -> None:
        query = post_log._log_page(1, 9, 51, state)
        compiled = query.compile(dialect=sqlite.dialect(), compile_kwargs={"literal_binds": True})
        plan = await api.w.rows(text(f"EXPLAIN QUERY PLAN {compiled}"))
        assert any(f"INDEX ix_posts_{state}" in row[3] for row in plan)

    @pytest.mark.parametrize(
        ("query", "field"), [("state=gone", "state"), ("limit=0", "limit"), ("cursor=x", "cursor"), ("page=2", "page")]
    )
    async def test_nonsense_is_named(self, api: Api, admin: str, query: str, field: str) -> None:
        webhook = await added(api, admin)
        status, problem = await api.call("GET", f"{webhook['path']}/deliveries?{query}", token=admin)
        assert (status, fields(problem)) == (400, [field])

    async def test_one_post_is_shown_with_request_answer_and_timing(self, api: Api, admin: str, crm: Receiver) -> None:
        webhook = await added(api, admin, crm.url, secret=SECRET, headers={"X-Api-Key": "headerS3cret"})
        crm.script = [Answer(500, b"not now"), Answer(200, b"thanks")]
        (message,) = await posted(api, crm)
        api.w.pass_time(10)
        await drained(api)
        (item,) = (await api.get(f"{webhook['path']}/deliveries"))["items"]
        shown = await api.get(f"{webhook['path']}/deliveries/{item['id']}", "garden")
        tries, request = shown.pop("tries"), shown.pop("request")
        assert shown == item
        assert (item["message"], item["state"], item["attempts"], item["answer"]) == (message, "delivered", 2, "thanks")
        assert item["event"] == crm.posts[0].headers["webhook-id"] == crm.posts[1].headers["webhook-id"]
        assert [(one["status"], one["answer"], one["as_sent"]) for one in tries] == [
            (500, "not now", True),
            (200, "thanks", True),
        ]
        assert [one["size"] for one in tries] == [len(got.body) for got in crm.posts]
        assert all(0 <= one["seconds"] < 15 for one in tries)
        assert tries[0]["started_at"] < tries[1]["started_at"]
        assert request["body"].encode() == crm.posts[0].body
        sent = {name.lower(): value for name, value in request["headers"].items()}
        assert sent["webhook-timestamp"] == crm.posts[1].headers["webhook-timestamp"]
        assert sent["x-api-key"] == sent["webhook-signature"] == "***"

    @pytest.mark.parametrize("option", [{"bearer": "bearer/S3cret"}, {"basic": "user:passwordS3cret"}])
    async def test_an_answer_that_repeats_the_request_is_kept_without_its_secrets(
        self, api: Api, admin: str, crm: Receiver, option: dict[str, str]
    ) -> None:
        shape = """body = "{}"\nheaders = { X-Key = "{{ variables.key }}" }"""
        own = {"X-Api-Key": "headerS3cret"}
        webhook = await added(
            api, admin, crm.url, secret=SECRET, template=shape, variables={"key": "v/S3cret"}, headers=own, **option
        )
        crm.script = lambda post: Answer(500, json.dumps(dict(post.headers)).replace("/", "\\/").encode())
        (message,) = await posted(api, crm)
        (sent,) = crm.posts
        (item,) = (await api.get(f"{webhook['path']}/deliveries"))["items"]
        shown = await api.get(f"{webhook['path']}/deliveries/{item['id']}", "garden")
        history = await api.get(f"/v1/messages/{message}")
        for answer in (item["answer"], shown["tries"][0]["answer"], history["posts"][0]["answer"]):
            said = json.loads(answer)
            assert (said["x-key"], said["x-api-key"], said["webhook-signature"]) == ("***", "***", "***")
            assert said["authorization"] == sent.headers["authorization"].partition(" ")[0] + " ***"
            assert said["webhook-id"] == item["event"]
        tested = await api.call("POST", f"{webhook['path']}/test", {}, token=admin)
        assert "S3cret" not in str(tested)
        assert json.loads(tested[1]["answer"])["x-api-key"] == "***"

    async def test_one_that_was_never_answered_has_nothing_but_its_reason(self, api: Api, admin: str) -> None:
        webhook = await added(api, admin, "http://127.0.0.1:1/hook")
        accepted = await api.letter(CARD)
        await api.w.extract(accepted.message_id)
        (item,) = (await api.get(f"{webhook['path']}/deliveries"))["items"]
        assert (await api.get(f"{webhook['path']}/deliveries/{item['id']}"))["tries"] == []
        await drained(api)
        (attempt,) = (await api.get(f"{webhook['path']}/deliveries/{item['id']}"))["tries"]
        assert (attempt["status"], attempt["answer"]) == (None, "no connection: Connection refused")
        assert attempt["as_sent"] is True

    async def test_one_that_is_erased_between_two_readings_is_no_post_any_more(
        self, api: Api, admin: str, crm: Receiver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        webhook = await added(api, admin, crm.url)
        (message,) = await posted(api, crm)
        (item,) = (await api.get(f"{webhook['path']}/deliveries"))["items"]
        read = post_log.post

        async def erased(*args: Any) -> Any:
            row = await read(*args)
            await api.w.store.write(lambda tx: tx.sql("DELETE FROM messages WHERE id = ?", (message,)))
            return row

        monkeypatch.setattr(post_log, "post", erased)
        status, problem = await api.call("GET", f"{webhook['path']}/deliveries/{item['id']}", token=admin)
        assert (status, problem["detail"]) == (404, "no such post")

    async def test_what_the_template_withheld_says_why_and_shows_no_request(
        self, api: Api, admin: str, crm: Receiver
    ) -> None:
        webhook = await added(api, admin, crm.url, template="requires = ['city']\nbody = '{}'")
        await posted(api, crm)
        (item,) = (await api.get(f"{webhook['path']}/deliveries?state=withheld"))["items"]
        assert (item["answer"], item["next_at"]) == ("no city", None)
        shown = await api.get(f"{webhook['path']}/deliveries/{item['id']}")
        assert shown["request"] is None
        assert [(one["size"], one["as_sent"]) for one in shown["tries"]] == [(None, None)]

    async def test_after_a_change_it_is_said_that_the_request_is_not_as_sent(
        self, api: Api, admin: str, crm: Receiver
    ) -> None:
        webhook = await added(api, admin, crm.url, extras=False)
        await posted(api, crm)
        (item,) = (await api.get(f"{webhook['path']}/deliveries"))["items"]
        path = f"{webhook['path']}/deliveries/{item['id']}"
        for change, same in ({"extras": True}, False), ({"extras": False}, True), ({"template": "body='{}'"}, False):
            await api.call("PATCH", webhook["path"], change, token=admin)
            shown = await api.get(path)
            assert shown["tries"][0]["as_sent"] is same, change
        assert shown["request"]["body"] == "{}"

    async def test_after_attributing_anew_it_is_not_as_sent_either(self, api: Api, admin: str, crm: Receiver) -> None:
        webhook = await added(api, admin, crm.url)
        await posted(api, crm, address=POOLED)
        (item,) = (await api.get(f"{webhook['path']}/deliveries"))["items"]
        visit = await visited_before(api)
        body = {"posts": [item["id"]], "reattribute": True}
        assert await api.call("POST", f"{webhook['path']}/replay", body, token=admin) == (202, {"posts": 1})
        shown = await api.get(f"{webhook['path']}/deliveries/{item['id']}")
        assert shown["tries"][0]["as_sent"] is False
        assert json.loads(shown["request"]["body"])["visit_id"] == visit

    async def test_a_post_of_another_webhook_is_none_of_it(self, api: Api, admin: str, crm: Receiver) -> None:
        webhook = await added(api, admin, crm.url)
        other = await added(api, admin, crm.at("/other"), events=["message.failed"])
        await posted(api, crm)
        (item,) = (await api.get(f"{webhook['path']}/deliveries"))["items"]
        for post in (item["id"], "0", "x", "9" * 19, "99999"):
            status, _ = await api.call("GET", f"{other['path']}/deliveries/{post}", token=admin)
            assert status == 404, post


class TestReplay:
    async def replay(self, api: Api, webhook: Any, body: dict[str, Any]) -> Any:
        token = await api.token("manager", "garden")
        return await api.call("POST", f"{webhook['path']}/replay", body, token=token)

    async def test_single_posts_are_posted_again_under_their_ids(self, api: Api, admin: str, crm: Receiver) -> None:
        webhook = await added(api, admin, crm.url)
        await posted(api, crm, 3)
        items = (await api.get(f"{webhook['path']}/deliveries"))["items"]
        api.w.pass_time(1)
        wanted = [items[2]["id"], items[0]["id"], items[0]["id"]]
        assert await self.replay(api, webhook, {"posts": wanted}) == (202, {"posts": 2})
        assert api.woken[-1] == "posts"
        api.w.pass_time(1)
        await drained(api)
        assert [got.json["subject"] for got in crm.posts] == ["offer 0", "offer 1", "offer 2", "offer 0", "offer 2"]
        assert crm.posts[3].headers["webhook-id"] == crm.posts[0].headers["webhook-id"]

    async def test_all_that_failed_are_posted_again(self, api: Api, admin: str, crm: Receiver) -> None:
        webhook = await added(api, admin, crm.url, concurrency=1)
        crm.script = [200, 500, 500, 410]
        await posted(api, crm, 5)
        detail = await api.get(webhook["path"])
        assert (detail["enabled"], detail["disabled_reason"]) == (False, "the receiver answered 410 Gone")
        assert await self.replay(api, webhook, {"failed": True}) == (
            409,
            {
                "type": "about:blank",
                "title": "Conflict",
                "status": 409,
                "detail": "the webhook is disabled: enable it first",
            },
        )
        await api.call("POST", f"{webhook['path']}/enable", token=admin)
        crm.script = 200
        done = len(crm.posts)
        status, answer = await self.replay(api, webhook, {"failed": True})
        assert (status, answer) == (202, {"posts": 4})
        api.w.pass_time(1)
        await drained(api)
        assert sorted(got.json["subject"] for got in crm.posts[done:]) == ["offer 1", "offer 2", "offer 3", "offer 4"]
        assert await self.replay(api, webhook, {"failed": True}) == (202, {"posts": 0})

    async def test_a_range_is_of_receipt_and_half_open(self, api: Api, admin: str, crm: Receiver) -> None:
        """A webhook that was added later gets what came before it was."""
        for number in range(3):
            accepted = await api.letter(CARD, number=number)
            await api.w.extract(accepted.message_id)
            api.w.pass_time(60)
        webhook = await added(api, admin, crm.url)
        noon = "2027-01-15T08:0{}:00Z"
        assert await self.replay(api, webhook, {"since": noon.format(1), "until": noon.format(2)}) == (
            202,
            {"posts": 1},
        )
        assert await self.replay(api, webhook, {"since": noon.format(1)}) == (202, {"posts": 2})
        assert await self.replay(api, webhook, {"until": noon.format(0)}) == (202, {"posts": 0})
        assert await self.replay(api, webhook, {"until": "2027-01-16"}) == (202, {"posts": 3})

    async def test_a_range_leaves_withheld_what_the_conditions_withhold_and_single_posts_do_not(
        self, api: Api, admin: str, crm: Receiver
    ) -> None:
        webhook = await added(api, admin, crm.url, conditions={"min_size": 1000})
        await posted(api, crm, 1)
        (item,) = (await api.get(f"{webhook['path']}/deliveries"))["items"]
        assert (item["state"], item["answer"]) == ("withheld", "smaller than 1000 octets")
        assert await self.replay(api, webhook, {"since": "2020-01-01"}) == (202, {"posts": 0})
        assert await self.replay(api, webhook, {"posts": [item["id"]]}) == (202, {"posts": 1})

    async def test_attributed_anew_the_visit_is_posted(self, api: Api, admin: str, crm: Receiver) -> None:
        webhook = await added(api, admin, crm.url, events=["message.received", "attribution.changed"])
        await posted(api, crm, 2, address=POOLED)
        visit = await visited_before(api)
        status, answer = await self.replay(api, webhook, {"since": "2020-01-01", "reattribute": True})
        assert (status, answer) == (202, {"posts": 2})
        api.w.pass_time(10)
        await drained(api)
        assert [got.json["visit_id"] for got in crm.posts[:2]] == [None, None]
        assert {got.json["visit_id"] for got in crm.posts[2:]} == {visit}
        changed = [got for got in crm.posts if got.json.get("event") == "attribution.changed"]
        assert [got.json["previous"]["state"] for got in changed] == ["none", "none"]

    @of_all
    @pytest.mark.parametrize(
        ("body", "field"),
        [
            ({}, "posts"),
            ({"reattribute": True}, "posts"),
            ({"posts": []}, "posts"),
            ({"posts": ["1"], "failed": True}, "posts"),
            ({"posts": ["1"], "since": "2026-01-01"}, "posts"),
            ({"failed": True, "until": "2026-01-01"}, "posts"),
            ({"posts": ["99999"]}, "posts"),
            ({"posts": ["9" * 19]}, "posts"),
            ({"posts": ["x"]}, "posts[0]"),
            ({"posts": ["0"]}, "posts[0]"),
            ({"posts": [1]}, "posts[0]"),
            ({"posts": ["1"] * 1001}, "posts"),
            ({"since": "yesterday"}, "since"),
            ({"until": "yesterday"}, "until"),
            ({"failed": "yes"}, "failed"),
            ({"all": True}, "all"),
        ],
    )
    async def test_wrong_words_are_named_and_change_nothing(
        self, shared: Api, posted_to: Any, body: dict[str, Any], field: str
    ) -> None:
        before = await state_of(shared)
        status, problem = await self.replay(shared, posted_to, body)
        assert (status, fields(problem)) == (400, [field])
        assert await state_of(shared) == before

    async def test_posts_of_another_webhook_are_refused_together_with_its_own(
        self, api: Api, admin: str, crm: Receiver
    ) -> None:
        one, other = await added(api, admin, crm.at("/1")), await added(api, admin, crm.at("/2"))
        await posted(api, crm)
        wanted = [(await api.get(f"{each['path']}/deliveries"))["items"][0]["id"] for each in (one, other)]
        before = await state_of(api)
        assert (await self.replay(api, one, {"posts": wanted}))[0] == 400
        assert await state_of(api) == before

    @pytest.mark.parametrize("body", [{"failed": True}, {"since": "2020-01-01"}])
    async def test_to_a_disabled_one_nothing_is_attributed_anew_before_it_is_refused(
        self, api: Api, admin: str, crm: Receiver, body: dict[str, Any]
    ) -> None:
        webhook = await added(api, admin, crm.url)
        crm.script = 500
        await posted(api, crm, address=POOLED)
        await visited_before(api)
        await api.call("PATCH", webhook["path"], {"enabled": False}, token=admin)
        before = await api.w.rows(select(deliveries.c.attribution, deliveries.c.visit_id))
        assert (await self.replay(api, webhook, body | {"reattribute": True}))[0] == 409
        assert await api.w.rows(select(deliveries.c.attribution, deliveries.c.visit_id)) == before

    async def test_one_message_is_attributed_anew_and_posted_to_all(self, api: Api, admin: str, crm: Receiver) -> None:
        await added(api, admin, crm.url)
        (message,) = await posted(api, crm, address=POOLED)
        visit = await visited_before(api)
        path = f"/v1/messages/{message}/replay?reattribute=true"
        token = await api.token("manager", "garden")
        assert await api.call("POST", path, token=token) == (202, {"posts": 1, "reattributed": 1})
        assert await api.call("POST", path, token=token) == (202, {"posts": 1, "reattributed": 0})
        assert (await api.get(f"/v1/messages/{message}"))["visit"] == visit
        api.w.pass_time(1)
        await drained(api)
        assert [got.json["visit_id"] for got in crm.posts] == [None, visit]
        status, problem = await api.call("POST", path.replace("true", "maybe"), token=token)
        assert (status, fields(problem)) == (400, ["reattribute"])


WEBHOOK_PATHS = [
    (operation.method, operation.path.replace("{post}", "1"))
    for operation in OPERATIONS
    if operation.path.startswith("/v1/webhooks/")
]


class TestWho:
    @of_all
    @pytest.mark.parametrize(("method", "path"), WEBHOOK_PATHS)
    async def test_a_webhook_of_another_site_is_not_there(
        self, shared: Api, posted_to: Any, method: str, path: str
    ) -> None:
        before = await state_of(shared)
        bodies: dict[str, dict[str, Any]] = {"PATCH": {"fill": "exact"}}
        body = bodies.get(method) or (
            {"failed": True} if path.endswith("replay") else {} if path.endswith("rotate") else None
        )
        token = await shared.token("admin", "shop")
        for webhook_id in (posted_to["id"], "99999", "0", "x", "9" * 19):
            status, problem = await shared.call(method, path.replace("{id}", webhook_id), body, token=token)
            assert (status, problem["detail"]) == (404, "no such webhook"), webhook_id
        assert await state_of(shared) == before

    @of_all
    @pytest.mark.parametrize(
        ("method", "verb", "least"),
        [
            ("PATCH", "", "admin"),
            ("DELETE", "", "admin"),
            ("POST", "/enable", "admin"),
            ("POST", "/rotate", "admin"),
            ("POST", "/test", "manager"),
            ("POST", "/replay", "manager"),
        ],
    )
    async def test_lesser_roles_are_refused(
        self, shared: Api, posted_to: Any, method: str, verb: str, least: str
    ) -> None:
        for role in ("viewer", "manager")[: 2 if least == "admin" else 1]:
            token = await shared.token(role, "garden")
            assert (await shared.call(method, posted_to["path"] + verb, {}, token=token))[0] == 403
        assert (await shared.call(method, posted_to["path"] + verb, {}))[0] == 401


class TestBlocked:
    PATH = "/v1/sites/garden/blocked-senders"

    async def test_senders_and_domains_are_blocked_listed_and_unblocked(self, api: Api) -> None:
        token = await api.token("manager", "garden")
        for sender in ("Spam@Example.ORG", "@Bücher.example", "spam@example.org"):
            status, answer = await api.call("POST", self.PATH, {"sender": sender}, token=token)
            assert status == 200
        assert answer == {"items": ["@xn--bcher-kva.example", "spam@example.org"]}
        assert await api.get(self.PATH, "garden") == answer
        assert await api.get("/v1/sites/shop/blocked-senders") == {"items": []}
        for sender in ("SPAM@example.org", "@b%C3%BCcher.example"):
            assert await api.call("DELETE", f"{self.PATH}/{sender}", token=token) == (204, None)
        for sender in ("spam@example.org", "nonsense", "@", "%20"):
            assert (await api.call("DELETE", f"{self.PATH}/{sender}", token=token))[0] == 404
        assert await api.get(self.PATH) == {"items": []}

    @of_all
    @pytest.mark.parametrize(
        "sender",
        [
            LONG_SENDER.lower(),
            "a" * 505 + "@x.test",  # 512 octets
            "x@[192.0.2.1]",
            "@[ipv6:2001:db8::1]",
            "a..b.@carrier.example",
            "@web1-.example",
            "@a_b.example",
        ],
    )
    async def test_whoever_can_send_can_be_blocked_as_history_shows_him(self, shared: Api, sender: str) -> None:
        token = await shared.token("manager", "garden")
        answer = await shared.call("POST", self.PATH, {"sender": sender}, token=token)
        assert answer == (200, {"items": [sender]})
        assert await shared.call("DELETE", f"{self.PATH}/{quote(sender, safe='')}", token=token) == (204, None)

    @of_all
    @pytest.mark.parametrize("sender", ["a..b@Bücher.example", '"a..b"@xn--bcher-kva.example'])
    async def test_an_odd_sender_is_blocked_under_one_form(self, shared: Api, sender: str) -> None:
        token = await shared.token("manager", "garden")
        answer = await shared.call("POST", self.PATH, {"sender": sender}, token=token)
        assert answer == (200, {"items": ["a..b@xn--bcher-kva.example"]})
        assert await shared.call("DELETE", f"{self.PATH}/{quote(sender, safe='')}", token=token) == (204, None)

    @of_all
    @pytest.mark.parametrize(
        "sender", ["@192.0.2.1", "@a..example", "@[example", "x y@example.org", f"{'x' * 65}@", "a" * 506 + "@x.test"]
    )
    async def test_what_no_sender_is_called_is_refused(self, shared: Api, sender: str) -> None:
        status, answer = await shared.call("POST", self.PATH, {"sender": sender}, token=await shared.token("manager"))
        assert (status, fields(answer)) == (400, ["sender"])

    async def test_their_letters_are_not_posted_and_the_log_says_why(self, api: Api, admin: str, crm: Receiver) -> None:
        strict, open_to_all = (
            await added(api, admin, crm.at("/1")),
            await added(api, admin, crm.at("/2"), conditions={"skip_blocked": False}),
        )
        await api.call("POST", self.PATH, {"sender": "@example.org"}, token=admin)
        (message,) = await posted(api, crm)
        assert [got.path for got in crm.posts] == ["/2"]
        (item,) = (await api.get(f"{strict['path']}/deliveries"))["items"]
        assert (item["state"], item["answer"]) == ("withheld", "blocked sender")
        (item,) = (await api.get(f"{open_to_all['path']}/deliveries"))["items"]
        assert item["state"] == "delivered"
        events = (await api.get(f"/v1/messages/{message}"))["events"]
        assert [(each["state"], each["answer"]) for each in events[0]["webhooks"]] == [
            ("withheld", "blocked sender"),
            ("delivered", ""),
        ]

    @of_all
    @pytest.mark.parametrize(
        "body", [{}, {"sender": "nobody"}, {"sender": "@"}, {"sender": 1}, {"sender": "a@" + "b" * 600}]
    )
    async def test_nonsense_is_named(self, shared: Api, body: dict[str, Any]) -> None:
        status, problem = await shared.call("POST", self.PATH, body, token=await shared.token())
        assert (status, fields(problem)) == (400, ["sender"])

    async def test_there_is_an_end_to_the_list(self, api: Api, admin: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(blocked, "MOST", 1)
        await api.call("POST", self.PATH, {"sender": "a@example.org"}, token=admin)
        assert (await api.call("POST", self.PATH, {"sender": "a@example.org"}, token=admin))[0] == 200
        status, problem = await api.call("POST", self.PATH, {"sender": "b@example.org"}, token=admin)
        assert (status, fields(problem)) == (409, ["sender"])

    async def test_another_sites_list_is_not_there(self, api: Api) -> None:
        token, viewer = await api.token("admin", "shop"), await api.token("viewer", "garden")
        for method, path, body in (
            ("GET", self.PATH, None),
            ("POST", self.PATH, {"sender": "a@example.org"}),
            ("DELETE", f"{self.PATH}/a@example.org", None),
        ):
            assert (await api.call(method, path, body, token=token))[0] == 404
            if method != "GET":
                assert (await api.call(method, path, body, token=viewer))[0] == 403


class TestDeals:
    async def test_a_token_of_one_site_sets_that_sites_deal_alone(self, api: Api) -> None:
        """A letter to two sites is two enquiries, each in its own CRM."""
        accepted = await api.letter(CARD, "card@track.example.com")
        await api.w.extract(accepted.message_id)
        path = f"/v1/messages/{accepted.message_id}"
        for name, number in (("garden", "G-1"), ("shop", "S-1")):
            token = await api.token("manager", name)
            assert await api.call("PUT", f"{path}/deal", {"id": number}, token=token) == (204, None)
        for name, number in (("garden", "G-1"), ("shop", "S-1")):
            assert (await api.get(path, name))["deal"] == {"id": number, "url": None}
        token = await api.token("manager", "other")
        assert (await api.call("PUT", f"{path}/deal", {"id": "x"}, token=token))[0] == 404

    async def test_the_answer_of_a_webhook_is_its_sites_deal(self, api: Api, admin: str, crm: Receiver) -> None:
        await added(api, admin, crm.url, deal_id="/lead/id", deal_url="/lead/url")
        crm.script = Answer(200, b'{"lead": {"id": 17, "url": "https://crm.example/17"}}')
        (message,) = await posted(api, crm)
        assert (await api.get(f"/v1/messages/{message}", "garden"))["deal"] == {
            "id": "17",
            "url": "https://crm.example/17",
        }
