"""What reaches the CRM and what does not, whatever the CRM does about it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.scenarios.world import DOMAIN, ORIGIN, SECRET, World, letter, site, target, unique_letter, world
from tests.smtp_sink import Hang as SmtpHang
from tests.smtp_sink import SmtpSink
from tests.webhook_receiver import Hang, Post, Receiver, redirect

pytestmark = [pytest.mark.scenario, pytest.mark.asyncio(loop_scope="module")]

SALES = target("sales@example.test", "unique")
PLUS = target("plus@example.test", "plus")


def own_site(name: str, url: str, **settings: Any) -> dict[str, Any]:
    """A site with a CRM of its own."""
    hooks = [{"url": url, "secret": SECRET}]
    made = target(f"{name}@example.test", "plus")
    return site(made, name=name, key=f"pk_{name}", origins=[f"https://{name}.test"], webhook=hooks, **settings)


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def relay(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """``gone`` and ``moved`` are sites whose CRM answers 410, or redirects to ``inside``."""
    async with Receiver() as inside, Receiver([410]) as gone, Receiver([redirect(inside.url)]) as moved:
        sites = [
            site(SALES, PLUS),
            own_site("quiet", "https://crm.example.test/never", send_to_crm=False),
            own_site("gone", gone.url),
            own_site("moved", moved.url),
        ]
        async with world(tmp_path_factory.mktemp("crm"), sites=sites) as made:
            made.others = {"inside": inside, "gone": gone, "moved": moved}
            yield made


async def verdict(relay: World, message: int) -> tuple[str, str | None]:
    """State of the message's event, and why it is withheld."""

    async def read() -> tuple[str, str | None]:
        state, reason = await relay.row("SELECT state, reason FROM events WHERE message_id = ?", message)
        return state, reason

    return await relay.until(read, lambda found: found[0] != "waiting")


async def test_a_crm_that_is_down_gets_the_same_event_again_when_it_is_back(relay: World) -> None:
    before = len(relay.crm.posts)
    relay.crm.script = [503, 503]
    message = await relay.mail(await relay.shown(), unique_letter())
    await relay.crm.wait_for(before + 1)
    # The third attempt would come after five minutes; the operator asks for it sooner.
    second = (await relay.crm.wait_for(before + 2))[before + 1]
    await relay.daemon.logged("post", uid=second.headers["webhook-id"], attempt=2)
    assert (await relay.call("POST", f"/v1/messages/{message}/replay", expect=202)) == {"posts": 1, "reattributed": 0}
    await relay.daemon.logged("post", uid=second.headers["webhook-id"], state="delivered")
    posts = relay.crm.posts[before:]
    assert len(posts) == 3
    assert {post.headers["webhook-id"] for post in posts} == {await relay.event(message)}
    assert len({post.body for post in posts}) == 1
    for post in posts:
        post.verify(SECRET)


async def test_a_crm_that_never_answers_does_not_hold_up_the_mail(tmp_path: Path) -> None:
    async with world(tmp_path, crm=lambda post: Hang()) as relay:
        contents = [unique_letter() for _ in range(30)]
        for content in contents:
            await relay.mail(await relay.shown(), content)
        for content in contents:
            await relay.arrived(content)
        assert await relay.row("SELECT count(*) FROM post_attempts") == (0,), "none has come to its end"
        await relay.crm.wait_for(1)
        relay.daemon.kill()  # a stop would give the attempts their grace


async def test_redirects_are_not_followed(relay: World) -> None:
    message = await relay.mail(f"moved+1@{DOMAIN}", unique_letter())
    entry = await relay.daemon.logged("post", uid=await relay.event(message))
    assert (entry["status"], entry["state"]) == (307, "waiting")
    assert relay.others["inside"].posts == []


