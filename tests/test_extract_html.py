"""Extracted.html: the HTML form of a message, for those who ask for it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from relay.core.mime import MAX_HTML, Extracted
from relay.core.wire import stuff
from relay.extract import Extractor
from relay.extract_frames import as_json, from_json
from relay.extract_worker import extract

pytestmark = pytest.mark.asyncio(loop_scope="module")

PAGE = '<p style="color:red">Good&nbsp;<b>day</b></p>'
#: libxml2 takes seconds over so many attributes.
SLOW = "<a " + " ".join(f"a{n}=1" for n in range(30_000)) + ">x</a>"


def mail(body: str | bytes, content_type: str = "text/html; charset=utf-8", *fields: str) -> bytes:
    head = "\r\n".join(["Subject: hello", f"Content-Type: {content_type}", *fields, "", ""])
    return head.encode() + (body.encode() if isinstance(body, str) else body)


def several(kind: str, *parts: tuple[str, str]) -> bytes:
    body = "".join(f"--b\r\nContent-Type: {of_part}\r\n\r\n{content}\r\n" for of_part, content in parts)
    return mail(f"{body}--b--\r\n", f"multipart/{kind}; boundary=b")


def form(message: bytes) -> tuple[str | None, bool]:
    """(the HTML form, is the result partial)."""
    found = extract(message, with_html=True)
    return found.html, found.partial


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def extractor() -> AsyncIterator[Extractor]:
    made = Extractor(timeout=1.5)
    await made.start()
    yield made
    await made.close()


async def test_only_who_asks_gets_the_html_form(extractor: Extractor) -> None:
    wire = stuff(mail(PAGE))
    asked, unasked = await asyncio.gather(extractor.extract(wire, html=True), extractor.extract(wire))
    assert (asked.html, asked.text, asked.html_only) == (PAGE, "Good day", True)
    assert (unasked.html, unasked.text, unasked.html_only) == (None, "Good day", True)


async def test_a_batch_may_hold_messages_with_and_without(extractor: Extractor) -> None:
    (pid,) = extractor.pids
    os.kill(pid, signal.SIGSTOP)  # so that they are one batch
    wires = [stuff(mail(f"<p>{n}</p>")) for n in range(40)]
    calls = [asyncio.create_task(extractor.extract(wire, html=n % 3 == 0)) for n, wire in enumerate(wires)]
    while not extractor._waiting:
        await asyncio.sleep(0)
    os.kill(pid, signal.SIGCONT)
    found = await asyncio.gather(*calls)
    assert [result.html for result in found] == [None if n % 3 else f"<p>{n}</p>" for n in range(40)]


async def test_a_file_has_its_html_form_too(extractor: Extractor, tmp_path: Path) -> None:
    for name, page in (("plain", PAGE), ("stuffed", f"{PAGE}\n.dot")):
        (tmp_path / name).write_bytes(stuff(mail(page.replace("\n", "\r\n"))))
        assert (await extractor.extract(tmp_path / name, html=True)).html == page
        assert (await extractor.extract(tmp_path / name)).html is None


async def test_a_page_that_ended_its_worker_is_not_given(extractor: Extractor) -> None:
    found = await extractor.extract(stuff(mail(SLOW)), html=True)
    assert (found.html, (found.text or "").strip(), found.partial) == (None, "x", True)
    assert (await extractor.extract(stuff(mail(PAGE)), html=True)).html == PAGE


async def test_a_page_beside_a_plain_form_is_given_however_hard_to_lay_out(extractor: Extractor) -> None:
    found = await extractor.extract(stuff(several("alternative", ("text/plain", "x"), ("text/html", SLOW))), html=True)
    assert (found.html, found.text, found.partial) == (SLOW[:MAX_HTML], "x", len(SLOW) > MAX_HTML)


async def test_a_careful_reading_and_one_of_the_header_give_none() -> None:
    assert extract(mail(PAGE), careful=True, with_html=True).html is None
    async with asyncio.timeout(30):
        extractor = Extractor()
        await extractor.start()
        try:
            assert (await extractor.extract(Path("/nowhere/erased"), html=True)).html is None
        finally:
            await extractor.close()


async def test_of_an_alternative_the_html_form_is_given_and_the_plain_one_is_the_text() -> None:
    found = extract(several("alternative", ("text/plain", "plain"), ("text/html", PAGE)), with_html=True)
    assert (found.text, found.html_only, found.html) == ("plain", False, PAGE)


async def test_of_related_parts_the_page_is_given_with_its_cids() -> None:
    page = '<p>see <img src="cid:a@b"></p>'
    found = extract(several("related", ("text/html", page), ("image/png", "x")), with_html=True)
    assert (found.html, len(found.attachments)) == (page, 1)


async def test_several_pages_are_joined_and_plain_parts_between_them_left_out() -> None:
    parts = [("text/html", "<p>1</p>"), ("text/plain", "2"), ("text/html", "<p>3</p>")]
    assert form(several("mixed", *parts)) == ("<p>1</p>\n<p>3</p>", False)
    assert form(several("mixed", *[("text/html", "x")] * 17)) == ("\n".join(["x"] * 16), True)


@pytest.mark.parametrize(
    "message",
    [
        mail("text", "text/plain"),
        mail("x", "application/pdf"),
        several("mixed", ("text/plain", "text"), ("text/html\r\nContent-Disposition: attachment", PAGE)),
        b"",
    ],
    ids=["plain", "no text", "an attached page", "nothing"],
)
async def test_a_message_without_an_html_form_has_none(message: bytes) -> None:
    assert extract(message, with_html=True).html is None


@pytest.mark.parametrize("charset", ["windows-1251", "koi8-r", "utf-8"])
@pytest.mark.parametrize("declared", [True, False])
async def test_the_html_form_is_read_in_its_charset(charset: str, declared: bool) -> None:
    page = f"<meta charset={charset}><p>Привет</p>" if declared else "<p>Привет</p>"
    content_type = "text/html" if declared else f"text/html; charset={charset}"
    assert form(mail(page.encode(charset), content_type)) == (page, False)


async def test_line_ends_become_lf_and_nuls_go() -> None:
    assert form(mail("<p>\r\n1\r2\0</p>\n")) == ("<p>\n1\n2</p>\n", False)
    assert form(mail("<p>=3D=\r\n</p>", "text/html", "Content-Transfer-Encoding: quoted-printable"))[0] == "<p>=</p>"


async def test_a_long_html_form_is_cut_and_the_result_partial() -> None:
    assert form(mail("я" * MAX_HTML)) == ("я" * MAX_HTML, False)
    assert form(mail("я" * (MAX_HTML + 1))) == ("я" * MAX_HTML, True)
    message = several("alternative", ("text/plain", "plain"), ("text/html", "я" * (MAX_HTML + 1)))
    assert (form(message), extract(message).partial) == (("я" * MAX_HTML, True), False)


async def test_no_html_form_is_more_than_json_can_hold() -> None:
    found = extract(mail("+2AA-<p>", "text/html; charset=utf-7"), with_html=True)
    assert from_json(as_json(found)) == found
    assert found.html == "?<p>"


@pytest.mark.parametrize("html", ["5", "[]", "false"])
async def test_an_html_form_of_another_shape_is_refused(html: str) -> None:
    with pytest.raises(TypeError):
        from_json(f'["s","t",false,[],false,{html}]'.encode())
    assert from_json(b'["s","t",false,[],false,null]') == Extracted("s", "t", False, (), False)
