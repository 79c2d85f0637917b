"""SMTP replies from bytes (RFC 5321 §4.2): no I/O, every length bounded."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

#: Octets of one line (RFC 5321 §4.5.3.1.5 asks for 512) and lines of one reply.
MAX_LINE = 2048
MAX_LINES = 128
#: Characters of a reply's text that reach an operator.
MAX_TEXT = 500


class ReplyError(Exception):
    """What came is no SMTP reply. ``str()`` shows its beginning."""


class Reply(NamedTuple):
    """``code`` 200-599; ``lines``: what follows the code and its separator on each line, as received."""

    code: int
    lines: tuple[bytes, ...]

    @property
    def text(self) -> str:
        return self.summary()

    def summary(self, *secrets: str) -> str:
        """All on one line, printable, without ``secrets``, cut.

        An enhanced code (RFC 2034) that is repeated on every line stands once.
        """
        first, *others = [printable(line.strip()) for line in self.lines]
        enhanced, space, _ = first.partition(" ")
        if space and enhanced[:2] in ("2.", "4.", "5."):
            others = [line.removeprefix(enhanced).lstrip() for line in others]
        text = " ".join(filter(None, [first, *others]))
        for secret in secrets:
            text = text.replace(secret, "***")
        return text[:MAX_TEXT]


class ReplyParser:
    """Feed it what arrives; it appends the replies that are complete."""

    def __init__(self) -> None:
        self._tail = b""
        self._lines: list[bytes] = []

    @property
    def is_between_replies(self) -> bool:
        return not self._tail and not self._lines

    def feed(self, data: bytes, replies: deque[Reply]) -> None:
        """Append to ``replies`` what is complete.

        :raises ReplyError: a line is too long or has no code, or a reply changes its code or never ends.
        """
        *lines, tail = (self._tail + data).split(b"\n")
        for line in lines:
            code, mark = line[:3], line[3:4]
            if len(line) > MAX_LINE or not code.isdigit() or code[0] not in b"2345" or mark not in b" -\r":
                raise ReplyError(_unintelligible(line))
            if self._lines and code != self._lines[0][:3]:
                raise ReplyError(_unintelligible(line))
            self._lines.append(line)
            if mark != b"-":
                replies.append(Reply(int(code), tuple([part[4:].removesuffix(b"\r") for part in self._lines])))
                self._lines.clear()
            elif len(self._lines) == MAX_LINES:
                raise ReplyError(f"a reply of more than {MAX_LINES} lines")
        if len(tail) > MAX_LINE:
            raise ReplyError(_unintelligible(tail))
        self._tail = tail


def printable(raw: bytes) -> str:
    """UTF-8 where it is, with everything that could move a cursor or hide text replaced by "?"."""
    text = raw.decode("utf-8", "replace")
    if text.isprintable():
        return text
    return "".join([char if char.isprintable() else "?" for char in text])


def _unintelligible(line: bytes) -> str:
    return f"unintelligible reply {printable(line[:80].rstrip())!r}"
