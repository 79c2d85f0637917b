"""The parts of `relay demo`, each alone; all of it together: test_demo.py."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from relay.config import parse
from relay.demo.board import KEPT, Board
from relay.demo.crm import Crm, NotVerified, verify
from relay.demo.letter import Attachment, Letter, LetterError, Refused, compose, send
from relay.demo.mailbox import as_shown
from relay.demo.page import Page
from relay.demo.settings import CARD, Ports, free_port, listening, toml
from tests.smtp_client import PATIENCE

KEY = bytes(range(32))
SECRET = "whsec_" + base64.b64encode(KEY).decode()
LETTER = Letter("Ann <ann@visitor.example>", CARD, "Twelve windows", "Hello")


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


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
            async with http.post(url, data=body, headers=signed(body, key=bytes(32))) as answer:
                assert answer.status == 401
                assert (await answer.json())["error"] == "webhook-signature is not from our secret"
            for _ in range(2):
                async with http.post(url, data=body, headers=signed(body, "evt_17")) as answer:
                    assert answer.status == 200
                    deal = await answer.json()
            for broken in (b"{}", b'{"id":null}', b'{"id":"x"}', b"[]", b"?"):
                async with http.post(url, data=broken, headers=signed(broken)) as answer:
                    assert (answer.status, await answer.json()) == (400, {"error": "not an event"})
    assert deal == {"deal_id": "1017", "deal_url": "http://127.0.0.1:8080/#deal-1017"}
    assert [(entry.id, entry.content["posted"]) for entry in board.shown("crm")] == [("evt_17", 2)]


async def nobody_logs_in() -> str:
    raise AssertionError


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
        page = Page(board, Crm(board, SECRET, ports.page_url), ports, "vr_token", "", nobody_logs_in)
        async with (
            asyncio.timeout(PATIENCE),
            serving(api, api_sock),
            serving(page.app(), page_sock),
            http.get(f"{ports.page_url}/events"),
            contextlib.aclosing(board.follow(PATIENCE)) as entries,
        ):
            assert (await anext(entries)).content == {"id": "1"}  # type: ignore[union-attr]
