"""What a next hop is sent: our fields, and behind them the bytes that were received."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from relay.bodies import INLINE, Bodies
from relay.core.message import loop_token, received_field, transmission_type, visit_fields, without
from relay.smtp_out import Content
from relay.store.messages import Job


async def content_of(job: Job, bodies: Bodies, hostname: str, loop_key: bytes) -> Content:
    """Raises OSError where the file of the message's bytes can't be read, LookupError where there are none any more."""
    prefix = _prefix(job, hostname, loop_key)
    if job.data is not None:
        if not job.cut:
            return Content(_before(prefix, job.data), job.stored_size, job.data)
        rest = without(job.data, job.cut)
        return Content(_mbox_line(job.data, job) + _before(prefix, rest), job.stored_size, rest)
    if job.file is None:
        raise LookupError("the message's bytes were removed by retention")
    file = job.file
    if not job.cut:
        first = await asyncio.to_thread(bodies.read, file, 1)
        return Content(_before(prefix, first), job.stored_size, lambda: bodies.chunks(file, size=job.stored_size))
    head = await asyncio.to_thread(bodies.read, file, INLINE)

    async def chunks() -> AsyncIterator[bytes]:
        yield without(head, job.cut)
        async for chunk in bodies.chunks(file, INLINE, job.stored_size):
            yield chunk

    return Content(_mbox_line(head, job) + _before(prefix, without(head, job.cut)), job.stored_size, chunks)


def _prefix(job: Job, hostname: str, loop_key: bytes) -> bytes:
    message_id = str(job.message_id)
    received = received_field(
        helo=job.helo,
        ip=job.ip,
        host=hostname,
        protocol=transmission_type(esmtp=job.esmtp, encrypted=job.tls is not None),
        message_id=message_id,
        now=job.received_at,
        recipient=job.recipient,
    )
    token = loop_token(message_id, loop_key)
    return received + f"X-Visit-Relay: {token}\r\n".encode() + visit_fields(job.visit, job.source)


def _mbox_line(head: bytes, job: Job) -> bytes:
    """The mbox "From " line that was cut from the beginning, to go before our fields.

    Behind them it would be no field and no fold, and the next hop would take everything from it on as the body.
    """
    start, end = job.cut[0]
    return head[:end] if start == 0 and head[:end].lstrip(b">").startswith(b"From ") else b""


def _before(prefix: bytes, content: bytes) -> bytes:
    """Our fields as they stand before ``content``. One that begins with white space has no header block: it is body.

    Without the empty line its first line would be read as the continuation of our last field.
    """
    return prefix + b"\r\n" if content[:1] in (b" ", b"\t") else prefix
