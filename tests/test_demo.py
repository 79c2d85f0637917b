"""`relay demo`, all of it together, without a browser (tests/browser/test_demo.py); its parts: test_demo_parts.py."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
import shutil
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from relay.demo import Demo, _introduction, demo_running
from relay.demo.letter import Attachment, Letter, send
from relay.demo.settings import CARD, free_port, listening
from relay.store.store import DATABASE
from tests.smtp_client import PATIENCE, SmtpClient

ROOT = Path(__file__).parent.parent
LETTER = Letter("Ann <ann@visitor.example>", CARD, "Twelve windows", "Hello")


@contextlib.asynccontextmanager
async def demo_on_free_ports(folder: Path | None = None) -> AsyncIterator[Demo]:
    """A demo far away from the ports that a person's own would take."""
    async with demo_running(folder, page_port=28080, smtp_port=22525) as demo:
        yield demo


async def shown(
    demo: Demo, kind: Any, count: int = 1, when: Callable[[dict[str, Any]], bool] = bool
) -> list[dict[str, Any]]:
    """What the board shows of a kind, once there are so many and ``when`` holds for the newest."""
    async with asyncio.timeout(PATIENCE), contextlib.aclosing(demo.board.follow(PATIENCE)) as changes:
        async for _ in changes:
            contents = [entry.content for entry in demo.board.shown(kind)]
            if len(contents) >= count and when(contents[-1]):
                return contents
    raise AssertionError("the board was closed")


@pytest.fixture
async def demo() -> AsyncIterator[Demo]:
    async with demo_on_free_ports() as demo:
        yield demo


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def untouched() -> AsyncIterator[Demo]:
    """One for all tests that leave it as it was."""
    async with demo_on_free_ports() as demo:
        yield demo


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def used() -> AsyncIterator[Demo]:
    """One for tests that send it a letter each and look for nothing but that."""
    async with demo_on_free_ports() as demo:
        yield demo


@pytest_asyncio.fixture(loop_scope="module")
async def visitor() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def test_a_letter_from_the_form_reaches_mailbox_history_and_crm_with_its_visit(
    demo: Demo, http: aiohttp.ClientSession
) -> None:
    page = f"{demo.url}?utm_source=google&utm_medium=cpc"
    asked = {"site": "pk_demo", "visit": None, "page": page, "addresses": ["sales@example.com"]}
    headers = {"Origin": demo.ports.page_url, "Content-Type": "text/plain"}
    async with http.post(f"{demo.ports.http_url}/v1/bind", data=json.dumps(asked), headers=headers) as answer:
        bound = await answer.json()
    to = bound["addresses"]["sales@example.com"]
    async with http.get(f"{demo.url}events") as events:  # the History is only asked while somebody looks
        assert (await events.content.readline()) == b"event: hello\n"
        form = {"from": "Ann <ann@visitor.example>", "to": to, "subject": "Windows", "text": "Hello"}
        async with http.post(f"{demo.url}send", data=form, headers={"Origin": demo.ports.page_url}) as answer:
            sent = await answer.json()
        assert answer.status == 200
        assert sent["reply"] == f"250 2.0.0 Queued as {sent['message']}"
        mail = (await shown(demo, "mail"))[0]
        deal = (await shown(demo, "crm"))[0]
        (item,) = await shown(demo, "history", when=lambda one: bool(one["deal"]["id"]) and one["state"] == "forwarded")
    assert (mail["message"], mail["subject"], mail["delivered_to"]) == (
        sent["message"],
        "Windows",
        ["sales@example.com"],
    )
    assert {"name": "X-Visit-Id", "value": bound["visit"], "ours": True} in mail["fields"]
    assert (deal["payload"]["visit_id"], deal["payload"]["marker"]) == (bound["visit"], "google_cpc")
    assert (item["visit"], item["subject"], item["attribution"]["state"]) == (bound["visit"], "Windows", "exact")
    assert item["deal"]["id"] == deal["answer"]["deal_id"]


