"""One SMTP session that is ready for mail, and the transaction: MAIL, RCPT, DATA, content, dot.

With PIPELINING (RFC 2920) a transaction on a kept session costs two round trips: the envelope with DATA, the content
with the dot. What the next hop announces never changes the content: the bytes go out as they are stored.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass
from typing import NamedTuple

from relay.core.outcome import Stage, is_too_large
from relay.smtp_out.connection import Connection, NoReply
from relay.smtp_out.replies import Reply, printable

#: What becomes of an address beyond ASCII where the next hop takes none.
NO_SMTPUTF8 = "the next hop does not announce SMTPUTF8, which an address with letters outside ASCII needs"
#: Octets up to which prefix, content and dot are joined into one write.
_ONE_WRITE = 131072


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds. From ``mail`` on the minima of RFC 5321 §4.5.3.2; ``data_block`` is for every 64 KiB or less to move.

    The greeting gets less than the RFC's five minutes: other hosts of the domain wait behind it. ``reset`` is for
    tidying up after a refusal, when the outcome is already known.
    """

    connect: float = 30.0
    greeting: float = 120.0
    ehlo: float = 120.0
    tls: float = 60.0
    auth: float = 120.0
    mail: float = 300.0
    rcpt: float = 300.0
    data: float = 120.0
    data_block: float = 180.0
    final: float = 600.0
    reset: float = 20.0


@dataclass(frozen=True, slots=True)
class Content:
    """What follows DATA, in wire form: CR LF lines, dot-stuffed (RFC 5321 §4.5.2), without the terminating dot.

    ``prefix``: header fields to go before the stored message, ending in CR LF, or empty.
    ``size``: octets of the stored message; with the prefix it is announced as SIZE (RFC 1870; an estimate will do).
    ``chunks``: the stored message, or a function that opens it for reading; called at most once per attempt.
    """

    prefix: bytes
    size: int
    chunks: bytes | Callable[[], AsyncIterator[bytes]]


@dataclass(frozen=True, slots=True)
class Extensions:
    """What an EHLO reply announces.

    ``size``: the most octets of a message, 0 where no limit is named, None where SIZE is not (RFC 1870 §4).
    """

    pipelining: bool = False
    size: int | None = None
    eightbitmime: bool = False
    starttls: bool = False
    smtputf8: bool = False
    auth: frozenset[str] = frozenset()


_BEFORE_RCPT = frozenset([Stage.DNS, Stage.CONNECT, Stage.GREETING, Stage.EHLO, Stage.TLS, Stage.AUTH, Stage.MAIL])


class Verdict(NamedTuple):
    """Where a transaction ended: ``code`` is None when no usable reply came. ``is_lasting``: see core/outcome.py."""

    stage: Stage
    code: int | None
    text: str
    is_lasting: bool = False

    @property
    def is_unanswered(self) -> bool:
        """The next hop has said nothing about this recipient: another host, or a fresh connection, may take it.

        421 speaks of the connection, to whatever command it is the answer (RFC 5321 §3.8, §4.2.1).
        """
        return self.stage in _BEFORE_RCPT or (self.stage is Stage.RCPT and self.code in (None, 421))


OnFinalDot = Callable[[], None]


