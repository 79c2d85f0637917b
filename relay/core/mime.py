"""The structure of a MIME message: where each part's octets lie, without decoding them (RFC 2045, 2046, 2183).

The walker reads a message in un-stuffed form (RFC 5321 §4.5.2 undone) and answers offsets into it, so that an
attachment is later streamed out of the stored message and never kept twice. It takes hostile mail for granted:

    what                      bound                           beyond it
    nesting of multiparts     MAX_DEPTH                       not descended into, ``partial``
    parts                     MAX_PARTS                       the rest is not looked at, ``partial``
    one header block          MAX_HEADER octets               cut, ``partial``
    parameters of a field     MAX_PARAMETERS, MAX_FIELD       ignored
    octets searched           SCANS x size, at least 64 MiB   not descended into, ``partial``

The last one keeps the whole linear: a part is searched once for every multipart round it, so the sum of the ranges
searched is what a message can make us spend. Delimiters are found by ``find`` alone; lines are never looked at.
A nested message (message/rfc822) is one part, an attachment: nothing in it is walked.
"""

from __future__ import annotations

import re
from binascii import a2b_base64, a2b_qp
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import unquote_to_bytes

MAX_DEPTH = 100
MAX_PARTS = 1_000
MAX_HEADER = 256 * 1024
MAX_FIELD = 16 * 1024
MAX_HTML = 256 * 1024  # characters of HTML that are read; inscriptis takes 0.1 to 0.5 ms for 1 KiB
MAX_PARAMETERS = 128
SCANS = 16
_LEAST_SCAN = 64 * 1024 * 1024
_MAX_BOUNDARY = 256  # RFC 2046 says 70; real mail has longer ones
_MAX_NEAR_MISSES = 10_000  # lines of a message that begin with a boundary but go on: "--ab" where it is "a"
_SLICE = 256 * 1024

OCTET_STREAM = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class Part:
    """One attachment: what to call it, and where its encoded octets lie in the un-stuffed message.

    ``index`` counts the attachments of the message from 0. ``size`` is the decoded size: exactly what
    ``PartDecoder(encoding)`` yields for the ``length`` octets from ``start``. ``inline``: an image shown in the text.
    """

    index: int
    name: str
    type: str
    size: int
    inline: bool
    start: int
    length: int
    encoding: str


@dataclass(frozen=True, slots=True)
class Extracted:
    """What History and the CRM show of a message.

    ``subject`` is None where there is none, ``text`` where there is no text part. ``html_only``: the text was
    made from HTML. ``partial``: a limit cut something off, or the message could not be read in time.

    ``html``, only where it was asked for, is the HTML form of the message as its sender wrote it: NOT made safe, its
    pictures still named by cid:. None where there is no such form, or where it ended a worker. Its parts (at most
    16) are joined by a line feed, line ends are LF, NULs are gone. Cut, wherever that falls: each part at 4 MiB before
    its transfer encoding is undone, the whole at MAX_HTML characters, and then ``partial``.
    """

    subject: str | None
    text: str | None
    html_only: bool
    attachments: tuple[Part, ...]
    partial: bool
    html: str | None = None


class Octets(Protocol):
    """What the walker needs of a message: ``bytes`` has it, and so has a stored body (relay/wire_file.py)."""

    def __len__(self) -> int: ...
    def __getitem__(self, key: slice, /) -> bytes: ...
    def find(self, sub: bytes, start: int, end: int, /) -> int: ...


@dataclass(slots=True)
class Value:
    """One parameter: its octets unquoted, and the charset RFC 2231 gave with them ("" where it gave none)."""

    octets: bytes
    charset: str = ""


@dataclass(slots=True)
class Node:
    """One part of the tree. ``start`` and ``end`` bound its encoded body; only a multipart has ``children``."""

    type: str
    parameters: dict[str, Value]
    disposition: str  # "", "inline", "attachment", or what else the sender wrote
    filename: Value | None  # Content-Disposition's, else Content-Type's name
    content_id: bytes  # the field's value, b"" without one
    encoding: str  # "base64", "quoted-printable", or one that leaves the octets as they are
    start: int
    end: int
    children: list[Node] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Tree:
    """``subject`` is the raw field value of the top header block (≤ MAX_FIELD octets), None where there is none."""

    root: Node
    subject: bytes | None
    partial: bool


