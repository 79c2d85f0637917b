"""The clock is set while mail waits to be forwarded: nothing is given up for it, and nothing waits for a wrong year."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
from sqlalchemy import select
from structlog.testing import capture_logs

from relay.clockwatch import ClockWatch
from relay.store.schema import deliveries
from tests.faults.test_webhook_clock import LOOK, PATIENCE, running
from tests.parts import Clock, Parts, running_parts
from tests.smtp_client import SmtpClient
from tests.smtp_sink import SmtpSink, Step
from tests.webhook_receiver import Receiver

pytestmark = pytest.mark.fault

YEAR, HOUR = 365 * 86_400.0, 3600.0
#: Letters that wait.
WAITING = 20
#: Longer than any pause between two attempts.
LATER = 2 * HOUR


async def mail(parts: Parts, count: int) -> None:
    async with await SmtpClient.hello(parts.port) as client:
        for number in range(count):
            wire = b"Subject: letter %d\r\n\r\nHello\r\n.\r\n" % number
            assert (await client.mail(wire, f"<sales+{number}@track.example.com>")).code == 250


@pytest.mark.parametrize(
    "step", [YEAR, HOUR, -HOUR, -YEAR], ids=["a year on", "an hour on", "an hour back", "a year back"]
)
@pytest.mark.parametrize("corrected", [False, True], ids=["for good", "and corrected"])
async def test_mail_that_waits_goes_on_waiting_and_is_forwarded(step: float, corrected: bool, tmp_path: Path) -> None:
    answers: list[Step] = ["450 4.2.1 later"]
    async with (
        SmtpSink(script={"rcpt": lambda session, line: answers[0]}) as sink,
        running_parts(tmp_path, f"smtp://{sink.address}") as parts,
    ):
        watch = ClockWatch(parts.store, parts.clock, parts.forwarder.clock_set_back)
        parts.forwarder._clock_is_doubtful = watch.is_doubtful
        await mail(parts, WAITING)
        await parts.until(lambda rows: [row["state"] for row in rows] == ["deferred"] * WAITING)
        for ahead in (step, 0.0) if corrected else (step,):
            parts.clock.ahead = ahead
            parts.forwarder.retry_now()  # those that are due now are tried before anybody has noticed
            await watch.look()
            rows = await parts.delivery_rows()
            assert {row["state"] for row in rows} <= {"queued", "deferred"}
            # Given up when they would have been: five days from now, give or take what the test took.
            assert all(abs(row["expires_at"] - parts.clock() - 432_000) < HOUR + 60 for row in rows)
            assert all(row["next_at"] < parts.clock() + LATER for row in rows)
        # What is under way has been told "later" already.
        await parts.until(lambda rows: all(row["claim"] is None for row in rows))
        answers[0] = None
        parts.clock.ahead += LATER
        await watch.look()
        parts.forwarder.retry_now()
        await parts.until(lambda rows: [row["state"] for row in rows] == ["forwarded"] * WAITING)
        assert len(sink.accepted) == WAITING


@pytest.mark.parametrize("step", [YEAR, -HOUR, -YEAR], ids=["a year on", "an hour back", "a year back"])
async def test_the_daemon_as_a_whole_gives_nothing_up_that_falls_due_before_the_jump_is_noticed(
    step: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.clockwatch.INTERVAL", 1.0)
    answers: list[Step] = ["450 4.2.1 later"]
    sink = SmtpSink(script={"rcpt": lambda session, line: answers[0]})
    async with AsyncExitStack() as stack, Receiver(200) as crm, running(tmp_path, crm, Clock(), sink) as relay:
        forwarder = relay.daemon.forwarder

        async def states() -> set[str]:
            return {state for (state,) in await relay.daemon.store.reader.all(select(deliveries.c.state))}

        async def tried(attempts: int) -> None:
            async with asyncio.timeout(PATIENCE):
                while forwarder.outcomes["temporary"] < attempts:
                    await asyncio.sleep(LOOK)

        await relay.mail(WAITING)
        await tried(WAITING)
        noticed = stack.enter_context(capture_logs())
        relay.clock.ahead = step
        forwarder.retry_now()
        if step > 0:
            await tried(2 * WAITING)
        assert await states() <= {"queued", "deferred"}
        async with asyncio.timeout(PATIENCE):
            while not [entry for entry in noticed if entry["event"] == "the clock was set"]:
                await asyncio.sleep(LOOK)
        assert await states() <= {"queued", "deferred"}
        answers[0] = None
        relay.clock.ahead += LATER
        async with asyncio.timeout(PATIENCE):
            while await states() != {"forwarded"}:
                forwarder.retry_now()
                await asyncio.sleep(LOOK)
        assert len(sink.accepted) == WAITING
