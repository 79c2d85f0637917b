"""The log of changes, and what goes into it: no secret, nobody's address who may ask to be forgotten."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field
from sqlalchemy import update

from relay.commands import COMMANDS
from relay.core.address import parse
from relay.core.model import Address
from relay.store import changes
from relay.store.changes import BITE, MOST, Change
from relay.store.engine import Statement
from relay.store.schema import changes as table
from tests.store_fixtures import NOW, OTHER, SHOP, World, world
from webapi.app import OPERATIONS
from webapi.audit import shown


async def noted(w: World, *given: Change) -> None:
    for change in given:
        await w.store.write(lambda tx, change=change: changes.note(tx, change))


async def names(w: World, visible: frozenset[int] | None, before: int | None = None, limit: int = 10) -> list[str]:
    return [row.change.name for row in await changes.page(w.store.reader, visible, before, limit)]


class TestLog:
    async def test_it_comes_back_as_it_was_said_newest_first(self, tmp_path: Path) -> None:
        async with world(tmp_path) as w:
            shop = w.site().id
            first = Change(NOW, "user", "ann", "POST /v1/x", shop, "shop", {"a": None, "b": ["é", 1]})
            await noted(w, first, Change(NOW + 1, "token", "crm", "site.add"))
            newest, oldest = await changes.page(w.store.reader, None, None, 10)
            assert (oldest.change, oldest.site) == (first, "shop")
            assert (newest.change.name, newest.change.details, newest.site) == ("crm", {}, None)

    async def test_it_is_read_page_by_page(self, tmp_path: Path) -> None:
        async with world(tmp_path) as w:
            await noted(w, *(Change(NOW, "user", str(number), "x") for number in range(5)))
            rows = await changes.page(w.store.reader, None, None, 2)
            assert [row.change.name for row in rows] == ["4", "3"]
            assert await names(w, None, rows[-1].id, 2) == ["2", "1"]

    async def test_who_sees_some_sites_sees_what_was_done_to_them(self, tmp_path: Path) -> None:
        async with world(tmp_path, SHOP, OTHER) as w:
            shop, other = w.site().id, w.site("other").id
            await noted(w, *(Change(NOW, "user", str(site), "x", site) for site in (shop, other, None)))
            assert await names(w, frozenset({shop})) == [str(shop)]
            assert await names(w, frozenset({shop, other})) == [str(other), str(shop)]
            assert await names(w, frozenset()) == []
            assert len(await names(w, None)) == 3

    async def test_what_is_too_long_is_cut_and_still_reads(self, tmp_path: Path) -> None:
        async with world(tmp_path) as w:
            details = {"one": "x" * MOST, "two": "y" * MOST}
            await noted(w, Change(NOW, "user", "ann", "x", None, "s" * 10_000, details))
            (row,) = await changes.page(w.store.reader, None, None, 10)
            assert len(row.change.subject or "") == MOST
            assert row.change.details == {"fields": ["one", "two"]}

    async def test_it_ends_by_age_in_bites(self, tmp_path: Path) -> None:
        async with world(tmp_path) as w:
            await noted(w, Change(NOW - 100, "user", "old", "x"), Change(NOW, "user", "new", "x"))
            assert await w.store.write(lambda tx: changes.forget(tx, NOW - 50)) is False
            assert await names(w, None) == ["new"]
            many = [Change(NOW - 100, "user", "old", "x")] * BITE
            await w.store.write(lambda tx: [changes.note(tx, change) for change in many])
            assert await w.store.write(lambda tx: changes.forget(tx, NOW - 50)) is True
            assert await w.store.write(lambda tx: changes.forget(tx, NOW - 50)) is False

    async def test_one_of_a_removed_site_stays_without_its_name(self, tmp_path: Path) -> None:
        async with world(tmp_path) as w:
            await noted(w, Change(NOW, "user", "ann", "x", w.site().id))
            await w.store.write(lambda tx: tx.run(Statement(update(table).values(site_id=9999))))
            (row,) = await changes.page(w.store.reader, None, None, 10)
            assert row.site is None


def bodies() -> list[type[BaseModel]]:
    """Every body that a change can be made with."""
    of_api = [operation.body for operation in OPERATIONS if operation.body is not None]
    return [*dict.fromkeys([*of_api, *(command.arguments for command in COMMANDS.values())])]


class Given(BaseModel):
    name: str = ""
    secret: str = ""
    hidden: Annotated[str, Field(repr=False)] = ""
    many: list[Any] = []
    sender: str = ""
    address: Any = None
    flag: bool | None = None


class TestDetails:
    @pytest.mark.parametrize("model", bodies(), ids=lambda model: model.__name__)
    def test_no_field_that_is_a_secret_is_noted(self, model: type[BaseModel]) -> None:
        """Whatever a model keeps out of its repr; and what is called like one."""
        given = model.model_construct(
            _fields_set=set(model.model_fields), **dict.fromkeys(model.model_fields, "S3cret")
        )
        details = shown(given)
        words = ("secret", "password", "bearer", "basic", "token", "login", "headers", "variables", "template", "hop")
        for name, field in model.model_fields.items():
            if not field.repr or any(word in name for word in words):
                assert details[name] == "…", name

    def test_what_was_given_is_noted_and_nothing_else(self) -> None:
        assert shown(None) == {}
        assert shown(Given(name="x", flag=None)) == {"name": "x", "flag": None}

    def test_a_secret_leaves_that_it_was_given(self) -> None:
        assert shown(Given(secret="a", hidden="b")) == {"hidden": "…", "secret": "…"}

    @pytest.mark.parametrize(("sender", "noted"), [("ann@example.org", "…"), ("@example.org", "@example.org")])
    def test_a_blocked_person_is_not_named_but_a_blocked_domain_is(self, sender: str, noted: str) -> None:
        assert shown(Given(sender=sender)) == {"sender": noted}

    def test_lists_of_plain_values_are_noted(self) -> None:
        address: Address = parse("a@t.example")
        details = shown(Given(many=["shop", 1, address], address=address))
        assert details == {"many": ["shop", 1, "a@t.example"], "address": "a@t.example"}
        json.dumps(details)
        assert shown(Given(many=[{"a": 1}])) == {"many": "…"}
        assert shown(Given(many=["x"] * 51)) == {"many": "…"}
