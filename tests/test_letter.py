"""relay/letter.py: what is left of strangers' HTML, on its own, against the corpora, and in its worker process."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
import pytest_asyncio

from relay.core.letter import Letter
from relay.core.wire import stuff
from relay.extract import Extractor
from relay.extract_frames import CAREFUL, LETTER, letter_as_json, letter_from_json
from relay.extract_worker import _answer, read_letter
from relay.letter import MAX_READ, safe
from tests.corpora import corpus
from tests.test_extract_worker import alternative, mail

#: Elements that run, load, send or frame something, or move what stands around them.
HARMFUL = re.compile(
    r"script|style|link|meta|base|i?frame|frameset|object|embed|applet|svg|math|form|input|button|select|textarea|audio|"
    r"video|source|track|canvas|template|noscript|isindex|keygen|portal|slot|marquee|html|head|body|title|xml|.*[:-].*"
)
HARMLESS_ATTRIBUTES = re.compile(
    r"style|dir|lang|title|href|target|rel|src|alt|width|height|v?align|border|[hv]space|color|face|size|bgcolor|"
    r"cellpadding|cellspacing|colspan|rowspan|nowrap|start|type|value|datetime"
)
LOADS_NOTHING = re.compile(r"(?!.*(?:url|image|expression|/\*|\\|@|behavior|binding))[\w\s#%.,()'\"!+/:;-]*\Z", re.I)


class Checked(HTMLParser):
    """Reads what is left as a browser would, and fails for anything that is not harmless."""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert not HARMFUL.fullmatch(tag), tag
        for name, value in attrs:
            assert HARMLESS_ATTRIBUTES.fullmatch(name), (tag, name)
            assert value is not None
            if name == "href":
                assert re.match(r"(https?://|mailto:|tel:)", value, re.IGNORECASE), value
            elif name == "src":
                assert re.match(r"(data:image/(png|jpeg|gif|webp|bmp);base64,|[0-9a-f]{16}-\d+\Z)", value), value
            elif name == "style":
                assert LOADS_NOTHING.match(value), value

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")

    def handle_decl(self, decl: str) -> None:
        raise AssertionError(f"a declaration: {decl}")

    def unknown_decl(self, data: str) -> None:
        raise AssertionError(f"a declaration: {data}")

    def handle_pi(self, data: str) -> None:
        raise AssertionError(f"an instruction: {data}")


def checked(page: str) -> Letter:
    letter = safe(page, {"pic@x": 0})
    assert letter.html is not None
    parser = Checked()
    parser.feed(letter.html)
    parser.close()
    return letter


def html(page: str) -> str | None:
    return checked(page).html


# ---- what is left


def test_words_tables_and_colours_stay() -> None:
    page = '<table width="100%" bgcolor="red"><tbody><tr><td colspan="2"><b>x</b></td></tr></tbody></table>'
    assert html(page) == page


@pytest.mark.parametrize(
    ("style", "left"),
    [
        ("color: red; FONT-SIZE:12px", "color:red;font-size:12px"),
        ("color: rgb(1, 2, 3) !important", "color:rgb(1, 2, 3) !important"),
        ("font: bold 12px/1.5 'Arial', serif", "font:bold 12px/1.5 'Arial', serif"),
        ("background: #fff", "background:#fff"),
        ("background: #fff url(//x.example/a.png)", None),
        ("background: u\\72l(//x.example/a.png)", None),
        ("background-image: none", None),
        ("width: 10px; background: image-set('a' 1x)", "width:10px"),
        ("width: calc(100% - 10px)", "width:calc(100% - 10px)"),
        ("width: expression(alert(1))", None),
        ("width: 1px/**/; height: env(x)", None),
        ("color: var(--x)", None),
        ("position: fixed; z-index: 9; cursor: url(x)", None),
        ("content: 'x'; behavior: x; -moz-binding: x", None),
        ("color", None),
        (":red;;;", None),
    ],
)
def test_a_style_keeps_what_changes_only_looks(style: str, left: str | None) -> None:
    found = re.search(r'style="([^"]*)"', html(f'<p style="{style}">x</p>') or "")
    assert (found[1] if found else None) == left


@pytest.mark.parametrize(
    ("href", "left"),
    [
        ("https://x.example/?a&amp;b", True),
        ("mailto:ann@example.org", True),
        ("tel:+123", True),
        (" HTTPS://x.example", True),
        ("/ui/settings", False),
        ("//x.example", False),
        ("javascript:alert(1)", False),
        ("java&#10;script:alert(1)", False),
        ("data:text/html,x", False),
        ("cid:pic@x", False),
        ("vbscript:x", False),
    ],
)
def test_a_link_leads_out_or_nowhere(href: str, left: bool) -> None:
    found = html(f'<a href="{href}" onclick="x()" ping="https://p.example">x</a>') or ""
    assert ("href=" in found) is left
    assert 'rel="noopener noreferrer nofollow"' in found


def test_a_picture_that_came_along_is_named_by_the_marker() -> None:
    letter = safe('<img src="cid:a%40b" alt="A"><img src="CID:a@b"><img src="cid:other">', {"a@b": 3})
    assert letter.html == f'<img src="{letter.marker}-3" alt="A"><img src="{letter.marker}-3"><img>'
    assert letter.remote == 0


def test_nobody_can_write_the_marker() -> None:
    assert safe("", {}).marker != safe("", {}).marker


def test_pictures_elsewhere_are_counted_once_each_and_not_kept() -> None:
    letter = checked(
        '<img src="https://x.example/a.png" alt="Our shop"><img src="https://x.example/a.png"><img src="//y.example/b">'
        '<img srcset="https://x.example/c 2x"><table background="https://x.example/d"><td background=e></table>'
        '<iframe src="https://x.example/f"></iframe><video src="https://x.example/v"></video>'
        '<img src="/a/token/name"><img src="data:image/svg+xml;base64,AA=="><img src="data:image/png;base64,AA==">'
    )
    assert letter.remote == 2
    assert "example" not in (letter.html or "")
    assert '<img alt="Our shop">' in (letter.html or "")
    assert 'src="data:image/png;base64,AA=="' in (letter.html or "")


def test_a_script_goes_with_what_stands_in_it() -> None:
    assert html("a<script>alert(1)</script><style>p{}</style><svg><text>x</text></svg><title>t</title>b") == "ab"


def test_a_form_leaves_its_words() -> None:
    assert html('<form action="https://x.example">Name <input name="n"><button>Send</button></form>') == "Name Send"


def test_what_is_too_long_is_cut_and_what_grows_too_long_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    letter = safe("x" * (MAX_READ + 1), {})
    assert (len(letter.html or ""), letter.cut) == (MAX_READ, True)
    monkeypatch.setattr("relay.letter.MAX_SAFE", 100)
    assert safe("<" * 26, {}) == Letter(cut=True)


# ---- the corpora


def vectors() -> str:
    return (corpus("xss-h5sc") / "vectors.txt").read_text("utf-8", "replace")


def strings() -> Iterator[str]:
    yield from json.loads((corpus("strings-blns") / "blns.json").read_text("utf-8"))


def test_nothing_harmful_is_left_of_any_vector() -> None:
    page = vectors()
    one_by_one = re.split(r'(?=<div id="\d+">)', page)
    assert len(one_by_one) > 130
    for vector in one_by_one:
        checked(vector)
        checked(f'<table background="x">{vector}<p style="{vector}" title=\'{vector}\'>')
    checked(page)


def test_nothing_harmful_is_left_of_any_string() -> None:
    for string in strings():
        for page in (string, f'<a href="{string}">', f"<img src='{string}' alt={string}>", f'<p style="{string}">'):
            checked(page)


# ---- messages


def test_a_letter_without_html_has_none() -> None:
    assert read_letter(mail("plain")) == Letter()


def test_the_html_form_is_taken_and_pictures_are_found_by_their_content_id() -> None:
    letter = read_letter(_related())
    assert letter.html == f'<p>Ъ</p><img src="{letter.marker}-1"><img>'


def _related() -> bytes:
    head = b"Subject: x\r\nContent-Type: multipart/related; boundary=r\r\n\r\n"
    parts = (
        b"--r\r\nContent-Type: text/html; charset=koi8-r\r\n\r\n<p>\xff</p>"
        b'<img src="cid:pic@x"><img src="cid:evil@x">\r\n',
        b"--r\r\nContent-Type: image/svg+xml\r\nContent-ID: <evil@x>\r\n\r\n<svg onload=alert(1)>\r\n",
        b"--r\r\nContent-Type: image/png\r\nContent-ID: <pic@x>\r\nContent-Transfer-Encoding: base64\r\n\r\nAA==\r\n",
    )
    return head + b"".join(parts) + b"--r--\r\n"


def test_a_letter_that_ended_a_worker_is_not_read_again() -> None:
    assert letter_from_json(_answer(LETTER | CAREFUL, alternative("x", "<p>y</p>"))) == Letter(cut=True)


def test_letters_cross_the_socket_whole() -> None:
    letter = Letter("<p>\u2028Ъ</p>", "ab", 3, True)
    assert letter_from_json(letter_as_json(letter)) == letter


@pytest.mark.parametrize("answer", [b"[]", b'[1,"",0,false]', b'["","",true,false]', b'["","",0,0]', b"{"])
def test_an_answer_of_another_shape_is_refused(answer: bytes) -> None:
    with pytest.raises((ValueError, TypeError)):
        letter_from_json(answer)


@pytest_asyncio.fixture
async def extractor() -> AsyncIterator[Extractor]:
    found = Extractor(timeout=1.5)
    await found.start()
    yield found
    await found.close()


async def test_a_worker_reads_letters_and_messages_alike(extractor: Extractor, tmp_path: Path) -> None:
    message = alternative("plain", "<p onclick=x>\r\n.shown</p>")
    path = tmp_path / "body"
    path.write_bytes(stuff(message))
    for source in (stuff(message), path):
        letter = await extractor.letter(source)
        assert letter.html == "<p>\n.shown</p>"
    assert (await extractor.extract(stuff(message))).text == "plain"


async def test_a_page_that_takes_too_long_costs_its_worker_and_nobody_else(extractor: Extractor) -> None:
    before = extractor.pids
    letter = await extractor.letter(mail("<div>" * 200_000, "text/html"))
    assert letter == Letter(cut=True)
    assert extractor.pids != before
    assert (await extractor.letter(mail("<b>x</b>", "text/html"))).html == "<b>x</b>"


async def test_a_page_that_fills_the_memory_costs_its_worker_and_nobody_else() -> None:
    grows = "".join(f"<font color={n}>" for n in range(2_000)) + "<p>x" * 50_000
    extractor = Extractor(timeout=30, memory=192 * 1024 * 1024)
    await extractor.start()
    try:
        assert await extractor.letter(mail(f"<p>{grows}", "text/html")) == Letter(cut=True)
        assert (await extractor.letter(mail("<b>x</b>", "text/html"))).html == "<b>x</b>"
    finally:
        await extractor.close()
