"""A real SMTP server on loopback that records what it gets and misbehaves on demand.

    async with SmtpSink(script={"rcpt": "450 4.2.1 later"}) as sink: ...

``script`` says what happens at a stage instead of the usual: "connect", a command in lower case ("ehlo", "mail", …),
"content" (after 354, before the content is read) and "dot" (after the final dot). A step is

    "450 4.2.1 later"        the reply (several lines: joined with CR LF)
    b"nonsense"              these octets and no line end; nothing follows from them, they are no reply to the sink
    Close("421 bye")         this reply, or none, and the connection is closed
    Hang()                   nothing more is said until the client leaves
    Stall()                  nothing more is said or read until the sink is closed
    Vanish()                 the connection is gone and the client is told nothing, as by a power cut (`can_vanish`)
    Slow(0.1, "250 ok")      the reply after some seconds
    Later(event, "250 ok")   the reply when the event is set
    Drip(0.1, "250 ok")      the reply octet by octet, some seconds after each
    None                     the usual behaviour
    [step, step]             one for each time the stage is reached over all sessions, then the usual
    function(session, line)  called each time, returns one of the steps above
"""

from __future__ import annotations

import asyncio
import base64
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import cast

from tests.certificates import Certificate

_USUAL_EXTENSIONS = ("PIPELINING", "SIZE 104857600", "8BITMIME", "ENHANCEDSTATUSCODES")
_READ_SIZE = 65536
#: linux/tcp.h. Such a socket is closed without FIN and RST.
_TCP_REPAIR = 19


@dataclass(frozen=True)
class Close:
    reply: str = ""


@dataclass(frozen=True)
class Hang:
    pass


@dataclass(frozen=True)
class Stall:
    pass


@dataclass(frozen=True)
class Vanish:
    pass


@dataclass(frozen=True)
class Slow:
    seconds: float
    reply: str


@dataclass(frozen=True)
class Later:
    event: asyncio.Event
    reply: str


@dataclass(frozen=True)
class Drip:
    seconds: float
    reply: str


Step = str | bytes | Close | Hang | Stall | Vanish | Slow | Later | Drip | None
Script = Step | list[Step] | Callable[["SinkSession", str], Step]


@dataclass
class Received:
    """One message whose final dot was read. ``wire``: the octets between DATA and the dot's line, as sent."""

    mail_from: str
    recipients: list[str]
    mail_parameters: list[str]
    wire: bytes
    session: int  # counts from 1
    tls: bool
    user: str | None
    answer: str = ""  # to the dot; empty when there was none

    @property
    def content(self) -> bytes:
        """Without dot-stuffing: the message as its recipient gets it."""
        unstuffed = self.wire.replace(b"\r\n.", b"\r\n")
        return unstuffed.removeprefix(b".")

    @property
    def accepted(self) -> bool:
        return self.answer.startswith("2")


