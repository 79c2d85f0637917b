"""One TCP connection to a next hop: bytes out with back-pressure, replies in with time limits."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
from collections import deque
from collections.abc import Callable
from typing import cast

from relay.smtp_out.replies import Reply, ReplyError, ReplyParser, printable

#: Replies that may wait to be read; three commands at most are sent at once.
MAX_REPLIES = 16
#: Seconds that a next hop gets to answer QUIT before the connection is cut.
QUIT_TIME = 2.0
#: Seconds of silence after which the system asks the next hop's whether there still is this connection, and between two
#: such questions. One that was cut off from power and is back says no: without them its answer would be waited for to
#: the end of the time limit. So many may stay unanswered that no limit of RFC 5321 §4.5.3.2 is cut short.
KEEPALIVE_AFTER = 60
KEEPALIVE_EVERY = 30
KEEPALIVE_UNANSWERED = 20
#: Octets that a next hop must take in the time of a block (RFC 5321 §4.5.3.2.5), or all that waits where that is less.
#: What is written at once may be more.
BLOCK = 65536


class NoReply(Exception):
    """No further reply will come: the connection is lost, the time is up, or what came is no reply."""


class TlsError(Exception):
    """The TLS handshake failed; the connection is gone."""


class Connection(asyncio.Protocol):
    """Reads replies as they come, so that an answer never waits behind a blocked write.

    While ``is_idle``, whatever the next hop says or does ends that state and calls ``on_idle_event``. The connection
    is in ``registry`` while it is open, and ``closed`` is done when it no longer is.
    """

    def __init__(self, registry: set[Connection]) -> None:
        self._loop = asyncio.get_running_loop()
        self.is_idle = False
        self.on_idle_event: Callable[[], None] | None = None
        self.closed: asyncio.Future[None] = self._loop.create_future()
        self._registry = registry
        self._transport: asyncio.Transport  # from connection_made on, before which nobody has this object
        self._plain: asyncio.Transport  # the same, or what is below TLS
        self._parser = ReplyParser()
        self._replies: deque[Reply] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle  # of who waits
        self._failure: str | None = None
        self._paused = False
        self._quitting = False

    @property
    def is_quiet(self) -> bool:
        """Nothing has arrived that nobody has read yet, and the connection is not known to be lost."""
        return not self._replies and self._failure is None and self._parser.is_between_replies

    @property
    def has_reply(self) -> bool:
        return bool(self._replies)

    # asyncio calls these

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = self._plain = cast(asyncio.Transport, transport)
        self._registry.add(self)
        plain = transport.get_extra_info("socket")
        if plain is not None and hasattr(socket, "TCP_KEEPIDLE"):  # else its questions would begin after two hours
            with contextlib.suppress(OSError):  # it is lost already, as we are told in a moment
                _keep_alive(plain)

    def data_received(self, data: bytes) -> None:
        if self._quitting:  # 221, or whatever else: we are done
            if not self._transport.is_closing():
                self._transport.close()
            return
        try:
            self._parser.feed(data, self._replies)
            if len(self._replies) > MAX_REPLIES:
                raise ReplyError("more replies than commands")
        except ReplyError as error:
            self._fail(str(error))
            self.abort()
        if self.is_idle:
            self._tell_idle_event()
        elif self._replies:
            self._wake()

    def eof_received(self) -> None:
        # Not left to connection_lost: that comes only when everything that waits to be sent has been sent.
        self._fail("the next hop closed the connection")
        self._tell_idle_event()

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail("the next hop closed the connection" if exc is None else reason(exc))
        self.abort()  # a TLS transport warns when it is collected without having been closed by us
        self._tell_idle_event()
        self._tell_closed()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._wake()

    # the session calls these

    def write(self, data: bytes) -> None:
        """Send ``data``; nothing happens when the connection is lost, the next read or drain says so."""
        if self._failure is None:
            self._transport.write(data)

    async def reply(self, timeout: float) -> Reply:
        """The next reply, within ``timeout`` seconds. :raises NoReply: there will be none."""
        while not self._replies:
            await self._wait(timeout)
        return self._replies.popleft()

    async def drain(self, timeout: float) -> None:
        """Wait until more may be written, or a reply is there.

        :raises NoReply: the connection is lost, or did not take a BLOCK in ``timeout`` seconds.
        """
        while not self._replies and (self._paused or self._failure is not None):
            await self._wait(timeout, self._unsent)

    async def flush(self, timeout: float) -> None:
        """``drain`` until the operating system has everything that was written."""
        self._limit(1)  # not 0: TLS transports then pause when they are empty
        try:
            await self.drain(timeout)
        finally:
            self._limit(None)

    @property
    def encryption(self) -> str | None:
        """The version of TLS that is spoken ("TLSv1.3"); None in clear."""
        spoken = self._transport.get_extra_info("ssl_object")
        return None if spoken is None else spoken.version()

    async def start_tls(self, context: ssl.SSLContext, server_name: str, timeout: float) -> None:
        """Upgrade to TLS. On failure the connection is gone.

        What arrived in clear before the handshake must never be read as an answer given inside TLS (RFC 3207 §4.2),
        so nothing may have arrived.

        :raises TlsError: with the reason.
        """
        upgraded: asyncio.Transport | None = None
        try:
            if not self.is_quiet:
                raise TlsError("the next hop sent data in clear before the TLS handshake")
            upgraded = await self._loop.start_tls(
                self._transport, self, context, server_hostname=server_name, ssl_handshake_timeout=timeout
            )
            if upgraded is None or upgraded.is_closing():  # we cut it ourselves
                upgraded = None
                raise TlsError(self._failure or "the connection was closed during the handshake")
            self._transport = upgraded
        except (OSError, ValueError) as error:  # ssl.SSLError is an OSError; ValueError: no possible name for SNI
            raise TlsError(f"handshake: {reason(error)}") from None
        finally:
            if self._transport is not upgraded:
                # asyncio does not tell a protocol that its connection was lost during the handshake.
                self.abort()
                self._tell_closed()

    def quit(self) -> None:
        """Say QUIT and close when the next hop answers or closes, at the latest after ``QUIT_TIME``."""
        if self._failure is not None:
            return self.abort()
        self._quitting = True
        self._transport.write(b"QUIT\r\n")
        self._loop.call_later(QUIT_TIME, self.abort)

    def abort(self) -> None:
        """Cut the connection without a word. May be called at any time, also twice."""
        self._fail("the connection was cut")
        self._transport.abort()

    def disown(self) -> None:
        """Nobody waits for this connection. uvloop closes one that is made just then, and tells it nothing."""
        if self in self._registry:
            self.abort()
            self._tell_closed()

    def _limit(self, high: int | None) -> None:
        if self._failure is None:  # else the transport takes no call any more
            self._transport.set_write_buffer_limits(high)

    def _unsent(self) -> int:
        """Octets that were written and that the operating system has not taken yet."""
        above = 0 if self._plain is self._transport else self._transport.get_write_buffer_size()
        return above + self._plain.get_write_buffer_size()

    async def _wait(self, timeout: float, left: Callable[[], int] = int) -> None:
        """Until something happens; the caller looks what it was. Where octets are ``left`` that may be that they go."""
        if self._failure is not None:
            raise NoReply(self._failure)
        self._waiter = waiter = self._loop.create_future()
        self._timer = self._loop.call_later(timeout, self._expire, timeout, left, left())
        try:
            await waiter
        finally:
            self._timer.cancel()
            self._waiter = None

    def _expire(self, timeout: float, left: Callable[[], int], before: int) -> None:
        now = left()
        if now > before - BLOCK:
            self._fail(f"no answer in {timeout:g} s")
        else:
            self._timer = self._loop.call_later(timeout, self._expire, timeout, left, now)

    def _fail(self, reason: str) -> None:
        """The first reason stands; replies that arrived before it can still be read."""
        if self._failure is None:
            self._failure = reason
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _tell_idle_event(self) -> None:
        if self.is_idle and self.on_idle_event is not None:
            self.is_idle = False
            self.on_idle_event()

    def _tell_closed(self) -> None:
        self._registry.discard(self)
        self.on_idle_event = None  # breaks the circle with the session
        if not self.closed.done():
            self.closed.set_result(None)


def _keep_alive(plain: socket.socket) -> None:
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_AFTER)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_EVERY)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_UNANSWERED)
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def reason(error: BaseException) -> str:
    """An exception as an operator reads it: "Connection refused", or what the TLS library says of a certificate."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate not trusted: {printable(error.verify_message.encode())}"
    if isinstance(error, ssl.SSLError):
        return error.reason or type(error).__name__
    if isinstance(error, OSError) and error.errno is not None:
        return os.strerror(error.errno)
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
