"""One SMTP session as a server (RFC 5321): the commands, the limits, and the message on its way to ``Intake.accept``.

    connect ─ admitted? ─ no ─▶ 421, closed
                  │
                220 ─▶ HELO/EHLO ─▶ MAIL ─▶ RCPT… ─┬▶ DATA ─▶ 354 … CRLF.CRLF ─┬─▶ Intake.accept ─▶ 250
                          ▲  │                     └▶ BDAT n … ─▶ BDAT n LAST … ┘             │
                          │  │ STARTTLS: all forgotten, EHLO again                            │
                          └──┴──────────────── RSET, EHLO, end of the transaction ◀───────────┘

A command is a method named as on the wire. It answers with a reply of core/reply.py, or raises Over and the session
ends. Whatever else is raised becomes 451 and one log line; no text of an exception reaches a client.
"""

from __future__ import annotations

import asyncio
import random
import re
import secrets
from collections.abc import Awaitable, Callable

import structlog

from relay import smtp_envelope
from relay.core import reply
from relay.core.model import Address
from relay.core.reply import Reply
from relay.smtp_data import ChunkReception, DataReception
from relay.smtp_limits import SPREAD, Ticket, unknown_delay
from relay.smtp_service import Service
from relay.smtp_stream import LINE_LIMIT, Over, Stream
from relay.smtp_transaction import Client, Recipient, Refused, Transaction

log = structlog.get_logger()

_CONTROLS = bytes(range(0x20)) + b"\x7f"
_not_in_a_name = re.compile(r"[^A-Za-z0-9.\-_:\[\]]")
#: First words of protocols that a browser can be made to speak to us.
_FOREIGN = frozenset(("GET", "POST", "PUT", "HEAD", "OPTIONS", "CONNECT", "HOST:"))
#: Octets from which a chunk does not count as a command: a large message may come in thousands, by its sender's buffer.
LARGE_CHUNK = 1024
#: Recipients beyond the limit of one message that a session may bring, for each command that it may.
EXCESS = 10
#: Commands that came in one go after which other sessions have their turn.
A_TURN = 64


