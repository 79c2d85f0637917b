"""What the daemon and an extraction worker say to each other over a socket; integers in network order.

    ready     b"R"                                           (the worker, once)
    request   count:u32  count x (flags:u8 length:u32)  count x octets
    answer    count x length:u32  count x JSON

The octets are a message in wire form, or with IS_PATH the path of a file that holds one. The JSON is an Extracted, or
with LETTER a Letter, or nothing: NOT_HANDED_OVER. JSON, not pickle: whoever takes over a worker gains no more than the
text of a message.
"""

from __future__ import annotations

import struct
from typing import Any

import orjson

from relay.core.letter import Letter
from relay.core.mime import Extracted, Part

READY = b"R"
COUNT = struct.Struct("!I")
ITEM = struct.Struct("!BI")
IS_PATH = 1
CAREFUL = 2  # leave out what may have killed the last worker: the layout of HTML, and the HTML form
HTML = 4  # give the HTML form too
LETTER = 8  # give the HTML form made safe, and nothing else
#: The answer for a message that is there and could not be read: a read error, no more open files.
NOT_HANDED_OVER = b""


def as_json(result: Extracted) -> bytes:
    attachments = [
        (p.index, p.name, p.type, p.size, p.inline, p.start, p.length, p.encoding) for p in result.attachments
    ]
    answer = (result.subject, result.text, result.html_only, attachments, result.partial, result.html)
    return orjson.dumps(answer)


_PART = [int, str, str, int, bool, int, int, str]


def from_json(answer: bytes) -> Extracted:
    """Raises ValueError or TypeError for what ``as_json`` can't have written."""
    subject, text, html_only, attachments, partial, html = orjson.loads(answer)
    right = all(isinstance(form, str | None) for form in (subject, text, html))
    if not (right and isinstance(html_only, bool) and isinstance(partial, bool)):
        raise TypeError("an answer of another shape")
    return Extracted(subject, text, html_only, tuple(map(_part, attachments)), partial, html)


def _part(fields: list[Any]) -> Part:
    if list(map(type, fields)) != _PART:
        raise TypeError("an attachment of another shape")
    return Part(*fields)


def letter_as_json(letter: Letter) -> bytes:
    return orjson.dumps([letter.html, letter.marker, letter.remote, letter.cut])


def letter_from_json(answer: bytes) -> Letter:
    """Raises ValueError or TypeError for what ``letter_as_json`` can't have written."""
    html, marker, remote, cut = orjson.loads(answer)
    right = isinstance(html, str | None) and isinstance(marker, str) and type(remote) is int and isinstance(cut, bool)
    if not right:
        raise TypeError("a letter of another shape")
    return Letter(html, marker, remote, cut)
