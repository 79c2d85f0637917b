"""Which letters become deals, whose number they carry, and what an operator does when the CRM was away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from tests.scenarios.world import DOMAIN, SECRET, World, letter, site, target, unique_letter, world
from tests.webhook_receiver import Answer, Post, Receiver, Step, deal

pytestmark = [pytest.mark.scenario, pytest.mark.asyncio(loop_scope="module")]

OLD = "whsec_b2xkIG9sZCBvbGQgb2xkIG9sZCBvbGQgb2xkIG9sZCE="
SALES = target("sales@example.test", "unique")
PLUS = target("plus@example.test", "plus")


def hooks(crm: Receiver) -> list[dict[str, Any]]:
    """The plain one; one for offers of newcomers that has everything; one that wants to know of held mail."""
    choosy = {
        "subject": r"\b(offer|предложение)\b",
        "first_letter": "30d",
        "attribution": "exact",
        "recipients": ["sales@example.test"],
        "max_size": 100_000,
    }
    return [
        {"url": crm.at("/plain"), "secret": SECRET, "previous_secret": OLD},
        {"url": crm.at("/choosy"), "secret": SECRET, "extras": True, "bearer": "t0ken", "conditions": choosy},
        {"url": crm.at("/held"), "secret": SECRET, "events": ["message.failed", "attribution.changed"]},
    ]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def relay(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with world(tmp_path_factory.mktemp("deals"), sites=[site(SALES, PLUS)], hook=hooks) as made:
        yield made


async def settled(relay: World, message: int) -> dict[str, Any]:
    """The message as the API shows it, once nothing of it waits any more."""

    async def read() -> dict[str, Any]:
        found: dict[str, Any] = await relay.call("GET", f"/v1/messages/{message}")
        return found

    def is_done(found: dict[str, Any]) -> bool:
        return all(
            event["state"] != "waiting" and all(post["state"] != "waiting" for post in event["webhooks"])
            for event in found["events"]
        )

    await relay.until(read, is_done)
    return await read()  # an answer is made of several readings: this one is all of afterwards


def posts_to(relay: World, path: str, uid: str) -> list[Post]:
    return [post for post in relay.crm.posts if post.path == path and post.headers["webhook-id"].startswith(uid)]


def why(found: dict[str, Any], path: str) -> tuple[str, str | None]:
    """State of the post of the message's receipt to the webhook at this path, and what was answered."""
    (own,) = [post for post in found["events"][0]["webhooks"] if post["url"].endswith(path)]
    return own["state"], own["answer"]


async def test_a_letter_that_meets_every_condition_arrives_with_all_that_is_known(relay: World) -> None:
    content = letter("Your OFFER", "Hello\r\n", "Message-ID: <first@customer.test>")
    message = await relay.mail(await relay.shown(page="https://www.example.test/?rs=fb_new"), content)
    found = await settled(relay, message)
    (post,) = posts_to(relay, "/choosy", found["events"][0]["id"])
    post.verify(SECRET)
    assert post.headers["authorization"] == "Bearer t0ken"
    said = post.json
    assert (said["event"], said["message_id"], said["site"]) == ("message.received", "first@customer.test", "example")
    assert said["attribution"] == {"state": "exact", "method": "unique/1", "candidates": []}
    assert said["first_touch"]["visit_id"] == said["visit_id"] == found["visit"]
    assert said["first_touch"]["marker"] == "fb_new"
    (plain,) = posts_to(relay, "/plain", found["events"][0]["id"])
    assert "event" not in plain.json
    plain.verify(SECRET)
    plain.verify(OLD)  # whoever still has the secret before
    assert posts_to(relay, "/held", found["events"][0]["id"]) == []


@pytest.mark.parametrize(
    ("subject", "to", "sender", "reason"),
    [
        ("a question", "sales", "bob@customer.test", "the subject does not match"),
        ("another offer", "plus", "carl@customer.test", "the attribution is claimed, not exact"),
        ("offer, again", "sales", "dora@customer.test", "not the sender's first letter in 30 days"),
        ("offer by the ton", "sales", "eve@customer.test", "larger than 100000 octets"),
        ("offer of spam", "sales", "spam@blocked.test", "blocked sender"),
    ],
)
async def test_history_says_why_a_letter_was_not_sent(
    subject: str, to: str, sender: str, reason: str, relay: World
) -> None:
    if "again" in subject:
        earlier = await relay.mail(await relay.shown(), letter("hello", sender=sender), sender=sender)
        await settled(relay, earlier)
    if sender.startswith("spam"):
        assert "is blocked at site example" in await relay.cli("site", "block", "example", "@blocked.test")
    text = "x" * 70 + "\r\n"
    content = letter(subject, text * (2000 if "ton" in subject else 1), sender=sender)
    address = f"plus+777@{DOMAIN}" if to == "plus" else await relay.shown()
    found = await settled(relay, await relay.mail(address, content, sender=sender))
    assert why(found, "/choosy") == ("withheld", reason)
    assert reason in await relay.cli("message", "show", found["id"])
    if sender.startswith("spam"):
        assert found["posting"] == [{"site": "example", "state": "withheld", "reason": reason}]
        assert found["state"] in ("queued", "forwarded")


