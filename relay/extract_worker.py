"""The process that reads strangers' MIME: started by relay/extract.py, one per worker, killed when it is too slow.

It owns nothing: its standard input is a socket to the daemon (relay/extract_frames.py), its environment is empty, its
memory, files and time are limited. When the daemon dies the socket ends and the worker with it; one that is busy is
ended by its interval timer.

Structure and text come from relay/core alone. fast-mail-parser, which was to help, gives no offsets (so it would cost
its 12 µs a message on top of the walker's 40), refuses a whole message for one bad base64 part, and drops the 8-bit
letters of an encoded word; on the corpora it was right nowhere that the walker was not.
"""

from __future__ import annotations

import gc
import html
import json
import os
import re
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

from inscriptis import get_text  # type: ignore[import-untyped]  # it ships no types
from inscriptis.css_profiles import CSS_PROFILES  # type: ignore[import-untyped]
from inscriptis.model.config import ParserConfig  # type: ignore[import-untyped]

from relay import letter
from relay.core import mime
from relay.core.charset import codec, decode
from relay.core.letter import PICTURES, Letter
from relay.core.mime import MAX_HEADER, MAX_HTML, Extracted, Node, Octets, Part
from relay.core.mimetext import file_name, headers_only, parameter_text, subject_text, unflow
from relay.core.wire import unstuff
from relay.extract_frames import (
    CAREFUL,
    COUNT,
    HTML,
    IS_PATH,
    ITEM,
    LETTER,
    NOT_HANDED_OVER,
    READY,
    as_json,
    letter_as_json,
)
from relay.wire_file import TooManyDots, WireFile

MAX_TEXT = 1_000_000  # octets of UTF-8
# Seconds of CPU that the layout of one message's pages may take; other mail waits meanwhile. A newsletter of sixty
# sections takes 0.08, a price list of 500 rows 0.13; 20 kB of tables within tables can take more than one.
LAYOUT = 0.25
# Octets of all file names of a message, as they were written. Every ten of them can be a word whose charset is guessed.
MAX_NAMES = 64 * 1024
_MAX_TEXTS = 16  # text parts
_MAX_ENCODED = 4 * 1024 * 1024  # octets of one text part that are decoded at all


def extract(message: Octets, careful: bool = False, with_html: bool = False) -> Extracted:
    """Subject, text and attachments of an un-stuffed message, ``with_html`` its HTML form too.

    ``careful``: HTML is not laid out but only stripped of its tags, and never given; the result is partial for it.
    """
    tree = mime.walk(message)
    found = mime.bodies(tree.root)
    text = _Text(message, careful)
    shown, html_only = text.of(found)
    form = text.html(found) if with_html and not careful else None
    attachments, unnamed = _parts(message, found)
    partial = tree.partial or text.cut or unnamed
    return Extracted(subject_text(tree.subject), shown, html_only, attachments, partial, form)


def read_letter(message: Octets, careful: bool = False) -> Letter:
    """The HTML form of an un-stuffed message, made safe to show; none where reading it has ended a worker."""
    if careful:
        return Letter(cut=True)
    found = mime.bodies(mime.walk(message).root)
    pictures: dict[str, int] = {}
    for index, (node, _) in enumerate(found.attachments):
        name = node.content_id.strip().strip(b"<>").decode("utf-8", "replace")
        if name and node.type in PICTURES:
            pictures.setdefault(name, index)
    text = _Text(message, careful)
    page = text.html(found, letter.MAX_READ)
    return Letter() if page is None else letter.safe(page, pictures, text.cut)


def _parts(message: Octets, found: mime.Bodies) -> tuple[tuple[Part, ...], bool]:
    """The attachments, and whether their names are more than MAX_NAMES: those beyond it count as not given."""
    parts: list[Part] = []
    octets = 0
    for index, (node, inline) in enumerate(found.attachments):
        given = node.filename
        octets += len(given.octets) if given else 0
        name = file_name(parameter_text(given) if given and octets <= MAX_NAMES else "", node.type, index)
        size = mime.decoded_size(message, node)
        parts.append(Part(index, name, node.type, size, inline, node.start, node.end - node.start, node.encoding))
    return tuple(parts), octets > MAX_NAMES


