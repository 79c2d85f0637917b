"""One message between the 354 reply and the answer to its final dot, or between its first BDAT and the last.

Whatever is wrong with the content, the data are first read to their end (RFC 5321 §4.1.1.4), in bounds: a client that
is refused halfway would take the reply for something else, and what it still sends for commands.
"""

from __future__ import annotations

import asyncio
from errno import EDQUOT, ENOSPC

import structlog

from relay.bodies import Bodies, Body
from relay.core import reply
from relay.core.reply import Reply
from relay.core.wire import ChunkReader, DataReader, Unstuffer, unstuff
from relay.smtp_limits import SETTLED, BareLf, Limits
from relay.smtp_stream import Over, Stream

log = structlog.get_logger()

#: Doubled dots and the CRs given to bare LFs may add this part of the size limit to it: as much as both in every line
#: of ordinary length. Without a bound a message of nothing but dots and LFs would take twice the disk.
WIRE_ROOM = 32
#: What a refused message may bring, in multiples of the size limit, before its sender is cut off.
DRAIN_FACTOR = 2
#: Seconds it may take from the first octets behind its refusal on.
DRAIN_TIME = 300.0


class Reception:
    """Takes octets of a message into a body of ``bodies`` and judges them; what they mean is not looked at.

    ``maximum``: octets of the message as RFC 1870 §5 counts it, without doubled dots. Its wire form may have some more.

    Every reception ends with ``body`` (then the file, if there is one, is the caller's) or with ``discard()``.
    ``refusal``: why nothing of the message is kept, as far as that is known by now.
    """

    def __init__(
        self, bodies: Bodies, maximum: int, bare_lf: BareLf, limits: Limits, reader: DataReader | ChunkReader
    ) -> None:
        self.refusal: Reply | None = None
        self._bodies = bodies
        self._writer = bodies.writer()
        self._maximum = maximum
        self._wire_maximum = maximum + maximum // WIRE_ROOM
        self._policy = bare_lf
        self._limits = limits
        self._judge = reader
        self._began = asyncio.get_running_loop().time()
        self._received = 0
        self._waited = 0.0
        self._drain_until: float | None = None

    @property
    def head(self) -> bytes:
        return self._writer.head

    @property
    def size(self) -> int:
        """Octets kept so far, or until the message was refused."""
        return self._writer.size

    @property
    def bare_lf(self) -> int:
        return self._judge.bare_lf

    def keeps_up(self, now: float) -> bool:
        """Whether the message has come at ``data_rate`` at least until loop time ``now``, but for its first moment.

        Stricter than what ends a session: there is no grace, pauses between chunks count, what is refused is no
        message, and where no rate is demanded none is kept.
        """
        rate = self._limits.data_rate
        return self.refusal is None and rate > 0 and self._received >= rate * (now - self._began - SETTLED)

    async def body(self) -> Body | Reply:
        """The body, safe on disk or in memory; or why it is refused, and nothing is left of it."""
        reader = self._judge
        if self.refusal is None:
            if reader.nul:
                self.refusal = reply.NUL_IN_MESSAGE
            elif reader.bare_cr:
                self.refusal = reply.BARE_CR
            elif reader.bare_lf and self._policy == "refuse":
                self.refusal = reply.BARE_LF
        if self.refusal is None:
            try:
                return await self._writer.close()
            except OSError as error:
                self.refusal = _storage_fault(error)
        self.discard()
        return self.refusal

    def discard(self) -> None:
        self._writer.discard()

    async def _take(self, stream: Stream, most: int | None = None) -> int:
        """Take what has come, ``most`` octets at most; how many they were. Raises Over."""
        limits = self._limits
        began = stream.loop.time()
        chunk = await stream.chunk(limits.data_timeout, most)
        now = stream.loop.time()
        self._received += len(chunk)
        self._waited += now - began
        if self._waited > limits.data_grace and self._received < self._waited * limits.data_rate:
            raise Over("data too slow", reply.TIMED_OUT)
        octets = self._judge.feed(chunk)
        if self.refusal is None:
            await self._keep(octets)
            return len(chunk)
        if self._drain_until is None:
            self._drain_until = now + DRAIN_TIME
        if self._received > DRAIN_FACTOR * self._maximum or now > self._drain_until:
            raise Over("endless message", self.refusal)
        return len(chunk)

    async def _keep(self, octets: bytes) -> None:
        writer = self._writer
        if writer.size + len(octets) > self._wire_maximum:
            self.refusal = reply.MESSAGE_TOO_BIG
        elif writer.write(octets):
            try:
                await writer.flush()  # nothing is read meanwhile: the disk sets the pace
            except OSError as error:
                self.refusal = _storage_fault(error)
        if self.refusal is not None:
            self.discard()


class DataReception(Reception):
    """What follows the 354 reply to DATA, up to its final dot."""

    def __init__(self, bodies: Bodies, maximum: int, bare_lf: BareLf, limits: Limits) -> None:
        self._reader = DataReader()
        super().__init__(bodies, maximum, bare_lf, limits, self._reader)

    @property
    def whole(self) -> bool:
        """Whether the end of the data was seen: what follows are commands."""
        return self._reader.done

    async def read(self, stream: Stream) -> None:
        """Take the data to their end, whatever is in them. Raises Over."""
        reader = self._reader
        try:
            while not reader.done:
                await self._take(stream)
        finally:  # also where what came with the dot could not be kept: the commands behind it are still to be answered
            if reader.done:
                stream.unread(reader.rest)

    async def body(self) -> Body | Reply:
        body = await super().body()
        if isinstance(body, Body) and body.size > self._maximum and await self._sent(body) > self._maximum:
            self.refusal = reply.MESSAGE_TOO_BIG
            self.discard()
            return self.refusal
        return body

    async def _sent(self, body: Body) -> int:
        """Octets of the message as its client counts them. Another pass over it, so only where it is at the limit."""
        if body.file is None:
            return len(unstuff(body.data or b"")) - self.bare_lf
        size, unstuffer = 0, Unstuffer()
        async for chunk in self._bodies.chunks(body.file):
            size += len(unstuffer.feed(chunk))
        return size + len(unstuffer.flush()) - self.bare_lf


class ChunkReception(Reception):
    """The chunks of one message (BDAT, RFC 3030). With a ``refusal`` they are read and thrown away."""

    def __init__(self, bodies: Bodies, maximum: int, bare_lf: BareLf, limits: Limits, refusal: Reply | None) -> None:
        self._reader = ChunkReader()
        super().__init__(bodies, maximum, bare_lf, limits, self._reader)
        self.refusal = refusal
        self._left = 0

    @property
    def whole(self) -> bool:
        """Whether the chunk was read to its end: what follows are commands."""
        return not self._left

    async def read(self, stream: Stream, size: int) -> None:
        """Take a chunk of ``size`` octets to its end, whatever is in it. Raises Over."""
        if self.refusal is None and self._received + size > self._maximum:
            self.refusal = reply.MESSAGE_TOO_BIG
            self.discard()
        if self.refusal is not None and self._received + size > DRAIN_FACTOR * self._maximum:
            raise Over("endless message", self.refusal)
        self._left = size
        while self._left:
            self._left -= await self._take(stream, self._left)

    async def body(self) -> Body | Reply:
        if self.refusal is None:
            await self._keep(self._reader.finish())
        return await super().body()


def _storage_fault(error: OSError) -> Reply:
    log.error("message body not written", error=str(error))
    return reply.INSUFFICIENT_STORAGE if error.errno in (ENOSPC, EDQUOT) else reply.INTERNAL_ERROR
