"""One post of each preset, as the daemon makes it: composed, signed, sent over HTTP, and its answer read."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from relay import presets
from relay.config.webhook import HookOptions
from relay.core.extras import PayloadExtras
from relay.core.model import Attribution, AttributionState
from relay.core.payload import PayloadMessage, PayloadVisit
from relay.secrets import Keys
from relay.store.post import Hook, PostJob
from tests.poster_fixtures import SECRET
from tests.store_fixtures import DAY, part
from tests.webhook_receiver import Answer, Receiver, stop_clock
from webapi.compose import Composer
from webapi.deal import read_deal
from webapi.direct import Direct
from webapi.post import Client

LOOP = asyncio.new_event_loop  # requests to receivers are made on it (webapi/guard.py)

NOW = 1_796_000_000.0


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    stop_clock(monkeypatch, NOW)


VISIT = PayloadVisit("5", "4", marker="fb_new", utm_source="fb", google_client_id="12.34", city="Riga")


@dataclass(frozen=True)
class Case:
    """``deal``: number and link of the answer; a link that begins with "/" is at the receiver."""

    preset: str
    url: str
    target: str
    answer: bytes
    deal: tuple[str, str | None] | None
    variables: dict[str, str] = field(default_factory=dict)
    bearer: str = ""


CASES = (
    Case(
        "bitrix24",
        "/rest/1/",
        "/rest/1/abcdefgh12345678/crm.item.add",
        b'{"result": {"item": {"id": 13, "title": "Lead #13"}}, "time": {"start": 1720598208.5}}',
        ("13", "/crm/lead/details/13/"),
        {"code": "abcdefgh12345678"},
    ),
    Case(
        "kommo",
        "",
        "/api/v4/leads/complex",
        b'[{"id": 9774766, "contact_id": 12117258, "company_id": null, "request_id": ["17"], "merged": false}]',
        ("9774766", "/leads/detail/9774766"),
        {"text_field_id": "4"},
        "kommo-token",
    ),
    Case(
        "hubspot",
        "",
        "/crm/v3/objects/deals",
        b'{"id": "512", "properties": {"dealname": "Offer?"}, "createdAt": "2024-01-01T00:00:00.000Z"}',
        ("512", "https://app.hubspot.com/contacts/42/record/0-3/512"),
        {"portal_id": "42"},
        "hubspot-token",
    ),
    Case(
        "ga4",
        "/mp/collect",
        "/mp/collect?measurement_id=G-ABC123&api_secret=s%26cret%3D",
        b"",
        None,
        {"measurement_id": "G-ABC123", "api_secret": "s&cret="},
    ),
)
GA4 = CASES[-1]
each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.preset)


def job(case: Case, keys: Keys, crm: Receiver) -> PostJob:
    options = HookOptions(template=case.preset, variables=case.variables, bearer=case.bearer)
    access = keys.seal(options.access().to_json())
    extras = PayloadExtras(
        event="message.received",
        site="example",
        received_at=NOW,
        written_at=NOW,
        message_id=None,
        in_reply_to=None,
        references=(),
        mail_from="ann@customer.test",
        size=100,
        automatic=None,
        bounce=False,
        html=None,
        channel=None,
        candidates=(),
        first_touch=None,
        deal_id=None,
        deal_url=None,
    )
    return PostJob(
        post_id=1,
        claim="me",
        attempts=1,
        uid="evt_17",
        hook=Hook(1, crm.at(case.url), keys.seal(SECRET), options.settings(), access=access),
        site_id=1,
        message_id=17,
        created_at=NOW,
        message=PayloadMessage("17", "17", 'An "offer"?', "Hello", "ann@customer.test", "sales@example.test"),
        parts=(part(0),),
        visit=VISIT,
        attribution=Attribution(AttributionState.EXACT, "plus/1"),
        extras=extras,
    )


@asynccontextmanager
async def client_of(keys: Keys) -> AsyncIterator[Client]:
    requester = Direct(True, 1)
    await requester.open()
    try:
        yield Client(Composer(keys, "https://relay.example/", DAY), requester)
    finally:
        await requester.close()


def texts(found: Any) -> list[str]:
    """All texts in a JSON value."""
    if isinstance(found, dict | list):
        return [text for each in (found.values() if isinstance(found, dict) else found) for text in texts(each)]
    return [found] if isinstance(found, str) else []


def test_every_preset_is_posted_here() -> None:
    assert {case.preset for case in CASES} == set(presets.names())


@each_case
async def test_it_arrives_as_the_system_expects_it_and_the_answer_names_the_deal(case: Case, keys: Keys) -> None:
    async with Receiver(Answer(200 if case.answer else 204, case.answer)) as crm, client_of(keys) as client:
        reply = await client.post(job(case, keys, crm), NOW)
        here = crm.at("")
    (got,) = crm.posts
    assert (got.method, got.path, got.headers["content-type"]) == ("POST", case.target, "application/json")
    assert got.headers.get("authorization") == (f"Bearer {case.bearer}" if case.bearer else None)
    got.verify(SECRET)
    deal = case.deal
    if deal is not None and deal[1] is not None and deal[1].startswith("/"):
        deal = deal[0], here + deal[1]
    assert (reply.status, reply.deal) == (200 if case.answer else 204, deal)


@pytest.mark.parametrize("case", CASES[:3], ids=lambda case: case.preset)
async def test_a_crm_gets_subject_sender_text_source_file_and_the_number_of_the_message(case: Case, keys: Keys) -> None:
    async with Receiver() as crm, client_of(keys) as client:
        await client.post(job(case, keys, crm), NOW)
    sent = texts(json.loads(crm.posts[0].body))
    assert 'An "offer"?' in sent
    whole = "\n".join(sent)
    for wanted in ("ann@customer.test", "Hello\n", "fb_new", "fb", "17", "https://relay.example/a/"):
        assert wanted in whole


@pytest.mark.parametrize("claimed", [False, True])
@pytest.mark.parametrize(
    ("case", "variables", "places"),
    [(CASES[0], {}, 1), (CASES[1], {"visit_field_id": "5"}, 2), (CASES[2], {"visit_property": "visit"}, 2)],
    ids=lambda value: value.preset if isinstance(value, Case) else "",
)
async def test_a_crm_gets_the_number_of_the_visit_and_none_that_is_only_claimed(
    case: Case, variables: dict[str, str], places: int, claimed: bool, keys: Keys
) -> None:
    """In a field of its own, and in the text."""
    number = "777000"
    async with Receiver() as crm, client_of(keys) as client:
        made = job(replace(case, variables=case.variables | variables), keys, crm)
        if claimed:
            made = replace(made, visit=None, attribution=Attribution(AttributionState.CLAIMED, "plus/1", number=number))
        else:
            made = replace(made, visit=replace(VISIT, number=number))
        await client.post(made, NOW)
    assert crm.posts[0].body.count(number.encode()) == (0 if claimed else places)


@each_case
async def test_a_message_that_is_posted_again_is_the_same_once_more(case: Case, keys: Keys) -> None:
    async with Receiver() as crm, client_of(keys) as client:
        first = job(case, keys, crm)
        for attempts in (1, 2):
            await client.post(replace(first, attempts=attempts), NOW + attempts)
    assert len({(post.path, post.body, post.headers["webhook-id"]) for post in crm.posts}) == 1
    assert len(crm.posts) == 2


async def test_google_is_not_asked_about_a_visitor_it_does_not_know(keys: Keys) -> None:
    async with Receiver() as crm, client_of(keys) as client:
        unknown = replace(job(GA4, keys, crm), visit=replace(VISIT, google_client_id=None))
        reply = await client.post(unknown, NOW)
    assert (reply.withheld, reply.text, reply.status) == (True, "no google_client_id", None)
    assert crm.posts == []


@each_case
@pytest.mark.parametrize("answer", [b'{"error": "x", "error_description": "Access denied."}', b"[]", b"<html>", b""])
def test_an_answer_of_another_kind_names_no_deal(case: Case, answer: bytes) -> None:
    options = HookOptions(template=case.preset, variables=case.variables)
    hook = Hook(1, "https://crm.example.com", "s", options.settings())
    assert read_deal(answer, hook, options.access()) is None
