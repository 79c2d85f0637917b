"""What the daemon refuses of a client it owes nothing, and who always gets through."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio

from tests.exposition import parse
from tests.scenarios.world import DOMAIN, World, letter, unique_letter, world
from tests.smtp_client import SmtpClient

pytestmark = [pytest.mark.scenario, pytest.mark.asyncio(loop_scope="module")]

BASE = f"plus@{DOMAIN}"
LIMITS = {
    "exempt": [],
    "recipients": 3,
    "connections": 4,
    "connections_per_address": 2,
    "commands": 30,
    "errors": 3,
    "idle_commands": 3,
    "received_fields": 5,
    "header_size": 4096,
    "binds_per_address_per_minute": 1000,
}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def relay(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with world(tmp_path_factory.mktemp("limits"), {"limits": LIMITS}) as made:
        yield made


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def hasty(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    """One that waits a second: others who say nothing for so long on a slow machine are none of its tests."""
    limits = {**LIMITS, "command_timeout": "1s", "data_timeout": "1s"}
    async with world(tmp_path_factory.mktemp("hasty"), {"limits": limits}) as made:
        yield made


async def hello(relay: World, source: str | None = None) -> SmtpClient:
    return await SmtpClient.hello(relay.daemon.smtp_port, source=source)


async def until_empty(relay: World) -> None:
    """The daemon notes the end of a session a moment after its client: counts must not run into the next test."""

    async def taken() -> float:
        async with relay.http.get(f"{relay.daemon.url}/metrics") as response:
            return parse(await response.text())["relay_smtp_connections"].value()

    await relay.until(taken, lambda count: count == 0)


async def test_one_recipient_too_many_gets_452_and_the_others_get_the_mail(relay: World) -> None:
    async with await hello(relay) as client:
        await client.command("MAIL FROM:<ann@customer.test>")
        answers = [await client.command(f"RCPT TO:<plus+{number}@{DOMAIN}>") for number in range(1, 5)]
        assert [answer.short for answer in answers] == ["250 2.1.5"] * 3 + ["452 4.5.3"]
        content = unique_letter()
        assert (await client.command("DATA")).code == 354
        await client.send(content + b".\r\n")
        assert (await client.answer()).code == 250
    await relay.arrived(content)


async def test_the_third_connection_of_one_address_gets_421_and_another_address_is_let_in(relay: World) -> None:
    await until_empty(relay)
    async with AsyncExitStack() as open_sessions:
        for _ in range(2):
            await open_sessions.enter_async_context(await hello(relay, "127.0.0.2"))
        async with await SmtpClient.connect(relay.daemon.smtp_port, source="127.0.0.2") as third:
            assert (await third.answer()).short == "421 4.7.0"
            assert await third.at_end()
        await open_sessions.enter_async_context(await hello(relay, "127.0.0.3"))


async def test_a_connection_beyond_the_total_gets_421(relay: World) -> None:
    await until_empty(relay)
    async with AsyncExitStack() as open_sessions:
        for number in range(4):
            await open_sessions.enter_async_context(await hello(relay, f"127.0.0.{4 + number}"))
        async with await SmtpClient.connect(relay.daemon.smtp_port, source="127.0.0.8") as fifth:
            assert (await fifth.answer()).short == "421 4.7.0"


@pytest.mark.parametrize(
    ("command", "code"),
    [(f"RCPT TO:<guess@{DOMAIN}>", 550), ("NOSUCH", 500)],
    ids=["unknown recipients", "unknown commands"],
)
async def test_the_third_error_ends_the_session(command: str, code: int, relay: World) -> None:
    await until_empty(relay)
    async with await hello(relay) as client:
        await client.command("MAIL FROM:<ann@customer.test>")
        assert [(await client.command(command)).code for _ in range(2)] == [code] * 2
        await client.send(command.encode() + b"\r\n")
        assert b"421 4.7.0" in await client.rest()


async def test_who_only_keeps_the_session_open_is_sent_away(relay: World) -> None:
    await until_empty(relay)
    async with await hello(relay) as client:
        assert [(await client.command("NOOP")).code for _ in range(3)] == [250] * 3
        assert (await client.command("NOOP")).code == 421
        assert await client.at_end()


async def test_who_says_nothing_is_sent_away(hasty: World) -> None:
    await until_empty(hasty)
    async with await hello(hasty) as client:
        assert (await client.answer()).short == "421 4.4.2"


async def test_who_stops_in_the_middle_of_a_message_is_sent_away_and_nothing_is_kept(hasty: World) -> None:
    await until_empty(hasty)
    (before,) = await hasty.row("SELECT count(*) FROM messages")
    async with await hello(hasty) as client:
        assert (await client.start(f"<{BASE}>")).code == 354
        await client.send(b"Subject: half a me")
        assert (await client.answer()).short == "421 4.4.2"
    assert await hasty.row("SELECT count(*) FROM messages") == (before,)


async def test_mail_that_has_gone_round_too_often_gets_554(relay: World) -> None:
    await until_empty(relay)
    received = [
        f"Received: from a{number}.example by b.example; Mon, 23 Nov 2026 12:00:00 +0000" for number in range(6)
    ]
    assert (await relay.answer(letter("round", "x\r\n", *received), BASE)).short == "554 5.4.6"


async def test_a_header_beyond_the_limit_gets_552(relay: World) -> None:
    await until_empty(relay)
    assert (await relay.answer(letter("big", "x\r\n", *["X-Filler: " + "x" * 70] * 60), BASE)).short == "552 5.3.4"


@pytest.mark.parametrize("octets", [b"one\rtwo", b"one\0two"], ids=["bare CR", "NUL"])
async def test_a_bare_cr_or_a_nul_is_refused(octets: bytes, relay: World) -> None:
    await until_empty(relay)
    assert (await relay.answer(unique_letter() + octets + b"\r\n", BASE)).short == "554 5.6.0"


@pytest.mark.parametrize(
    "address", ["postmaster", f"postmaster@{DOMAIN}", f"Abuse@{DOMAIN}", "postmaster@mx.track.test"]
)
async def test_mail_to_postmaster_and_abuse_reaches_the_operator_without_attribution(
    address: str, relay: World
) -> None:
    await until_empty(relay)
    content = unique_letter()
    message = await relay.mail(address, content)
    (received,) = await relay.arrived(content)
    assert received.recipients == ["operator@example.test"]
    assert b"X-Visit-Id" not in received.content
    assert await relay.rows("SELECT state FROM events WHERE message_id = ?", message) == []


async def test_a_bounce_to_a_substitute_is_forwarded_as_a_bounce_and_never_becomes_a_deal(relay: World) -> None:
    await until_empty(relay)
    content = unique_letter()
    posts = len(relay.crm.posts)
    message = await relay.mail(await relay.shown("sales@example.test"), content, sender="")
    (received,) = await relay.arrived(content)
    assert received.mail_from == ""
    event = await relay.until(
        lambda: relay.row("SELECT state, reason FROM events WHERE message_id = ?", message),
        lambda row: row[0] != "waiting",
    )
    assert event == ("withheld", "bounce")
    assert len(relay.crm.posts) == posts


async def test_what_bounces_from_the_real_mailbox_ends_in_history_and_only_as_a_bounce(relay: World) -> None:
    await until_empty(relay)
    content = unique_letter()
    await relay.mail(BASE, content)
    (received,) = await relay.arrived(content)
    forged = received.mail_from.replace("=", "=x", 1)
    async with await hello(relay) as client:
        await client.command("MAIL FROM:<>")
        assert (await client.command(f"RCPT TO:<{forged}>")).code == 550
        assert (await client.command(f"RCPT TO:<{received.mail_from}>")).code == 250
        assert (await client.command("RSET")).code == 250
        await client.command("MAIL FROM:<mallory@customer.test>")
        assert (await client.command(f"RCPT TO:<{received.mail_from}>")).short == "550 5.1.1"
    await until_empty(relay)
    message = await relay.mail(received.mail_from, unique_letter(), sender="")
    assert await relay.row("SELECT state FROM messages WHERE id = ?", message) == ("collected",)
    assert await relay.rows("SELECT id FROM deliveries WHERE message_id = ?", message) == []


async def test_a_nearly_full_disk_gets_452_at_mail_and_pages_show_real_addresses(tmp_path: Path) -> None:
    async with world(tmp_path, {"smtp": {"min_free": 1 << 49}}) as relay:
        async with await hello(relay) as client:
            assert (await client.command("MAIL FROM:<ann@customer.test>")).short == "452 4.3.1"
        assert (await relay.bind("sales@example.test"))["addresses"] == {}


async def test_bare_line_feeds_are_refused_where_the_operator_wants_it_so(tmp_path: Path) -> None:
    async with world(tmp_path, {"smtp": {"bare_lf": "refuse"}}) as relay:
        assert (await relay.answer(b"Subject: x\r\n\r\none\ntwo\r\n", BASE)).short == "554 5.6.0"
        assert (await relay.answer(b"Subject: x\r\n\r\none\r\ntwo\r\n", BASE)).code == 250
