"""`relay demo`: its parts alone, and all of it together, without a browser (tests/browser/test_demo.py has that)."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import os
import shlex
import shutil
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from relay.config import parse
from relay.demo import Demo, _introduction, demo_running
from relay.demo.board import KEPT, Board
from relay.demo.crm import Crm, NotVerified, verify
from relay.demo.letter import Attachment, Letter, LetterError, Refused, compose, send
from relay.demo.mailbox import as_shown
from relay.demo.page import Page
from relay.demo.settings import CARD, Ports, free_port, listening, toml
from tests.smtp_client import PATIENCE, SmtpClient

ROOT = Path(__file__).parent.parent
KEY = bytes(range(32))
SECRET = "whsec_" + base64.b64encode(KEY).decode()
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


# ── ports and configuration ──────────────────────────────────────────────────────────────────────────────────────


def test_the_configuration_is_one_that_relay_accepts(tmp_path: Path) -> None:
    config = parse(toml(Ports(page=8080, http=8081, smtp=2525, mailbox=2526), SECRET), tmp_path)
    assert config.data_dir == tmp_path
    assert [target.method for target in config.sites[0].targets] == ["pool", "unique", "plus"]
    assert config.sites[0].origins == ("http://127.0.0.1:8080",)


def test_everything_the_configuration_names_is_on_loopback(tmp_path: Path) -> None:
    config = parse(toml(Ports(page=8080, http=8081, smtp=2525, mailbox=2526), SECRET), tmp_path)
    for endpoint in (*config.smtp.listen, *config.http.listen):
        assert not isinstance(endpoint, str)
        assert endpoint.loopback
    assert config.forward.next_hop == "smtp://127.0.0.1:2526"


def test_a_taken_port_is_passed_over() -> None:
    with listening(28300) as first, listening(first.getsockname()[1]) as second:
        assert second.getsockname()[1] > first.getsockname()[1]
        assert free_port(first.getsockname()[1], ()) not in (first.getsockname()[1], second.getsockname()[1])


def test_a_port_that_is_promised_to_somebody_else_is_passed_over() -> None:
    port = free_port(28400, ())
    assert free_port(port, {port, port + 1}) > port + 1


def test_without_a_free_port_nearby_the_kernel_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    with listening(28500) as taken:
        monkeypatch.setattr("relay.demo.settings.SEARCHED", 1)
        with listening(taken.getsockname()[1]) as other:
            assert other.getsockname()[1] > 0


# ── the board ────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_who_follows_the_board_gets_what_is_there_and_then_each_change() -> None:
    board = Board()
    board.put("mail", "1", {"subject": "first"})
    async with contextlib.aclosing(board.follow(PATIENCE)) as entries:
        assert (await anext(entries)).content == {"subject": "first"}  # type: ignore[union-attr]
        board.put("crm", "e", {"posted": 1})
        assert (await anext(entries)).kind == "crm"  # type: ignore[union-attr]


async def test_the_same_entry_again_is_no_change_and_another_content_is() -> None:
    board = Board()
    board.put("history", "7", {"state": "queued"})
    board.put("history", "7", {"state": "queued"})
    assert [entry.version for entry in board.shown("history")] == [1]
    board.put("history", "7", {"state": "forwarded"})
    assert [(entry.version, entry.content["state"]) for entry in board.shown("history")] == [(2, "forwarded")]


async def test_silence_is_told_and_a_closed_board_ends() -> None:
    board = Board()
    async with contextlib.aclosing(board.follow(0.001)) as entries:
        assert await anext(entries) is None
        assert board.followers == 1
        board.close()
        assert [entry async for entry in entries] == []
    assert board.followers == 0


async def test_the_board_keeps_the_last_entries_only() -> None:
    board = Board()
    for number in range(KEPT + 5):
        board.put("mail", str(number), {})
    assert [entry.id for entry in board.shown("mail")] == [str(number) for number in range(5, KEPT + 5)]


# ── the letter ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_letter_is_an_ordinary_message() -> None:
    sender, recipient, message = compose(LETTER)
    assert (sender, recipient) == ("ann@visitor.example", CARD)
    assert message["From"] == "Ann <ann@visitor.example>"
    assert message["Message-ID"].endswith("@visitor.example>")
    assert message.get_content() == "Hello\n"


@pytest.mark.parametrize(
    ("letter", "field"),
    [
        (Letter("nobody", CARD, "", ""), "from"),
        (Letter("ann@visitor.example", "", "", ""), "to"),
        (Letter("ann@visitor.example", "a@b c", "", ""), "to"),
        (Letter("ann@visitor.example", "bücher@example.com", "", ""), "to"),
        (Letter("ann@visitor.example", CARD, "one\r\nBcc: all@example.com", ""), "subject"),
        (Letter("ann@visitor.example", CARD, "x" * 501, ""), "subject"),
        (Letter("ann@visitor.example", CARD, "", "x" * 100_001), "text"),
    ],
)
def test_a_form_that_is_no_letter_is_refused_by_field(letter: Letter, field: str) -> None:
    with pytest.raises(LetterError) as caught:
        compose(letter)
    assert caught.value.field == field


@pytest.mark.parametrize("kind", ["image/jpeg", "message/rfc822", "multipart/mixed", "", "text/plain\r\nX: y"])
def test_an_attachment_of_any_declared_type_arrives_as_a_file(kind: str) -> None:
    content = bytes(range(256)) * 10
    letter = Letter("ann@visitor.example", CARD, "", "", Attachment("../größe\r\n.jpg", kind, content))
    _, _, message = compose(letter)
    attached = as_shown(message.as_bytes())["attachments"]
    assert [(part["name"], part["size"]) for part in attached] == [("größe .jpg", len(content))]


def test_where_nothing_listens_the_letter_is_refused_with_the_reason() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with pytest.raises(Refused, match="refused"):
            send(LETTER, unused.getsockname()[1])


# ── the mailbox ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_mail_is_shown_decoded_and_its_fields_are_shown_as_they_are() -> None:
    message = (
        b"X-Visit-Relay: 12.abc\r\nReceived: from a\r\n\tby mx.track.example.com; now\r\nReceived: from b by c\r\n"
        b"From: =?utf-8?q?J=C3=BCrgen?= <j@example.net>\r\nSubject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\r\n\r\nHello\r\n"
    )
    mail = as_shown(message)
    assert (mail["message"], mail["from"], mail["subject"]) == ("12", "Jürgen <j@example.net>", "Grüße")
    assert mail["text"] == "Hello"
    assert [field["ours"] for field in mail["fields"]] == [True, True, False, False, False]
    assert mail["fields"][3]["value"] == "=?utf-8?q?J=C3=BCrgen?= <j@example.net>"


def test_a_mail_that_is_only_a_text_is_shown_too() -> None:
    mail = as_shown(b"\r\njust text\r\n")
    assert (mail["message"], mail["fields"], mail["text"]) == (None, [], "just text")


# ── the CRM ──────────────────────────────────────────────────────────────────────────────────────────────────────


def signed(body: bytes, event: str = "evt_1", timestamp: float | None = None, key: bytes = KEY) -> dict[str, str]:
    stamp = str(int(time.time() if timestamp is None else timestamp))
    value = hmac.digest(key, f"{event}.{stamp}.".encode() + body, hashlib.sha256)
    signature = "v1," + base64.b64encode(value).decode()
    return {"webhook-id": event, "webhook-timestamp": stamp, "webhook-signature": signature}


def test_a_signed_event_is_verified() -> None:
    assert verify(KEY, signed(b"{}", "evt_7", 1000.0), b"{}", 1100.0) == "evt_7"


def test_one_good_signature_among_several_is_enough() -> None:
    headers = signed(b"{}", timestamp=1000.0)
    headers["webhook-signature"] = f"v1,%%% v2,x {headers['webhook-signature']}"
    assert verify(KEY, headers, b"{}", 1000.0) == "evt_1"


@pytest.mark.parametrize(
    ("headers", "body", "reason"),
    [
        ({}, b"{}", "missing"),
        ({"webhook-id": "e", "webhook-timestamp": "soon"}, b"{}", "missing"),
        (signed(b"{}", timestamp=100.0), b"{}", "too far"),
        (signed(b"{}", timestamp=1000.0), b"{ }", "not from our secret"),
        (signed(b"{}", timestamp=1000.0, key=bytes(32)), b"{}", "not from our secret"),
    ],
)
def test_what_is_not_signed_by_us_and_now_is_not_verified(headers: dict[str, str], body: bytes, reason: str) -> None:
    with pytest.raises(NotVerified, match=reason):
        verify(KEY, headers, body, 1000.0)


@contextlib.asynccontextmanager
async def serving(app: web.Application, sock: socket.socket) -> AsyncIterator[None]:
    runner = web.AppRunner(app, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.SockSite(runner, sock).start()
        yield
    finally:
        await runner.cleanup()


async def test_an_event_becomes_one_deal_however_often_it_is_posted(http: aiohttp.ClientSession) -> None:
    board, app = Board(), web.Application()
    app.router.add_post("/crm", Crm(board, SECRET, "http://127.0.0.1:8080").receive)
    body = b'{"id":"17","subject":"Windows"}'
    with listening(28700) as sock:
        url = f"http://127.0.0.1:{sock.getsockname()[1]}/crm"
        async with serving(app, sock):
            for _ in range(2):
                async with http.post(url, data=body, headers=signed(body, "evt_17")) as answer:
                    assert answer.status == 200
                    deal = await answer.json()
            for broken in (b"{}", b'{"id":null}', b'{"id":"x"}', b"[]", b"?"):
                async with http.post(url, data=broken, headers=signed(broken)) as answer:
                    assert (answer.status, await answer.json()) == (400, {"error": "not an event"})
    assert deal == {"deal_id": "1017", "deal_url": "http://127.0.0.1:8080/#deal-1017"}
    assert [(entry.id, entry.content["posted"]) for entry in board.shown("crm")] == [("evt_17", 2)]


async def test_the_history_comes_although_the_api_fails_at_first(http: aiohttp.ClientSession) -> None:
    statuses = iter([503, 500])

    async def messages(request: web.Request) -> web.Response:
        assert request.headers["Authorization"] == "Bearer vr_token"
        items = [{"id": "1", "attachments": []}]
        return web.json_response({"items": items}, status=next(statuses, 200))

    board, api = Board(), web.Application()
    api.router.add_get("/v1/messages", messages)
    with listening(28800) as page_sock, listening(28900) as api_sock:
        ports = Ports(page=page_sock.getsockname()[1], http=api_sock.getsockname()[1], smtp=1, mailbox=1)
        page = Page(board, Crm(board, SECRET, ports.page_url), ports, "vr_token", "")
        async with (
            asyncio.timeout(PATIENCE),
            serving(api, api_sock),
            serving(page.app(), page_sock),
            http.get(f"{ports.page_url}/events"),
            contextlib.aclosing(board.follow(PATIENCE)) as entries,
        ):
            assert (await anext(entries)).content == {"id": "1"}  # type: ignore[union-attr]


# ── all of it ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
async def demo() -> AsyncIterator[Demo]:
    async with demo_on_free_ports() as demo:
        yield demo


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
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


async def test_a_mail_from_a_terminal_to_the_business_card_becomes_a_deal(demo: Demo) -> None:
    async with await SmtpClient.hello(demo.ports.smtp) as client:
        wire = b"From: ann@visitor.example\r\nSubject: From the card\r\n\r\nHello\r\n.\r\n"
        assert (await client.mail(wire, f"<{CARD}>")).short == "250 2.0.0"
    deal = (await shown(demo, "crm"))[0]
    assert (deal["payload"]["marker"], deal["payload"]["visit_id"]) == ("business card", None)


async def test_the_swaks_command_that_is_printed_works_as_it_is(demo: Demo) -> None:
    if shutil.which("swaks") is None:
        pytest.skip("NOT TESTED: the printed swaks command, for there is no swaks on this machine")
    command = next(line for line in _introduction(demo).splitlines() if line.startswith("  swaks "))
    process = await asyncio.create_subprocess_exec(*shlex.split(command), stdout=asyncio.subprocess.DEVNULL)
    assert await process.wait() == 0
    assert (await shown(demo, "crm"))[0]["payload"]["marker"] == "business card"


async def test_a_large_mail_is_shown_and_its_file_removed(demo: Demo) -> None:
    letter = Letter("ann@visitor.example", CARD, "Large", "", Attachment("plan.bin", "", os.urandom(1 << 20)))
    await asyncio.to_thread(send, letter, demo.ports.smtp)
    mail = (await shown(demo, "mail"))[0]
    assert mail["attachments"] == [{"name": "plan.bin", "size": 1 << 20, "type": "application/octet-stream"}]
    assert list((demo.data_dir / "mailbox").iterdir()) == []


async def test_the_mailbox_is_for_its_own_domain_only(demo: Demo) -> None:
    async with await SmtpClient.hello(demo.ports.mailbox) as client:
        await client.command("MAIL FROM:<ann@visitor.example>")
        assert (await client.command("RCPT TO:<someone@example.net>")).short == "550 5.1.1"


async def test_what_the_mail_server_says_is_told_to_the_sender(demo: Demo, http: aiohttp.ClientSession) -> None:
    form = {"from": "ann@visitor.example", "to": "nobody@track.example.com"}
    async with http.post(f"{demo.url}send", data=form) as answer:
        told = await answer.json()
    assert (answer.status, told["field"]) == (502, "to")
    assert "550 5.1.1" in told["error"]


@pytest.mark.parametrize(
    ("body", "field"),
    [({"data": {"from": "x", "to": CARD}}, "from"), ({"json": {}}, "text"), ({"data": b"x" * 100}, "text")],
)
async def test_a_bad_form_is_answered_with_the_field_to_correct(
    demo: Demo, http: aiohttp.ClientSession, body: dict[str, Any], field: str
) -> None:
    async with http.post(f"{demo.url}send", **body) as answer:
        assert (answer.status, (await answer.json())["field"]) == (400, field)
    assert demo.board.shown("letter") == []


async def test_a_file_where_a_text_should_be_is_answered_with_its_field(
    demo: Demo, http: aiohttp.ClientSession
) -> None:
    form = aiohttp.FormData()
    form.add_field("from", b"x", filename="from.txt")
    async with http.post(f"{demo.url}send", data=form) as answer:
        assert (answer.status, (await answer.json())["field"]) == (400, "from")


async def test_another_website_can_neither_send_nor_read(demo: Demo, http: aiohttp.ClientSession) -> None:
    form = {"from": "ann@visitor.example", "to": CARD}
    async with http.post(f"{demo.url}send", data=form, headers={"Origin": "https://evil.example"}) as answer:
        assert answer.status == 403
    foreign = {"Host": f"evil.example:{demo.ports.page}"}
    async with http.post(f"{demo.url}send", data=form, headers=foreign) as answer:
        assert answer.status == 421
    async with http.get(f"{demo.url}?rs=fb_new", headers=foreign, allow_redirects=False) as answer:
        assert (answer.status, answer.headers["Location"]) == (302, f"{demo.url}?rs=fb_new")


async def test_the_crm_refuses_what_is_not_signed_and_what_is_no_event(demo: Demo, http: aiohttp.ClientSession) -> None:
    async with http.post(f"{demo.url}crm", data=b'{"id":"1"}', headers=signed(b'{"id":"1"}')) as answer:
        assert (answer.status, await answer.json()) == (401, {"error": "webhook-signature is not from our secret"})
    assert demo.board.shown("crm") == []


async def test_the_page_says_that_it_is_a_demo_on_loopback_and_forbids_foreign_scripts(
    demo: Demo, http: aiohttp.ClientSession
) -> None:
    async with http.get(demo.url) as answer:
        text = await answer.text()
    assert "demo, loopback only" in text
    assert f"{demo.ports.http_url}/mailtrack.js?site=pk_demo" in text
    assert "whsec_…" in text
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


async def test_two_demos_run_side_by_side(demo: Demo) -> None:
    async with demo_on_free_ports() as other:
        assert not set(vars_of(demo)) & set(vars_of(other))


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


@pytest.mark.scenario
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_the_command_prints_where_it_is_and_ends_clean(number: signal.Signals) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "from relay.demo import run_demo; run_demo()",
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    said = ""
    async with asyncio.timeout(PATIENCE * 3):
        while "swaks" not in said:
            said += (await process.stdout.readline()).decode()
        folder = Path(next(line.split()[1] for line in said.splitlines() if line.startswith("  data ")))
        assert folder.exists()
        process.send_signal(number)
        rest, errors = await process.communicate()
    assert "demo, loopback only; Ctrl-C ends it" in said
    assert "http://127.0.0.1:" in said
    assert b"has ended" in rest
    assert (process.returncode, errors) == (0, b"")
    assert not folder.exists()
