"""Counts and times: one client too many, one command too many, one second too long."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from relay.core import reply
from relay.core.model import Address
from relay.smtp_limits import KEPT, SETTLED, UNKNOWN_TIME, Limits, Turnstile, unknown_delay
from relay.smtp_session import EXCESS, Session
from relay.smtp_stream import HIGH_WATER, Stream
from relay.smtp_transaction import Recipient
from relay.tls import TlsFiles
from tests.certificates import Certificate
from tests.smtp_client import PATIENCE, SmtpClient
from tests.smtp_harness import STRICT, Recorder, serving

BODY = b"Subject: hi\r\n\r\nhello\r\n.\r\n"
#: Seconds by which the event loop's time may be behind.
TICK = 0.005


def nobody() -> None:
    """Whom nobody asks to give way."""
    raise AssertionError("asked to give way")


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
    first = turnstile.enter("192.0.2.1", nobody)
    refused = [turnstile.enter("192.0.2.1", nobody) for _ in range(3)]
    assert first.refusal is None
    assert {ticket.refusal for ticket in refused} == {reply.TOO_MANY_FROM_ADDRESS}
    for ticket in refused:
        turnstile.leave(ticket)
    assert turnstile.enter("192.0.2.1", nobody).refusal is reply.TOO_MANY_FROM_ADDRESS
    turnstile.leave(first)
    assert turnstile.enter("192.0.2.1", nobody).refusal is None


def test_an_ipv6_client_is_counted_by_its_64() -> None:
    turnstile = Turnstile(Limits(connections_per_address=1, exempt=()))
    assert turnstile.enter("2001:db8::1", nobody).refusal is None
    assert turnstile.enter("2001:db8::ffff:2", nobody).refusal is reply.TOO_MANY_FROM_ADDRESS
    assert turnstile.enter("2001:db8:0:1::1", nobody).refusal is None
    assert turnstile.enter("fe80::1%eth0", nobody).refusal is None


def test_exempt_clients_come_in_when_it_is_full_and_count_for_the_others() -> None:
    turnstile = Turnstile(Limits(connections=1, connections_per_address=1, exempt=(ip_network("192.0.2.0/24"),)))
    assert all(turnstile.enter("192.0.2.1", nobody).refusal is None for _ in range(5))
    assert turnstile.enter("198.51.100.1", nobody).refusal is reply.TOO_MANY_CONNECTIONS


def test_loopback_is_exempt_by_default() -> None:
    turnstile = Turnstile(Limits())
    assert turnstile.enter("127.9.9.9", nobody).exempt
    assert turnstile.enter("::1", nobody).exempt
    assert not turnstile.enter("192.0.2.1", nobody).exempt
    assert not turnstile.enter("", nobody).exempt


# Who gives way when it is full


class Guest:
    """Somebody inside, who notes that he was asked to give way. ``busy``: in the middle of a message."""

    def __init__(self, turnstile: Turnstile, ip: str, busy: bool = False) -> None:
        self.gone = False
        self.busy = busy
        self.ticket = turnstile.enter(ip, self._give_way, lambda: self.busy)

    @property
    def inside(self) -> bool:
        return self.ticket.refusal is None and not self.gone

    def _give_way(self) -> None:
        self.gone = True


def test_the_oldest_of_the_address_with_most_connections_gives_way_to_a_new_address() -> None:
    turnstile = Turnstile(Limits(connections=6, exempt=()))
    one = Guest(turnstile, "192.0.2.1")
    crowd = [Guest(turnstile, "192.0.2.2") for _ in range(3)]
    pair = [Guest(turnstile, "192.0.2.3") for _ in range(2)]
    new = [Guest(turnstile, f"192.0.2.{number}") for number in (4, 5)]
    assert [guest.inside for guest in (one, *crowd, *pair, *new)] == [True, False, False, True, True, True, True, True]


def test_who_has_most_connections_himself_is_refused_and_nobody_gives_way_to_him() -> None:
    turnstile = Turnstile(Limits(connections=4, exempt=()))
    inside = [Guest(turnstile, ip) for ip in ("192.0.2.1", "192.0.2.2", "192.0.2.1", "192.0.2.2")]
    late = Guest(turnstile, "192.0.2.1")
    assert late.ticket.refusal is reply.TOO_MANY_CONNECTIONS
    assert all(guest.inside for guest in inside)


def test_addresses_that_have_about_as_many_do_not_drive_each_other_out() -> None:
    turnstile = Turnstile(Limits(connections=100, exempt=()))
    knocks = [f"192.0.2.{1 + number % 3}" for number in range(150)]
    inside = [Guest(turnstile, ip) for ip in knocks[:100]]
    late = [Guest(turnstile, ip) for ip in knocks[100:]]
    assert all(guest.inside for guest in inside)
    assert not any(guest.inside for guest in late)
    newcomers = [Guest(turnstile, "192.0.2.9") for _ in range(50)]
    assert sum(guest.inside for guest in newcomers) == 24  # then 26, 25 and 25 are the others': no more than an eighth


def test_where_everybody_has_one_connection_the_longest_inside_gives_way_after_a_moment() -> None:
    now = [0.0]
    turnstile = Turnstile(Limits(connections=3, exempt=()), lambda: now[0])
    guests = []
    for number in range(7):
        now[0] = number * (SETTLED - 1)
        guests.append(Guest(turnstile, f"192.0.2.{number}"))
    assert [guest.inside for guest in guests] == [False] * 4 + [True] * 3
    now[0] = 4 * (SETTLED - 1) + SETTLED - 0.1
    assert Guest(turnstile, "192.0.2.8").ticket.refusal is reply.TOO_MANY_CONNECTIONS
    now[0] = 4 * (SETTLED - 1) + SETTLED
    assert Guest(turnstile, "192.0.2.9").inside
    assert [guest.inside for guest in guests] == [False] * 5 + [True] * 2


def test_who_has_brought_a_message_gives_way_to_nobody_for_a_minute() -> None:
    now = [0.0]
    turnstile = Turnstile(Limits(connections=2, exempt=()), lambda: now[0])
    customer, stranger = Guest(turnstile, "192.0.2.1"), Guest(turnstile, "192.0.2.2")
    turnstile.trust(customer.ticket)
    now[0] = SETTLED
    assert Guest(turnstile, "192.0.2.3").inside
    assert (customer.inside, stranger.inside) == (True, False)
    now[0] = KEPT - 1
    turnstile.trust(customer.ticket)
    now[0] = 2 * KEPT - 2
    assert Guest(turnstile, "192.0.2.4").inside
    assert customer.inside
    now[0] = 2 * KEPT - 1
    assert Guest(turnstile, "192.0.2.5").inside
    assert not customer.inside


def test_of_one_address_the_longest_inside_gives_way_whoever_brought_a_message_long_ago() -> None:
    now = [0.0]
    turnstile = Turnstile(Limits(connections=2, exempt=()), lambda: now[0])
    older = Guest(turnstile, "192.0.2.1")
    turnstile.trust(older.ticket)
    now[0] = 1.0
    newer = Guest(turnstile, "192.0.2.1")
    now[0] = KEPT
    assert Guest(turnstile, "192.0.2.2").inside
    assert (older.inside, newer.inside) == (False, True)


def test_the_exempt_never_give_way_and_where_only_they_are_inside_a_stranger_is_refused() -> None:
    turnstile = Turnstile(Limits(connections=2, exempt=(ip_network("198.51.100.0/24"),)))
    exempt = [Guest(turnstile, "198.51.100.1") for _ in range(3)]
    turnstile.trust(exempt[0].ticket)
    assert Guest(turnstile, "192.0.2.1").ticket.refusal is reply.TOO_MANY_CONNECTIONS
    assert all(guest.inside for guest in exempt)


def test_who_gave_way_and_goes_is_not_counted_twice() -> None:
    turnstile = Turnstile(Limits(connections=2, connections_per_address=2, exempt=()))
    first, _ = Guest(turnstile, "192.0.2.1"), Guest(turnstile, "192.0.2.1")
    new = Guest(turnstile, "192.0.2.2")
    for guest in (first, first):
        turnstile.leave(guest.ticket)
        turnstile.trust(guest.ticket)
    turnstile.leave(new.ticket)
    assert Guest(turnstile, "192.0.2.1").inside
    assert Guest(turnstile, "192.0.2.1").ticket.refusal is reply.TOO_MANY_FROM_ADDRESS


def test_who_is_in_the_middle_of_a_message_gives_way_after_the_idle_of_his_address() -> None:
    turnstile = Turnstile(Limits(connections=4, exempt=()))
    message = Guest(turnstile, "192.0.2.1", busy=True)
    idle = [Guest(turnstile, "192.0.2.1") for _ in range(2)]
    one = Guest(turnstile, "192.0.2.2")
    assert Guest(turnstile, "192.0.2.3").inside
    assert [guest.inside for guest in (message, *idle, one)] == [True, False, True, True]


def test_of_addresses_with_equally_many_connections_one_that_has_an_idle_one_gives_way() -> None:
    now = [0.0]
    turnstile = Turnstile(Limits(connections=3, exempt=()), lambda: now[0])
    message, idle, late = (Guest(turnstile, f"192.0.2.{number}", busy=number == 1) for number in (1, 2, 3))
    for expected in ([True, False, True], [True, False, False], [False, False, False]):
        now[0] += SETTLED
        assert Guest(turnstile, f"198.51.100.{now[0]}", busy=True).inside
        assert [guest.inside for guest in (message, idle, late)] == expected


def test_one_message_of_an_address_is_spared_and_not_as_many_as_it_likes_to_send() -> None:
    turnstile = Turnstile(Limits(connections=4, exempt=()))
    trickles = [Guest(turnstile, "192.0.2.1", busy=True) for _ in range(3)]
    honest = Guest(turnstile, "192.0.2.2")
    new = [Guest(turnstile, f"192.0.2.{number}") for number in (3, 4)]
    assert [guest.inside for guest in (*trickles, honest, *new)] == [False, False, True, True, True, True]


def test_nobody_is_in_the_middle_of_a_message_for_good() -> None:
    """All are, and still there is room for somebody new: of the one who is longest inside."""
    now = [0.0]
    turnstile = Turnstile(Limits(connections=2, exempt=()), lambda: now[0])
    first = Guest(turnstile, "192.0.2.1", busy=True)
    now[0] = SETTLED
    new = Guest(turnstile, "192.0.2.2")
    assert Guest(turnstile, "192.0.2.3").inside  # and the one who has just come has his moment
    assert (first.inside, new.inside) == (False, True)


SENDING: dict[str, Callable[[SmtpClient], Awaitable[object]]] = {
    "DATA": lambda client: client.start(),
    "BDAT": lambda client: _open_chunk(client),
    "between chunks": lambda client: _first_chunk(client, 250),
}


async def _open_chunk(client: SmtpClient) -> None:
    await client.envelope()
    await client.send(b"BDAT 1000 LAST\r\n" + BODY[:10])


async def _first_chunk(client: SmtpClient, answer: int) -> None:
    await client.envelope()
    assert (await client.chunk(BODY[:10])).code == answer


@pytest.mark.parametrize("stage", SENDING)
@pytest.mark.parametrize("alone", [False, True], ids=["two of an address", "one of each"])
async def test_who_does_nothing_gives_way_before_an_older_message_that_is_coming_in(
    stage: str, alone: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.smtp_limits.SETTLED", 0.0)
    async with (
        serving(tmp_path, replace(STRICT, connections=2)) as served,
        await SmtpClient.hello(served.port) as first,
        await SmtpClient.hello(served.port, source="127.0.0.3" if alone else None) as idle,
    ):
        await SENDING[stage](first)
        async with await SmtpClient.hello(served.port, source="127.0.0.2"):
            assert (await idle.answer()).short == "421 4.7.0"
            rest = {
                "DATA": BODY,
                "BDAT": b"x" * 990,
                "between chunks": b"BDAT 5 LAST\r\nend\r\n",
            }[stage]
            await first.send(rest)
            assert (await first.answer()).short == "250 2.0.0"
        assert len(served.recorder.transactions) == 1


@pytest.mark.parametrize("stage", SENDING)
@pytest.mark.parametrize("rate", [10**9, 0], ids=["too slow", "no rate demanded"])
async def test_a_message_that_does_not_keep_up_is_not_spared(
    stage: str, rate: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.smtp_data.SETTLED", -1.0)
    async with (
        serving(tmp_path, replace(STRICT, connections=2, data_rate=rate)) as served,
        await SmtpClient.hello(served.port) as first,
        await SmtpClient.hello(served.port) as idle,
    ):
        await SENDING[stage](first)
        async with await SmtpClient.hello(served.port, source="127.0.0.2"):
            assert (await first.answer()).short == "421 4.7.0"
            assert (await idle.command("NOOP")).code == 250


async def test_what_is_read_off_of_a_refused_message_is_not_spared(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, replace(STRICT, connections=2), max_message_size=9) as served,
        await SmtpClient.hello(served.port) as first,
        await SmtpClient.hello(served.port) as idle,
    ):
        await _first_chunk(first, 552)
        await first.send(b"BDAT 5\r\nx")
        async with await SmtpClient.hello(served.port, source="127.0.0.2"):
            assert (await first.answer()).short == "421 4.7.0"
            assert (await idle.command("NOOP")).code == 250


async def test_who_gives_way_is_told_so_and_the_new_one_is_served(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, replace(STRICT, connections=2)) as served,
        await SmtpClient.hello(served.port) as first,
        await SmtpClient.hello(served.port) as second,
    ):
        await first.send(b"MAIL FR")
        with capture_logs() as entries:
            async with await SmtpClient.hello(served.port, source="127.0.0.2") as new:
                answer = await first.answer()
                assert f"{answer.code} {answer.text}" == reply.GIVING_WAY.line
                assert await first.at_end()
                assert (await new.mail(BODY)).code == 250
            assert (await second.mail(BODY)).code == 250
        assert next(entry["end"] for entry in entries if entry["event"] == "SMTP session") == "gave way"


async def test_who_gives_way_while_his_message_is_accepted_reads_250_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.smtp_limits.SETTLED", 0.0)
    async with (
        serving(tmp_path, replace(STRICT, connections=1)) as served,
        await SmtpClient.hello(served.port) as first,
    ):
        served.recorder.go.clear()
        assert (await first.start()).code == 354
        await first.send(BODY)
        await served.recorder.entered.wait()
        async with await SmtpClient.hello(served.port, source="127.0.0.2"):
            served.recorder.go.set()
            assert (await first.answer()).code == 250
            assert (await first.answer()).short == "421 4.7.0"
            assert await first.at_end()


async def test_who_gives_way_and_does_not_read_is_cut_off(tmp_path: Path) -> None:
    async with (
        serving(tmp_path, replace(STRICT, connections=2, commands=10**6, idle_commands=10**6)) as served,
        await SmtpClient.connect(served.port) as first,
        await SmtpClient.hello(served.port),
    ):
        first.pause()
        first.writer.write(b"EHLO c.test\r\n" * HIGH_WATER)
        while not any(session._writable for session in served.server._service.sessions):
            await asyncio.sleep(0)  # until the server can write no more
        async with await SmtpClient.hello(served.port, source="127.0.0.2"):
            async with asyncio.timeout(PATIENCE):
                while served.server.connections > 2:
                    await asyncio.sleep(0.001)


async def test_who_gives_way_in_a_handshake_that_does_not_end_is_cut_off(tmp_path: Path) -> None:
    certificate = Certificate.make(tmp_path, "mx.test")
    tls = TlsFiles(certificate.cert, certificate.key)
    async with (
        serving(tmp_path, replace(STRICT, connections=2), tls=tls) as served,
        await SmtpClient.hello(served.port) as first,
        await SmtpClient.hello(served.port),
    ):
        assert (await first.command("STARTTLS")).code == 220
        async with await SmtpClient.hello(served.port, source="127.0.0.2"):
            assert await first.at_end()


# Commands


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


@pytest.mark.parametrize("command", ["NOOP", "RSET", "HELP", "VRFY x", "EHLO c.test", "HELO c.test"])
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


async def test_a_thousand_ehlos_and_no_mail_are_no_session(tmp_path: Path) -> None:
    async with serving(tmp_path, STRICT) as served, await SmtpClient.connect(served.port) as client:
        await client.send(b"EHLO c.test\r\n" * 1000)
        client.writer.write_eof()
        replies = await client.rest()
        assert replies.count(b"250 CHUNKING\r\n") == STRICT.idle_commands + 1
        assert replies.endswith(reply.TOO_MANY_COMMANDS.wire)


async def test_of_five_thousand_recipients_the_first_hundred_get_the_mail(tmp_path: Path) -> None:
    async with serving(tmp_path, STRICT) as served, await SmtpClient.hello(served.port) as client:
        await client.command("MAIL FROM:<ann@ext.test>")
        await client.send(b"".join(b"RCPT TO:<u%d@track.test>\r\n" % number for number in range(5000)))
        answers = [(await client.answer()).short for _ in range(5000)]
        assert answers == ["250 2.1.5"] * 100 + ["452 4.5.3"] * 4900
        assert (await client.command("DATA")).code == 354
        await client.send(BODY)
        assert (await client.answer()).code == 250
        assert [str(to) for to, _ in served.recorder.transactions[0].recipients] == [
            f"u{number}@track.test" for number in range(100)
        ]
        assert len(served.recorder.asked) == 100


async def test_recipients_beyond_the_limit_without_end_are_421(tmp_path: Path) -> None:
    limits = replace(STRICT, recipients=1, commands=10)
    async with serving(tmp_path, limits) as served, await SmtpClient.hello(served.port) as client:
        await client.send(b"MAIL FROM:<>\r\n" + b"".join(b"RCPT TO:<u%d@t.test>\r\n" % n for n in range(1000)))
        client.writer.write_eof()
        replies = await client.rest()
        assert replies.count(reply.TOO_MANY_RECIPIENTS.wire) == EXCESS * 10
        assert replies.endswith(reply.TOO_MANY_COMMANDS.wire)


async def test_others_have_their_turn_while_one_clients_commands_are_carried_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    count = Session._command

    async def noted(session: Session, line: bytes) -> None:
        order.append(session._helo)
        await count(session, line)

    monkeypatch.setattr(Session, "_command", noted)
    async with (
        serving(tmp_path) as served,
        await SmtpClient.hello(served.port, "busy.test") as busy,
        await SmtpClient.hello(served.port, "other.test") as other,
    ):
        order.clear()
        busy.writer.write(b"NOOP\r\n" * 5000)
        other.writer.write(b"NOOP\r\n")
        await other.answer()
        for _ in range(5000):
            await busy.answer()
        assert order.index("other.test") < 1000


# Guessing addresses


class Held:
    """Notes how late after RCPT a session answers, instead of waiting so long."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.delays: list[float] = []
        monkeypatch.setattr("relay.smtp_session.SPREAD", 0.0)
        self.go = asyncio.Event()
        self.go.set()
        route = Recorder.route

        async def timed(recorder: Recorder, recipient: Recipient, mail_from: Address | None) -> object | None:
            self._began = asyncio.get_running_loop().time()
            return await route(recorder, recipient, mail_from)

        async def hold(stream: Stream, until: float) -> None:
            self.delays.append(round(until - self._began, 2))
            if stream._replies:
                await stream.flush()
            await self.go.wait()

        monkeypatch.setattr(Recorder, "route", timed)
        monkeypatch.setattr(Stream, "hold", hold)


