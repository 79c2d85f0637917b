"""relay/core/mimetext.py: subjects, attachment names, format=flowed."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.core.mime import MAX_HEADER, Value
from relay.core.mimetext import (
    MAX_NAME,
    MAX_NAME_OCTETS,
    MAX_SUBJECT,
    file_name,
    header_text,
    headers_only,
    parameter_text,
    safe_name,
    subject_text,
    unflow,
)
from tests.linear import linear


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"plain words", "plain words"),
        (b"=?utf-8?B?0JfQsNC60LDQtw==?= 12", "Заказ 12"),
        (b"=?UTF-8?q?caf=C3=A9_noir?=", "café noir"),
        (b"=?koi8-r?B?+sHRz8s=?=", "Заяок"),
        (b"=?utf-8?B?0JfQ?= =?utf-8?B?sNC60LDQtw?=", "Заказ"),
        (b"=?utf-8?q?a?=\t =?utf-8?q?b?= c", "ab c"),
        (b"=?iso-8859-1?q?=E4?= =?koi8-r?b?+g==?=", "äЗ"),
        (b"=?iso-2022-jp?B?GyRCRnxLXBsoQg==?=", "日本"),
        (b"=?utf-8*ru?q?=D0=B0?=", "а"),
        (b"=?utf-8?q?with spaces inside?=", "with spaces inside"),
        (b"=?utf-8?B?!!!?=", ""),
        (b"=?utf-8?B?YQ?=", "a"),
        (b"=?x-unknown?q?a=FCb?=", "aüb"),
        (b"Re: =?broken", "Re: =?broken"),
        (b"=?utf-8?q?a=0D=0ABcc:_x?=", "a Bcc: x"),
        (b"two  \t spaces\r\n and a fold", "two spaces and a fold"),
        ("Заказ без метки".encode("cp1251"), "Заказ без метки"),
        ("Сырой UTF-8".encode(), "Сырой UTF-8"),
        (b"=?iso-8859-1?Q?Fr\xf6sche?=", "Frösche"),
        (b"=?utf-7?q?+2AA-?=x", "x"),
        (b"=?windows-1251?Q?=C7=E0=FF=E2=EA=E0_=B9_5?=", "Заявка № 5"),
        (b"=?utf-8?B?0JfQ?= =?UTF-8?Q?=B0=D0=BA=D0=B0=D0=B7?=", "Заказ"),  # a letter split between B and Q
        (b"=?gb2312?B?vA==?= =?GB2312?B?+w==?=", "见"),
        (b"=?utf-8?Q?=D0=97?= =?koi8-r?Q?=C1?= =?windows-1251?Q?=EA?=", "Зак"),
        (b"=?iso-2022-jp?B?GyRCOCtAUSROGyhC?=\r\n =?iso-2022-jp?B?GyRCJCo0aiQkGyhC?=", "見積のお願い"),
        ("お見積り".encode("iso2022_jp"), "お見積り"),
        ("询价单".encode("gb18030"), "询价单"),
        (
            b"Re: =?koi8-r?B?" + base64.b64encode("счёт".encode("koi8-r")) + b"?= (" + "копия".encode("cp1251") + b")",
            "Re: счёт (копия)",
        ),
    ],
)
def test_a_header_field_is_shown_as_its_writer_meant_it(raw: bytes, text: str) -> None:
    assert header_text(raw) == text


@pytest.mark.parametrize("raw", [None, b"", b"  ", b"=?utf-8?q??="])
def test_no_subject_and_an_empty_one_are_none(raw: bytes | None) -> None:
    assert subject_text(raw) is None


def test_a_subject_has_at_most_998_characters() -> None:
    assert subject_text(b"a" * 5_000) == "a" * MAX_SUBJECT


@pytest.mark.parametrize(
    ("unit", "times"),
    [
        (b"=?utf-8?q?a?= ", 240_000),
        (b"=?utf-8?b?", 320_000),
        (b"=?", 1_600_000),
        (b"=?a?q?", 540_000),
        (b'"', 3_200_000),
    ],
)
def test_hostile_encoded_words_are_read_in_linear_time(unit: bytes, times: int) -> None:
    raw = unit * times
    with linear():  # quadratic work on so much takes hours
        text = header_text(raw)
    assert len(text) <= len(raw)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_any_octets_become_one_line_that_utf_8_can_hold(raw: bytes) -> None:
    text = header_text(b"=?utf-7?q?" + raw + b"?= " + raw)
    text.encode()
    assert text == text.strip()
    assert not any(ord(char) < 32 for char in text)


def test_the_header_alone_gives_a_partial_message_with_its_subject() -> None:
    found = headers_only(b"Subject: =?utf-8?q?caf=C3=A9?=\r\n\r\nSubject: not this")
    assert (found.subject, found.text, found.attachments, found.partial) == ("café", None, (), True)
    assert headers_only(b"").subject is None
    assert headers_only(b"X: y\r\n\r\nSubject: not this").subject is None
    assert headers_only(b"\r\nSubject: not this\r\n\r\n").subject is None
    assert headers_only(b"X: y\r\nfoo\r\nSubject: not this\r\n\r\n").subject is None
    assert headers_only(b"X: " + b"y" * MAX_HEADER + b"\r\nSubject: too late").subject is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Value("Счёт.pdf".encode("koi8-r"), "koi8-r"), "Счёт.pdf"),
        (Value(b"=?utf-8?B?0KHRh9GR0YI=?=.pdf"), "Счёт.pdf"),
        (Value("Счёт.pdf".encode()), "Счёт.pdf"),
        (Value(b"plain.pdf"), "plain.pdf"),
        (Value(b"a.pdf", "x-unknown"), "a.pdf"),
    ],
)
def test_a_name_in_a_parameter_is_decoded(value: Value, text: str) -> None:
    assert parameter_text(value) == text


@pytest.mark.parametrize(
    ("given_name", "kind", "name"),
    [
        ("offer.pdf", "application/pdf", "offer.pdf"),
        ("", "application/x-unknown", "part-3.bin"),
        ("", "application/pdf", "part-3.pdf"),
        ("", "text/x-unknown", "part-3.txt"),
        ("", "message/rfc822", "part-3.eml"),
        ("", "application/ms-tnef", "winmail.dat"),
        ("../../etc/passwd", "text/plain", "passwd"),
        (r"C:\Users\me\Заказ.docx", "a/b", "Заказ.docx"),
        ("..", "a/b", "part-3.bin"),
        ("/", "a/b", "part-3.bin"),
        ("folder/", "a/b", "folder"),
        (".htaccess", "a/b", "htaccess"),
        ("in\u202efdp.exe", "a/b", "infdp.exe"),
        ("a\r\nb\x00c.txt", "a/b", "a b c.txt"),
        (" spaces . ", "a/b", "spaces"),
        ("\u200b", "a/b", "part-3.bin"),
        ("nyan cat ✔.gif", "image/gif", "nyan cat ✔.gif"),
        ('what?*<b>"x"|y.txt', "a/b", "what___b__x__y.txt"),
        ("report.pdf:hidden.exe", "a/b", "report.pdf_hidden.exe"),
        ("...", "a/b", "part-3.bin"),
        (". . .", "a/b", "part-3.bin"),
        ("-", "a/b", "part-3.bin"),
        ("-rf", "a/b", "rf"),
        (" .--option=x.txt", "a/b", "option=x.txt"),
        ("trailing.txt. .", "a/b", "trailing.txt"),
        ("a\u00a0\u200b\u3000b.txt", "a/b", "a b.txt"),
        ("AC/DC - T.N.T..mp3", "a/b", "DC - T.N.T..mp3"),
    ],
)
def test_an_attachment_has_a_name_that_can_do_no_harm(given_name: str, kind: str, name: str) -> None:
    assert file_name(given_name, kind, 2) == name


@pytest.mark.parametrize("ending", ["", ".txt", ".tar.gz", " .txt"])
@pytest.mark.parametrize(
    "device",
    [
        *("CON", "PRN", "AUX", "NUL", "con", "Aux", "nUl", "CLOCK$", "CONIN$", "conout$"),
        *(f"{port}{digit}" for port in ("COM", "lpt") for digit in "0123456789¹²³"),
    ],
)
def test_a_device_of_windows_becomes_a_file(device: str, ending: str) -> None:
    assert file_name(device + ending, "a/b", 0) == f"_{device}{ending}"


@pytest.mark.parametrize("name", ["CONTRACT.pdf", "console", "COM10.txt", "my.con", "Auxiliary", "nul_.txt", "lpt.doc"])
def test_a_name_that_only_begins_like_a_device_is_left(name: str) -> None:
    assert file_name(name, "a/b", 0) == name


def test_a_long_name_keeps_its_extension() -> None:
    assert file_name("a" * 300 + ".pdf", "a/b", 0) == "a" * (MAX_NAME - 4) + ".pdf"
    assert file_name("a." + "b" * 300, "a/b", 0) == "a." + "b" * (MAX_NAME - 2)


def test_a_name_is_short_enough_in_octets_too_and_no_character_is_cut() -> None:
    assert file_name("д" * 149 + ".pdf", "a/b", 0) == "д" * 118 + ".pdf"
    assert file_name("😀" * 149, "a/b", 0) == "😀" * 60
    assert file_name("x" + "д" * 149, "a/b", 0) == "x" + "д" * 119


#: Letters as names have them, and all that makes trouble, more often than chance would.
_TROUBLE = st.sampled_from(
    [
        *'/\\<>:"|?*.- \0\r\n\t\x7f\x85\u2028',
        "\u202e",
        "\u200b",
        "\ud800",
        "CON",
        "nul",
        "COM¹",
        ".txt",
        "😀" * 50,
        "ж" * 90,
    ]
)
_NAMES = st.one_of(st.text(max_size=400), st.lists(st.one_of(_TROUBLE, st.text(max_size=3)), max_size=20).map("".join))


@settings(max_examples=250, deadline=None)
@given(_NAMES)
def test_any_name_becomes_one_that_can_be_saved_on_windows_and_unix(given_name: str) -> None:
    name = file_name(given_name, "a/b", 0)
    assert 0 < len(name) <= MAX_NAME
    assert len(name.encode()) <= MAX_NAME_OCTETS <= 255
    assert not set(name) & set('/\\<>:"|?*\u202a\u202b\u202d\u202e\u2066\u2067\u2068\u2069')
    assert not any(ord(char) < 32 or 0x7F <= ord(char) < 0xA0 for char in name)
    assert name[0] not in " .-"
    assert name[-1] not in " ."
    assert name.split(".")[0].rstrip().upper() not in _DEVICES


_DEVICES = {"CON", "PRN", "AUX", "NUL"} | {f"{port}{digit}" for port in ("COM", "LPT") for digit in "123456789¹²³"}


@settings(max_examples=250, deadline=None)
@given(_NAMES)
def test_a_safe_name_is_left_as_it_is(given_name: str) -> None:
    name = safe_name(given_name)
    assert safe_name(name) == name


@pytest.mark.parametrize(
    ("flowed", "delete_space", "text"),
    [
        ("one \ntwo\nthree", False, "one two\nthree"),
        ("one \ntwo", True, "onetwo"),
        ("> a \n> b\nc", False, "> a b\nc"),
        ("> a \n>> b", False, "> a \n>> b"),
        ("text\n-- \nMe \nMyself", False, "text\n-- \nMe Myself"),
        (" From here \non", False, "From here on"),
        ("no soft\nbreak", False, "no soft\nbreak"),
        (" From here\n  indented\n >not a quote", False, "From here\n indented\n>not a quote"),
        ("> a \n> b\n\n-- \nAnn", False, "> a b\n\n-- \nAnn"),
        ("日本 \n語です", True, "日本語です"),
        ("last \n", False, "last "),
        ("", False, ""),
    ],
)
def test_flowed_paragraphs_are_put_on_one_line(flowed: str, delete_space: bool, text: str) -> None:
    assert unflow(flowed, delete_space) == text


def test_megabytes_of_flowed_lines_are_joined_in_linear_time() -> None:
    flowed = "a \n" * 1_000_000
    with linear():  # copied anew for each line it would be 1,000 GB
        text = unflow(flowed, False)
    assert len(text) == 2_000_000
