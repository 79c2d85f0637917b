"""Message data in wire form: one definition written out slowly here, and the fast reader held against it."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from relay.core.wire import ChunkReader, DataReader, Unstuffer, stuff, unstuff
from tests.corpora import corpus

END = b"\r\n.\r\n"
NEXT = b"MAIL FROM:<next@example.com>\r\n"


# ── the definition ───────────────────────────────────────────────────────────────────────────────────────────────


def normal(data: bytes) -> bytes:
    """Every bare LF made CR LF, octet by octet."""
    out = bytearray()
    for octet in data:
        if octet == 10 and out[-1:] != b"\r":
            out += b"\r"
        out.append(octet)
    return bytes(out)


def meant(stream: bytes) -> tuple[bytes, bytes] | None:
    """(message, what follows) of a client's octets after 354, or None while the data have not ended."""
    end = (b"\r\n" + stream).find(END)
    if end < 0:
        return None
    return normal(unstuff(stream[:end])), stream[end + 3 :]


def strict_reader(stream: bytes) -> tuple[list[bytes], bytes]:
    """A next hop of the strict school: lines end at CR LF only. (The lines of the message, what follows it.)"""
    lines: list[bytes] = []
    while True:
        line, ended, stream = stream.partition(b"\r\n")
        assert ended, "the data never end"
        if line == b".":
            return lines, stream
        lines.append(line.removeprefix(b"."))


def lenient_reader(stream: bytes) -> tuple[list[bytes], bytes]:
    """A next hop of the lenient school, the one that is smuggled to: a bare LF ends a line and the data, too."""
    lines: list[bytes] = []
    while True:
        line, ended, stream = stream.partition(b"\n")
        assert ended, "the data never end"
        line = line.removesuffix(b"\r")
        if line == b".":
            return lines, stream
        lines.append(line.removeprefix(b"."))


def read(chunks: list[bytes]) -> tuple[DataReader, bytes]:
    """The reader after these chunks, and all that it emitted. What comes after the end is kept as its rest."""
    reader = DataReader()
    out = b""
    for number, chunk in enumerate(chunks):
        out += reader.feed(chunk)
        if reader.done:
            reader.rest += b"".join(chunks[number + 1 :])
            break
    return reader, out


def state(reader: DataReader) -> tuple[object, ...]:
    return reader.done, reader.rest, reader.bare_lf, reader.bare_cr, reader.nul


def cut(stream: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({min(place, len(stream)) for place in cuts} | {0, len(stream)})
    return [stream[start:stop] for start, stop in itertools.pairwise(places)]


# Streams made of what matters: the octets themselves, and the longer pieces so that ends of data are common.
pieces = st.sampled_from([b"\r", b"\n", b".", b"a", b"\0", b"\r\n", b"\r\n.", b"\n.", END, b"..", b"text"])
streams = st.lists(pieces, max_size=14).map(b"".join)
cuts = st.lists(st.integers(0, 40), max_size=10)


# ── where the data end ───────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("stream", "stored", "rest"),
    [
        (b".\r\n", b"", b""),
        (b"\r\n.\r\n", b"\r\n", b""),
        (b"a\r\n.\r\n", b"a\r\n", b""),
        (b"a\r\n.\r\nQUIT\r\n", b"a\r\n", b"QUIT\r\n"),
        (b".\r\n.\r\n", b"", b".\r\n"),
        (b"..\r\n.\r\n", b"..\r\n", b""),
        (b"..From: a\r\n\r\n...x\r\n.\r\n", b"..From: a\r\n\r\n...x\r\n", b""),
    ],
)
def test_only_a_line_of_one_dot_ends_the_data_and_the_octets_before_it_are_stored_as_sent(
    stream: bytes, stored: bytes, rest: bytes
) -> None:
    for chunks in ([stream], [stream[i : i + 1] for i in range(len(stream))]):
        reader, out = read(chunks)
        assert (out, *state(reader)) == (stored, True, rest, 0, False, False)


