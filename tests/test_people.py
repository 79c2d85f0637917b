"""Users, tokens and the log of changes over the API: every answer, and who gets which."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import select

from relay.secrets import token_hash
from relay.store import tokens, users
from relay.store.schema import changes
from tests.store_fixtures import NOW
from tests.webapi_fixtures import Api, fields, of_all, serving


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with serving(tmp_path) as found:
        yield found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(shared: Api) -> Api:
    """With a user and a token of the shop."""
    await shared.w.store.write(lambda tx: users.create(tx, "bob", "viewer", ["shop"], NOW))
    await shared.w.store.write(lambda tx: tokens.create(tx, "spare", "hash", "viewer", ["shop"], NOW))
    return shared


@pytest.fixture
async def admin(api: Api) -> str:
    return await api.token()


class TestUsers:
    async def test_an_invited_one_waits_until_a_password_is_chosen(self, api: Api, admin: str) -> None:
        status, made = await api.call("POST", "/v1/users", {"name": "Ann@Shop.test", "sites": ["shop"]}, token=admin)
        assert status == 201
        link = made.pop("link")
        assert link.startswith(f"{api.url}/ui/welcome/")
        assert made == {
            "name": "ann@shop.test",
            "role": "viewer",
            "sites": ["shop"],
            "created_at": "2027-01-15T08:00:00.000Z",
            "seen_at": None,
            "waiting": True,
        }
        assert await api.call("GET", "/v1/users", token=admin) == (200, {"items": [made]})
        hashed = token_hash(link.rpartition("/")[2])
        assert await users.invited(api.w.store.reader, hashed, NOW) == ("ann@shop.test",)

    @of_all
    @pytest.mark.parametrize(
        ("body", "status", "field"),
        [
            ({}, 400, "name"),
            ({"name": ""}, 400, "name"),
            ({"name": "a b"}, 400, "name"),
            ({"name": "-ann"}, 400, "name"),
            ({"name": "a" * 65}, 400, "name"),
            ({"name": "änn"}, 400, "name"),
            ({"name": "a/b"}, 400, "name"),
            ({"name": 1}, 400, "name"),
            ({"name": "ann", "role": "king"}, 400, "role"),
            ({"name": "ann", "sites": "shop"}, 400, "sites"),
            ({"name": "ann", "sites": ["a b"]}, 400, "sites[0]"),
            ({"name": "ann", "sites": ["nowhere"]}, 404, "sites"),
            ({"name": "ann", "password": "x"}, 400, "password"),
            ({"name": "BOB"}, 409, "name"),
        ],
    )
    async def test_what_is_wrong_is_named_and_nobody_made(
        self, shared: Api, body: Any, status: int, field: str
    ) -> None:
        got, problem = await shared.call("POST", "/v1/users", body, token=await shared.token())
        assert (got, fields(problem)) == (status, [field])
        assert [user.name for user in await users.listing(shared.w.store.reader)] == ["bob"]

    @pytest.mark.parametrize(
        ("name", "body", "status", "field"),
        [
            ("bob", {}, 400, "role"),
            ("bob", {"role": "king"}, 400, "role"),
            ("bob", {"role": "viewer", "name": "x"}, 400, "name"),
            ("bob", {"role": "viewer", "sites": ["nowhere"]}, 404, "sites"),
            ("boss", {"role": "manager"}, 409, "role"),
            ("boss", {"role": "admin", "sites": ["shop"]}, 409, "role"),
        ],
    )
    async def test_rights_that_cannot_be_are_refused(
        self, api: Api, admin: str, name: str, body: Any, status: int, field: str
    ) -> None:
        await api.w.store.write(lambda tx: users.create(tx, "boss", "admin", None, NOW, "hash"))
        await api.w.store.write(lambda tx: users.create(tx, "bob", "viewer", ["shop"], NOW, "hash"))
        before = await users.listing(api.w.store.reader)
        got, problem = await api.call("PUT", f"/v1/users/{name}", body, token=admin)
        assert (got, fields(problem)) == (status, [field])
        assert await users.listing(api.w.store.reader) == before

    async def test_rights_are_given_whole(self, api: Api, admin: str) -> None:
        await api.w.store.write(lambda tx: users.create(tx, "bob", "viewer", ["shop"], NOW, "hash"))
        status, shown = await api.call("PUT", "/v1/users/BOB", {"role": "manager"}, token=admin)
        assert (status, shown["role"], shown["sites"]) == (200, "manager", None)

    @pytest.mark.parametrize(
        ("method", "path", "body"),
        [
            ("PUT", "/v1/users/nobody", {"role": "viewer"}),
            ("POST", "/v1/users/nobody/invitation", None),
            ("DELETE", "/v1/users/nobody", None),
            ("DELETE", "/v1/users/%00", None),
            ("DELETE", "/v1/tokens/nothing", None),
        ],
    )
    async def test_what_is_not_there_is_a_404_and_no_change(
        self, api: Api, admin: str, method: str, path: str, body: Any
    ) -> None:
        assert (await api.call(method, path, body, token=admin))[0] == 404
        assert (await api.call("GET", "/v1/changes", token=admin))[1]["items"] == []

    async def test_a_new_link_ends_the_one_before(self, api: Api, admin: str) -> None:
        await api.call("POST", "/v1/users", {"name": "ann"}, token=admin)
        found = [await api.call("POST", "/v1/users/ann/invitation", token=admin) for _ in range(2)]
        assert [status for status, _ in found] == [201, 201]
        hashes = [token_hash(made["link"].rpartition("/")[2]) for _, made in found]
        assert [await users.invited(api.w.store.reader, one, NOW) for one in hashes] == [None, ("ann",)]

    async def test_the_last_administrator_is_not_removed(self, api: Api, admin: str) -> None:
        await api.w.store.write(lambda tx: users.create(tx, "boss", "admin", None, NOW, "hash"))
        assert (await api.call("DELETE", "/v1/users/boss", token=admin))[0] == 409
        await api.w.store.write(lambda tx: users.create(tx, "second", "admin", None, NOW, "hash"))
        assert (await api.call("DELETE", "/v1/users/boss", token=admin))[0] == 204


class TestTokens:
    async def test_one_is_answered_once_and_opens_what_it_is_for(self, api: Api, admin: str) -> None:
        body = {"name": "crm", "role": "manager", "sites": ["other"]}
        status, made = await api.call("POST", "/v1/tokens", body, token=admin)
        assert status == 201
        token = made.pop("token")
        assert made == body | {"created_at": "2027-01-15T08:00:00.000Z"}
        assert [item["name"] for item in (await api.call("GET", "/v1/sites", token=token))[1]["items"]] == ["other"]
        _, listed = await api.call("GET", "/v1/tokens", token=admin)
        assert made in listed["items"]
        assert token not in str(listed)
        assert await tokens.find(api.w.store.reader, token_hash(token)) is not None

    @pytest.mark.parametrize(
        ("body", "status", "field"),
        [
            ({}, 400, "name"),
            ({"name": ""}, 400, "name"),
            ({"name": "x" * 10_000}, 400, "name"),
            ({"name": "a\nb"}, 400, "name"),
            ({"name": "x", "role": "king"}, 400, "role"),
            ({"name": "x", "sites": ["nowhere"]}, 404, "sites"),
            ({"name": "x", "token": "vr_mine"}, 400, "token"),
            ({"name": "taken"}, 409, "name"),
        ],
    )
    async def test_what_is_wrong_is_named_and_none_made(
        self, api: Api, admin: str, body: Any, status: int, field: str
    ) -> None:
        await api.w.store.write(lambda tx: tokens.create(tx, "taken", "hash", "viewer", None, NOW))
        got, problem = await api.call("POST", "/v1/tokens", body, token=admin)
        assert (got, fields(problem)) == (status, [field])
        assert len(await api.w.store.reader.all(tokens.listing())) == 2

    async def test_a_revoked_one_is_gone(self, api: Api, admin: str) -> None:
        await api.w.store.write(lambda tx: tokens.create(tx, "a/b ü", "hash", "viewer", None, NOW))
        assert (await api.call("DELETE", "/v1/tokens/a%2Fb%20%C3%BC", token=admin))[0] == 204
        assert (await api.call("DELETE", "/v1/tokens/a%2Fb%20%C3%BC", token=admin))[0] == 404


class TestChanges:
    async def test_who_did_what_to_which_site(self, api: Api, admin: str) -> None:
        await api.call("PATCH", "/v1/sites/shop", {"tracking": False}, token=admin)
        await api.call("POST", "/v1/users", {"name": "ann", "role": "admin", "sites": ["shop"]}, token=admin)
        _, answer = await api.call("GET", "/v1/changes", token=admin)
        invited, switched = answer["items"]
        assert switched == {
            "at": "2027-01-15T08:00:00.000Z",
            "kind": "token",
            "name": f"admin-{admin[-6:]}",
            "action": "PATCH /v1/sites/{name}",
            "site": "shop",
            "subject": "shop",
            "details": {"tracking": {"before": True, "after": False}},
        }
        assert (invited["subject"], invited["site"]) == ("ann", None)
        assert invited["details"] == {"name": "ann", "role": "admin", "sites": ["shop"]}
        assert answer["next"] is None

    async def test_what_was_refused_is_no_change(self, api: Api, admin: str) -> None:
        viewer = await api.token("viewer")
        for token, body in ((viewer, {"tracking": False}), (admin, {"tracking": "off"}), (admin, {"more": 1})):
            assert (await api.call("PATCH", "/v1/sites/shop", body, token=token))[0] in (400, 403)
        assert (await api.call("DELETE", "/v1/sites/nowhere", token=admin))[0] == 404
        assert (await api.call("GET", "/v1/changes", token=admin))[1]["items"] == []

    async def test_of_one_site_one_sees_that_sites(self, api: Api, admin: str) -> None:
        for name in ("shop", "other"):
            await api.call("PATCH", f"/v1/sites/{name}", {"tracking": False}, token=admin)
        await api.call("POST", "/v1/tokens", {"name": "crm"}, token=admin)
        _, answer = await api.call("GET", "/v1/changes", token=await api.token("admin", "shop"))
        assert [item["site"] for item in answer["items"]] == ["shop"]

    async def test_it_is_read_on_by_its_cursor(self, api: Api, admin: str) -> None:
        for number in range(5):
            await api.call("POST", "/v1/tokens", {"name": f"t{number}"}, token=admin)
        found, cursor = [], ""
        while cursor is not None:
            path = "/v1/changes?limit=2" + (f"&cursor={cursor}" if cursor else "")
            _, answer = await api.call("GET", path, token=admin)
            found += [item["subject"] for item in answer["items"]]
            cursor = answer["next"]
        assert found == ["t4", "t3", "t2", "t1", "t0"]

    @pytest.mark.parametrize("query", ["limit=0", "limit=201", "cursor=x", "cursor=", "since=2026-01-01"])
    async def test_a_wrong_parameter_is_named(self, api: Api, admin: str, query: str) -> None:
        status, problem = await api.call("GET", f"/v1/changes?{query}", token=admin)
        assert (status, fields(problem)) == (400, [query.partition("=")[0]])

    async def test_what_was_done_to_a_message_is_that_of_its_site(self, api: Api, admin: str) -> None:
        _, to_shop = await api.w.shown()
        _, to_other = await api.w.shown("sales@example.com", "other")
        one = await api.letter(to_shop)
        both = await api.letter(to_shop, to_other, number=1)
        of_shop = await api.token("admin", "shop")
        for message, token in ((one, admin), (both, admin), (both, of_shop)):
            path = f"/v1/messages/{message.message_id}/deal"
            assert (await api.call("PUT", path, {"id": "D-1"}, token=token))[0] == 204
        await api.w.store.write(lambda tx: tx.sql("UPDATE deliveries SET state = 'failed'"))
        assert (await api.call("POST", "/v1/queue/1/drop", token=admin))[0] == 204
        _, answer = await api.call("GET", "/v1/changes", token=admin)
        assert [item["site"] for item in answer["items"]] == ["shop", "shop", None, "shop"]
        _, answer = await api.call("GET", "/v1/changes", token=of_shop)
        assert len(answer["items"]) == 3

    @pytest.mark.parametrize(
        ("method", "path", "body"),
        [
            ("POST", "/v1/sites/shop/blocked-senders", {"sender": "ann@example.org"}),
            ("DELETE", "/v1/sites/shop/blocked-senders/ann@example.org", None),
            ("DELETE", "/v1/senders/ann@example.org", None),
        ],
    )
    async def test_nobodys_address_is_written_down_who_may_ask_to_be_forgotten(
        self, api: Api, admin: str, method: str, path: str, body: Any
    ) -> None:
        await api.call("POST", "/v1/sites/shop/blocked-senders", {"sender": "ann@example.org"}, token=admin)
        await api.call(method, path, body, token=admin)
        _, answer = await api.call("GET", "/v1/changes", token=admin)
        assert answer["items"]
        assert "ann@" not in str(answer)
        of_all = path.startswith("/v1/senders/")
        assert {item["site"] for item in answer["items"]} == ({"shop", None} if of_all else {"shop"})

    async def test_no_number_of_a_visit_is_written_down(self, api: Api, admin: str) -> None:
        visit, _ = await api.w.shown()
        assert (await api.call("DELETE", f"/v1/visits/{visit}", token=admin))[0] == 200
        ((subject, details),) = await api.w.rows(select(changes.c.subject, changes.c.details))
        assert visit not in f"{subject} {details}"

    async def test_a_blocked_domain_is(self, api: Api, admin: str) -> None:
        path = "/v1/sites/shop/blocked-senders"
        await api.call("POST", path, {"sender": "@spam.example"}, token=admin)
        await api.call("DELETE", f"{path}/@spam.example", token=admin)
        _, answer = await api.call("GET", "/v1/changes", token=admin)
        assert [item["subject"] for item in answer["items"]] == ["shop, @spam.example", "shop"]

    async def test_an_erasure_is_noted_only_where_something_was(self, api: Api, admin: str) -> None:
        _, substitute = await api.w.shown()
        await api.w.accept(substitute, claim=None)
        await api.w.store.write(lambda tx: tx.sql("UPDATE deliveries SET state = 'forwarded'"))
        for _ in range(2):
            await api.call("DELETE", "/v1/senders/ann@example.org", token=admin)
        _, answer = await api.call("GET", "/v1/changes", token=admin)
        assert [item["action"] for item in answer["items"]] == ["DELETE /v1/senders/{address}"]


@of_all
@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/v1/users", None),
        ("POST", "/v1/users", {"name": "eve", "role": "viewer", "sites": ["shop"]}),
        ("PUT", "/v1/users/bob", {"role": "viewer", "sites": ["shop"]}),
        ("POST", "/v1/users/bob/invitation", None),
        ("DELETE", "/v1/users/bob", None),
        ("GET", "/v1/tokens", None),
        ("POST", "/v1/tokens", {"name": "eve", "role": "viewer", "sites": ["shop"]}),
        ("DELETE", "/v1/tokens/spare", None),
    ],
)
async def test_who_rules_some_sites_gives_nobody_rights(shared: Api, method: str, path: str, body: Any) -> None:
    """Not even to these: who could make users could make one who sees more."""
    status, problem = await shared.call(method, path, body, token=await shared.token("admin", "shop"))
    assert (status, problem["detail"]) == (403, "this takes an administrator of all sites")
    assert [user.name for user in await users.listing(shared.w.store.reader)] == ["bob"]
