"""One message between the 354 reply and the answer to its final dot.

Whatever is wrong with the content, the data are first read to their end (RFC 5321 §4.1.1.4), in bounds: a client that
is refused halfway would take the reply for something else, and what it still sends for commands.
"""

from __future__ import annotations

from errno import EDQUOT, ENOSPC

import structlog

from relay.bodies import Body, BodyWriter
from relay.core import reply
from relay.core.reply import Reply
from relay.core.wire import DataReader
from relay.smtp_limits import BareLf, Limits
from relay.smtp_stream import Over, Stream

log = structlog.get_logger()

#: What a refused message may bring, in multiples of the size limit, before its sender is cut off.
DRAIN_FACTOR = 2
#: Seconds it may take from its refusal on.
DRAIN_TIME = 300.0


class Reception:
    """Reads the data into ``writer`` and judges them as octets; what they mean is not looked at.

    Every reception ends with ``body`` (then the file, if there is one, is the caller's) or with ``discard()``.
    """

    def __init__(self, writer: BodyWriter, maximum: int, bare_lf: BareLf) -> None:
        self._writer = writer
        self._maximum = maximum
        self._bare_lf = bare_lf
        self._reader = DataReader()
        self._refusal: Reply | None = None

    @property
    def done(self) -> bool:
        """Whether the end of the data was seen: what follows are commands."""
        return self._reader.done

    @property
    def head(self) -> bytes:
        return self._writer.head

    @property
    def bare_lf(self) -> int:
        return self._reader.bare_lf

    async def read(self, stream: Stream, limits: Limits) -> None:
        """Take the data to their end, whatever is in them. Raises Over."""
        loop, reader = stream.loop, self._reader
        received, began, drain_until = 0, loop.time(), 0.0
        while not reader.done:
            chunk = await stream.chunk(limits.data_timeout)
            now = loop.time()
            received += len(chunk)
            elapsed = now - began
            if elapsed > limits.data_grace and received < elapsed * limits.data_rate:
                raise Over("data too slow", reply.TIMED_OUT)
            octets = reader.feed(chunk)
            if self._refusal is None:
                await self._keep(octets)
                drain_until = now + DRAIN_TIME
            elif received > DRAIN_FACTOR * self._maximum or now > drain_until:
                raise Over("endless message", self._refusal)
        stream.unread(reader.rest)

    async def body(self) -> Body | Reply:
        """The body, safe on disk or in memory; or why it is refused, and nothing is left of it."""
        reader = self._reader
        if self._refusal is None:
            if reader.nul:
                self._refusal = reply.NUL_IN_MESSAGE
            elif reader.bare_cr:
                self._refusal = reply.BARE_CR
            elif reader.bare_lf and self._bare_lf == "refuse":
                self._refusal = reply.BARE_LF
        if self._refusal is None:
            try:
                return await self._writer.close()
            except OSError as error:
                self._refusal = _storage_fault(error)
        self.discard()
        return self._refusal

    def discard(self) -> None:
        self._writer.discard()

    async def _keep(self, octets: bytes) -> None:
        writer = self._writer
        if writer.size + len(octets) > self._maximum:
            self._refusal = reply.MESSAGE_TOO_BIG
        elif writer.write(octets):
            try:
                await writer.flush()  # nothing is read meanwhile: the disk sets the pace
            except OSError as error:
                self._refusal = _storage_fault(error)
        if self._refusal is not None:
            writer.discard()


def _storage_fault(error: OSError) -> Reply:
    log.error("message body not written", error=str(error))
    return reply.INSUFFICIENT_STORAGE if error.errno in (ENOSPC, EDQUOT) else reply.INTERNAL_ERROR