async def test_webhooks_into_the_inside_are_refused_by_default_in_every_spelling(tmp_path: Path) -> None:
    def inside(crm: Receiver) -> list[dict[str, str]]:
        port = crm.url.rpartition(":")[2].partition("/")[0]
        hosts = ["127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "169.254.169.254", "10.0.0.1", "0.0.0.0"]
        return [{"url": f"http://{host}:{port}/hook", "secret": SECRET} for host in hosts]

    settings = {"webhooks": {"allow_private_addresses": False}}
    async with world(tmp_path, settings, hook=inside) as relay:
        content = unique_letter()
        message = await relay.mail(await relay.shown(), content)
        await relay.arrived(content)
        answers = await relay.until(
            lambda: relay.rows("SELECT status, answer FROM post_attempts"), lambda rows: len(rows) >= 7
        )
        assert all(status is None and "not a public one" in answer for status, answer in answers)
        assert relay.crm.posts == []
        posts = (await relay.call("GET", f"/v1/messages/{message}"))["posts"]
        assert len(posts) >= 7
        assert "127.0.0.1" not in posts[0]["answer"]


async def test_410_ends_a_webhook_until_somebody_enables_it_again(relay: World) -> None:
    crm, to = relay.others["gone"], f"gone+1@{DOMAIN}"
    first = await relay.mail(to, unique_letter())
    ended = await relay.until(
        lambda: relay.rows("SELECT id, disabled_reason FROM webhooks WHERE enabled = 0"), lambda rows: bool(rows)
    )
    assert [reason for _, reason in ended] == ["the receiver answered 410 Gone"]
    second = await relay.mail(to, unique_letter())
    assert await verdict(relay, second) == ("withheld", "the receiver answered 410 Gone")
    assert len(crm.posts) == 1
    await relay.cli("webhook", "enable", str(ended[0][0]))
    third = await relay.mail(to, unique_letter())
    assert (await crm.wait_for(2))[1].headers["webhook-id"] == await relay.event(third)
    await relay.cli("webhook", "replay", str(ended[0][0]), "--failed")
    again = {post.headers["webhook-id"] for post in (await crm.wait_for(4))[2:]}
    assert again == {await relay.event(first), await relay.event(second)}


@pytest.mark.parametrize(
    ("field", "reason"),
    [
        ("Auto-Submitted: auto-replied", "automatic mail (auto-submitted)"),
        ("List-Id: <news.example.org>", "automatic mail (mailing list)"),
        ("Content-Type: multipart/report; report-type=delivery-status; boundary=b", "bounce"),
    ],
)
async def test_automatic_mail_and_bounces_are_forwarded_but_become_no_deals(
    field: str, reason: str, relay: World
) -> None:
    content = unique_letter(field)
    message = await relay.mail(await relay.shown(), content)
    await relay.arrived(content)
    assert await verdict(relay, message) == ("withheld", reason)


async def test_a_site_that_sends_nothing_to_the_crm_still_forwards_and_records(relay: World) -> None:
    bound = await relay.bind("quiet@example.test", site="pk_quiet", origin="https://quiet.test")
    content = unique_letter()
    message = await relay.mail(bound["addresses"]["quiet@example.test"], content)
    await relay.arrived(content)
    assert await verdict(relay, message) == ("withheld", "Send to CRM is off")
    assert (await relay.call("GET", f"/v1/messages/{message}"))["visit"] == bound["visit"]


async def test_a_hostile_tree_of_parts_spoils_the_attachment_list_and_nothing_else(relay: World) -> None:
    deep = "".join(
        f"--b{level}\r\nContent-Type: multipart/mixed; boundary=b{level + 1}\r\n\r\n" for level in range(3000)
    )
    content = letter("deep", deep, "MIME-Version: 1.0", "Content-Type: multipart/mixed; boundary=b0")
    message = await relay.mail(await relay.shown(), content)
    await relay.arrived(content)
    assert (await relay.posted(message)).json["subject"] == "deep"
    assert (await relay.call("GET", f"/v1/messages/{message}"))["extraction"] == "partial"
    assert await relay.octets("GET", f"/v1/messages/{message}/raw") == content


async def test_posts_that_waited_at_a_stop_go_out_after_the_start_under_their_ids(tmp_path: Path) -> None:
    def down(post: Post) -> int:
        return 503

    async with world(tmp_path, crm=down) as relay:
        message = await relay.mail(await relay.shown(page=f"{ORIGIN}/waited"), unique_letter())
        first = (await relay.crm.wait_for(1))[0]
        await relay.daemon.logged("post", attempt=1)
        assert await asyncio.to_thread(relay.daemon.stop) == 0
        relay.crm.script = 200
        since = len(relay.daemon.log)
        await asyncio.to_thread(relay.daemon.start)
        await relay.daemon.logged("post", since=since, state="delivered")
        last = relay.crm.posts[-1]
        assert last.headers["webhook-id"] == first.headers["webhook-id"] == await relay.event(message)
        last.verify(SECRET)


async def test_a_next_hop_that_never_answers_does_not_hold_up_the_crm(tmp_path: Path) -> None:
    async with world(tmp_path, sink=SmtpSink(script={"connect": lambda session, line: SmtpHang()})) as relay:
        for _ in range(30):
            await relay.mail(await relay.shown(), unique_letter())
        posts = await relay.crm.wait_for(30)
        assert len({post.headers["webhook-id"] for post in posts}) == 30
        assert await relay.rows("SELECT DISTINCT state FROM deliveries") == [("queued",)]
        relay.daemon.kill()  # a stop would give the attempts their grace
        assert DOMAIN in posts[0].json["email_to"]
