"""A start with a long queue takes of it what there is room for, and leaves the rest in the store."""

from __future__ import annotations

from pathlib import Path

from benchmarks.start import fill
from relay.forward import AHEAD
from tests.parts import DOMAIN, running_parts
from tests.smtp_sink import Hang, SmtpSink

QUEUED = 1000
#: Connections to one destination, as tests/parts.py has it.
CONNECTIONS = 20


async def test_of_a_long_queue_only_as_much_is_claimed_and_read_as_can_be_under_way(tmp_path: Path) -> None:
    async with (
        SmtpSink(script={"connect": lambda session, line: Hang()}) as sink,
        running_parts(tmp_path, f"smtp://{sink.address}", start_forwarding=False) as parts,
    ):
        await fill(parts.store, QUEUED, DOMAIN, parts.clock())
        await parts.forwarder.start()
        await sink.wait(lambda found: found.live == CONNECTIONS)
        rows = await parts.delivery_rows()
        assert len(rows) == QUEUED
        assert sum(row["claim"] is not None for row in rows) <= CONNECTIONS * AHEAD
