"""relay/core/mime.py: the tree, the offsets, the part decoder, and what hostile structure costs."""

from __future__ import annotations

import base64
import binascii
import quopri
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.core import mime
from relay.core.message import scan
from relay.core.mime import Node, PartDecoder, Value, bodies, header_fields, parameters, walk
from tests.linear import linear

PDF = base64.encodebytes(bytes(range(256)) * 20).replace(b"\n", b"\r\n")


def message(*lines: str | bytes) -> bytes:
    return b"\r\n".join(line.encode() if isinstance(line, str) else line for line in lines)


def multipart(boundary: str, *parts: bytes, kind: str = "mixed", closed: bool = True) -> bytes:
    """A multipart entity of the given part entities."""
    header = f'Content-Type: multipart/{kind}; boundary="{boundary}"\r\n\r\n'.encode()
    delimiter = f"--{boundary}".encode()
    entities = [piece for part in parts for piece in (delimiter, b"\r\n", part, b"\r\n")]
    return b"".join([header, *entities, delimiter + b"--\r\n" if closed else b""])


def entity(kind: str, body: str = "x", *fields: str) -> bytes:
    return message(f"Content-Type: {kind}", *fields, "", body)


def body(raw: bytes, node: Node) -> bytes:
    return raw[node.start : node.end]


def kinds(nodes: list[Node]) -> list[str]:
    return [node.type for node in nodes]


# ---- the tree


def test_a_message_without_mime_is_one_text_part_behind_its_header() -> None:
    raw = message("Subject: hello", "", "text", "")
    tree = walk(raw)
    assert (tree.root.type, body(raw, tree.root), tree.subject) == ("text/plain", b"text\r\n", b"hello")
    assert not tree.partial


def test_behind_a_line_that_is_no_field_nothing_is_the_messages_own() -> None:
    part = entity("application/pdf")
    raw = message("From: a@b.example", "foo", "Subject: hi", multipart("b", part))
    tree = walk(raw)
    assert (tree.subject, tree.root.type, body(raw, tree.root)[:5]) == (None, "text/plain", b"foo\r\n")
    assert not bodies(tree.root).attachments


_LINES = (
    "A: b",
    "A-1 :",
    ": b",
    "foo",
    " c: d",
    "\tfoo",
    "",
    "From x",
    ">From x",
    "From : x",
    "From x: y",
    "ü: b",
    ".:",
)


@given(st.lists(st.sampled_from(_LINES), max_size=6))
def test_the_header_ends_where_the_scan_ends_it(lines: list[str]) -> None:
    raw = message(*lines, "")
    end = scan(raw, "").end
    assert walk(raw).root.start == end + (2 if raw.startswith(b"\r\n", end) else 0)


def test_the_line_break_before_a_delimiter_is_not_part_of_the_body() -> None:
    raw = multipart("b", entity("text/plain", "one\r\n"), entity("text/html", "two"))
    assert [body(raw, part) for part in walk(raw).root.children] == [b"one\r\n", b"two"]


def test_bare_line_feeds_are_read_as_line_ends_too() -> None:
    raw = multipart("b", entity("text/plain", "one"), entity("text/html", "two")).replace(b"\r\n", b"\n")
    assert [body(raw, part) for part in walk(raw).root.children] == [b"one", b"two"]


def test_preamble_and_epilogue_belong_to_no_part() -> None:
    raw = message("Content-Type: multipart/mixed; boundary=b", "", "preamble", "--b", "", "part", "--b--", "epilogue")
    root = walk(raw).root
    assert [body(raw, part) for part in root.children] == [b"part"]


def test_a_missing_closing_delimiter_ends_the_last_part_with_its_parent() -> None:
    inner = multipart("in", entity("text/plain", "one"), closed=False)
    raw = multipart("out", inner, entity("image/png", "two"))
    first, second = walk(raw).root.children
    assert body(raw, first.children[0]).strip() == b"one"
    assert body(raw, second) == b"two"


def test_a_boundary_that_begins_with_its_parents_boundary_is_not_mistaken_for_it() -> None:
    raw = multipart("b", multipart("b1", entity("text/plain", "one"), entity("text/plain", "two")), entity("a/b", "3"))
    nested, last = walk(raw).root.children
    assert [body(raw, part) for part in nested.children] == [b"one", b"two"]
    assert body(raw, last) == b"3"


