"""Tokens, roles and scopes over every verb there is; and what is the same for every answer."""

from __future__ import annotations

import asyncio
import gzip
import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web

from relay.config import Http, Limits
from relay.store import blocked, tokens, users
from relay.store.engine import StoreUnavailable
from relay.store.sites import define, remove
from tests.exposition import parse
from tests.store_fixtures import TRACK, site
from tests.webapi_fixtures import Api, fields, of_all, serving
from webapi import app as app_module
from webapi.app import OPERATIONS
from webapi.auth import Role
from webapi.context import Clients, client_address
from webapi.limits import Rate
from webapi.operation import Operation
from webapi.values import moment

PROTECTED = [operation for operation in OPERATIONS if operation.role is not None]
BODIES: dict[tuple[str, str], Any] = {
    ("PUT", "/v1/messages/{id}/deal"): {"id": "D-1", "url": "https://crm.example/D-1"},
    ("POST", "/v1/sites"): {"name": "third", "origins": ["https://third.example"]},
    ("PUT", "/v1/sites/{name}"): {"origins": ["https://www.shop.example"]},
    ("PATCH", "/v1/sites/{name}"): {"tracking": False},
    ("POST", "/v1/sites/{name}/targets/{address}/pool"): {"addresses": [f"info9@{TRACK}"]},
    ("POST", "/v1/sites/{name}/webhooks"): {"url": "https://crm.example/second"},
    ("PATCH", "/v1/webhooks/{id}"): {"extras": True},
    ("POST", "/v1/webhooks/{id}/rotate"): {},
    ("POST", "/v1/webhooks/{id}/replay"): {"failed": True},
    ("POST", "/v1/sites/{name}/blocked-senders"): {"sender": "ann@example.org"},
    ("POST", "/v1/users"): {"name": "carol", "role": "manager", "sites": ["shop"]},
    ("PUT", "/v1/users/{name}"): {"role": "viewer"},
    ("POST", "/v1/tokens"): {"name": "reports"},
    ("POST", "/v1/queue/retry"): {"deliveries": ["1"]},
    ("POST", "/v1/queue/drop"): {"deliveries": ["1"]},
    ("POST", "/v1/checks"): {},
}
QUERIES = {"/v1/reports/sources": "?site=shop"}


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with serving(tmp_path) as found:
        yield found


@dataclass
class Filled:
    """The paths of everything that the shop has: one message to its pool address, held, with a post."""

    visit: str
    message: int
    delivery: int
    webhook: int
    post: int

    def path(self, operation: Operation) -> str:
        kind = operation.path.split("/")[2]
        ids = {"messages": self.message, "queue": self.delivery, "webhooks": self.webhook}
        path = operation.path.replace("{id}", str(ids.get(kind, 0)))
        name = {"users": "bob", "tokens": "spare"}.get(kind, "shop")
        path = path.replace("{name}", name).replace("{number}", self.visit).replace("{post}", str(self.post))
        address = f"info1@{TRACK}" if "substitutes" in path else "sales@example.com"
        address = "ann@example.org" if path.startswith("/v1/senders") else address
        address = "@blocked.example" if "blocked-senders" in path else address
        return path.replace("{address}", address) + QUERIES.get(operation.path, "")


async def fill(api: Api, operation: Operation | None = None) -> Filled:
    """``operation``: whose least role the delivery is made for; what is held takes more than what was forwarded."""
    visit, substitute = await api.w.shown()
    accepted = await api.w.accept(substitute, claim=None)
    await api.w.extract(accepted.message_id)
    ((delivery,),) = await api.w.store.write(lambda tx: tx.sql("SELECT id FROM deliveries"))
    state = "forwarded" if operation is not None and operation.path.endswith("/resend") else "failed"
    await api.w.store.write(lambda tx: tx.sql("UPDATE deliveries SET state = ?", (state,)))
    shop = api.w.site()
    await api.w.store.write(lambda tx: blocked.block(tx, shop.id, "@blocked.example", api.w.now))
    await api.w.store.write(lambda tx: users.create(tx, "bob", "manager", None, api.w.now))
    await api.w.store.write(lambda tx: tokens.create(tx, "spare", "no hash", "viewer", None, api.w.now))
    ((post,),) = await api.w.store.write(lambda tx: tx.sql("SELECT id FROM posts"))
    return Filled(visit, accepted.message_id, delivery, shop.webhooks[0].id, post)


