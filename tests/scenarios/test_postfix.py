"""Debian's Postfix before us, as the MTA of a sender, and behind us, as the mail server we forward to."""

from __future__ import annotations

import asyncio
import json
import smtplib
from pathlib import Path

import pytest

from tests.certificates import Certificate
from tests.corpora import corpus
from tests.postfix import Postfix, mailboxes, offers_tls
from tests.scenarios.world import DOMAIN, World, letter, world
from tests.smtp_client import SmtpClient

pytestmark = pytest.mark.scenario

BASE = f"plus@{DOMAIN}"
CARD = f"card@{DOMAIN}"


def letters() -> list[bytes]:
    """Twenty that real MTAs send: 8-bit text and headers, long lines, lone dots, no body, a megabyte."""
    lines = "A line of some length, as people write them.\r\n"
    return [
        letter("short"),
        letter("no body", ""),
        letter("one line", "the end\r\n"),
        letter("8-bit text: naïve", "Grüße aus Köln, привет\r\n", "MIME-Version: 1.0"),
        letter("latin", "", "Content-Type: text/plain; charset=latin1") + "Grüße\r\n".encode("latin1"),
        letter("octets", "") + bytes(range(128, 256)) + b"\r\n",
        letter("a line of 998", "x" * 998 + "\r\n"),
        letter("a line of 1500", "y" * 1500 + "\r\n"),
        letter("a line of 20000", "z" * 20_000 + "\r\nend\r\n"),
        letter("long " + "subject " * 100),
        letter("dots", ".\r\n..\r\n...\r\n.text\r\n"),
        letter("dot at the end", "text\r\n.\r\n"),
        letter("only empty lines", "\r\n" * 50),
        letter("folded", "x\r\n", "X-Folded: one\r\n two\r\n\tthree"),
        letter("tabs and blanks", " \t \r\n\t\r\n  end  \r\n"),
        letter("From line", "From the beginning\r\n>From the end\r\n"),
        letter("100 kB", lines * 2200),
        letter("more than is kept in memory", lines * 8000),
        letter("a megabyte", lines * 22_000),
        letter("last"),
    ]


def submit(port: int, recipients: list[str], contents: list[bytes]) -> None:
    with smtplib.SMTP("127.0.0.1", port, local_hostname="desk.customer.test", timeout=30) as client:
        for content in contents:
            client.sendmail("ann@customer.test", recipients, content, ["BODY=8BITMIME"])


async def sent_by_postfix(relay: World, contents: list[bytes], *recipients: str, tls: bool = False) -> None:
    settings = {
        "relayhost": f"[127.0.0.1]:{relay.daemon.smtp_port}",
        "smtp_tls_security_level": "encrypt" if tls else "none",
    }
    async with Postfix(settings) as sender:
        await asyncio.to_thread(submit, sender.port, list(recipients), contents)
        try:
            for content in contents:
                await relay.arrived(content)
        except AssertionError as error:
            raise AssertionError(f"{error}; {sender.log[-3000:]}") from None


async def test_twenty_letters_from_postfix_arrive_at_the_next_hop_as_they_were(tmp_path: Path) -> None:
    async with world(tmp_path) as relay:
        contents = letters()
        assert len(contents) == 20
        await sent_by_postfix(relay, contents, BASE)
        assert len(relay.sink.accepted) == 20
        assert all(message.recipients == ["plus@example.test"] for message in relay.sink.accepted)


async def test_a_letter_from_postfix_to_several_substitutes_reaches_each_real_address_once(tmp_path: Path) -> None:
    async with world(tmp_path) as relay:
        content = letter("to several")
        substitute = await relay.shown("sales@example.test")
        await sent_by_postfix(relay, [content], BASE, CARD, substitute, f"plus+77@{DOMAIN}")
        arrived = await relay.arrived(content, 2)
        assert sorted(message.recipients[0] for message in arrived) == ["plus@example.test", "sales@example.test"]
        assert await relay.rows("SELECT count(*), (SELECT count(*) FROM paths) FROM messages") == [(1, 4)]


