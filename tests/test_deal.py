"""Where a receiver's answer names its deal: the product's own names, a template's or a webhook's JSON pointers."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from relay.core.hook import Access, HookSettings
from relay.secrets import Keys
from relay.store.post import Hook
from relay.store.schema import events
from tests.poster_fixtures import SECRET, jobs, posting, until_recorded
from tests.store_fixtures import SHOP, World, hook, world
from tests.webhook_receiver import Answer, Receiver
from webapi.deal import Deal, read_deal

LOOP = asyncio.new_event_loop  # requests to receivers are made on it (webapi/guard.py)

URL = "https://crm.example/rest/1/c0de/"


def read(answer: object, access: Access | None = None, **settings: Any) -> Deal | None:
    octets = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    return read_deal(octets, Hook(1, URL, "s", HookSettings(**settings)), access or Access())


NESTED = {
    "": "empty name",
    "lead": {"id": 17, "ids": [1, 2], "a/b": "slash", "c~d": "tilde", "~1": "both", " ": "space", "0": "zero"},
    "leads": [{"id": "first"}, {"id": "second"}],
    "text": "17",
    "none": None,
}


class TestPointers:
    @pytest.mark.parametrize(
        ("pointer", "found"),
        [
            ("/lead/id", "17"),
            ("/text", "17"),
            ("/leads/0/id", "first"),
            ("/leads/1/id", "second"),
            ("/lead/ids/1", "2"),
            ("/lead/a~1b", "slash"),
            ("/lead/c~0d", "tilde"),
            ("/lead/~01", "both"),
            ("/lead/ ", "space"),
            ("/lead/0", "zero"),
            ("/", "empty name"),
            # nothing there
            ("/lead", None),
            ("/leads", None),
            ("/none", None),
            ("/none/id", None),
            ("/missing", None),
            ("/missing/id", None),
            ("/lead/id/deeper", None),
            ("/leads/2/id", None),
            ("/leads/-/id", None),
            ("/lead/ids/-", None),
            ("/lead/ids/-1", None),
            ("/lead/ids/01", None),
            ("/lead/ids/x", None),
            ("/lead/ids/1e0", None),
            ("/lead/ids/99999999999999999999", None),
            ("/text/0", None),
            ("/text/-", None),
            ("/text/x", None),
        ],
    )
    def test_they_are_followed_as_rfc_6901_says(self, pointer: str, found: str | None) -> None:
        assert read(NESTED, deal_id=pointer) == (None if found is None else (found, None))

    def test_the_whole_answer_may_be_a_list(self) -> None:
        assert read([{"id": 4}], deal_id="/0/id") == ("4", None)

    @pytest.mark.parametrize("answer", [b"17", b'"17"', b"null", b"true", b"[]", b"{}", b"", b"<html>", b"[" * 100_000])
    def test_an_answer_without_members_has_none(self, answer: bytes) -> None:
        assert read(answer, deal_id="/id", deal_url="/url") is None

    def test_one_that_an_older_version_stored_and_that_is_none_finds_nothing(self) -> None:
        assert read({"a~2": 1}, deal_id="/a~2") is None

    def test_number_and_address_are_found_each_for_itself(self) -> None:
        answer = {"id": 1, "link": "https://crm.example/1"}
        assert read(answer, deal_id="/id", deal_url="/link") == ("1", "https://crm.example/1")
        assert read(answer, deal_url="/link") == (None, "https://crm.example/1")
        assert read(answer, deal_id="/id", deal_url="/id") == ("1", None)  # a number is no address
        assert read(answer, deal_id="/id", deal_url="/nothing") == ("1", None)


TEMPLATE = 'body = "{}"\ndeal_id = "/t/id"\ndeal_url = "/t/url"'
ANSWER = {
    "deal_id": "default",
    "deal_url": "https://crm.example/default",
    "t": {"id": "template", "url": "https://crm.example/template"},
    "w": {"id": "webhook", "url": "https://crm.example/webhook"},
}


class TestWhose:
    def test_without_anything_it_is_the_products_own(self) -> None:
        assert read(ANSWER) == ("default", "https://crm.example/default")

    def test_a_template_has_its_own(self) -> None:
        assert read(ANSWER, template=TEMPLATE) == ("template", "https://crm.example/template")
        assert read(ANSWER, template='body = "{}"') == ("default", "https://crm.example/default")

    def test_the_webhooks_are_above_both(self) -> None:
        own: dict[str, Any] = {"deal_id": "/w/id", "deal_url": "/w/url"}
        assert read(ANSWER, **own) == ("webhook", "https://crm.example/webhook")
        assert read(ANSWER, **own, template=TEMPLATE) == ("webhook", "https://crm.example/webhook")
        assert read(ANSWER, deal_id="/w/id", template=TEMPLATE) == ("webhook", "https://crm.example/template")
        assert read(ANSWER, deal_url="/w/url", template=TEMPLATE) == ("template", "https://crm.example/webhook")

    def test_a_template_may_say_that_there_is_none(self) -> None:
        assert read(ANSWER, template='body = "{}"\ndeal_id = ""\ndeal_url = ""') is None
        assert read(ANSWER, template="ga4") is None

    @pytest.mark.parametrize(
        ("preset", "answer", "variables", "expected"),
        [
            ("bitrix24", {"result": {"item": {"id": 7}}}, {}, ("7", "https://crm.example/crm/lead/details/7/")),
            (
                "bitrix24",
                {"result": {"item": {"id": 7}}},
                {"entity_type": "2"},
                ("7", "https://crm.example/crm/deal/details/7/"),
            ),
            ("kommo", [{"id": 8}], {}, ("8", "https://crm.example/leads/detail/8")),
            ("hubspot", {"id": "9"}, {}, ("9", None)),
            ("hubspot", {"id": "9"}, {"portal_id": "5"}, ("9", "https://app.hubspot.com/contacts/5/record/0-3/9")),
        ],
    )
    def test_presets_make_the_link_to_the_deal(
        self, preset: str, answer: object, variables: dict[str, str], expected: Deal
    ) -> None:
        assert read(answer, Access(variables=variables), template=preset) == expected

    def test_a_link_that_is_a_text_needs_the_number(self) -> None:
        assert read({"other": 1}, template="kommo") is None
        assert read([{"id": None}], template="kommo") is None

    def test_the_webhooks_own_pointer_takes_the_place_of_the_text(self) -> None:
        answer = [{"id": 8, "url": "https://crm.example/own"}]
        assert read(answer, template="kommo", deal_url="/0/url") == ("8", "https://crm.example/own")

    @pytest.mark.parametrize(
        "link",
        [
            "javascript:alert({{ deal_id }})",
            "https://crm.example/{{ deal_id }}",
            "{{ variables.gone }}/{{ deal_id|urlencode }}",
            "https://crm.example/{{ deal_id|urlencode }}" + "x" * 2000,
        ],
    )
    def test_a_text_that_does_not_come_out_as_an_address_leaves_the_number(self, link: str) -> None:
        template = f'body = "{{}}"\ndeal_url = "{link}"'
        assert read({"deal_id": "a b"}, template=template) == ("a b", None)

    def test_a_hostile_number_stays_within_the_link(self) -> None:
        template = 'body = "{}"\ndeal_url = "https://crm.example/{{ deal_id|urlencode }}"'
        hostile = "../x?y=1#{{ url }}@evil"
        assert read({"deal_id": hostile}, template=template) == (
            hostile,
            "https://crm.example/..%2Fx%3Fy%3D1%23%7B%7B%20url%20%7D%7D%40evil",
        )


@pytest.fixture
async def w(tmp_path: Path, keys: Keys, crm: Receiver) -> AsyncIterator[World]:
    settings = HookSettings(deal_id="/lead/id", deal_url="/lead/url")
    webhook = hook(crm.url, secret=keys.seal(SECRET), settings=settings)
    async with world(tmp_path, replace(SHOP, webhooks=(webhook,))) as found:
        found.now = time.time()
        yield found


class TestOverTheWire:
    async def answered(self, w: World, keys: Keys, crm: Receiver, body: bytes) -> list[tuple[Any, ...]]:
        crm.script = Answer(201, body)
        async with posting(w, keys) as poster:
            poster.submit(await jobs(w, claim=poster.claim))
            assert [row[0] for row in await until_recorded(w)] == ["delivered"]
        return await w.rows(select(events.c.deal_id, events.c.deal_url))

    async def test_the_webhooks_pointers_find_the_deal(self, w: World, keys: Keys, crm: Receiver) -> None:
        body = b'{"lead": {"id": 17, "url": "https://crm.example/17"}}'
        assert await self.answered(w, keys, crm, body) == [("17", "https://crm.example/17")]

    async def test_within_64_kib_it_is_found(self, w: World, keys: Keys, crm: Receiver) -> None:
        body = b'{"lead": {"id": 17}, "pad": "' + b"x" * (64 * 1024 - 31) + b'"}'
        assert len(body) == 64 * 1024
        assert await self.answered(w, keys, crm, body) == [("17", None)]

    async def test_an_answer_beyond_that_is_a_success_without_a_deal(self, w: World, keys: Keys, crm: Receiver) -> None:
        body = b'{"lead": {"id": 17}, "pad": "' + b"x" * (64 * 1024 - 30) + b'"}'
        assert await self.answered(w, keys, crm, body) == [(None, None)]
