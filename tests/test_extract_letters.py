"""What customers' mailers send, read by the real worker: charsets and their labels, HTML, names, flowed text."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Sequence

import pytest
import pytest_asyncio

from relay.core.mime import Extracted
from relay.core.wire import stuff
from relay.extract import Extractor

pytestmark = pytest.mark.asyncio(loop_scope="module")

RUSSIAN = "Здравствуйте!\nСколько стоит доставка в Казань?"
JAPANESE = "お世話になっております。\n見積りをお願いします。"
CHINESE = "您好,请问这个产品多少钱?\n谢谢"
TRADITIONAL = "您好,請問這個產品多少錢?\n謝謝"
KOREAN = "안녕하세요.\n가격이 얼마인가요?"
GERMAN = "Guten Tag,\nwas kostet der Versand nach Österreich?"
WESTERN = "“Größe XL” – 45 €…"


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def extractor() -> AsyncIterator[Extractor]:
    made = Extractor()
    await made.start()
    yield made
    await made.close()


async def read(
    extractor: Extractor, body: bytes, content_type: str = "text/plain", *fields: bytes, encoding: str = "8bit"
) -> Extracted:
    head = [f"Content-Type: {content_type}".encode(), f"Content-Transfer-Encoding: {encoding}".encode(), *fields]
    return await extractor.extract(stuff(b"\r\n".join([*head, b"", body])))


def word(text: str, charset: str, label: str = "", encoding: str = "B") -> bytes:
    octets = text.encode(charset)
    encoded = base64.b64encode(octets) if encoding == "B" else b"".join(b"=%02X" % octet for octet in octets)
    return b"=?%s?%s?%s?=" % ((label or charset).encode(), encoding.encode(), encoded)


#: (text, Python's codec, the label in the message)
LETTERS = [
    *((RUSSIAN, charset, charset) for charset in ("windows-1251", "koi8-r", "cp866", "iso-8859-5", "utf-8")),
    (JAPANESE, "iso2022_jp", "iso-2022-jp"),
    (JAPANESE, "cp932", "shift_jis"),
    (JAPANESE, "euc_jp", "EUC-JP"),
    ("髙橋①", "cp932", "Shift_JIS"),  # letters that Windows added
    (CHINESE, "gb18030", "gb18030"),
    (CHINESE, "gb18030", "gb2312"),
    ("朱镕基 €", "gb18030", "gb2312"),  # neither letter is in GB 2312
    (TRADITIONAL, "big5", "big5"),
    (KOREAN, "euc_kr", "euc-kr"),
    ("똠방각하", "cp949", "euc-kr"),
    (RUSSIAN, "utf-7", "utf-7"),
    (CHINESE, "utf-7", "UNICODE-1-1-UTF-7"),
    (WESTERN, "cp1252", "iso-8859-1"),
    (WESTERN, "cp1252", "windows-1252"),
    (GERMAN, "iso-8859-1", "ISO-8859-1"),
    (GERMAN, "iso-8859-15", "iso-8859-15"),
    # labels that are wrong
    *((RUSSIAN, "utf-8", label) for label in ("us-ascii", "iso-8859-1", "windows-1251", "koi8-r", "x-unknown")),
    *((RUSSIAN, "cp1251", label) for label in ("utf-8", "us-ascii", "unknown-8bit", "win-1251")),
    (CHINESE, "utf-8", "gb2312"),
    (CHINESE, "gb18030", "utf-8"),
    (JAPANESE, "cp932", "iso-2022-jp"),
    (JAPANESE, "iso2022_jp", "us-ascii"),
    (GERMAN, "cp1252", "utf-8"),
    # none
    *((RUSSIAN, charset, "") for charset in ("cp1251", "koi8-r", "cp866", "utf-8")),
    *((JAPANESE, charset, "") for charset in ("iso2022_jp", "cp932", "euc_jp", "utf-8")),
    *((text, charset, "") for text, charset in ((CHINESE, "gb18030"), (TRADITIONAL, "big5"), (KOREAN, "euc_kr"))),
    *((text, "cp1252", "") for text in (GERMAN, WESTERN)),
]


@pytest.mark.parametrize("encoding", ["8bit", "base64", "quoted-printable"])
@pytest.mark.parametrize(("text", "charset", "label"), LETTERS)
async def test_the_text_is_what_its_writer_wrote(
    text: str, charset: str, label: str, encoding: str, extractor: Extractor
) -> None:
    octets = text.replace("\n", "\r\n").encode(charset)
    if encoding == "base64":
        octets = base64.encodebytes(octets)
    elif encoding == "quoted-printable":
        octets = b"".join(b"=%02X" % octet for octet in octets)
    content_type = f"text/plain; charset={label}" if label else "text/plain"
    found = await read(extractor, octets, content_type, encoding=encoding)
    assert (found.text, found.html_only, found.partial) == (text, False, False)


@pytest.mark.parametrize("text", ["Заявка с сайта", "见积", "お問い合わせ", "문의드립니다", "Größe"])
@pytest.mark.parametrize("encoding", ["B", "Q"])
async def test_a_subject_is_read_in_every_charset_that_has_its_letters(
    text: str, encoding: str, extractor: Extractor
) -> None:
    tried = 0
    for charset in (
        "utf-8",
        "cp1251",
        "koi8-r",
        "iso-2022-jp",
        "gb18030",
        "big5-hkscs",
        "shift_jis",
        "euc-kr",
        "iso-8859-1",
    ):
        try:
            subject = word(text, charset, "windows-1251" if charset == "cp1251" else "", encoding)
        except UnicodeEncodeError:
            continue
        tried += 1
        assert (await read(extractor, b"", "text/plain", b"Subject: " + subject)).subject == text
    assert tried >= 2


def split(text: str, charset: str, at: int) -> bytes:
    """Two encoded words of which the first ends inside of a letter."""
    octets = text.encode(charset)
    halves = (base64.b64encode(half).decode() for half in (octets[:at], octets[at:]))
    return b"\r\n ".join(f"=?{charset}?B?{half}?=".encode() for half in halves)


@pytest.mark.parametrize(
    ("subject", "text"),
    [
        (split("Заказ окон", "utf-8", 3), "Заказ окон"),
        (split("产品咨询", "gb2312", 3), "产品咨询"),
        (split("お見積り", "shift_jis", 5), "お見積り"),
        (word("До", "koi8-r") + b" " + word("говор", "windows-1251", encoding="Q"), "Договор"),
        (b"Re: " + word("счёт", "koi8-r") + b" 12 " + word("价格", "gb18030"), "Re: счёт 12 价格"),
        ("Сколько стоит?".encode("cp1251"), "Сколько стоит?"),
        ("Сколько стоит?".encode("koi8-r"), "Сколько стоит?"),
        ("Сколько стоит?".encode(), "Сколько стоит?"),
        ("お見積りの件".encode("cp932"), "お見積りの件"),
        ("お見積りの件".encode("iso2022_jp"), "お見積りの件"),
        ("请问多少钱".encode("gb18030"), "请问多少钱"),
        ("Prix café".encode("cp1252"), "Prix café"),
    ],
)
async def test_a_subject_in_pieces_or_raw_is_read(subject: bytes, text: str, extractor: Extractor) -> None:
    assert (await read(extractor, b"", "text/plain", b"Subject: " + subject)).subject == text


PLACES = {
    "both": b'Content-Type: a/b; name="%s"\r\nContent-Disposition: attachment; filename="%s"',
    "name alone": b'Content-Type: a/b; name="%s"\r\nContent-Disposition: attachment',
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "given",
    [
        word("Счёт № 5.pdf", "windows-1251"),
        word("Счёт № 5.pdf", "utf-8", encoding="Q"),
        split("Счёт № 5.pdf", "utf-8", 5).replace(b"\r\n", b""),
        "Счёт № 5.pdf".encode(),
        "Счёт № 5.pdf".encode("cp1251"),
    ],
)
async def test_a_name_is_read_wherever_and_however_it_stands(given: bytes, place: str, extractor: Extractor) -> None:
    head = PLACES[place].replace(b"%s", given)
    (part,) = (
        await read(extractor, b"--b\r\n" + head + b"\r\n\r\nx\r\n--b--", "multipart/mixed; boundary=b")
    ).attachments
    assert part.name == "Счёт № 5.pdf"


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ("filename*=windows-1251''%D1%F7%B8%F2.pdf", "Счёт.pdf"),
        ("filename*=KOI8-R'ru'%F3%DE%A3%D4.pdf", "Счёт.pdf"),
        ("filename*0*=windows-1251''%D1%F7; filename*1*=%B8%F2; filename*2=.pdf", "Счёт.pdf"),
        ("filename*1*=%B8%F2.pdf;\r\n filename*0*=windows-1251''%D1%F7", "Счёт.pdf"),
        ("filename*0*=utf-8''%D0%A1%D1%87%D1; filename*1*=%91%D1%82.pdf", "Счёт.pdf"),
        ("filename*0*=iso-2022-jp''%1B$B8%2B; filename*1*=%40Q%1B%28B.pdf", "見積.pdf"),
        ('filename*0="long name "; filename*1="of a file.pdf"', "long name of a file.pdf"),
        ("filename=\"Schet.pdf\"; filename*=utf-8''%D0%A1%D1%87%D1%91%D1%82.pdf", "Счёт.pdf"),
        ("filename*=''%D1%F7%B8%F2.pdf", "Счёт.pdf"),
        ("filename*=gb2312''%B1%A8%BC%DB%B5%A5.xls", "报价单.xls"),
    ],
)
async def test_an_rfc_2231_name_is_read(parameters: str, name: str, extractor: Extractor) -> None:
    for field, key in (("Content-Disposition: attachment; ", "filename"), ("Content-Type: a/b; ", "name")):
        head = (field + parameters.replace("filename", key)).encode()
        if key == "filename":
            head = b"Content-Type: a/b\r\n" + head
        body = b"--b\r\n" + head + b"\r\n\r\nx\r\n--b--"
        (part,) = (await read(extractor, body, "multipart/mixed; boundary=b")).attachments
        assert part.name == name


PAGES = [
    ("<p>Caf&eacute; &amp; Bar &#8212; 5&nbsp;&euro; &lt;b&gt; &#x416;</p>", "Café & Bar — 5 € <b> Ж"),
    ("<style>p { color: red }</style><p>text</p><script>var x = '<p>no</p>';</script>", "text"),
    ("<head><title>no</title><style>@media print { a:after { content: 'no' } }</style></head><body>yes</body>", "yes"),
    ("<STYLE type='text/css'>.MsoNormal{}</STYLE><!--[if mso]><p>no</p><![endif]--><p>Outlook</p>", "Outlook"),
    ('<p>see <a href="https://shop.test/1?x=y">the offer</a>, please</p>', "see the offer, please"),
    ("<div>one</div><div>two<br>three</div>", "one\ntwo\nthree"),
    ("<p>a</p><p>b</p>", "a\n\nb"),
    ("<div style='display:none'>preheader</div><p>shown</p>", "shown"),
]


@pytest.mark.parametrize(("page", "text"), PAGES)
async def test_a_page_alone_becomes_its_text(page: str, text: str, extractor: Extractor) -> None:
    found = await read(extractor, page.encode(), "text/html; charset=utf-8")
    assert (found.text, found.html_only, found.partial) == (text, True, False)


async def test_a_table_keeps_its_rows_apart(extractor: Extractor) -> None:
    page = b"<table><tr><td>Item</td><td>Price</td></tr><tr><td>Door</td><td>5</td></tr></table>"
    text = (await read(extractor, page, "text/html")).text or ""
    assert [line.split() for line in text.split("\n")] == [["Item", "Price"], ["Door", "5"]]


def declaring(charset: str) -> str:
    return f'<html><head><meta http-equiv="Content-Type" content="text/html; charset={charset}"></head><p>Привет, Анна'


@pytest.mark.parametrize(
    ("octets", "label"),
    [
        (declaring("koi8-r").encode("cp1251"), "windows-1251"),  # the label wins, a gateway may have changed both
        (declaring("utf-8").encode("koi8-r"), "koi8-r"),
        (declaring("utf-8").encode(), "iso-8859-1"),
        (declaring("windows-1251").encode("cp1251"), "utf-8"),
        (declaring("windows-1251").encode("cp1251"), "us-ascii"),
        (declaring("koi8-r").encode("koi8-r"), "x-unknown"),
        (declaring("koi8-r").encode("koi8-r"), ""),
        (declaring("utf-16").encode(), ""),
    ],
)
async def test_a_page_that_contradicts_its_label_is_read(octets: bytes, label: str, extractor: Extractor) -> None:
    assert (
        await read(extractor, octets, f"text/html; charset={label}" if label else "text/html")
    ).text == "Привет, Анна"


def alternative(plain: Sequence[bytes], page: bytes) -> bytes:
    return b"--b\r\n" + b"\r\n".join(plain) + b"\r\n--b\r\nContent-Type: text/html\r\n\r\n" + page + b"\r\n--b--"


@pytest.mark.parametrize("plain", [b"", b"\r\n", b" \t\r\n\r\n", b"\xc2\xa0\r\n", b"\xe2\x80\x8b\r\n", b"\xef\xbb\xbf"])
async def test_a_plain_form_of_white_space_gives_way_to_the_page(plain: bytes, extractor: Extractor) -> None:
    body = alternative((b"Content-Type: text/plain; charset=utf-8", b"", plain), b"<p>page</p>")
    found = await read(extractor, body, "multipart/alternative; boundary=b")
    assert (found.text, found.html_only) == ("page", True)


@pytest.mark.parametrize(
    ("parameters", "sent", "text"),
    [
        ("format=flowed", "Good day, \r\ndo you have \r\ndoors?\r\n\r\nAnn", "Good day, do you have doors?\n\nAnn"),
        ("format=flowed; delsp=yes", "お世話に \r\nなります", "お世話になります"),
        (
            "format=flowed",
            "> first \r\n> line\r\n>> deeper \r\n>> still\r\nmine",
            "> first line\n>> deeper still\nmine",
        ),
        ("format=flowed", "Bye\r\n-- \r\nAnn \r\nSmith", "Bye\n-- \nAnn Smith"),
        ("format=flowed", " From me\r\n >not a quote\r\n  indented", "From me\n>not a quote\n indented"),
        ("format=fixed", "one \r\ntwo", "one \ntwo"),
    ],
)
async def test_flowed_text_is_read(parameters: str, sent: str, text: str, extractor: Extractor) -> None:
    found = await read(extractor, sent.encode(), f"text/plain; charset=utf-8; {parameters}")
    assert found.text == text