async def test_postfix_encrypts_to_us_when_we_have_a_certificate(tmp_path: Path) -> None:
    certificate = Certificate.make(tmp_path, "mx.track.test")
    settings = {"smtp": {"tls_cert": str(certificate.cert), "tls_key": str(certificate.key)}}
    async with world(tmp_path, settings) as relay:
        contents = letters()[:4]
        await sent_by_postfix(relay, contents, BASE, tls=True)
        versions = await relay.rows("SELECT tls FROM messages")
        assert [version.split()[0] for (version,) in versions] == ["TLSv1.3"] * 4
        assert all(b"with ESMTPS" in message.content for message in relay.sink.accepted)


@pytest.mark.parametrize("encrypted", [False, True], ids=["in plain text", "by STARTTLS"])
async def test_postfix_behind_us_delivers_the_letters_as_they_were_sent(encrypted: bool, tmp_path: Path) -> None:
    certificate = Certificate.make(tmp_path, "127.0.0.1")
    own = {"smtpd_tls_received_header": "yes", **(offers_tls(certificate, required=True) if encrypted else {})}
    async with Postfix({**mailboxes("example.test"), **own}) as server:
        forward = {"next_hop": f"smtp://127.0.0.1:{server.port}"}
        async with world(tmp_path, {"forward": forward}) as relay:
            contents = letters()
            for content in contents:
                await relay.mail(BASE, content)
            delivered = await server.delivered(20)
            assert all(any(message.endswith(content) for message in delivered) for content in contents)
            assert all((b"using TLSv1" in message) is encrypted for message in delivered)
            assert await relay.until(
                lambda: relay.rows("SELECT DISTINCT state FROM deliveries"), lambda rows: len(rows) == 1
            ) == [("forwarded",)]


async def test_no_smuggled_message_gets_through_us_to_a_postfix_that_takes_bare_line_feeds(tmp_path: Path) -> None:
    sequences = json.loads((corpus("smtp-smuggling") / "sequences.json").read_text())
    second = b"MAIL FROM:<evil@ext.test>\r\nRCPT TO:<plus@example.test>\r\nDATA\r\nSubject: second\r\n\r\nsmuggled\r\n"
    settings = {**mailboxes("example.test"), "smtpd_forbid_bare_newline": "no", "smtpd_forbid_unauth_pipelining": "no"}
    async with (
        Postfix(settings) as server,
        world(tmp_path, {"forward": {"next_hop": f"smtp://127.0.0.1:{server.port}"}}) as relay,
    ):
        taken = 0
        for number, sequence in enumerate(sequences):
            first = b"Subject: first %d\r\n\r\nbefore" % number
            async with await SmtpClient.hello(relay.daemon.smtp_port) as client:
                answer = await client.mail(first + bytes.fromhex(sequence["hex"]) + second + b".\r\n", f"<{BASE}>")
                assert (await client.command("NOOP")).code == 250  # nothing of it was taken for a command
                assert answer.short in ("250 2.0.0", "554 5.6.0")
                taken += answer.code == 250
        assert 0 < taken < 12
        await relay.mail(BASE, letter("last"))
        delivered = await server.delivered(taken + 1)
        assert len(delivered) == taken + 1
        assert sum(b"\r\n\r\nbefore" in message and b"smuggled" in message for message in delivered) == taken


async def test_a_recipient_that_postfix_refuses_is_held_with_its_answer(tmp_path: Path) -> None:
    settings = {**mailboxes("other.test"), "smtpd_relay_restrictions": "reject_unauth_destination"}
    async with (
        Postfix(settings) as server,
        world(tmp_path, {"forward": {"next_hop": f"smtp://127.0.0.1:{server.port}"}}) as relay,
    ):
        message = await relay.mail(BASE, letter("refused"))
        entry = await relay.forwarded(message, "failed")
        assert entry["code"] == 554
        assert "Relay access denied" in entry["answer"]