def test_white_space_behind_a_delimiter_is_allowed() -> None:
    raw = message("Content-Type: multipart/mixed; boundary=b", "", "--b \t", "", "part", "--b--  ", "")
    assert [body(raw, part) for part in walk(raw).root.children] == [b"part"]


def test_a_part_may_begin_with_its_empty_line() -> None:
    raw = message("Content-Type: multipart/mixed; boundary=b", "", "--b", "", "part", "--b--")
    (part,) = walk(raw).root.children
    assert (part.type, body(raw, part)) == ("text/plain", b"part")


def test_parts_of_a_digest_are_messages_unless_they_say_otherwise() -> None:
    raw = multipart("b", message("", "From: a", "", "x"), entity("text/plain"), kind="digest")
    assert kinds(walk(raw).root.children) == ["message/rfc822", "text/plain"]


def test_a_nested_message_is_one_part_and_is_not_walked() -> None:
    raw = multipart("b", entity("message/rfc822", multipart("c", entity("text/plain")).decode()))
    (part,) = walk(raw).root.children
    assert (part.type, part.children) == ("message/rfc822", [])


@pytest.mark.parametrize(
    "content_type",
    ["multipart/mixed", "multipart/mixed; boundary=", 'multipart/mixed; boundary="never"', "text", "nonsense; a=b"],
)
def test_a_body_that_no_part_begins_in_is_shown_as_text(content_type: str) -> None:
    raw = message(f"Content-Type: {content_type}", "", "to be read")
    root = walk(raw).root
    assert (root.type, body(raw, root)) == ("text/plain", b"to be read")


def test_the_boundary_is_found_when_the_semicolon_before_it_is_missing() -> None:
    raw = message("Content-Type: multipart/mixed", '\tboundary="b"', "", "--b", "", "part", "--b--")
    assert [body(raw, part) for part in walk(raw).root.children] == [b"part"]


def test_a_header_that_never_ends_has_no_body() -> None:
    raw = message("Subject: hello", "To: you")
    tree = walk(raw)
    assert (tree.subject, body(raw, tree.root)) == (b"hello", b"")


# ---- header fields and parameters


def test_the_first_of_repeated_fields_counts_and_folds_are_undone() -> None:
    fields = header_fields(b"Subject: one\r\n two\r\nSUBJECT: three\r\nContent-Type : text/html\r\nX-Subject: no")
    assert fields == {"subject": b"one two", "content-type": b"text/html"}


@pytest.mark.parametrize(
    ("value", "name", "expected"),
    [
        (b'attachment; filename="a;b.pdf"', "filename", Value(b"a;b.pdf")),
        (b"attachment; filename=my file.pdf ; size=3", "filename", Value(b"my file.pdf")),
        (rb'attachment; filename="say \"hi\".txt"', "filename", Value(b'say "hi".txt')),
        (rb'attachment; filename="C:\TEMP\a.png"', "filename", Value(rb"C:\TEMP\a.png")),
        (b'attachment; filename="never closed', "filename", Value(b"never closed")),
        (b"text/plain charset=utf-8", "charset", Value(b"utf-8")),
        (b"text/plain; CHARSET = utf-8", "charset", Value(b"utf-8")),
        (b"a; filename*=utf-8''%D0%B0.pdf", "filename", Value("а.pdf".encode(), "utf-8")),
        (b"a; filename=x; filename*=utf-8''%D0%B0", "filename", Value("а".encode(), "utf-8")),
        (b"a; filename*1*=%B0.pdf; filename*0*=utf-8'ru'%D0", "filename", Value("а.pdf".encode(), "utf-8")),
        (b'a; filename*0="one "; filename*1="two"', "filename", Value(b"one two")),
        (b"a; filename*0*=koi8-r''%C1; filename*1=%41", "filename", Value(b"\xc1%41", "koi8-r")),
        (b"a; filename*=no quotes%21", "filename", Value(b"no quotes!")),
    ],
)
def test_parameters_are_read_as_rfc_2045_and_2231_and_real_mail_write_them(
    value: bytes, name: str, expected: Value
) -> None:
    assert parameters(value)[name] == expected


def test_no_more_than_the_limit_of_parameters_is_read() -> None:
    many = b"a/b" + b"".join(b"; p%d=v" % n for n in range(mime.MAX_PARAMETERS + 10))
    assert len(parameters(many)) == mime.MAX_PARAMETERS


# ---- text or attachment


def chosen(raw: bytes) -> tuple[list[str], list[str], list[str]]:
    found = bodies(walk(raw).root)
    return kinds(found.text), kinds(found.html), [node.type for node, _ in found.attachments]


