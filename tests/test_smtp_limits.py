"""Counts and times: one client too many, one command too many, one second too long."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from relay.core import reply
from relay.smtp_limits import Limits, Turnstile
from relay.smtp_stream import HIGH_WATER
from tests.smtp_client import SmtpClient
from tests.smtp_harness import STRICT, serving

BODY = b"Subject: hi\r\n\r\nhello\r\n.\r\n"


async def test_one_connection_too_many_is_greeted_with_421_and_closed(tmp_path: Path) -> None:
    async with serving(tmp_path, replace(STRICT, connections=2)) as served:
        async with await SmtpClient.hello(served.port), await SmtpClient.hello(served.port, source="127.0.0.2"):
            with capture_logs() as entries:
                async with await SmtpClient.connect(served.port, source="127.0.0.3") as third:
                    answer = await third.answer()
                    assert f"{answer.code} {answer.text}" == reply.TOO_MANY_CONNECTIONS.line
                    assert await third.at_end()
            assert [(entry["event"], entry["end"]) for entry in entries] == [("SMTP session", "too many connections")]
            assert served.server.connections == 2
        await served.empty()
        async with await SmtpClient.hello(served.port):
            pass


async def test_one_connection_too_many_from_an_address_leaves_others_alone(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, replace(STRICT, connections_per_address=1)) as served,
        await SmtpClient.hello(served.port),
        await SmtpClient.connect(served.port) as second,
    ):
        answer = await second.answer()
        assert f"{answer.code} {answer.text}" == reply.TOO_MANY_FROM_ADDRESS.line
        async with await SmtpClient.hello(served.port, source="127.0.0.2"):
            assert served.server.connections == 2


def test_refused_connections_are_not_counted() -> None:
    turnstile = Turnstile(Limits(connections_per_address=1, exempt=()))
    first = turnstile.enter("192.0.2.1")
    refused = [turnstile.enter("192.0.2.1") for _ in range(3)]
    assert first.refusal is None
    assert {ticket.refusal for ticket in refused} == {reply.TOO_MANY_FROM_ADDRESS}
    for ticket in refused:
        turnstile.leave(ticket)
    assert turnstile.enter("192.0.2.1").refusal is reply.TOO_MANY_FROM_ADDRESS
    turnstile.leave(first)
    assert turnstile.enter("192.0.2.1").refusal is None


def test_an_ipv6_client_is_counted_by_its_64() -> None:
    turnstile = Turnstile(Limits(connections_per_address=1, exempt=()))
    assert turnstile.enter("2001:db8::1").refusal is None
    assert turnstile.enter("2001:db8::ffff:2").refusal is reply.TOO_MANY_FROM_ADDRESS
    assert turnstile.enter("2001:db8:0:1::1").refusal is None
    assert turnstile.enter("fe80::1%eth0").refusal is None


def test_exempt_clients_come_in_when_it_is_full_and_count_for_the_others() -> None:
    turnstile = Turnstile(Limits(connections=1, connections_per_address=1, exempt=(ip_network("192.0.2.0/24"),)))
    assert all(turnstile.enter("192.0.2.1").refusal is None for _ in range(5))
    assert turnstile.enter("198.51.100.1").refusal is reply.TOO_MANY_CONNECTIONS


def test_loopback_is_exempt_by_default() -> None:
    turnstile = Turnstile(Limits())
    assert turnstile.enter("127.9.9.9").exempt
    assert turnstile.enter("::1").exempt
    assert not turnstile.enter("192.0.2.1").exempt
    assert not turnstile.enter("").exempt


async def test_the_command_after_the_last_allowed_is_421(tmp_path: Path) -> None:
    async with serving(tmp_path, replace(STRICT, commands=3)) as served, await SmtpClient.hello(served.port) as client:
        assert (await client.command("MAIL FROM:<>")).code == 250
        assert (await client.command("RCPT TO:<u1@track.test>")).code == 250
        await client.send(b"NOOP\r\nNOOP\r\n")
        answer = await client.answer()
        assert f"{answer.code} {answer.text}" == reply.TOO_MANY_COMMANDS.line
        client.writer.write_eof()
        assert await client.at_end()


@pytest.mark.parametrize("command", ["NONSENSE", "RCPT TO:<unknown@track.test>", "MAIL FROM:<a"])
async def test_the_last_error_allowed_is_answered_with_421(command: str, tmp_path: Path) -> None:
    async with serving(tmp_path, replace(STRICT, errors=3)) as served, await SmtpClient.hello(served.port) as client:
        if command.startswith("RCPT"):
            await client.command("MAIL FROM:<>")
        assert [(await client.command(command)).code // 100 for _ in range(2)] == [5, 5]
        answer = await client.command(command)
        assert f"{answer.code} {answer.text}" == reply.TOO_MANY_ERRORS.line


async def test_deferrals_are_no_errors_of_the_client(tmp_path: Path) -> None:
    async with serving(tmp_path, replace(STRICT, errors=3)) as served, await SmtpClient.hello(served.port) as client:
        served.recorder.has_room = False
        assert [(await client.command("MAIL FROM:<>")).code for _ in range(5)] == [452] * 5


@pytest.mark.parametrize("command", ["NOOP", "RSET", "HELP", "VRFY x"])
async def test_commands_that_bring_no_message_nearer_are_counted_between_messages(command: str, tmp_path: Path) -> None:
    limits = replace(STRICT, idle_commands=2)
    async with serving(tmp_path, limits) as served, await SmtpClient.hello(served.port) as client:
        for _ in range(2):
            assert (await client.command(command)).code in (214, 250, 252)
        assert (await client.mail(BODY)).code == 250
        for _ in range(2):
            assert (await client.command(command)).code in (214, 250, 252)
        answer = await client.command(command)
        assert f"{answer.code} {answer.text}" == reply.TOO_MANY_COMMANDS.line


async def test_exempt_clients_may_ask_as_much_as_they_like(tmp_path: Path) -> None:
    limits = Limits(commands=3, errors=3, idle_commands=3)
    async with serving(tmp_path, limits) as served, await SmtpClient.hello(served.port) as client:
        await client.send(b"NOOP\r\nNONSENSE\r\n" * 10)
        assert [(await client.answer()).code for _ in range(20)] == [250, 500] * 10


async def test_a_silent_client_is_sent_away_with_421(tmp_path: Path) -> None:
    async with serving(tmp_path, Limits(command_timeout=0.05)) as served:
        with capture_logs() as entries:
            async with await SmtpClient.hello(served.port) as client:
                assert (await client.answer()).short == "421 4.4.2"
                assert await client.at_end()
            await served.empty()
        assert entries[0]["end"] == "timeout"


async def test_a_command_that_comes_in_drops_has_no_more_time_than_another(tmp_path: Path) -> None:
    async with serving(tmp_path, Limits(command_timeout=0.1)) as served, await SmtpClient.hello(served.port) as client:
        began = asyncio.get_running_loop().time()
        drops = asyncio.create_task(_drip(client))
        assert (await client.answer()).short == "421 4.4.2"
        assert 0.09 < asyncio.get_running_loop().time() - began < 5
        drops.cancel()
        await asyncio.gather(drops, return_exceptions=True)


async def _drip(client: SmtpClient) -> None:
    while True:
        await client.send(b"x")
        await asyncio.sleep(0.01)  # the slowness is what is tested


async def test_every_command_has_the_whole_time(tmp_path: Path) -> None:
    async with serving(tmp_path, Limits(command_timeout=0.2)) as served, await SmtpClient.hello(served.port) as client:
        for _ in range(5):
            await asyncio.sleep(0.05)  # together longer than the limit
            assert (await client.command("NOOP")).code == 250


async def test_a_client_that_never_reads_its_replies_is_cut_off(tmp_path: Path) -> None:
    async with serving(tmp_path, Limits(command_timeout=0.1)) as served:
        with capture_logs() as entries:
            async with await SmtpClient.connect(served.port) as client:
                client.pause()
                try:
                    while True:
                        await client.send(b"EHLO c.test\r\n" * 10_000)
                except OSError:
                    pass
            await served.empty()
        assert entries[-1]["end"] == "client does not read"


async def test_a_slow_reader_gets_every_reply(tmp_path: Path) -> None:
    group = b"EHLO c.test\r\n" * (HIGH_WATER // 8)
    async with serving(tmp_path) as served, await SmtpClient.connect(served.port) as client:
        client.pause()
        client.writer.write(group * 8 + b"QUIT\r\n")
        while not any(session._writable for session in served.server._service.sessions):
            await asyncio.sleep(0)  # until the server can write no more
        client.resume()
        replies = await client.rest()
        assert replies.count(b"250 ENHANCEDSTATUSCODES\r\n") == group.count(b"\n") * 8
        assert replies.endswith(b"221 2.0.0 Bye\r\n")


async def test_a_client_that_resets_while_replies_wait_ends_the_session(tmp_path: Path) -> None:
    async with serving(tmp_path) as served, await SmtpClient.connect(served.port) as client:
        client.pause()
        client.writer.write(b"EHLO c.test\r\n" * HIGH_WATER)
        while not any(session._writable for session in served.server._service.sessions):
            await asyncio.sleep(0)  # until the server can write no more
        client.reset()
        await served.empty()


async def test_who_is_sent_away_can_read_why_although_he_has_sent_more(tmp_path: Path) -> None:
    async with serving(tmp_path, replace(STRICT, commands=1)) as served, await SmtpClient.hello(served.port) as client:
        await client.send(b"NOOP\r\n" * 50_000)
        assert (await client.answer()).code == 421


async def test_who_does_not_close_after_his_421_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.smtp_stream.LINGER", 0.02)
    async with serving(tmp_path, replace(STRICT, commands=1)) as served, await SmtpClient.hello(served.port) as client:
        assert (await client.command("NOOP")).code == 421
        await served.empty()
