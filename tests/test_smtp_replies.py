"""Bytes in, replies out."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.smtp_out.replies import MAX_LINE, MAX_LINES, MAX_TEXT, Reply, ReplyError, ReplyParser


def parse(*pieces: bytes) -> list[Reply]:
    parser, replies = ReplyParser(), deque[Reply]()
    for piece in pieces:
        parser.feed(piece, replies)
    return list(replies)


@pytest.mark.parametrize(
    ("wire", "replies"),
    [
        (b"250 ok\r\n", [Reply(250, (b"ok",))]),
        (b"250 ok\n", [Reply(250, (b"ok",))]),
        (b"250\r\n", [Reply(250, (b"",))]),
        (b"250 \r\n", [Reply(250, (b"",))]),
        (b"250-a\r\n250-b\r\n250 c\r\n", [Reply(250, (b"a", b"b", b"c"))]),
        (b"250-a\r\n250\r\n", [Reply(250, (b"a", b""))]),
        (b"250 a\r\n354 b\r\n", [Reply(250, (b"a",)), Reply(354, (b"b",))]),
        (b"250 a\r\n250-b\r\n250", [Reply(250, (b"a",))]),
    ],
)
def test_replies_are_read_as_sent(wire: bytes, replies: list[Reply]) -> None:
    assert parse(wire) == replies


@pytest.mark.parametrize(
    "wire",
    [
        b"\r\n",
        b"hello\r\n",
        b"25 ok\r\n",
        b"2500 ok\r\n",
        b"150 ok\r\n",
        b"650 ok\r\n",
        b" 250 ok\r\n",
        b"250+ok\r\n",
        "٢٥٠ ok\r\n".encode(),
        b"250-a\r\n251 b\r\n",
        b"250-a\r\nb\r\n",
        b"HTTP/1.1 400 Bad Request\r\n",
        b"250 " + b"x" * MAX_LINE + b"\r\n",
        b"2" * (MAX_LINE + 1),
        b"250-x\r\n" * MAX_LINES,
    ],
)
def test_what_is_no_reply_is_refused(wire: bytes) -> None:
    with pytest.raises(ReplyError):
        parse(wire)


def test_a_reply_before_garbage_is_still_read() -> None:
    parser, replies = ReplyParser(), deque[Reply]()
    with pytest.raises(ReplyError, match="unintelligible reply 'nonsense'"):
        parser.feed(b"250 queued\r\nnonsense\r\n", replies)
    assert list(replies) == [Reply(250, (b"queued",))]


def test_the_longest_line_and_the_longest_reply_allowed_pass() -> None:
    assert len(parse(b"250-x\r\n" * (MAX_LINES - 1) + b"250 x\r\n")[0].lines) == MAX_LINES
    assert parse(b"250 " + b"x" * (MAX_LINE - 5) + b"\r\n")


_line = st.binary(max_size=20).map(lambda raw: raw.replace(b"\n", b"").replace(b"\r", b""))
_reply = st.builds(lambda code, lines: Reply(code, tuple(lines)), st.integers(200, 599), st.lists(_line, min_size=1))


def _wire(reply: Reply) -> bytes:
    *first, last = reply.lines
    return b"".join(b"%d-%b\r\n" % (reply.code, line) for line in first) + b"%d %b\r\n" % (reply.code, last)


@given(st.lists(_reply, max_size=4), st.data())
def test_replies_are_the_same_however_they_are_split(replies: list[Reply], data: st.DataObject) -> None:
    wire = b"".join(map(_wire, replies))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=5)))
    pieces = [wire[start:end] for start, end in zip([0, *cuts], [*cuts, len(wire)], strict=True)]
    assert parse(*pieces) == replies


@given(st.lists(st.binary(max_size=3000), max_size=5))
def test_any_bytes_are_replies_or_refused(pieces: list[bytes]) -> None:
    parser, replies = ReplyParser(), deque[Reply]()
    try:
        for piece in pieces:
            parser.feed(piece, replies)
    except ReplyError as error:
        complaint = str(error)
    else:
        complaint = ""
    assert complaint.isprintable()
    for reply in replies:
        assert reply.text.isprintable()
        assert len(reply.text) <= MAX_TEXT


def test_the_text_is_one_printable_line() -> None:
    assert (
        Reply(550, (b"\x1b[2Jno \xd0\xb4\xd0\xb0\xff \xe2\x80\xae\x07",)).text
        == "?[2Jno да\N{REPLACEMENT CHARACTER} ??"
    )


def test_a_repeated_enhanced_code_stands_once() -> None:
    assert Reply(550, (b"5.1.1 no such", b"5.1.1 user", b" here")).text == "5.1.1 no such user here"
    assert Reply(250, (b"2 things", b"2 more")).text == "2 things 2 more"


def test_the_text_is_cut_and_without_secrets() -> None:
    reply = Reply(535, (b"x" * (MAX_TEXT - 3) + b"sesame", b"sesame"))
    assert len(reply.text) == MAX_TEXT
    assert "ses" not in reply.summary("sesame")