def test_an_alternative_gives_its_plain_form_as_text_and_its_other_form_as_html() -> None:
    raw = multipart("b", entity("text/plain"), entity("text/html"), entity("text/calendar"), kind="alternative")
    assert chosen(raw) == (["text/plain"], ["text/html"], ["text/calendar"])


def test_html_alone_is_the_text_too() -> None:
    raw = multipart("b", multipart("c", entity("text/html"), entity("image/png"), kind="related"), kind="alternative")
    assert chosen(raw) == (["text/html"], ["text/html"], ["image/png"])


def test_text_before_and_behind_a_picture_is_all_text() -> None:
    raw = multipart("b", entity("text/plain"), entity("image/jpeg"), entity("text/plain"))
    assert chosen(raw) == (["text/plain"] * 2, ["text/plain"] * 2, ["image/jpeg"])


def test_a_later_text_part_with_a_name_and_one_marked_as_attachment_are_attachments() -> None:
    named = entity("text/plain; name=a.txt")
    marked = entity("text/html", "x", "Content-Disposition: attachment")
    assert chosen(multipart("b", entity("text/plain"), named, marked)) == (
        ["text/plain"],
        ["text/plain"],
        ["text/plain", "text/html"],
    )


@pytest.mark.parametrize("empty", ['name=""', "name=", 'name=" "', "name*=utf-8''"])
def test_a_name_of_nothing_is_none(empty: str) -> None:
    raw = multipart(
        "b",
        entity("text/plain"),
        entity(f"text/plain; {empty}"),
        entity("text/plain", "x", f"Content-Disposition: inline; file{empty}"),
        entity("application/pdf; name=offer.pdf", "x", f"Content-Disposition: attachment; file{empty}"),
    )
    assert chosen(raw) == (["text/plain"] * 3, ["text/plain"] * 3, ["application/pdf"])
    assert walk(raw).root.children[3].filename == Value(b"offer.pdf")


def test_the_text_of_a_related_is_its_first_text_part_wherever_it_stands() -> None:
    raw = multipart("b", entity("image/png"), entity("text/html"), entity("text/plain"), kind="related")
    assert chosen(raw) == (["text/html"], ["text/html"], ["image/png", "text/plain"])


def test_a_message_that_is_one_file_is_one_attachment() -> None:
    assert chosen(entity("application/pdf")) == ([], [], ["application/pdf"])


@pytest.mark.parametrize(
    ("kind", "fields", "inline"),
    [
        ("image/png", ["Content-ID: <a>"], True),
        ("image/png", ["Content-Disposition: inline"], True),
        ("image/png", ["Content-ID: <a>", "Content-Disposition: attachment"], False),
        ("image/png", [], False),
        ("application/pdf", ["Content-ID: <a>", "Content-Disposition: inline"], False),
    ],
)
def test_inline_are_pictures_that_the_text_shows(kind: str, fields: list[str], inline: bool) -> None:
    raw = multipart("b", entity("text/html"), entity(kind, "x", *fields), kind="related")
    assert [shown for _, shown in bodies(walk(raw).root).attachments] == [inline]


# ---- the part decoder


def decoded(encoding: str, encoded: bytes, cuts: list[int]) -> bytes:
    decoder = PartDecoder(encoding)
    edges = [0, *sorted(cut % (len(encoded) + 1) for cut in cuts), len(encoded)]
    pieces = [decoder.feed(encoded[a:b]) for a, b in pairwise(edges)]
    return b"".join(pieces) + decoder.flush()


CUTS = st.lists(st.integers(0, 5_000), max_size=12)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=1_000), CUTS, st.sampled_from([b"\r\n", b"\n", b" \r\n\t", b""]))
def test_base64_is_decoded_the_same_however_it_is_cut(octets: bytes, cuts: list[int], newline: bytes) -> None:
    encoded = base64.encodebytes(octets).replace(b"\n", newline)
    assert decoded("base64", encoded, cuts) == octets


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=1_000).map(lambda octets: octets.replace(b"\r", b"")), CUTS)
def test_quoted_printable_is_decoded_the_same_however_it_is_cut(octets: bytes, cuts: list[int]) -> None:
    assert decoded("quoted-printable", quopri.encodestring(octets), cuts) == octets


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["base64", "quoted-printable", "7bit"]), st.binary(max_size=600), CUTS)
def test_garbage_is_decoded_the_same_however_it_is_cut(encoding: str, octets: bytes, cuts: list[int]) -> None:
    assert decoded(encoding, octets, cuts) == decoded(encoding, octets, [])