@pytest.mark.parametrize(
    ("stream", "stored"),
    [
        (b".From: a\r\n.\r\n", b"From: a\r\n"),  # on the first line
        (b"a\r\n.X-Visit-Id: 1\r\n.\r\n", b"a\r\nX-Visit-Id: 1\r\n"),
        (b". a\r\n.\tb\r\n.\r\n", b" a\r\n\tb\r\n"),
        (b"a\r\n.b\r\n..c\r\n...\r\n.d\r\n.\r\nQUIT", b"a\r\nb\r\n..c\r\n...\r\nd\r\n"),
        (b"a\n..b\r\n.c\r\n.\r\n", b"a\r\n...b\r\nc\r\n"),  # behind a bare LF no dot is spare
        (b".a\n.b\r\n.\n.c\r\n.\r\n", b"a\r\n..b\r\n\r\n..c\r\n"),
        (b".\ra\r\n.\r\n", b"\ra\r\n"),  # refused, for its bare CR
    ],
)
def test_a_dot_that_guards_no_dot_is_left_out(stream: bytes, stored: bytes) -> None:
    for size in range(1, len(stream) + 1):
        _, out = read([stream[i : i + size] for i in range(0, len(stream), size)])
        assert out == stored


@pytest.mark.parametrize(
    ("stream", "stored", "count"),
    [
        (b"a\nb\r\n.\r\n", b"a\r\nb\r\n", 1),
        (b"\n.\r\n.\r\n", b"\r\n..\r\n", 1),  # LF . CRLF is a line of one dot
        (b"a\n.b\r\n.\r\n", b"a\r\n..b\r\n", 1),
        (b"a\n..b\r\n.\r\n", b"a\r\n...b\r\n", 1),
        (b"a\r\n.\nb\r\n.\r\n", b"a\r\n\r\nb\r\n", 1),  # CRLF . LF: a stuffing dot, then a line end
        (b".\nb\r\n.\r\n", b"\r\nb\r\n", 1),  # the same on the first line
        (b"a\r\n.\n.\n.\r\n.\r\n", b"a\r\n\r\n..\r\n..\r\n", 2),
        (b"a\n.\nb\r\n.\r\n", b"a\r\n..\r\nb\r\n", 2),
        (b"\n\n\n\r\n.\r\n", b"\r\n\r\n\r\n\r\n", 3),
    ],
)
def test_a_bare_lf_becomes_cr_lf_and_is_counted_without_moving_any_dot(
    stream: bytes, stored: bytes, count: int
) -> None:
    for chunks in ([stream], [stream[i : i + 1] for i in range(len(stream))]):
        reader, out = read(chunks)
        assert (out, *state(reader)) == (stored, True, b"", count, False, False)


@pytest.mark.parametrize("data", [b"a\rb\r\n", b"\r\r\n", b"a\r\n.\r\r\n", b"\rx\n\r\n", b"a\n\r\n\r\r\n"])
def test_a_bare_cr_is_reported(data: bytes) -> None:
    for size in range(1, len(data) + 3):
        stream = data + b".\r\n"
        reader, _ = read([stream[i : i + size] for i in range(0, len(stream), size)])
        assert reader.done
        assert reader.bare_cr
        assert not reader.nul


def test_a_nul_is_reported_and_stays_where_it_was() -> None:
    reader, out = read([b"a\0", b"b\r\n.\r\n"])
    assert out == b"a\0b\r\n"
    assert state(reader) == (True, b"", 0, False, True)


def test_octets_behind_the_end_are_neither_judged_nor_changed() -> None:
    reader, out = read([b"a\r\n.\r\n\0\r\r\n\nX\n.\n"])
    assert out == b"a\r\n"
    assert state(reader) == (True, b"\0\r\r\n\nX\n.\n", 0, False, False)


def test_feeding_after_the_end_of_data_is_an_error() -> None:
    reader, _ = read([b".\r\n"])
    with pytest.raises(RuntimeError, match="after the end"):
        reader.feed(b"x")


def test_an_ordinary_chunk_is_handed_on_as_the_same_object() -> None:
    reader = DataReader()
    reader.feed(b"first")
    chunk = b"x" * 70 + b"\r\n" + b"y" * 70
    assert reader.feed(chunk) is chunk