@pytest.mark.asyncio(loop_scope="module")
async def test_a_mail_from_a_terminal_to_the_business_card_becomes_a_deal(used: Demo) -> None:
    async with await SmtpClient.hello(used.ports.smtp) as client:
        wire = b"From: ann@visitor.example\r\nSubject: From the card\r\n\r\nHello\r\n.\r\n"
        assert (await client.mail(wire, f"<{CARD}>")).short == "250 2.0.0"
    deal = (await shown(used, "crm", when=lambda one: bool(one["payload"]["subject"] == "From the card")))[-1]
    assert (deal["payload"]["marker"], deal["payload"]["visit_id"]) == ("business card", None)


@pytest.mark.asyncio(loop_scope="module")
async def test_the_swaks_command_that_is_printed_works_as_it_is(used: Demo) -> None:
    if shutil.which("swaks") is None:
        pytest.skip("NOT TESTED: the printed swaks command, for there is no swaks on this machine")
    command = next(line for line in _introduction(used).splitlines() if line.startswith("  swaks "))
    process = await asyncio.create_subprocess_exec(*shlex.split(command), stdout=asyncio.subprocess.DEVNULL)
    assert await process.wait() == 0
    deal = (await shown(used, "crm", when=lambda one: one["payload"]["subject"].startswith("test ")))[-1]
    assert deal["payload"]["marker"] == "business card"


@pytest.mark.asyncio(loop_scope="module")
async def test_a_large_mail_is_shown_and_its_file_removed(used: Demo) -> None:
    letter = Letter("ann@visitor.example", CARD, "Large", "", Attachment("plan.bin", "", os.urandom(1 << 20)))
    await asyncio.to_thread(send, letter, used.ports.smtp)
    mail = (await shown(used, "mail", when=lambda one: bool(one["subject"] == "Large")))[-1]
    assert mail["attachments"] == [{"name": "plan.bin", "size": 1 << 20, "type": "application/octet-stream"}]
    assert list((used.data_dir / "mailbox").iterdir()) == []


@pytest.mark.asyncio(loop_scope="module")
async def test_the_mailbox_is_for_its_own_domain_only(untouched: Demo) -> None:
    async with await SmtpClient.hello(untouched.ports.mailbox) as client:
        await client.command("MAIL FROM:<ann@visitor.example>")
        assert (await client.command("RCPT TO:<someone@example.net>")).short == "550 5.1.1"


@pytest.mark.asyncio(loop_scope="module")
async def test_what_the_mail_server_says_is_told_to_the_sender(untouched: Demo, visitor: aiohttp.ClientSession) -> None:
    form = {"from": "ann@visitor.example", "to": "nobody@track.example.com"}
    async with visitor.post(f"{untouched.url}send", data=form) as answer:
        told = await answer.json()
    assert (answer.status, told["field"]) == (502, "to")
    assert "550 5.1.1" in told["error"]


@pytest.mark.parametrize(
    ("body", "field"),
    [({"data": {"from": "x", "to": CARD}}, "from"), ({"json": {}}, "text"), ({"data": b"x" * 100}, "text")],
)
@pytest.mark.asyncio(loop_scope="module")
async def test_a_bad_form_is_answered_with_the_field_to_correct(
    untouched: Demo, visitor: aiohttp.ClientSession, body: dict[str, Any], field: str
) -> None:
    async with visitor.post(f"{untouched.url}send", **body) as answer:
        assert (answer.status, (await answer.json())["field"]) == (400, field)
    assert untouched.board.shown("letter") == []


@pytest.mark.asyncio(loop_scope="module")
async def test_a_file_where_a_text_should_be_is_answered_with_its_field(
    untouched: Demo, visitor: aiohttp.ClientSession
) -> None:
    form = aiohttp.FormData()
    form.add_field("from", b"x", filename="from.txt")
    async with visitor.post(f"{untouched.url}send", data=form) as answer:
        assert (answer.status, (await answer.json())["field"]) == (400, "from")


@pytest.mark.asyncio(loop_scope="module")
async def test_another_website_can_neither_send_nor_read(untouched: Demo, visitor: aiohttp.ClientSession) -> None:
    form = {"from": "ann@visitor.example", "to": CARD}
    async with visitor.post(f"{untouched.url}send", data=form, headers={"Origin": "https://evil.example"}) as answer:
        assert answer.status == 403
    foreign = {"Host": f"evil.example:{untouched.ports.page}"}
    async with visitor.post(f"{untouched.url}send", data=form, headers=foreign) as answer:
        assert answer.status == 421
    async with visitor.get(f"{untouched.url}?rs=fb_new", headers=foreign, allow_redirects=False) as answer:
        assert (answer.status, answer.headers["Location"]) == (302, f"{untouched.url}?rs=fb_new")


