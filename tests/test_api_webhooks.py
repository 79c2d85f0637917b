"""Webhooks over HTTP: their options, what changes and what stays, rotation, the test; and that secrets stay secret."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import structlog
from sqlalchemy import select

from relay.core.hook import Access
from relay.store.schema import webhooks
from relay.store.webhooks import MOST
from tests.hook_fixtures import (
    CARD,
    OPTIONS,
    SECRET,
    SECRETS,
    SITE,
    TEMPLATE,
    access,
    added,
    posted,
    state_of,
)
from tests.poster_fixtures import Held
from tests.store_fixtures import OTHER, SHOP
from tests.webapi_fixtures import Api, fields, of_all, serving
from tests.webhook_receiver import Answer, Receiver, deal, redirect
from webapi import signature
from webapi.trial import TRIALS

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
    """With the garden, which has a webhook."""
    await shared.call("POST", "/v1/sites", SITE, token=await shared.token())
    await added(shared, await shared.token(), "https://crm.example/taken")
    return shared


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def kept(shared: Api) -> Any:
    """Another one, with every option."""
    return await added(shared, await shared.token(), secret=SECRET, **OPTIONS)


@pytest.fixture
async def admin(api: Api) -> str:
    return await api.token()


class TestOptions:
    async def test_all_of_them_are_taken_and_shown_but_for_what_is_secret(self, api: Api, admin: str) -> None:
        webhook = await added(api, admin, secret=SECRET, **OPTIONS)
        assert webhook.pop("secret") == SECRET
        path = webhook.pop("path")
        expected = OPTIONS | {
            "id": webhook["id"],
            "site": "garden",
            "url": "https://crm.example/hook",
            "enabled": True,
            "disabled_reason": None,
            "declared": False,
            "edition": webhook["edition"],
            "login": "bearer",
            "headers": ["X-Api-Key", "X-Second"],
            "variables": ["key"],
            "conditions": OPTIONS["conditions"] | {"first_letter": "90m", "recipients": ["sales@garden.example"]},
        }
        del expected["bearer"]
        assert webhook == expected
        quiet = {"waiting": 0, "failed": 0, "last_at": None, "last_status": None, "last_answer": None}
        quiet |= {"recent": 0, "delivered": 0, "failures": 0, "rests_for": None}
        assert await api.get(path, "garden") == webhook | quiet
        assert (await api.get("/v1/sites/garden/webhooks", "garden"))["items"] == [webhook]

    async def test_a_preset_is_called_by_its_name(self, api: Api, admin: str) -> None:
        webhook = await added(api, admin, "https://example.kommo.com", template="kommo", bearer="t")
        assert (webhook["template"], webhook["login"]) == ("kommo", "bearer")

    @of_all
    @pytest.mark.parametrize(
        ("options", "field"),
        [
            ({"colour": "red"}, "colour"),
            ({"enabled": False}, "enabled"),
            ({"fill": "all"}, "fill"),
            ({"fill": None}, "fill"),
            ({"events": []}, "events"),
            ({"events": ["message.sent"]}, "events[0]"),
            ({"extras": 1}, "extras"),
            ({"concurrency": 0}, "concurrency"),
            ({"concurrency": 101}, "concurrency"),
            ({"concurrency": "5"}, "concurrency"),
            ({"headers": {"webhook-id": "x"}}, "headers"),
            ({"headers": {"CONTENT-TYPE": "x"}}, "headers"),
            ({"headers": {"X Y": "x"}}, "headers"),
            ({"headers": {"X-Key": "a\r\nB: c"}}, "headers"),
            ({"headers": {"X-Key": 1}}, "headers"),
            ({"headers": ["X-Key"]}, "headers"),
            ({"headers": {"X-Key": "a", "x-key": "b"}}, "headers"),
            ({"headers": {f"X-{i}": "" for i in range(51)}}, "headers"),
            ({"headers": {"X" * 101: ""}}, "headers"),
            ({"headers": {"X-Key": "x" * 4001}}, "headers"),
            ({"basic": "no colon"}, "basic"),
            ({"basic": "a:b\n"}, "basic"),
            ({"bearer": "two words"}, "bearer"),
            ({"bearer": "ключ"}, "bearer"),
            ({"bearer": "t", "basic": "a:b"}, "bearer"),
            ({"bearer": "t", "headers": {"authorization": "x"}}, "headers"),
            ({"basic": "a:b", "headers": {"Authorization": "x"}}, "headers"),
            ({"deal_id": "id"}, "deal_id"),
            ({"deal_id": "/a~2"}, "deal_id"),
            ({"deal_url": "/a\n"}, "deal_url"),
            ({"deal_url": "https://crm.example/{{ deal_id }}"}, "deal_url"),
            ({"variables": {"key": "x"}}, "variables"),
            ({"variables": {"a-b": "x"}, "template": "kommo"}, "variables"),
            ({"variables": {"no_such": "x"}, "template": "kommo"}, "variables.no_such"),
            ({"template": "ga4"}, "variables.measurement_id"),
            ({"template": "gmail"}, "template"),
            ({"template": "body = 1"}, "template"),
            ({"template": "body = '{{ subject }}'"}, "template.body"),
            ({"template": "body = '{{ nothing }}'"}, "template.body"),
            ({"template": "body = '{}'\nurl = 'https://elsewhere.example/'"}, "template.url"),
            ({"template": "body = '{}'\nheaders = {Host = 'x'}"}, "template.headers.Host"),
            ({"conditions": {"subject": "(a"}}, "conditions.subject"),
            ({"conditions": {"subject": "(a)\\1"}}, "conditions.subject"),
            ({"conditions": {"require_visit": "yes"}}, "conditions.require_visit"),
            ({"conditions": {"first_letter": "soon"}}, "conditions.first_letter"),
            ({"conditions": {"min_size": -1}}, "conditions.min_size"),
            ({"conditions": {"min_size": 10, "max_size": 9}}, "conditions.max_size"),
            ({"conditions": {"recipients": ["nobody"]}}, "conditions.recipients[0]"),
            ({"conditions": {"colour": "red"}}, "conditions.colour"),
        ],
    )
    async def test_what_cannot_be_is_refused_by_name_and_changes_nothing(
        self, shared: Api, kept: Any, options: dict[str, Any], field: str
    ) -> None:
        before, admin = await state_of(shared), await shared.token()
        body = {"url": "https://crm.example/2"} | options
        status, problem = await shared.call("POST", "/v1/sites/garden/webhooks", body, token=admin)
        assert (status, field in fields(problem)) == (400, True), problem
        assert problem["detail"].startswith(fields(problem)[0])
        if options not in ({"enabled": False}, {"variables": {"key": "x"}}, {"basic": "a:b"}):
            status, problem = await shared.call("PATCH", kept["path"], options, token=admin)
            # Together with the webhook's own options another field may be the one that does not fit any more.
            assert status == 400, problem
            assert fields(problem)[0]
        assert await state_of(shared) == before

    async def test_no_file_of_the_server_is_read(self, api: Api, admin: str, tmp_path: Path) -> None:
        path = tmp_path / "own.toml"
        path.write_text("body = '{}'")
        for name in (str(path), "own.toml", "../own.toml", "relay/presets/kommo.toml"):
            body = {"url": "https://crm.example/2", "template": name}
            status, problem = await api.call("POST", "/v1/sites/garden/webhooks", body, token=admin)
            assert (status, fields(problem)) == (400, ["template"])
            assert "is neither" in problem["detail"]


class TestChanging:
    @pytest.mark.parametrize(
        ("change", "shown"),
        [
            ({"url": "https://crm.example/new"}, {"url": "https://crm.example/new"}),
            ({"url": None}, {}),
            ({"fill": "exact"}, {"fill": "exact"}),
            ({"events": ["message.failed", "message.failed"]}, {"events": ["message.failed"]}),
            ({"extras": False}, {"extras": False}),
            ({"concurrency": 1}, {"concurrency": 1}),
            ({"headers": {"X-New": "n"}}, {"headers": ["X-New"]}),
            ({"headers": {}}, {"headers": []}),
            ({"bearer": ""}, {"login": None}),
            ({"bearer": "", "basic": "u:passwordS3cret"}, {"login": "basic"}),
            ({"bearer": "", "headers": {"Authorization": "Digest x"}}, {"login": None, "headers": ["Authorization"]}),
            ({"deal_id": ""}, {"deal_id": ""}),
            ({"deal_url": "/u"}, {"deal_url": "/u"}),
            ({"variables": {"key": "another"}}, {}),
            ({"template": "", "variables": {}}, {"template": "", "variables": []}),
            (
                {"template": "bitrix24", "variables": {"code": "abcdefgh12345678"}},
                {"template": "bitrix24", "variables": ["code"]},
            ),
            ({"enabled": False}, {"enabled": False, "disabled_reason": "switched off"}),
            ({"enabled": True}, {}),
            ({}, {}),
        ],
    )
    async def test_what_is_left_out_stays(
        self, api: Api, admin: str, change: dict[str, Any], shown: dict[str, Any]
    ) -> None:
        webhook = await added(api, admin, secret=SECRET, **OPTIONS)
        stored = access(api, webhook)
        status, answer = await api.call("PATCH", webhook["path"], change, token=admin)
        before = {name: value for name, value in webhook.items() if name not in ("secret", "path", "edition")}
        del answer["edition"]
        assert (status, answer) == (200, before | shown)
        after = access(api, webhook)
        if "headers" not in change:
            assert after.headers == stored.headers
        if "bearer" not in change:
            assert after.authorization == stored.authorization == "Bearer bearerS3cret"
        if "variables" not in change:
            assert after.variables == stored.variables
        (view,) = api.w.site("garden").webhooks
        assert api.context.keys.unseal(view.hook.secret) == SECRET

    async def test_what_is_left_out_stays_as_somebody_else_has_just_made_it(self, api: Api, admin: str) -> None:
        """The row is another already, what memory keeps of it is not yet."""
        webhook = await added(api, admin, **OPTIONS)
        url, row = "https://crm.example/new", int(webhook["id"])
        await api.w.store.write(lambda tx: tx.sql("UPDATE webhooks SET url = ? WHERE id = ?", (url, row)))
        status, answer = await api.call("PATCH", webhook["path"], {"concurrency": 1}, token=admin)
        assert (status, answer["concurrency"], answer["url"]) == (200, 1, url)

    async def test_with_an_edition_that_has_passed_nothing_is_changed(self, api: Api, admin: str) -> None:
        webhook = await added(api, admin, **OPTIONS)
        change: dict[str, Any] = {"concurrency": 1, "enabled": False}
        _, other = await api.call("PATCH", webhook["path"], {"url": "https://crm.example/new"}, token=admin)
        before = await state_of(api)
        for edition in (webhook["edition"], ""):
            status, problem = await api.call("PATCH", webhook["path"], change | {"edition": edition}, token=admin)
            assert (status, problem["detail"]) == (409, "somebody else has changed the webhook meanwhile: look again")
            assert await state_of(api) == before
        status, answer = await api.call("PATCH", webhook["path"], change | {"edition": other["edition"]}, token=admin)
        assert (status, answer["concurrency"], answer["enabled"], answer["url"]) == (200, 1, False, other["url"])

    async def test_a_switch_makes_no_other_edition(self, api: Api, admin: str) -> None:
        webhook = await added(api, admin, **OPTIONS)
        _, answer = await api.call("PATCH", webhook["path"], {"enabled": False}, token=admin)
        assert answer["edition"] == webhook["edition"]

    async def test_conditions_are_given_whole(self, api: Api, admin: str) -> None:
        webhook = await added(api, admin, **OPTIONS)
        _, answer = await api.call("PATCH", webhook["path"], {"conditions": {"min_size": 7}}, token=admin)
        assert (answer["conditions"]["min_size"], answer["conditions"]["subject"]) == (7, None)
        assert answer["conditions"]["require_visit"] == "site"

    async def test_credentials_are_replaced(self, api: Api, admin: str) -> None:
        webhook = await added(api, admin, basic="user:old")
        await api.call("PATCH", webhook["path"], {"basic": "user:new:er"}, token=admin)
        assert base64.b64decode(access(api, webhook).authorization.removeprefix("Basic ")) == b"user:new:er"
        await api.call("PATCH", webhook["path"], {"basic": "", "bearer": "tok"}, token=admin)
        assert access(api, webhook).authorization == "Bearer tok"
        await api.call("PATCH", webhook["path"], {"bearer": ""}, token=admin)
        assert access(api, webhook) == Access()
        assert await api.w.rows(select(webhooks.c.access).where(webhooks.c.id == int(webhook["id"]))) == [(None,)]

    @of_all
    @pytest.mark.parametrize(
        ("change", "field"),
        [
            ({"basic": "u:p"}, "bearer"),
            ({"headers": {"AUTHORIZATION": "x"}}, "headers"),
            ({"template": ""}, "variables"),
            ({"template": "kommo"}, "variables.key"),
            ({"variables": {}}, "variables.key"),
            ({"url": "https://crm.example/taken"}, "url"),
            ({"secret": SECRET}, "secret"),
            ({"enabled": "no"}, "enabled"),
        ],
    )
    async def test_what_contradicts_the_rest_is_named_and_changes_nothing(
        self, shared: Api, kept: Any, change: dict[str, Any], field: str
    ) -> None:
        before = await state_of(shared)
        status, problem = await shared.call("PATCH", kept["path"], change, token=await shared.token())
        assert (status, fields(problem)) == (409 if field == "url" else 400, [field]), problem
        assert await state_of(shared) == before

    async def test_a_templates_url_must_go_with_the_new_one(self, api: Api, admin: str) -> None:
        shape = "body = '{}'\nurl = 'https://crm.example/a'"
        webhook = await added(api, admin, template=shape)
        status, problem = await api.call("PATCH", webhook["path"], {"url": "https://other.example/"}, token=admin)
        assert (status, fields(problem)) == (400, ["template.url"])

    async def test_its_own_url_may_be_given_again(self, api: Api, admin: str) -> None:
        webhook = await added(api, admin)
        assert (await api.call("PATCH", webhook["path"], {"url": webhook["url"]}, token=admin))[0] == 200

    async def test_the_log_says_what_became_another_and_no_secret(self, api: Api, admin: str) -> None:
        webhook = await added(api, admin, secret=SECRET, **OPTIONS)
        change = {
            "fill": OPTIONS["fill"],
            "concurrency": 7,
            "events": ["message.received", "message.failed"],
            "headers": {"X-Api-Key": "an0ther-s3cret"},
            "url": "https://crm.example/s3cret-path",
            "enabled": False,
        }
        status, _ = await api.call("PATCH", webhook["path"], change, token=admin)
        assert status == 200
        _, answer = await api.call("GET", "/v1/changes?limit=1", token=admin)
        details = answer["items"][0]["details"]
        assert details["enabled"] == {"before": True, "after": False}
        assert details["concurrency"] == {"before": OPTIONS["concurrency"], "after": 7}
        assert (details["url"], details["headers"]) == ("changed", "changed")
        assert details.keys() <= {"enabled", "concurrency", "events", "url", "headers"}
        assert "s3cret" not in str(answer)

    async def test_what_our_keys_do_not_open_is_not_lost_by_a_change(self, api: Api, admin: str) -> None:
        webhook = await added(api, admin, headers={"X-Key": "k"})
        await api.w.store.redefine(
            lambda tx: tx.sql("UPDATE webhooks SET access = 's1.AAAA' WHERE id = ?", (webhook["id"],))
        )
        before = await state_of(api)
        status, problem = await api.call("PATCH", webhook["path"], {"fill": "exact"}, token=admin)
        assert (status, "cannot be read" in problem["detail"]) == (409, True)
        assert await state_of(api) == before
        assert (await api.get(webhook["path"]))["headers"] == []
        assert (await api.call("PATCH", webhook["path"], {"enabled": False}, token=admin))[0] == 200

    async def test_switched_off_what_waits_fails_and_on_again_the_poster_is_woken(self, api: Api, admin: str) -> None:
        webhook = await added(api, admin)
        accepted = await api.letter(CARD)
        await api.w.extract(accepted.message_id)
        await api.call("PATCH", webhook["path"], {"enabled": False}, token=admin)
        detail = await api.get(webhook["path"])
        assert (detail["enabled"], detail["waiting"], detail["failed"]) == (False, 0, 1)
        api.woken.clear()
        _, answer = await api.call("PATCH", webhook["path"], {"enabled": True}, token=admin)
        assert (answer["enabled"], answer["disabled_reason"], api.woken) == (True, None, ["posts"])

    async def test_of_a_declared_one_only_the_switch_changes_here(self, api: Api, admin: str) -> None:
        path = f"/v1/webhooks/{api.w.site().webhooks[0].id}"
        before = await state_of(api)
        for body in ({"fill": "exact"}, {"enabled": False, "url": "https://crm.example/2"}, {"bearer": "x"}):
            status, problem = await api.call("PATCH", path, body, token=admin)
            assert (status, "relay.toml" in problem["detail"]) == (409, True)
        status, problem = await api.call("POST", f"{path}/rotate", {}, token=admin)
        assert (status, "relay.toml" in problem["detail"]) == (409, True)
        assert await state_of(api) == before
        _, answer = await api.call("PATCH", path, {"enabled": False}, token=admin)
        assert (answer["enabled"], answer["disabled_reason"]) == (False, "switched off")
        await api.w.declare(SHOP, OTHER)  # a start with the same relay.toml
        assert api.w.site().webhooks[0].enabled is False
        _, answer = await api.call("PATCH", path, {"enabled": True}, token=admin)
        assert answer["enabled"] is True


class TestRotation:
    async def test_a_made_secret_is_answered_once_and_the_one_before_stays_a_day(self, api: Api, admin: str) -> None:
        webhook = await added(api, admin, secret=SECRET)
        status, answer = await api.call("POST", f"{webhook['path']}/rotate", {}, token=admin)
        assert (status, set(answer)) == (200, {"secret"})
        assert len(signature.decode_secret(answer["secret"])) == 32
        hook = api.w.site("garden").webhooks[0].hook
        assert api.context.keys.unseal(hook.secret) == answer["secret"]
        assert hook.previous_secret is not None
        assert api.context.keys.unseal(hook.previous_secret) == SECRET
        assert hook.previous_until == api.w.now + 86_400
        assert answer["secret"] not in json.dumps(await api.get(webhook["path"]))

    async def test_ones_own_is_taken_and_the_time_may_be_none(self, api: Api, admin: str) -> None:
        webhook = await added(api, admin)
        own = signature.new_secret(b"k" * 24)
        body = {"secret": own, "keep": "0s"}
        assert await api.call("POST", f"{webhook['path']}/rotate", body, token=admin) == (200, {"secret": own})
        assert api.w.site("garden").webhooks[0].hook.previous_until == api.w.now

    @pytest.mark.parametrize(
        ("body", "field"),
        [({"secret": "short"}, "secret"), ({"keep": "31d"}, "keep"), ({"keep": 5}, "keep"), ({"old": 1}, "old")],
    )
    async def test_nonsense_is_named(self, api: Api, admin: str, body: dict[str, Any], field: str) -> None:
        webhook = await added(api, admin)
        before = await state_of(api)
        status, problem = await api.call("POST", f"{webhook['path']}/rotate", body, token=admin)
        assert (status, fields(problem)) == (400, [field])
        assert await state_of(api) == before


class TestTest:
    async def outcome(self, api: Api, webhook: Any) -> Any:
        """Nothing is stored, whatever comes of it."""
        before = await state_of(api)
        status, answer = await api.call("POST", f"{webhook['path']}/test", token=await api.token("manager", "garden"))
        assert status == 200, answer
        assert await state_of(api) == before
        return answer

    async def test_one_that_works_shows_request_answer_and_deal(self, api: Api, admin: str, crm: Receiver) -> None:
        api.w.now = time.time()
        webhook = await added(api, admin, crm.url, secret=SECRET, bearer="bearerS3cret")
        crm.script = deal(17, "https://crm.example/17")
        answer = await self.outcome(api, webhook)
        (got,) = crm.posts
        got.verify(SECRET)
        assert got.headers["authorization"] == "Bearer bearerS3cret"
        assert got.headers["webhook-id"].startswith("test_")
        assert 0 <= answer.pop("seconds") < 15
        request = answer.pop("request")
        assert answer == {
            "succeeded": True,
            "status": 200,
            "answer": '{"deal_id": 17, "deal_url": "https://crm.example/17"}',
            "deal": {"id": "17", "url": "https://crm.example/17"},
        }
        assert (request["method"], request["url"], request["body"]) == ("POST", crm.url, got.body.decode())
        assert request["headers"]["Authorization"] == request["headers"]["webhook-signature"] == "***"

    async def test_so_many_at_once_and_no_more(self, api: Api, admin: str, crm: Receiver) -> None:
        webhook = await added(api, admin, crm.url)
        path, token = f"{webhook['path']}/test", await api.token("manager", "garden")
        crm.script = held = Held()
        under_way = [asyncio.create_task(api.call("POST", path, token=token)) for _ in range(TRIALS)]
        await crm.wait_for(TRIALS)
        response, octets = await api.request("POST", path, token=token)
        assert (response.status, response.headers["Retry-After"]) == (429, "15")
        assert json.loads(octets)["detail"] == "4 webhooks are being tested just now; try again in a moment"
        held.open()
        assert [status for status, _ in await asyncio.gather(*under_way)] == [200] * TRIALS
        await self.outcome(api, webhook)
        assert len(crm.posts) == TRIALS + 1

    async def test_each_test_has_an_id_of_its_own(self, api: Api, admin: str, crm: Receiver) -> None:
        webhook = await added(api, admin, crm.url)
        await self.outcome(api, webhook)
        await self.outcome(api, webhook)
        assert len({got.headers["webhook-id"] for got in crm.posts}) == 2

    @pytest.mark.parametrize(
        ("step", "status"), [(Answer(500, b"broken"), 500), (Answer(410, b"gone"), 410), (redirect("http://x/"), 307)]
    )
    async def test_a_refusal_is_shown_and_has_no_consequence(
        self, api: Api, admin: str, crm: Receiver, step: Answer, status: int
    ) -> None:
        webhook = await added(api, admin, crm.url)
        crm.script = step
        answer = await self.outcome(api, webhook)
        assert (answer["succeeded"], answer["status"], answer["answer"]) == (False, status, step.body.decode())
        assert answer["deal"] is None
        assert len(crm.posts) == 1

    async def test_no_answer_says_why(self, api: Api, admin: str) -> None:
        webhook = await added(api, admin, "http://127.0.0.1:1/hook")
        answer = await self.outcome(api, webhook)
        assert (answer["succeeded"], answer["status"]) == (False, None)
        assert answer["answer"] == "no connection: Connection refused"
        assert answer["request"]["url"] == "http://127.0.0.1:1/hook"

    async def test_a_disabled_one_is_tested_too(self, api: Api, admin: str, crm: Receiver) -> None:
        webhook = await added(api, admin, crm.url)
        await api.call("PATCH", webhook["path"], {"enabled": False}, token=admin)
        assert (await self.outcome(api, webhook))["succeeded"] is True
        assert (await api.get(webhook["path"]))["enabled"] is False

    async def test_a_template_is_sent_as_it_comes_out(self, api: Api, admin: str, crm: Receiver) -> None:
        webhook = await added(api, admin, crm.url, template=TEMPLATE, variables={"key": "variableS3cret"})
        answer = await self.outcome(api, webhook)
        assert crm.posts[0].json == {"lead": "Test of the webhook", "key": "variableS3cret"}
        assert json.loads(answer["request"]["body"]) == {"lead": "Test of the webhook", "key": "***"}

    async def stored(self, api: Api, webhook: Any, template: str) -> None:
        """What no check would let through today."""
        settings = json.dumps({"template": template})
        await api.w.store.redefine(
            lambda tx: tx.sql("UPDATE webhooks SET settings = ? WHERE id = ?", (settings, webhook["id"]))
        )

    async def test_one_that_fails_says_which_field(self, api: Api, admin: str, crm: Receiver) -> None:
        webhook = await added(api, admin, crm.url)
        await self.stored(api, webhook, "body = '{{ subject }}'")
        answer = await self.outcome(api, webhook)
        assert (answer["succeeded"], answer["request"], answer["status"]) == (False, None, None)
        assert answer["answer"].startswith("the webhook's template fails: body")
        await self.stored(api, webhook, "requires = ['city', 'utm_term']\nbody = '{}'")
        assert (await self.outcome(api, webhook))["answer"] == "the template does not take the letter: no utm_term"
        assert crm.posts == []

    async def test_a_secret_that_cannot_be_read_says_so(self, api: Api, admin: str, crm: Receiver) -> None:
        webhook = await added(api, admin, crm.url)
        await api.w.store.redefine(
            lambda tx: tx.sql("UPDATE webhooks SET secret = 's1.AAAA' WHERE id = ?", (webhook["id"],))
        )
        answer = await self.outcome(api, webhook)
        assert answer["answer"] == "the webhook's secret cannot be read: not a sealed value"

    async def test_the_inside_is_not_reached(self, tmp_path: Path, crm: Receiver) -> None:
        async with serving(tmp_path, allow_private_addresses=False) as api:
            admin = await api.token()
            await api.call("POST", "/v1/sites", SITE, token=admin)
            answer = await self.outcome(api, await added(api, admin, crm.url))
        assert answer["answer"].startswith("no connection: the host's address is not a public one")
        assert crm.posts == []


async def test_secrets_are_in_no_answer_no_log_and_not_in_the_database(
    api: Api, admin: str, crm: Receiver, tmp_path: Path
) -> None:
    with structlog.testing.capture_logs() as logs:
        options = {name: value for name, value in OPTIONS.items() if name not in ("conditions", "deal_id", "deal_url")}
        one = await added(api, admin, crm.url, secret=SECRET, **options)
        two = await added(api, admin, crm.at("/2"), secret=SECRET, basic="user:passwordS3cret")
        crm.script = [500, 200]
        (message,) = await posted(api, crm)
        await api.call("POST", f"{two['path']}/rotate", {"keep": "1d"}, token=admin)
        said = [await api.call("PATCH", one["path"], {"concurrency": 2}, token=admin)]
        said += [await api.call("POST", f"{each['path']}/test", token=admin) for each in (one, two)]
        said += [await api.call("PATCH", one["path"], {"basic": "user:passwordS3cret"}, token=admin)]
        paths = [
            "/v1/sites",
            "/v1/sites/garden",
            "/v1/sites/garden/webhooks",
            f"/v1/messages/{message}",
            "/v1/messages",
        ]
        for webhook in (one, two):
            paths += [webhook["path"], f"{webhook['path']}/deliveries"]
            for item in (await api.get(f"{webhook['path']}/deliveries"))["items"]:
                paths.append(f"{webhook['path']}/deliveries/{item['id']}")
        said += [await api.call("GET", path, token=admin) for path in paths]
    assert any("bearerS3cret" in got.headers.get("authorization", "") for got in crm.posts)
    assert {status for status, _ in said} == {200, 400}
    stored = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    basic = base64.b64encode(b"user:passwordS3cret").decode()
    for secret in (*SECRETS, basic):
        assert secret not in json.dumps(said)
        assert secret not in str(logs)
        assert secret.encode() not in stored


async def test_a_site_has_so_many_webhooks_and_no_more(api: Api, admin: str) -> None:
    """Each is judged for every letter in the transaction that reads it."""
    for number in range(MOST):
        await added(api, admin, f"https://crm.example/{number}")
    body = {"url": "https://crm.example/another"}
    status, problem = await api.call("POST", "/v1/sites/garden/webhooks", body, token=admin)
    assert (status, problem["detail"]) == (409, f"the site has {MOST} webhooks, the most it may have")
    assert len(api.w.site("garden").webhooks) == MOST
