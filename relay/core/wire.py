"""Message data in wire form: CR LF lines, dot-stuffed, without the terminating dot (RFC 5321 §4.5.2).

What a message means is defined by three functions over octets::

    unstuff(wire)   delete a "." that stands at the start or right after CR LF
    normal(data)    make every bare LF a CR LF
    stuff(data)     put a "." before each "." at the start or right after CR LF

The data end at the first CR LF . CR LF of what the client sends (or at a first line of only "."), and nowhere else.
For everything before that, ``wire``, the reader emits out = stuff(normal(unstuff(wire))): the next hop, which reads
``out``, sees the lines that we see. A message has one wire form only: who looks at ``out`` as it is, as the scan of the
header block does, takes no line that begins with a dot for another, because there no dot is spare. What is stuffed as
it should be and has no bare LF is ``out`` itself. The rest takes four changes:

    client sends                 means          emitted            otherwise
    CRLF . y                     CRLF y         CRLF y             our scan would read ".y" where the next hop reads "y"
    x LF y                       x CRLF y       x CRLF y           the next hop would read what it makes of a bare LF
    x LF . y                     x CRLF . y     x CRLF . . y       a dot less, or after "LF . CRLF" the end of data
    CRLF . LF y                  CRLF CRLF y    CRLF CRLF y        "CRLF . CRLF", the end of data

So ``out`` holds no bare LF and no CRLF . CRLF, and followed by ". CRLF" it is one message to a reader of either
school. Bare CR and NUL are passed on and reported: the caller refuses the message.

What comes in chunks (BDAT, RFC 3030) is not stuffed and has no end of data in it, so a dot is a dot and ``out`` is
stuff(normal(data)), as of the same message by DATA. A last line without its CR LF is given one: DATA, by which it goes
on, knows no other lines.
"""

from __future__ import annotations

import re

CRLF = b"\r\n"
_END = b"\r\n.\r\n"
_NOT_TEXT = b"\0\r\n"
_TEXT = bytes(octet for octet in range(256) if octet not in _NOT_TEXT)

# What can happen at a CR in the middle of data: no LF follows, or a dot that guards no dot (spare, or of the end). The
# search is one memchr from CR to CR, 2 to 4 GB/s; find() of CR LF . and count() of CR LF and LF, which would tell the
# same, come to half the speed of this reader.
_at_cr = re.compile(rb"\r(?:[^\n]|\n\.[^.])").search


class _Reader:
    """``bare_lf`` counts the bare LFs made CR LF; ``bare_cr`` and ``nul`` say that such an octet was in the data."""

    __slots__ = ("bare_cr", "bare_lf", "nul")

    def __init__(self) -> None:
        self.bare_lf = 0
        self.bare_cr = False
        self.nul = False

    def _judge(self, data: bytes) -> int:
        """Note what is wrong in ``data``, which ends in no half of a CR LF; how many of its LFs are bare."""
        pairs = data.count(CRLF)
        bare_lf = data.count(b"\n") - pairs
        self.bare_lf += bare_lf
        self.bare_cr = self.bare_cr or data.count(b"\r") > pairs
        self.nul = self.nul or b"\0" in data
        return bare_lf