def test_never_more_than_four_octets_are_held_back() -> None:
    reader = DataReader()
    given_, emitted = 0, 0
    for chunk in (b"a", b"\r", b"\n", b".", b".", b"\r", b"x", b"\r\n", b".", b"\n", b"y", b"\r\n.\r"):
        given_ += len(chunk)
        emitted += len(reader.feed(chunk))
        assert given_ - emitted <= 4
    assert given_ - emitted == 4


def test_a_chunk_without_a_spare_dot_is_not_written_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(DataReader, "_mend")
    reader, out = read([b"..a\r\n..b\r\n.", b"..\r\n", b"c.\r\n.", b"\r\n"])
    assert reader.done
    assert out == b"..a\r\n..b\r\n...\r\nc.\r\n"


# ── the definition holds however the octets arrive ───────────────────────────────────────────────────────────────


@settings(max_examples=150, deadline=None)
@given(streams, cuts)
@example(b"\n.\r\n.\r\n", [1, 2, 3])
@example(b"\r\n.\n.\r\n.\r\n", [2, 3, 4])
@example(b"a\r\r\n.\r\n", [2, 3])
def test_what_is_stored_means_what_was_sent_however_it_was_cut(stream: bytes, places: list[int]) -> None:
    stream += END + NEXT
    expected = meant(stream)
    assert expected is not None
    reader, out = read(cut(stream, places))
    assert reader.done
    assert (out, reader.rest) == (stuff(expected[0]), expected[1])
    assert unstuff(out) == expected[0]
    whole, whole_out = read([stream])
    assert (out, state(reader)) == (whole_out, state(whole))
    sent = stream[: len(stream) - len(reader.rest) - 3]
    assert reader.bare_lf == sent.count(b"\n") - sent.count(b"\r\n")
    assert reader.bare_cr == (sent.count(b"\r") > sent.count(b"\r\n"))
    assert reader.nul == (b"\0" in sent)


def test_every_beginning_of_up_to_five_octets_is_read_the_same_whole_and_octet_by_octet() -> None:
    beginnings = itertools.chain.from_iterable(itertools.product(b"\r\n.a", repeat=length) for length in range(6))
    for beginning in map(bytes, beginnings):
        stream = beginning + END + b"\n.Q"
        whole, out = read([stream])
        expected = meant(stream)
        assert expected is not None
        assert (out, whole.rest) == (stuff(expected[0]), expected[1])
        single, single_out = read([stream[i : i + 1] for i in range(len(stream))])
        assert (single_out, state(single)) == (out, state(whole))


@settings(max_examples=150, deadline=None)
@given(streams, cuts)
def test_the_next_hop_sees_exactly_one_message_and_the_lines_that_we_saw(stream: bytes, places: list[int]) -> None:
    reader, out = read(cut(stream + END, places))
    assert b"\r\n.\r\n" not in b"\r\n" + out
    assert b"\n" not in out.replace(b"\r\n", b"")
    lines, rest = strict_reader(out + b".\r\n" + NEXT)
    assert rest == NEXT
    assert b"".join(line + b"\r\n" for line in lines) == unstuff(out)
    if not reader.bare_cr:
        assert lenient_reader(out + b".\r\n" + NEXT) == (lines, NEXT)


@settings(max_examples=100, deadline=None)
@given(streams, cuts)
def test_what_is_stuffed_as_it_should_be_is_stored_octet_for_octet(message: bytes, places: list[int]) -> None:
    wire = stuff(normal(message) + b"\r\n")
    _, out = read(cut(wire + b".\r\n", places))
    assert out == wire


@settings(max_examples=100, deadline=None)
@given(streams, cuts, cuts)
def test_a_message_by_data_and_by_chunks_is_stored_as_the_same_octets(
    message: bytes, places: list[int], others: list[int]
) -> None:
    message = normal(message) + b"\r\n"
    reader = ChunkReader()
    in_chunks = b"".join(reader.feed(chunk) for chunk in cut(message, others)) + reader.finish()
    dotted = b"\r\n".join(b"." + line if line else line for line in message.split(b"\r\n"))  # as is allowed
    for wire in (stuff(message), dotted):
        _, out = read(cut(wire + b".\r\n", places))
        assert out == in_chunks


