"""The log's canonical lines are as docs/operations.md says: one for each thing, with these fields and no others."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

from tests.daemon import ROOT, Entry
from tests.missing import missing
from tests.runbook import block
from tests.scenarios.world import DOMAIN, SECRET, letter, site, target, world
from tests.smtp_client import SmtpClient
from tests.webhook_receiver import Post, Receiver, Step, retry_after

pytestmark = pytest.mark.scenario

TABLE = "| `event` | one line for | fields |\n"
_ROW = re.compile(r"\| `([^`]+)` \| [^|]+ \| ([^|]+) \|").fullmatch
#: What every line has, by the sentence above the table.
ALWAYS = {"event", "level", "timestamp"}
#: What tells lines of one kind apart: a second one of the same would be one too many.
THING = {
    "ready": (),
    "SMTP session": ("session",),
    "message": ("session", "id"),
    "message refused": ("session",),
    "delivery": ("id", "attempt"),
    "post": ("webhook", "uid", "attempt"),
}
TO = f"plus+17@{DOMAIN}"


def promised() -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """By event: its fields; and the states that it can have."""
    fields, states = dict[str, set[str]](), dict[str, set[str]]()
    table = (ROOT / "docs" / "operations.md").read_text("utf-8").partition(TABLE)[2].partition("\n\n")[0]
    for line in table.splitlines()[1:]:
        row = _ROW(line)
        assert row is not None, line
        event, listed = row.groups()
        fields[event] = set(re.findall(r"`(\w+)`", re.sub(r"\([^)]*\)", "", listed)))
        states[event] = set(re.findall(r"`(\w+)`", "".join(re.findall(r"`state` \(([^)]*)\)", listed))))
    return fields, states


def answered(post: Post) -> Step:
    if "not now" in post.json["subject"]:
        return retry_after(503, "3600")  # and not once more while the test goes on
    return 410 if "nevermore" in post.json["subject"] else 200


def hooks(crm: Receiver) -> list[dict[str, Any]]:
    """The second one can post nothing: a letter to nobody's visit has no client id of Google's."""
    google = {"measurement_id": "G-TEST", "api_secret": "hush hush"}
    return [
        {"url": crm.url, "secret": SECRET},
        {"url": crm.at("/mp/collect"), "secret": SECRET, "template": "ga4", "variables": google},
    ]


async def test_each_thing_has_one_line_with_the_fields_that_the_document_lists(tmp_path: Path) -> None:
    fields, states = promised()
    plus = site(target("plus@example.test", "plus"))
    async with world(tmp_path, sites=(plus,), crm=answered, hook=hooks) as relay:

        async def send(subject: str, delivery: str = "forwarded", post: str = "delivered", **script: str) -> int:
            relay.sink.script = dict(script)
            message = await relay.mail(TO, letter(subject))
            await relay.forwarded(message, delivery)
            await relay.daemon.logged("post", message=message, webhook=1, state=post)
            await relay.daemon.logged("post", message=message, webhook=2, state="withheld")
            return message

        first = await send("it goes through")
        assert await relay.mail(TO, letter("it goes through")) == first  # resent
        deferred = await send("it is put off", "deferred", rcpt="450 4.2.1 later")
        relay.sink.script = {}
        await relay.retry_all()
        await relay.forwarded(deferred)
        await send("it is held", "failed", rcpt="550 5.1.1 no")
        await send("the CRM is not now there", post="waiting")
        refused = await relay.answer(b"A: b\r\n" * 1_001 + b"\r\nx\r\n", TO)
        assert refused.code == 552
        async with await SmtpClient.hello(relay.daemon.smtp_port) as client:  # a session without a message
            await client.command("MAIL FROM:<ann@customer.test>")
            assert (await client.command(f"RCPT TO:<nobody@{DOMAIN}>")).code == 550
        await send("the CRM is there nevermore", post="failed")
    lines: dict[str, list[Entry]] = defaultdict(list)
    for entry in relay.daemon.log:
        lines[entry["event"]].append(entry)
    assert {event: len(lines[event]) for event in fields} == {
        "ready": 1,
        "SMTP session": 8,
        "message": 6,
        "message refused": 1,
        "delivery": 6,  # the one that was put off has two
        "post": 10,
    }
    for event, named in fields.items():
        for entry in lines[event]:
            assert entry.keys() == named | ALWAYS, event
            assert entry["level"] == ("info" if entry.get("state") in (None, "forwarded", "delivered") else "warning")
        things = Counter(tuple(entry[key] for key in THING[event]) for entry in lines[event])
        assert set(things.values()) == {1}, event
        assert {entry["state"] for entry in lines[event] if states[event]} == states[event]
    sessions = {entry["session"] for entry in lines["SMTP session"] if entry["commands"] > 3}
    assert {entry["session"] for event in ("message", "message refused") for entry in lines[event]} == sessions
    assert {entry["message"] for entry in lines["delivery"]} == {entry["id"] for entry in lines["message"]}
    assert {entry["message"] for entry in lines["post"]} == {entry["id"] for entry in lines["message"]}
    assert [entry["resent"] for entry in lines["message"]] == [False, True, False, False, False, False]


def test_a_letter_is_followed_through_the_log_by_the_command_of_the_documentation() -> None:
    if shutil.which("jq") is None:
        missing("NOT TESTED: a letter followed through the log: no jq (apt-get install jq)")
    command = block("So a letter is followed by").removeprefix("journalctl -u relay -o cat | ")
    its = [
        {"event": "message", "id": 4711, "session": "c57bc38a"},
        {"event": "delivery", "id": 17, "message": 4711},
        {"event": "post", "webhook": 1, "message": 4711},
    ]
    others = [{"event": "message", "id": 17}, {"event": "delivery", "id": 4711, "message": 17}]
    log = "".join(f"{json.dumps(entry)}\n" for entry in its + others)
    done = subprocess.run(["sh", "-c", command], input=f"Traceback\n{log}", capture_output=True, text=True, check=True)
    assert [json.loads(line) for line in done.stdout.splitlines()] == its