class Session(Stream):
    """One connection, from its greeting to its one line in the log."""

    task: asyncio.Task[None]
    _ticket: Ticket
    # The transaction; _forget() makes a new one.
    _in_mail: bool
    _sender: Address | None
    _smtputf8: bool
    _recipients: dict[str | tuple[str, str], tuple[Recipient, object]]
    _reception: DataReception | ChunkReception | None
    _chunks: ChunkReception | None = None
    _refused_chunks: ChunkReception | None = None

    def __init__(self, service: Service) -> None:
        terms = service.terms
        super().__init__(asyncio.get_running_loop(), terms.settings.limits.command_timeout)
        self._service = service
        self._terms = terms
        self._settings = terms.settings
        self._limits = terms.settings.limits
        self._began = self.loop.time()
        self._name = secrets.token_hex(4)
        self._ip = ""
        self._exempt = False
        self._helo = ""
        self._esmtp = False
        self._messages = 0
        self._refused = 0
        self._commands = 0
        self._uncounted = 0
        self._excess = 0
        self._unknown = 0
        self._errors = 0
        self._idle_commands = 0
        self._verb = "connect"
        self._forget()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        peer = transport.get_extra_info("peername")
        if peer:  # None when the client is gone already
            self._ip = peer[0].removeprefix("::ffff:")
        self._ticket = self._service.turnstile.enter(self._ip, self._give_way, self._in_message)
        self._exempt = self._ticket.exempt
        self._service.sessions.add(self)  # which keeps the task alive
        self.task = self.loop.create_task(self._handle_client())

    async def _handle_client(self) -> None:
        """The whole session, under the name that aiosmtpd gives it."""
        over = Over("internal error", reply.INTERNAL_ERROR)
        try:
            if self._ticket.refusal is not None:
                raise Over("too many connections", self._ticket.refusal)
            self.send(self._terms.greeting)
            while True:
                await self._command(await self.line(self._limits.command_timeout, self._chunks is not None))
                self._verb = "idle"
                if self._commands % A_TURN == 0:
                    await asyncio.sleep(0)
        except Over as reason:
            over = reason
        except Exception:
            log.exception("SMTP session failed", ip=self._ip)
        finally:
            self._forget()
            no_linger = (None, reply.BYE, reply.GIVING_WAY, self._ticket.refusal)
            await self.close(over, linger=over.last not in no_linger)
            self._service.turnstile.leave(self._ticket)
            self._service.sessions.discard(self)
            tally = self._service.tally
            tally.ends[over.reason.partition(":")[0]] += 1  # what follows are words of a client or a library
            if over.last is not None and over.last.code >= 400:
                tally.refused(self._verb, over.last)
            log.info(
                "SMTP session",
                session=self._name,
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
        if self._commands - self._uncounted > self._limits.commands and not self._exempt:
            raise Over("too many commands", reply.TOO_MANY_COMMANDS)
        self._verb = "other"
        text = line[:-2]
        if len(line) > LINE_LIMIT:
            return self._unreadable(line, reply.LINE_TOO_LONG)
        if line[-2:] != b"\r\n" or text.translate(None, _CONTROLS) != text:
            return self._unreadable(line, reply.SYNTAX_ERROR)
        try:
            verb, _, argument = text.decode().rstrip(" ").partition(" ")  # RFC 5321 §4.1.1: space at the end
        except UnicodeDecodeError:
            return self._unreadable(line, reply.SYNTAX_ERROR)
        verb = verb.upper()
        method = _METHODS.get(verb)
        if method is None:
            if verb in _FOREIGN:
                raise Over("not SMTP", reply.UNKNOWN_COMMAND)
            return self._answer(reply.UNKNOWN_COMMAND)
        self._verb = verb
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
            self._answer(self._terms.helo)

    async def smtp_EHLO(self, argument: str) -> None:
        if self._hello(argument, esmtp=True):
            self.send(self._terms.ehlo if self.tls else self._terms.ehlo_starttls)

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
        self._refused_chunks = None
        self._in_mail = True
        self._sender = mail.sender
        self._smtputf8 = mail.smtputf8
        self._answer(reply.SENDER_OK)

    async def smtp_RCPT(self, argument: str) -> None:
        if not self._in_mail:
            return self._answer(reply.NEED_MAIL if self._helo else reply.NEED_HELLO)
        if self._chunks is not None:
            return self._answer(reply.IN_CHUNKS)
        recipient = smtp_envelope.rcpt(argument, self._smtputf8)
        if isinstance(recipient, Reply):
            return self._answer(recipient)
        key = recipient if isinstance(recipient, str) else recipient.key
        if key in self._recipients:
            return self._answer(reply.RECIPIENT_OK)
        if len(self._recipients) >= self._limits.recipients:
            self._uncounted += 1  # or the recipients that were taken would lose their mail for those that were not
            self._excess += 1
            if self._excess > EXCESS * self._limits.commands and not self._exempt:
                raise Over("too many recipients", reply.TOO_MANY_COMMANDS)
            return self._answer(reply.TOO_MANY_RECIPIENTS)
        began = self.loop.time()
        route = await self._service.intake.route(recipient, self._sender)
        if route is None:
            self._unknown += 1
            if not self._exempt:
                noise = SPREAD * random.random()  # noqa: S311 - no secret hangs on it
                await self.hold(began + unknown_delay(self._unknown, self._limits) + noise)
            return self._answer(reply.NO_SUCH_USER)
        self._recipients[key] = recipient, route
        self._answer(reply.RECIPIENT_OK)

    async def smtp_DATA(self, argument: str) -> None:
        if self.waiting():  # a body read as commands, or commands as a body: somebody is out of step
            raise Over("data before 354", reply.EARLY_DATA)
        if argument:
            return self._answer(reply.BAD_PARAMETERS)
        refusal = reply.IN_CHUNKS if self._chunks is not None else self._not_ready()
        if refusal is not None:
            return self._answer(refusal)
        self.send(reply.START_DATA.wire)
        await self.flush()
        settings = self._settings
        reception = DataReception(self._service.bodies, settings.max_message_size, settings.bare_lf, self._limits)
        self._answer(await self._receive(reception, reception.read(self), last=True))

    async def smtp_BDAT(self, argument: str) -> None:
        chunk = smtp_envelope.bdat(argument)
        if chunk is None:  # where its octets end and commands begin nobody knows now
            raise Over("BDAT without a size", reply.BAD_CHUNK)
        size, last = chunk
        if size >= LARGE_CHUNK:
            self._uncounted += 1
        reception, refused = self._chunks or self._refused_chunks, self._refused_chunks is not None
        if reception is None:
            settings, not_ready = self._settings, self._not_ready()
            reception = ChunkReception(
                self._service.bodies, settings.max_message_size, settings.bare_lf, self._limits, not_ready
            )
        self._chunks = None
        answer = await self._receive(reception, reception.read(self, size), last)
        if answer is reply.CHUNK_OK:
            self._chunks = reception
        elif not last:
            # The chunks behind it may be on their way already. They get the same answer, lest a client that looks at
            # the last one takes "not now" for "never", and are no errors of their own.
            reception.refusal = answer
            self._refused_chunks = reception
        if refused:
            self.send(answer.wire)
        else:
            self._answer(answer)

    async def _receive(self, reception: DataReception | ChunkReception, reading: Awaitable[None], last: bool) -> Reply:
        """Read octets to their end and accept the message if they were its last. Unless all is well it is over."""
        answer = reply.INTERNAL_ERROR
        self._reception = reception
        told = reception.refusal is not None  # a refused message is told of once, and where there is none not at all
        sender, recipients, dot_at = self._sender, len(self._recipients), self.loop.time()
        try:
            await reading
            dot_at = self.loop.time()
            answer = await self._accept(reception) if last or reception.refusal else reply.CHUNK_OK
        except Over:
            reception.discard()
            raise
        except Exception:
            log.exception("message not received", ip=self._ip)
            reception.discard()
            if not reception.whole:  # where the data end nobody knows now
                raise Over("internal error", reply.INTERNAL_ERROR) from None
        finally:
            if answer is not reply.CHUNK_OK:
                self._forget()
        if answer is not reply.CHUNK_OK and not told:
            self._tell(answer, sender, recipients, reception.size, self.loop.time() - dot_at)
        return answer

    def _tell(self, answer: Reply, sender: Address | None, recipients: int, size: int, duration: float) -> None:
        """Count a message that was sent whole, and log why it was not accepted; ``duration``: seconds since its end."""
        self._service.tally.accepting.observe(duration)
        self._service.tally.messages[f"{answer.code // 100}xx"] += 1
        if answer.code >= 400:
            log.info(
                "message refused",
                session=self._name,
                sender=str(sender or ""),
                recipients=recipients,
                size=size,
                ip=self._ip,
                code=answer.code,
                answer=answer.line,
                duration=round(duration, 3),
            )

    async def _accept(self, reception: DataReception | ChunkReception) -> Reply:
        body = await reception.body()
        if isinstance(body, Reply):
            return body
        transaction = Transaction(
            Client(self._ip, self._helo, self.tls, self._esmtp, self._name),
            self._sender,
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
        self._service.turnstile.trust(self._ticket)
        self._messages += 1
        self._idle_commands = 0
        return reply.queued(message_id)

    # Within

    def _give_way(self) -> None:
        self.dismiss(Over("gave way", reply.GIVING_WAY))

    def _in_message(self) -> bool:
        """Whether a message is coming in, as fast as it must."""
        return self._reception is not None and self._reception.keeps_up(self.loop.time())

    def _not_ready(self) -> Reply | None:
        """Why there is no message to be sent now."""
        if not self._helo:
            return reply.NEED_HELLO
        if not self._recipients:
            return reply.NEED_RCPT if self._in_mail else reply.NEED_MAIL
        return None

    def _unreadable(self, line: bytes, answer: Reply) -> None:
        if line[:4].upper() == b"BDAT":  # what follows it would be taken for commands
            raise Over("BDAT without a size", answer)
        self._answer(answer)

    def _hello(self, argument: str, *, esmtp: bool) -> bool:
        if not argument or len(argument) > 255:
            self._answer(reply.HELLO_NEEDS_NAME)
            return False
        if self._helo:  # once more
            self._count_idle()
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
        self._reception = None
        self._refused_chunks = None
        if self._chunks is not None:
            self._chunks.discard()
            self._chunks = None

    def _answer(self, answer: Reply) -> None:
        """Reply to a command; the client's errors are counted, and one too many ends the session instead."""
        if answer.code >= 400:
            self._refused += 1
            if answer.code >= 500:
                self._errors += 1
                if self._errors >= self._limits.errors and not self._exempt:
                    raise Over("too many errors", reply.TOO_MANY_ERRORS)
            self._service.tally.refused(self._verb, answer)
        self.send(answer.wire)

    def _idle(self, answer: Reply) -> None:
        """Reply to a command that brings no message nearer."""
        self._count_idle()
        self._answer(answer)

    def _count_idle(self) -> None:
        self._idle_commands += 1
        if self._idle_commands > self._limits.idle_commands and not self._exempt:
            raise Over("too many idle commands", reply.TOO_MANY_COMMANDS)


_VERBS = ("HELO", "EHLO", "STARTTLS", "MAIL", "RCPT", "DATA", "BDAT", "RSET", "NOOP", "HELP", "VRFY", "EXPN", "QUIT")
_METHODS: dict[str, Callable[[Session, str], Awaitable[None]]] = {
    name: getattr(Session, f"smtp_{name}") for name in _VERBS
}
