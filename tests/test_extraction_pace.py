"""Mail goes first: while messages come in thick they wait to be read, and none of them for too long."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import select

from relay.bodies import Body
from relay.extract import Extractor
from relay.extraction import Extraction
from relay.pace import LAG, LULL, MOMENT, THICK, WINDOW, Pace
from relay.store.engine import Turn
from relay.store.schema import bodies, messages
from tests.parts import PATIENCE, Parts, running_parts
from tests.smtp_client import SmtpClient

MAIL = "From: Alice <alice@example.org>\r\nSubject: Windows\r\n\r\nTwelve oak windows, please.\r\n.\r\n"


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def paced(pace: Pace, start: float, rate: float, seconds: float) -> float:
    """Messages at ``rate`` a second for ``seconds``; when the last one came."""
    count = int(rate * seconds)
    for number in range(count):
        pace.note(start + number / rate, 0)
    return start + (count - 1) / rate


def test_what_the_daemon_does_easily_is_not_thick() -> None:
    pace = Pace()
    end = paced(pace, 100.0, THICK * 0.9, 3.0)
    assert not pace.is_thick(end)


def test_a_burst_is_thick_before_its_first_window_is_over() -> None:
    pace = Pace()
    pace.note(100.0, 0)
    assert not pace.is_thick(100.0)
    for _ in range(int(THICK * WINDOW)):
        pace.note(100.01, 0)
    assert pace.is_thick(100.01)


def test_large_messages_are_thick_sooner() -> None:
    pace = Pace()
    pace.note(100.0, 10_000_000)
    assert pace.is_thick(100.0)


def test_thick_mail_stays_thick_from_window_to_window() -> None:
    pace = Pace()
    end = paced(pace, 100.0, THICK * 2, 10 * WINDOW)
    for step in range(10):
        end = paced(pace, end, THICK * 2, WINDOW / 5)
        assert pace.is_thick(end), step


def test_two_windows_after_the_last_message_nothing_is_thick() -> None:
    pace = Pace()
    end = paced(pace, 100.0, THICK * 5, 2.0)
    pace.is_thick(end + WINDOW)
    assert not pace.is_thick(end + 2 * WINDOW)


def test_a_burst_an_hour_ago_says_nothing() -> None:
    pace = Pace()
    end = paced(pace, 100.0, THICK * 5, 2.0)
    assert not pace.is_thick(end + 3600.0)


def test_a_clock_set_back_is_no_burst() -> None:
    pace = Pace()
    for _ in range(10):
        pace.note(100.0, 0)
    assert not pace.is_thick(40.0)
    assert not pace.is_thick(40.0 + WINDOW)


def test_a_step_of_a_transaction_is_a_moment_of_hurry() -> None:
    pace = Pace()
    assert not pace.is_hurried(100.0)
    pace.hurry(100.0)
    assert pace.is_hurried(100.0)
    assert pace.is_hurried(100.0 + MOMENT / 2)
    assert not pace.is_hurried(100.0 + MOMENT)
    assert not pace.is_hurried(40.0)  # a clock set back
    pace.hurry(100.0)
    pace.note(100.0, 0)  # the message is taken
    assert not pace.is_hurried(100.0)


async def test_what_stands_back_does_so_until_the_message_is_taken_and_not_for_long() -> None:
    pace, clock, loop = Pace(), Clock(), asyncio.get_running_loop()
    begin = loop.time()
    await pace.lull(clock)
    assert loop.time() - begin < LULL / 2
    pace.hurry(clock.now)
    loop.call_later(LULL / 5, pace.note, clock.now, 0)
    await pace.lull(clock)
    assert not pace.is_hurried(clock.now)
    pace.hurry(clock.now)  # and never goes on
    await pace.lull(clock)
    assert pace.is_hurried(clock.now)


@pytest.fixture
async def parts(tmp_path: Path) -> AsyncIterator[Parts]:
    async with running_parts(tmp_path, "smtp://127.0.0.1:9", start_forwarding=False) as found:
        found.forwarder.submit = lambda jobs: None  # type: ignore[method-assign]
        yield found


@contextlib.asynccontextmanager
async def reading(parts: Parts, clock: Clock) -> AsyncIterator[Extraction]:
    extraction = Extraction(
        parts.store, parts.bodies, Extractor(workers=1), claim=lambda: "test", on_posts=lambda jobs: None, clock=clock
    )
    await extraction.start()
    try:
        yield extraction
    finally:
        await extraction.close(10)


async def mail(parts: Parts, count: int) -> None:
    async with await SmtpClient.hello(parts.port) as client:
        for number in range(count):
            text = f"X-Number: {number}\r\n" + MAIL
            answer = await client.mail(text.encode(), "<card@track.example.com>", sender="<a@example.org>")
            assert answer.code == 250


async def hand_over(parts: Parts, extraction: Extraction) -> None:
    """What intake does, for every message that waits."""
    rows = await parts.store.reader.all(select(bodies.c.message_id, bodies.c.data).order_by(bodies.c.message_id))
    for message_id, data in rows:
        extraction.submit(message_id, Body(len(data), b"", data=data))


async def states(parts: Parts) -> list[str]:
    """After the writer has done all it was given."""
    await parts.store.write(lambda tx: None, turn=Turn.IDLE)
    return [row[0] for row in await parts.store.reader.all(select(messages.c.extraction).order_by(messages.c.id))]


async def until_read(parts: Parts, count: int) -> None:
    async with asyncio.timeout(PATIENCE):
        while (await states(parts)).count("done") != count:
            await asyncio.sleep(0.005)


async def caught_up(parts: Parts, extraction: Extraction) -> None:
    """Wait until the first look into the store, which every start takes, is over."""
    await until_read(parts, len(await states(parts)))
    assert not extraction._reading


async def test_thick_mail_waits_until_it_has_waited_for_long_enough(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    async with reading(parts, clock) as extraction:
        await caught_up(parts, extraction)
        monkeypatch.setattr("relay.pace.THICK", 0.0)
        extraction._pace.note(clock.now, 0)
        await mail(parts, 5)
        await hand_over(parts, extraction)
        clock.now += LAG - 0.01
        extraction.submit(10**6, Body(0, b"", data=b""))  # more mail comes in
        assert await states(parts) == ["waiting"] * 5
        clock.now += 0.02
        extraction.submit(10**6 + 1, Body(0, b"", data=b""))
        await until_read(parts, 5)
        assert list(extraction._waiting) == [10**6, 10**6 + 1]


async def test_a_large_message_alone_is_read_at_once(parts: Parts) -> None:
    clock = Clock()
    async with reading(parts, clock) as extraction:
        await caught_up(parts, extraction)
        await mail(parts, 1)
        ((message_id, data),) = await parts.store.reader.all(select(bodies.c.message_id, bodies.c.data))
        extraction.submit(message_id, Body(50_000_000, b"", data=data))
        await until_read(parts, 1)


async def test_what_had_to_wait_is_read_as_soon_as_the_burst_is_over(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    async with reading(parts, clock) as extraction:
        await caught_up(parts, extraction)
        monkeypatch.setattr("relay.pace.THICK", 0.0)
        extraction._pace.note(clock.now, 0)
        await mail(parts, 5)
        await hand_over(parts, extraction)
        assert await states(parts) == ["waiting"] * 5
        monkeypatch.undo()
        clock.now += WINDOW
        await until_read(parts, 5)


async def test_a_clock_set_back_holds_nothing_up(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    async with reading(parts, clock) as extraction:
        await caught_up(parts, extraction)
        monkeypatch.setattr("relay.pace.THICK", 0.0)
        extraction._pace.note(clock.now, 0)
        await mail(parts, 5)
        await hand_over(parts, extraction)
        clock.now -= 3600.0
        extraction._pace.note(clock.now, 0)  # as thick as before
        await until_read(parts, 5)


async def test_mail_without_room_waits_in_the_store_and_no_longer(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    async with reading(parts, clock) as extraction:
        await caught_up(parts, extraction)
        monkeypatch.setattr("relay.pace.THICK", 0.0)
        monkeypatch.setattr("relay.extraction.IN_HAND", 2)
        extraction._pace.note(clock.now, 0)
        await mail(parts, 5)
        await hand_over(parts, extraction)
        assert len(extraction._waiting) == 2
        assert await states(parts) == ["waiting"] * 5
        monkeypatch.setattr("relay.extraction.IN_HAND", 10)
        clock.now += LAG
        extraction._pace.note(clock.now, 0)  # as thick as before
        await until_read(parts, 5)
        assert not extraction._behind
