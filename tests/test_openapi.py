"""/openapi.json: it holds every route, it is valid, and whatever it lets one send is answered without a 500."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from relay.core import payload
from relay.core.hook import EventType
from tests.store_fixtures import OTHER, SHOP, TRACK, part
from tests.webapi_fixtures import Api, serving
from webapi import schemas
from webapi.app import OPERATIONS, build
from webapi.openapi import document

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with serving(tmp_path) as found:
        yield found


class TestDocument:
    async def test_holds_every_route_but_the_pages_and_no_other(self, api: Api) -> None:
        app = build(api.context)
        routes = {
            (route.method, route.resource.canonical)
            for route in app.router.routes()
            if route.resource is not None and route.method != "HEAD" and not is_page(route.resource.canonical)
        }
        _, described = await api.call("GET", "/openapi.json")
        paths = {(method.upper(), path) for path, item in described["paths"].items() for method in item}
        assert paths == routes

    async def test_is_openapi_3_1_whose_schemas_are_sound(self) -> None:
        described = document(OPERATIONS)
        assert described["openapi"] == "3.1.0"
        for name, schema in described["components"]["schemas"].items():
            jsonschema_rs.meta.validate(schema)
            jsonschema_rs.validator_for({**schema, "components": described["components"]}), name
        assert len({op["operationId"] for item in described["paths"].values() for op in item.values()}) == len(
            OPERATIONS
        )

    def test_every_reference_is_there_and_nothing_else(self) -> None:
        described = document(OPERATIONS)
        referred = set(_references(described))
        assert referred == {f"#/components/schemas/{name}" for name in described["components"]["schemas"]}

    def test_every_operation_of_the_management_api_names_its_token_and_role(self) -> None:
        described = document(OPERATIONS)
        for operation in OPERATIONS:
            found = described["paths"][operation.path][operation.method.lower()]
            if operation.role is None:
                assert "security" not in found
            else:
                assert found["security"] == [{"token": []}]
                assert operation.role.name.lower() in found["description"]
                assert {"400", "401", "403", "429", "503"} <= set(found["responses"])

    def test_every_field_of_a_request_has_a_default_that_fits(self) -> None:
        described = document(OPERATIONS)
        for name in ("NewSite", "ChangedSite", "Target", "NewWebhook", "PoolAddition", "BindBody"):
            schema = described["components"]["schemas"][name]
            for member in schema["properties"].values():
                if "default" in member:
                    whole = {**member, "components": described["components"]}
                    assert jsonschema_rs.is_valid(whole, member["default"]), (name, member)

    def test_the_webhook_is_described_too(self) -> None:
        described = document(OPERATIONS)["webhooks"]
        assert list(described) == [kind.value for kind in EventType]
        body = described["message.received"]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert body["anyOf"][0] == payload.schema()

    async def test_the_schemas_of_webhooks_are_documents_of_their_own_to_which_it_links(self, api: Api) -> None:
        links = [post["post"]["externalDocs"]["url"] for post in document(OPERATIONS)["webhooks"].values()]
        assert links == [f"/v1/schemas/{kind.value}" for kind in EventType]
        for name, schema in schemas.documents().items():
            response, octets = await api.request("GET", f"/v1/schemas/{name}")
            assert (response.status, response.headers["Content-Type"]) == (200, "application/schema+json")
            assert json.loads(octets) == schema
            jsonschema_rs.meta.validate(schema)
        assert (await api.call("GET", "/v1/schemas/nonsense"))[0] == 404

    def test_the_documentation_has_the_same_schemas(self) -> None:
        """Where this fails: python -m webapi.schemas docs/crm/schemas"""
        kept = {path.stem: path.read_text("utf-8") for path in (ROOT / "docs/crm/schemas").glob("*.json")}
        assert kept == {name: schemas.text_of(schema) for name, schema in schemas.documents().items()}

    def test_every_member_of_a_body_is_described_with_an_example_that_fits(self) -> None:
        for name, schema in schemas.documents().items():
            for key, member in schema["properties"].items():
                assert member["description"], (name, key)
                for example in member["examples"]:
                    assert jsonschema_rs.is_valid(member, example), (name, key)


def is_page(path: str) -> bool:
    return path in ("/", "/ui") or path.startswith("/ui/")


def _references(found: Any) -> list[str]:
    if isinstance(found, dict):
        own = [found["$ref"]] if isinstance(found.get("$ref"), str) else []
        return own + [ref for member in found.values() for ref in _references(member)]
    return [ref for member in found for ref in _references(member)] if isinstance(found, list) else []


async def test_nothing_the_document_allows_is_a_server_error(tmp_path: Path) -> None:
    """schemathesis over loopback, with a token for everything, half of the time at things that are there."""
    from tests.any_requests import attack  # takes seconds to import, which every process would that collects tests

    async with serving(tmp_path, SHOP, OTHER) as api:
        visit, substitute = await api.w.shown()
        accepted = await api.w.accept(substitute, claim=None)
        await api.w.extract(accepted.message_id, attachments=[part()])
        token = await api.token()
        await api.call("POST", "/v1/sites", {"name": "made", "origins": ["https://made.example"]}, token=token)
        known = {"id": "1", "name": "made", "number": visit, "address": f"info1@{TRACK}"}
        await asyncio.to_thread(attack, api.url, token, known)
