"""The subject, the text and the names in the CRM's payload are what the customer wrote, in whatever charset."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest
import pytest_asyncio

from tests.scenarios.world import SECRET, World, world

pytestmark = [pytest.mark.scenario, pytest.mark.asyncio(loop_scope="module")]


@dataclass(frozen=True)
class Letter:
    content: bytes
    subject: str
    text: str
    names: tuple[str, ...] = ()


def word(text: str, charset: str) -> bytes:
    return b"=?%s?B?%s?=" % (charset.encode(), base64.b64encode(text.encode(charset)))


def lines(*of: bytes | str) -> bytes:
    return b"\r\n".join(line.encode() if isinstance(line, str) else line for line in (*of, b""))


def wrapped(octets: bytes) -> bytes:
    """In base64, as lines of a message."""
    return base64.encodebytes(octets).strip().replace(b"\n", b"\r\n")


def head(subject: bytes, *fields: str) -> bytes:
    return lines(b"From: =?utf-8?Q?=D0=90=D0=BD=D0=BD=D0=B0?= <anna@customer.test>", b"Subject: " + subject, *fields)


LETTERS = {
    "windows-1251 of Outlook Express, with an attachment": Letter(
        head(
            word("Заявка на окна № 15", "windows-1251"),
            "MIME-Version: 1.0",
            'Content-Type: multipart/mixed; boundary="----=_NextPart_000_0005"',
            "X-Mailer: Microsoft Outlook Express 6.00.2900.5931",
        )
        + lines(
            "",
            "This is a multi-part message in MIME format.",
            "",
            "------=_NextPart_000_0005",
            'Content-Type: text/plain; charset="windows-1251"',
            "Content-Transfer-Encoding: quoted-printable",
            "",
            "=C4=EE=E1=F0=FB=E9 =E4=E5=ED=FC! =CF=F0=EE=F1=E8=EC =E2=FB=F1=F2=E0=E2=E8=F2=",
            "=FC =F1=F7=B8=F2.",
            "",
            "------=_NextPart_000_0005",
            'Content-Type: application/msword; name="' + word("Реквизиты.doc", "windows-1251").decode() + '"',
            "Content-Disposition: attachment;",
            "\tfilename*0*=windows-1251''%D0%E5%EA%E2%E8;",
            "\tfilename*1*=%E7%E8%F2%FB.doc",
            "Content-Transfer-Encoding: base64",
            "",
            wrapped(b"\xd0\xcf\x11\xe0 requisites"),
            "",
            "------=_NextPart_000_0005--",
        ),
        "Заявка на окна № 15",
        "Добрый день! Просим выставить счёт.",
        ("Реквизиты.doc",),
    ),
    "koi8-r of Mutt": Letter(
        head(
            word("Доставка в Казань", "koi8-r"),
            "MIME-Version: 1.0",
            "Content-Type: text/plain; charset=koi8-r",
            "Content-Transfer-Encoding: 8bit",
        )
        + lines("", "Здравствуйте. Сколько стоит доставка?".encode("koi8-r")),
        "Доставка в Казань",
        "Здравствуйте. Сколько стоит доставка?",
    ),
    "iso-2022-jp, the subject in two words": Letter(
        head(
            word("見積の", "iso-2022-jp") + b"\r\n " + word("お願い", "iso-2022-jp"),
            "MIME-Version: 1.0",
            "Content-Type: text/plain; charset=ISO-2022-JP",
            "Content-Transfer-Encoding: 7bit",
        )
        + lines("", "お世話になっております。\r\n株式会社山田の佐藤です。".encode("iso2022_jp")),
        "見積のお願い",
        "お世話になっております。\n株式会社山田の佐藤です。",
    ),
    "gb18030 that says gb2312, with a name": Letter(
        head(
            b"=?gb2312?B?%s?=" % base64.b64encode("询价：朱镕基路 €".encode("gb18030")),
            "MIME-Version: 1.0",
            "Content-Type: multipart/mixed; boundary=foxmail",
        )
        + lines(
            "",
            "--foxmail",
            'Content-Type: text/plain; charset="gb2312"',
            "Content-Transfer-Encoding: base64",
            "",
            wrapped("您好，请发一份报价单给我。\r\n谢谢！".encode("gb18030")),
            "--foxmail",
            b'Content-Type: application/pdf; name="' + "图纸.pdf".encode("gb18030") + b'"',
            "Content-Transfer-Encoding: base64",
            "",
            wrapped(b"%PDF-1.4"),
            "--foxmail--",
        ),
        "询价：朱镕基路 €",
        "您好，请发一份报价单给我。\n谢谢！",
        ("图纸.pdf",),
    ),
    "a form's mail that names no charset, in windows-1251": Letter(
        head("Заявка с сайта".encode("cp1251"))
        + lines("", "Имя: Ольга\r\nВопрос: есть ли двери в наличии?".encode("cp1251")),
        "Заявка с сайта",
        "Имя: Ольга\nВопрос: есть ли двери в наличии?",
    ),
    "Japanese that names no charset, in Shift_JIS": Letter(
        head("お問い合わせ".encode("cp932")) + lines("", "商品の在庫はありますか。".encode("cp932")),
        "お問い合わせ",
        "商品の在庫はありますか。",
    ),
    "utf-8 that says iso-8859-1": Letter(
        head(
            b"=?iso-8859-1?B?%s?=" % base64.b64encode("Größe XL".encode()),
            "Content-Type: text/plain; charset=iso-8859-1",
        )
        + lines("", "Ist die Größe XL noch verfügbar?"),
        "Größe XL",
        "Ist die Größe XL noch verfügbar?",
    ),
    "HTML alone, in the charset of its meta": Letter(
        head(
            b"=?koi8-r?Q?=E3=C5=CE=C1_?= =?koi8-r?Q?=C4=D7=C5=D2=C9?=",
            "MIME-Version: 1.0",
            "Content-Type: text/html",
            "Content-Transfer-Encoding: 8bit",
        )
        + lines(
            "",
            '<html><head><meta http-equiv="Content-Type" content="text/html; charset=koi8-r">',
            "<style>p { color: red }</style><script>var no = 1;</script></head>",
            "<body><p>Сколько стоит&nbsp;<b>дверь</b>?</p>".encode("koi8-r"),
            '<p>&laquo;<a href="https://customer.test/">Ромашка</a>&raquo; &amp; Co</p></body></html>'.encode("koi8-r"),
        ),
        "Цена двери",
        "Сколько стоит дверь?\n\n«Ромашка» & Co",
    ),
    "an empty plain form beside HTML": Letter(
        head(
            b"=?utf-8?B?0JfQ?= =?utf-8?B?sNC60LDQtw==?=",
            "MIME-Version: 1.0",
            "Content-Type: multipart/alternative; boundary=alt",
        )
        + lines(
            "",
            "--alt",
            "Content-Type: text/plain; charset=utf-8",
            "",
            "\u00a0 ",
            "--alt",
            "Content-Type: text/html; charset=utf-8",
            "",
            "<table><tr><td>Нужны окна</td></tr></table>",
            "--alt--",
        ),
        "Заказ",
        "Нужны окна",
    ),
    "format=flowed with delsp": Letter(
        head(
            word("Doors", "utf-8"),
            "MIME-Version: 1.0",
            "Content-Type: text/plain; charset=utf-8; format=flowed; delsp=yes",
        )
        + lines("", "Good day,  ", "do you have doors?", "", "> What  ", "> is it?", " From Ann", "-- ", "Ann"),
        "Doors",
        "Good day, do you have doors?\n\n> What is it?\nFrom Ann\n-- \nAnn",
    ),
}


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def relay(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[World]:
    async with world(tmp_path_factory.mktemp("text")) as made:
        yield made


@pytest.mark.parametrize("kind", LETTERS)
async def test_the_crm_gets_what_the_customer_wrote(kind: str, relay: World) -> None:
    letter = LETTERS[kind]
    message = await relay.mail(await relay.shown(), letter.content)
    posted = (await relay.posted(message)).json
    names = tuple(attachment["name"] for attachment in posted["attachments"])
    assert (posted["subject"], posted["text"], names) == (letter.subject, letter.text, letter.names)
    assert "html" not in posted
    assert await relay.rows("SELECT html FROM texts WHERE message_id = ?", message) == [(None,)]
    await relay.arrived(letter.content)


async def test_a_webhook_with_extras_gets_the_html_as_its_sender_wrote_it(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    page = LETTERS["HTML alone, in the charset of its meta"]
    async with world(
        tmp_path_factory.mktemp("extras"),
        hook=lambda crm: [{"url": crm.url, "secret": SECRET, "extras": True}],
    ) as relay:
        posted = (await relay.posted(await relay.mail(await relay.shown(), page.content))).json
        wrote = page.content.partition(b"\r\n\r\n")[2].decode("koi8-r").replace("\r\n", "\n")
        assert (posted["html"], posted["text"]) == (wrote, page.text)
        plain = LETTERS["koi8-r of Mutt"]
        posted = (await relay.posted(await relay.mail(await relay.shown(), plain.content))).json
        assert (posted["html"], posted["text"]) == (None, plain.text)
        rows = await relay.rows("SELECT html FROM texts ORDER BY message_id")
        assert rows == [(wrote,), (None,)]