# field-name *WSP ":" unstructured with its folds (RFC 5322 §2.2.3, §4.5): of these few fields, the first of each
_FIELDS = re.compile(
    rb"^(subject|content-(?:type|transfer-encoding|disposition|id))[ \t]*:([^\n]*(?:\n[ \t][^\n]*)*)",
    re.IGNORECASE | re.MULTILINE,
)
# The fields that a message begins with, and an mbox "From " line before them: the block that core/message.scan reads
_HEADER = re.compile(
    rb"(?:(?!From [ \t]*+:)>?From [^\n]*+\n?+)?+(?:[!-9;-~]++[ \t]*+:[^\n]*+(?:\n[ \t][^\n]*+)*+\n?)*+",
)
# parameter := attribute "=" (token / quoted-string) (RFC 2045 §5.1). In real mail the ";" before it may be missing and
# an unquoted value may hold spaces. A run of white space is tried from its first octet only, which keeps this linear.
_PARAMETER = re.compile(
    rb'(?:;|(?<=\S)\s)\s*+([^\s=;"]{1,80})\s*+=\s*+(?:"((?:[^"\\]|\\.)*+)"?|([^;]*))',
    re.DOTALL,
)
_TYPE = re.compile(rb"\s*([a-z0-9!#$&^_.+-]{1,64})/([a-z0-9!#$&^_.+-]{1,64})", re.IGNORECASE)
_TOKEN = re.compile(rb"[\s\"]*([a-z0-9!#$&^_.+-]{1,64})", re.IGNORECASE)
_SECTION = re.compile(r"(.+?)\*(?:(\d{1,4})(\*)?)?\Z")  # RFC 2231: name*, name*0, name*0*
_ESCAPED = re.compile(rb"\\([\"\\])")  # other backslashes are real mail's paths, unescaped
_FOLD = re.compile(rb"\r?\n")


def header_block(message: Octets, start: int, end: int) -> tuple[bytes, int]:
    """The header from ``start``, at most MAX_HEADER octets, and where the body begins: behind the first empty line."""
    first = message[start : start + 2]
    if first[:1] == b"\n" or first == b"\r\n":
        return b"", min(start + (1 if first[:1] == b"\n" else 2), end)
    limit = min(end, start + MAX_HEADER)
    crlf = message.find(b"\n\r\n", start, limit)
    bare = message.find(b"\n\n", start, limit if crlf < 0 else crlf)
    if bare >= 0:
        return message[start:bare], bare + 2
    if crlf >= 0:
        return message[start:crlf], crlf + 3
    return message[start:limit], end


def own_fields(block: bytes, body: int) -> tuple[bytes, int]:
    """A message's own header, of ``header_block``, up to the first line that is no field: there its body begins then.

    So core/message.scan and Postfix read it. What a recipient there sees in the text is neither subject nor type.
    """
    match = _HEADER.match(block)
    end = match.end() if match else 0
    return (block, body) if end == len(block) else (block[:end], end)


def header_fields(block: bytes) -> dict[str, bytes]:
    """The first Subject, Content-Type, -Transfer-Encoding, -Disposition and -ID of a header block, unfolded.

    Keys are lower-case names; values are stripped and cut at MAX_FIELD octets.
    """
    fields: dict[str, bytes] = {}
    for match in _FIELDS.finditer(block):
        name = match[1].decode("ascii").lower()
        if name not in fields:
            fields[name] = _FOLD.sub(b"", match[2][: MAX_FIELD + 1]).strip()[:MAX_FIELD]
    return fields


def parameters(value: bytes) -> dict[str, Value]:
    """The parameters of a Content-Type or Content-Disposition value, RFC 2231 sections joined; the first of each name.

    At most MAX_PARAMETERS are read. What is not a parameter is skipped.
    """
    found: dict[str, Value] = {}
    sections: dict[str, dict[int, tuple[bytes, bool]]] = {}
    for count, match in enumerate(_PARAMETER.finditer(value)):
        if count == MAX_PARAMETERS:
            break
        octets = match[3].strip() if match[2] is None else _ESCAPED.sub(rb"\1", match[2])
        name = match[1].decode("latin-1").lower()
        section = _SECTION.match(name) if "*" in name else None
        if section is None:
            found.setdefault(name, Value(octets))
        else:
            encoded = section[2] is None or section[3] is not None
            sections.setdefault(section[1], {}).setdefault(int(section[2] or 0), (octets, encoded))
    for name, pieces in sections.items():
        found[name] = _join(pieces)  # RFC 2231 forms win over the plain one that old clients are given
    return found


def _join(pieces: dict[int, tuple[bytes, bool]]) -> Value:
    """RFC 2231 §3 and §4: sections in their order; the first encoded one says the charset."""
    charset = ""
    octets: list[bytes] = []
    for number in sorted(pieces):
        value, encoded = pieces[number]
        if encoded and not octets:
            label, quote, rest = value.partition(b"'")
            if quote:
                charset = label.decode("latin-1")
                value = rest.partition(b"'")[2]
        octets.append(unquote_to_bytes(value) if encoded else value)
    return Value(b"".join(octets), charset)


