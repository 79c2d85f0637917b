"""relay/extract_worker.py: what is read from a message, on its own and against the corpora."""

from __future__ import annotations

import base64
import gc
import io
import json
import signal
import socket
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import pytest

from relay import wire_file
from relay.core.mime import MAX_HTML, MAX_PARTS, PartDecoder
from relay.core.wire import stuff
from relay.extract import _popen
from relay.extract_frames import CAREFUL, COUNT, IS_PATH, ITEM, READY, as_json, from_json
from relay.extract_worker import MAX_NAMES, MAX_TEXT, extract, serve
from tests.corpora import corpus
from tests.linear import linear


def mail(body: str | bytes, content_type: str = "text/plain; charset=utf-8", *fields: str) -> bytes:
    lines = ["Subject: hello", f"Content-Type: {content_type}", *fields, "", ""]
    return "\r\n".join(lines).encode() + (body.encode() if isinstance(body, str) else body)


def alternative(plain: str, page: str) -> bytes:
    return mail(
        f"--b\r\n\r\n{plain}\r\n--b\r\nContent-Type: text/html; charset=utf-8\r\n\r\n{page}\r\n--b--\r\n",
        "multipart/alternative; boundary=b",
    )


def zipped(files: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return made.getvalue()


def crlf(raw: bytes) -> bytes:
    return raw.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")


# ---- text


@pytest.mark.parametrize(
    ("charset", "text"),
    [
        ("utf-8", "Заказ № 1 ✔"),
        ("windows-1251", "Заказ № 1"),
        ("koi8-r", "Заказ"),
        ("iso-2022-jp", "製品の在庫"),
        ("gb18030", "产品的库存"),
    ],
)
@pytest.mark.parametrize("encoding", ["8bit", "base64", "quoted-printable"])
def test_text_is_read_in_every_charset_and_encoding(charset: str, text: str, encoding: str) -> None:
    octets = text.encode(charset)
    if encoding == "base64":
        octets = base64.encodebytes(octets)
    elif encoding == "quoted-printable":
        octets = b"".join(b"=%02X" % octet for octet in octets)
    found = extract(mail(octets, f"text/plain; charset={charset}", f"Content-Transfer-Encoding: {encoding}"))
    assert (found.text, found.html_only, found.partial) == (text, False, False)


def test_unlabelled_text_and_text_of_an_unknown_charset_are_guessed() -> None:
    russian = "Здравствуйте, сколько стоит доставка?"
    for content_type in ("text/plain", "text/plain; charset=x-none"):
        assert extract(mail(russian.encode("cp1251"), content_type)).text == russian


def test_line_ends_are_lf_and_the_end_is_trimmed() -> None:
    assert extract(mail("\r\none\r\n\r\ntwo  \r\n \r\n\r\n")).text == "one\n\ntwo"


def test_text_around_a_picture_is_joined() -> None:
    raw = mail(
        "--b\r\n\r\none\r\n--b\r\nContent-Type: image/png\r\n\r\nx\r\n--b\r\n\r\ntwo\r\n--b--",
        "multipart/mixed; boundary=b",
    )
    found = extract(raw)
    assert found.text == "one\n\ntwo"
    assert [part.name for part in found.attachments] == ["part-1.png"]


def test_flowed_text_is_put_on_whole_lines() -> None:
    assert extract(mail("one \r\ntwo\r\nthree", 'text/plain; format="Flowed"')).text == "one two\nthree"
    assert extract(mail("o \r\nne", "text/plain; format=flowed; delsp=yes")).text == "one"


def test_html_alone_is_laid_out_as_text() -> None:
    found = extract(mail("<style>p{}</style><p>Hello&nbsp;<b>you</b></p><ul><li>one<li>two</ul>", "text/html"))
    assert (found.text, found.html_only) == ("Hello you\n\n  * one\n  * two", True)


def test_the_plain_form_goes_before_the_html_form() -> None:
    found = extract(alternative("plain", "<p>page</p>"))
    assert (found.text, found.html_only) == ("plain", False)


def test_an_empty_plain_form_gives_way_to_the_html_form() -> None:
    found = extract(alternative(" \r\n", "<p>page</p>"))
    assert (found.text, found.html_only) == ("page", True)
    found = extract(alternative(" \r\n", "<p></p>"))
    assert (found.text, found.html_only) == ("", False)


def test_a_page_may_name_its_own_charset() -> None:
    page = '<html><head><meta http-equiv="Content-Type" content="text/html; charset=koi8-r"></head>Привет'
    assert extract(mail(page.encode("koi8-r"), "text/html")).text == "Привет"


def test_a_picture_inside_a_page_does_not_use_up_what_is_read_of_it() -> None:
    page = f'<img src="data:image/png;base64,{"A" * 2 * MAX_HTML}"><p>after</p>'
    found = extract(mail(page, "text/html"))
    assert (found.text, found.partial) == ("after", False)


def test_a_page_is_read_up_to_its_limit_and_the_rest_is_said_to_be_missing() -> None:
    found = extract(mail("<p>begin</p>" + "<b>x</b>" * MAX_HTML, "text/html"))
    assert (found.text or "").lstrip().startswith("begin")
    assert found.partial


@pytest.mark.parametrize("page", ["", "<!-- -->", "<?xml version='1.0' encoding='utf-8'?><p>x</p>", "\0", "<" * 1_000])
def test_no_page_raises(page: str) -> None:
    assert extract(mail(page, "text/html")).html_only in (True, False)


def test_a_careful_reading_strips_a_page_of_its_tags_and_is_partial() -> None:
    page = "<style>p{color:red}</style><p>Hello <b>you</b> &amp; me</p><SCRIPT>alert(1)</SCRIPT> end"
    found = extract(mail(page, "text/html"), careful=True)
    assert " ".join((found.text or "").split()) == "Hello you & me end"
    assert found.partial


def test_a_number_without_end_in_a_page_costs_no_attachment() -> None:
    number = f"&#{'1' * 5_000};"
    parts = (
        f"--b\r\nContent-Type: text/html\r\n\r\n<b>{number}\r\n--b\r\nContent-Type: application/pdf\r\n\r\nx\r\n--b--"
    )
    found = extract(mail(parts, "multipart/mixed; boundary=b"), careful=True)
    assert (found.text, [part.name for part in found.attachments]) == (f" {number}", ["part-1.pdf"])


def test_a_page_that_takes_too_long_to_lay_out_is_stripped_of_its_tags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.extract_worker.LAYOUT", 0.02)
    gc.disable()  # hypothesis listens to collections, and would swallow the alarm if it went off there
    try:
        found = extract(mail("<table>" + "<tr><td>word" * 20_000, "text/html"))
    finally:
        gc.enable()
    assert found.partial
    assert (found.text or "").split()[:2] == ["word", "word"]


def test_the_pages_of_one_message_share_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.extract_worker.LAYOUT", 0.02)
    head = "--b\r\nContent-Type: text/html\r\n\r\n"
    gc.disable()
    try:
        slow = extract(
            mail(f"{head}<table>{'<tr><td>word' * 20_000}\r\n{head}<ul><li>x", "multipart/mixed; boundary=b")
        )
        quick = extract(mail(f"{head}<p>word\r\n{head}<ul><li>x", "multipart/mixed; boundary=b"))
    finally:
        gc.enable()
    assert (slow.text or "").split()[-2:] == ["word", "x"]
    assert slow.partial
    assert (quick.text or "").split()[-2:] == ["*", "x"]
    assert not quick.partial


def test_tables_within_tables_are_not_laid_out_to_their_end() -> None:
    page = "<table><tr><td>" * 80 + "a<br>" * 16_000
    gc.disable()
    try:
        found = extract(mail(page, "text/html"))
    finally:
        gc.enable()
    assert (found.text or "").split() == ["a"] * 16_000
    assert found.partial, "other mail waits until they are"


def test_text_has_at_most_a_million_octets() -> None:
    found = extract(mail("я" * MAX_TEXT))
    assert found.text == "я" * (MAX_TEXT // 2)
    assert found.partial


def test_a_message_of_very_many_text_parts_is_partial() -> None:
    found = extract(mail("--b\r\n\r\nx\r\n" * 500, "multipart/mixed; boundary=b"))
    assert (found.text or "").startswith("x\n\nx")
    assert found.partial


def test_a_message_without_a_text_part_has_no_text() -> None:
    found = extract(mail("x", "application/pdf"))
    assert (found.text, found.html_only) == (None, False)


def test_lone_surrogates_never_leave_the_worker() -> None:
    found = extract(mail("+2AA-x", "text/plain; charset=utf-7", "Subject: =?utf-7?q?+2AA-?="))
    assert from_json(as_json(found)) == found


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"{}",
        b"[]",
        b"[1,null,false,[],false]",
        b'["s","t",0,[],false,null]',
        b'["s","t",false,5,false,null]',
        b'["s","t",false,[[0,"a","a/b",1,false,0,1]],false,null]',
        b'["s","t",false,[[0,["a"],"a/b",1,false,0,1,"7bit"]],false,null]',
        b"\xff",
    ],
)
def test_an_answer_that_no_worker_of_ours_writes_is_refused(answer: bytes) -> None:
    with pytest.raises((ValueError, TypeError)):
        from_json(answer)


