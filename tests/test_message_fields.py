"""Fields one by one: what is read out of From, Date and the others, and the fields that we write ourselves."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.core.date import format_date, parse_date
from relay.core.message import (
    Headers,
    first_address,
    is_own_token,
    loop_token,
    received_field,
    scan,
    transmission_type,
    visit_fields,
)
from tests.corpora import corpus

HOST = "mx.track.example.com"
NOON = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC).timestamp()


def headers(text: str) -> Headers:
    """Scan a block written with bare LFs for readability."""
    return scan(text.replace("\n", "\r\n").encode(), HOST)


# From -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "address"),
    [
        ("a@b.example", "a@b.example"),
        ("<a@b>", "a@b"),
        ("Anna <a@b>", "a@b"),
        ('"Anna <x@y>" <a@b>', "a@b"),
        ('"Schmidt, Anna" <a@b>', "a@b"),
        ("Schmidt, Anna <a@b>", "a@b"),
        ('"a \\" <x@y> b" <a@b>', "a@b"),
        ("a@b (Anna <x@y>)", "a@b"),
        ("(x@y) a@b", "a@b"),
        ("(a (b) \\) x@y) a@b", "a@b"),
        ("Anna (x@y, z@w) <a@b>", "a@b"),
        ("=?utf-8?q?Anna?= <a@b>", "a@b"),
        ("=?utf-8?q?x@y.com?= <a@b>", "a@b"),
        ("=?utf-8?q?x@y.com,_z?= <a@b>", "a@b"),
        ("x@y.com <a@b>", "a@b"),
        ("a@b, c@d", "a@b"),
        ("Anna a@b", "a@b"),
        ("a @ b . example", "a@b.example"),
        ("<a @ b>", "a@b"),
        ("< a@b\r\n >", "a@b"),
        ("Friends: Anna <a@b>, c@d;", "a@b"),
        ("Nobody:;, a@b", "a@b"),
        ("undisclosed-recipients:;", ""),
        ("<@relay.example,@other:a@b>", "a@b"),
        ("mailto:a@b", "a@b"),
        ('"john doe"@b', '"john doe"@b'),
        ('"john@doe"@b', '"john@doe"@b'),
        ("a@[IPv6:2001:db8::1]", "a@[IPv6:2001:db8::1]"),
        ("Anna <a@b", "a@b"),
        ("<<a@b>>", "a@b"),
        ("Anna <> <a@b>", "a@b"),
        ("Anna <anna> a@b", "a@b"),
        ("a@b.", "a@b"),
        ("a@b)", "a@b"),
        ('"a@b"', "a@b"),
        ('"Anna <a@b>', "a@b"),
        ("(Anna <a@b>", "a@b"),
        ("Anna <“почта@пример.рф>", "“почта@пример.рф"),
        ("анна@пример.рф", "анна@пример.рф"),
        ("<a\x01\u202e@b>", "a@b"),
        ("root", ""),
        ("<>", ""),
        ("@", ""),
        ("@b", ""),
        ("a@", ""),
        ("", ""),
        ("x" * 300 + "@" + "y" * 30, ""),
        ("x" * 9000 + " <a@b>", ""),
    ],
)
def test_first_bare_address_is_found(value: str, address: str) -> None:
    assert first_address(value.encode()) == address


def test_address_in_invalid_utf_8_is_made_valid() -> None:
    assert first_address(b"<an\xefa@b>") == "an\ufffda@b"


# Date -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        "Mon, 23 Nov 2026 12:00:00 +0000",
        "Mon, 23 Nov 2026 15:00:00 +0300 (MSK)",
        "mon,23 nov 2026 07:00:00 EST",
        "23 Nov 26 05:00 MST",
        "23 Nov 126 12:00 UT",
        "23 Nov 0126 12:00 Z",
        "Monday, 23 November 2026 12:00:00 GMT",
        "Mon, 23 Nov 2026 12:00:00 -0000",
        "Mon, 23 Nov 2026 12:00:00",
        "Mon, 23 Nov 2026 12:00:00 A",
        "Mon, 23 Nov 2026 12:00:00 XYZ",
        "Mon, 23 Nov 2026 17:30:00 GMT+0530",
        "Mon, 23 Nov 2026 17:30:00 0530",
        "Mon, 23 Nov 2026 17:30:00+05:30",
        "(a (nested) comment) Mon, 23 (x) Nov 2026 12:00:00 +0000 (",
        "Mon Nov 23 12:00:00 2026",
        "Mon Nov 23 15:00:00 MSK 2026",
        "Mon, 23 Nov 2026 20:00:00 +0800 CST",
        "Mon, 23 Nov 2026 12:00:00 +0000 CST",
        "Mon,\r\n 23 Nov 2026\r\n 12:0:0.250 +0000",
        "23-Nov-2026 12:00:00",
        "2026-11-23T12:00:00Z",
        "2026-11-23 13:00:00.5+01:00",
        "23 Nov 26 12:00:00 PM",
        "24 Nov 26 12:00:00 AM +1200",
        "Mon, 23 Nov 2026 12:00:00 +9900",
    ],
)
def test_date_is_read_as_real_mail_writes_it(value: str) -> None:
    assert parse_date(value.encode()) == NOON


@pytest.mark.parametrize(
    ("value", "year"),
    [("1 Jan 49 00:00", 2049), ("1 Jan 50 00:00", 1950), ("1 Jan 99 00:00", 1999), ("1 Jan 100 00:00", 2000)],
)
def test_short_years_are_read_by_rfc_5322(value: str, year: int) -> None:
    assert parse_date(value.encode()) == datetime(year, 1, 1, tzinfo=UTC).timestamp()


def test_leap_second_is_the_second_before() -> None:
    assert parse_date(b"Sat, 31 Dec 2016 23:59:60 +0000") == datetime(2016, 12, 31, 23, 59, 59, tzinfo=UTC).timestamp()


@pytest.mark.parametrize(
    "value",
    [
        "", "yesterday", "Mon, 23 Nov 2026", "12:00:00", "31 Feb 2026 12:00", "0 Nov 2026 12:00", "23 Nov 12:00",
        "23 Nov 2026 24:00", "23 Nov 2026 12:60", "23 Nov 2026 12:00:61", "11/23/2026 12:00", "23 Foo 2026 12:00",
        "23 Nov 99999999999999999999 12:00", "2026-13-23 12:00", "23-11-2026 12:00", "\xb2\xb3 Nov 2026 12:00",
        " " * 128 + "Mon, 23 Nov 2026 12:00:00 +0000",
    ],
)  # fmt: skip
def test_hopeless_date_is_none(value: str) -> None:
    assert parse_date(value.encode()) is None


@given(st.floats(0, 4e9))
def test_dates_we_write_are_read_back_by_us_and_by_the_standard_library(now: float) -> None:
    written = format_date(now)
    assert re.fullmatch(r"[MTWFS][a-z]{2}, \d{1,2} [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d \+0000", written)
    assert parse_date(written.encode()) == int(now) == parsedate_to_datetime(written).timestamp()


# The ordinary forms are read at once, all others word by word; a comment before them makes them one of the others.

_PIECES = ("Anna", " ", '"', '"A, B"', '"a@b"', "a@b.example", "<", ">", "<a@b>", "@", ".", ",", ":", ";", "[", "]")
_PIECES += ("\\", "\r\n ", "\t", "=?utf-8?q?x@y?=", "ü", "\0", "x" * 320)


@given(st.lists(st.sampled_from(_PIECES), max_size=8).map("".join))
def test_an_ordinary_from_field_says_what_it_says_word_by_word(value: str) -> None:
    assert first_address(value.encode()) == first_address(b"()" + value.encode())


_WORDS = ("Mon, ", "Mar, ", "Utc, ", "23 ", "3 ", "31 ", "0 ", "Nov ", "Feb ", "Foo ", "nov ", "2026 ", "0026 ", "99 ")
_WORDS += ("12:00:00 ", "23:59:60 ", "24:00:00 ", "1:2:3 ", "+0000", "-0330", "+9999", "GMT", "pm", "\r\n", " ", "٣ ")


@given(
    st.lists(st.sampled_from(_WORDS), max_size=7).map("".join)
    | st.tuples(
        *map(st.sampled_from, (_WORDS[:3], _WORDS[3:7], _WORDS[7:11], _WORDS[11:14], _WORDS[14:18], _WORDS[18:]))
    ).map("".join)
)
def test_an_ordinary_date_says_what_it_says_word_by_word(value: str) -> None:
    assert parse_date(value.encode()) == parse_date(b"()" + value.encode())


# A second opinion -------------------------------------------------------------------------------------------------


def expected_sender(field: dict[str, dict[str, list[dict[str, Any]]]]) -> str:
    """The first address that the corpus's own parser found in a From field."""
    found = field["Address"]
    mailboxes = found.get("List") or [each for group in found.get("Group", []) for each in group["addresses"]]
    return next((each["address"] for each in mailboxes if each["address"]), "")