def sequences() -> list[bytes]:
    entries = json.loads((corpus("smtp-smuggling") / "sequences.json").read_text())
    assert len(entries) == 12
    return [bytes.fromhex(entry["hex"]) for entry in entries]


@pytest.mark.parametrize("number", range(12))
def test_no_smuggling_sequence_ends_the_data_at_any_two_cuts(number: int) -> None:
    sequence = sequences()[number]
    stream = b"Subject: x\r\n\r\none" + sequence + NEXT + b"two" + END + b"QUIT\r\n"
    whole, out = read([stream])
    assert whole.done
    assert whole.rest == b"QUIT\r\n"
    assert strict_reader(out + b".\r\nQUIT\r\n")[1] == b"QUIT\r\n"
    if not whole.bare_cr and not whole.nul:
        assert lenient_reader(out + b".\r\nQUIT\r\n")[1] == b"QUIT\r\n"
    for first in range(len(stream)):
        for second in range(first, len(stream)):
            reader, pieces_out = read([stream[:first], stream[first:second], stream[second:]])
            assert (pieces_out, state(reader)) == (out, state(whole))


@pytest.mark.parametrize("number", range(12))
def test_every_smuggling_sequence_is_either_made_harmless_or_reported(number: int) -> None:
    whole, _ = read([b"one" + sequences()[number] + b"two" + END])
    assert whole.bare_lf or whole.bare_cr or whole.nul


# ── chunks: no end of data, no stuffing ──────────────────────────────────────────────────────────────────────────


@settings(max_examples=150, deadline=None)
@given(streams, cuts)
@example(b"a\r\n.", [1, 2, 3])
@example(b"\n.\r", [1])
@example(b"\r\n", [1])
def test_chunks_are_stored_as_the_stuffed_message_however_they_were_cut(message: bytes, places: list[int]) -> None:
    reader = ChunkReader()
    out = b"".join(reader.feed(chunk) for chunk in cut(message, places)) + reader.finish()
    assert reader.bare_lf == message.count(b"\n") - message.count(b"\r\n")
    assert reader.bare_cr == (message.count(b"\r") > message.count(b"\r\n"))
    assert reader.nul == (b"\0" in message)
    whole = normal(message)
    if not whole.endswith(b"\r"):  # which is bare: the message is refused
        assert out == stuff(whole if whole.endswith(b"\r\n") or not whole else whole + b"\r\n")
        assert b"\n" not in out.replace(b"\r\n", b"")
        assert strict_reader(out + b".\r\n" + NEXT)[1] == NEXT
    if not reader.bare_cr:
        assert lenient_reader(out + b".\r\n" + NEXT) == strict_reader(out + b".\r\n" + NEXT)


def test_an_ordinary_piece_of_a_chunk_is_handed_on_as_the_same_object() -> None:
    reader = ChunkReader()
    reader.feed(b"first")
    chunk = b"x" * 70 + b"\r\n" + b"y" * 70
    assert reader.feed(chunk) is chunk


# ── stuffing ─────────────────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=100, deadline=None)
@given(streams)
@example(b".")
@example(b"..\r\n.")
def test_unstuffing_undoes_stuffing_for_any_octets(data: bytes) -> None:
    assert unstuff(stuff(data)) == data


@settings(max_examples=100, deadline=None)
@given(streams)
def test_stuffed_data_never_contain_their_own_end(data: bytes) -> None:
    assert END not in b"\r\n" + stuff(data)


@settings(max_examples=100, deadline=None)
@given(streams, cuts)
def test_unstuffing_in_pieces_equals_unstuffing_at_once(wire: bytes, places: list[int]) -> None:
    unstuffer = Unstuffer()
    out = b"".join(unstuffer.feed(chunk) for chunk in cut(wire, places)) + unstuffer.flush()
    assert out == unstuff(wire)


def test_an_unstuffer_is_as_new_after_flush() -> None:
    unstuffer = Unstuffer()
    assert unstuffer.feed(b"..a\r\n") + unstuffer.flush() == b".a\r\n"
    assert unstuffer.feed(b"..b\r\n") + unstuffer.flush() == b".b\r\n"
    assert unstuffer.flush() == b""