def walk(message: Octets) -> Tree:
    """The tree of an un-stuffed message; linear in its size, never an exception for what the message holds."""
    walker = _Walker(message)
    root = walker.node(0, len(message), 0, "text/plain")
    return Tree(root, walker.subject, walker.partial)


class _Walker:
    def __init__(self, message: Octets) -> None:
        self._message = message
        self._parts = 0
        self._near_misses = 0
        self._to_scan = max(SCANS * len(message), _LEAST_SCAN)
        self.subject: bytes | None = None
        self.partial = False

    def node(self, start: int, end: int, depth: int, default: str) -> Node:
        """The part whose header begins at ``start`` and whose body goes up to ``end``."""
        block, body = header_block(self._message, start, end)
        if len(block) == MAX_HEADER < end - start:
            self.partial = True
        if depth == 0:
            block, body = own_fields(block, body)
        fields = header_fields(block)
        if depth == 0:
            self.subject = fields.get("subject")
        content_type = fields.get("content-type", b"")
        match = _TYPE.match(content_type)
        kind = f"{match[1].decode()}/{match[2].decode()}".lower() if match else default
        of_type = parameters(content_type) if match else {}
        disposition = fields.get("content-disposition", b"")
        node = Node(
            type=kind,
            parameters=of_type,
            disposition=_token(disposition),
            filename=_named(parameters(disposition).get("filename")) or _named(of_type.get("name")),
            content_id=fields.get("content-id", b""),
            encoding=_token(fields.get("content-transfer-encoding", b"")) or "7bit",
            start=body,
            end=end,
        )
        if kind.startswith("multipart/"):
            boundary = of_type["boundary"].octets.rstrip() if "boundary" in of_type else b""
            if depth >= MAX_DEPTH or self._to_scan < 0:
                self.partial = True
            elif not 0 < len(boundary) <= _MAX_BOUNDARY or not self._descend(node, boundary, depth):
                node.type = "text/plain"  # no part ever begins: what stands there is all there is to read
        return node

    def _descend(self, node: Node, boundary: bytes, depth: int) -> bool:
        """Walk the parts of a multipart; False if there are none."""
        self._to_scan -= node.end - node.start
        default = "message/rfc822" if node.type == "multipart/digest" else "text/plain"
        for start, end in self._ranges(boundary, node.start, node.end):
            if self._parts >= MAX_PARTS:
                self.partial = True
                return True
            self._parts += 1
            node.children.append(self.node(start, end, depth + 1, default))
        return bool(node.children)

    def _ranges(self, boundary: bytes, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Where the parts of a multipart lie (RFC 2046 §5.1.1); the last one needs no closing delimiter."""
        message = self._message
        delimiter = b"--" + boundary
        opened = -1
        at = start if message[start : start + len(delimiter)] == delimiter else -1
        while True:
            if at < 0:
                at = message.find(b"\n" + delimiter, max(start - 1, 0), end) + 1
                if at == 0:
                    break
            start = at + len(delimiter)
            line = message[start : min(start + 80, end)].partition(b"\n")[0].strip()
            if line in (b"", b"--"):
                if opened >= 0:
                    yield opened, self._before_break(at, opened)
                if line:
                    return
                newline = message.find(b"\n", start, end)
                opened = start = newline + 1 if newline >= 0 else end
            else:
                self._near_misses += 1
                if self._near_misses > _MAX_NEAR_MISSES:
                    self.partial = True
                    break
            at = -1
        if opened >= 0:
            yield opened, end

    def _before_break(self, at: int, opened: int) -> int:
        """The line break before a delimiter belongs to the delimiter."""
        before = self._message[max(at - 2, opened) : at]
        return at - (2 if before == b"\r\n" else 1 if before.endswith(b"\n") else 0)


def _named(value: Value | None) -> Value | None:
    """A name, where it is one: some write ``filename=""`` for none."""
    return value if value is not None and value.octets.strip() else None


def _token(value: bytes) -> str:
    match = _TOKEN.match(value)
    return match[1].decode("ascii").lower() if match else ""


@dataclass(slots=True)
class Bodies:
    """The parts that are the message's text, in reading order, as plain text and as HTML, and everything else."""

    text: list[Node] = field(default_factory=list)
    html: list[Node] = field(default_factory=list)
    attachments: list[tuple[Node, bool]] = field(default_factory=list)  # (part, is it inline)


def bodies(root: Node) -> Bodies:
    """Which parts are the text and which are attachments, after RFC 8621 §4.1.4.

    Of a multipart/alternative one form is text and the other HTML; the text parts of any other multipart follow one
    another (a phone puts text before and behind a picture), except those with a name, which are attachments.
    Unlike there, every picture is an attachment.
    """
    chosen = Bodies()
    if root.children:
        chosen.text, chosen.html = _choose(root, chosen.attachments)
    elif _is_text(root):
        chosen.text, chosen.html = [root], [root]
    else:
        chosen.attachments.append((root, False))
    return chosen


def _choose(parent: Node, attachments: list[tuple[Node, bool]]) -> tuple[list[Node], list[Node]]:
    related = parent.type == "multipart/related"
    forms: list[tuple[list[Node], list[Node]]] = []
    for place, child in enumerate(parent.children):
        if child.children:
            forms.append(_choose(child, attachments))
        elif _is_text(child) and (not forms if related else place == 0 or child.filename is None):
            forms.append(([child], [child]))
        else:
            attachments.append((child, _is_inline(child, related)))
    if parent.type != "multipart/alternative":
        return [node for text, _ in forms for node in text], [node for _, html in forms for node in html]
    text = next((text for text, _ in forms if any(node.type == "text/plain" for node in text)), None)
    html = next((html for _, html in reversed(forms) if any(node.type == "text/html" for node in html)), None)
    return text or html or [], html or text or []


def _is_text(node: Node) -> bool:
    return node.type in ("text/plain", "text/html") and node.disposition != "attachment"


def _is_inline(node: Node, related: bool) -> bool:
    if not node.type.startswith("image/") or node.disposition == "attachment":
        return False
    return node.disposition == "inline" or (related and bool(node.content_id))


_NOT_BASE64 = bytes(
    set(range(256)) - set(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/="),
)


class PartDecoder:
    """Undoes a Content-Transfer-Encoding piece by piece (RFC 2045 §6): ``feed`` the encoded octets, then ``flush``.

    What is no base64 is skipped, padding ends it; a broken =XX stays as written. Any other encoding than these two
    leaves the octets as they are. Holds back at most 64 KiB.
    """

    def __init__(self, encoding: str) -> None:
        self._encoding = encoding
        self._rest = b""
        self._ended = False

    def feed(self, chunk: bytes) -> bytes:
        if self._encoding == "base64":
            return self._base64(chunk)
        if self._encoding == "quoted-printable":
            return self._quoted_printable(chunk)
        return chunk

    def flush(self) -> bytes:
        """What was held back; the decoder is at its end."""
        rest, self._rest = self._rest, b""
        if self._encoding == "base64":
            return _last_quantum(rest)
        return a2b_qp(rest)

    def _base64(self, chunk: bytes) -> bytes:
        if self._ended:
            return b""
        octets = self._rest + chunk.translate(None, _NOT_BASE64)
        padding = octets.find(b"=")
        if padding >= 0:
            self._ended = True
            octets = octets[:padding]
        whole = len(octets) & ~3
        self._rest = octets[whole:]
        return a2b_base64(octets[:whole])

    def _quoted_printable(self, chunk: bytes) -> bytes:
        octets = self._rest + chunk
        cut = octets.rfind(b"\n") + 1
        if cut == 0 and len(octets) > _SLICE // 4:
            # One endless line: cut it anywhere but inside "=XX" or a soft break.
            cut = len(octets)
            last = octets.rfind(b"=", cut - 2)
            run = last + 1 - len(octets[: last + 1].rstrip(b"="))
            if run % 2:  # a2b_qp takes "==" for one "=": then nothing is open
                cut = last
        self._rest = octets[cut:]
        return a2b_qp(octets[:cut])


def _last_quantum(symbols: bytes) -> bytes:
    """The 2 or 3 base64 symbols that end the data; a single one carries no octet."""
    return a2b_base64(symbols + b"=" * (4 - len(symbols))) if len(symbols) > 1 else b""


def decoded_size(message: Octets, node: Node) -> int:
    """Octets that ``PartDecoder`` makes of a part's body; holds one slice of it at a time."""
    if node.encoding not in ("base64", "quoted-printable"):
        return node.end - node.start
    slices = (message[at : min(at + _SLICE, node.end)] for at in range(node.start, node.end, _SLICE))
    if node.encoding == "base64":
        return _base64_size(slices)
    decoder = PartDecoder(node.encoding)
    return sum(len(decoder.feed(octets)) for octets in slices) + len(decoder.flush())


def _base64_size(slices: Iterable[bytes]) -> int:
    """What the symbols before the first padding come to: six bits each, and no octet of less than eight."""
    symbols = 0
    for octets in slices:
        known = octets.translate(None, _NOT_BASE64)
        padding = known.find(b"=")
        if padding >= 0:
            symbols += padding
            break
        symbols += len(known)
    return symbols * 6 // 8