def expected_date(field: dict[str, dict[str, Any]]) -> float:
    parts = field["DateTime"]
    minutes: int = (parts["tz_hour"] * 60 + parts["tz_minute"]) * (-1 if parts["tz_before_gmt"] else 1)
    day = datetime(parts["year"], parts["month"], parts["day"], tzinfo=UTC)
    clock = timedelta(hours=parts["hour"], minutes=parts["minute"] - minutes, seconds=parts["second"])
    return (day + clock).timestamp()


def test_senders_and_dates_agree_with_the_corpus() -> None:
    senders = dates = 0
    for path in sorted(corpus("mime-mailparser-stalwart").rglob("*.eml")):
        found = scan(re.sub(rb"\r?\n", b"\r\n", path.read_bytes()), HOST)
        fields = json.loads(path.with_suffix(".json").read_text())["parts"][0]["headers"]
        said = {str(field["name"]): field["value"] for field in reversed(fields)}  # the first of several
        if "Address" in said.get("from", ()):
            senders += 1
            sender = expected_sender(said["from"])
            assert found.from_ == (sender if "@" in sender else ""), path.name
        if "DateTime" in said.get("date", ()):
            dates += 1
            assert found.date == expected_date(said["date"]), path.name
    assert senders >= 70
    assert dates >= 70