def dump(directory: Path) -> list[str]:
    with closing(sqlite3.connect(f"file:{directory}/relay.db?mode=ro", uri=True)) as database:
        return [f"{name}: {row}" for name in _tables(database) for row in database.execute(f"SELECT * FROM {name}")]


def _tables(database: sqlite3.Connection) -> list[str]:
    rows = database.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE '%search%'")
    return [name for (name,) in rows if name not in ("tokens", "sqlite_sequence")]


async def named(api: Api) -> list[Any]:
    """The tokens there are, without when they were used."""
    return await api.w.store.write(lambda tx: tx.sql("SELECT id, name, hash, role, sites FROM tokens"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def filled(shared: Api) -> Filled:
    return await fill(shared)


def name_of(operation: Operation) -> str:
    return f"{operation.method} {operation.path}"


class TestTokens:
    @of_all
    @pytest.mark.parametrize("operation", PROTECTED, ids=name_of)
    async def test_every_verb_of_the_management_api_takes_a_token(self, shared: Api, operation: Operation) -> None:
        path = Filled("1", 1, 1, 1, 1).path(operation)
        body = BODIES.get((operation.method, operation.path))
        response, octets = await shared.request(operation.method, path, body)
        assert response.status == 401
        assert response.headers["WWW-Authenticate"] == "Bearer"
        assert json.loads(octets)["title"] == "Unauthorized"
        response, _ = await shared.request(operation.method, path, body, token="vr_wrong")
        assert response.status == 401
        assert response.headers["WWW-Authenticate"] == 'Bearer error="invalid_token"'

    @of_all
    @pytest.mark.parametrize("header", ["Bearer", "Bearer ", "Basic dXNlcjpwYXNz", "vr_token", "", "Bearer \xe9"])
    async def test_what_is_no_bearer_token_is_refused(self, shared: Api, header: str) -> None:
        status, _ = await shared.call("GET", "/v1/sites", headers={"Authorization": header})
        assert status == 401

    async def test_the_scheme_is_read_in_any_case(self, api: Api) -> None:
        status, _ = await api.call("GET", "/v1/sites", headers={"Authorization": f"bEARER {await api.token()}"})
        assert status == 200

    async def test_a_revoked_token_ends_within_five_seconds(self, api: Api) -> None:
        token = await api.token("viewer")
        assert (await api.call("GET", "/v1/sites", token=token))[0] == 200
        await api.w.store.write(lambda tx: tokens.revoke(tx, f"viewer-{token[-6:]}"))
        api.w.pass_time(5)
        assert (await api.call("GET", "/v1/sites", token=token))[0] == 401

    async def test_wrong_tokens_are_counted_and_then_wait(self, tmp_path: Path) -> None:
        limits = Limits(exempt=(), api_failures_per_address_per_minute=3)
        async with serving(tmp_path, limits=limits) as api:
            known, unused = await api.token(), await api.token()
            assert (await api.call("GET", "/v1/sites", token=known))[0] == 200
            statuses = [(await api.call("GET", "/v1/sites", token=f"vr_{n}"))[0] for n in range(5)]
            assert statuses == [401, 401, 401, 429, 429]
            response, _ = await api.request("GET", "/v1/sites", token="vr_x")
            assert response.headers["Retry-After"] == "20"
            assert (await api.call("GET", "/v1/sites", token=known))[0] == 200
            assert (await api.call("GET", "/v1/sites", token=unused))[0] == 429
            api.w.pass_time(60)
            assert (await api.call("GET", "/v1/sites", token=unused))[0] == 200

    async def test_a_scope_whose_site_is_gone_sees_nothing(self, api: Api) -> None:
        token = await api.token("admin", "gone")
        assert (await api.call("GET", "/v1/sites", token=token)) == (200, {"items": []})
        assert (await api.call("GET", "/v1/messages", token=token)) == (200, {"items": [], "next": None})

    async def test_a_new_site_of_a_removed_ones_name_is_not_for_its_people(self, api: Api) -> None:
        """Neither with a token nor as users of the pages; who sees all sites sees this one, too."""
        w, garden = api.w, site("garden")
        await w.store.redefine(lambda tx: define(tx, garden, w.now))
        former = [await api.token("viewer", *names) for names in (("garden",), ("shop", "garden"), ())]
        for name, names in (("ann", ["garden"]), ("ben", ["shop", "garden"]), ("cy", None)):
            await w.store.write(lambda tx, name=name, names=names: users.create(tx, name, "viewer", names, w.now))
        await w.store.redefine(lambda tx: remove(tx, "garden", w.now))
        await w.store.redefine(lambda tx: define(tx, garden, w.now))
        seen = [(await api.call("GET", "/v1/sites", token=token))[1]["items"] for token in former]
        assert [[one["name"] for one in items] for items in seen] == [[], ["shop"], ["garden", "other", "shop"]]
        people = {user.name: user.sites for user in await users.listing(w.store.reader)}
        assert people == {"ann": (), "ben": ("shop",), "cy": None}


class TestRoles:
    @pytest.mark.parametrize("operation", PROTECTED, ids=name_of)
    async def test_a_lower_role_may_not_and_the_role_may(self, api: Api, operation: Operation, tmp_path: Path) -> None:
        path = (await fill(api, operation)).path(operation)
        body = BODIES.get((operation.method, operation.path))
        before = dump(tmp_path)
        for role in Role:
            if operation.role is not None and role < operation.role:
                status, problem = await api.call(operation.method, path, body, token=await api.token(role.name.lower()))
                assert (status, problem["title"]) == (403, "Forbidden")
        assert dump(tmp_path) == before
        assert operation.role is not None
        response, _ = await api.request(
            operation.method, path, body, token=await api.token(operation.role.name.lower())
        )
        # The shop is declared in relay.toml: its definition is refused here, but not for the role.
        declared = (
            operation.path
            in ("/v1/sites/{name}", "/v1/sites/{name}/webhooks", "/v1/webhooks/{id}", "/v1/webhooks/{id}/rotate")
        ) or "substitutes" in operation.path
        assert response.status == (409 if declared and operation.role is Role.ADMIN else operation.status) or (
            response.status == 204 and operation.answer is None
        )


class TestScopes:
    """A token for the other site, with every right there: the shop does not exist for it."""

    LISTS = ("/v1/messages", "/v1/queue", "/v1/changes")
    #: Of the whole instance: for administrators of all sites.
    WHOLE = ("/v1/users", "/v1/tokens", "/v1/checks")

    @of_all
    @pytest.mark.parametrize("operation", PROTECTED, ids=name_of)
    async def test_what_belongs_to_a_foreign_site_is_not_there_and_not_changed(
        self, shared: Api, filled: Filled, operation: Operation
    ) -> None:
        path = filled.path(operation)
        token = await shared.token("admin", "other")
        before, names = dump(shared.w.store.path.parent), await named(shared)
        status, answer = await shared.call(
            operation.method, path, BODIES.get((operation.method, operation.path)), token=token
        )
        if operation.path in self.LISTS:
            assert (status, answer["items"]) == (200, [])
        elif name_of(operation) == "GET /v1/sites":
            assert [item["name"] for item in answer["items"]] == ["other"]
        elif name_of(operation) == "POST /v1/sites" or operation.path.startswith(self.WHOLE):
            assert status == 403
        elif operation.path in ("/v1/queue/retry", "/v1/queue/drop"):
            assert (status, answer) == (200, {"changed": 0, "left": ["1"]})
        elif operation.path.startswith("/v1/senders"):
            assert (status, answer) == (200, {"erased": 0, "left": 0, "unblocked": False})
        else:
            assert status == 404
        assert dump(shared.w.store.path.parent) == before
        assert await named(shared) == names

    @pytest.mark.parametrize("query", ["site=shop", "site=nobody"])
    async def test_a_foreign_site_and_an_unknown_one_are_the_same(self, api: Api, query: str) -> None:
        token = await api.token("viewer", "other")
        for path in ("/v1/messages", "/v1/reports/sources", "/v1/visits/123"):
            status, problem = await api.call("GET", f"{path}?{query}", token=token)
            assert (status, problem["detail"], fields(problem)) == (404, "no such site", ["site"])

    async def test_of_a_message_to_both_each_sees_its_own(self, api: Api) -> None:
        _, to_shop = await api.w.shown()
        _, to_other = await api.w.shown("sales@example.com", "other")
        accepted = await api.w.accept(to_shop, to_other, claim=None)
        await api.w.extract(accepted.message_id)
        path = f"/v1/messages/{accepted.message_id}"
        for name, substitute in (("shop", to_shop), ("other", to_other)):
            _, seen = await api.call("GET", path, token=await api.token("viewer", name))
            assert seen["receivers"] == [substitute]
            assert seen["site"] == name
            assert {row["site"] for row in (*seen["deliveries"], *seen["events"])} == {name}
            assert {row["recipient"] for row in seen["paths"]} == {substitute}
        _, seen = await api.call("GET", path, token=await api.token("viewer"))
        assert sorted(seen["receivers"]) == sorted([to_shop, to_other])

    async def test_a_token_for_two_sites_sees_both(self, api: Api) -> None:
        _, answer = await api.call("GET", "/v1/sites", token=await api.token("viewer", "shop", "other"))
        assert [item["name"] for item in answer["items"]] == ["other", "shop"]


class TestEveryAnswer:
    async def test_has_the_security_headers(self, api: Api) -> None:
        for path in ("/healthz", "/nowhere", "/v1/sites", "/mailtrack.js?site=pk_shop"):
            response, _ = await api.request("GET", path)
            assert response.headers["X-Content-Type-Options"] == "nosniff"
            assert response.headers["Referrer-Policy"] == "no-referrer"
            assert response.headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"
            assert response.headers["Server"] == "visit-relay"

    @of_all
    @pytest.mark.parametrize(
        ("method", "path", "status"),
        [
            ("GET", "/nothing", 404),
            ("GET", "/v1/nothing", 404),
            ("DELETE", "/healthz", 405),
            ("PATCH", "/v1/messages", 405),
        ],
    )
    async def test_what_does_not_exist_is_a_problem(self, shared: Api, method: str, path: str, status: int) -> None:
        response, octets = await shared.request(method, path)
        assert (response.status, response.headers["Content-Type"]) == (status, "application/problem+json")
        assert json.loads(octets)["status"] == status

    async def test_who_comes_without_a_path_is_led_to_the_pages(self, api: Api) -> None:
        async with api.session.get(f"{api.url}/", allow_redirects=False) as response:
            assert (response.status, response.headers["Location"]) == (303, "/ui/history")

    async def test_head_is_get_without_the_body(self, api: Api) -> None:
        response, octets = await api.request("HEAD", "/healthz")
        assert (response.status, octets) == (200, b"")

    async def test_an_unexpected_error_says_nothing_but_its_number(
        self, api: Api, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*_: object) -> None:
            raise RuntimeError("secret detail")

        monkeypatch.setattr("webapi.sites.models.summary", broken)
        status, problem = await api.call("GET", "/v1/sites", token=await api.token())
        assert status == 500
        assert len(problem["request"]) == 16
        assert "secret" not in json.dumps(problem)

    async def test_a_store_that_cannot_read_is_a_503(self, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
        async def gone(*_: object, **__: object) -> None:
            raise StoreUnavailable("disk I/O error")

        token = await api.token()
        monkeypatch.setattr("relay.store.history.browse", gone)
        response, _ = await api.request("GET", "/v1/messages", token=token)
        assert (response.status, response.headers["Retry-After"]) == (503, "5")


class TestBodies:
    async def test_a_body_over_the_limit_is_refused(self, tmp_path: Path) -> None:
        async with serving(tmp_path, http=Http(max_body=1024)) as api:
            token = await api.token()
            body = {"name": "x", "origins": ["https://a.example"] * 100}
            status, problem = await api.call("POST", "/v1/sites", body, token=token)
            assert (status, problem["detail"]) == (413, "the body is larger than this server takes")

    async def test_a_packed_body_is_refused_and_never_unpacked(self, api: Api) -> None:
        headers = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
        for octets in (gzip.compress(b" " * 1_000_000), b"no gzip at all"):
            status, problem = await api.call("POST", "/v1/sites", data=octets, headers=headers, token=await api.token())
            assert (status, problem["detail"]) == (415, "the body must not be packed (Content-Encoding)")

    @of_all
    @pytest.mark.parametrize("octets", [b"", b"{", b"\xff", b"[1]", b"nul", b"[" * 5000])
    async def test_malformed_json_is_a_400(self, shared: Api, octets: bytes) -> None:
        headers = {"Content-Type": "application/json"}
        status, problem = await shared.call(
            "POST", "/v1/sites", data=octets, headers=headers, token=await shared.token()
        )
        assert (status, problem["title"]) == (400, "Bad Request")

    async def test_another_content_type_is_refused(self, api: Api) -> None:
        headers = {"Content-Type": "text/plain"}
        status, _ = await api.call("POST", "/v1/sites", data=b"{}", headers=headers, token=await api.token())
        assert status == 415

    @of_all
    @pytest.mark.parametrize("path", ["/v1/sites?page=2", "/v1/messages?limit=1&limit=2", "/v1/queue?cursor=x"])
    async def test_unknown_and_repeated_parameters_are_named(self, shared: Api, path: str) -> None:
        status, problem = await shared.call("GET", path, token=await shared.token())
        assert (status, fields(problem)) == (400, [path.partition("?")[2].partition("=")[0]])

    async def test_a_client_that_goes_away_in_the_middle_of_its_body_does_no_harm(self, api: Api) -> None:
        port = int(api.url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"POST /v1/sites HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {await api.token()}\r\n"
        writer.write(f"{head}Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{{".encode())
        await writer.drain()
        writer.close()
        await writer.wait_closed()
        assert await reader.read() == b""
        assert (await api.call("GET", "/healthz"))[0] == 200

    async def test_broken_chunks_are_a_400(self, api: Api) -> None:
        port = int(api.url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"POST /v1/sites HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {await api.token()}\r\n"
        writer.write(f"{head}Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n".encode())
        assert b" 400 " in await reader.readline()
        writer.close()
        await writer.wait_closed()


class TestHealth:
    async def test_alive_and_ready(self, api: Api) -> None:
        assert await api.call("GET", "/healthz") == (200, {"status": "ok"})
        assert await api.call("GET", "/readyz") == (200, {"status": "ready"})

    async def test_not_ready_while_it_stops(self, api: Api) -> None:
        api.draining.append(True)
        assert (await api.call("GET", "/readyz"))[0] == 503
        assert (await api.call("GET", "/healthz"))[0] == 200

    async def test_not_ready_without_a_store(self, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
        async def broken(*_: object, **__: object) -> None:
            raise StoreUnavailable("disk full")

        monkeypatch.setattr(api.w.store.writer, "run", broken)
        assert (await api.call("GET", "/readyz"))[0] == 503

    async def test_not_ready_when_the_store_hangs(self, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
        async def hangs(*_: object, **__: object) -> None:
            await asyncio.Event().wait()

        monkeypatch.setattr(api.w.store.writer, "run", hangs)
        monkeypatch.setattr("webapi.health.PATIENCE", 0.01)
        assert (await api.call("GET", "/readyz"))[0] == 503

    async def test_without_a_database_that_can_be_read_metrics_have_the_rest_and_say_what_is_known(
        self, api: Api, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def broken(*_: object, **__: object) -> None:
            raise StoreUnavailable("database disk image is malformed")

        monkeypatch.setattr("relay.store.figures.depths", broken)
        monkeypatch.setattr(api.w.store.damage, "reason", "database disk image is malformed")
        response, octets = await api.request("GET", "/metrics")
        assert response.status == 200
        found = parse(octets.decode())
        assert found["relay_database_trouble"].value(kind="damaged") == 1
        assert found["relay_database_trouble"].value(kind="looking") == 0
        assert "relay_store_failures_total" in found
        assert "relay_deliveries" not in found

    async def test_metrics_count_what_there_is(self, api: Api) -> None:
        await fill(api)
        _, octets = await api.request("GET", "/metrics")
        found = parse(octets.decode())
        assert sum(found["relay_posts_waiting"].samples.values()) == 1
        assert found["relay_store_verbs_total"].value() > 3

    @pytest.mark.parametrize("path", ["/metrics", "/openapi.json"])
    async def test_figures_are_for_this_machine_or_a_token(self, api: Api, path: str) -> None:
        for headers in ({}, {"Host": "localhost:8080"}, {"Host": "[::1]"}):
            assert (await api.request("GET", path, headers=headers))[0].status == 200
        for headers in (
            {"X-Forwarded-For": "127.0.0.1"},
            {"Forwarded": "for=127.0.0.1"},
            {"Host": "rebound.example"},
            {"Authorization": "Bearer vr_wrong"},
        ):
            assert (await api.request("GET", path, headers=headers))[0].status == 401
        headers = {"X-Forwarded-For": "198.51.100.7"}
        response, _ = await api.request("GET", path, headers=headers, token=await api.token("viewer"))
        assert response.status == 200

    async def test_the_figures_of_all_are_not_for_a_token_of_one_site(self, api: Api) -> None:
        assert (await api.call("GET", "/metrics", token=await api.token("admin", "shop")))[0] == 403


class TestClientAddress:
    PROXIES = Http.model_validate({"trusted_proxies": ["127.0.0.0/8", "10.0.0.0/8"]})

    @pytest.mark.parametrize(
        ("forwarded", "expected"),
        [
            (None, "127.0.0.1"),
            (["198.51.100.7"], "198.51.100.7"),
            (["203.0.113.9, 198.51.100.7"], "198.51.100.7"),
            (["198.51.100.7, 10.1.2.3"], "198.51.100.7"),
            (["203.0.113.9", "198.51.100.7, 10.1.2.3"], "198.51.100.7"),
            (["10.1.2.3"], "10.1.2.3"),
            (["198.51.100.7:4711"], "198.51.100.7"),
            (["[2001:db8::1]:4711"], "2001:db8::1"),
            (["::ffff:198.51.100.7"], "198.51.100.7"),
            (["203.0.113.9, unknown"], "127.0.0.1"),
            (["203.0.113.9, unknown, 10.1.2.3"], "10.1.2.3"),
            ([""], "127.0.0.1"),
        ],
    )
    async def test_the_rightmost_hop_that_is_no_proxy_of_ours(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forwarded: list[str] | None, expected: str
    ) -> None:
        seen = []

        async def note(request: web.Request) -> web.Response:
            seen.append(client_address(request))
            return web.Response()

        monkeypatch.setattr(app_module, "OPERATIONS", (Operation("GET", "/who", "", note, None, None),))
        async with serving(tmp_path, http=self.PROXIES) as api:
            headers = [("X-Forwarded-For", value) for value in forwarded or ()]
            async with api.session.get(f"{api.url}/who", headers=headers) as response:
                assert response.status == 200
        assert seen == [expected]

    def test_a_peer_without_an_address_is_nobody(self) -> None:
        clients = Clients((), ())
        assert clients.known("") is None
        assert clients.known("fe80::1%eth0") == clients.known("fe80::1")

    def test_the_memory_of_clients_is_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("webapi.context.KNOWN_CLIENTS", 3)
        clients = Clients((), ())
        for number in range(10):
            clients.known(f"198.51.100.{number}")
        assert len(clients._known) <= 3


class TestRate:
    def test_a_bucket_fills_with_time(self) -> None:
        rate = Rate(60)
        assert [rate.take("a", 0.0) for _ in range(60)] == [0.0] * 60
        assert rate.take("a", 0.0) == pytest.approx(1.0)
        assert rate.take("a", 0.25) == pytest.approx(0.75)
        assert rate.take("a", 1.0) == 0.0
        assert rate.take("b", 0.0) == 0.0

    def test_a_clock_that_is_set_back_takes_nothing(self) -> None:
        rate = Rate(2)
        assert [rate.take("a", 1000.0), rate.take("a", 0.0)] == [0.0, 0.0]

    def test_the_buckets_unused_for_longest_are_forgotten(self) -> None:
        rate = Rate(1, buckets=2)
        for key in ("a", "b", "c"):
            assert rate.take(key, 0.0) == 0.0
        assert rate.take("a", 0.0) == 0.0
        assert rate.take("c", 0.0) > 0


def test_times_are_rfc_3339() -> None:
    assert moment(0) == "1970-01-01T00:00:00.000Z"
    assert moment(1_800_000_000.25) == "2027-01-15T08:00:00.250Z"
