"""Every SMTP reply we give, once (RFC 5321 §4.2, enhanced codes of RFC 3463 and RFC 5248).

The texts say what the client can do about it and nothing that helps an attacker: no versions, no limits, no
exceptions, and the same words for an unknown recipient as for a domain that is not ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply of one line. ``enhanced`` is "" where RFC 2034 §4 allows none: greeting, HELO, EHLO and 3xx.

    ``line`` is the reply without its line end, ``wire`` the octets with it; both are made once.
    """

    code: int
    enhanced: str
    text: str
    line: str = field(init=False, repr=False, compare=False)
    wire: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        line = f"{self.code} {self.enhanced} {self.text}" if self.enhanced else f"{self.code} {self.text}"
        object.__setattr__(self, "line", line)
        object.__setattr__(self, "wire", line.encode("ascii") + b"\r\n")

    def __str__(self) -> str:
        return self.line


# ── replies that name something ──────────────────────────────────────────────────────────────────────────────────


def greeting(hostname: str) -> Reply:
    """The first line of a connection (RFC 5321 §4.3.1: the name comes first)."""
    return Reply(220, "", f"{hostname} ESMTP")


def helo(hostname: str) -> Reply:
    return Reply(250, "", hostname)


def ehlo(hostname: str, keywords: Sequence[str]) -> bytes:
    """The EHLO reply as octets, one line for the name and one for each extension (RFC 5321 §4.1.1.1)."""
    lines = [hostname, *keywords]
    marks = ["-"] * (len(lines) - 1) + [" "]
    return "".join(f"250{mark}{line}\r\n" for mark, line in zip(marks, lines, strict=True)).encode("ascii")


def queued(message_id: str) -> Reply:
    """The answer to the final dot: the message is on disk, synced. ``message_id`` is our own id of it."""
    return Reply(250, "2.0.0", f"Queued as {message_id}")


# ── done ─────────────────────────────────────────────────────────────────────────────────────────────────────────

HELP = Reply(214, "2.0.0", "See RFC 5321")
START_TLS = Reply(220, "2.0.0", "Ready to start TLS")
BYE = Reply(221, "2.0.0", "Bye")
OK = Reply(250, "2.0.0", "OK")  # RSET, NOOP
SENDER_OK = Reply(250, "2.1.0", "Sender OK")
RECIPIENT_OK = Reply(250, "2.1.5", "Recipient OK")
CHUNK_OK = Reply(250, "2.0.0", "Chunk received")  # BDAT, but for the last one
VRFY = Reply(252, "2.5.0", "Send some mail, we will do our best")  # RFC 5321 §3.5.3: neither confirmed nor denied
START_DATA = Reply(354, "", "End data with <CR><LF>.<CR><LF>")

# ── the connection ends: 421 (RFC 5321 §3.8) ─────────────────────────────────────────────────────────────────────

SHUTTING_DOWN = Reply(421, "4.3.2", "Service shutting down, try again later")
TIMED_OUT = Reply(421, "4.4.2", "Timeout, closing connection")
TOO_MANY_CONNECTIONS = Reply(421, "4.7.0", "Too many connections, try again later")
TOO_MANY_FROM_ADDRESS = Reply(421, "4.7.0", "Too many connections from your address, try again later")
GIVING_WAY = Reply(421, "4.7.0", "Connection needed for others, try again later")
TOO_MANY_ERRORS = Reply(421, "4.7.0", "Too many errors, closing connection")
TOO_MANY_COMMANDS = Reply(421, "4.7.0", "Too many commands, closing connection")

# ── not now ──────────────────────────────────────────────────────────────────────────────────────────────────────

INTERNAL_ERROR = Reply(451, "4.3.0", "Local error, try again later")
STORE_UNAVAILABLE = Reply(451, "4.3.2", "Not accepting messages now, try again later")
INSUFFICIENT_STORAGE = Reply(452, "4.3.1", "Insufficient system storage, try again later")
TOO_MANY_RECIPIENTS = Reply(452, "4.5.3", "Too many recipients, send the rest in another transaction")

# ── the command is wrong ─────────────────────────────────────────────────────────────────────────────────────────

UNKNOWN_COMMAND = Reply(500, "5.5.1", "Command not recognized")
LINE_TOO_LONG = Reply(500, "5.5.2", "Line too long")
SYNTAX_ERROR = Reply(500, "5.5.2", "Syntax error")
BAD_RECIPIENT = Reply(501, "5.1.3", "Bad recipient address syntax")
BAD_SENDER = Reply(501, "5.1.7", "Bad sender address syntax")
BAD_PARAMETERS = Reply(501, "5.5.4", "Syntax error in parameters")
BAD_BODY = Reply(501, "5.5.4", "BODY is 7BIT or 8BITMIME")  # RFC 6152 §2; BINARYMIME is not offered
BAD_CHUNK = Reply(501, "5.5.4", "BDAT takes a number of octets, and LAST")  # RFC 3030 §2
HELLO_NEEDS_NAME = Reply(501, "5.5.4", "Name yourself: a domain or an address literal")
NOT_IMPLEMENTED = Reply(502, "5.5.1", "Command not implemented")
NEED_HELLO = Reply(503, "5.5.1", "Send EHLO or HELO first")
NEED_MAIL = Reply(503, "5.5.1", "Send MAIL first")
NEED_RCPT = Reply(503, "5.5.1", "Send RCPT first")
NESTED_MAIL = Reply(503, "5.5.1", "Sender already given")
IN_CHUNKS = Reply(503, "5.5.1", "Send the last BDAT or RSET first")  # RFC 3030 §2: DATA and BDAT do not mix
TLS_ACTIVE = Reply(503, "5.5.1", "TLS is already active")
UNKNOWN_PARAMETER = Reply(555, "5.5.4", "MAIL or RCPT parameter not recognized")

# ── the recipient or the message is refused ──────────────────────────────────────────────────────────────────────

NO_SUCH_USER = Reply(550, "5.1.1", "No such recipient here")
NON_ASCII_ADDRESS = Reply(553, "5.6.7", "Address is not ASCII and SMTPUTF8 was not given")  # RFC 6531 §3.5
MESSAGE_TOO_BIG = Reply(552, "5.3.4", "Message too big")
HEADERS_TOO_BIG = Reply(552, "5.3.4", "Message header too big")
LOOP = Reply(554, "5.4.6", "Routing loop detected")
EARLY_DATA = Reply(554, "5.5.0", "Wait for the reply to DATA before you send")  # RFC 2920 §3.1
EARLY_TLS = Reply(554, "5.5.0", "Wait for the reply to STARTTLS before you send")  # RFC 3207 §6
BARE_LF = Reply(554, "5.6.0", "Bare LF in message, lines end in CR LF")
BARE_CR = Reply(554, "5.6.0", "Bare CR in message, lines end in CR LF")
NUL_IN_MESSAGE = Reply(554, "5.6.0", "NUL in message")