class _Text:
    """Reads the text parts of one message; ``cut`` tells afterwards that something was left out."""

    def __init__(self, message: Octets, careful: bool) -> None:
        self._message = message
        self._careful = careful
        self._layout = LAYOUT  # seconds that are left
        self.cut = False

    def of(self, found: mime.Bodies) -> tuple[str | None, bool]:
        """(text, made from HTML). A plain form without a letter in it gives way to the HTML form."""
        if not found.text:
            return None, False
        text = self._joined(found.text)
        if _SEEN.search(text) or found.html == found.text:
            return text, all(node.type == "text/html" for node in found.text)
        from_html = self._joined(found.html)
        return from_html, bool(from_html)

    def html(self, found: mime.Bodies, most: int = MAX_HTML) -> str | None:
        """The HTML form as it was written, at most ``most`` characters; see ``Extracted.html``."""
        nodes = [node for node in found.html if node.type == "text/html"]
        if not nodes:
            return None
        pages = [self._page(node).replace("\r\n", "\n").replace("\r", "\n") for node in nodes[:_MAX_TEXTS]]
        joined = "\n".join(pages).encode("utf-8", "replace").decode()  # what no UTF-8 can hold
        self.cut = self.cut or len(nodes) > _MAX_TEXTS or len(joined) > most
        return joined[:most]

    def _joined(self, nodes: Sequence[Node]) -> str:
        texts = [text for node in nodes[:_MAX_TEXTS] if (text := self._one(node))]
        joined = "\n\n".join(texts).encode("utf-8", "replace")
        self.cut = self.cut or len(nodes) > _MAX_TEXTS or len(joined) > MAX_TEXT
        return joined[:MAX_TEXT].decode("utf-8", "ignore")

    def _one(self, node: Node) -> str:
        if node.type == "text/html":
            return self._html(self._page(node))
        text = decode(self._octets(node), _label(node)).replace("\r\n", "\n").replace("\r", "\n").replace("\0", "")
        self.cut = self.cut or len(text) > MAX_TEXT
        flow = node.parameters.get("format")
        if flow and flow.octets.lower() == b"flowed":
            delete_space = node.parameters.get("delsp")
            text = unflow(text[:MAX_TEXT], delete_space is not None and delete_space.octets.lower() == b"yes")
        return text[:MAX_TEXT].strip("\n").rstrip()

    def _page(self, node: Node) -> str:
        octets, label = self._octets(node), _label(node)
        return decode(octets, label if codec(label) else _declared(octets)).replace("\0", "")

    def _octets(self, node: Node) -> bytes:
        end = min(node.end, node.start + _MAX_ENCODED)
        self.cut = self.cut or end < node.end
        decoder = mime.PartDecoder(node.encoding)
        return decoder.feed(self._message[node.start : end]) + decoder.flush()

    def _html(self, page: str) -> str:
        if "data:" in page:
            page = _DATA_URL.sub("", page)  # a picture in the page would use up what we may read
        self.cut = self.cut or len(page) > MAX_HTML
        page = page[:MAX_HTML]
        text = None if self._careful else self._laid_out(page)
        if text is None:
            text = _stripped(page)
            self.cut = True
        lines = "\n".join(line.rstrip() for line in text.split("\n"))
        return _BLANK_LINES.sub("\n\n", lines).strip("\n")

    def _laid_out(self, page: str) -> str | None:
        if self._layout <= 0:
            return None
        began = time.process_time()
        try:
            return _laid_out(page, self._layout)
        except TimeoutError:
            self._layout = 0.0
            return None
        finally:
            self._layout -= time.process_time() - began


def _label(node: Node) -> str:
    label = node.parameters.get("charset")
    return label.octets.partition(b" ")[0].decode("latin-1") if label else ""


_META_CHARSET = re.compile(rb"charset=[\"']?([A-Za-z0-9_.:-]{1,64})", re.IGNORECASE)
_DATA_URL = re.compile(r"data:[\w/+.-]{0,100};base64,[A-Za-z0-9+/=%\s]*")
_TAG = re.compile(r"<[^<>]*>")
_UNSHOWN = re.compile(r"<(?:style|script)\b", re.IGNORECASE)
_SHOWN_AGAIN = re.compile(r"</(?:style|script)\s*>", re.IGNORECASE)
_SEEN = re.compile(r"[^\s\u200b-\u200f\u2060\ufeff]")
_BLANK_LINES = re.compile(r"\n{3,}")
_LOOKS = ParserConfig(css=CSS_PROFILES["strict"].copy())


