"""A sender and one message, for the tests of the SMTP client."""

from __future__ import annotations

import random
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from relay.core.model import Outcome
from relay.core.nexthop import NextHop
from relay.dns import Resolver
from relay.smtp_out import Content, Sender
from tests.dns_server import DnsServer
from tests.smtp_sink import SmtpSink

PREFIX = b"X-Visit-Id: 1\r\n"
BODY = b"From: a@ext.test\r\nSubject: hi\r\n\r\nhello\r\n"
MESSAGE = Content(PREFIX, len(BODY), BODY)


@asynccontextmanager
async def sending(dns: DnsServer | None = None, **options: Any) -> AsyncIterator[Sender]:
    """A sender with these options, closed in the end; without ``dns`` it can look nothing up."""
    # The system's authorities take 30 ms to load, and most tests verify no certificate.
    options.setdefault("verified", ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    resolver = Resolver([dns.address if dns else "127.0.0.1:9"], timeout=0.5, lifetime=1.5, rng=random.Random(1))
    sender = Sender("mx.track.test", resolver, **options)
    try:
        yield sender
    finally:
        await sender.close()


async def send(
    sender: Sender,
    to: SmtpSink | str,
    content: Content = MESSAGE,
    on_final_dot: Callable[[], None] | None = None,
    *,
    recipient: str = "sales@example.com",
) -> Outcome:
    """To a sink as next hop, or to the MX of a domain."""
    next_hop = None if isinstance(to, str) else NextHop(to.host, to.port, "opportunistic")
    domain = to if isinstance(to, str) else "example.com"
    return await sender.send(next_hop, domain, "SRS0=x@track.test", recipient, content, on_final_dot)