@pytest.mark.parametrize("cut", [2, 3])
def test_base64_without_its_padding_keeps_its_last_octets(cut: int) -> None:
    octets = b"abcdefgh"[: 9 - cut]
    assert decoded("base64", base64.b64encode(octets).rstrip(b"="), []) == octets


def test_base64_skips_what_is_none_and_ends_at_its_padding() -> None:
    assert decoded("base64", b"a!G\x00k*=\r\nYWFh", []) == b"hi"


def test_an_endless_line_of_quoted_printable_is_not_held_back() -> None:
    decoder = PartDecoder("quoted-printable")
    given_back = sum(len(decoder.feed(b"a" * 65_536)) for _ in range(20))
    assert given_back >= 19 * 65_536
    assert given_back + len(decoder.flush()) == 20 * 65_536


@pytest.mark.parametrize("line", [b"=" * 200_001, b"===aa=" * 40_000, b"a==3D" * 50_000])
@pytest.mark.parametrize("cut", [65_536, 65_537, 65_538, 100_003])
def test_an_endless_line_with_runs_of_the_escape_is_the_same_however_it_is_cut(line: bytes, cut: int) -> None:
    cuts = list(range(cut, len(line), cut))
    assert decoded("quoted-printable", line, cuts) == binascii.a2b_qp(line)


def test_a_soft_break_at_the_cut_of_an_endless_line_is_kept_whole() -> None:
    line = b"a" * 65_535 + b"=C3=A4"
    assert decoded("quoted-printable", line, [65_537]) == b"a" * 65_535 + "ä".encode()


@pytest.mark.parametrize("encoding", ["7bit", "8bit", "binary", "x-unknown"])
def test_other_encodings_leave_the_octets_as_they_are(encoding: str) -> None:
    assert decoded(encoding, b"=41 YWFh\r\n", [3]) == b"=41 YWFh\r\n"


@pytest.mark.parametrize("encoding", ["base64", "BASE64 ; x", '"base64"', " base64 (really)"])
def test_the_size_told_is_the_size_that_the_decoder_yields(encoding: str) -> None:
    raw = multipart("b", message("Content-Type: a/b", f"Content-Transfer-Encoding: {encoding}", "", PDF))
    (node,) = walk(raw).root.children
    assert node.encoding == "base64"
    assert mime.decoded_size(raw, node) == 256 * 20 == len(binascii.a2b_base64(body(raw, node)))


@given(
    st.lists(st.sampled_from([b"YWFh", b"Y", b"=", b"\r\n", b"!", b"\xff"]), max_size=40).map(b"".join),
    st.integers(1, 9),
)
def test_the_size_told_of_broken_base64_is_the_size_that_the_decoder_yields(garbage: bytes, cut: int) -> None:
    node = Node("a/b", {}, "", None, b"", "base64", 0, len(garbage))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mime, "_SLICE", cut)
        size = mime.decoded_size(garbage, node)
    assert size == len(decoded("base64", garbage, []))


# ---- hostile structure: linear, bounded, and said to be partial


def nested(depth: int, tail: bytes = b"") -> bytes:
    return (
        b"".join(b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (n, n) for n in range(depth)) + tail
    )


