"""One SMTP session as a server (RFC 5321): the commands, the limits, and the message on its way to ``Intake.accept``.

    connect ─ admitted? ─ no ─▶ 421, closed
                  │
                220 ─▶ HELO/EHLO ─▶ MAIL ─▶ RCPT… ─▶ DATA ─▶ 354 … CRLF.CRLF ─▶ Intake.accept ─▶ 250
                          ▲  │ STARTTLS: all forgotten, EHLO again                    │
                          └──┴──────────────── RSET, EHLO, end of the transaction ◀───┘

A command is a method named as on the wire. It answers with a reply of core/reply.py, or raises Over and the session
ends. Whatever else is raised becomes 451 and one log line; no text of an exception reaches a client.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import structlog

from relay import smtp_envelope
from relay.bodies import Bodies, Body
from relay.core import reply
from relay.core.model import Address
from relay.core.reply import Reply
from relay.smtp_data import Reception
from relay.smtp_limits import Settings, Ticket, Turnstile
from relay.smtp_stream import LINE_LIMIT, Over, Stream

log = structlog.get_logger()

_CONTROLS = bytes(range(0x20)) + b"\x7f"
_not_in_a_name = re.compile(r"[^A-Za-z0-9.\-_:\[\]]")
#: First words of protocols that a browser can be made to speak to us.
_FOREIGN = frozenset(("GET", "POST", "PUT", "HEAD", "OPTIONS", "CONNECT", "HOST:"))

Recipient = Address | Literal["postmaster"]


@dataclass(frozen=True, slots=True)
class Client:
    """Who is at the other end. ``helo``: the name it gave, safe to print in a header field or a log ("?" for the rest).

    ``esmtp``: it said EHLO. ``tls``: version and cipher ("TLSv1.3 TLS_AES_256_GCM_SHA384") or None.
    """

    ip: str
    port: int
    helo: str
    esmtp: bool
    tls: str | None


@dataclass(frozen=True, slots=True)
class Transaction:
    """A whole message with its envelope. ``mail_from`` is None for the null sender ``<>``.

    ``recipients``: each once, in the order given, with what ``Intake.route`` answered. ``head``: the first octets of
    the body in wire form, the header block in them. ``bare_lf``: bare LFs that were made CR LF.
    """

    client: Client
    mail_from: Address | None
    smtputf8: bool
    recipients: list[tuple[Recipient, object]]
    body: Body
    head: bytes
    bare_lf: int


class Refused(Exception):
    """What ``Intake`` raises to answer with a reply of its own.

    ``body_stays``: a body in a file is left where it is, for its row may have been committed all the same.
    """

    def __init__(self, reply: Reply, *, body_stays: bool = False) -> None:
        super().__init__(reply.line)
        self.reply = reply
        self.body_stays = body_stays


class Intake(Protocol):
    """What the rest of the daemon does for a session. An unexpected exception is answered with 451."""

    async def route(self, recipient: Recipient) -> object | None:
        """Where mail for ``recipient`` goes; None when nobody is there (550). Raises Refused."""

    def room(self, size: int) -> bool:
        """Whether the disk has room for a message of ``size`` octets (0: not said), asked at MAIL; False is 452."""

    async def accept(self, transaction: Transaction) -> str:
        """Take the message, durably, and return our id of it. Raises Refused: then nothing of it was kept.

        Never cancelled because the client went away. After any other exception, and after Refused with
        ``body_stays``, a body in a file stays where it is, for nobody knows whether its row was committed; the sweep
        for orphans decides.
        """


class Service:
    """What all sessions share."""

    def __init__(self, intake: Intake, bodies: Bodies, settings: Settings) -> None:
        self.intake = intake
        self.bodies = bodies
        self.settings = settings
        self.sessions: set[Session] = set()
        self.turnstile = Turnstile(settings.limits)
        self.greeting = reply.greeting(settings.hostname).wire
        self.helo = reply.helo(settings.hostname)
        size = f"SIZE {settings.max_message_size}"
        words = ["PIPELINING", size, "8BITMIME", "SMTPUTF8", "ENHANCEDSTATUSCODES"]
        self.ehlo = reply.ehlo(settings.hostname, words)
        self.ehlo_starttls = reply.ehlo(settings.hostname, [*words, "STARTTLS"]) if settings.tls else self.ehlo


class Session(Stream):
    """One connection, from its greeting to its one line in the log."""

    task: asyncio.Task[None]
    _ticket: Ticket
    # The transaction; _forget() makes a new one.
    _in_mail: bool
    _sender: Address | None
    _smtputf8: bool
    _recipients: dict[str | tuple[str, str], tuple[Recipient, object]]

    def __init__(self, service: Service) -> None:
        limits = service.settings.limits
        super().__init__(asyncio.get_running_loop(), limits.command_timeout)
        self._service = service
        self._settings = service.settings
        self._limits = limits
        self._began = self.loop.time()
        self._ip = ""
        self._port = 0
        self._exempt = False
        self._helo = ""
        self._esmtp = False
        self._messages = 0
        self._refused = 0
        self._commands = 0
        self._errors = 0
        self._idle_commands = 0
        self._forget()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        peer = transport.get_extra_info("peername")
        if peer:  # None when the client is gone already
            self._ip, self._port = peer[0].removeprefix("::ffff:"), peer[1]
        self._ticket = self._service.turnstile.enter(self._ip)
        self._exempt = self._ticket.exempt
        self._service.sessions.add(self)  # which keeps the task alive
        self.task = self.loop.create_task(self._handle_client())

    async def _handle_client(self) -> None:
        """The whole session, under the name that aiosmtpd gives it."""
        over = Over("internal error", reply.INTERNAL_ERROR)
        try:
            if self._ticket.refusal is not None:
                raise Over("too many connections", self._ticket.refusal)
            self.send(self._service.greeting)
            while True:
                await self._command(await self.line(self._limits.command_timeout))
        except Over as reason:
            over = reason
        except Exception:
            log.exception("SMTP session failed", ip=self._ip)
        finally:
            await self.close(over, linger=over.last is not None and over.last not in (reply.BYE, self._ticket.refusal))
            self._service.turnstile.leave(self._ticket)
            self._service.sessions.discard(self)
            log.info(
                "SMTP session",
                ip=self._ip,
                helo=self._helo,
                tls=self.tls,
                messages=self._messages,
                refused=self._refused,
                commands=self._commands,
                duration=round(self.loop.time() - self._began, 3),
                end=over.reason,
            )

    async def _command(self, line: bytes) -> None:
        self._commands += 1
        if self._commands > self._limits.commands and not self._exempt:
            raise Over("too many commands", reply.TOO_MANY_COMMANDS)
        text = line[:-2]
        if len(line) > LINE_LIMIT:
            return self._answer(reply.LINE_TOO_LONG)
        if line[-2:] != b"\r\n" or text.translate(None, _CONTROLS) != text:
            return self._answer(reply.SYNTAX_ERROR)
        try:
            verb, _, argument = text.decode().rstrip(" ").partition(" ")
        except UnicodeDecodeError:
            return self._answer(reply.SYNTAX_ERROR)
        verb = verb.upper()
        method = _METHODS.get(verb)
        if method is None:
            if verb in _FOREIGN:
                raise Over("not SMTP", reply.UNKNOWN_COMMAND)
            return self._answer(reply.UNKNOWN_COMMAND)
        try:
            await method(self, argument.lstrip(" "))
        except Over:
            raise
        except Refused as refused:
            self._answer(refused.reply)
        except Exception:
            log.exception("SMTP command failed", ip=self._ip, command=verb)
            self._answer(reply.INTERNAL_ERROR)

    # The session

    async def smtp_HELO(self, argument: str) -> None:
        if self._hello(argument, esmtp=False):
            self._answer(self._service.helo)

    async def smtp_EHLO(self, argument: str) -> None:
        if self._hello(argument, esmtp=True):
            self.send(self._service.ehlo if self.tls else self._service.ehlo_starttls)

    async def smtp_STARTTLS(self, argument: str) -> None:
        tls = self._settings.tls
        if tls is None:
            return self._answer(reply.NOT_IMPLEMENTED)
        if argument:
            return self._answer(reply.BAD_PARAMETERS)
        if self.tls is not None:
            return self._answer(reply.TLS_ACTIVE)
        if self.waiting():  # what came in plain text must never be read as if it had come encrypted
            raise Over("plain text after STARTTLS", reply.EARLY_TLS)
        await self.secure(tls.context(), reply.START_TLS.wire, self._limits.command_timeout)
        self._helo = ""  # RFC 3207 §4.2: nothing that was said before counts
        self._esmtp = False
        self._forget()

    async def smtp_RSET(self, argument: str) -> None:
        if argument:
            return self._answer(reply.BAD_PARAMETERS)
        self._forget()
        self._idle(reply.OK)

    async def smtp_NOOP(self, argument: str) -> None:
        self._idle(reply.OK)

    async def smtp_HELP(self, argument: str) -> None:
        self._idle(reply.HELP)

    async def smtp_VRFY(self, argument: str) -> None:
        self._idle(reply.VRFY)

    async def smtp_EXPN(self, argument: str) -> None:
        self._answer(reply.NOT_IMPLEMENTED)

    async def smtp_QUIT(self, argument: str) -> None:
        if argument:
            return self._answer(reply.BAD_PARAMETERS)
        raise Over("quit", reply.BYE)

    # The transaction

    async def smtp_MAIL(self, argument: str) -> None:
        if not self._helo:
            return self._answer(reply.NEED_HELLO)
        if self._in_mail:
            return self._answer(reply.NESTED_MAIL)
        mail = smtp_envelope.mail(argument)
        if isinstance(mail, Reply):
            return self._answer(mail)
        if mail.size > self._settings.max_message_size:
            return self._answer(reply.MESSAGE_TOO_BIG)
        if not self._service.intake.room(mail.size):
            return self._answer(reply.INSUFFICIENT_STORAGE)
        self._in_mail = True
        self._sender = mail.sender
        self._smtputf8 = mail.smtputf8
        self._answer(reply.SENDER_OK)

    async def smtp_RCPT(self, argument: str) -> None:
        if not self._in_mail:
            return self._answer(reply.NEED_MAIL if self._helo else reply.NEED_HELLO)
        recipient = smtp_envelope.rcpt(argument, self._smtputf8)
        if isinstance(recipient, Reply):
            return self._answer(recipient)
        key = recipient if isinstance(recipient, str) else recipient.key
        if key in self._recipients:
            return self._answer(reply.RECIPIENT_OK)
        if len(self._recipients) >= self._limits.recipients:
            return self._answer(reply.TOO_MANY_RECIPIENTS)
        route = await self._service.intake.route(recipient)
        if route is None:
            return self._answer(reply.NO_SUCH_USER)
        self._recipients[key] = recipient, route
        self._answer(reply.RECIPIENT_OK)

    async def smtp_DATA(self, argument: str) -> None:
        if self.waiting():  # a body read as commands, or commands as a body: somebody is out of step
            raise Over("data before 354", reply.EARLY_DATA)
        if argument:
            return self._answer(reply.BAD_PARAMETERS)
        if not self._helo:
            return self._answer(reply.NEED_HELLO)
        if not self._recipients:
            return self._answer(reply.NEED_RCPT if self._in_mail else reply.NEED_MAIL)
        self.send(reply.START_DATA.wire)
        await self.flush()
        settings = self._settings
        reception = Reception(self._service.bodies.writer(), settings.max_message_size, settings.bare_lf)
        try:
            await reception.read(self, self._limits)
            answer = await self._accept(reception)
        except Over:
            reception.discard()
            raise
        except Exception:
            log.exception("message not received", ip=self._ip)
            reception.discard()
            if not reception.done:  # where the data end nobody knows now
                raise Over("internal error", reply.INTERNAL_ERROR) from None
            answer = reply.INTERNAL_ERROR
        finally:
            self._forget()
        self._answer(answer)

    async def _accept(self, reception: Reception) -> Reply:
        body = await reception.body()
        if isinstance(body, Reply):
            return body
        transaction = Transaction(
            Client(self._ip, self._port, self._helo, self._esmtp, self.tls),
            self._sender,
            self._smtputf8,
            list(self._recipients.values()),
            body,
            reception.head,
            reception.bare_lf,
        )
        try:
            message_id = await self._service.intake.accept(transaction)
        except Refused as refused:
            if not refused.body_stays:
                reception.discard()
            return refused.reply
        except Exception:
            log.exception("message not accepted", ip=self._ip)  # and its file, if it has one, is left: see Intake
            return reply.INTERNAL_ERROR
        self._messages += 1
        self._idle_commands = 0
        return reply.queued(message_id)

    # Within

    def _hello(self, argument: str, esmtp: bool) -> bool:
        if not argument or len(argument) > 255:
            self._answer(reply.HELLO_NEEDS_NAME)
            return False
        self._helo = _not_in_a_name.sub("?", argument)
        self._esmtp = esmtp
        self._forget()
        return True

    def _forget(self) -> None:
        """No transaction (RFC 5321 §4.1.1.5)."""
        self._in_mail = False
        self._sender = None
        self._smtputf8 = False
        self._recipients = {}

    def _answer(self, answer: Reply) -> None:
        """Reply to a command; the client's errors are counted, and one too many ends the session instead."""
        if answer.code >= 400:
            self._refused += 1
            if answer.code >= 500:
                self._errors += 1
                if self._errors >= self._limits.errors and not self._exempt:
                    raise Over("too many errors", reply.TOO_MANY_ERRORS)
        self.send(answer.wire)

    def _idle(self, answer: Reply) -> None:
        """Reply to a command that brings no message nearer."""
        self._idle_commands += 1
        if self._idle_commands > self._limits.idle_commands and not self._exempt:
            raise Over("too many idle commands", reply.TOO_MANY_COMMANDS)
        self._answer(answer)


_METHODS: dict[str, Callable[[Session, str], Awaitable[None]]] = {
    name: getattr(Session, f"smtp_{name}")
    for name in ("HELO", "EHLO", "STARTTLS", "MAIL", "RCPT", "DATA", "RSET", "NOOP", "HELP", "VRFY", "EXPN", "QUIT")
}
