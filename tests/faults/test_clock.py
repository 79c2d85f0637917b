"""The clock is set while mail waits to be forwarded, or is wrong at a start: nothing is given up for it, and nothing
waits for a wrong year.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from structlog.testing import capture_logs

from relay.clockwatch import ClockWatch
from relay.store.schema import deliveries
from tests.faults.test_webhook_clock import LOOK, OFTEN, PATIENCE, Relay, rows, running
from tests.parts import Clock, Parts, running_parts
from tests.scenarios.world import DOMAIN, World, unique_letter, world
from tests.smtp_client import SmtpClient
from tests.smtp_sink import SmtpSink, Step
from tests.webhook_receiver import Receiver

pytestmark = pytest.mark.fault

YEAR, HOUR = 365 * 86_400.0, 3600.0
#: Letters that wait.
WAITING = 20
#: Longer than any pause between two attempts.
LATER = 2 * HOUR
#: Seconds that mail is tried.
RETRY_FOR = 432_000.0
#: What Python runs first in a process that finds it: the clock is ahead by the time of a file.
SHIFT = """
import os, time
right = time.time
time.time = lambda: right() + os.stat({file!r}).st_mtime
"""


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
            assert all(abs(row["expires_at"] - parts.clock() - RETRY_FOR) < HOUR + 60 for row in rows)
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


@pytest.mark.parametrize("ahead", [YEAR, -YEAR], ids=["a year on", "a year back"])
async def test_mail_that_waits_outlives_a_start_with_a_wrong_clock(
    ahead: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.clockwatch.INTERVAL", OFTEN)
    answers: list[Step] = ["450 4.2.1 later"]
    clock, sink = Clock(), SmtpSink(script={"rcpt": lambda session, line: answers[0]})
    async with Receiver(200) as crm:
        async with running(tmp_path, crm, clock, sink) as relay:
            await relay.mail(WAITING)
            await waits_as_before(relay, attempts=1)
        clock.ahead = ahead
        async with running(tmp_path, crm, clock, sink) as relay:
            await waits_as_before(relay, attempts=2 if ahead > 0 else 1)  # all were due by a clock that is ahead
            clock.ahead = 0.0  # NTP has the time
            await waits_as_before(relay, attempts=2)
            answers[0] = None
            clock.ahead += LATER
            relay.daemon.forwarder.retry_now()
            await rows(relay, select(deliveries.c.state), lambda found: found == [("forwarded",)] * WAITING)
            assert len(sink.accepted) == WAITING


async def waits_as_before(relay: Relay, attempts: int) -> None:
    """Until all was tried so often at least, and waits for its next attempt, with all its time before it."""

    def waits(found: Sequence[Any]) -> bool:
        now = relay.clock()
        return len(found) == WAITING and all(
            (state, claim) == ("deferred", None)
            and tried >= attempts
            and next_at < now + LATER
            and abs(expires_at - now - RETRY_FOR) < HOUR
            for state, claim, tried, next_at, expires_at in found
        )

    columns = [deliveries.c[name] for name in ("state", "claim", "attempts", "next_at", "expires_at")]
    await rows(relay, select(*columns), waits)


async def test_a_process_that_is_killed_and_begins_a_year_later_by_its_clock_gives_nothing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead = tmp_path / "ahead"
    (tmp_path / "sitecustomize.py").write_text(SHIFT.format(file=str(ahead)))
    ahead.touch()
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    answers: list[Step] = ["450 4.2.1 later"]
    sink = SmtpSink(script={"rcpt": lambda session, line: answers[0]})
    async with world(tmp_path, sink=sink, start=False) as relay:

        async def start(clock: float) -> None:
            os.utime(ahead, (clock, clock))
            await asyncio.to_thread(relay.daemon.start)

        await start(0.0)
        for number in range(WAITING):
            await relay.mail(f"plus+{number}@{DOMAIN}", unique_letter())
        await tried(relay, 1)
        await asyncio.to_thread(relay.daemon.kill)
        await start(YEAR)
        await tried(relay, 2)  # by the wrong clock all were due
        relay.daemon.wait_for("no daemon ran, or the clock is ahead", timeout=0)
        os.utime(ahead, (0, 0))  # NTP has the time
        answers[0] = None
        await relay.retry_all()
        await relay.until(lambda: states(relay), lambda found: found == [("forwarded", WAITING)])
        assert len(sink.accepted) == WAITING


async def tried(relay: World, attempts: int) -> None:
    """Until all was tried so often or given up: and it is not."""

    async def left() -> int:
        query = "SELECT count(*) FROM deliveries WHERE state != 'failed' AND (attempts < ? OR claim IS NOT NULL)"
        return int((await relay.row(query, attempts))[0])

    await relay.until(left, lambda count: count == 0)
    assert await states(relay) == [("deferred", WAITING)]


async def states(relay: World) -> list[tuple[Any, ...]]:
    """States of deliveries, and how many have them."""
    return await relay.rows("SELECT state, count(*) FROM deliveries GROUP BY state")
