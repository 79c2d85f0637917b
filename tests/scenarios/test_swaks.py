"""swaks, as an operator tries the daemon out with it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests import swaks
from tests.certificates import Certificate
from tests.scenarios.world import DOMAIN, World, letter, unique_letter, world

pytestmark = [pytest.mark.scenario, pytest.mark.asyncio(loop_scope="module")]

TO = ["--to", f"plus+123456@{DOMAIN}"]
LARGEST = 3_000_000


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def relay(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    swaks.require()
    directory = tmp_path_factory.mktemp("swaks")
    certificate = Certificate.make(directory, "mx.track.test")
    smtp = {"tls_cert": str(certificate.cert), "tls_key": str(certificate.key), "max_message_size": LARGEST}
    async with world(directory, {"smtp": smtp}) as made:
        yield made


async def send(relay: World, directory: Path, content: bytes, *arguments: str) -> swaks.Session:
    data = swaks.message_file(directory, content)
    return await swaks.swaks(relay.daemon.smtp_port, *TO, "--data", data, *arguments)


async def test_a_plain_message_is_taken_and_forwarded(relay: World, tmp_path: Path) -> None:
    content = unique_letter()
    session = await send(relay, tmp_path, content)
    assert session.code == 0, session.transcript
    await relay.arrived(content)


async def test_a_message_over_starttls_is_taken_and_history_knows_the_cipher(relay: World, tmp_path: Path) -> None:
    swaks.require(tls=True)
    content = unique_letter()
    session = await send(relay, tmp_path, content, "--tls")
    assert session.code == 0, session.transcript
    assert "TLS started with cipher" in session.transcript
    (received,) = await relay.arrived(content)
    assert b"with ESMTPS" in received.content
    assert (await relay.row("SELECT tls FROM messages ORDER BY id DESC"))[0].startswith("TLSv1.")


async def test_pipelined_commands_are_all_answered_in_order(relay: World, tmp_path: Path) -> None:
    content = unique_letter()
    session = await send(relay, tmp_path, content, "--pipeline")
    assert session.code == 0, session.transcript
    assert [reply for reply in session.replies if reply[:3] != "250" or "2." in reply][:4] == [
        "220 mx.track.test ESMTP",
        "250 2.1.0 Sender OK",
        "250 2.1.5 Recipient OK",
        "354 End data with <CR><LF>.<CR><LF>",
    ]
    await relay.arrived(content)


@pytest.mark.parametrize("size", [0, 1, 70_000, 262_144, 262_145, 2_500_000])
async def test_messages_of_every_size_arrive_whole(size: int, relay: World, tmp_path: Path) -> None:
    line = "0123456789" * 7 + "\r\n"
    content = letter(f"{size} octets", (line * (size // len(line) + 1))[:size].rstrip("\r\n") + "\r\n")
    session = await send(relay, tmp_path, content)
    assert session.code == 0, session.transcript
    await relay.arrived(content)


async def test_a_message_beyond_the_limit_gets_552(relay: World, tmp_path: Path) -> None:
    session = await send(relay, tmp_path, letter("too big", ("x" * 998 + "\r\n") * (LARGEST // 1000 + 1)))
    assert session.code == 26, session.transcript[-2000:]
    assert "552 5.3.4 Message too big" in session.replies


async def test_an_unknown_recipient_gets_550_and_the_session_goes_on(relay: World) -> None:
    session = await swaks.swaks(relay.daemon.smtp_port, "--to", f"nobody@{DOMAIN}")
    assert session.code == 24
    assert "550 5.1.1 No such recipient here" in session.replies
    assert session.replies[-1] == "221 2.0.0 Bye"


async def test_a_strangers_domain_gets_the_same_550(relay: World) -> None:
    session = await swaks.swaks(relay.daemon.smtp_port, "--to", "someone@elsewhere.example")
    assert session.code == 24
    assert "550 5.1.1 No such recipient here" in session.replies


async def test_one_unknown_recipient_does_not_stop_the_others(relay: World, tmp_path: Path) -> None:
    content = unique_letter()
    data = swaks.message_file(tmp_path, content)
    both = ["--to", f"nobody@{DOMAIN},{TO[1]}"]
    session = await swaks.swaks(relay.daemon.smtp_port, *both, "--data", data)
    assert session.code == 0, session.transcript
    assert "550 5.1.1 No such recipient here" in session.replies
    await relay.arrived(content)
