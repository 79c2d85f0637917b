"""Clients that hold on, guess and send bombs, all at once with others whose mail has to arrive all the same."""

from __future__ import annotations

import asyncio
import os
import resource
from collections import Counter
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio

from benchmarks.processes import pss, rss
from relay.core import reply, substitute
from relay.core.wire import stuff
from relay.smtp_limits import UNKNOWN_TIME
from tests.certificates import Certificate
from tests.costs import sleeps
from tests.daemon import Entry
from tests.exposition import Metric, parse
from tests.ledger import SOAK
from tests.scenarios.world import DOMAIN, World, letter, unique_letter, world
from tests.smtp_client import SmtpClient, bdat

pytestmark = [pytest.mark.scenario, pytest.mark.asyncio(loop_scope="module")]

BASE = f"plus@{DOMAIN}"
#: With a visit that nobody issued: what comes there is posted.
CLAIMED = f"plus+17@{DOMAIN}"
#: Connections of the attacker, of 50 an address, and how many are taken at all.
LORISES, CONNECTIONS = (2_000, 1_000) if SOAK else (300, 150)
LETTERS = 200 if SOAK else 20
PER_ADDRESS = 50
#: Guesses of addresses at once, and how often. A session has five before it is made to wait.
GUESSES, WAVES, QUICK = (1_000, 100, 5) if SOAK else (100, 4, 5)
#: Seconds by which six waits together may be read short: those of uvloop go by milliseconds.
TICK = 0.05
#: How often all bombs come, one behind the other. In the soak they may hold the event loop up for so many seconds, and
#: the daemon may have grown by so many octets.
ROUNDS, STALL, GROWTH = 20 if SOAK else 1, "0.1", 50e6
#: Seconds for which they may hold it up in every run.
BUSY = 0.5


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def relay(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    directory = tmp_path_factory.mktemp("hostile")
    certificate = Certificate.make(directory, "mx.track.test")
    settings = {
        "limits": {"exempt": [], "connections": CONNECTIONS, "connections_per_address": PER_ADDRESS},
        "smtp": {"tls_cert": str(certificate.cert), "tls_key": str(certificate.key)},
    }
    async with world(directory, settings) as made:
        yield made


# Slow clients


class Loris:
    """A connection kept open by an octet now and then: at the greeting, in a command, a handshake, a message."""

    def __init__(self, client: SmtpClient, number: int) -> None:
        self.client = client
        self._opening = (
            b"",
            b"EHLO loris.test\r\nMAIL FR",
            b"EHLO loris.test\r\nSTARTTLS\r\n",
            b"EHLO loris.test\r\nMAIL FROM:<a@loris.test>\r\nRCPT TO:<%s>\r\nBDAT 1000\r\nx" % BASE.encode(),
            b"EHLO loris.test\r\nMAIL FROM:<a@loris.test>\r\nRCPT TO:<%s>\r\n" % BASE.encode(),
        )[number % 5]
        self._data = number % 5 == 4

    async def begin(self) -> None:
        """Get as far as it wants to; a refusal comes in between at any time."""
        try:
            await self.client.answer()
            await self.client.send(self._opening)
            for _ in range(self._opening.count(b"\r\n") if self._data else 0):
                await self.client.answer()
            if self._data:
                await self.client.command("DATA")
        except (OSError, asyncio.IncompleteReadError):
            pass

    async def drip(self) -> None:
        try:
            await self.client.send(b"x")
        except OSError:
            pass


async def test_slow_clients_from_many_addresses_keep_nobody_else_out(relay: World) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    port = relay.daemon.smtp_port
    contents = [unique_letter() for _ in range(LETTERS + 2)]
    since, lorises = len(relay.daemon.log), list[Loris]()
    try:
        async with await SmtpClient.hello(port, source="127.1.0.1") as kept:
            assert (await kept.mail(stuff(contents[0]) + b".\r\n", f"<{BASE}>")).code == 250
            for number in range(LORISES):
                source = f"127.2.0.{1 + number // PER_ADDRESS}"
                lorises.append(Loris(await SmtpClient.connect(port, source=source), number))
                if number % PER_ADDRESS == PER_ADDRESS - 1:
                    await asyncio.gather(*(loris.begin() for loris in lorises[-PER_ADDRESS:]))
            answers = Counter[str]()
            for number, content in enumerate(contents[1:-1]):
                async with await SmtpClient.hello(port, source=f"127.1.0.{2 + number % 3}") as client:
                    answers[(await client.mail(stuff(content) + b".\r\n", f"<{BASE}>")).short] += 1
                await asyncio.gather(*(loris.drip() for loris in lorises[number::LETTERS]))
            assert answers == {"250 2.0.0": LETTERS}
            assert (await kept.mail(stuff(contents[-1]) + b".\r\n", f"<{BASE}>")).code == 250  # it was never sent away
        for content in contents:
            assert len(await relay.arrived(content)) == 1
        ends = Counter(
            entry["end"]
            for entry in relay.daemon.log[since:]
            if entry["event"] == "SMTP session" and entry["ip"].startswith("127.2.")
        )
        print(f"\nslow clients: {LORISES}, sent away {dict(ends)}; {LETTERS} letters were taken meanwhile")
        assert ends.keys() == {"gave way", "too many connections"}
        assert LORISES - CONNECTIONS < ends.total() < LORISES
    finally:
        await asyncio.gather(*(loris.client.__aexit__() for loris in lorises))
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert relay.daemon.errors == []


# Who harvests addresses


def guesses(number: int) -> list[str]:
    """What a session tries: the likely, and what our substitutes look like."""
    minted = substitute.mint(os.urandom(substitute.RANDOM_OCTETS))
    return [
        f"info{number}@{DOMAIN}",
        f"{minted}@{DOMAIN}",
        f"{minted}+17@{DOMAIN}",
        f"SRS0=aaaa=bb=example.org=a{number}@{DOMAIN}",
        f"{minted}@elsewhere.test",
    ]


async def test_whoever_guesses_addresses_learns_nothing_and_holds_up_no_mail(relay: World) -> None:
    port, answers, letters = relay.daemon.smtp_port, Counter[str](), Counter[str]()
    contents = [unique_letter() for _ in range(WAVES)]

    async def guess(number: int, source: str) -> None:
        async with await SmtpClient.hello(port, source=source) as client:
            assert (await client.command("MAIL FROM:<>")).code == 250
            for address in guesses(number):
                answer = await client.command(f"RCPT TO:<{address}>")
                answers[f"{answer.code} {answer.text}"] += 1

    async def write(content: bytes) -> None:
        async with await SmtpClient.hello(port, source="127.1.0.9") as client:
            letters[(await client.mail(stuff(content) + b".\r\n", f"<{BASE}>")).short] += 1

    for wave, content in enumerate(contents):
        sources = (f"127.3.{wave}.{1 + number // PER_ADDRESS}" for number in range(GUESSES // QUICK))
        await asyncio.gather(*(guess(number, source) for number, source in enumerate(sources)), write(content))
    print(f"\nguesses: {answers}; letters meanwhile: {letters}")
    assert answers == {reply.NO_SUCH_USER.line: GUESSES * WAVES}
    assert letters == {"250 2.0.0": WAVES}
    for content in contents:
        assert len(await relay.arrived(content)) == 1
    assert relay.daemon.errors == []


async def test_mail_comes_in_while_the_attackers_addresses_have_all_they_may_and_are_in_the_tarpit(
    relay: World,
) -> None:
    """By the daemon's own settings: five guesses of a session are refused at once, as it seems, the sixth after 1 s."""
    port, loop, letters = relay.daemon.smtp_port, asyncio.get_running_loop(), Counter[str]()
    sources = [source for source in ("127.4.0.1", "127.4.0.2") for _ in range(PER_ADDRESS)]
    guesser = b"MAIL FROM:<>\r\n" + b"".join(b"RCPT TO:<%s>\r\n" % to.encode() for to in [*guesses(0), "no@one.test"])

    async def guess(client: SmtpClient) -> float:
        began = loop.time()
        await client.send(guesser)
        assert [(await client.answer()).code for _ in range(QUICK + 2)] == [250] + [550] * (QUICK + 1)
        return loop.time() - began

    async def write(number: int) -> None:
        async with await SmtpClient.hello(port, source=f"127.1.0.{number}") as client:
            letters[(await client.mail(stuff(unique_letter()) + b".\r\n", f"<{BASE}>")).short] += 1

    guessers = await asyncio.gather(*(SmtpClient.hello(port, source=source) for source in sources))
    try:
        for source in set(sources):
            async with await SmtpClient.connect(port, source=source) as one_more:
                assert (await one_more.answer()).short == "421 4.7.0"
        times, *_ = await asyncio.gather(asyncio.gather(*map(guess, guessers)), *map(write, range(1, 11)))
    finally:
        await asyncio.gather(*(client.__aexit__() for client in guessers))
    assert letters == {"250 2.0.0": 10}
    assert min(times) >= QUICK * UNKNOWN_TIME + 1.0 - TICK
    assert relay.daemon.errors == []


# Bombs: each is forwarded as it came, and read as far as the limits allow


def multiparts(depth: int) -> bytes:
    return b"".join(b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (n, n) for n in range(depth))


def parts(count: int) -> bytes:
    return b"Content-Type: multipart/mixed; boundary=b\r\n\r\n" + b"--b\r\n\r\nx\r\n" * count + b"--b--\r\n"


BOMBS: dict[str, Callable[[], bytes]] = {
    "5,000 levels": lambda: multiparts(5_000) + b"\r\nx\r\n",
    "a boundary that is its own parent": lambda: b"Content-Type: multipart/mixed; boundary=a\r\n\r\n--a\r\n" * 5_000,
    "50,000 parts": lambda: parts(50_000),
    "20,000 nested messages": lambda: b"Content-Type: message/rfc822\r\n\r\n" * 20_000,
    "8,000 parameters": lambda: b"Content-Type: text/plain" + b";p*0*=v" * 8_000 + b"\r\n\r\nx\r\n",
    "8,000 parameters of an attachment": lambda: (
        b"Content-Disposition: attachment" + b";p*0*=v" * 8_000 + b"\r\n\r\nx\r\n"
    ),
    "32 kB of quotes in From": lambda: b"From: " + b'"' * 32_768 + b"\r\n\r\nx\r\n",
    "32 kB of parentheses in From": lambda: b"From: " + b"(" * 32_768 + b"\r\n\r\nx\r\n",
    "32,000 addresses in To": lambda: b"To: " + b",".join([b"a@b.c"] * 32_000) + b"\r\n\r\nx\r\n",
    "20,000 encoded words": lambda: b"Subject: " + b"=?utf-8?q?x?= " * 17_000 + b"\r\n\r\nx\r\n",
    "encoded words without an end in From": lambda: b"From: " + b"=?utf-8?q?=" * 2_978 + b"\r\n\r\nx\r\n",
    "a line of 3 MB": lambda: b"Subject: x\r\n\r\n" + b"y" * 3_000_000 + b"\r\n",
    "1,000 nested tables": lambda: b"Content-Type: text/html\r\n\r\n" + b"<table><tr><td>" * 1_000 + b"\r\n",
    "999 fields": lambda: b"A: b\r\n" * 999 + b"\r\nx\r\n",
}


async def explode(relay: World, content: bytes) -> None:
    message = await relay.mail(CLAIMED, content)
    await relay.arrived(content)
    await relay.until(
        lambda: relay.row("SELECT extraction FROM messages WHERE id = ?", message), lambda row: row[0] != "waiting"
    )
    shown = await relay.call("GET", f"/v1/messages/{message}")
    assert len(shown["attachments"]) <= 1_000
    assert await relay.octets("GET", f"/v1/messages/{message}/raw") == content
    await relay.posted(message)


def held_up(relay: World) -> list[Entry]:
    """By the daemon's own doing, whoever else is on the machine."""
    return [entry for entry in relay.daemon.log if entry["event"] == "event loop held up" and entry["busy"] > BUSY]


@pytest.mark.parametrize("name", BOMBS)
async def test_a_bomb_is_forwarded_as_it_came_and_history_shows_it(name: str, relay: World) -> None:
    await explode(relay, BOMBS[name]())
    assert relay.daemon.errors == []
    assert held_up(relay) == []


async def test_bombs_neither_stall_the_event_loop_nor_swell_the_daemon(relay: World) -> None:
    """By what the loop's thread computes and where it sleeps: the daemon's own doing, whatever others do."""

    async def busy() -> Metric:
        async with relay.http.get(f"{relay.daemon.url}/metrics") as response:
            return parse(await response.text())["relay_event_loop_busy_seconds"]

    await explode(relay, unique_letter())
    looks, resident, tree = await busy(), rss(relay.daemon.pid), pss(relay.daemon.pid)
    with sleeps(relay.daemon.pid) as slept:
        for number in range(ROUNDS):
            for bomb in BOMBS.values():
                await explode(relay, b"X-Round: %d\r\n" % number + bomb())
    last = await busy()
    now = await relay.until(busy, lambda now: now.value() > last.value())  # a look behind the last bomb
    passed = {bound: now.above(bound) - looks.above(bound) for bound in ("0.025", "0.05", "0.075", STALL, "0.25")}
    swollen, all_together = rss(relay.daemon.pid) - resident, pss(relay.daemon.pid) - tree
    print(
        f"\nbombs: {ROUNDS * len(BOMBS):,}; looks at the event loop between which it was busy for more than so many"
        f" seconds: { {bound: round(count) for bound, count in passed.items()} } of {now.value() - looks.value():,.0f};"
        f" its thread slept for { {place: round(seconds, 3) for place, seconds in slept.items()} } seconds at most;"
        f" the daemon has grown by {swollen / 1e6:.1f} MB, with its workers by {all_together / 1e6:.1f} MB"
    )
    assert held_up(relay) == []
    assert max(slept.values(), default=0.0) < (float(STALL) if SOAK else BUSY)
    assert relay.daemon.errors == []
    if SOAK:
        assert passed[STALL] == 0
        assert swollen < GROWTH


@pytest.mark.parametrize(
    ("content", "answer"),
    [
        (b"A: b\r\n" * 1_001 + b"\r\nx\r\n", "552 5.3.4"),
        (b"From: " + b'"' * 300_000 + b"\r\n\r\nx\r\n", "552 5.3.4"),
        (b"Subject: x\r\n\r\n\0\r\n", "554 5.6.0"),
        (b"Subject: x\r\n\r\n" + b"\r" * 100_000 + b"\r\n", "554 5.6.0"),
    ],
    ids=["1,001 fields", "300 kB of quotes", "NUL", "bare CRs"],
)
@pytest.mark.parametrize("chunked", [False, True], ids=["DATA", "BDAT"])
async def test_what_goes_too_far_is_refused_at_the_end_of_the_message(
    content: bytes, answer: str, chunked: bool, relay: World
) -> None:
    async with await SmtpClient.hello(relay.daemon.smtp_port) as client:
        if chunked:
            assert (await client.mail_in_chunks(content[:100], content[100:], to=f"<{BASE}>")).short == answer
        else:
            assert (await client.mail(stuff(content) + b".\r\n", f"<{BASE}>")).short == answer


async def test_the_first_hundred_of_five_thousand_recipients_get_the_mail(relay: World) -> None:
    content = unique_letter()
    async with await SmtpClient.hello(relay.daemon.smtp_port) as client:
        recipients = b"".join(b"RCPT TO:<plus+%d@%s>\r\n" % (number, DOMAIN.encode()) for number in range(5_000))
        await client.send(b"MAIL FROM:<ann@customer.test>\r\n" + recipients)
        answers = Counter([(await client.answer()).short for _ in range(5_001)])
        assert answers == {"250 2.1.0": 1, "250 2.1.5": 100, "452 4.5.3": 4_900}
        assert (await client.chunk(content, last=True)).code == 250
    (received,) = await relay.arrived(content)
    assert received.recipients == ["plus@example.test"]
    assert len(await relay.rows("SELECT id FROM paths WHERE message_id = (SELECT max(id) FROM messages)")) == 100


async def test_megabytes_without_a_line_end_are_no_command_and_end_the_session(relay: World) -> None:
    async with await SmtpClient.hello(relay.daemon.smtp_port) as client:
        try:
            await client.send(b"MAIL FROM:<" + b"a" * 8_000_000)
        except OSError:
            pass  # cut off before the end
        assert (await client.answer()).short == "500 5.5.2"


async def test_who_talks_before_the_greeting_gains_nothing_by_it(relay: World) -> None:
    """He is served in order, for some old machines do so; but a message that comes before its 354 is none."""
    content = unique_letter()
    envelope = f"EHLO early.test\r\nMAIL FROM:<a@early.test>\r\nRCPT TO:<{BASE}>\r\n".encode()
    async with await SmtpClient.connect(relay.daemon.smtp_port) as client:
        await client.send(envelope + b"DATA\r\n" + stuff(content) + b".\r\nNOOP\r\n")
        assert [(await client.answer()).short for _ in range(5)] == [
            "220",
            "250",
            "250 2.1.0",
            "250 2.1.5",
            "554 5.5.0",
        ]
    async with await SmtpClient.connect(relay.daemon.smtp_port) as client:
        await client.send(envelope + bdat(content, last=True))
        assert [(await client.answer()).code for _ in range(5)] == [220, 250, 250, 250, 250]
    assert len(await relay.arrived(content)) == 1


# Messages in chunks


@pytest.mark.parametrize("size", [0, 1, 8_192, 300_000, 5_000_000])
async def test_a_message_in_chunks_is_forwarded_and_kept_octet_by_octet(size: int, relay: World) -> None:
    content = letter(
        f"chunks {size}", ".\r\n..\r\n" + (".line of text\r\n" * (size // 15 + 1))[:size].rstrip() + "\r\n"
    )
    async with await SmtpClient.hello(relay.daemon.smtp_port) as client:
        cut = [content[start : start + 8_192] for start in range(0, len(content), 8_192)]
        answer = await client.mail_in_chunks(*cut, to=f"<{BASE}>")
        assert answer.code == 250
    (received,) = await relay.arrived(content)
    assert b"with ESMTP " in received.content
    assert await relay.octets("GET", f"/v1/messages/{int(answer.text.rpartition(' ')[2])}/raw") == content
