"""Debian's Postfix before us, as the MTA of a sender, and behind us, as the mail server we forward to."""

from __future__ import annotations

import asyncio
import json
import smtplib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import pytest
import pytest_asyncio

from tests.certificates import Certificate
from tests.corpora import corpus
from tests.dkim_signatures import LETTERS, WAYS, Signer, published, verdicts
from tests.postfix import Postfix, mailboxes, offers_tls
from tests.scenarios.test_corpora import as_sent
from tests.scenarios.world import DOMAIN, World, letter, site, target, unique_letter, world
from tests.smtp_client import SmtpClient

pytestmark = [pytest.mark.scenario, pytest.mark.asyncio(loop_scope="module")]

BASE = f"plus@{DOMAIN}"
CARD = f"card@{DOMAIN}"
SITE = site(
    target("sales@example.test", "unique"),
    target("plus@example.test", "plus"),
    static=[{"address": CARD, "target": "sales@example.test", "label": "business card"}],
)


@dataclass
class Mta:
    """A daemon with a certificate, and what is behind it besides the sink: Postfixes, one for each of these names.

    ``plain``, ``encrypted`` (requires STARTTLS), ``lax`` (takes bare line feeds), ``refusing`` (takes nothing).
    """

    relay: World
    behind: dict[str, Postfix]

    def address(self, name: str) -> str:
        """The substitute whose mail goes to that Postfix."""
        return f"{name}@{DOMAIN}"


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def mta(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Mta]:
    directory = tmp_path_factory.mktemp("postfix")
    certificate = Certificate.make(directory, "127.0.0.1")
    boxes, shown = mailboxes("example.test"), {"smtpd_tls_received_header": "yes"}
    settings = {
        "plain": boxes | shown,
        "encrypted": boxes | shown | offers_tls(certificate, required=True),
        "lax": boxes | {"smtpd_forbid_bare_newline": "no", "smtpd_forbid_unauth_pipelining": "no"},
        "refusing": {"smtpd_relay_restrictions": "reject_unauth_destination"},
    }
    async with AsyncExitStack() as stack:
        behind = {name: await stack.enter_async_context(Postfix(own)) for name, own in settings.items()}
        hops = [
            target(f"{name}@example.test", "plus", next_hop=f"smtp://127.0.0.1:{server.port}")
            for name, server in behind.items()
        ]
        smtp = {"tls_cert": str(certificate.cert), "tls_key": str(certificate.key)}
        sites = [{**SITE, "target": [*SITE["target"], *hops]}]
        yield Mta(await stack.enter_async_context(world(directory, {"smtp": smtp}, sites=sites)), behind)


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


async def test_twenty_letters_from_postfix_arrive_at_the_next_hop_as_they_were(mta: Mta) -> None:
    contents = letters()
    assert len(contents) == 20
    await sent_by_postfix(mta.relay, contents, BASE)
    for content in contents:
        (received,) = await mta.relay.arrived(content)
        assert received.recipients == ["plus@example.test"]
        assert b"with ESMTP " in received.content


async def test_a_letter_from_postfix_to_several_substitutes_reaches_each_real_address_once(mta: Mta) -> None:
    content = unique_letter()
    substitute = await mta.relay.shown("sales@example.test")
    await sent_by_postfix(mta.relay, [content], BASE, CARD, substitute, f"plus+77@{DOMAIN}")
    arrived = await mta.relay.arrived(content, 2)
    assert sorted(message.recipients[0] for message in arrived) == ["plus@example.test", "sales@example.test"]
    assert len(await mta.relay.rows("SELECT id FROM paths WHERE message_id = (SELECT max(id) FROM messages)")) == 4


async def test_postfix_encrypts_to_us_when_it_is_told_to(mta: Mta) -> None:
    contents = [unique_letter() for _ in range(4)]
    await sent_by_postfix(mta.relay, contents, BASE, tls=True)
    for content in contents:
        (received,) = await mta.relay.arrived(content)
        assert b"with ESMTPS" in received.content
    versions = await mta.relay.rows("SELECT tls FROM messages ORDER BY id DESC LIMIT 4")
    assert [version.split()[0] for (version,) in versions] == ["TLSv1.3"] * 4


@pytest.mark.parametrize("name", ["plain", "encrypted"])
async def test_postfix_behind_us_delivers_the_letters_as_they_were_sent(name: str, mta: Mta) -> None:
    contents = letters()
    messages = [await mta.relay.mail(mta.address(name), content) for content in contents]
    delivered = await mta.behind[name].delivered(20)
    assert all(any(message.endswith(content) for message in delivered) for content in contents)
    assert all((b"using TLSv1" in message) is (name == "encrypted") for message in delivered)
    for message in messages:
        await mta.relay.forwarded(message)


