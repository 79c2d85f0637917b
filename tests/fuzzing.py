"""Input that grammars make and chance spoils: SMTP sessions, header blocks, MIME trees, addresses.

A case is made from a ``random.Random`` and the letters that are given, so that the printed seed makes it again. What
the grammars produce is mostly right, for only then does the program go far into it; ``spoil`` makes it wrong at a few
places.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from random import Random

from relay.core.wire import stuff
from relay.smtp_service import Service
from relay.smtp_session import Session
from tests.smtp_client import PATIENCE, bdat

#: Stands in messages as a sender; as the sender of a transaction it means that octets of a message became commands.
CANARY = b"canary@evil.test"


# ── chance


def spoil(rng: Random, octets: bytes, pieces: Sequence[bytes]) -> bytes:
    """A few of the octets changed, left out, repeated, or replaced by one of ``pieces``."""
    data = bytearray(octets)
    for _ in range(rng.choice((1, 1, 2, 3, 8))):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(6):
            case 0:
                data[at : at + 1] = bytes((rng.randrange(256),))
            case 1:
                del data[at : at + rng.choice((1, 1, 2, 10, 100))]
            case 2:
                data[at:at] = data[at : at + rng.choice((1, 5, 50))] * rng.choice((1, 2, 50))
            case 3:
                data[at:at] = rng.choice(pieces) * rng.choice((1, 1, 1, 3, 100))
            case 4:
                data[at : at + rng.choice((1, 2, 20))] = rng.choice(pieces)
            case _:
                other = rng.randrange(len(data) + 1)
                data[at:at] = data[other : other + 30]
    return bytes(data)


def split(rng: Random, octets: bytes) -> list[bytes]:
    """The octets as they may come off a socket."""
    match rng.randrange(4):
        case 0:
            return [octets]
        case 1:
            return [octets[at : at + 1] for at in range(min(len(octets), 300))] + [octets[300:]]
        case _:
            places = sorted({0, len(octets), *(rng.randrange(len(octets) + 1) for _ in range(rng.randrange(1, 12)))})
            return [octets[start:end] for start, end in pairwise(places)]


def real(rng: Random, letters: Sequence[bytes], made: bytes) -> bytes:
    """Of four messages one that no grammar made, if there are such: programs write what no grammar thinks of."""
    return rng.choice(letters) if letters and not rng.randrange(4) else made


# ── addresses

_LOCALS = ("ann", "u1", "a.b", '"a b"', '"\\""', "plus+1+2", "ü", "x" * 64, "a..b", ".a", "SRS0=ab=cd=ext.test=ann",
           "vr0=12=abcdefgh", "unknown", "=?x?=", "!#$%&'*+-/=?^_`{|}~", '""', "+", "+" * 60)  # fmt: skip
_DOMAINS = ("track.test", "ext.test", "bü.test", "xn--b-xga.test", "[127.0.0.1]", "[IPv6:::1]", "a" * 63 + ".test",
            "-a.test", "a_b.test", "test.", "..", "", "1.2.3.4", "\u3002.test", "a\u00ad.test", "x." * 120)  # fmt: skip
_ROUTES = ("", "", "", "@hop.test:", "@a.test,@b.test:", "@:")
_PARAMETERS = ("", "", "", " SIZE=10", " SIZE=99999999999999999999", " BODY=8BITMIME", " BODY=BINARYMIME", " SMTPUTF8",
               " RET=HDRS", " =", " A=B A=C", " " * 50)  # fmt: skip
ADDRESS_PIECES = (b"<", b">", b"@", b'"', b"\\", b".", b",", b":", b" ", b"\0", b"[", b"]", b"(", b")", b"=", b"+",
                  b"\r", b"\n", b"\x7f", b"\xff", b"\xc3", "é".encode(), b"\xe2\x80\xa8", b"\xef\xbb\xbf")  # fmt: skip


def path(rng: Random) -> str:
    """A path with its angle brackets, mostly."""
    mailbox = f"{rng.choice(_ROUTES)}{rng.choice(_LOCALS)}@{rng.choice(_DOMAINS)}"
    return rng.choice((f"<{mailbox}>", f"<{mailbox}>", f"<{mailbox}>", mailbox, "<>", "<postmaster>", f" <{mailbox}>"))


def argument(rng: Random) -> str:
    """What stands behind MAIL FROM: or RCPT TO:, right or wrong."""
    text = path(rng) + rng.choice(_PARAMETERS) + rng.choice(_PARAMETERS)
    if rng.randrange(2):
        text = spoil(rng, text.encode(), ADDRESS_PIECES).decode("utf-8", rng.choice(("replace", "surrogateescape")))
    return text


# ── messages

_FIELDS = (b"From", b"To", b"Date", b"Subject", b"Message-ID", b"References", b"In-Reply-To", b"Received",
           b"X-Visit-Id", b"X-Visit-Relay", b"Authentication-Results", b"Auto-Submitted", b"Precedence", b"List-Id",
           b"Content-Type", b"MIME-Version", b"X-Auto-Response-Suppress")  # fmt: skip
_VALUES = (b"Ann <ann@ext.test>", b'"A \\" B" <a@b.test>, c@d.test', b"group: a@b.test;", b"a@b.test (Ann (x))",
           b"Mon, 23 Nov 2026 12:00:00 +0000", b"2026-11-23T12:00:00Z", b"Mon Nov 23 12:00:00 2026",
           b"<1.2@ext.test>", b"<1@a> <2@b>\r\n\t<3@c>", b"=?utf-8?q?Gr=C3=BC=C3=9Fe?=", b"=?koi8-r?b?8NLJ18XU?=",
           b"mx.test; spf=pass", b'(c) "mx.test"; none', b"auto-replied", b"bulk", b"no", b"", b"x" * 500,
           b'"' * 400, b"(" * 400, b"<" * 400, b"=?" * 200, b"multipart/report; report-type=x")  # fmt: skip
#: What a reader of headers may begin anew at each of: of these a value now and then has 32 kB.
_RUNS = (b'"', b"(", b"()", b"<", b"\\", b",", b";", b":", b"[", b" ", b"\t", b"\r\n ", b";p*0*=v", b";p*0=v", b'; p="',
         b"=?utf-8?q?=", b"=?utf-8?q?x?= ", b"=?utf-8?b?", b"=?", b"a@b.c,", b"<a@b>", b"a:;", b"%", b"=",
         b"\xff")  # fmt: skip
_RUN, _ONE_IN = 32 * 1024, 150
HEADER_PIECES = (b"\r\n", b"\r\n ", b"\r\n\r\n", b"\n", b"\r", b"\0", b":", b'"', b"(", b")", b"<", b">", b"@", b"\\",
                 b",", b";", b"=?", b"?=", b"From ", b".", b"[", b"]", b"\xff", b"a@b", *_FIELDS)  # fmt: skip


def value(rng: Random) -> bytes:
    if rng.randrange(_ONE_IN):
        return rng.choice(_VALUES)
    run = rng.choice(_RUNS)
    return rng.choice((b"", b"text/plain", b"Ann ")) + run * (_RUN // len(run))


def header(rng: Random, *more: bytes) -> bytes:
    """A header block, its empty line included."""
    fields = [rng.choice(_FIELDS) + rng.choice((b": ", b":", b" : ")) + value(rng) for _ in range(rng.randrange(8))]
    fields.extend(more)
    rng.shuffle(fields)
    first = [b"From ann Mon Nov 23 12:00:00 2026"] if not rng.randrange(20) else []
    return b"".join(field + b"\r\n" for field in first + fields) + b"\r\n"


_TYPES = (b"text/plain", b"text/html", b"text/plain; charset=utf-16", b"text/html; charset=koi8-r", b"image/png",
          b"application/pdf", b"message/rfc822", b"message/delivery-status", b"text/plain; format=flowed; delsp=yes",
          b"application/ms-tnef", b"text/calendar", b"garbage", b"text/plain; charset=x-no-such",
          b"application/octet-stream; name*0*=utf-8''a%20; name*1=b; name=c")  # fmt: skip
_ENCODINGS = (b"base64", b"quoted-printable", b"7bit", b"8bit", b"binary", b"x-uuencode", b"")
_CONTENTS = (b"Hello\r\nWorld \r\n-- \r\nAnn\r\n", b"SGVsbG8gV29ybGQ=\r\n", b"=C3=BC=\r\nx=3D=zz=", b"<p>Hi <b>you",
             b"<table><tr><td>1<table><tr><td>2</table>", b"<style>x</style><!-- ", b"<a href=x><img src=cid:1>",
             b"\xff\xfe\x00\xd8", b"\x1b$B%F%9%H\x1b(B", b"&#xD800;&#0;&nbsp;&bogus;", b"--a\r\n", b"")  # fmt: skip
MIME_PIECES = (b"--a", b"--a--", b"--ab", b"\r\n", b"\r\n\r\n", b"\n", b"\0", b"=", b"=3D", b"<td>", b"</table>",
               b"<", b"Content-Type: ", b"multipart/mixed; boundary=a", b"multipart/alternative; boundary=ab", b'"',
               b";", b"; name*0*=", b"; charset=", b"=?utf-8?b?", b"?=", b"\xff",
               b"Content-Transfer-Encoding: base64")  # fmt: skip


def entity(rng: Random, depth: int = 0) -> bytes:
    """A MIME entity: a leaf, a nested message, or a multipart, whose boundary its parts may have as well."""
    if depth < 6 and rng.randrange(3) == 0:
        boundary = rng.choice((b"a", b"ab", b"b%d" % depth, b"x" * 70, b"a b", b""))
        kind = rng.choice((b"mixed", b"alternative", b"related", b"report", b"digest", b"x"))
        parts = [entity(rng, depth + 1) for _ in range(rng.choice((0, 1, 2, 3, 3, 20)) if depth < 3 else 1)]
        body = b"".join(b"--" + boundary + b"\r\n" + part + b"\r\n" for part in parts)
        end = rng.choice((b"--" + boundary + b"--\r\n", b""))
        return header(rng, b'Content-Type: multipart/%s; boundary="%s"' % (kind, boundary)) + body + end
    fields = [b"Content-Type: " + rng.choice(_TYPES), b"Content-Transfer-Encoding: " + rng.choice(_ENCODINGS)]
    if rng.randrange(3) == 0:
        fields.append(
            b"Content-Disposition: attachment; filename=" + rng.choice((b'"a/../b"', b"CON", b"=?utf-8?q?x?="))
        )
    nested = fields[0].endswith(b"message/rfc822") and depth < 6
    return header(rng, *fields) + (
        entity(rng, depth + 1) if nested else rng.choice(_CONTENTS) * rng.choice((1, 1, 2, 30))
    )


# ── sessions

_COMMANDS = (b"EHLO c.test", b"HELO c.test", b"EHLO", b"NOOP", b"RSET", b"VRFY x", b"HELP", b"EXPN x", b"STARTTLS",
             b"QUIT", b"AUTH PLAIN", b"MAIL FROM:<>", b"RCPT TO:<unknown@track.test>", b"DATA", b"BDAT", b"BDAT x",
             b"BDAT 5 LAST", b"BDAT 99999999999999999999", b"GET / HTTP/1.1", b"", b" ", b"\xff")  # fmt: skip
SESSION_PIECES = (b"\r\n", b"\n.\n", b"\r\n.", b".\r\n", b"\r\n.\r\n", b"BDAT 3 LAST\r\n", b"BDAT 0\r\n", b"BDAT ",
                  b"DATA\r\n", b"RSET\r\n", b"QUIT\r\n", b" LAST", b"x" * 3000, b"<" * 300,
                  *ADDRESS_PIECES)  # fmt: skip
_SENDERS = (b"MAIL FROM:<ann@ext.test>\r\n", b"MAIL FROM:<> SIZE=100 BODY=8BITMIME\r\n")
_RECIPIENTS = (b"RCPT TO:<u1@track.test>\r\n", b"RCPT TO:<unknown@track.test>\r\n")
_BAIT = b"\r\nRSET\r\nMAIL FROM:<" + CANARY + b">\r\nRCPT TO:<u1@track.test>\r\nDATA\r\nx\r\n"


def _command(rng: Random) -> bytes:
    match rng.randrange(4):
        case 0:
            return b"MAIL FROM:" + argument(rng).encode("utf-8", "surrogateescape")
        case 1:
            return b"RCPT TO:" + argument(rng).encode("utf-8", "surrogateescape")
        case _:
            return rng.choice(_COMMANDS)


def _body(rng: Random, large: bool, letters: Sequence[bytes]) -> bytes:
    """Nothing but CR LF lines, the last one perhaps without its end; ``large``: more than is kept in memory."""
    made = header(rng) + rng.choice(_CONTENTS) * rng.choice((1, 1, 2, 300))
    return (
        real(rng, letters, made)
        + b"a line of a large letter\r\n" * (12_000 if large else 0)
        + _BAIT
        + rng.choice((b".\r\n", b"..\r\n", b"", b"no line end"))
    )


def _transaction(rng: Random, large: bool, letters: Sequence[bytes]) -> tuple[list[bytes], bytes]:
    """Groups that wait for no answer within them, and the message. DATA has to end its group."""
    envelope = [rng.choice(_SENDERS), _RECIPIENTS[0], *[rng.choice(_RECIPIENTS) for _ in range(rng.choice((0, 0, 2)))]]
    body = _body(rng, large, letters)
    whole = body if body.endswith(b"\r\n") else body + b"\r\n"
    if rng.randrange(2):
        return [b"".join(envelope) + b"DATA\r\n", stuff(whole) + b".\r\n"], whole
    places = sorted({0, len(body), *(rng.randrange(len(body) + 1) for _ in range(rng.randrange(4)))})
    chunks = [bdat(body[start:end], end == len(body)) for start, end in pairwise(places)]
    return [b"".join([*envelope, *chunks])], whole


@dataclass(frozen=True)
class Case:
    """``groups``: what a client sends, each when the one before was answered. ``sound``: nothing in it was spoiled,
    so that its ``messages`` are all that it can mean."""

    groups: list[bytes]
    sound: bool
    messages: list[bytes]


def session(rng: Random, large: bool = False, letters: Sequence[bytes] = ()) -> Case:
    """``large``: its messages have more octets than are kept in memory. ``letters``: see ``real``."""
    groups = [b"EHLO c.test\r\n"] if rng.randrange(10) else []
    sound, messages = bool(groups), list[bytes]()
    for _ in range(rng.randrange(1, 4)):
        if rng.randrange(4):
            more, message = _transaction(rng, large, letters)
            groups.extend(more)
            messages.append(message)
        else:
            sound = False
            groups.append(b"".join(_command(rng) + b"\r\n" for _ in range(rng.randrange(1, 6))))
    if rng.randrange(2):
        sound = False
        place = rng.randrange(len(groups))
        groups[place] = spoil(rng, groups[place], SESSION_PIECES)
    if not rng.randrange(10):
        sound = False
        groups = [b"".join(groups)]
    return Case(groups, sound, messages)


class Wire(asyncio.Transport):
    """A connection without a network: what a session sees of one, and what it writes."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()
        self.closed = False
        self.reading = True
        self._session: Session | None = None

    def open(self, session: Session) -> None:
        self._session = session
        session.connection_made(self)

    def get_extra_info(self, name: str, default: object = None) -> object:
        return ("192.0.2.7", 25) if name == "peername" else default

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            assert self._session is not None
            asyncio.get_running_loop().call_soon(self._session.connection_lost, None)

    def abort(self) -> None:
        self.close()

    def is_closing(self) -> bool:
        return self.closed

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass


def _waits(session: Session) -> bool:
    """Whether it has nothing left to do but to wait for its client."""
    return session._waiter is not None and not session._waiter.done()


async def play(service: Service, case: Case, rng: Random) -> bytes:
    """All that a session of ``service`` answers to the octets of ``case``, and to their end, with which it must end."""
    wire, played = Wire(), Session(service)
    wire.open(played)
    for group in case.groups:
        for piece in split(rng, group):
            if not wire.closed:
                played.data_received(piece)
            if rng.randrange(4) == 0 or not wire.reading:
                await asyncio.sleep(0)
        async with asyncio.timeout(PATIENCE):
            while not (wire.closed or _waits(played)):
                await asyncio.sleep(0)
    if not wire.closed:
        played.eof_received()
    async with asyncio.timeout(PATIENCE):
        await played.task
    assert wire.closed
    return bytes(wire.written)