async def test_unknown_recipients_are_refused_later_and_later_and_at_last_not_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(monkeypatch)
    limits = replace(STRICT, unknown_recipients=3, tarpit=10.0, errors=10)
    async with serving(tmp_path, limits) as served, await SmtpClient.hello(served.port) as client:
        await client.command("MAIL FROM:<>")
        assert (await client.command("RCPT TO:<u1@track.test>")).code == 250
        for _ in range(9):
            assert (await client.command("RCPT TO:<unknown@track.test>")).short == "550 5.1.1"
        assert (await client.command("RCPT TO:<unknown@track.test>")).short == "421 4.7.0"
        assert held.delays == [UNKNOWN_TIME] * 3 + [1.0, 2.0, 4.0, 8.0, 10.0, 10.0, 10.0]


async def test_who_is_in_the_tarpit_holds_nobody_else_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(monkeypatch)
    held.go.clear()
    async with serving(tmp_path, STRICT) as served, await SmtpClient.hello(served.port, source="127.0.0.2") as guesser:
        await guesser.command("MAIL FROM:<>")
        await guesser.send(b"RCPT TO:<unknown@track.test>\r\n" * 10)
        for number in range(20):
            async with await SmtpClient.hello(served.port) as client:
                assert (await client.mail(BODY)).text.endswith(f"m{number + 1}")
        assert len(held.delays) == 1  # it still waits for its first answer
        held.go.set()
        assert [(await guesser.answer()).code for _ in range(10)] == [550] * 10


