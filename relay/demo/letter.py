"""The visitor's mail program: makes a message of the page's form and hands it to the daemon by SMTP."""

from __future__ import annotations

import re
import smtplib
import time
from dataclasses import dataclass
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import formatdate, make_msgid, parseaddr

from relay.core.address import AddressError, parse
from relay.core.mimetext import file_name

#: Seconds for the connection and for each reply.
TIMEOUT = 30.0
#: Characters of a subject, and of a text.
MAX_SUBJECT = 500
MAX_TEXT = 100_000

_TYPE = re.compile(r"[a-z0-9!#$&^_.+-]{1,64}/[a-z0-9!#$&^_.+-]{1,64}").fullmatch


class LetterError(Exception):
    """The form is not a letter; ``field`` names what to correct."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class Refused(Exception):
    """The daemon did not take the letter; the message is its reply, or what went wrong before there was one."""


@dataclass(frozen=True, slots=True)
class Attachment:
    name: str
    type: str
    content: bytes


@dataclass(frozen=True, slots=True)
class Letter:
    """The form as filled in. ``sender`` may have a name: ``Ann <ann@visitor.example>``."""

    sender: str
    to: str
    subject: str
    text: str
    attachment: Attachment | None = None


@dataclass(frozen=True, slots=True)
class Sent:
    """Times in seconds since the epoch. ``message`` is the daemon's id, out of its reply to the final dot."""

    started_at: float
    accepted_at: float
    message: str
    reply: str


def compose(letter: Letter) -> tuple[str, str, EmailMessage]:
    """(envelope sender, recipient, message). Raises LetterError."""
    name, sender = parseaddr(letter.sender)
    envelope = [_address("from", sender), _address("to", letter.to.strip())]
    if len(letter.subject) > MAX_SUBJECT or not letter.subject.isprintable():
        raise LetterError("subject", f"at most {MAX_SUBJECT} characters on one line")
    if len(letter.text) > MAX_TEXT:
        raise LetterError("text", f"at most {MAX_TEXT} characters")
    message = EmailMessage(policy=SMTP)
    try:
        message["From"] = Address(name, addr_spec=envelope[0])
    except ValueError as error:
        raise LetterError("from", "not an address") from error
    message["To"] = envelope[1]
    message["Subject"] = letter.subject
    message["Date"] = formatdate(time.time(), localtime=True)
    message["Message-ID"] = make_msgid(domain="visitor.example")
    message.set_content(letter.text)
    if letter.attachment is not None:
        _attach(message, letter.attachment)
    return envelope[0], envelope[1], message


def _attach(message: EmailMessage, attachment: Attachment) -> None:
    kind = attachment.type.lower()
    if not _TYPE(kind) or kind.startswith(("multipart/", "message/")):
        kind = "application/octet-stream"  # a file is a file: nothing in it is part of this message's structure
    maintype, _, subtype = kind.partition("/")
    name = file_name(attachment.name, kind, 0)
    message.add_attachment(attachment.content, maintype=maintype, subtype=subtype, filename=name)


def _address(field: str, text: str) -> str:
    try:
        return str(parse(text, utf8=False))
    except AddressError as error:
        raise LetterError(field, f"not an address: {error}") from error


def send(letter: Letter, port: int) -> Sent:
    """Send by SMTP to the daemon at this loopback port. Blocks. Raises LetterError and Refused.

    smtplib, not our own client: the visitor's software is not ours.
    """
    sender, recipient, message = compose(letter)
    content = message.as_bytes()
    started_at = time.time()
    try:
        with smtplib.SMTP("127.0.0.1", port, local_hostname="visitor.example", timeout=TIMEOUT) as smtp:
            smtp.ehlo()
            _done(smtp.mail(sender))
            _done(smtp.rcpt(recipient))
            reply = _done(smtp.data(content))
            accepted_at = time.time()
    except smtplib.SMTPResponseException as error:
        raise Refused(_line(error.smtp_code, error.smtp_error)) from error
    except (OSError, smtplib.SMTPException) as error:
        raise Refused(str(error)) from error
    return Sent(started_at, accepted_at, reply.rpartition(" ")[2], reply)


def _done(answer: tuple[int, bytes]) -> str:
    """The reply as one line; raises Refused unless it is 2xx."""
    line = _line(*answer)
    if not 200 <= answer[0] < 300:
        raise Refused(line)
    return line


def _line(code: int, text: bytes | str) -> str:
    said = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
    return f"{code} {' '.join(said.split())}"
