"""What is past its retention goes; what is still to be forwarded stays."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from sqlalchemy import select, update

from relay.store.changes import Change, note
from relay.store.engine import Statement
from relay.store.schema import changes, deliveries, messages
from relay.sweep import INTERVAL, ORPHAN_AGE, Ages, Sweeper
from tests.parts import Parts, running_parts
from tests.smtp_client import SmtpClient

DAY = 86400.0
AGES = Ages(
    raw=10 * DAY, messages=100 * DAY, visits=100 * DAY, routes=400 * DAY, visitor_ip=100 * DAY, changes=50 * DAY
)


async def mail(parts: Parts, size: int) -> None:
    async with await SmtpClient.hello(parts.port) as client:
        text = b"Subject: x\r\n\r\n" + b"y" * size + b"\r\n.\r\n"
        assert (await client.mail(text, "<card@track.example.com>", sender="<a@example.org>")).code == 250


async def settle(parts: Parts, state: str) -> None:
    done = Statement(update(deliveries).values(state=state))
    read = Statement(update(messages).values(state=state, extraction="done"))
    await parts.store.write(lambda tx: (tx.run(done), tx.run(read)))


async def test_bytes_go_first_then_the_message(tmp_path: Path) -> None:
    async with running_parts(tmp_path, "smtp://127.0.0.1:9", start_forwarding=False) as parts:
        parts.forwarder.submit = lambda jobs: None  # type: ignore[method-assign]
        await mail(parts, 10)
        await mail(parts, 400_000)
        sweeper = Sweeper(parts.store, parts.bodies, AGES, parts.clock)
        await settle(parts, "forwarded")
        assert await sweeper.sweep() == 0
        parts.clock.ahead = 11 * DAY
        assert await sweeper.sweep() == 1
        assert list((tmp_path / "bodies").iterdir()) == []
        rows = await parts.store.reader.all(select(messages.c.body_file, messages.c.raw_removed_at))
        assert [(file, removed is not None) for file, removed in rows] == [(None, True)] * 2
        parts.clock.ahead = 101 * DAY
        await sweeper.sweep()
        assert await parts.store.reader.all(select(messages.c.id)) == []


async def test_what_is_queued_or_held_outlives_its_retention(tmp_path: Path) -> None:
    async with running_parts(tmp_path, "smtp://127.0.0.1:9", start_forwarding=False) as parts:
        parts.forwarder.submit = lambda jobs: None  # type: ignore[method-assign]
        await mail(parts, 400_000)
        sweeper = Sweeper(parts.store, parts.bodies, AGES, parts.clock)
        for state in ("queued", "deferred", "failed"):
            await settle(parts, state)
            parts.clock.ahead = 1000 * DAY
            assert await sweeper.sweep() == 0
            assert len(list((tmp_path / "bodies").iterdir())) == 1


async def test_a_clock_that_is_wrong_at_the_start_deletes_nothing_when_it_is_set_soon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    swept = asyncio.Event()
    async with running_parts(tmp_path, "smtp://127.0.0.1:9", start_forwarding=False) as parts:
        parts.forwarder.submit = lambda jobs: None  # type: ignore[method-assign]
        await mail(parts, 400_000)
        await settle(parts, "forwarded")
        parts.clock.ahead = 1000 * DAY
        sweeper = Sweeper(parts.store, parts.bodies, AGES, parts.clock)

        async def wait(seconds: float) -> None:
            waited.append(seconds)
            if len(waited) > 1:
                swept.set()
                await asyncio.Event().wait()
            parts.clock.ahead = 0.0  # NTP has the time

        monkeypatch.setattr("relay.sweep.asyncio", SimpleNamespace(sleep=wait, to_thread=asyncio.to_thread))
        task = asyncio.create_task(sweeper.run())
        await swept.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert waited == [600.0, INTERVAL]
        assert len(list((tmp_path / "bodies").iterdir())) == 1


async def test_a_body_file_without_a_message_is_removed_once_it_is_old(tmp_path: Path) -> None:
    async with running_parts(tmp_path, "smtp://127.0.0.1:9", start_forwarding=False) as parts:
        parts.forwarder.submit = lambda jobs: None  # type: ignore[method-assign]
        await mail(parts, 400_000)
        orphan = tmp_path / "bodies" / "0123"
        orphan.write_bytes(b"left by a crash")
        sweeper = Sweeper(parts.store, parts.bodies, AGES, parts.clock)
        assert await sweeper.sweep() == 0
        for file in (tmp_path / "bodies").iterdir():
            os.utime(file, (0, parts.clock() - ORPHAN_AGE - 1))
        assert await sweeper.sweep() == 1
        assert not orphan.exists()
        assert len(list((tmp_path / "bodies").iterdir())) == 1


async def test_the_file_of_a_message_that_is_still_being_received_stays_however_old_it_is(tmp_path: Path) -> None:
    """Its sender pauses, or the clock has leapt: the 250 at its end would be for a lost letter."""
    async with running_parts(tmp_path, "smtp://127.0.0.1:9", start_forwarding=False) as parts:
        writer, data = parts.bodies.writer(), b"x" * 400_000
        assert writer.write(data)
        await writer.flush()
        await writer.flush()  # the one before it is done
        (file,) = (tmp_path / "bodies").iterdir()
        os.utime(file, (0, parts.clock() - 2 * ORPHAN_AGE))
        assert await Sweeper(parts.store, parts.bodies, AGES, parts.clock).sweep() == 0
        body = await writer.close()
        assert body.file == file.name
        assert await asyncio.to_thread(parts.bodies.read, file.name) == data


async def test_the_log_of_changes_ends_by_its_own_age(tmp_path: Path) -> None:
    async with running_parts(tmp_path, "smtp://127.0.0.1:9", start_forwarding=False) as parts:
        sweeper = Sweeper(parts.store, parts.bodies, AGES, parts.clock)
        now = parts.clock()
        for days in (51, 49):
            at = now - days * DAY
            await parts.store.write(lambda tx, at=at: note(tx, Change(at, "user", "ann", "POST /v1/sites")))
        await sweeper.sweep()
        assert await parts.store.reader.all(select(changes.c.at)) == [(now - 49 * DAY,)]


async def test_a_sweep_that_raises_what_nobody_foresaw_is_followed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again, turns = asyncio.Event(), 0

    async def broken(self: Sweeper) -> int:
        nonlocal turns
        turns += 1
        if turns == 2:
            again.set()
            await asyncio.Event().wait()
        raise ZeroDivisionError

    monkeypatch.setattr("relay.sweep.FIRST", 0.0)
    monkeypatch.setattr("relay.sweep.INTERVAL", 0.0)
    monkeypatch.setattr(Sweeper, "sweep", broken)
    async with running_parts(tmp_path, "smtp://127.0.0.1:9", start_forwarding=False) as parts:
        task = asyncio.create_task(Sweeper(parts.store, parts.bodies, AGES, parts.clock).run())
        await again.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