@pytest.mark.parametrize("recipients", [0, 4])
async def test_a_known_recipient_is_never_held_back(
    recipients: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = Held(monkeypatch)
    limits = replace(STRICT, unknown_recipients=1)
    async with serving(tmp_path, limits) as served, await SmtpClient.hello(served.port) as client:
        await client.command("MAIL FROM:<>")
        for _ in range(recipients):
            await client.command("RCPT TO:<unknown@track.test>")
        assert (await client.command("RCPT TO:<u1@track.test>")).code == 250
        assert len(held.delays) == recipients


async def test_exempt_clients_are_not_held_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held(monkeypatch)
    async with serving(tmp_path) as served, await SmtpClient.hello(served.port) as client:
        await client.command("MAIL FROM:<>")
        assert [(await client.command("RCPT TO:<unknown@track.test>")).code for _ in range(30)] == [550] * 30
        assert held.delays == []


def test_the_tarpit_can_be_switched_off_and_its_delays_are_bounded() -> None:
    assert {unknown_delay(count, Limits(tarpit=0.0)) for count in (1, 6, 1000)} == {UNKNOWN_TIME}
    assert unknown_delay(10**9, Limits(errors=10**9, tarpit=120.0)) == 120.0


async def test_answers_before_the_tarpit_are_read_before_its_end_and_none_comes_early(tmp_path: Path) -> None:
    limits = replace(STRICT, unknown_recipients=1, tarpit=0.3)
    async with serving(tmp_path, limits) as served, await SmtpClient.hello(served.port) as client:
        began = time.monotonic()
        await client.send(b"MAIL FROM:<>\r\nRCPT TO:<u1@track.test>\r\n" + b"RCPT TO:<unknown@track.test>\r\n" * 2)
        assert [(await client.answer()).code for _ in range(3)] == [250, 250, 550]
        assert time.monotonic() - began >= UNKNOWN_TIME - TICK
        assert (await client.answer()).code == 550
        assert time.monotonic() - began >= UNKNOWN_TIME + 0.3 - TICK


@pytest.mark.parametrize("end", ["reset", "stop", "input"])
async def test_what_ends_a_session_ends_it_in_the_tarpit_too(end: str, tmp_path: Path) -> None:
    limits = replace(STRICT, unknown_recipients=1, tarpit=0.2 if end == "input" else 100.0)
    async with serving(tmp_path, limits) as served, await SmtpClient.hello(served.port) as client:
        await client.send(b"MAIL FROM:<>\r\n" + b"RCPT TO:<unknown@track.test>\r\n" * 2)
        assert [(await client.answer()).code for _ in range(2)] == [250, 550]
        if end == "reset":
            client.reset()
        elif end == "stop":
            stop = asyncio.create_task(served.server.stop(60))
            assert (await client.answer()).short == "421 4.3.2"
            client.writer.close()
            await stop
        else:  # it still reads
            client.writer.write_eof()
            assert (await client.answer()).short == "550 5.1.1"
            assert await client.at_end()
        await served.empty()


async def test_exempt_clients_may_ask_as_much_as_they_like(tmp_path: Path) -> None:
    limits = Limits(commands=3, errors=3, idle_commands=3)
    async with serving(tmp_path, limits) as served, await SmtpClient.hello(served.port) as client:
        await client.send(b"NOOP\r\nNONSENSE\r\n" * 10)
        assert [(await client.answer()).code for _ in range(20)] == [250, 500] * 10


async def test_a_silent_client_is_sent_away_with_421(tmp_path: Path) -> None:
    async with serving(tmp_path, Limits(command_timeout=0.05)) as served:
        with capture_logs() as entries:
            async with await SmtpClient.connect(served.port) as client:
                assert (await client.answer()).code == 220
                assert (await client.answer()).short == "421 4.4.2"
                assert await client.at_end()
            await served.empty()
        assert entries[0]["end"] == "timeout"


async def test_a_command_that_comes_in_drops_has_no_more_time_than_another(tmp_path: Path) -> None:
    async with serving(tmp_path, Limits(command_timeout=0.1)) as served:
        began = time.monotonic()
        async with await SmtpClient.connect(served.port) as client:
            assert (await client.answer()).code == 220
            drops = asyncio.create_task(_drip(client))
            assert (await client.answer()).short == "421 4.4.2"
            assert time.monotonic() - began >= 0.1 - TICK
            drops.cancel()
            await asyncio.gather(drops, return_exceptions=True)


async def _drip(client: SmtpClient) -> None:
    while True:
        await client.send(b"x")
        await asyncio.sleep(0.01)  # the slowness is what is tested


async def test_every_command_has_the_whole_time(tmp_path: Path) -> None:
    async with serving(tmp_path, Limits(command_timeout=1.0)) as served, await SmtpClient.hello(served.port) as client:
        for _ in range(6):
            await asyncio.sleep(0.2)  # together longer than the limit
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
        assert replies.count(b"250 CHUNKING\r\n") == group.count(b"\n") * 8
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


class Heap(asyncio.Transport):
    """A socket that has megabytes: it hands them on until it is told to stop."""

    def __init__(self, octets: int) -> None:
        super().__init__()
        self.left, self.reading = octets, True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def hand_on(self, stream: Stream) -> None:
        while self.reading and self.left:
            self.left -= HIGH_WATER // 2
            stream.data_received(bytes(HIGH_WATER // 2))


async def test_who_waits_for_octets_does_not_get_more_of_them_than_the_high_water_mark_allows() -> None:
    stream, heap = Stream(asyncio.get_running_loop(), 1.0), Heap(HIGH_WATER * 64)
    Stream.connection_made(stream, heap)
    got = 0
    while heap.left:
        waiting = asyncio.create_task(stream.chunk(PATIENCE))
        await asyncio.sleep(0)
        assert heap.reading
        heap.hand_on(stream)
        chunk = await waiting
        assert len(chunk) <= HIGH_WATER * 1.5
        got += len(chunk)
    assert got == HIGH_WATER * 64
