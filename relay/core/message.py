"""The header block of a message: scanned before 250, on bytes, and the fields we put before it.

The bytes are in wire form as core/wire.py defines it: CR LF line ends, dot-stuffed, no dot spare. So a line that begins
with dots here begins with one dot less in the message, and with one at least. That is no fold, no "From " line and no
field whose name is wanted here; every other line is what it is in the message, and nothing is un-stuffed.

    header block = *field [CR LF body]                                       RFC 5322 §3.5
    field        = name *WSP ":" value CR LF, folded lines begin with WSP    RFC 5322 §2.2, obsolete §4.5.8
    name         = 1*(printable ASCII but ":" and space)

A line that is neither field nor fold ends the block, as in Postfix: it is the first line of the body. A first line
"From …" or ">From …" (mbox) is passed over. Of a field that stands several times the first counts.

Everything is linear in the octets and looks at most at ``HEAD_LIMIT`` of them; no input raises.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from relay.core.date import format_date, parse_date

#: Longest header block in octets, and its most fields; the caller refuses more with 552.
HEAD_LIMIT = 256 * 1024
FIELD_LIMIT = 1000
#: Octets of one field that are looked at; parentheses and backslashes of one that begins with a comment.
ADDRESS_LIMIT = 8 * 1024
SUBJECT_LIMIT = 8 * 1024
#: A longer address is none: local part 64, "@", domain 255 (RFC 5321 §4.5.3.1).
MAILBOX_LIMIT = 320
IDS_LIMIT = 16 * 1024
COMMENT_MARKS_LIMIT = 64
#: Most Message-IDs kept of References (the last, which are the nearest), and most loop tokens.
REFERENCES_LIMIT = 50
TOKENS_LIMIT = 50

_CRLF = b"\r\n"
_FIELD_END = re.compile(rb"\r\n(?![ \t])").search
_NAME_OCTETS = bytes(octet for octet in range(33, 127) if octet != ord(":"))
_OF_AUTOMATIC_MAIL = frozenset(
    b"auto-submitted precedence list-id list-unsubscribe x-autoreply x-autorespond x-autoreply-from x-mail-autoreply"
    b" x-auto-response-suppress".split()
)
_WANTED = _OF_AUTOMATIC_MAIL | frozenset(b"date from subject message-id in-reply-to references content-type".split())


@dataclass(frozen=True, slots=True)
class Headers:
    """What the header block says. Texts come from strangers; they are valid UTF-8 and bounded, no more.

    ``end``: offset of the empty line or of the first line that is no field; the size of a message without body.
    ``complete`` is False when the block is larger than allowed: everything else is then unreliable.
    ``mbox_line``: octets of a leading mbox "From " line, 0 without one.
    ``date``: seconds since the epoch, None when absent or hopeless. ``from_``: bare address, "" when there is none.
    ``subject``: raw, unfolded, at most 8 KiB. Message-IDs stand without their angle brackets.
    ``cut``: spans of fields that must not reach the next hop (``without``). ``auto``: why it is automatic mail.
    ``bounce``: a report (multipart/report); the null sender is the caller's knowledge.
    """

    end: int
    complete: bool
    mbox_line: int
    received: int
    date: float | None
    from_: str
    subject: bytes
    message_id: str | None
    in_reply_to: str | None
    references: tuple[str, ...]
    loop_tokens: tuple[str, ...]
    cut: tuple[tuple[int, int], ...]
    auto: str | None
    bounce: bool


def scan(head: bytes, hostname: str, limit: int = HEAD_LIMIT, most_fields: int = FIELD_LIMIT) -> Headers:
    """Scan the beginning of a message: all of it, or at least ``limit`` octets.

    ``hostname`` is the name our Authentication-Results carry; received ones that claim it are cut (RFC 8601 §5).
    """
    values: dict[bytes, bytes] = {}
    cut: list[tuple[int, int]] = []
    tokens: list[str] = []
    received = fields = 0
    bound = min(len(head), limit)
    complete = True
    pos = mbox_line = _mbox_line(head, bound)
    while not head.startswith(_CRLF, pos):
        if pos == bound or fields == most_fields:
            complete = pos == len(head) < limit
            break
        match = _FIELD_END(head, pos, bound)
        stop = match.end() if match else bound
        colon = head.find(b":", pos, stop)
        name = head[pos : stop if colon < 0 else colon].lower()
        if name not in _WANTED:
            name = name.rstrip(b" \t")
            if not name or name.translate(None, _NAME_OCTETS):
                break
        if match is None and len(head) >= limit:  # a field that does not end within the limit
            complete = False
            break
        if colon < 0:
            break
        if name in _WANTED:
            values.setdefault(name, head[colon + 1 : stop])
        elif name == b"received":
            received += 1
        elif name.startswith(b"x-visit-"):
            cut.append((pos, stop))
            if name == b"x-visit-relay" and len(tokens) < TOKENS_LIMIT:
                tokens.append(_text(head[colon + 1 : stop][:256]))
        elif name == b"authentication-results" and _claims(head[colon + 1 : stop], hostname):
            cut.append((pos, stop))
        fields += 1
        pos = stop
    return Headers(
        end=pos,
        complete=complete,
        mbox_line=mbox_line,
        received=received,
        date=parse_date(values.get(b"date", b"")),
        from_=first_address(values.get(b"from", b"")),
        subject=_unfold(values.get(b"subject", b""))[:SUBJECT_LIMIT],
        message_id=_first_id(values.get(b"message-id", b"")),
        in_reply_to=_first_id(values.get(b"in-reply-to", b"")),
        references=_message_ids(values.get(b"references", b"")),
        loop_tokens=tuple(tokens),
        cut=tuple(cut),
        auto=_automatic(values),
        bounce=_word(values, b"content-type") == b"multipart/report",
    )


def _mbox_line(head: bytes, bound: int) -> int:
    if not head.startswith((b"From ", b">From ")) or head[4:68].lstrip(b" \t").startswith(b":"):
        return 0
    end = head.find(_CRLF, 0, bound)
    return bound if end < 0 else end + 2


def _unfold(value: bytes) -> bytes:
    return value.replace(_CRLF, b"").strip(b" \t")


def _text(value: bytes) -> str:
    return _unfold(value).decode("utf-8", "replace")


def _word(values: dict[bytes, bytes], name: bytes) -> bytes:
    """The first word of a structured field, in lower case, without parameters and comments after it."""
    value = _unfold(values.get(name, b"")[:ADDRESS_LIMIT]).lower()
    return value.partition(b";")[0].partition(b"(")[0].strip(b" \t")


def _automatic(values: dict[bytes, bytes]) -> str | None:
    """Why a message is automatic mail (RFC 3834 §5, RFC 2369, RFC 2919 and customs older than these), else None."""
    if _OF_AUTOMATIC_MAIL.isdisjoint(values):
        return None
    if b"auto-submitted" in values and _word(values, b"auto-submitted") not in (b"", b"no"):
        return "auto-submitted"
    if _word(values, b"precedence") in (b"bulk", b"list", b"junk", b"auto_reply"):
        return "bulk precedence"
    if b"list-id" in values or b"list-unsubscribe" in values:
        return "mailing list"
    for name in (b"x-autoreply", b"x-autorespond", b"x-autoreply-from", b"x-mail-autoreply"):
        if name in values and _word(values, name) not in (b"", b"no", b"false"):
            return "autoreply"
    # Asking for no receipts (DR, RN, NRN) is what people's clients do; only machines ask for no answers.
    suppress = _unfold(values.get(b"x-auto-response-suppress", b"")[:ADDRESS_LIMIT]).lower().replace(b",", b" ")
    if not {b"all", b"oof", b"autoreply"}.isdisjoint(suppress.split()):
        return "auto-response suppressed"
    return None


def _claims(value: bytes, hostname: str) -> bool:
    """Whether the authserv-id of an Authentication-Results is ours: [CFWS] (token / quoted-string) (RFC 8601 §2.2).

    What stands behind more comments than anyone writes is taken for ours.
    """
    own = hostname.lower().encode()
    if own not in value.lower() and b'"' not in value:
        return False
    value = _unfold(value)
    if value.startswith(b"(") and sum(map(value.count, (b"(", b")", b"\\"))) > COMMENT_MARKS_LIMIT:
        return True
    while value.startswith(b"("):
        value = value[_after_comment(value, 0) :].lstrip(b" \t")
    if value.startswith(b'"'):
        return value[1:].partition(b'"')[0].replace(b"\\", b"").strip().lower().rstrip(b".") == own
    return re.split(rb"[\s;(]", value, maxsplit=1)[0].lower().rstrip(b".") == own


# Message-IDs ------------------------------------------------------------------------------------------------------


def _message_ids(value: bytes) -> tuple[str, ...]:
    """The last Message-IDs of a field, in its order. Without angle brackets, every word is taken for one."""
    if not value:
        return ()
    value = value[:IDS_LIMIT]
    if b"<" in value:
        pieces = [piece.partition(b">")[0] for piece in value.rsplit(b"<", REFERENCES_LIMIT)[1:]]
    else:
        pieces = value.split()[-REFERENCES_LIMIT:]
    ids = (b"".join(piece.split()).decode("utf-8", "replace") for piece in pieces)
    return tuple(one for one in ids if 0 < len(one) <= 998)


def _first_id(value: bytes) -> str | None:
    return next(iter(_message_ids(value)), None)


# From -------------------------------------------------------------------------------------------------------------

# Each alternative can only match one way and never fails once begun, so no input makes it go back.
_TOKEN = re.compile(
    rb'"(?:[^"\\]++|\\.)*+"?'  # quoted string, its end optional
    rb"|\[[^\[\]]*+\]?"  # domain literal, its end optional
    rb"|\\.?"
    rb"|[ \t\r\n]++"
    rb'|[^ \t\r\n"\\()<>,;:\[\]]++'
    rb"|.",
    re.DOTALL,
).match
# The ordinary field: one phrase and one address in angle brackets, or that alone. It is read as the tokens are.
_ORDINARY = re.compile(rb'[^"\\()<>,;:@\[\]]*+(?:"[^"\\]*+"[^"\\()<>,;:@\[\]]*+)*+<([^ \t\r\n"\\()<>,;:\[\]]++)>').match
_COMMENT_MARK = re.compile(rb"\\.|[()]", re.DOTALL).finditer
_NO_ADDRESS_OCTET = re.compile(rb'[ \t\r\n"\\()<>,;:\[\]@]')


def first_address(value: bytes) -> str:
    """The first bare address of a From field (RFC 5322 §3.4 and what real mail makes of it), "" without one.

    ``Name <a@b>``, ``a@b (Name)``, groups, routes; quoted strings, comments and encoded words are not searched,
    unless nothing is found outside them. At most 8 KiB are looked at.
    """
    value = value[:ADDRESS_LIMIT]
    if (ordinary := _ORDINARY(value)) and (address := _mailbox(ordinary[1])):
        return address
    angle: list[bytes] | None = None  # what stands between < and >
    found = word = b""  # the first bare address of this mailbox, and the word that is being read
    bare = gap = False  # the word has an @ outside quotes; white space follows it
    pos = 0
    while match := _TOKEN(value, pos):
        token = match[0]
        pos = match.end()
        if token == b"(":
            pos = _after_comment(value, pos - 1)
        elif token == b"<":
            angle = []
        elif angle is not None:
            if token == b">":
                if address := _mailbox(b"".join(angle)):
                    return address
                angle = None
            elif not token.isspace():
                angle.append(token)
        elif token.isspace() or token in (b")", b">", b"]"):
            gap = True
        elif token in (b",", b";", b":"):
            if token != b":" and (address := _mailbox(found or (word if bare else b""))):
                return address
            found, word, bare, gap = b"", b"", False, False  # a name with an unquoted comma, or a group's
        else:
            if gap and not word.endswith((b"@", b".")) and not token.startswith((b"@", b".")):
                found, word, bare = found or (word if bare else b""), b"", False
            word, gap = word + token if len(word) <= MAILBOX_LIMIT else word, False
            bare = bare or (b"@" in token and token[0] != ord('"') and not word.startswith(b"=?"))
    return _mailbox(b"".join(angle or ())) or _mailbox(found or (word if bare else b"")) or _anywhere(value)


def _after_comment(value: bytes, pos: int) -> int:
    """Offset after the comment that opens at ``pos``; the end when it never closes."""
    depth = 0
    for mark in _COMMENT_MARK(value, pos):
        depth += {b"(": 1, b")": -1}.get(mark[0], 0)
        if not depth:
            return mark.end()
    return len(value)


def _mailbox(candidate: bytes) -> str:
    """A candidate without its source route and control characters, "" when it is no address."""
    if not candidate:
        return ""
    candidate = candidate.rpartition(b":")[2] if candidate.startswith(b"@") else candidate
    text = "".join(filter(str.isprintable, candidate.decode("utf-8", "replace"))).rstrip(".")
    local, at, domain = text.rpartition("@")
    return text if local and at and domain and len(text) <= MAILBOX_LIMIT else ""


def _anywhere(value: bytes) -> str:
    """What surrounds the first @ of a field that is no list of mailboxes."""
    at = value.find(b"@")
    if at < 0:
        return ""
    local = _NO_ADDRESS_OCTET.split(value[max(0, at - MAILBOX_LIMIT) : at])[-1]
    domain = _NO_ADDRESS_OCTET.split(value[at + 1 : at + MAILBOX_LIMIT], maxsplit=1)[0]
    return _mailbox(local + b"@" + domain)


# What we cut and what we put before -------------------------------------------------------------------------------

_NO_NAME_CHARACTER = re.compile(r"[^A-Za-z0-9.:_\[\]-]")
_PATH = re.compile(r"[!-;=?-~]{1,320}")
_VISIBLE = "!\"#$&'()*+,/:;<=>?@[\\]^`{|}"


def without(head: bytes, spans: Sequence[tuple[int, int]]) -> bytes:
    """``head`` without the spans, which are in order and do not overlap (``Headers.cut``)."""
    ends = [0, *(stop for _, stop in spans)]
    starts = [*(start for start, _ in spans), len(head)]
    return b"".join(head[end:start] for end, start in zip(ends, starts, strict=True))


def received_field(
    *,
    helo: str,
    ip: str,
    host: str,
    protocol: str,
    message_id: str,
    now: float,
    recipient: str | None = None,
) -> bytes:
    """Our trace field (RFC 5321 §4.4), with its line end.

    ``helo`` is strangers' text and sanitised. ``recipient`` is to be given only when there is one alone, else the
    recipients would see each other; one that is not plain ASCII is left out. ``protocol`` as in RFC 3848. Lines are
    folded at 78 columns and are never longer than 998.
    """
    literal = f"[IPv6:{ip}]" if ":" in ip else f"[{ip}]"
    parts = [
        f"Received: from {_NO_NAME_CHARACTER.sub('?', helo[:255]) or 'unknown'}",
        f"({literal})",
        f"by {host}",
        f"with {protocol}",
        f"id {message_id}",
    ]
    if recipient is not None and _PATH.fullmatch(recipient):
        parts.append(f"for <{recipient}>")
    parts[-1] += ";"
    lines = [parts[0]]
    for part in (*parts[1:], format_date(now)):
        if len(lines[-1]) + 1 + len(part) <= 78:
            lines[-1] += " " + part
        else:
            lines.append("\t" + part)
    return ("\r\n".join(lines) + "\r\n").encode("ascii", "replace")


def transmission_type(*, esmtp: bool, encrypted: bool) -> str:
    """The ``protocol`` of a trace field (RFC 3848): SMTP of a client that greeted with HELO (RFC 5321 §4.4).

    STARTTLS is an extension itself: a session that it has encrypted is ESMTPS, whichever greeting came behind it.
    """
    if encrypted:
        return "ESMTPS"
    return "ESMTP" if esmtp else "SMTP"


def visit_fields(visit: str | None, source: str | None) -> bytes:
    """X-Visit-Id and X-Visit-Source, each with its line end and only when there is something to say.

    Values are visible ASCII: everything else, space and "%" are percent-encoded as UTF-8, and cut to 900 octets.
    """
    lines = ""
    for name, value in (("X-Visit-Id", visit), ("X-Visit-Source", source)):
        if value:
            encoded = quote(value[:900], safe=_VISIBLE, errors="replace")[:900]
            if "%" in encoded[-2:]:
                encoded = encoded[: encoded.rindex("%")]
            lines += f"{name}: {encoded}\r\n"
    return lines.encode("ascii")


def loop_token(message_id: str, key: bytes) -> str:
    """The value of our X-Visit-Relay: message id and a MAC of 128 bits, so that nobody else can write one."""
    mac = hmac.digest(key, b"visit-relay loop token\x00" + message_id.encode(), "sha256")
    return f"{message_id}.{mac[:16].hex()}"


def is_own_token(value: str, keys: Iterable[bytes]) -> str | None:
    """The message id in a loop token that one of ``keys`` made, else None. Compared in constant time."""
    message_id = value.strip().rpartition(".")[0]
    if not value.isascii() or len(value) > 256:
        return None
    own = any(hmac.compare_digest(loop_token(message_id, key), value.strip()) for key in keys)
    return message_id if own else None
