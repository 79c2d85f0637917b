"""Reading accepted messages: handed over or found in the store, and the search index behind."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from structlog.testing import capture_logs

from relay.bodies import Body
from relay.extract import Extractor
from relay.extraction import Extraction
from relay.store import history
from relay.store.engine import StoreUnavailable, Turn, Verb
from relay.store.post import PostJob
from relay.store.schema import events, messages, texts
from tests.parts import PATIENCE, Parts, running_parts
from tests.smtp_client import SmtpClient

MAIL = "From: Alice <alice@example.org>\r\nSubject: Windows\r\n\r\nTwelve oak windows, please.\r\n.\r\n"


@contextlib.asynccontextmanager
async def reading(parts: Parts, posted: list[PostJob] | None = None) -> AsyncIterator[Extraction]:
    extraction = Extraction(
        parts.store,
        parts.bodies,
        Extractor(workers=1),
        claim=lambda: "test",
        on_posts=(posted if posted is not None else []).extend,
        clock=time.time,
    )
    await extraction.start()
    try:
        yield extraction
    finally:
        await extraction.close(10)


@pytest.fixture
async def parts(tmp_path: Path) -> AsyncIterator[Parts]:
    async with running_parts(tmp_path, "smtp://127.0.0.1:9", start_forwarding=False) as found:
        found.forwarder.submit = lambda jobs: None  # type: ignore[method-assign]
        yield found


async def mail(parts: Parts, text: str = MAIL) -> None:
    async with await SmtpClient.hello(parts.port) as client:
        answer = await client.mail(text.encode(), "<card@track.example.com>", sender="<a@example.org>")
        assert answer.code == 250


async def until_indexed(parts: Parts, count: int) -> None:
    indexed = select(texts.c.message_id).where(texts.c.indexed == 1)
    async with asyncio.timeout(PATIENCE):
        while len(await parts.store.reader.all(indexed)) != count:
            await asyncio.sleep(0.005)


async def test_mail_that_nobody_handed_over_is_found_read_and_searchable(parts: Parts) -> None:
    for number in range(120):
        await mail(parts, f"X-Number: {number}\r\n" + MAIL)
    async with reading(parts):
        await until_indexed(parts, 120)
    rows = await parts.store.reader.all(select(messages.c.subject, messages.c.extraction).distinct())
    assert rows == [("Windows", "done")]
    found = await history.page(parts.store.reader, history.Filter(query="oak wind"), 200)
    assert len(found) == 120
    assert await history.page(parts.store.reader, history.Filter(query="steel"), 10) == []
    assert await history.page(parts.store.reader, history.Filter(query="  ** "), 10) == []


async def test_an_event_without_a_webhook_says_why_it_was_not_posted(parts: Parts) -> None:
    posted: list[PostJob] = []
    await mail(parts)
    async with reading(parts, posted):
        await until_indexed(parts, 1)
    assert await parts.store.reader.all(select(events.c.state, events.c.reason)) == [("withheld", "no webhook")]
    assert posted == []


async def test_a_message_whose_reading_raises_what_nobody_foresaw_is_read_at_a_later_look(
    parts: Parts, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object, **__: object) -> None:
        monkeypatch.undo()
        raise ZeroDivisionError

    monkeypatch.setattr(Extractor, "extract", broken)
    await mail(parts)
    with capture_logs() as entries:
        async with reading(parts) as extraction:
            while not any(entry["event"] == "message not read" for entry in entries):
                await parts.store.write(lambda tx: None, turn=Turn.IDLE)
            extraction._look_at = 0.0
            extraction._work.set()
            await until_indexed(parts, 1)


async def test_a_stop_does_not_wait_for_what_no_worker_reads(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise BlockingIOError

    monkeypatch.setattr("relay.extract._popen", refuse)
    await mail(parts)
    async with reading(parts) as extraction:
        while not extraction._reading:
            await parts.store.write(lambda tx: None, turn=Turn.IDLE)
        async with asyncio.timeout(PATIENCE):
            await extraction.close(2 * PATIENCE)
    assert await parts.store.reader.all(select(messages.c.extraction)) == [("waiting",)]


async def test_a_full_house_leaves_mail_to_the_store(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    async with reading(parts) as extraction:
        monkeypatch.setattr("relay.extraction.MEMORY", 1)
        await mail(parts)
        (row,) = await parts.store.reader.all(select(messages.c.id, messages.c.extraction))
        extraction.submit(row[0], Body(2, b"", data=b"xx"))
        assert (await parts.store.reader.all(select(messages.c.extraction))) == [("waiting",)]
        monkeypatch.undo()
        extraction._work.set()
        await until_indexed(parts, 1)


async def test_a_failing_store_is_tried_again(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    write = parts.store.write
    failures: list[Verb[Any]] = []

    async def fail_twice(verb: Verb[Any], *, turn: Turn = Turn.NEXT) -> Any:
        if len(failures) < 2:
            failures.append(verb)
            raise StoreUnavailable("disk I/O error")
        return await write(verb, turn=turn)

    await mail(parts)
    monkeypatch.setattr("relay.extraction.POLL", 0.01)
    monkeypatch.setattr(parts.store, "write", fail_twice)
    async with reading(parts):
        await until_indexed(parts, 1)
    assert len(failures) == 2