class SmtpSink:
    """``extensions``: what EHLO announces besides STARTTLS and AUTH. ``tls`` offers STARTTLS, or with ``implicit``
    TLS from the start. ``logins``: user → password; AUTH is offered with ``mechanisms`` and then required.
    ``receive_buffer``: octets (SO_RCVBUF), small to make a blocked reader felt soon.
    """

    def __init__(
        self,
        *,
        script: Mapping[str, Script] | None = None,
        extensions: Sequence[str] = _USUAL_EXTENSIONS,
        tls: Certificate | None = None,
        implicit: bool = False,
        logins: Mapping[str, str] | None = None,
        mechanisms: Sequence[str] = ("PLAIN", "LOGIN"),
        host: str = "127.0.0.1",
        port: int = 0,
        receive_buffer: int | None = None,
    ) -> None:
        # Lists are used up, so the sink needs its own.
        self.script: dict[str, Script] = {
            stage: list(steps) if isinstance(steps, list) else steps for stage, steps in (script or {}).items()
        }
        self.extensions = list(extensions)
        self.tls = tls.server_context() if tls else None
        self.implicit = implicit
        self.logins = dict(logins or {})
        self.mechanisms = list(mechanisms)
        self.host, self.port = host, port
        self.receive_buffer = receive_buffer
        self.messages: list[Received] = []
        self.commands: list[str] = []  # every command line of every session, in order of arrival
        self.sessions = 0
        self.live = 0
        self.peak = 0  # most connections at a time
        self._changed = asyncio.Condition()
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def address(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def accepted(self) -> list[Received]:
        return [message for message in self.messages if message.accepted]

    async def __aenter__(self) -> SmtpSink:
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        # With the protocol spelled out asyncio sets TCP_NODELAY; without it every session takes 40 ms longer.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if self.receive_buffer is not None:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.receive_buffer)
        listener.bind((self.host, self.port))
        self.port = listener.getsockname()[1]
        context = self.tls if self.implicit else None
        self._server = await asyncio.start_server(self._serve, sock=listener, ssl=context, limit=_READ_SIZE)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    async def wait(self, condition: Callable[[SmtpSink], bool], timeout: float = 10.0) -> None:
        """Until ``condition(sink)`` holds; it is looked at after every command, message and disconnect."""
        async with asyncio.timeout(timeout), self._changed:
            await self._changed.wait_for(lambda: condition(self))

    async def wait_for_messages(self, count: int, timeout: float = 10.0) -> list[Received]:
        await self.wait(lambda sink: len(sink.accepted) >= count, timeout)
        return self.accepted

    async def changed(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    def step(self, stage: str, session: SinkSession, line: str) -> Step:
        script = self.script.get(stage)
        if isinstance(script, list):
            return script.pop(0) if script else None
        if callable(script):
            return script(session, line)
        return script

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.sessions += 1
        self.live += 1
        self.peak = max(self.peak, self.live)
        try:
            await SinkSession(self, self.sessions, reader, writer).run()
        except (_Gone, OSError, asyncio.CancelledError):
            pass  # the client left, the script said so, or the test is over
        finally:
            self._tasks.discard(task)
            self.live -= 1
            writer.close()
            await self.changed()


def can_vanish() -> bool:
    """Whether this process may have connections that :class:`Vanish`."""
    if sys.platform != "linux":
        return False
    with socket.socket() as tried:
        try:
            tried.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 1)
        except PermissionError:
            return False
        return True


class _Gone(Exception):
    pass


@dataclass
class _Envelope:
    mail_from: str | None = None
    parameters: list[str] = field(default_factory=list)
    recipients: list[str] = field(default_factory=list)


class SinkSession:
    """``number`` counts the sink's sessions from 1; ``transactions``: dots this session has read."""

    def __init__(self, sink: SmtpSink, number: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.sink = sink
        self.number = number
        self.transactions = 0
        self.tls = sink.implicit
        self.user: str | None = None
        self._reader, self._writer = reader, writer
        self._buffer = bytearray()
        self._envelope = _Envelope()

    async def run(self) -> None:
        await self._do("connect", "", "220 sink.test ESMTP")
        while True:
            line = await self._line()
            verb = line.split(" ", 1)[0].lower()
            self.sink.commands.append(line)
            await self.sink.changed()
            command = getattr(self, f"_{verb}_command", None)
            if command is None:
                await self._do(verb, line, "500 5.5.1 what?")
            else:
                await command(line)

    def say(self, reply: str) -> None:
        """Send a reply that nothing asked for, or one before the step that a script returns."""
        self._writer.write(reply.encode() + b"\r\n")

    async def _ehlo_command(self, line: str) -> None:
        self._envelope = _Envelope()
        words = ["sink.test", *self.sink.extensions]
        if self.sink.tls and not self.tls:
            words.append("STARTTLS")
        if self.sink.logins:
            words.append("AUTH " + " ".join(self.sink.mechanisms))
        await self._do("ehlo", line, "\r\n".join([f"250-{word}" for word in words[:-1]] + [f"250 {words[-1]}"]))

    async def _helo_command(self, line: str) -> None:
        await self._do("helo", line, "250 sink.test")

    async def _starttls_command(self, line: str) -> None:
        reply = await self._do("starttls", line, "220 2.0.0 go ahead" if self.sink.tls else "502 5.5.1 no TLS here")
        if reply.startswith("220") and self.sink.tls:
            self._buffer.clear()
            await self._writer.start_tls(self.sink.tls)
            self.tls = True

    async def _auth_command(self, line: str) -> None:
        step = self.sink.step("auth", self, line)
        if step is not None:
            await self._act(step)
            return
        mechanism, _, initial = line[5:].partition(" ")
        if mechanism.upper() == "PLAIN":
            _, user, password = base64.b64decode(initial).decode().split("\0")
        else:
            user, password = await self._challenge("VXNlcm5hbWU6"), await self._challenge("UGFzc3dvcmQ6")
        offered = [name.upper() for name in self.sink.mechanisms]
        if mechanism.upper() in offered and self.sink.logins.get(user) == password:
            self.user = user
            await self._reply("235 2.7.0 welcome")
        else:
            await self._reply("535 5.7.8 bad login")

    async def _challenge(self, text: str) -> str:
        await self._reply(f"334 {text}")
        return base64.b64decode(await self._line()).decode()

    async def _mail_command(self, line: str) -> None:
        usual = "250 2.1.0 ok"
        if self.sink.logins and self.user is None:
            usual = "530 5.7.0 log in first"
        elif self._envelope.mail_from is not None:
            usual = "503 5.5.1 nested MAIL"
        reply = await self._do("mail", line, usual)
        if reply.startswith("2"):
            path, _, parameters = line[len("MAIL FROM:<") :].partition(">")
            self._envelope = _Envelope(path, parameters.split())

    async def _rcpt_command(self, line: str) -> None:
        reply = await self._do(
            "rcpt", line, "503 5.5.1 no MAIL" if self._envelope.mail_from is None else "250 2.1.5 ok"
        )
        if reply.startswith("2"):
            self._envelope.recipients.append(line[len("RCPT TO:<") :].partition(">")[0])

    async def _data_command(self, line: str) -> None:
        usual = "354 go ahead" if self._envelope.recipients else "554 5.5.1 no valid recipients"
        reply = await self._do("data", line, usual)
        if not reply.startswith("354"):
            return
        step = self.sink.step("content", self, "")
        if step is not None:
            await self._act(step)
            raise _Gone
        await self._content()

    async def _content(self) -> None:
        wire = await self._until_dot()
        self.transactions += 1
        envelope, self._envelope = self._envelope, _Envelope()
        if not envelope.recipients:
            await self._do("dot", "", "554 5.5.1 no valid recipients")
            return
        message = Received(
            envelope.mail_from or "",
            envelope.recipients,
            envelope.parameters,
            wire,
            self.number,
            self.tls,
            self.user,
        )
        self.sink.messages.append(message)
        await self.sink.changed()
        await self._do("dot", "", f"250 2.0.0 queued as {len(self.sink.messages)}", message)
        await self.sink.changed()

    async def _rset_command(self, line: str) -> None:
        reply = await self._do("rset", line, "250 2.0.0 ok")
        if reply.startswith("2"):
            self._envelope = _Envelope()

    async def _noop_command(self, line: str) -> None:
        await self._do("noop", line, "250 2.0.0 ok")

    async def _quit_command(self, line: str) -> None:
        await self._do("quit", line, "221 2.0.0 bye")
        raise _Gone

    async def _do(self, stage: str, line: str, usual: str, message: Received | None = None) -> str:
        """Answer as the script says, else as usual; the answer is noted in ``message`` before it is sent."""
        step = self.sink.step(stage, self, line)
        step = usual if step is None else step
        if message is not None and isinstance(step, str | Close | Slow | Later | Drip):
            message.answer = step if isinstance(step, str) else step.reply
        return await self._act(step)

    async def _act(self, step: Step) -> str:
        await self.sink.changed()
        match step:
            case str():
                await self._reply(step)
                return step
            case bytes():
                self._writer.write(step)
                await self._writer.drain()
                return ""
            case Slow():
                await asyncio.sleep(step.seconds)
                await self._reply(step.reply)
                return step.reply
            case Later():
                await step.event.wait()
                await self._reply(step.reply)
                return step.reply
            case Drip():
                for octet in step.reply.encode() + b"\r\n":
                    self._writer.write(bytes((octet,)))
                    await self._writer.drain()
                    await asyncio.sleep(step.seconds)
                return step.reply
            case Close():
                if step.reply:
                    await self._reply(step.reply)
                raise _Gone
            case Hang():
                while True:
                    await self._read()
                    self._buffer.clear()
            case Stall():
                cast(asyncio.Transport, self._writer.transport).pause_reading()
                await asyncio.Event().wait()
            case Vanish():
                plain = self._writer.get_extra_info("socket")
                plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)  # what it read is acknowledged
                plain.setsockopt(socket.IPPROTO_TCP, _TCP_REPAIR, 1)
                self._writer.transport.abort()
        raise _Gone

    async def _reply(self, reply: str) -> None:
        self._writer.write(reply.encode() + b"\r\n")
        await self._writer.drain()

    async def _line(self) -> str:
        while (end := self._buffer.find(b"\n")) < 0:
            await self._read()
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line.removesuffix(b"\r").decode("utf-8", "surrogateescape")

    async def _until_dot(self) -> bytes:
        """Up to CR LF . CR LF, whose first CR LF belongs to the content (RFC 5321 §4.1.1.4)."""
        searched = 0
        while not self._buffer.startswith(b".\r\n"):
            end = self._buffer.find(b"\r\n.\r\n", searched)
            if end >= 0:
                content = bytes(self._buffer[: end + 2])
                del self._buffer[: end + 5]
                return content
            searched = max(0, len(self._buffer) - 4)
            await self._read()
        del self._buffer[:3]
        return b""

    async def _read(self) -> None:
        data = await self._reader.read(_READ_SIZE)
        if not data:
            raise _Gone
        self._buffer += data