@pytest.mark.asyncio(loop_scope="module")
async def test_the_crm_refuses_what_is_not_signed(untouched: Demo, visitor: aiohttp.ClientSession) -> None:
    async with visitor.post(f"{untouched.url}crm", data=b'{"id":"1"}') as answer:
        assert (answer.status, await answer.json()) == (401, {"error": "webhook-id or webhook-timestamp is missing"})
    assert untouched.board.shown("crm") == []


@pytest.mark.asyncio(loop_scope="module")
async def test_the_page_says_that_it_is_a_demo_on_loopback_and_forbids_foreign_scripts(
    untouched: Demo, visitor: aiohttp.ClientSession
) -> None:
    async with visitor.get(untouched.url) as answer:
        text = await answer.text()
    assert "demo, loopback only" in text
    assert f"{untouched.ports.http_url}/mailtrack.js?site=pk_demo" in text
    assert "whsec_…" in text
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


@pytest.mark.asyncio(loop_scope="module")
async def test_two_demos_run_side_by_side(untouched: Demo) -> None:
    async with demo_on_free_ports() as other:
        assert not set(vars_of(untouched)) & set(vars_of(other))


def vars_of(demo: Demo) -> tuple[int, ...]:
    ports = demo.ports
    return ports.page, ports.http, ports.smtp, ports.mailbox


async def test_a_kept_folder_has_its_history_again_at_the_next_start(tmp_path: Path) -> None:
    for count in (1, 2):
        async with demo_on_free_ports(tmp_path / "kept") as demo:
            await asyncio.to_thread(send, LETTER, demo.ports.smtp)
            async with aiohttp.ClientSession() as http, http.get(f"{demo.url}events"):
                await shown(demo, "history", count)
    assert (tmp_path / "kept" / "relay.db").exists()


async def test_a_port_taken_between_look_and_use_is_given_up_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    with listening(28600) as taken:
        answers = iter([taken.getsockname()[1]])
        monkeypatch.setattr("relay.demo.free_port", lambda first, avoid: next(answers, None) or free_port(first, avoid))
        async with demo_on_free_ports() as demo:
            assert demo.ports.http != taken.getsockname()[1]


async def posted(folder: Path) -> None:
    """Until it is recorded that the CRM has the letter."""
    with contextlib.closing(sqlite3.connect(f"{(folder / DATABASE).as_uri()}?mode=ro", uri=True)) as database:
        while database.execute("SELECT state FROM posts").fetchall() != [("delivered",)]:
            await asyncio.sleep(0.05)


async def printed(process: asyncio.subprocess.Process, last: str) -> str:
    """What the process prints, up to the line with ``last``."""
    assert process.stdout is not None
    said = ""
    while last not in said:
        line = await process.stdout.readline()
        assert line, f"it ended: {said}"
        said += line.decode()
    return said


@pytest.mark.scenario
async def test_the_command_prints_where_it_is_and_ends_clean() -> None:
    """By each signal, one after another in one process: its imports take as long as all the rest of a demo."""
    signals = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        # nohup has it ignored, for all that is run by what it runs
        "import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL); from relay.demo import run_demo; "
        f"[run_demo() for _ in range({len(signals)})]",
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        for number in signals:
            async with asyncio.timeout(PATIENCE * 3):
                said = await printed(process, "swaks")
                lines = [line.split() for line in said.splitlines() if line.startswith("  ")]
                where = dict(words for words in lines if len(words) == 2)
                folder, smtp = Path(where["data"]), int(where["SMTP"].rpartition(":")[2])
                assert folder.exists()
                await asyncio.to_thread(send, LETTER, smtp)
                await posted(folder)
                process.send_signal(number)
                await printed(process, "has ended")
            assert "demo, loopback only; Ctrl-C ends it" in said
            assert "http://127.0.0.1:" in said
            assert not folder.exists()
        rest, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
    assert (process.returncode, rest, errors) == (0, b"", b"")
