"""The header block: bytes in, where it ends and what is cut out; hostile blocks cost little and raise nothing."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.core.message import HEAD_LIMIT, Headers, scan, without
from tests.corpora import corpus
from tests.linear import linear

HOST = "mx.track.example.com"
NOON = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC).timestamp()


def headers(text: str | bytes) -> Headers:
    """Scan a block written with bare LFs for readability."""
    block = text.encode() if isinstance(text, str) else text
    return scan(block.replace(b"\n", b"\r\n"), HOST)


# The block and its end -------------------------------------------------------------------------------------------


def test_ordinary_message_is_read() -> None:
    found = headers(
        "Received: from a\n\tby b; Mon, 23 Nov 2026 12:00:01 +0000\nReceived: from c\n"
        'Message-ID: <id.1@example.org>\nDate: Mon, 23 Nov 2026 15:00:00 +0300\nFrom: "Anna, S." <anna@example.org>\n'
        "To: info1@track.example.com\nSubject: =?utf-8?q?Gr=C3=BC=C3=9Fe?=\n and more\nIn-Reply-To: <a@x>\n"
        "References: <r@x>\n <a@x>\nContent-Type: text/plain\n\nFrom: body@example.org\n"
    )
    assert found == Headers(
        end=found.end, complete=True, mbox_line=0, received=2, date=NOON, from_="anna@example.org",
        subject=b"=?utf-8?q?Gr=C3=BC=C3=9Fe?= and more", message_id="id.1@example.org", in_reply_to="a@x",
        references=("r@x", "a@x"), loop_tokens=(), cut=(), auto=None, bounce=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("block", "end"),
    [
        pytest.param(b"A: b\r\n\r\nbody", 6, id="at the empty line"),
        pytest.param(b"A: b\r\n\r\n folded body", 6, id="at the empty line before an indented body"),
        pytest.param(b"A: b\r\n", 6, id="at the end of a message without body"),
        pytest.param(b"A: b", 4, id="at the end of a message without line end"),
        pytest.param(b"A: b\r\n.\r\n", 6, id="at the final dot, should it be there"),
        pytest.param(b"A: b\r\n \r\n\t\r\nC: d\r\n\r\n", 18, id="not at folds of white space"),
        pytest.param(b"A: b\r\nno field\r\nFrom: a@b\r\n\r\n", 6, id="at a line that is no field"),
        pytest.param(b"A: b\r\nno field: x\r\n\r\n", 6, id="at a name with a space in it"),
        pytest.param(b"A: b\r\nn\xc3\xb6: x\r\n\r\n", 6, id="at a name beyond ASCII"),
        pytest.param(b"A: b\r\n: x\r\n\r\n", 6, id="at an empty name"),
        pytest.param(b"A: b\r\nB\r\n : x\r\n\r\n", 6, id="at a name folded before its colon"),
        pytest.param(b"A: b\r\nsubject", 6, id="at a last line without colon"),
        pytest.param(b"A: b\r\n..dotted: x\r\n\r\n", 19, id="not at a stuffed dot in a name"),
        pytest.param(b"A: b\r\n.. \r\nFrom: a@b\r\n\r\n", 6, id="at a dot before white space, which is no fold"),
        pytest.param(b"A: b\r\n..\r\nFrom: a@b\r\n\r\n", 6, id="at a line of one dot"),
        pytest.param(b"..From x\r\nFrom: a@b\r\n\r\n", 0, id="at once at a dot before an mbox line"),
        pytest.param(b"A: b\r\nB \t: x\r\n\r\n", 14, id="not at white space before the colon"),
        pytest.param(b"\r\nFrom: a@b\r\n\r\n", 0, id="at once when the first line is empty"),
        pytest.param(b" A: b\r\n\r\n", 0, id="at once when the first line is indented"),
        pytest.param(b"Hello,\r\n\r\nFrom: a@b\r\n", 0, id="at once without any header"),
        pytest.param(b"", 0, id="at once when there is nothing"),
    ],
)
def test_block_ends(block: bytes, end: int) -> None:
    found = scan(block, HOST)
    assert (found.end, found.complete) == (end, True)
    assert found.from_ == ""


@pytest.mark.parametrize("line", ["From anna@example.org Mon Nov 23 12:00:00 2026", ">From x y", "From "])
def test_mbox_line_first_is_passed_over(line: str) -> None:
    found = headers(f"{line}\nFrom: anna@example.org\n\n")
    assert (found.from_, found.mbox_line) == ("anna@example.org", len(line) + 2)


def test_from_field_with_space_before_its_colon_is_no_mbox_line() -> None:
    found = headers("From \t : anna@example.org\nSubject: x\n\n")
    assert (found.from_, found.mbox_line, found.subject) == ("anna@example.org", 0, b"x")


def test_mbox_line_alone_is_a_message_without_fields() -> None:
    assert (scan(b"From x", HOST).end, scan(b"From x", HOST).complete) == (6, True)


def test_field_whose_name_begins_with_a_dot_is_another() -> None:
    found = headers("..From: a@b\n..X-Visit-Id: 1\n..Received: x\n..Subject: y\nSubject: x\n\n")
    assert (found.from_, found.cut, found.received, found.subject) == ("", (), 0, b"x")


def test_first_of_several_fields_counts_whatever_their_case() -> None:
    found = headers("FROM: a@b\nfrom: c@d\nsUBJECT:x\nSubject: y\n\n")
    assert (found.from_, found.subject) == ("a@b", b"x")


def test_raw_octets_in_a_subject_are_kept() -> None:
    assert headers(b"Subject: \xcf\xf0\xe8\n\xe2\n\xff: x\n\n").subject == b"\xcf\xf0\xe8"


def field_block(size: int) -> bytes:
    """A block of fields and its empty line, of exactly that size."""
    line = b"X-Filler: " + b"x" * 500 + b"\r\n"
    count = (size - 2) // len(line) - 1
    rest = size - 2 - count * len(line)
    return line * count + b"X-Rest: " + b"y" * (rest - 10) + b"\r\n" + b"\r\n"


def test_block_of_256_kib_is_complete_and_one_octet_more_is_not() -> None:
    at_limit = scan(field_block(HEAD_LIMIT) + b"body", HOST)
    assert (at_limit.complete, at_limit.end) == (True, HEAD_LIMIT - 2)
    assert not scan(field_block(HEAD_LIMIT + 3) + b"body", HOST).complete


def test_block_cut_off_at_the_limit_is_never_taken_for_a_whole_one() -> None:
    whole = b"Subject: x\r\nFrom: a@b\r\n folded\r\nX: y\r\n\r\nbody"
    for limit in range(1, whole.index(b"\r\n\r\n") + 2):
        assert not scan(whole, HOST, limit=limit).complete, limit
        assert not scan(whole[:limit], HOST, limit=limit).complete, limit
    assert scan(whole, HOST, limit=len(whole)).complete


def test_long_first_line_that_is_no_field_is_body_and_not_a_large_header() -> None:
    assert scan(b"no field " * 40_000, HOST).complete


def test_a_thousand_fields_are_complete_and_one_more_is_not() -> None:
    assert headers("A:\n" * 1000 + "\nbody").complete
    assert headers("A:\n" * 1000).complete
    assert not headers("A:\n" * 1001 + "\nbody").complete


# What is cut ------------------------------------------------------------------------------------------------------


def cut_of(block: bytes) -> bytes:
    return without(block, scan(block, HOST).cut)


def test_received_visit_fields_are_cut_and_everything_else_stays() -> None:
    block = (
        b"Subject: x\r\nX-Visit-Id: 666\r\n folded\r\nx-visit-SOURCE : evil\r\nX-Visit-Relay: token.1\r\n"
        b"X-Visitor: stays\r\nX-Visit-: gone\r\nTo: y\r\n\r\nX-Visit-Id: in the body\r\n"
    )
    assert cut_of(block) == b"Subject: x\r\nX-Visitor: stays\r\nTo: y\r\n\r\nX-Visit-Id: in the body\r\n"
    assert scan(block, HOST).loop_tokens == ("token.1",)


def test_last_field_without_line_end_is_cut_whole() -> None:
    assert cut_of(b"To: y\r\nX-Visit-Id: 1") == b"To: y\r\n"


@pytest.mark.parametrize(
    "value",
    [
        "mx.track.example.com; spf=pass",
        "\r\n\tMX.Track.Example.COM 1; none",
        "(c) mx.track.example.com(c); dkim=pass",
        "(a (b) \\) ; other.example)\r\n (x) mx.track.example.com ; none",
        '"mx.track.example.com"; none',
        '"mx.track\\.example.com"; none',
        "mx.track.example.com.; none",
        "mx.track.example.com",
        "(" + "\\)" * 100 + ") mx.track.example.com; none",
        "(" * 100 + ")" * 100 + "mx.track.example.com; none",
    ],
)
def test_authentication_results_in_our_name_are_cut(value: str) -> None:
    block = b"To: y\r\nAuthentication-Results: " + value.encode() + b"\r\nSubject: x\r\n\r\n"
    assert cut_of(block) == b"To: y\r\nSubject: x\r\n\r\n"


@pytest.mark.parametrize(
    "value",
    [
        "mx.example.com; spf=pass smtp.helo=mx.track.example.com",
        "xmx.track.example.com; none",
        "mx.track.example.com.evil.example; none",
        '"other.example"; mx.track.example.com',
        "(mx.track.example.com) other.example; none",
        "(mx.track.example.com",
        "",
    ],
)
def test_authentication_results_of_others_stay(value: str) -> None:
    block = b"Authentication-Results: " + value.encode() + b"\r\nSubject: x\r\n\r\n"
    assert cut_of(block) == block


@given(st.lists(st.sampled_from([b"X-Visit-Id: 1\r\n", b"A: b\r\n", b"X-Visit-X:\r\n y\r\n", b"C: d\r\n e\r\n"])))
def test_cutting_removes_exactly_the_visit_fields(fields: list[bytes]) -> None:
    kept = [field for field in fields if not field.startswith(b"X-Visit")]
    assert cut_of(b"".join(fields) + b"\r\nbody") == b"".join(kept) + b"\r\nbody"


# Hostile and real -------------------------------------------------------------------------------------------------

NAMES = ("From", "Date", "References", "Message-ID", "Subject", "Authentication-Results", "Auto-Submitted",
         "X-Auto-Response-Suppress", "Content-Type", "X-Visit-Relay", "Received")  # fmt: skip
UNITS = ('"', "(", ")", "<", ">", "=?", "[", "@", "\\", ",", ":", ";", "<>", "()", "(\\", "a@", "a ", '"a" ', "a@b <",
         "\r\n ", "1 ", "1:1 ", "=?utf-8?q?x?= ", "mx.track.example.com (")  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_256_kib_of_one_field_of_anything_are_read_in_linear_time(name: str) -> None:
    for unit in UNITS:
        block = f"{name}: {unit * (250_000 // len(unit))}\r\n\r\n".encode()
        with linear():  # quadratic work on it takes a minute for each of them
            found = scan(block, HOST)
        assert found.complete, unit


def test_many_hostile_fields_and_folds_are_read_in_linear_time() -> None:
    results = b"Authentication-Results: " + b"(\\" * 90 + b" mx.track.example.com\r\n"
    for block in (b"A: b\r\n" + b" \r\n" * 85_000, results * 990, b"x" * HEAD_LIMIT, b"A: " + b"\r" * 260_000):
        with linear():  # quadratic work on it takes minutes
            scan(block, HOST)


garbage = st.lists(
    st.sampled_from([*(name.encode() + b":" for name in NAMES), *(unit.encode() for unit in UNITS), b"\r\n",
                     b"\r\n\r\n", b"\xff", b"\x00", b"\n", b"\r", b"From ", b".", b"Mon, 23 Nov 2026 12:00:00 +0000"])
    | st.binary(max_size=8)
).map(b"".join)  # fmt: skip


@settings(max_examples=100)
@given(garbage, st.integers(1, 300))
def test_no_garbage_raises_and_every_answer_is_in_bounds(block: bytes, limit: int) -> None:
    found = scan(block, HOST, limit=limit)
    assert 0 <= found.mbox_line <= found.end <= min(len(block), limit)
    edges = [edge for span in found.cut for edge in span]
    assert edges == sorted(edges)
    assert all(edge <= found.end for edge in edges)
    texts = (found.from_, found.message_id or "", found.in_reply_to or "", *found.references, *found.loop_tokens)
    assert all(text.encode() is not None for text in texts)
    again = scan(without(block[: found.end], found.cut), HOST)
    assert (again.cut, again.from_, again.date) == ((), found.from_, found.date) or not found.complete


def real_messages(name: str, least: int) -> list[bytes]:
    files = [path for path in sorted(corpus(name).rglob("*")) if path.suffix in (".eml", ".txt")]
    assert len(files) >= least
    return [re.sub(rb"\r?\n", b"\r\n", path.read_bytes()) for path in files]


@pytest.mark.parametrize(
    ("name", "least"),
    [("mime-mailparser-stalwart", 107), ("mime-nodemailer", 10), ("mime-cpython", 40), ("mime-haraka", 2)],
)
def test_every_message_of_the_corpora_is_scanned(name: str, least: int) -> None:
    for message in real_messages(name, least):
        found = scan(message, HOST)
        assert found.complete
        assert without(message, found.cut) == message
        assert message[: found.end] == b"" or message[: found.end].endswith(b"\r\n")


def test_most_messages_of_a_corpus_have_a_sender_and_a_date() -> None:
    found = [scan(message, HOST) for message in real_messages("mime-nodemailer", 10)]
    assert sum(bool(one.from_) for one in found) >= 8
    assert sum(one.date is not None for one in found) >= 5