def _declared(octets: bytes) -> str:
    """The charset an HTML page gives for itself in its first KiB, "" if none.

    UTF-16 can't be meant where its name was found as ASCII (WHATWG HTML, "prescan a byte stream").
    """
    match = _META_CHARSET.search(octets, 0, 1024)
    return match[1].decode("ascii") if match and not match[1].lower().startswith(b"utf-16") else ""


def _laid_out(page: str, seconds: float) -> str | None:
    """inscriptis' text; None for a page that lxml refuses or whose tables fill the memory. Raises TimeoutError."""
    try:
        signal.signal(signal.SIGVTALRM, _too_long)
        signal.setitimer(signal.ITIMER_VIRTUAL, seconds, seconds)  # again, where somebody swallows it
        try:
            return str(get_text(page, _LOOKS))
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    except TimeoutError:
        raise
    except Exception:
        return None  # outside of this handler, so that a MemoryError's frames are gone before we go on


def _too_long(number: int, frame: object) -> None:
    raise TimeoutError("the layout of a page")


def _stripped(page: str) -> str:
    """The words of a page without its looks."""
    first, *others = _UNSHOWN.split(page)
    shown = "".join([first, *(_SHOWN_AGAIN.split(other, maxsplit=1)[-1] for other in others)])
    words = _TAG.sub(" ", shown)
    try:
        return html.unescape(words)
    except ValueError:  # "&#1…;" of more digits than int() takes
        return words


def _read_file(path: Path, read: Callable[[Octets], bytes]) -> bytes:
    with path.open("rb", buffering=0) as file:
        try:
            message = WireFile(file.fileno())
        except TooManyDots:
            return read(unstuff(file.readall()))
        return read(message)


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_HEADER)
    except OSError:
        return b""  # erased meanwhile


def _answer(flags: int, body: bytes) -> bytes:
    """The answer for one message; what its reading raises makes it partial, never the others of its batch."""
    careful = bool(flags & CAREFUL)

    def read(message: Octets) -> bytes:
        if flags & LETTER:
            return letter_as_json(read_letter(message, careful))
        return as_json(extract(message, careful, bool(flags & HTML)))

    path = Path(os.fsdecode(body)) if flags & IS_PATH else None
    try:
        return _read_file(path, read) if path else read(unstuff(body))
    except MemoryError:
        raise  # the daemon tries it again in a fresh process
    except Exception as error:
        said = {"event": "message read in part", "error": f"{type(error).__name__}: {error}", "level": "warning"}
        print(json.dumps(said), file=sys.stderr, flush=True)  # into the daemon's log
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):  # which says that it was erased
            return NOT_HANDED_OVER
        if flags & LETTER:
            return letter_as_json(Letter(cut=True))
        return as_json(headers_only(_head(path) if path else body))


def _limit(memory: int) -> None:
    """No more memory (octets) and files than reading a message needs, and no core dumps."""
    wanted = [(resource.RLIMIT_CORE, 0), (resource.RLIMIT_NOFILE, 64)]
    wanted += [(resource.RLIMIT_AS, memory), (resource.RLIMIT_DATA, memory)]
    for kind, value in wanted:
        try:
            resource.setrlimit(kind, (value, value))
        except (OSError, ValueError):
            pass  # macOS has no RLIMIT_AS; the deadline holds there too


def serve(requests: BinaryIO, answers: socket.socket, seconds: float) -> None:
    """Answer requests until the daemon closes its end. One request may take ``seconds``."""
    while len(head := requests.read(COUNT.size)) == COUNT.size:
        items = [ITEM.unpack(requests.read(ITEM.size)) for _ in range(COUNT.unpack(head)[0])]
        signal.setitimer(signal.ITIMER_REAL, seconds)  # SIGALRM's default action ends the process
        results = [_answer(flags, requests.read(length)) for flags, length in items]
        signal.setitimer(signal.ITIMER_REAL, 0)
        answers.sendall(b"".join([*(COUNT.pack(len(result)) for result in results), *results]))


def main(arguments: list[str]) -> None:
    """``arguments``: seconds for one request, octets of memory."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the daemon ends us when its last message is done
    _limit(int(arguments[1]))
    get_text("<p>warm</p>", _LOOKS)
    gc.freeze()
    with socket.socket(fileno=sys.stdin.fileno()) as channel, channel.makefile("rb") as requests:
        channel.sendall(READY)
        try:
            serve(requests, channel, float(arguments[0]))
        except (BrokenPipeError, ConnectionResetError):
            pass  # the daemon is gone


if __name__ == "__main__":
    main(sys.argv[1:])