# ---- attachments


def test_an_attachment_says_where_its_octets_lie() -> None:
    content = bytes(range(256)) * 50
    encoded = crlf(base64.encodebytes(content))
    raw = mail(
        b"--b\r\n\r\n.dots\r\n..first\r\n--b\r\n"
        b"Content-Type: application/pdf; name=old.pdf\r\n"
        b"Content-Disposition: attachment; filename*=utf-8''%D0%A1%D1%87%D1%91%D1%82.pdf\r\n"
        b"Content-Transfer-Encoding: base64\r\n\r\n" + encoded + b"\r\n--b--\r\n",
        "multipart/mixed; boundary=b",
    )
    (part,) = extract(raw).attachments
    assert (part.index, part.name, part.type, part.size) == (0, "Счёт.pdf", "application/pdf", len(content))
    decoder = PartDecoder(part.encoding)
    assert decoder.feed(raw[part.start : part.start + part.length]) + decoder.flush() == content


def test_names_without_end_are_not_all_read_and_no_attachment_is_lost() -> None:
    name = b"=?x?q?\xd0\xc6?==?y?q?\xd0\xc6?=" * 50  # a hundred words, and the charset of each is to be guessed
    head = b'--b\r\nContent-Type: a/b\r\nContent-Disposition: attachment; filename="' + name + b'"\r\n\r\n\r\n'
    with linear():
        found = extract(mail(head * MAX_PARTS, "multipart/mixed; boundary=b"))
    unnamed = [part.index for part in found.attachments if part.name == f"part-{part.index + 1}.bin"]
    assert unnamed == list(range(MAX_NAMES // len(name), MAX_PARTS))
    assert found.partial


def test_nested_messages_and_tnef_are_attachments() -> None:
    raw = mail(
        "--b\r\nContent-Type: message/rfc822\r\n\r\nSubject: inner\r\n\r\nx\r\n"
        "--b\r\nContent-Type: application/ms-tnef\r\n\r\nx\r\n--b--",
        "multipart/mixed; boundary=b",
    )
    assert [part.name for part in extract(raw).attachments] == ["part-1.eml", "winmail.dat"]


def test_archives_are_attachments_as_they_came_and_nobody_opens_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """A zip of zips of zeros and one of many entries; nor is zlib, which Python knows as a codec, a charset."""
    zeros = zipped({"zeros": bytes(10_000_000)})
    bomb = zipped({f"{number}.zip": zeros for number in range(10)})
    many = zipped({str(number): b"" for number in range(1_000)})
    text, opened = zlib.compress(bytes(10_000_000)), list[str]()
    for module, name in ((zlib, "decompress"), (zlib, "decompressobj"), (zipfile, "ZipFile")):
        monkeypatch.setattr(module, name, lambda *_, name=name, **__: opened.append(name))
    parts = [("text/plain; charset=zlib", text), ("application/zip; name=a.zip", bomb), ("x/y; name=b.zip", many)]
    entities = b"".join(
        b"--b\r\nContent-Type: %s\r\nContent-Transfer-Encoding: base64\r\n\r\n%s\r\n"
        % (kind.encode(), base64.encodebytes(octets))
        for kind, octets in parts
    )
    found = extract(mail(entities + b"--b--\r\n", "multipart/mixed; boundary=b"))
    assert [(part.name, part.size) for part in found.attachments] == [("a.zip", len(bomb)), ("b.zip", len(many))]
    assert found.text is not None
    assert len(found.text) <= len(text)
    assert (found.partial, opened) == (False, [])


# ---- the corpora


@dataclass(frozen=True)
class Expected:
    subject: str
    text: str
    attachments: int


def expected(answer: Path) -> Expected:
    """What Stalwart's parser says, in our terms: bodies joined, HTML laid out, every picture an attachment."""
    content = json.loads(answer.read_text())
    parts = content["parts"]
    subjects = [field["value"] for field in parts[0]["headers"] if field["name"] == "subject"]
    texts = []
    for number in content["text_body"]:
        body = parts[number]["body"]
        if "Text" in body:
            text = body["Text"].replace("\r\n", "\n").replace("\r", "\n").replace("\0", "")
            texts.append(text.strip("\n").rstrip())
        elif "Html" in body:
            texts.append(extract(mail(body["Html"], "text/html; charset=utf-8")).text or "")
    pictures = [n for n in content["text_body"] if "InlineBinary" in parts[n]["body"]]
    attachments = {*content["attachments"], *pictures}
    subject = subjects[0].get("Text", "") if subjects and isinstance(subjects[0], dict) else ""
    return Expected(subject.strip(), "\n\n".join(text for text in texts if text), len(attachments))


RAW_8BIT = "legacy/010 legacy/020 legacy/022 legacy/027 legacy/052"  # they show U+FFFD, we recognise windows-1252
FLOWED = "legacy/009 thirdparty/015"  # they keep the soft line breaks
MISLABELLED = "legacy/033 legacy/052"  # Latin-1 that says it is UTF-8 or nothing: they show U+FFFD
FORMS = "thirdparty/000 thirdparty/001"  # several plain forms in one alternative: we show one, they show all
GARBAGE = "thirdparty/002"  # a text part of invalid base64: they make it an attachment
TORN = "thirdparty/005"  # a closing delimiter that does not begin its line: we take it for text (RFC 2046 §5.1.1)
FORWARDED = "thirdparty/015 malformed/012"  # they take neighbouring messages for one, for a delimiter inside
# Boundaries that are missing, cyclic or begin with each other. Where no part can be found we show the text.
BOUNDARIES = "malformed/001 malformed/002 malformed/003 malformed/004 malformed/006 malformed/007 malformed/008 malformed/009 malformed/011 malformed/016"  # noqa: E501
BOUNDARIES_TEXT = "malformed/005 malformed/019 malformed/020 malformed/021"

DEVIATING = {
    "subject": f"{RAW_8BIT}".split(),
    "text": f"{FLOWED} {MISLABELLED} {FORMS} {GARBAGE} {TORN} {BOUNDARIES} {BOUNDARIES_TEXT}".split(),
    "attachments": f"{GARBAGE} {FORWARDED} {BOUNDARIES}".split(),
}


def test_the_stalwart_corpus_is_read_as_its_makers_say_but_for_known_cases() -> None:
    root = corpus("mime-mailparser-stalwart") / "eml"
    deviating: dict[str, set[str]] = {"subject": set(), "text": set(), "attachments": set()}
    answers = sorted(root.rglob("*.json"))
    for answer in answers:
        path = answer.with_name(answer.name.replace(".crlf", "").replace(".json", ".eml"))
        raw = path.read_bytes()
        found = extract(crlf(raw) if ".crlf" in answer.name else raw)
        wanted = expected(answer)
        name = f"{path.parent.name}/{path.stem}"
        if (found.subject or "") != wanted.subject:
            deviating["subject"].add(name)
        if (found.text or "") != wanted.text:
            deviating["text"].add(name)
        if len(found.attachments) != wanted.attachments:
            deviating["attachments"].add(name)
    assert len(answers) == 214
    assert {field: sorted(names) for field, names in deviating.items()} == {
        field: sorted(names) for field, names in DEVIATING.items()
    }


@pytest.mark.parametrize("name", ["mime-mailparser-stalwart", "mime-nodemailer", "mime-haraka", "mime-cpython"])
def test_every_message_of_the_corpora_is_read_and_its_attachments_are_where_it_says(name: str) -> None:
    paths = [path for path in corpus(name).rglob("*") if path.suffix == ".eml" or path.suffix == ".txt"]
    paths = [path for path in paths if not path.name.startswith("LICENSE")]
    for path in paths:
        raw = crlf(path.read_bytes())
        found = extract(raw)
        for part in found.attachments:
            decoder = PartDecoder(part.encoding)
            assert len(decoder.feed(raw[part.start : part.start + part.length]) + decoder.flush()) == part.size
            assert part.name
    assert len(paths) >= {"mime-haraka": 2, "mime-nodemailer": 10}.get(name, 48)


# ---- the process


def ask(*items: tuple[int, bytes]) -> list[str | None]:
    """The subjects that the worker's loop answers for (flags, octets)."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        request = COUNT.pack(len(items)) + b"".join(ITEM.pack(flags, len(body)) for flags, body in items)
        requests = io.BytesIO(request + b"".join(body for _, body in items))
        serve(requests, theirs, 60.0)
        with ours.makefile("rb") as answers:
            lengths = [COUNT.unpack(answers.read(COUNT.size))[0] for _ in items]
            return [from_json(answers.read(length)).subject for length in lengths]


def test_a_file_and_octets_are_read_alike_stuffed_or_not(tmp_path: Path) -> None:
    for text in ("plain", ".stuffed", "x\r\n.stuffed"):
        wire = stuff(b"Subject: " + text[:1].encode() + b"\r\n\r\n" + text.encode())
        path = tmp_path / "body"
        path.write_bytes(wire)
        assert ask((0, wire), (IS_PATH, bytes(path)), (IS_PATH | CAREFUL, bytes(path))) == [text[:1]] * 3


def test_a_file_of_more_dots_than_are_told_past_is_read_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wire_file, "MOST_DOTS", 1)
    path = tmp_path / "body"
    path.write_bytes(stuff(b"Subject: x\r\n\r\n" + b".\r\n" * 3))
    assert ask((IS_PATH, bytes(path))) == ["x"]


def test_an_empty_file_and_a_missing_one_are_answered(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert ask((IS_PATH, bytes(tmp_path / "empty")), (IS_PATH, bytes(tmp_path / "none")), (0, b"")) == [None] * 3


def test_what_one_message_raises_is_its_own_matter(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def walk(message: bytes) -> None:
        raise RecursionError("deep")

    monkeypatch.setattr("relay.core.mime.walk", walk)
    assert ask((0, b"Subject: still\r\n\r\n")) == ["still"]
    assert "RecursionError: deep" in capsys.readouterr().err


def test_a_busy_worker_ends_itself_when_nobody_else_does() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = _popen(theirs.fileno(), ["0.05", str(1 << 30)])
        ours.settimeout(30)
        assert ours.recv(1) == READY
        slow = mail("<a " + " ".join(f"a{n}=1" for n in range(30_000)) + ">x", "text/html")
        ours.sendall(COUNT.pack(1) + ITEM.pack(0, len(slow)) + slow)
        assert process.wait(timeout=30) == -signal.SIGALRM
