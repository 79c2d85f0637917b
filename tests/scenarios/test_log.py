"""The canonical lines of the log: one for each session, message and attempt, with the fields that are documented."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.daemon import ROOT, Entry
from tests.scenarios.world import DOMAIN, unique_letter, world
from tests.smtp_client import SmtpClient

pytestmark = pytest.mark.scenario

BASE = f"plus@{DOMAIN}"
ALWAYS = {"event", "level", "timestamp"}


def documented() -> dict[str, set[str]]:
    """The fields of each line by its event, from the table of docs/operations.md."""
    text = (ROOT / "docs" / "operations.md").read_text()
    table = text.partition("| `event` | one line for | fields |\n")[2].partition("\n\n")[0]
    found = {}
    for row in table.splitlines()[1:]:
        event, _, fields = (cell.strip() for cell in row.strip("|").split("|"))
        outside = re.sub(r"\([^)]*\)", "", fields)  # what is in brackets explains
        found[event.strip("`")] = set(re.findall(r"`(\w+)`", outside))
    return found


def of(log: list[Entry], event: str, **fields: object) -> list[Entry]:
    return [
        entry
        for entry in log
        if entry.get("event") == event and all(entry.get(name) == value for name, value in fields.items())
    ]


def test_the_table_is_read() -> None:
    found = documented()
    assert found.keys() == {"ready", "SMTP session", "message", "message refused", "delivery", "post"}
    assert "session" in found["message"]
    assert "forwarded" not in found["delivery"]


async def test_each_session_message_and_attempt_has_one_line_with_the_documented_fields(tmp_path: Path) -> None:
    answers = ["450 4.2.1 later", "550 5.1.1 gone"]
    async with world(tmp_path, crm=[503, 200, 200]) as relay:
        fine = await relay.mail(await relay.shown(), unique_letter())
        await relay.forwarded(fine)
        await relay.daemon.logged("post", message=fine, status=503)
        await relay.daemon.logged("post", message=fine, state="delivered", attempt=2)
        relay.sink.script = {"rcpt": list(answers)}
        bad = await relay.mail(BASE, unique_letter())
        await relay.forwarded(bad, "deferred")
        await relay.retry_all()
        await relay.forwarded(bad, "failed")
        assert (await relay.answer(b"Subject: x\r\n\r\n\0\r\n", BASE)).code == 554
        async with await SmtpClient.hello(relay.daemon.smtp_port) as client:
            await client.command("MAIL FROM:<ann@customer.test>")
            assert (await client.command(f"RCPT TO:<nobody@{DOMAIN}>")).code == 550
        await relay.until(lambda: _sessions(relay.daemon.log), lambda count: count >= 4)
        log = list(relay.daemon.log)
    known = documented()
    for event, fields in known.items():
        entries = of(log, event)
        assert entries, event
        for entry in entries:
            assert entry.keys() - ALWAYS == fields, event
            assert entry.keys() >= ALWAYS
    assert len(of(log, "ready")) == 1
    assert [entry["id"] for entry in of(log, "message")] == [fine, bad]
    assert len(of(log, "message refused")) == 1
    assert [(one["message"], one["state"], one["attempt"]) for one in of(log, "delivery")] == [
        (fine, "forwarded", 1),
        (bad, "deferred", 1),
        (bad, "failed", 2),
    ]
    assert [(one["state"], one["attempt"]) for one in of(log, "post", message=fine)] == [
        ("waiting", 1),
        ("delivered", 2),
    ]
    sessions = of(log, "SMTP session")
    assert len({entry["session"] for entry in sessions}) == len(sessions) == 4
    for entry in (*of(log, "message"), *of(log, "message refused")):
        assert len(of(sessions, "SMTP session", session=entry["session"])) == 1


async def _sessions(log: list[Entry]) -> int:
    return len(of(log, "SMTP session"))
