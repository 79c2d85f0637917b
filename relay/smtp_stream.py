"""The octets of one SMTP connection: what aiosmtpd's protocol class does below its commands, done with bounds.

aiosmtpd (1.4.6) reads through a StreamReader line by line, re-arms a timer per command, reflects over its own class in
every ``__init__`` and cancels the running command when the client goes. Here a connection has one buffer of octets,
one deadline and one list of replies, and nothing is ever cancelled: whatever ends a session (end of input, a lost
connection, a deadline, the daemon's stop) is noted in ``_over`` and raised where the session next waits for input.
So a store verb that was begun always runs to its end.

Replies collect until the session needs more input, so that a group of pipelined commands is answered by one write
(RFC 2920 §3.2).
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import cast

from aiosmtpd.smtp import SMTP

from relay.core import reply
from relay.core.reply import Reply

#: Octets of a command line, CR LF included. RFC 5321 §4.5.3.1.4 says 512, and more for every extension.
LINE_LIMIT = 2048
#: Octets of an overlong line that are read in search of its end, before the session is ended.
SKIP_LIMIT = 1024 * 1024
#: Octets waiting to be taken, above which the socket is not read.
HIGH_WATER = 64 * 1024
#: Seconds that a client which we send away gets to read our last reply.
LINGER = 2.0
#: Seconds for the peer's part of closing TLS.
TLS_SHUTDOWN = 5.0

_NEVER = float("inf")


class Over(Exception):
    """The session ends: why, in a few words for the log, and the last reply if the client is to get one."""

    def __init__(self, reason: str, last: Reply | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.last = last


class Stream(SMTP):
    """Input with deadlines, output in groups, and the change to TLS. No commands."""

    transport: asyncio.Transport | None

    def __init__(self, loop: asyncio.AbstractEventLoop, write_timeout: float) -> None:
        # Past SMTP.__init__, which costs as much as a whole message does here.
        super(SMTP, self).__init__(None, loop=loop)  # type: ignore[arg-type]  # no StreamReader: asyncio allows it
        self.loop = loop
        self.transport = None
        self.tls: str | None = None
        self._write_timeout = write_timeout
        self._buffer = b""
        self._at = 0
        self._replies: list[bytes] = []
        self._waiter: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._over: Over | None = None
        self._dismissed: Over | None = None
        self._holding: asyncio.Future[None] | None = None
        self._held = False
        self._securing = False
        self._stopping = False
        self._deadline = _NEVER
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = _NEVER
        self._cut: asyncio.TimerHandle | None = None

    # What the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        rest = self._buffer
        self._buffer = rest[self._at :] + data if self._at < len(rest) else data
        self._at = 0
        if self._waiter is not None:
            self._wake()
        # Also where somebody waits: the event loop hands on what the socket has, megabytes, before he gets his turn.
        if len(self._buffer) > HIGH_WATER and not self._held:
            self._held = True
            assert self.transport is not None
            self.transport.pause_reading()

    def eof_received(self) -> bool:
        self._end(Over("closed by client"))
        return self.tls is None  # half closed: what was sent before is still answered. TLS knows no half

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        if self._cut is not None:
            self._cut.cancel()
        self.resume_writing()
        self._end(Over("connection lost" if error else "closed by client"))

    def pause_writing(self) -> None:
        self._writable = self.loop.create_future()

    def resume_writing(self) -> None:
        if self._writable is not None:
            self._writable.set_result(None)
            self._writable = None

    def stop(self) -> None:
        """Ask the session to end before its next command; a message that is being received may come to its end.

        Behind a handshake there is none, so nobody waits for its end.
        """
        self._stopping = True
        self._wake()
        if self._securing:
            self.abort()

    def dismiss(self, over: Over) -> None:
        """End the session where it next waits for its client; what it does for itself meanwhile is done to its end.

        Nothing more is read, or a client that sends faster than the disk writes would never be waited for. One that has
        not read its replies, or not ended its handshake, gets no last one: that could take minutes.
        """
        self._write_timeout = LINGER
        self._over = self._dismissed = over
        if self.transport is not None:
            self.transport.pause_reading()
        self._wake()
        if self._writable is not None or self._securing:
            self.abort()

    def abort(self) -> None:
        """Cut the connection."""
        if self.transport is not None:
            self.transport.abort()

    # Input

    async def line(self, timeout: float, in_message: bool = False) -> bytes:
        """The next command line, with its ending. ``timeout`` seconds for all of it. Raises Over.

        A line that is longer than LINE_LIMIT is read to its end and comes back cut, still too long. ``in_message``:
        it belongs to a message that may come to its end although the daemon stops.
        """
        deadline = _NEVER
        while (end := self._buffer.find(b"\n", self._at)) < 0:
            if self._stopping and not in_message:
                raise Over("daemon stopping", reply.SHUTTING_DOWN)
            if self._replies:
                await self.flush()
                continue  # meanwhile more may have come
            if deadline == _NEVER:
                deadline = self.loop.time() + timeout
            if len(self._buffer) - self._at > LINE_LIMIT:
                return await self._skip_line(deadline)
            await self._wait(deadline)
        if self._stopping and not in_message:
            raise Over("daemon stopping", reply.SHUTTING_DOWN)
        start, self._at = self._at, end + 1
        return self._buffer[start : self._at]

    async def chunk(self, timeout: float, most: int | None = None) -> bytes:
        """The octets that have come, at least one, ``most`` at most; waits up to ``timeout`` seconds. Raises Over."""
        while self._at >= len(self._buffer):
            if self._replies:  # who waits for these sends nothing
                await self.flush()
            else:
                await self._wait(self.loop.time() + timeout)
        if most is not None and most < len(self._buffer) - self._at:
            start, self._at = self._at, self._at + most
            return self._buffer[start : self._at]
        chunk = self._buffer[self._at :] if self._at else self._buffer
        self._buffer, self._at = b"", 0
        return chunk

    def unread(self, octets: bytes) -> None:
        """Give back the end of the last chunk."""
        self._buffer, self._at = octets + self._buffer[self._at :], 0

    def waiting(self) -> bool:
        """Whether the client has sent more than was taken."""
        return self._at < len(self._buffer)

    # Output

    def send(self, octets: bytes) -> None:
        """Add to the replies that the next flush sends."""
        self._replies.append(octets)

    async def flush(self) -> None:
        """Write the replies; wait while the client doesn't read. Raises Over when it is gone."""
        octets = self._replies[0] if len(self._replies) == 1 else b"".join(self._replies)
        self._replies.clear()
        if self.transport is None:
            raise self._over or Over("connection lost")
        self.transport.write(octets)
        if self._writable is not None:
            await self._drain(self._writable)

    async def hold(self, until: float) -> None:
        """Send the replies so far, and then wait until loop time ``until``: the next one is late. Raises Over."""
        if self._replies:
            await self.flush()
        while self.loop.time() < until:
            if self._stopping:
                raise Over("daemon stopping", reply.SHUTTING_DOWN)
            if self._over is not None and (self.transport is None or self._dismissed is not None):
                raise self._over  # a client that only sent its end still reads
            self._holding = self.loop.create_future()
            timer = self.loop.call_at(until, self._release)
            try:
                await self._holding
            finally:
                self._holding = None
                timer.cancel()

    async def secure(self, context: ssl.SSLContext, go_ahead: bytes, timeout: float) -> None:
        """Send ``go_ahead``, then do the handshake (RFC 3207). Raises Over when it fails."""
        if self._replies:
            await self.flush()
        transport = self.transport
        if transport is None or self.waiting():
            raise Over("plain text after STARTTLS", reply.EARLY_TLS)
        # Nothing is awaited from here until start_tls() has paused the socket: no plain text can come in between.
        transport.write(go_ahead)
        if transport.is_closing():  # the client is gone: start_tls() would keep what it makes for all of ``timeout``
            raise self._over or Over("connection lost")
        self._securing = True
        try:
            secured = await self.loop.start_tls(
                transport,
                self,
                context,
                server_side=True,
                ssl_handshake_timeout=timeout,
                ssl_shutdown_timeout=TLS_SHUTDOWN,
            )
        except OSError as error:
            self.transport = None  # it is closed, and nobody will tell us
            reason = Over(f"TLS handshake failed: {getattr(error, 'reason', None) or type(error).__name__}")
            raise (self._dismissed or reason) from None
        finally:
            self._securing = False
        if secured is None or secured.is_closing():  # the connection was closed meanwhile
            self.transport = None
            raise self._dismissed or Over("closed during the TLS handshake")
        self.transport = secured
        version, cipher = secured.get_extra_info("ssl_object").version(), secured.get_extra_info("cipher")
        self.tls = f"{version} {cipher[0]}"

    async def close(self, over: Over, linger: bool) -> None:
        """Send what is left and close. With ``linger``, wait a little for the client to read and to close first:

        closing a socket that has unread input resets the connection, and the reset overtakes our last reply.
        """
        try:
            if self.transport is None:
                return
            self.transport.set_write_buffer_limits(high=0)  # so that flush() returns when all is written
            if over.last is not None:
                self.send(over.last.wire)
            if self._replies:
                await self.flush()
            if linger and self._over is None:
                await self._linger()
        except Over:
            pass  # gone already
        finally:
            if self._timer is not None:
                self._timer.cancel()
            if self.transport is not None:
                if self.transport.get_write_buffer_size():
                    self.transport.abort()
                else:
                    self.transport.close()
                    if self.tls is not None:
                        # When the peer has ended TLS, its transport waits without end until all is read that was
                        # written before, which it does not count in its buffer.
                        self._cut = self.loop.call_later(TLS_SHUTDOWN, self.abort)

    # Within

    async def _wait(self, deadline: float) -> None:
        """Until octets come, or something else happens. Raises Over when there will be no more."""
        if self._over is not None:
            raise self._over
        if self._held:
            self._held = False
            assert self.transport is not None
            self.transport.resume_reading()
        self._set_deadline(deadline)
        self._waiter = self.loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None
            self._deadline = _NEVER

    async def _drain(self, writable: asyncio.Future[None]) -> None:
        self._set_deadline(self.loop.time() + self._write_timeout)
        try:
            await writable
        finally:
            self._deadline = _NEVER
        if self.transport is None:
            raise self._over or Over("connection lost")

    async def _skip_line(self, deadline: float) -> bytes:
        start = self._buffer[self._at : self._at + LINE_LIMIT + 1]
        skipped = 0
        while (end := self._buffer.find(b"\n", self._at)) < 0:
            skipped += len(self._buffer) - self._at
            if skipped > SKIP_LIMIT:
                raise Over("endless line", reply.LINE_TOO_LONG)
            self._buffer, self._at = b"", 0
            await self._wait(deadline)
        self._at = end + 1
        return start

    async def _linger(self) -> None:
        transport = self.transport
        if transport is not None and transport.can_write_eof():
            with contextlib.suppress(OSError):  # the client is gone already
                transport.write_eof()
        deadline = self.loop.time() + LINGER
        while True:
            self._buffer, self._at = b"", 0
            await self._wait(deadline)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        self._release()

    def _release(self) -> None:
        if self._holding is not None and not self._holding.done():
            self._holding.set_result(None)

    def _end(self, over: Over) -> None:
        if self._over is None:
            self._over = over
        self._wake()

    def _set_deadline(self, deadline: float) -> None:
        """One timer serves the whole session: it is moved only when it would ring too late."""
        self._deadline = deadline
        if deadline < self._timer_at:
            if self._timer is not None:
                self._timer.cancel()
            self._timer_at = deadline
            self._timer = self.loop.call_at(deadline, self._ring)

    def _ring(self) -> None:
        self._timer = None
        self._timer_at = _NEVER
        if self._deadline == _NEVER:
            return  # busy; the next wait sets a timer
        if self.loop.time() < self._deadline:
            self._set_deadline(self._deadline)
        elif self._waiter is None:
            self._end(Over("client does not read"))
            self.abort()
        else:
            self._end(Over("timeout", reply.TIMED_OUT))