# Message-IDs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "message_id"),
    [
        ("Message-ID: <a@b>", "a@b"),
        ("Message-ID:\n <a@\n b>", "a@b"),
        ("Message-ID: a@b", "a@b"),
        ("Message-ID: junk <a@b> <c@d>", "a@b"),
        ("Message-ID: <>", None),
        ("Message-ID:", None),
        (f"Message-ID: <{'x' * 999}>", None),
        ("X-Other: <a@b>", None),
    ],
)
def test_message_id_is_read_without_its_brackets(field: str, message_id: str | None) -> None:
    assert headers(field + "\n\n").message_id == message_id


def test_in_reply_to_with_prose_is_its_first_message_id() -> None:
    assert headers('In-Reply-To: Your message of "Mon" <a@b>\n\n').in_reply_to == "a@b"


def test_of_many_references_the_last_50_are_kept_in_order() -> None:
    many = "\n ".join(f"<{number}@x>" for number in range(60))
    assert headers(f"References: {many}\n\n").references == tuple(f"{number}@x" for number in range(10, 60))
    plain = " ".join(f"{number}@x" for number in range(60))
    assert headers(f"References: {plain}\n\n").references == tuple(f"{number}@x" for number in range(10, 60))


# Automatic mail ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "auto"),
    [
        ("Auto-Submitted: auto-replied", "auto-submitted"),
        ("Auto-Submitted: auto-generated (by cron); x=y", "auto-submitted"),
        ("Auto-Submitted: no", None),
        ("Auto-Submitted: NO (really); x=y", None),
        ("Auto-Submitted:", None),
        ("Precedence: bulk", "bulk precedence"),
        ("Precedence: List", "bulk precedence"),
        ("Precedence: junk", "bulk precedence"),
        ("Precedence: first-class", None),
        ("List-Id: <news.example.com>", "mailing list"),
        ("List-Unsubscribe: <mailto:x@y>", "mailing list"),
        ("X-Autoreply: yes", "autoreply"),
        ("X-Autorespond: Re: your mail", "autoreply"),
        ("X-Autoreply: no", None),
        ("X-Auto-Response-Suppress: All", "auto-response suppressed"),
        ("X-Auto-Response-Suppress: DR, OOF,\n AutoReply", "auto-response suppressed"),
        ("X-Auto-Response-Suppress: DR, RN, NRN", None),
        ("Content-Type: multipart/report; report-type=delivery-status", None),
        ("Subject: Auto-Submitted: auto-replied", None),
    ],
)
def test_automatic_mail_is_told_from_a_persons(field: str, auto: str | None) -> None:
    assert headers(field + "\n\n").auto == auto


@pytest.mark.parametrize(
    ("value", "bounce"),
    [
        ("multipart/report; report-type=delivery-status", True),
        ("\n Multipart/Report;\n boundary=x", True),
        ("multipart/report", True),
        ("multipart/report-not", False),
        ("multipart/mixed; x=multipart/report", False),
    ],
)
def test_report_is_a_bounce(value: str, bounce: bool) -> None:
    assert headers(f"Content-Type: {value}\n\n").bounce is bounce


# What we write ----------------------------------------------------------------------------------------------------


def test_received_field_names_the_parties_and_is_folded() -> None:
    field = received_field(
        helo="mail.example.org", ip="192.0.2.7", host=HOST, protocol="ESMTPS",
        message_id="4711", now=NOON, recipient="info1@track.example.com",
    )  # fmt: skip
    assert field == (
        b"Received: from mail.example.org ([192.0.2.7]) by mx.track.example.com\r\n"
        b"\twith ESMTPS id 4711 for <info1@track.example.com>;\r\n"
        b"\tMon, 23 Nov 2026 12:00:00 +0000\r\n"
    )