class DataReader(_Reader):
    """Reads what follows the 354 reply, chunk by chunk as it comes off the socket, and finds its end.

    ``done`` turns true with the end of data; ``rest`` is then what came behind it (pipelined commands).
    """

    __slots__ = ("_skip", "_tail", "done", "rest")

    def __init__(self) -> None:
        super().__init__()
        self.done = False
        self.rest = b""
        self._tail = CRLF  # the start of data is the start of a line: as if the 354 had been the client's own
        self._skip = len(CRLF)

    def feed(self, chunk: bytes) -> bytes:
        """Take the next octets; return those to store, in wire form. At most four are held back between calls.

        Raises RuntimeError after the end of data.
        """
        if self.done:
            raise RuntimeError("data fed after the end of data")
        data = self._tail + chunk if self._tail else chunk
        event = _at_cr(data)
        end = -1 if event is None else data.find(_END, event.start())
        if end >= 0:
            self.done = True
            self.rest = data[end + len(_END) :]
            self._tail = b""
            data = data[: end + len(CRLF)]
        else:
            held = _held(data)
            self._tail = data[len(data) - held :]
            data = data[: len(data) - held]
        marks = data.translate(None, _TEXT)
        if marks != CRLF * (len(marks) // 2) or (event is not None and event.end() <= len(data)):
            data = self._mend(data)
        if self._skip and data:
            data, self._skip = data[self._skip :], 0
        return data

    def _mend(self, data: bytes) -> bytes:
        """Count what is wrong in ``data``, and write it as defined. It ends in no bare LF and in no undecided dot."""
        data = data.replace(b"\r\n.", CRLF)
        if self._judge(data):
            data = data.replace(CRLF, b"\n").replace(b"\n", CRLF)
        return data.replace(b"\r\n.", b"\r\n..")


class ChunkReader(_Reader):
    """Reads the octets of all BDAT chunks of a message as they come off the socket: feed() them, then finish().

    Where a chunk ends means nothing: a CR at the end of one and an LF at the start of the next are a CR LF.
    """

    __slots__ = ("_cr", "_line_start")

    def __init__(self) -> None:
        super().__init__()
        self._line_start = True
        self._cr = False  # held back until the octet behind it is seen

    def feed(self, chunk: bytes) -> bytes:
        """Take the next octets; return those to store, in wire form. At most one is held back between calls."""
        data = b"\r" + chunk if self._cr else chunk
        self._cr = data.endswith(b"\r")
        if self._cr:
            data = data[:-1]
        if not data:
            return b""
        marks = data.translate(None, _TEXT)
        if data.count(CRLF) * 2 != len(marks) and self._judge(data):
            data = data.replace(CRLF, b"\n").replace(b"\n", CRLF)
        stuffed = data.replace(b"\r\n.", b"\r\n..")
        if self._line_start and data.startswith(b"."):
            stuffed = b"." + stuffed
        self._line_start = data.endswith(CRLF)
        return stuffed

    def finish(self) -> bytes:
        """What is left to store behind the last chunk: the end of a last line that has none."""
        if self._cr:
            self.bare_cr = True
        return b"" if self._line_start and not self._cr else CRLF


class Unstuffer:
    """Wire form back to the message as received, chunk by chunk: feed() all, then flush()."""

    __slots__ = ("_skip", "_tail")

    def __init__(self) -> None:
        self._tail = CRLF  # as in DataReader: the first line is a line like any other
        self._skip = len(CRLF)

    def feed(self, chunk: bytes) -> bytes:
        """The next octets of the message. At most two are held back until the next call or flush()."""
        data = self._tail + chunk if self._tail else chunk
        held = 2 if data.endswith(CRLF) else 1 if data.endswith(b"\r") else 0
        self._tail = data[len(data) - held :]
        data = data[: len(data) - held].replace(b"\r\n.", CRLF)
        if self._skip and data:
            data, self._skip = data[self._skip :], 0
        return data

    def flush(self) -> bytes:
        """What was held back. The object is then as new."""
        tail = self._tail[self._skip :]
        self._tail, self._skip = CRLF, len(CRLF)
        return tail


def unstuff(wire: bytes) -> bytes:
    """Wire form as the message it stands for (RFC 5321 §4.5.2), in one piece."""
    return wire[wire.startswith(b".") :].replace(b"\r\n.", CRLF)


def stuff(data: bytes) -> bytes:
    """A message in wire form (RFC 5321 §4.5.2), in one piece. Lines must already end in CR LF."""
    stuffed = data.replace(b"\r\n.", b"\r\n..")
    return b"." + stuffed if stuffed.startswith(b".") else stuffed


def _held(data: bytes) -> int:
    """How many octets at the end of ``data`` can't be judged before the next ones are seen."""
    last = data[-1:]
    if last not in (b"\r", b"\n", b"."):
        return 0
    for start in (b"\r\n.\r", b"\r\n.\n", b"\r\n.", CRLF, b"\r"):
        if data.endswith(start):
            return len(start)
    return 1 if last == b"\n" else 0  # a bare LF: whether a dot follows decides what it becomes
