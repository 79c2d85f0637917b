"""Exim and OpenSMTPD behind us, as the mail servers we forward to: what they deliver is what was sent, each once."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import pytest
import pytest_asyncio

from tests.corpora import corpus
from tests.mail_servers import EXIM, OPENSMTPD, MailServer
from tests.scenarios.test_postfix import letters
from tests.scenarios.world import DOMAIN, World, letter, site, target, unique_letter, world
from tests.smtp_client import SmtpClient

pytestmark = [pytest.mark.scenario, pytest.mark.asyncio(loop_scope="module")]

KINDS = {kind.name: kind for kind in (EXIM, OPENSMTPD)}
#: What OpenSMTPD adds where it is missing.
DATED = b"Date: Tue, 1 Dec 2026 10:00:00 +0000\r\nMessage-ID: <1@customer.test>\r\n"
#: What they take for the end of data where the first line ended in a bare LF, which makes Exim lax.
TAKEN_FOR_THE_END = {
    "exim": [b"\n.\n", b"\n.\r\n", b"\r\n.\n"],
    "opensmtpd": [b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r\n.\0\r\n"],
}


@dataclass
class Behind:
    """A daemon, and the servers behind it by name: ``exim``, and ``exim-few`` that takes little, as Kind.few says."""

    relay: World
    servers: dict[str, MailServer]

    def address(self, name: str) -> str:
        """The substitute whose mail goes to that server."""
        return f"{name}@{DOMAIN}"


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def behind(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Behind]:
    async with AsyncExitStack() as stack:
        servers = {
            name + suffix: await stack.enter_async_context(MailServer(kind, settings))
            for name, kind in KINDS.items()
            for suffix, settings in (("", kind.many), ("-few", kind.few))
        }
        hops = [
            target(f"{name}@example.test", "plus", next_hop=f"smtp://127.0.0.1:{server.port}")
            for name, server in servers.items()
        ]
        yield Behind(
            await stack.enter_async_context(world(tmp_path_factory.mktemp("relay"), sites=[site(*hops)])), servers
        )


def sequences() -> list[bytes]:
    entries = json.loads((corpus("smtp-smuggling") / "sequences.json").read_text())
    assert len(entries) == 12
    return [bytes.fromhex(entry["hex"]) for entry in entries]


@pytest.mark.parametrize("name", KINDS)
async def test_each_takes_some_sequences_for_the_end_when_they_come_without_us(name: str, behind: Behind) -> None:
    """So that the next test is known to test something."""
    for sequence in sequences():
        async with await SmtpClient.hello(behind.servers[name].port) as client:
            assert (await client.start("<direct@example.test>")).code == 354
            await client.send(b"Subject: direct\n" + DATED.replace(b"\r\n", b"\n") + b"\nbefore" + sequence)
            if sequence not in TAKEN_FOR_THE_END[name]:
                await client.send(b"QUIT\r\n.\r\n")
            assert (await client.answer()).code == 250
            assert (await client.command("NOOP")).code == 250


@pytest.mark.parametrize("chunked", [False, True], ids=["DATA", "BDAT"])
@pytest.mark.parametrize("name", KINDS)
async def test_no_smuggled_message_gets_through_us(name: str, chunked: bool, behind: Behind) -> None:
    server, to, taken = behind.servers[name], f"<{behind.address(name)}>", 0
    commands = b"MAIL FROM:<evil@ext.test>\r\nRCPT TO:<victim@example.test>\r\nDATA\r\n"
    second = b"Subject: second\r\n\r\nsmuggled %d\r\n" % chunked
    for number, sequence in enumerate(sequences() * 2):
        head = b"Subject: first %d %d\r\n%b\r\n" % (chunked, number, DATED)
        message = head + b"before" + sequence + (commands if number < 12 else commands.lower()) + second
        async with await SmtpClient.hello(behind.relay.daemon.smtp_port) as client:
            if chunked:
                answer = await client.mail_in_chunks(message[: len(head) + 7], message[len(head) + 7 :], to=to)
            else:
                answer = await client.mail(message + b".\r\n", to)
            assert (await client.command("NOOP")).code == 250  # nothing of it was taken for a command
        assert answer.short in ("250 2.0.0", "554 5.6.0")
        if answer.code == 250:
            taken += 1
            await behind.relay.forwarded(int(answer.text.rpartition(" ")[2]))
            lines = (message if chunked else message.replace(b"\r\n.", b"\r\n")).replace(b"\r\n", b"\n")
            await server.delivered(lines.replace(b"\n", b"\r\n"))
    assert taken == 6  # of the three that are made of LF alone
    last = unique_letter()
    await behind.relay.mail(behind.address(name), last)
    delivered = await server.delivered(last.partition(b"\r\n\r\n")[2])
    assert sum(message.endswith(second) for message in delivered) == taken
    assert not any(b"evil@ext.test" in message.partition(b"\r\n\r\n")[0] for message in delivered)


@pytest.mark.parametrize("name", KINDS)
async def test_twenty_letters_are_delivered_as_they_were_sent(name: str, behind: Behind) -> None:
    contents = [DATED + content for content in letters()]
    for content in contents:  # one by one: OpenSMTPD has five connections wait to be accepted, and forgets the others
        await behind.relay.forwarded(await behind.relay.mail(behind.address(name), content))
    delivered = await behind.servers[name].delivered(*contents)
    assert all(sum(message.endswith(content) for message in delivered) == 1 for content in contents)


@pytest.mark.parametrize("name", KINDS)
async def test_a_server_that_takes_three_messages_a_connection_gets_all_of_them(name: str, behind: Behind) -> None:
    contents = [DATED + letter(f"{name} {number}") for number in range(20)]
    for content in contents:
        message = await behind.relay.mail(behind.address(f"{name}-few"), content)
        await behind.relay.forwarded(message)  # so that the next one finds a kept connection
    delivered = await behind.servers[f"{name}-few"].delivered(*contents)
    assert len(delivered) == len(contents)


@pytest.mark.parametrize("name", KINDS)
async def test_a_letter_that_is_too_large_is_held_with_the_answer(name: str, behind: Behind) -> None:
    content = DATED + letter("too large", ("y" * 70 + "\r\n") * 400)
    message = await behind.relay.mail(behind.address(f"{name}-few"), content)
    entry = await behind.relay.forwarded(message, "failed")
    assert entry["answer"].startswith("MAIL: 552 " if name == "exim" else "end of data: 554 5.3.4 ")