class Session:
    """A session after EHLO, STARTTLS and AUTH. One transaction at a time.

    ``host`` names it for the operator. ``is_usable`` turns false when the next transaction needs another session.
    ``left``: messages that the next hop may still get by it. ``opened`` and ``kept_since`` are seconds of the loop's
    clock.
    """

    def __init__(
        self, connection: Connection, host: str, extensions: Extensions, timeouts: Timeouts, left: float = math.inf
    ) -> None:
        self.connection = connection
        self.host = host
        self.is_usable = True
        self.left = left
        self.opened = self.kept_since = asyncio.get_running_loop().time()
        self._extensions = extensions
        self._timeouts = timeouts
        self._stage = Stage.MAIL
        self._is_beyond = False  # the message is larger than the next hop announced

    async def transact(
        self, mail_from: str, recipient: str, content: Content, on_final_dot: OnFinalDot | None
    ) -> Verdict:
        """Send one message to one recipient. Raises nothing but CancelledError.

        ``mail_from`` is empty for the null reverse-path. ``on_final_dot`` is called before the first octet of the
        terminating dot may leave, so that a caller can note that the message may have arrived from here on.
        """
        self._stage = Stage.MAIL
        try:
            verdict = await self._transact(mail_from, recipient, content, on_final_dot)
        except NoReply as error:
            verdict = Verdict(self._stage, None, str(error))
        except Exception as error:
            text = f"{type(error).__name__}: {error}".encode(errors="replace")
            verdict = Verdict(self._stage, None, printable(text[:300]))
        except BaseException:
            self.discard()
            raise
        self.left -= 1
        is_understood = verdict.is_lasting if verdict.code is None else verdict.code != 421 and verdict.code // 100 != 3
        if not is_understood or not self.connection.is_quiet:
            self.is_usable = False
        return verdict

    def discard(self) -> None:
        self.is_usable = False
        self.connection.abort()

    def takes(self, address: str) -> bool:
        """Whether an envelope may hold it: beyond ASCII only where SMTPUTF8 is announced (RFC 6531 §3.1)."""
        return address.isascii() or self._extensions.smtputf8

    async def _transact(
        self, mail_from: str, recipient: str, content: Content, on_final_dot: OnFinalDot | None
    ) -> Verdict:
        if not self.takes(mail_from + recipient):
            return Verdict(Stage.MAIL, None, NO_SMTPUTF8, is_lasting=True)
        mail, rcpt = self._envelope(mail_from, recipient, content)
        refused = await (self._pipelined(mail, rcpt) if self._extensions.pipelining else self._stepwise(mail, rcpt))
        if refused is not None:
            return refused
        if not self.connection.is_quiet:
            # An answer too many: the next one we would read as that to the dot could be to something else.
            return Verdict(Stage.DATA, None, "the next hop sent a reply that nothing asked for")
        return await self._send(content, on_final_dot)

    def _envelope(self, mail_from: str, recipient: str, content: Content) -> tuple[bytes, bytes]:
        if not (mail_from + recipient).isprintable():
            raise ValueError("control characters in the envelope")
        mail = f"MAIL FROM:<{mail_from}>"
        most, size = self._extensions.size, len(content.prefix) + content.size
        self._is_beyond = 0 < (most or 0) < size
        if most is not None:
            mail += f" SIZE={size}"
        if self._extensions.eightbitmime:
            mail += " BODY=8BITMIME"
        if not (mail_from + recipient).isascii():
            mail += " SMTPUTF8"
        return f"{mail}\r\n".encode(), f"RCPT TO:<{recipient}>\r\n".encode()

    async def _pipelined(self, mail: bytes, rcpt: bytes) -> Verdict | None:
        """The envelope in one write; None when the content may follow."""
        self.connection.write(b"%b%bDATA\r\n" % (mail, rcpt))
        refused = await self._accepted(Stage.MAIL, self._timeouts.mail)
        if refused is not None:
            await self._tidy_up(refused, owed=2)
            return refused
        refused = await self._accepted(Stage.RCPT, self._timeouts.rcpt)
        if refused is not None:
            await self._tidy_up(refused, owed=1)
            return refused
        return await self._go_ahead()

    async def _stepwise(self, mail: bytes, rcpt: bytes) -> Verdict | None:
        """The envelope command by command; None when the content may follow."""
        self.connection.write(mail)
        refused = await self._accepted(Stage.MAIL, self._timeouts.mail)
        if refused is None:
            self.connection.write(rcpt)
            refused = await self._accepted(Stage.RCPT, self._timeouts.rcpt)
        if refused is not None:
            await self._tidy_up(refused, owed=0)
            return refused
        self.connection.write(b"DATA\r\n")
        return await self._go_ahead()

    async def _accepted(self, stage: Stage, timeout: float) -> Verdict | None:
        self._stage = stage
        reply = await self.connection.reply(timeout)
        if reply.code // 100 == 2:
            return None
        is_lasting = stage is Stage.MAIL and is_too_large(reply.code, reply.text, self._is_beyond)
        return Verdict(stage, reply.code, reply.text, is_lasting)

    async def _go_ahead(self) -> Verdict | None:
        self._stage = Stage.DATA
        reply = await self.connection.reply(self._timeouts.data)
        if reply.code == 354:
            return None
        refused = _verdict(Stage.DATA, reply)
        if reply.code < 400:
            self.is_usable = False  # neither go-ahead nor refusal: who knows what it waits for
        else:
            await self._tidy_up(refused, owed=0)
        return refused

    async def _tidy_up(self, refused: Verdict, owed: int) -> None:
        """Bring the session back to where the next MAIL may come, or mark it unusable.

        ``owed``: replies to pipelined commands that are still to come, the last of them to DATA. A next hop that
        says 354 although it refused the recipient gets a lone dot (RFC 2920 §3.1); what it answers to that changes
        nothing for the recipient.
        """
        if refused.code == 421 or (refused.code or 0) < 400:
            self.is_usable = False
            return
        try:
            for left in range(owed, 0, -1):
                reply = await self.connection.reply(self._timeouts.reset)
                if left == 1 and reply.code == 354:
                    self.connection.write(b".\r\n")
                    reply = await self.connection.reply(self._timeouts.reset)
                if reply.code == 421:
                    self.is_usable = False
                    return
            self.connection.write(b"RSET\r\n")
            if (await self.connection.reply(self._timeouts.reset)).code // 100 != 2:
                self.is_usable = False
        except NoReply:
            self.is_usable = False

    async def _send(self, content: Content, on_final_dot: OnFinalDot | None) -> Verdict:
        connection, timeout, chunks = self.connection, self._timeouts.data_block, content.chunks
        self._stage = Stage.CONTENT
        if isinstance(chunks, bytes) and len(chunks) <= _ONE_WRITE:
            data = b"%b%b%b" % (content.prefix, chunks, _ending(chunks or content.prefix))
        else:
            data = _ending(await self._stream(content))
        await connection.drain(timeout)  # raises if the connection was lost: still before the dot
        if connection.has_reply:
            self.is_usable = False  # it has answered without having seen the dot, so it is not ready for a command
            return _verdict(Stage.CONTENT, await connection.reply(timeout))
        if on_final_dot is not None:
            on_final_dot()
        self._stage = Stage.FINAL
        connection.write(data)
        return _verdict(Stage.FINAL, await connection.reply(self._timeouts.final))

    async def _stream(self, content: Content) -> bytes:
        """Send everything but the dot, never holding more than a chunk and the transport's buffer.

        Stops when the next hop answers before the end. Returns the last two octets that were sent.
        """
        connection, timeout = self.connection, self._timeouts.data_block
        last = b""
        blocks = _blocks(content)
        try:
            async for block in blocks:
                connection.write(block)
                last = (last + block[-2:])[-2:]
                await connection.drain(timeout)
                if connection.has_reply:
                    return last
            await connection.flush(timeout)  # so that a loss up to here is known to be before the dot
        finally:
            await blocks.aclose()
        return last


async def _blocks(content: Content) -> AsyncGenerator[bytes, None]:
    if content.prefix:
        yield content.prefix
    if isinstance(content.chunks, bytes):
        yield content.chunks
        return
    source = content.chunks()
    try:
        async for chunk in source:
            yield chunk
    finally:
        if isinstance(source, AsyncGenerator):
            await source.aclose()


def _ending(last: bytes) -> bytes:
    """The dot, after the CR LF that the content may lack at its end."""
    return b".\r\n" if last.endswith(b"\r\n") else b"\r\n.\r\n"


def _verdict(stage: Stage, reply: Reply) -> Verdict:
    return Verdict(stage, reply.code, reply.text)
