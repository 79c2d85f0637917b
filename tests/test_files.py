"""The bytes of a message, and its attachments by signed link: exactly what came, safely served, in pieces."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

import aiohttp
import pytest

from relay.core.mime import Part
from relay.core.mimetext import safe_name
from relay.extract_worker import extract
from tests.corpora import corpus
from tests.file_fixtures import DOTTED, attachments, fetch, of_one_file, raw, received, stored
from tests.ledger import SOAK
from tests.store_fixtures import DAY, NOW
from tests.webapi_fixtures import Api, of_all, serving
from webapi import links
from webapi.files import disposition, served_type


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with serving(tmp_path) as found:
        yield found


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

    @of_all
    @pytest.mark.parametrize(
        "kind",
        [
            *("text/html", "image/svg+xml", "application/xhtml+xml", "text/xml", "application/xml", "x/y", ""),
            *("text/javascript", "text/css", "multipart/related", "message/rfc822", "multipart/x-mixed-replace"),
            *("text/plain; charset=utf-7", "TEXT/HTML", "image/png\r\nSet-Cookie: a=b", "application/vnd.a\nX: y"),
        ],
    )
    async def test_what_a_browser_might_run_is_octets(self, shared: Api, kind: str) -> None:
        message, part = of_one_file(b"<script>alert(1)</script>", "a.html", kind)
        (shown,) = await attachments(shared, await stored(shared, message, attachments=[part]))
        assert shown["type"] == kind
        response, _ = await fetch(shared, shown["url"])
        assert response.headers["Content-Type"] == "application/octet-stream"
        assert response.headers["Content-Security-Policy"] == "sandbox; default-src 'none'; frame-ancestors 'none'"
        assert response.headers["Content-Disposition"].startswith("attachment;")

    async def test_a_forged_or_damaged_link_is_not_there(self, api: Api) -> None:
        message_id = await stored(api, DOTTED)
        forged = links.make(b"x" * 32, message_id, 0, int(NOW) + 1000, None)
        no_part = links.make(api.context.keys.current("links"), message_id, 7, int(NOW) + 1000, None)
        for token in (forged, no_part, "x", "%00", forged[:-1], "%F0%9F%92%A9", "a" * 5000):
            response, _ = await fetch(api, f"{api.url}/a/{token}/name")
            assert response.status == 404

    @pytest.mark.parametrize("folder", ["mime-mailparser-stalwart", "mime-nodemailer", "mime-haraka", "mime-cpython"])
    async def test_every_part_of_real_mail_is_served_as_it_was_extracted(self, api: Api, folder: str) -> None:
        """The raw bytes are the file, and each attachment has the size that extraction promised."""
        served = 0
        token = await api.token("viewer")
        letters = sorted(path for path in corpus(folder).rglob("*") if path.suffix in (".eml", ".txt"))
        for number, path in enumerate(letters[:: 1 if SOAK else max(1, len(letters) // 20)]):
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


class TestHeaders:
    async def test_every_answer_is_sandboxed_and_not_sniffed(self, api: Api) -> None:
        message, part = of_one_file(b"<script>alert(1)</script>", "a.html", "text/html")
        message_id = await stored(api, message, attachments=[part])
        (shown,) = await attachments(api, message_id)
        path, token = shown["url"].removeprefix(api.url), await api.token("viewer")
        etag = (await fetch(api, shown["url"]))[0].headers["ETag"]
        asked: list[tuple[str, dict[str, str], int]] = [
            ("GET", {}, 200),
            ("HEAD", {}, 200),
            ("GET", {"Range": "bytes=1-2"}, 206),
            ("GET", {"If-None-Match": etag}, 304),
            ("GET", {"Range": "bytes=99-"}, 416),
        ]
        for method, headers, status in asked:
            await self.check(api, method, path, headers, status, None)
        for method, headers, status in asked[:3]:
            await self.check(api, method, f"/v1/messages/{message_id}/raw", headers, status, token)
        await self.check(api, "GET", f"/v1/messages/{message_id + 1}/raw", {}, 404, token)
        await self.check(api, "GET", "/a/x/y", {}, 404, None)
        api.w.pass_time(DAY)
        await self.check(api, "GET", path, {}, 410, None)

    async def check(
        self, api: Api, method: str, path: str, headers: dict[str, str], status: int, token: str | None
    ) -> None:
        response, _ = await api.request(method, path, headers=headers, token=token)
        assert response.status == status
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Content-Security-Policy"] == "sandbox; default-src 'none'; frame-ancestors 'none'"
        assert response.headers["Cache-Control"] == "private, no-store"
        assert response.headers["Referrer-Policy"] == "no-referrer"
        if status in (200, 206):
            assert response.headers["Content-Disposition"].startswith("attachment;")
            assert response.headers["Content-Type"] in ("application/octet-stream", "message/rfc822")


NESTED = b"From: bob@example.org\r\nSubject: inner\r\nContent-Type: text/html\r\n\r\n<script>alert(1)</script>\r\n"
PIXEL = b"\x89PNG\r\n\x1a\n"
TNEF = b"\x78\x9f\x3e\x22" + bytes(range(256))


def letter(*parts: tuple[str, bytes]) -> bytes:
    """A multipart/mixed of these parts: (header fields, octets)."""
    body = b"".join(
        b"--frontier\r\n" + fields.replace("\n", "\r\n").encode() + b"\r\n\r\n" + octets + b"\r\n"
        for fields, octets in parts
    )
    head = b'Subject: files\r\nMIME-Version: 1.0\r\nContent-Type: multipart/mixed; boundary="frontier"\r\n\r\n'
    return head + body + b"--frontier--\r\n"


def encoded(fields: str, octets: bytes) -> tuple[str, bytes]:
    return f"{fields}\nContent-Transfer-Encoding: base64", base64.encodebytes(octets).replace(b"\n", b"\r\n")


def page_with_picture() -> tuple[str, bytes]:
    """A multipart/related: a page, its picture, and a picture that its sender calls an attachment."""
    pieces = [
        ("Content-Type: text/html", b'<p>Hello <img src="cid:logo"></p>'),
        encoded('Content-Type: image/png; name="logo.png"\nContent-ID: <logo>', PIXEL),
        encoded('Content-Type: image/png\nContent-Disposition: attachment; filename="photo.png"', PIXEL),
    ]
    inner = letter(*pieces).replace(b"frontier", b"page").partition(b"\r\n\r\n")[2]
    return 'Content-Type: multipart/related; boundary="page"', inner


class TestWholeLetter:
    """Letters as they come, extracted as the daemon does it."""

    @pytest.mark.parametrize("in_file", [False, True])
    async def test_inline_pictures_are_marked_and_tnef_and_nested_letters_are_listed_and_served(
        self, api: Api, in_file: bool
    ) -> None:
        message = letter(
            page_with_picture(),
            encoded("Content-Type: image/jpeg\nContent-Disposition: inline; filename=view.jpg", b"\xff\xd8"),
            encoded("Content-Type: application/ms-tnef", TNEF),
            ("Content-Type: message/rfc822", NESTED),
            ('Content-Type: message/rfc822\nContent-Disposition: attachment; filename="Re: offer.eml"', NESTED),
        )
        shown = await received(api, message, in_file=in_file)
        assert [(file["name"], file["type"], file["size"], file["inline"]) for file in shown] == [
            ("logo.png", "image/png", len(PIXEL), True),
            ("photo.png", "image/png", len(PIXEL), False),
            ("view.jpg", "image/jpeg", 2, True),
            ("winmail.dat", "application/ms-tnef", len(TNEF), False),
            ("part-5.eml", "message/rfc822", len(NESTED), False),
            ("Re_ offer.eml", "message/rfc822", len(NESTED), False),
        ]
        served = [await fetch(api, file["url"]) for file in shown]
        assert [octets for _, octets in served] == [PIXEL, PIXEL, b"\xff\xd8", TNEF, NESTED, NESTED]
        assert {response.headers["Content-Type"] for response, _ in served[3:]} == {"application/octet-stream"}
        assert [response.headers["Content-Disposition"] for response, _ in served[3:]] == [
            'attachment; filename="winmail.dat"',
            'attachment; filename="part-5.eml"',
            'attachment; filename="Re_ offer.eml"',
        ]

    async def test_a_charset_that_hides_a_script_is_not_passed_on(self, api: Api) -> None:
        fields = "Content-Type: text/plain; charset=utf-7\nContent-Disposition: attachment; filename=a.txt"
        (shown,) = await received(api, letter((fields, b"+ADw-script+AD4-alert(1)+ADw-/script+AD4-")))
        response, _ = await fetch(api, shown["url"])
        assert response.headers["Content-Type"] == "text/plain"

    async def test_real_letters_of_all_three_kinds_are_listed_with_a_name_and_served(self, api: Api) -> None:
        kinds: dict[str, int] = {"inline": 0, "application/ms-tnef": 0, "message/rfc822": 0}
        for folder in ("mime-mailparser-stalwart", "mime-nodemailer", "mime-haraka", "mime-cpython"):
            for path in sorted(p for p in corpus(folder).rglob("*") if p.suffix in (".eml", ".txt")):
                message = path.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
                listed = {part.type for part in (await asyncio.to_thread(extract, message)).attachments}
                if not any(kind.startswith("image/") or kind in kinds for kind in listed):
                    continue
                for shown in await received(api, message):
                    kind = "inline" if shown["inline"] else shown["type"]
                    assert not shown["inline"] or shown["type"].startswith("image/"), path
                    if kind in kinds:
                        kinds[kind] += 1
                        response, octets = await fetch(api, shown["url"])
                        assert (response.status, len(octets)) == (200, shown["size"]), path
                        assert shown["name"] == safe_name(shown["name"]) != "", path
        print(f"of real letters: {kinds}")
        assert kinds["inline"] > 0
        assert kinds["message/rfc822"] > 0


class TestNames:
    async def test_what_an_older_version_stored_is_made_safe(self, api: Api) -> None:
        message, part = of_one_file(b"abc", "con.txt:x ", "text/plain")
        (shown,) = await attachments(api, await stored(api, message, attachments=[part]))
        assert shown["name"] == "_con.txt_x"
        assert shown["url"].endswith("/_con.txt_x")
        response, _ = await fetch(api, shown["url"])
        assert response.headers["Content-Disposition"] == 'attachment; filename="_con.txt_x"'

    @pytest.mark.parametrize(
        ("name", "expected"),
        [
            ("offer.pdf", 'attachment; filename="offer.pdf"'),
            ("two words.pdf", 'attachment; filename="two words.pdf"'),
            ("Zäune.pdf", "attachment; filename=\"Z_une.pdf\"; filename*=UTF-8''Z%C3%A4une.pdf"),
            ("100%.pdf", "attachment; filename=\"100_.pdf\"; filename*=UTF-8''100%25.pdf"),
            ('a"b\\c/d.txt', 'attachment; filename="d.txt"'),
            ("a\r\nSet-Cookie: x", 'attachment; filename="a Set-Cookie_ x"'),
            ("\u202efdp.exe", 'attachment; filename="fdp.exe"'),
            ("family \u200d.png", 'attachment; filename="family _.png"'),
            ("../.ssh/-x;y=.pub. ", 'attachment; filename="x;y=.pub"'),
            ("nul.tar.gz", 'attachment; filename="_nul.tar.gz"'),
            ("C:aux?.txt", 'attachment; filename="C_aux_.txt"'),
            ("...", 'attachment; filename="attachment"'),
            ("\ud800.pdf", 'attachment; filename="pdf"'),
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
            ("application/pdf; x=y", "application/octet-stream"),
            ("application/vnd.a\r\nSet-Cookie: a=b", "application/octet-stream"),
            ("application/vnd.a, text/html", "application/octet-stream"),
            ("application/vnd.", "application/octet-stream"),
            ("", "application/octet-stream"),
        ],
    )
    def test_only_harmless_types_are_named(self, stated: str, served: str) -> None:
        assert served_type(stated) == served
