"""The bytes of a message, and its attachments by signed link: exactly what came, safely served, in pieces."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest

from relay.core.mime import Part
from relay.core.wire import stuff
from relay.extract_worker import extract
from tests.corpora import corpus
from tests.store_fixtures import NOW, TRACK
from tests.webapi_fixtures import Api, serving
from webapi import links
from webapi.files import disposition, served_type

CARD = f"card@{TRACK}"
DOTTED = b".\r\n..two\r\nSubject: x\r\n\r\n.\r\n...\r\nend\r\n"


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with serving(tmp_path) as found:
        yield found


async def stored(api: Api, message: bytes, *, in_file: bool = False, **result: Any) -> int:
    """Accept ``message`` (as received) and record its extraction; its id."""
    wire = stuff(message)
    changes: dict[str, Any] = {"body": wire, "size": len(message)}
    if in_file:
        name = hashlib.sha256(wire).hexdigest()
        api.context.bodies.path(name).write_bytes(wire)
        changes |= {"data": None, "file": name}
    accepted = await api.w.accept(CARD, claim=None, **changes)
    await api.w.extract(accepted.message_id, **result)
    return accepted.message_id


async def raw(api: Api, message_id: int) -> tuple[aiohttp.ClientResponse, bytes]:
    return await api.request("GET", f"/v1/messages/{message_id}/raw", token=await api.token("viewer"))


async def attachments(api: Api, message_id: int) -> list[dict[str, Any]]:
    _, seen = await api.call("GET", f"/v1/messages/{message_id}", token=await api.token("viewer"))
    found: list[dict[str, Any]] = seen["attachments"]
    return found


async def fetch(api: Api, url: str, method: str = "GET") -> tuple[aiohttp.ClientResponse, bytes]:
    assert url.startswith(f"{api.url}/a/")
    return await api.request(method, url.removeprefix(api.url))


def of_one_file(octets: bytes, name: str = "offer.pdf", kind: str = "application/pdf") -> tuple[bytes, Part]:
    """A message that has nothing but a file, and where the file lies in it."""
    head = b"Subject: offer\r\nContent-Type: %s\r\nContent-Transfer-Encoding: base64\r\n\r\n" % kind.encode()
    encoded = base64.encodebytes(octets).replace(b"\n", b"\r\n")
    return head + encoded, Part(0, name, kind, len(octets), False, len(head), len(encoded), "base64")


class TestRaw:
    @pytest.mark.parametrize("in_file", [False, True])
    async def test_is_exactly_what_was_received(self, api: Api, in_file: bool) -> None:
        message_id = await stored(api, DOTTED, in_file=in_file)
        response, octets = await raw(api, message_id)
        assert (response.status, octets) == (200, DOTTED)
        assert response.headers["Content-Type"] == "message/rfc822"
        assert response.headers["Content-Disposition"] == f'attachment; filename="message-{message_id}.eml"'
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Content-Security-Policy"].startswith("sandbox;")

    async def test_a_large_message_comes_in_pieces_and_whole(self, api: Api) -> None:
        message = b"Subject: large\r\n\r\n" + b"..dots\r\n.\r\nline of text\r\n" * 100_000
        response, octets = await raw(api, await stored(api, message, in_file=True))
        assert octets == message
        assert "Content-Length" not in response.headers

    async def test_head_has_no_body(self, api: Api) -> None:
        for in_file in (False, True):
            message_id = await stored(api, DOTTED + b"%d" % in_file, in_file=in_file)
            token = await api.token()
            response, octets = await api.request("HEAD", f"/v1/messages/{message_id}/raw", token=token)
            assert (response.status, octets) == (200, b"")

    @pytest.mark.parametrize("in_file", [False, True])
    async def test_after_retention_it_is_gone(self, api: Api, in_file: bool) -> None:
        message_id = await stored(api, DOTTED, in_file=in_file)
        await api.w.store.write(lambda tx: tx.sql("DELETE FROM bodies"))
        await api.w.store.write(lambda tx: tx.sql("UPDATE messages SET body_file = NULL, raw_removed_at = 1"))
        response, _ = await raw(api, message_id)
        assert response.status == 410

    async def test_a_file_that_is_missing_is_gone_and_no_crash(self, api: Api) -> None:
        message_id = await stored(api, DOTTED, in_file=True)
        next(api.context.bodies.path(".").iterdir()).unlink()
        response, _ = await raw(api, message_id)
        assert response.status == 410

    async def test_a_file_that_fails_on_the_way_breaks_the_connection(
        self, api: Api, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def failing(*_: object) -> AsyncIterator[bytes]:
            yield b"Subject: x\r\n"
            raise OSError("I/O error")

        message_id = await stored(api, DOTTED, in_file=True)
        monkeypatch.setattr(api.context.bodies, "chunks", failing)
        with pytest.raises(aiohttp.ClientPayloadError):
            await raw(api, message_id)
        assert (await api.call("GET", "/healthz"))[0] == 200

    async def test_a_client_that_goes_away_does_no_harm(self, api: Api) -> None:
        message = b"Subject: large\r\n\r\n" + b"line of text\r\n" * 1_000_000
        message_id = await stored(api, message, in_file=True)
        port = int(api.url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"GET /v1/messages/{message_id}/raw HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {await api.token()}"
        writer.write(f"{head}\r\n\r\n".encode())
        await reader.readexactly(1000)
        writer.transport.abort()
        assert (await api.call("GET", "/healthz"))[0] == 200


class TestAttachment:
    @pytest.mark.parametrize("in_file", [False, True])
    async def test_is_decoded_out_of_the_message(self, api: Api, in_file: bool) -> None:
        octets = bytes(range(256)) * 5000
        message, part = of_one_file(octets)
        (shown,) = await attachments(api, await stored(api, message, in_file=in_file, attachments=[part]))
        response, found = await fetch(api, shown["url"])
        assert (response.status, found) == (200, octets)
        assert response.headers["Content-Type"] == "application/pdf"
        assert response.headers["Content-Disposition"] == 'attachment; filename="offer.pdf"'
        assert response.headers["Content-Length"] == str(len(octets)) == str(shown["size"])
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Cache-Control"] == "private, no-store"

    @pytest.mark.parametrize("in_file", [False, True])
    async def test_a_part_amid_dotted_lines_is_found(self, api: Api, in_file: bool) -> None:
        head = b"Subject: x\r\n\r\n.\r\n..\r\n"
        body = b".first\r\n..second\r\n" * 40_000
        part = Part(0, "notes.txt", "text/plain", len(body), False, len(head), len(body), "8bit")
        message_id = await stored(api, head + body + b".after\r\n", in_file=in_file, attachments=[part])
        (shown,) = await attachments(api, message_id)
        assert (await fetch(api, shown["url"]))[1] == body

    async def test_an_empty_one_is_empty(self, api: Api) -> None:
        message, part = of_one_file(b"")
        (shown,) = await attachments(api, await stored(api, message, attachments=[part]))
        assert (await fetch(api, shown["url"]))[1] == b""

    async def test_what_the_link_is_called_does_not_count(self, api: Api) -> None:
        message, part = of_one_file(b"abc")
        (shown,) = await attachments(api, await stored(api, message, attachments=[part]))
        url = shown["url"].rpartition("/")[0] + "/" + quote("../../evil.html", safe="")
        response, found = await fetch(api, url)
        assert found == b"abc"
        assert response.headers["Content-Disposition"] == 'attachment; filename="offer.pdf"'

    @pytest.mark.parametrize("kind", ["text/html", "image/svg+xml", "application/xhtml+xml", "text/xml", "x/y"])
    async def test_what_a_browser_might_run_is_octets(self, api: Api, kind: str) -> None:
        message, part = of_one_file(b"<script>alert(1)</script>", "a.html", kind)
        (shown,) = await attachments(api, await stored(api, message, attachments=[part]))
        assert shown["type"] == kind
        response, _ = await fetch(api, shown["url"])
        assert response.headers["Content-Type"] == "application/octet-stream"
        assert response.headers["Content-Security-Policy"] == "sandbox; default-src 'none'; frame-ancestors 'none'"
        assert response.headers["Content-Disposition"].startswith("attachment;")

    async def test_an_expired_link_is_gone(self, api: Api) -> None:
        message, part = of_one_file(b"abc")
        (shown,) = await attachments(api, await stored(api, message, attachments=[part]))
        api.w.pass_time(86_400)
        assert (await fetch(api, shown["url"]))[0].status == 410

    async def test_the_link_of_an_erased_message_is_gone(self, api: Api) -> None:
        message, part = of_one_file(b"abc")
        message_id = await stored(api, message, attachments=[part])
        (shown,) = await attachments(api, message_id)
        await api.w.store.write(lambda tx: tx.sql("DELETE FROM messages"))
        assert (await fetch(api, shown["url"]))[0].status == 410

    async def test_the_link_is_gone_with_the_bytes(self, api: Api) -> None:
        message, part = of_one_file(b"abc")
        message_id = await stored(api, message, attachments=[part])
        (shown,) = await attachments(api, message_id)
        await api.w.store.write(lambda tx: tx.sql("DELETE FROM bodies"))
        assert (await fetch(api, shown["url"]))[0].status == 410

    async def test_a_forged_or_damaged_link_is_not_there(self, api: Api) -> None:
        message_id = await stored(api, DOTTED)
        forged = links.make(b"x" * 32, message_id, 0, int(NOW) + 1000)
        no_part = links.make(api.context.keys.current("links"), message_id, 7, int(NOW) + 1000)
        for token in (forged, no_part, "x", "%00", forged[:-1], "%F0%9F%92%A9", "a" * 5000):
            response, _ = await fetch(api, f"{api.url}/a/{token}/name")
            assert response.status == 404

    @pytest.mark.parametrize("folder", ["mime-mailparser-stalwart", "mime-nodemailer", "mime-haraka", "mime-cpython"])
    async def test_every_part_of_real_mail_is_served_as_it_was_extracted(self, api: Api, folder: str) -> None:
        """The raw bytes are the file, and each attachment has the size that extraction promised."""
        served = 0
        token = await api.token("viewer")
        for number, path in enumerate(sorted(p for p in corpus(folder).rglob("*") if p.suffix in (".eml", ".txt"))):
            message = path.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
            found = await asyncio.to_thread(extract, message)
            message_id = await stored(
                api,
                message,
                in_file=bool(number % 2),
                text=found.text,
                subject=found.subject or "",
                attachments=found.attachments,
            )
            _, octets = await api.request("GET", f"/v1/messages/{message_id}/raw", token=token)
            assert octets == message, path
            _, seen = await api.call("GET", f"/v1/messages/{message_id}", token=token)
            for shown in seen["attachments"]:
                response, octets = await fetch(api, shown["url"])
                assert response.status == 200, path
                assert len(octets) == shown["size"], path
                served += 1
        assert served > 0


class TestNames:
    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("offer.pdf", 'attachment; filename="offer.pdf"'),
            ("two words.pdf", 'attachment; filename="two words.pdf"'),
            ("Zäune.pdf", "attachment; filename=\"Z_une.pdf\"; filename*=UTF-8''Z%C3%A4une.pdf"),
            ("100%.pdf", "attachment; filename=\"100_.pdf\"; filename*=UTF-8''100%25.pdf"),
            ('a"b\\c/d.txt', 'attachment; filename="a_b_c_d.txt"'),
            ("a\r\nSet-Cookie: x", 'attachment; filename="a__Set-Cookie: x"'),
            ("\u202efdp.exe", 'attachment; filename="_fdp.exe"'),
            ("", 'attachment; filename="attachment"'),
        ],
    )
    def test_are_written_for_every_client_and_break_nothing(self, name: str, expected: str) -> None:
        assert disposition(name) == expected

    @pytest.mark.parametrize(
        ("stated", "served"),
        [
            ("image/png", "image/png"),
            (
                "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
                "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
            ),
            ("application/vnd.mozilla.xul+xml", "application/octet-stream"),
            ("application/javascript", "application/octet-stream"),
            ("text/html", "application/octet-stream"),
            ("message/rfc822", "application/octet-stream"),
            ("", "application/octet-stream"),
        ],
    )
    def test_only_harmless_types_are_named(self, stated: str, served: str) -> None:
        assert served_type(stated) == served