async def test_a_later_letter_of_the_thread_carries_the_same_deal(relay: World) -> None:
    def known(post: Post) -> Step:
        return deal("D-1", "https://crm.example.test/1") if post.json["subject"] == "thread" else 200

    relay.crm.script = known
    first = await relay.mail(
        await relay.shown(), letter("thread", "one\r\n", "Message-ID: <t1@customer.test>"), sender="t@customer.test"
    )
    assert (await settled(relay, first))["deal"]["id"] == "D-1"
    answer = letter(
        "Re: thread",
        "two\r\n",
        "Message-ID: <t2@customer.test>",
        "In-Reply-To: <manager@example.test>",
        "References: <t1@customer.test> <manager@example.test>",
    )
    second = await settled(relay, await relay.mail(f"plus@{DOMAIN}", answer, sender="t@customer.test"))
    assert second["deal"] == {"id": "D-1", "url": "https://crm.example.test/1"}
    await relay.call("PUT", f"/v1/messages/{first}/deal", 204, {"id": "D-2"})
    assert (await relay.call("GET", f"/v1/messages/{first}"))["deal"]["id"] == "D-2"


async def test_a_letter_is_attributed_anew_when_its_visit_became_known_and_whoever_asked_is_told(relay: World) -> None:
    message = await relay.mail(f"plus+4242@{DOMAIN}", unique_letter(sender="late@customer.test"))
    before = await settled(relay, message)
    assert before["attribution"]["state"] == "claimed"
    await relay.bind("plus@example.test", visit="4242", page="https://www.example.test/?rs=late_one")
    said = await relay.cli("message", "replay", str(message), "--reattribute")
    assert "its attribution has changed" in said
    after = await settled(relay, message)
    assert (after["attribution"]["state"], after["visit"]) == ("exact", "4242")
    uid = before["events"][0]["id"]
    bodies = [post.json for post in relay.crm.posts if post.path == "/plain" and post.headers["webhook-id"] == uid]
    assert [body["marker"] for body in bodies] == [None, "late_one"]
    (told,) = posts_to(relay, "/held", f"{uid}_")
    assert told.json["event"] == "attribution.changed"
    assert told.json["previous"] == {"state": "claimed", "method": "plus/1", "visit_id": "4242"}


async def test_the_log_shows_request_answer_and_timing_and_webhook_test_says_what_came_of_it(relay: World) -> None:
    relay.crm.script = [Answer(200, b'{"deal_id": 99}')]
    tried = json.loads(await relay.cli("webhook", "test", "1", "--json"))
    assert (tried["succeeded"], tried["status"], tried["deal"]) == (True, 200, ["99", None])
    assert relay.crm.posts[-1].json["subject"] == "Test of the webhook"
    *_, oldest = (await relay.call("GET", "/v1/webhooks/2/deliveries", state="delivered"))["items"]
    shown = await relay.call("GET", f"/v1/webhooks/2/deliveries/{oldest['id']}")
    assert shown["tries"][0]["as_sent"] is True
    assert shown["request"]["headers"]["Authorization"] == "***"
    assert json.loads(shown["request"]["body"])["subject"] == "Your OFFER"


async def test_after_a_week_end_everything_that_failed_is_posted_again_under_its_id(relay: World) -> None:
    def down(post: Post) -> Step:
        return 503

    relay.crm.script = down
    messages = [await relay.mail(await relay.shown(), unique_letter()) for _ in range(4)]
    uids = [await relay.event(message) for message in messages]
    for uid in uids:
        await relay.daemon.logged("post", uid=uid, attempt=1)
    await relay.cli("webhook", "disable", "1")
    missed = await settled(relay, await relay.mail(await relay.shown(), unique_letter()))
    assert [post["url"][-7:] for post in missed["events"][0]["webhooks"]] == ["/choosy"]
    assert why(await settled(relay, messages[0]), "/plain") == ("failed", "switched off")
    relay.crm.script = 200
    since = len(relay.crm.posts)
    await relay.cli("webhook", "enable", "1")
    assert await relay.cli("webhook", "replay", "1", "--failed") == "4 letters are posted again\n"
    for message in messages:
        assert why(await settled(relay, message), "/plain") == ("delivered", "")
    came = [post for post in relay.crm.posts[since:] if post.path == "/plain"]
    assert sorted(post.headers["webhook-id"] for post in came) == sorted(uids)  # ten at a time
    for post in came:
        post.verify(SECRET)
    day = "2000-01-01"
    again = await relay.cli("webhook", "replay", "1", "--since", day)  # what it missed while it was disabled, too
    assert int(again.split()[0]) > 4
    await relay.until(
        lambda: asyncio.sleep(0, [post.headers["webhook-id"] for post in relay.crm.posts[since:]]),
        lambda ids: missed["events"][0]["id"] in ids,
    )


async def test_held_mail_is_told_to_whoever_asked(relay: World) -> None:
    relay.sink.script = {"rcpt": "550 5.1.1 no such user"}
    message = await relay.mail(await relay.shown(), unique_letter())
    await relay.forwarded(message, "failed")
    uid = await relay.event(message)
    await relay.until(lambda: asyncio.sleep(0, posts_to(relay, "/held", f"{uid}_")), lambda posts: bool(posts))
    (told,) = posts_to(relay, "/held", f"{uid}_")
    told.verify(SECRET)
    assert told.json["event"] == "message.failed"
    assert told.json["failure"]["code"] == 550
    assert told.json["id"] == str(message)
