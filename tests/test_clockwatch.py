"""What a start makes of the clock: for what waits no time has passed that no daemon ran, whatever the clock says."""

from __future__ import annotations

from pathlib import Path

import pytest

from relay.clockwatch import ClockWatch
from relay.store.clock import AWAY
from relay.store.engine import StoreUnavailable, Turn, Verb
from relay.store.store import Store
from tests.parts import Clock, running_parts
from tests.smtp_sink import SmtpSink
from tests.store_fixtures import NOW, opened

HOUR, DAY = 3600.0, 86_400.0
#: Seconds that pass while a test runs, at most.
MINUTE = 60.0


async def test_a_start_is_told_by_how_much_the_clock_is_ahead_of_the_last_note(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        clock = Clock()

        async def begun() -> float:
            return await ClockWatch(store, clock, lambda by: None).begin()

        assert await begun() == 0.0  # nothing was noted
        clock.ahead += AWAY - 2 * MINUTE
        assert await begun() == 0.0
        clock.ahead += DAY
        assert DAY <= await begun() <= DAY + 2 * MINUTE
        assert await begun() == 0.0  # once, however often it is started


async def test_the_clock_is_noted_while_the_daemon_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.clockwatch.NOTE", 0.0)
    async with opened(tmp_path) as store:
        clock = Clock()
        await ClockWatch(store, clock, lambda by: None).look()
        clock.ahead = DAY
        assert DAY <= await ClockWatch(store, clock, lambda by: None).begin() <= DAY + 2 * MINUTE


async def test_a_start_at_the_right_time_after_one_in_1970_is_noticed(tmp_path: Path) -> None:
    async with opened(tmp_path) as store:
        assert await ClockWatch(store, lambda: 0.0, lambda by: None).begin() == 0.0
        assert await ClockWatch(store, lambda: NOW, lambda by: None).begin() == NOW


async def test_a_start_that_cannot_note_the_clock_is_a_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk what changes nothing can be written all the same."""
    write = Store.write

    async def full(self: Store, verb: Verb[object], *, turn: Turn = Turn.NEXT) -> object:
        if turn is Turn.IDLE:
            raise StoreUnavailable("database or disk is full")
        return await write(self, verb, turn=turn)

    monkeypatch.setattr(Store, "write", full)
    async with opened(tmp_path) as store:
        assert await ClockWatch(store, Clock(), lambda by: None).begin() == 0.0
        monkeypatch.undo()
        assert await ClockWatch(store, Clock(DAY), lambda by: None).begin() == 0.0  # nothing was noted


async def test_mail_is_given_up_when_its_time_is_over_without_that_in_which_no_daemon_ran(tmp_path: Path) -> None:
    async with (
        SmtpSink(script={"rcpt": "450 4.2.1 later"}) as sink,
        running_parts(tmp_path, f"smtp://{sink.address}", policy={"retry_for": 3 * HOUR}) as parts,
    ):
        await ClockWatch(parts.store, parts.clock, lambda by: None).begin()
        await parts.send()
        for attempts, (passed, state) in enumerate([(0.0, "deferred"), (DAY, "deferred"), (3 * HOUR, "failed")], 1):
            parts.clock.ahead += passed
            if passed == DAY:
                await ClockWatch(parts.store, parts.clock, lambda by: None).begin()
            parts.forwarder.retry_now()
            (row,) = await parts.until(lambda rows: rows[0]["attempts"] == attempts and rows[0]["claim"] is None)  # noqa: B023
            assert row["state"] == state