@pytest.mark.parametrize(
    ("esmtp", "encrypted", "expected"),
    [(False, False, "SMTP"), (True, False, "ESMTP"), (True, True, "ESMTPS"), (False, True, "ESMTPS")],
)
def test_transmission_type_is_smtp_after_helo_alone(esmtp: bool, encrypted: bool, expected: str) -> None:
    assert transmission_type(esmtp=esmtp, encrypted=encrypted) == expected


def test_received_field_without_recipient_names_none() -> None:
    field = received_field(
        helo="[IPv6:2001:db8::1]", ip="2001:db8::1", host=HOST, protocol="ESMTP", message_id="1", now=NOON
    )
    assert field.startswith(b"Received: from [IPv6:2001:db8::1] ([IPv6:2001:db8::1]) by mx.")
    assert b" id 1; Mon" in field.replace(b"\r\n\t", b" ")
    assert b"for" not in field


@pytest.mark.parametrize("recipient", ["a b@x", "a>@x", "a\r\nX: y@x", "почта@пример.рф", "", "x" * 321])
def test_received_field_leaves_out_a_recipient_that_is_not_plain(recipient: str) -> None:
    field = received_field(
        helo="h", ip="192.0.2.7", host=HOST, protocol="ESMTP", message_id="1", now=NOON, recipient=recipient
    )
    assert b"for" not in field
    assert field.count(b"\r\n") == 2


any_text = st.text(st.characters(exclude_categories=()), max_size=400)


@given(any_text, st.none() | any_text)
def test_received_field_is_one_field_whatever_the_client_says(helo: str, recipient: str | None) -> None:
    field = received_field(
        helo=helo, ip="192.0.2.7", host=HOST, protocol="ESMTP", message_id="1", now=NOON, recipient=recipient
    )
    *lines, last = field.split(b"\r\n")
    assert last == b""
    assert lines[0].startswith(b"Received: from ")
    assert all(line.startswith(b"\t") for line in lines[1:])
    assert all(len(line) <= 998 and line.isascii() and b"\n" not in line and b"\r" not in line for line in lines)
    assert b"()" not in field
    found = scan(field + b"\r\n", HOST)
    assert (found.received, found.end) == (1, len(field))


def test_visit_fields_are_written_for_what_is_known() -> None:
    assert visit_fields("123456", "fb_new") == b"X-Visit-Id: 123456\r\nX-Visit-Source: fb_new\r\n"
    assert visit_fields(None, "fb") == b"X-Visit-Source: fb\r\n"
    assert visit_fields("1", "") == b"X-Visit-Id: 1\r\n"
    assert visit_fields(None, None) == b""


def test_visit_fields_encode_what_is_not_visible_ascii() -> None:
    assert visit_fields(None, "a b%ü\r\nBcc: x@y") == b"X-Visit-Source: a%20b%25%C3%BC%0D%0ABcc:%20x@y\r\n"


def test_long_visit_field_is_never_cut_within_an_encoded_octet() -> None:
    assert visit_fields(None, "x" + "ü" * 400) == b"X-Visit-Source: x" + b"%C3%BC" * 149 + b"%C3\r\n"


@given(any_text, any_text)
def test_visit_fields_are_one_line_each_whatever_the_browser_sent(visit: str, source: str) -> None:
    for line in visit_fields(visit, source * 4).splitlines(keepends=True):
        assert re.fullmatch(rb"X-Visit-(?:Id|Source): (?:[!-$&-~]|%[0-9A-F]{2})+\r\n", line)
        assert len(line) <= 998


KEY, OLD_KEY = b"k" * 32, b"o" * 32


def test_loop_token_is_known_again_by_every_key_that_is_still_kept() -> None:
    token = loop_token("4711", OLD_KEY)
    assert is_own_token(token, [KEY, OLD_KEY]) == "4711"
    assert is_own_token(f" {token}\t", [OLD_KEY]) == "4711"
    assert headers(f"X-Visit-Relay: {token}\n\n").loop_tokens == (token,)


def test_loop_token_of_others_is_not_ours() -> None:
    token = loop_token("4711", KEY)
    digits = token.rpartition(".")[2]
    assert len(digits) * 4 >= 80
    for forged in (
        token[:-1],
        token + "0",
        f"4712.{digits}",
        digits,
        "",
        ".",
        "4711.",
        "4711",
        "ü." + digits,
        token * 9,
    ):
        assert is_own_token(forged, [KEY]) is None
    assert is_own_token(token, [OLD_KEY]) is None
    assert is_own_token(token, []) is None


def test_at_most_50_loop_tokens_are_handed_on() -> None:
    assert len(headers("X-Visit-Relay: x\n" * 60 + "\n").loop_tokens) == 50
