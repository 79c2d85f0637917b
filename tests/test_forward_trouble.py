"""Forwarding when something goes wrong that no reply of a next hop says: bugs, a store that is away, a full house."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from relay import background
from relay.forward import POLL
from relay.store import queue
from relay.store.engine import StoreUnavailable, Verb
from tests.parts import Parts, running_parts
from tests.smtp_client import SmtpClient
from tests.smtp_sink import SmtpSink

MAIL = "Subject: hi\r\n\r\nhello\r\n"


@pytest.fixture
async def sink() -> AsyncIterator[SmtpSink]:
    async with SmtpSink() as found:
        yield found


async def send(parts: Parts, recipient: str = "sales@track.example.com", text: str = MAIL) -> None:
    async with await SmtpClient.hello(parts.port) as client:
        assert (await client.command("MAIL FROM:<alice@example.org>")).code == 250
        assert (await client.command(f"RCPT TO:<{recipient}>")).code == 250
        assert (await client.command("DATA")).code == 354
        await client.send(f"{text}.\r\n".encode())
        assert (await client.answer()).code == 250


async def test_an_exception_that_nobody_foresaw_defers_the_delivery(
    tmp_path: Path, sink: SmtpSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> str:
        raise ZeroDivisionError

    async with running_parts(tmp_path, f"smtp://{sink.address}") as parts:
        monkeypatch.setattr("relay.forward.return_path", broken)
        with capture_logs() as entries:
            await send(parts)
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
        await send(parts)
        await sink.wait_for_messages(1)


async def test_an_outcome_is_recorded_when_the_store_is_back_and_the_mail_is_not_sent_again(
    tmp_path: Path, sink: SmtpSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.forward.RECORD_AGAIN", 0.0)
    finish, failures = queue.finish, 0

    def failing(*arguments: Any) -> bool:
        nonlocal failures
        failures += 1
        if failures < 3:
            raise StoreUnavailable("disk I/O error")
        return finish(*arguments)

    monkeypatch.setattr("relay.store.queue.finish", failing)
    async with running_parts(tmp_path, f"smtp://{sink.address}") as parts:
        await send(parts)
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
        await send(parts)
        await logged.wait()
        (row,) = await parts.delivery_rows()
        assert (row["state"], row["claim"]) == ("queued", parts.forwarder.claim)


async def test_what_waits_for_a_dead_destination_keeps_nobody_busy(tmp_path: Path) -> None:
    async with SmtpSink() as gone:
        address = gone.address
    async with running_parts(tmp_path, f"smtp://{address}") as parts:
        await send(parts)
        await parts.until(lambda rows: rows[0]["state"] == "deferred")
        await send(parts, text=MAIL + "2\r\n")  # due at once, but its destination is down
        assert await parts.forwarder._claim() == POLL


async def test_a_retry_by_hand_does_not_wait_for_the_back_off_of_the_destination(tmp_path: Path) -> None:
    async with SmtpSink() as gone:
        address, port = gone.address, gone.port
    async with running_parts(tmp_path, f"smtp://{address}") as parts:
        await send(parts)
        (row,) = await parts.until(lambda rows: rows[0]["state"] == "deferred")
        async with SmtpSink(port=port) as back:
            now = parts.clock()
            await parts.store.write(lambda tx: queue.retry(tx, [row["id"]], now, now + 60))
            parts.forwarder.retry_now()
            await back.wait_for_messages(1)


async def test_all_destinations_together_get_no_more_than_there_is_room_for(
    tmp_path: Path, sink: SmtpSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.forward.IN_FLIGHT", 100)
    async with running_parts(tmp_path, f"smtp://{sink.address}") as parts:
        capacity = parts.forwarder._capacity([f"{number}.example" for number in range(50)], parts.clock())
        assert list(capacity.values()) == [80, 20]


async def test_a_claim_ends_with_the_destination_that_fills_the_memory(
    tmp_path: Path, sink: SmtpSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_parts(tmp_path, None, start_forwarding=False) as parts:
        monkeypatch.setattr(parts.forwarder, "takes", lambda *_: False)
        await send(parts)
        await send(parts, "postmaster@track.example.com", MAIL + "2\r\n")
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
        await send(parts)
        await claiming.wait()
        closed = asyncio.create_task(parts.forwarder.close(20.0))
        await asyncio.sleep(0)
        closing.set()
        await closed
        (row,) = await parts.delivery_rows()
        assert (row["state"], row["claim"]) == ("forwarded", None)
