"""The history over HTTP and on the command line, and the queue in an operator's hands."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from tests.scenarios.world import DOMAIN, SITE, World, letter, site, target, unique_letter, world

pytestmark = [pytest.mark.scenario, pytest.mark.asyncio(loop_scope="module")]

OTHER_ORIGIN = "https://www.other.test"
SUBJECTS = ["Offer for ten chairs", "Rückfrage zum Angebot", "<script>alert(1)</script>", '=HYPERLINK("http://x")']


@dataclass
class Past:
    """A daemon with some history: ``messages`` by subject, all of visit ``visit`` but the last, of another site."""

    relay: World
    messages: dict[str, int]
    visit: str


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def past(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Past]:
    other = site(
        target("info@other.test", "unique", domain="mail.other.test"),
        name="other",
        key="pk_other",
        origins=[OTHER_ORIGIN],
    )
    async with world(tmp_path_factory.mktemp("history"), sites=[SITE, other]) as relay:
        bound = await relay.bind("sales@example.test")
        to = bound["addresses"]["sales@example.test"]
        messages = {}
        for number, subject in enumerate(SUBJECTS):
            content = letter(subject, f"Text number{number}text\r\n", sender=f"customer{number}@customer.test")
            messages[subject] = await relay.mail(to, content, sender=f"customer{number}@customer.test")
        theirs = await relay.bind("info@other.test", site="pk_other", origin=OTHER_ORIGIN)
        messages["theirs"] = await relay.mail(theirs["addresses"]["info@other.test"], letter("theirs"))
        await relay.crm.wait_for(len(SUBJECTS))
        for message in messages.values():
            await relay.forwarded(message)
        await relay.until(lambda: relay.rows("SELECT 1 FROM texts WHERE indexed = 1"), lambda rows: len(rows) == 5)
        yield Past(relay, messages, bound["visit"])


async def listed(past: Past, **query: Any) -> list[int]:
    page = await past.relay.call("GET", "/v1/messages", **query)
    return [int(item["id"]) for item in page["items"]]


async def test_the_history_is_newest_first_and_has_every_message(past: Past) -> None:
    assert await listed(past) == sorted(past.messages.values(), reverse=True)


async def test_filters_narrow_the_history(past: Past) -> None:
    first = past.messages[SUBJECTS[0]]
    own = sorted((past.messages[subject] for subject in SUBJECTS), reverse=True)
    assert await listed(past, site="example") == own
    assert await listed(past, visit=past.visit) == own
    assert await listed(past, sender="Customer0@CUSTOMER.test") == [first]
    assert await listed(past, state="forwarded") == sorted(past.messages.values(), reverse=True)
    assert await listed(past, state="failed") == []
    assert await listed(past, until="2020-01-01T00:00:00Z") == []


@pytest.mark.parametrize(
    ("words", "subject"),
    [
        ("chairs", SUBJECTS[0]),
        ("ten offer", SUBJECTS[0]),
        ("ruckfrage", SUBJECTS[1]),
        ("customer2@customer.test", SUBJECTS[2]),
        ("number3", SUBJECTS[3]),
        ('"chairs" OR *', None),
    ],
)
async def test_search_finds_words_of_subject_address_and_text(words: str, subject: str | None, past: Past) -> None:
    found = await listed(past, q=words)
    assert found == ([past.messages[subject]] if subject else [])


async def test_pages_follow_each_other_without_gap_or_repeat(past: Past) -> None:
    seen: list[int] = []
    cursor: dict[str, Any] = {}
    for _ in range(10):
        page = await past.relay.call("GET", "/v1/messages", limit=2, **cursor)
        seen += [int(item["id"]) for item in page["items"]]
        if page["next"] is None:
            break
        cursor = {"cursor": page["next"]}
    assert seen == sorted(past.messages.values(), reverse=True)


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"limit": "0"}, "limit"),
        ({"limit": "many"}, "limit"),
        ({"cursor": "nonsense"}, "cursor"),
        ({"site": "nosuch"}, "site"),
        ({"since": "yesterday"}, "since"),
        ({"state": "odd"}, "state"),
        ({"colour": "red"}, "colour"),
    ],
)
async def test_a_nonsense_query_gets_a_problem_that_names_the_field(
    query: dict[str, str], field: str, past: Past
) -> None:
    octets = await past.relay.octets("GET", "/v1/messages", expect=404 if field == "site" else 400, **query)
    assert field in str(json.loads(octets))


async def test_who_sees_one_site_sees_only_its_messages(past: Past) -> None:
    relay = past.relay
    token = (await relay.cli("token", "create", "viewer", "--site", "other", "--role", "viewer")).split()[-1]
    headers = {"Authorization": f"Bearer {token}"}
    async with relay.http.get(f"{relay.daemon.url}/v1/messages", headers=headers) as response:
        assert [item["subject"] for item in (await response.json())["items"]] == ["theirs"]
    hidden = past.messages[SUBJECTS[0]]
    async with relay.http.get(f"{relay.daemon.url}/v1/messages/{hidden}/raw", headers=headers) as response:
        assert response.status == 404
    async with relay.http.delete(f"{relay.daemon.url}/v1/messages/{hidden}", headers=headers) as response:
        assert response.status in (403, 404)
    assert hidden in await listed(past)


async def test_a_wrong_token_sees_nothing(past: Past) -> None:
    headers = {"Authorization": "Bearer vr_wrong"}
    async with past.relay.http.get(f"{past.relay.daemon.url}/v1/messages", headers=headers) as response:
        assert response.status == 401


async def test_a_replay_posts_the_same_event_again(past: Past) -> None:
    relay, message = past.relay, past.messages[SUBJECTS[1]]
    before = len(relay.crm.posts)
    assert await relay.call("POST", f"/v1/messages/{message}/replay", expect=202) == {"posts": 1, "reattributed": 0}
    post = (await relay.crm.wait_for(before + 1))[before]
    assert post.headers["webhook-id"] == await relay.event(message)
    assert post.json["subject"] == SUBJECTS[1]


async def test_a_deal_that_the_crm_puts_stands_in_the_history(past: Past) -> None:
    relay, message = past.relay, past.messages[SUBJECTS[2]]
    deal = {"id": "D-17", "url": "https://crm.example.org/D-17"}
    await relay.call("PUT", f"/v1/messages/{message}/deal", expect=204, body=deal)
    assert (await relay.call("GET", f"/v1/messages/{message}"))["deal"] == deal


async def test_the_command_line_shows_the_same_history(past: Past) -> None:
    relay = past.relay
    shown = json.loads(await relay.cli("history", "--json"))
    assert [int(item["id"]) for item in shown] == sorted(past.messages.values(), reverse=True)
    rows = list(csv.DictReader(io.StringIO(await relay.cli("history", "--csv", "--q", "HYPERLINK"))))
    assert [row["subject"] for row in rows] == ["'" + SUBJECTS[3]]  # no spreadsheet takes it for a formula


async def test_erasure_leaves_nothing_of_a_message_and_nothing_of_a_sender(past: Past) -> None:
    relay = past.relay
    large = letter("to be erased", "secret word: xyzzy\r\n" + "filler\r\n" * 50_000)
    to = await relay.shown()
    one = await relay.mail(to, large, sender="erase@me.test")
    two = await relay.mail(to, letter("also", "plugh\r\n", sender="erase@me.test"), sender="erase@me.test")
    for message in (one, two):
        await relay.forwarded(message)
        await relay.until(
            lambda message=message: relay.rows("SELECT indexed FROM texts WHERE message_id = ?", message),  # type: ignore[misc]
            lambda rows: rows == [(1,)],
        )
    assert len(list((relay.daemon.data_dir / "bodies").iterdir())) == 1
    await relay.call("DELETE", f"/v1/messages/{one}", expect=204)
    await relay.call("GET", f"/v1/messages/{one}", expect=404)
    assert await listed(past, q="xyzzy") == []
    assert list((relay.daemon.data_dir / "bodies").iterdir()) == []
    assert await relay.call("DELETE", "/v1/senders/Erase@ME.test") == {"erased": 1, "left": 0, "unblocked": False}
    assert await listed(past, sender="erase@me.test") == []
    for table in ("deliveries", "paths", "events", "bodies", "texts"):
        assert await relay.rows(f"SELECT 1 FROM {table} WHERE message_id IN (?, ?)", one, two) == []


async def test_what_is_held_is_listed_retried_and_dropped_by_hand(past: Past) -> None:
    relay = past.relay
    relay.sink.script["rcpt"] = ["550 5.1.1 moved", "550 5.1.1 moved", "451 4.7.1 greylisted"]
    contents = [unique_letter() for _ in range(3)]
    messages = []
    for content, state in zip(contents, ["failed", "failed", "deferred"], strict=True):
        messages.append(await relay.mail(f"plus@{DOMAIN}", content))
        await relay.forwarded(messages[-1], state)
    rows = json.loads(await relay.cli("queue", "list", "--json"))
    by_message = {row["message"]: row for row in rows}
    assert [by_message[message]["state"] for message in messages] == ["failed", "failed", "deferred"]
    assert by_message[messages[0]]["answer"] == "RCPT: 550 5.1.1 moved"
    await relay.cli("queue", "drop", str(by_message[messages[1]]["id"]))
    await relay.cli("queue", "retry", str(by_message[messages[0]]["id"]))
    await relay.forwarded(messages[0])
    await relay.cli("queue", "retry", "--all")
    await relay.forwarded(messages[2])
    assert await relay.call("GET", "/v1/queue") == {"items": [], "next": None}
    states = [(await relay.call("GET", f"/v1/messages/{message}"))["state"] for message in messages]
    assert states == ["forwarded", "dropped", "forwarded"]
    assert not any(received.content.endswith(contents[1]) for received in relay.sink.accepted)
    refused = await relay.until(lambda: relay.row("SELECT count(*) FROM attempts"), lambda row: row[0] > 0)
    assert refused[0] >= 5