HOSTILE: dict[str, Callable[[], bytes]] = {  # made when needed: together they are 150 MB
    "8,000 parameters": lambda: (
        b"Content-Type: text/plain" + b"".join(b"; p%d=v" % n for n in range(8_000)) + b"\r\n\r\nx"
    ),
    "32,000 parameters": lambda: (
        b"Content-Type: text/plain" + b"".join(b"; p%d=v" % n for n in range(32_000)) + b"\r\n\r\nx"
    ),
    "32,000 sections": lambda: b"Content-Type: a/b" + b"".join(b"; n*%d*=v" % n for n in range(32_000)) + b"\r\n\r\nx",
    "parameters of nothing": lambda: b"Content-Type: a/b" + b"; " * 100_000 + b"\r\n\r\nx",
    "a parameter of spaces": lambda: b"Content-Type: a/b;" + b" " * 100_000 + b"\r\n\r\nx",
    "32 kB of quotes": lambda: (
        b"Content-Type: a/b; name=" + b'"' * 32_768 + b"\r\nSubject: " + b'"' * 32_768 + b"\r\n\r\nx"
    ),
    "32 kB of escaped quotes": lambda: b"Content-Type: a/b; name=" + b'\\"' * 32_768 + b"\r\n\r\nx",
    "200,000 parts": lambda: multipart("b", *[b"\r\nx"] * 200_000),
    "1,000 levels": lambda: nested(1_000),
    "1,000 levels round 10 MB of delimiters of none": lambda: nested(1_000, b"\r\n--" * 2_500_000),
    "one boundary for every level": lambda: b"Content-Type: multipart/mixed; boundary=a\r\n\r\n--a\r\n" * 20_000,
    "boundaries that begin with each other": lambda: (
        b"".join(
            b"Content-Type: multipart/mixed; boundary=%s\r\n\r\n--%s\r\n" % (b"a" * n, b"a" * n) for n in range(1, 200)
        )
        * 20
    ),
    "3,000,000 near misses": lambda: b"Content-Type: multipart/mixed; boundary=a\r\n\r\n" + b"--ab\r\n" * 3_000_000,
    "near misses in each of 900 parts": lambda: multipart(
        "z", *[b"Content-Type: multipart/mixed; boundary=a\r\n\r\n" + b"--ab\r\n" * 4_000] * 900
    ),
    "900 multiparts that never open": lambda: multipart(
        "z", *[b"Content-Type: multipart/mixed; boundary=q%d\r\n\r\n" % n + b"y" * 20_000 for n in range(900)]
    ),
    "100,000 nested messages": lambda: b"Content-Type: message/rfc822\r\n\r\n" * 100_000,
    "a header of 20 MB": lambda: b"X: " + b"a" * 20_000_000,
    "2,000,000 fields": lambda: b"Content-Type:\r\n" * 2_000_000,
    "80,000 folds": lambda: b"Subject: a" + b"\r\n " * 80_000 + b"\r\n\r\n",
    "20 MB of padding": lambda: b"Content-Type: a/b\r\nContent-Transfer-Encoding: base64\r\n\r\n" + b"=" * 20_000_000,
    "20 MB of equals signs": lambda: b"Content-Transfer-Encoding: quoted-printable\r\n\r\n" + b"=" * 20_000_000,
    "nothing": lambda: b"",
    "zeros": lambda: b"\0" * 100_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_structure_is_walked_in_linear_time(name: str) -> None:
    raw = HOSTILE[name]()
    with linear():  # quadratic work on megabytes would not come to an end
        tree = walk(raw)
        found = bodies(tree.root)
        sizes = [mime.decoded_size(raw, node) for node, _ in found.attachments]
    assert len(sizes) <= mime.MAX_PARTS


@pytest.mark.parametrize(
    "name", ["200,000 parts", "1,000 levels", "3,000,000 near misses", "a header of 20 MB", "2,000,000 fields"]
)
def test_what_goes_beyond_a_limit_is_said_to_be_partial(name: str) -> None:
    assert walk(HOSTILE[name]()).partial


def test_a_hundred_levels_are_walked_and_the_next_is_kept_as_one_attachment() -> None:
    deepest = walk(nested(mime.MAX_DEPTH, b"Content-Type: a/b\r\n\r\nx"))
    assert not deepest.partial
    assert [node.type for node, _ in bodies(deepest.root).attachments] == ["a/b"]
    deeper = walk(nested(mime.MAX_DEPTH + 1, b"Content-Type: a/b\r\n\r\nx"))
    assert deeper.partial
    assert [node.type for node, _ in bodies(deeper.root).attachments] == ["multipart/mixed"]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [
                *(b"--a", b"--a--", b"--ab", b"\r\n", b"\n", b"x", b": ", b"\0", b"Content-Type: text/html\r\n"),
                b"Content-Type: multipart/mixed; boundary=a\r\n",
                b"Content-Type: multipart/alternative; boundary=ab\r\n",
            ]
        ),
        max_size=40,
    )
)
def test_any_mixture_of_structure_keeps_every_part_inside_its_parent(pieces: list[bytes]) -> None:
    raw = b"".join(pieces)

    def check(node: Node, start: int, end: int) -> None:
        assert start <= node.start <= node.end <= end
        at = node.start
        for child in node.children:
            check(child, at, node.end)
            at = child.end

    root = walk(raw).root
    check(root, 0, len(raw))
    found = bodies(root)
    assert len(found.attachments) + len(found.text) <= mime.MAX_PARTS
