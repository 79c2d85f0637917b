"""The start with a long queue: how soon the daemon serves, and that its memory does not grow with what waits.

The queue is written by the store's own verb, as intake does it: letters of 4 KiB that are to be forwarded, read and
posted. The next hop and the webhook are closed ports, so all of it goes on waiting.
"""

from __future__ import annotations

import asyncio
import hashlib
import socket
import time
from pathlib import Path

from benchmarks.processes import Watch, wait_until
from benchmarks.relay import Relay
from benchmarks.report import Report
from relay.core.address import lookup_keys, parse
from relay.core.wire import stuff
from relay.store import messages
from relay.store.engine import Tx
from relay.store.incoming import Incoming, Recipient
from relay.store.messages import Evidence
from relay.store.store import DATABASE, Store

#: Letters that wait, and a queue to compare with.
QUEUED, FEW = 100_000, 1_000
#: Seconds until the daemon serves, by the goal, and octets of memory (PSS) by which the long queue may cost more.
GOAL = 5.0
GROWTH = 64 << 20
#: Seconds that the daemon is watched once it serves: it has claimed and read what it has room for.
WATCHED = 10.0
DAY = 86_400.0
#: Letters written in one transaction.
CHUNK = 1000


def measure(report: Report, directory: Path, queued: int = QUEUED) -> None:
    """Both queues, one after the other, and the goals."""
    report.line()
    report.line(f"start · {queued} letters wait")
    peaks = {}
    for count in (FEW, queued):
        seconds, peaks[count] = _start(directory / f"start-{count}", count)
        report.line(f"  {count} queued: serves after {seconds:.1f} s, {peaks[count] / 1e6:.0f} MB at the peak")
        report.figures[f"start_{count}"] = {"seconds": seconds, "peak": peaks[count]}
    report.judge(f"the start with {queued} letters: within {GOAL:.0f} s", seconds <= GOAL, f"{seconds:.1f} s")
    growth = peaks[queued] - peaks[FEW]
    report.judge(
        f"memory does not grow with the queue: at most {GROWTH >> 20} MiB more than with {FEW}",
        growth <= GROWTH,
        f"{growth / 1e6:.0f} MB",
    )


def _start(root: Path, count: int) -> tuple[float, int]:
    """Seconds until the daemon serves with so many letters in its queue, and the peak of its memory in octets."""
    relay = Relay(root, _closed_port(), _closed_port())
    with relay:
        pass  # it makes the database and declares the site
    asyncio.run(_fill(root / "data" / DATABASE, count))
    began = time.monotonic()
    with relay:
        seconds = time.monotonic() - began
        with Watch(relay.pid, step=0.2) as watch:
            wait_until(lambda: False, WATCHED, step=1.0)
    return seconds, watch.peak


async def _fill(path: Path, count: int) -> None:
    store = Store(path)
    await store.open()
    try:
        await fill(store, count, "track.test", time.time())
    finally:
        await store.close()


async def fill(store: Store, count: int, domain: str, now: float) -> None:
    """Accept ``count`` letters for plus addresses of the target sales at ``domain``, all due ``now``."""
    for first in range(0, count, CHUNK):
        numbers = range(first, min(first + CHUNK, count))
        given = [(_letter(number, now), await _recipient(store, number, domain)) for number in numbers]
        await store.write(lambda tx: _accept(tx, given, now))  # noqa: B023


def _accept(tx: Tx, given: list[tuple[Incoming, Recipient]], now: float) -> None:
    for incoming, recipient in given:
        messages.accept(tx, incoming, [recipient], claim=None, expires_at=now + 5 * DAY, evidence=Evidence(DAY))


async def _recipient(store: Store, number: int, domain: str) -> Recipient:
    address = f"sales+{number + 1}@{domain}"
    found = await store.routes.find(lookup_keys(parse(address)))
    assert found is not None
    route, tag = found
    return Recipient(address, route, tag, route.real_address, route.next_hop, "next.test:25")


def _letter(number: int, now: float) -> Incoming:
    sender = f"ann{number}@customer.test"
    head = f"From: {sender}\r\nSubject: letter {number}\r\nMessage-ID: <{number}@customer.test>\r\n\r\n"
    data = stuff(head.encode() + b"A line of text that is not so very long.\r\n" * 96)
    return Incoming(
        received_at=now,
        written_at=now,
        mail_from=sender,
        sender=sender,
        subject=f"letter {number}",
        message_id=f"{number}@customer.test",
        in_reply_to=None,
        references=(),
        size=len(data),
        stored_size=len(data),
        data=data,
        file=None,
        cut=(),
        digest=hashlib.sha256(data).digest(),
        ip="192.0.2.1",
        helo="customer.test",
        tls=None,
        esmtp=True,
        automatic=None,
        bounce=False,
        bare_lf=0,
    )


def _closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