async def at_both_ends(mta: Mta, mark: bytes, contents: list[bytes]) -> tuple[list[bytes], list[bytes]]:
    """What has ``mark`` in its header, as Postfix has delivered it and as our next hop got it, once all is there."""

    def marked(messages: list[bytes]) -> list[bytes]:
        return [message for message in messages if mark in message.partition(b"\r\n\r\n")[0]]

    for content in contents:
        await mta.relay.mail(mta.address("plain"), content, BASE)
    delivered = await mta.behind["plain"].delivered(len(contents))
    while len(marked(delivered)) < len(contents):
        delivered = await mta.behind["plain"].delivered(len(delivered) + 1)
    arrived = await mta.relay.arrived(b"")
    while len(marked([received.content for received in arrived])) < len(contents):
        arrived = await mta.relay.arrived(b"", len(arrived) + 1)
    return marked(delivered), marked([received.content for received in arrived])


def changed(message: bytes, at: int) -> bytes:
    """With another octet there."""
    return message[:at] + bytes([message[at] ^ 1]) + message[at + 1 :]


async def test_what_was_signed_verifies_behind_postfix_and_at_the_next_hop(mta: Mta) -> None:
    signer = Signer(b"twenty")
    for ends in await at_both_ends(mta, b" s=twenty;", [signer.signed(content) for content in letters()]):
        assert [verdicts(message, signer.keys) for message in ends] == [[True] * len(WAYS)] * 20


async def test_another_octet_ends_every_signature(mta: Mta) -> None:
    """So that the test before is known to test something."""
    signer = Signer(b"one")
    (message,), _ = await at_both_ends(mta, b" s=one;", [signer.signed(letter("dots", "..text\r\n\r\n"))])
    for signed in (b"\r\nSubject: ", b"\r\n\r\n"):
        assert verdicts(changed(message, message.index(signed) + len(signed)), signer.keys) == [False] * len(WAYS)
    # What is added behind what l= counts is not signed.
    assert verdicts(message + b"added\r\n", signer.keys) == [length for _, length in WAYS]


async def test_what_others_have_signed_verifies_behind_postfix_and_at_the_next_hop(mta: Mta) -> None:
    keys = published(LETTERS / "08-our_signature.dns")
    contents = [as_sent(path.read_bytes()) for path in LETTERS.glob("*.msg")]
    for ends in await at_both_ends(mta, b" s=brisbane;", contents):
        assert [verdicts(message, keys) for message in ends] == [[True] * 3] * 2


@pytest.mark.parametrize("chunked", [False, True], ids=["DATA", "BDAT"])
async def test_no_smuggled_message_gets_through_us_to_a_postfix_that_takes_bare_line_feeds(
    chunked: bool, mta: Mta
) -> None:
    sequences = json.loads((corpus("smtp-smuggling") / "sequences.json").read_text())
    assert len(sequences) == 12
    second = b"MAIL FROM:<evil@ext.test>\r\nRCPT TO:<plus@example.test>\r\nDATA\r\nSubject: second\r\n\r\nsmuggled\r\n"
    to, taken = f"<{mta.address('lax')}>", 0
    for number, sequence in enumerate(sequences):
        message = b"Subject: first %d %d\r\n\r\nbefore" % (chunked, number) + bytes.fromhex(sequence["hex"]) + second
        async with await SmtpClient.hello(mta.relay.daemon.smtp_port) as client:
            if chunked:
                answer = await client.mail_in_chunks(message[:40], message[40:], to=to)
            else:
                answer = await client.mail(message + b".\r\n", to)
            assert (await client.command("NOOP")).code == 250  # nothing of it was taken for a command
            assert answer.short in ("250 2.0.0", "554 5.6.0")
            taken += answer.code == 250
    assert 0 < taken < 12
    last = unique_letter()
    await mta.relay.mail(mta.address("lax"), last)
    delivered = await mta.behind["lax"].delivered(taken + 1)
    while not any(message.endswith(last) for message in delivered):
        delivered = await mta.behind["lax"].delivered(len(delivered) + 1)
    delivered = [message for message in delivered if b"\r\nSubject: first %d " % (not chunked) not in message]
    assert len(delivered) - sum(b"Subject: letter" in message for message in delivered) == taken
    assert sum(b"\r\n\r\nbefore" in message and b"smuggled" in message for message in delivered) == taken


async def test_letters_that_come_in_chunks_are_delivered_by_postfix_as_they_were_sent(mta: Mta) -> None:
    """Postfix takes BDAT but never sends it: so the client is ours."""
    contents = [b"X-Way: in chunks\r\n" + content for content in letters()]
    async with await SmtpClient.hello(mta.relay.daemon.smtp_port) as client:
        for number, content in enumerate(contents):
            cuts = [content[start : start + 1 + 777 * number] for start in range(0, len(content), 1 + 777 * number)]
            assert (await client.mail_in_chunks(*cuts, to=f"<{mta.address('plain')}>")).code == 250
    delivered = await mta.behind["plain"].delivered(len(contents))
    while sum(b"\r\nX-Way: in chunks\r\n" in message for message in delivered) < len(contents):
        delivered = await mta.behind["plain"].delivered(len(delivered) + 1)
    assert all(sum(message.endswith(content) for message in delivered) == 1 for content in contents)


async def test_a_recipient_that_postfix_refuses_is_held_with_its_answer(mta: Mta) -> None:
    message = await mta.relay.mail(mta.address("refusing"), unique_letter())
    entry = await mta.relay.forwarded(message, "failed")
    assert entry["code"] == 554
    assert "Relay access denied" in entry["answer"]
