"""A raw SMTP client: sends exactly the octets it is given and reads replies strictly (RFC 5321 §4.2)."""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
import struct
from dataclasses import dataclass
from typing import cast

from tests import streams

_LINE = re.compile(rb"([2-5][0-5][0-9])([ -])([\x20-\x7e]*)\r\n").fullmatch

#: Seconds for any reply. Reached only when a test fails.
PATIENCE = 10.0


@dataclass(frozen=True)
class Answer:
    """A whole reply: ``lines`` without code and line ends."""

    code: int
    lines: tuple[str, ...]

    @property
    def enhanced(self) -> str:
        """The enhanced status code, "" without one."""
        first = self.lines[0].split(" ")[0]
        return first if re.fullmatch(r"[245]\.\d{1,3}\.\d{1,3}", first) else ""

    @property
    def text(self) -> str:
        return "\n".join(self.lines)

    @property
    def short(self) -> str:
        """Code and enhanced code: ``250 2.1.0``."""
        return f"{self.code} {self.enhanced}".rstrip()


#: A sender as another forwarder writes one: its local part has more than 64 octets.
LONG_SENDER = f"SRS0=Hash=TT={'long-' * 12}domain.example=local@forwarder.example"
#: A header block, and lines behind it, in wire form.
HEAD = b"Subject: hi\r\n\r\n"


def lines(size: int) -> bytes:
    return (b"x" * 76 + b"\r\n") * (size // 78)


def pieces(octets: bytes, size: int) -> list[bytes]:
    return [octets[start : start + size] for start in range(0, len(octets), size)]


def bdat(octets: bytes, last: bool = False) -> bytes:
    """A chunk as it goes over the wire (RFC 3030 §2)."""
    return b"BDAT %d%s\r\n" % (len(octets), b" LAST" if last else b"") + octets


class SmtpClient:
    """One connection. Use as ``async with await SmtpClient.connect(port)``."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, port: int, host: str = "127.0.0.1", source: str | None = None) -> SmtpClient:
        """Connect, from the loopback address ``source`` if one is given; the greeting is not read."""
        local = (source, 0) if source else None
        return cls(*await asyncio.open_connection(host, port, local_addr=local))

    @classmethod
    async def hello(cls, port: int, name: str = "client.test", source: str | None = None) -> SmtpClient:
        """Connected, greeted, EHLO said."""
        client = await cls.connect(port, source=source)
        assert (await client.answer()).code == 220
        assert (await client.command(f"EHLO {name}")).code == 250
        return client

    async def __aenter__(self) -> SmtpClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except OSError:
            pass  # the server was faster

    async def send(self, octets: bytes) -> None:
        """Raises ConnectionResetError when the connection is known to be lost."""
        await streams.send(self.writer, octets)

    async def answer(self) -> Answer:
        """The next reply. Fails on anything that is not exactly one."""
        lines: list[str] = []
        code = None
        while True:
            async with asyncio.timeout(PATIENCE):
                raw = await self.reader.readuntil(b"\r\n")
            match = _LINE(raw)
            assert match is not None, f"not a reply line: {raw!r}"
            assert len(raw) <= 512
            assert code in (None, match[1]), "reply changes its code"
            code = match[1]
            lines.append(match[3].decode())
            if match[2] == b" ":
                return Answer(int(code), tuple(lines))

    async def command(self, line: str) -> Answer:
        await self.send(line.encode() + b"\r\n")
        return await self.answer()

    async def envelope(self, *recipients: str, sender: str = "<ann@ext.test>") -> None:
        """MAIL, and RCPT for each."""
        assert (await self.command(f"MAIL FROM:{sender}")).code == 250
        for recipient in recipients or ("<u1@track.test>",):
            assert (await self.command(f"RCPT TO:{recipient}")).code == 250

    async def start(self, *recipients: str, sender: str = "<ann@ext.test>") -> Answer:
        """MAIL, RCPT for each and DATA; the answer to DATA."""
        await self.envelope(*recipients, sender=sender)
        return await self.command("DATA")

    async def mail(self, wire: bytes, *recipients: str, sender: str = "<ann@ext.test>") -> Answer:
        """A whole transaction; ``wire`` is sent as it is and must bring its own final dot."""
        assert (await self.start(*recipients, sender=sender)).code == 354
        await self.send(wire)
        return await self.answer()

    async def chunk(self, octets: bytes, last: bool = False) -> Answer:
        """BDAT with these octets, and its answer."""
        await self.send(bdat(octets, last))
        return await self.answer()

    async def mail_in_chunks(self, *chunks: bytes, to: str = "<u1@track.test>") -> Answer:
        """A whole transaction whose message comes as these chunks, all sent at once; the first refusal or the 250."""
        await self.envelope(to)
        await self.send(b"".join(bdat(chunk, number == len(chunks)) for number, chunk in enumerate(chunks, 1)))
        answers = [await self.answer() for _ in chunks]
        return next((answer for answer in answers if answer.code >= 400), answers[-1])

    async def starttls(self, context: ssl.SSLContext, name: str = "mx.test") -> None:
        """STARTTLS and the handshake."""
        assert (await self.command("STARTTLS")).code == 220
        await self.writer.start_tls(context, server_hostname=name)

    def pause(self) -> None:
        """Read nothing until resume()."""
        cast(asyncio.Transport, self.writer.transport).pause_reading()

    def resume(self) -> None:
        cast(asyncio.Transport, self.writer.transport).resume_reading()

    def reset(self) -> None:
        """Vanish with a TCP reset."""
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    async def rest(self) -> bytes:
        """Everything until the server closes."""
        async with asyncio.timeout(PATIENCE):
            return await self.reader.read()

    async def at_end(self) -> bool:
        """Whether the server closes without another word."""
        try:
            return await self.rest() == b""
        except ConnectionResetError:
            return True
