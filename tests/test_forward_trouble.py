"""Forwarding when something goes wrong that no reply of a next hop says: bugs, a store that is away, a full house."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from relay import background
from relay.clockwatch import ClockWatch
from relay.core.model import Method
from relay.forward import AHEAD, POLL
from relay.store import queue, queue_by_hand
from relay.store.clock import TOLERANCE
from relay.store.engine import StoreUnavailable, Verb
from relay.store.post import CLAIM
from tests.parts import DOMAIN, MAIL, SITE, running_parts
from tests.smtp_sink import Later, Script, SmtpSink
from tests.store_fixtures import fresh_keys, target_of

WHO = ("sales@example.com", "dead@example.com")
YEAR = 365 * 86_400.0


@pytest.fixture
async def sink() -> AsyncIterator[SmtpSink]:
    async with SmtpSink() as found:
        yield found


async def test_an_exception_that_nobody_foresaw_defers_the_delivery(
    tmp_path: Path, sink: SmtpSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> str:
        raise ZeroDivisionError

    async with running_parts(tmp_path, f"smtp://{sink.address}") as parts:
        monkeypatch.setattr("relay.forward.return_path", broken)
        with capture_logs() as entries:
            await parts.send()
            (row,) = await parts.until(lambda rows: rows[0]["state"] == "deferred")
        assert row["answer"] == "not sent: ZeroDivisionError"
        assert "attempt failed unexpectedly" in [entry["event"] for entry in entries]
        monkeypatch.undo()
        parts.clock.ahead = 100
        parts.forwarder.wake()
        await sink.wait_for_messages(1)


async def test_the_poller_outlives_an_exception_that_nobody_foresaw(
    tmp_path: Path, sink: SmtpSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: Any) -> float:
        monkeypatch.undo()
        raise ZeroDivisionError

    monkeypatch.setattr(background.begin, "__defaults__", (0.0,))
    monkeypatch.setattr("relay.forward.Forwarder._claim", broken)
    monkeypatch.setattr("relay.forward.Forwarder.takes", lambda *_: False)
    async with running_parts(tmp_path, f"smtp://{sink.address}") as parts:
        await parts.send()
        await sink.wait_for_messages(1)


async def test_an_outcome_is_recorded_when_the_store_is_back_and_the_mail_is_not_sent_again(
    tmp_path: Path, sink: SmtpSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.forward.RECORD_AGAIN", 0.0)
    finish, failures = queue.finish, 0

    def failing(*arguments: Any) -> Any:
        nonlocal failures
        failures += 1
        if failures < 3:
            raise StoreUnavailable("disk I/O error")
        return finish(*arguments)

    monkeypatch.setattr("relay.store.queue.finish", failing)
    async with running_parts(tmp_path, f"smtp://{sink.address}") as parts:
        await parts.send()
        (row,) = await parts.until(lambda rows: rows[0]["state"] == "forwarded")
        assert (failures, row["attempts"], row["possibly_repeated"]) == (3, 1, 0)
        assert len(await sink.wait_for_messages(1)) == 1


async def test_an_outcome_that_cannot_be_written_is_logged_and_gives_its_place_up(
    tmp_path: Path, sink: SmtpSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged = asyncio.Event()

    def broken(*_: Any) -> bool:
        asyncio.get_running_loop()  # raises: the writer's thread has none
        return True

    monkeypatch.setattr("relay.store.queue.finish", broken)
    monkeypatch.setattr("relay.forward.log.exception", lambda *_, **__: logged.set())
    async with running_parts(tmp_path, f"smtp://{sink.address}") as parts:
        await parts.send()
        await logged.wait()
        (row,) = await parts.delivery_rows()
        assert (row["state"], row["claim"]) == ("queued", parts.forwarder.claim)


async def test_what_waits_for_a_dead_destination_keeps_nobody_busy(tmp_path: Path) -> None:
    async with SmtpSink() as gone:
        address = gone.address
    async with running_parts(tmp_path, f"smtp://{address}") as parts:
        await parts.send()
        await parts.until(lambda rows: rows[0]["state"] == "deferred")
        await parts.send(mail=MAIL + b"2\r\n")  # due at once, but its destination is down
        assert await parts.forwarder._claim() == POLL


async def test_a_retry_by_hand_does_not_wait_for_the_back_off_of_the_destination(tmp_path: Path) -> None:
    async with SmtpSink() as gone:
        address, port = gone.address, gone.port
    async with running_parts(tmp_path, f"smtp://{address}") as parts:
        await parts.send()
        (row,) = await parts.until(lambda rows: rows[0]["state"] == "deferred")
        async with SmtpSink(port=port) as back:
            now = parts.clock()
            await parts.store.write(lambda tx: queue_by_hand.retry(tx, [row["id"]], now, now + 60))
            parts.forwarder.retry_now()
            await back.wait_for_messages(1)


async def test_a_letter_that_hangs_from_before_its_destination_went_down_keeps_no_other_waiting(tmp_path: Path) -> None:
    answered = asyncio.Event()
    script: dict[str, Script] = {"connect": [None, "554 5.3.2 away"], "dot": [Later(answered, "250 2.0.0 taken")]}
    async with SmtpSink(script=script) as sink, running_parts(tmp_path, f"smtp://{sink.address}") as parts:
        await parts.send()
        await sink.wait(lambda sink: len(sink.messages) == 1)
        await parts.send(mail=MAIL + b"2\r\n")
        await parts.until(lambda rows: rows[1]["state"] == "deferred")
        await parts.send(mail=MAIL + b"3\r\n")
        parts.forwarder.retry_now()
        await parts.until(lambda rows: rows[2]["state"] == "forwarded")
        assert not answered.is_set()
        answered.set()
        await parts.until(lambda rows: rows[0]["state"] == "forwarded")


@pytest.mark.parametrize("ahead", [0.0, 3600.0], ids=["in time", "while the clock is set back"])
async def test_a_retry_by_hand_is_not_undone_by_the_try_that_is_under_way(tmp_path: Path, ahead: float) -> None:
    given_up = asyncio.Event()
    hangs = ["421 4.3.2 away", Later(given_up, "421 4.3.2 away")]  # and then it is mended
    async with (
        SmtpSink(script={"connect": hangs}) as sink,
        running_parts(tmp_path, f"smtp://{sink.address}") as parts,
    ):
        parts.clock.ahead = ahead
        watch = ClockWatch(parts.store, parts.clock, parts.forwarder.clock_set_back)
        await parts.send()
        (row,) = await parts.until(lambda rows: rows[0]["state"] == "deferred")
        for _ in range(2):
            now = parts.clock()
            await parts.store.write(lambda tx, now=now: queue_by_hand.retry(tx, [row["id"]], now, now + 60))  # type: ignore[misc]
            parts.forwarder.retry_now()
            await sink.wait(lambda sink: sink.sessions == 2)
            parts.clock.ahead = 0.0
            await watch.look()
        given_up.set()
        await sink.wait_for_messages(1)


async def test_an_outcome_whose_claim_was_lost_is_not_told_as_what_became_of_the_delivery(tmp_path: Path) -> None:
    looked = asyncio.Event()
    async with (
        SmtpSink(script={"dot": Later(looked, "250 2.0.0 taken")}) as sink,
        running_parts(tmp_path, f"smtp://{sink.address}") as parts,
    ):
        await parts.send()
        await sink.wait(lambda sink: len(sink.messages) == 1)
        await parts.store.write(lambda tx: tx.sql("UPDATE deliveries SET claim = 'another'"))
        with capture_logs() as entries:
            looked.set()
            await parts.until(lambda rows: not parts.forwarder._flights)
        events = [entry["event"] for entry in entries]
        assert "claim lost" in events
        assert "delivery" not in events


async def test_a_claim_ends_with_the_destination_that_fills_the_memory(
    tmp_path: Path, sink: SmtpSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_parts(tmp_path, None, start_forwarding=False) as parts:
        monkeypatch.setattr(parts.forwarder, "takes", lambda *_: False)
        await parts.send()
        await parts.send("postmaster@track.example.com", mail=MAIL + b"2\r\n")
        now = parts.clock()
        await parts.store.write(lambda tx: tx.sql("UPDATE deliveries SET destination = 'other.test' WHERE id = 2"))
        capacity = {"nobody.test": 5, "example.com": 5, "other.test": 5}
        for expected in (["example.com"], ["other.test"]):
            jobs = await parts.store.write(lambda tx: queue.claim_due(tx, capacity, "me", now, 1))
            assert [job.destination for job in jobs] == expected


async def test_nothing_is_left_claimed_when_the_forwarder_closes_while_it_claims(
    tmp_path: Path, sink: SmtpSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    claiming, closing = asyncio.Event(), asyncio.Event()
    async with running_parts(tmp_path, f"smtp://{sink.address}") as parts:
        monkeypatch.setattr(parts.forwarder, "takes", lambda *_: False)
        write = parts.store.write

        async def slow(verb: Verb[Any], **options: Any) -> Any:
            result = await write(verb, **options)
            if isinstance(result, list) and result:
                claiming.set()
                await closing.wait()
            return result

        monkeypatch.setattr(parts.store, "write", slow)
        await parts.send()
        await claiming.wait()
        closed = asyncio.create_task(parts.forwarder.close(20.0))
        await asyncio.sleep(0)
        closing.set()
        await closed
        (row,) = await parts.delivery_rows()
        assert (row["state"], row["claim"]) == ("forwarded", None)


async def test_a_dead_destination_with_a_long_queue_costs_the_others_no_attempt_and_no_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dead, sound, connections = 150, 30, 5
    keys = fresh_keys(tmp_path / "keys")
    async with SmtpSink() as gone:
        nobody = keys.seal(f"smtp://{gone.address}")
    site = replace(SITE, targets=(*SITE.targets, target_of(Method.PLUS, "dead@example.com", DOMAIN, next_hop=nobody)))
    async with (
        SmtpSink() as sink,
        running_parts(
            tmp_path, f"smtp://{sink.address}", sites=(site,), per_destination=connections, start_forwarding=False
        ) as parts,
    ):
        for number in range(dead):  # before the first try: all of them are due at once
            with monkeypatch.context() as patch:
                patch.setattr(parts.forwarder, "takes", lambda *_: False)
                await parts.send(f"dead@{DOMAIN}", mail=MAIL + b"%d\r\n" % number)
                if number < sound:
                    await parts.send(mail=MAIL + b"waiting %d\r\n" % number)
        await parts.forwarder.start()
        await sink.wait_for_messages(sound)
        await parts.until(lambda rows: any(row["state"] == "deferred" for row in rows))
        for number in range(sound):  # and now that it is down
            assert parts.forwarder.takes(sink.address, len(MAIL))
            assert not parts.forwarder.takes(gone.address, len(MAIL))
            await parts.send(mail=MAIL + b"fresh %d\r\n" % number)
            await parts.send(f"dead@{DOMAIN}", mail=MAIL + b"fresh %d\r\n" % number)
        await sink.wait_for_messages(2 * sound)
        rows = await parts.until(lambda rows: all(row["claim"] is None for row in rows))
        made = {address: [row["attempts"] for row in rows if row["forward_to"] == address] for address in WHO}
        assert made["sales@example.com"] == [1] * 2 * sound
        assert len(made["dead@example.com"]) == dead + sound
        assert sum(made["dead@example.com"]) <= connections * AHEAD  # of those that were begun together
        assert set(made["dead@example.com"]) == {0, 1}
        assert parts.forwarder._flights == {}
        assert await parts.forwarder._claim() == POLL


async def test_a_leap_of_the_clock_begins_nothing_a_second_time_that_is_under_way(tmp_path: Path) -> None:
    looked = asyncio.Event()
    async with (
        SmtpSink(script={"dot": Later(looked, "250 2.0.0 taken")}) as sink,
        running_parts(tmp_path, f"smtp://{sink.address}") as parts,
    ):
        await parts.send()
        await sink.wait(lambda sink: sink.live > 0)
        parts.clock.ahead = CLAIM + 100
        await parts.forwarder._claim()
        looked.set()
        await parts.until(lambda rows: rows[0]["state"] == "forwarded")
        await parts.send(mail=MAIL + b"later\r\n")
        await parts.until(lambda rows: [row["state"] for row in rows] == ["forwarded"] * 2)
        assert len(sink.accepted) == 2
        assert len(parts.forwarder._destinations) == 0


async def test_a_clock_that_drifts_is_not_doubted(tmp_path: Path) -> None:
    async with running_parts(tmp_path, "smtp://127.0.0.1:9", start_forwarding=False) as parts:
        watch = ClockWatch(parts.store, parts.clock, lambda by: None)
        for _ in range(4):
            parts.clock.ahead += TOLERANCE / 2
            await watch.look()
            assert not watch.is_doubtful()
        parts.clock.ahead += 2 * TOLERANCE
        assert watch.is_doubtful()
        await watch.look()
        assert not watch.is_doubtful()


@pytest.mark.parametrize("doubtful", [True, False])
async def test_by_a_clock_that_is_doubtful_nothing_is_given_up(doubtful: bool, tmp_path: Path) -> None:
    async with (
        SmtpSink(script={"rcpt": "450 4.2.1 later"}) as sink,
        running_parts(tmp_path, f"smtp://{sink.address}", policy={"retry_for": 3600.0}) as parts,
    ):
        parts.forwarder._clock_is_doubtful = lambda: doubtful
        await parts.send()
        await parts.until(lambda rows: rows[0]["state"] == "deferred")
        parts.clock.ahead = YEAR
        parts.forwarder.retry_now()
        (row,) = await parts.until(lambda rows: rows[0]["attempts"] == 2 and rows[0]["claim"] is None)
        assert row["state"] == ("deferred" if doubtful else "failed")
