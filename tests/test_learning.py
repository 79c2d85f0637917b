"""What this server's own exact mail says of delays, and that attribution goes by it from then on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from pathlib import Path

import pytest
import structlog
from sqlalchemy import select

from relay import learning
from relay.core.attribution import ENOUGH_DELAYS, NO_DELAYS, Delays
from relay.learning import Learning
from relay.store import figures, messages
from relay.store.engine import StoreUnavailable, Tx
from relay.store.messages import Evidence
from relay.store.schema import deliveries
from tests.parts import DOMAIN, Parts, running_parts
from tests.smtp_client import SmtpClient
from tests.store_fixtures import DAY, LEASE, NOW, TRACK, World, incoming, world

HOUR = 3600.0


@pytest.fixture
async def w(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as found:
        yield found


async def letters(w: World, address: str, written: list[float]) -> None:
    """Mail to an address, written at these times and received at once."""
    recipient = await w.recipient(address)
    first = len(await w.rows(select(deliveries.c.id)))

    def accept(tx: Tx) -> None:
        for number, at in enumerate(written, first):
            letter = incoming(at, b"%d" % number, sender=f"{number}@example.org", mail_from=f"{number}@example.org")
            messages.accept(tx, letter, [recipient], claim=None, expires_at=at + DAY, evidence=Evidence(DAY))

    await w.store.write(accept)


async def looked(w: World) -> Delays:
    found: list[Delays] = []
    await Learning(w.store.reports, found.append).look()
    (delays,) = found
    return delays


async def letters_of_visits(w: World, ages: Iterable[float], target: str = "jobs@example.com") -> None:
    """A letter of a new visit each, so many seconds after the end of its lease."""
    for age in ages:
        _, address = await w.shown(target)
        await letters(w, address, [NOW + LEASE + age])


@pytest.mark.parametrize(
    ("target", "ages"), [("sales@example.com", [1 - LEASE, HOUR]), ("jobs@example.com", [1 - LEASE, 0.0, HOUR])]
)
async def test_delays_are_counted_from_the_end_of_the_lease(w: World, target: str, ages: list[float]) -> None:
    await letters_of_visits(w, ages, target)
    assert await looked(w) == Delays.of(ages)


async def test_two_hundred_exact_mails_are_learned_from(w: World) -> None:
    await letters_of_visits(w, [minute * 60.0 for minute in range(ENOUGH_DELAYS - 1)])
    assert not (await looked(w)).learned
    await letters_of_visits(w, [10 * DAY])
    delays = await looked(w)
    assert delays.learned
    assert delays.ages == (*(minute * 60.0 for minute in range(ENOUGH_DELAYS - 1)), 10 * DAY)


async def test_of_each_visit_only_its_latest_letter_is_learned_from(w: World) -> None:
    """Who writes a thousand times shall not teach all others' delays."""
    _, address = await w.shown("jobs@example.com")
    await letters(w, address, [NOW + LEASE + age for age in (HOUR, DAY, 60.0)])
    assert await looked(w) == Delays.of([60.0])


async def test_a_visit_that_came_back_counts_from_its_last_lease_before_writing(w: World) -> None:
    visit, address = await w.shown()
    w.pass_time(LEASE)
    for _ in range(2):
        await w.shown()  # others have both addresses for a while, too long before writing to matter
    w.pass_time(3 * DAY)
    assert await w.shown(number=visit) == (visit, address)
    await letters(w, address, [w.now + LEASE + HOUR])
    assert await looked(w) == Delays.of([HOUR])


async def test_a_holding_that_began_after_writing_says_nothing(w: World) -> None:
    _, address = await w.shown()
    recipient = await w.recipient(address)
    letter = incoming(NOW + 60, written_at=NOW - 60)
    await w.store.write(
        lambda tx: messages.accept(tx, letter, [recipient], claim=None, expires_at=NOW, evidence=Evidence(DAY))
    )
    assert await w.rows(select(deliveries.c.attribution)) == [("exact",)]
    assert await looked(w) == NO_DELAYS


async def test_plus_static_likely_and_inferred_mail_is_not_counted(w: World) -> None:
    _, plus = await w.shown("help@example.com")
    await letters(w, plus, [NOW + 1])
    await letters(w, f"card@{TRACK}", [NOW + 2])
    await w.accept(f"help@{TRACK}", body=b"inferred", sender="0@example.org", mail_from="0@example.org")
    for _ in range(3):
        _, leased = await w.shown()
        w.pass_time(LEASE)
    await letters(w, leased, [w.now])
    states = [state for (state,) in await w.rows(select(deliveries.c.attribution).order_by(deliveries.c.id))]
    assert states == ["exact", "exact", "inferred", "likely"]
    assert await looked(w) == NO_DELAYS


async def test_only_the_latest_mail_is_learned_from(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """So many letters, whatever their ids: those of a restored copy have a gap."""
    await letters_of_visits(w, map(float, range(20)))
    await w.store.write(lambda tx: tx.sql("UPDATE deliveries SET id = id + 1000000 WHERE id > 15"))
    monkeypatch.setattr(figures, "DELIVERIES_SEEN", 10)
    assert await looked(w) == Delays.of(map(float, range(10, 20)))


async def test_a_store_that_is_down_is_logged_and_looked_at_again(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    _, address = await w.shown()
    await letters(w, address, [NOW + LEASE + HOUR])
    whole, troubles = figures.delays, [StoreUnavailable("disk full"), StoreUnavailable("still full")]

    async def delays(reader: object) -> list[float]:
        if troubles:
            raise troubles.pop(0)
        return await whole(w.store.reader)

    monkeypatch.setattr(figures, "delays", delays)
    monkeypatch.setattr(learning, "INTERVAL", 0.0)
    told: asyncio.Queue[Delays] = asyncio.Queue()
    with structlog.testing.capture_logs() as logged:
        looking = asyncio.create_task(Learning(w.store.reports, told.put_nowait).run())
        async with asyncio.timeout(10):
            assert await told.get() == Delays.of([HOUR])
        looking.cancel()
        await asyncio.gather(looking, return_exceptions=True)
    assert [(entry["event"], entry["error"]) for entry in logged] == [
        ("delays not read", "disk full"),
        ("delays not read", "still full"),
    ]


class TestIntake:
    @pytest.fixture
    async def parts(self, tmp_path: Path) -> AsyncIterator[Parts]:
        async with running_parts(tmp_path, "smtp://127.0.0.1:9", start_forwarding=False) as found:
            found.forwarder.submit = lambda jobs: None  # type: ignore[method-assign]
            yield found

    async def shares(self, parts: Parts, address: str) -> tuple[str, list[float]]:
        """(method, probabilities) of a new letter to an address."""
        async with await SmtpClient.hello(parts.port) as client:
            await client.start(f"<{address}>", sender="<alice@example.org>")
            await client.send(b"Subject: %d\r\n\r\nhello\r\n.\r\n" % len(await parts.delivery_rows()))
            assert (await client.answer()).code == 250
        row = (await parts.delivery_rows())[-1]
        return row["attribution_method"], [share for _, share in json.loads(row["candidates"])]

    async def test_what_is_learned_changes_the_weights_and_the_method(self, parts: Parts) -> None:
        w = World(parts.store, parts.clock() - 10 * HOUR)
        for _ in range(2):
            await w.shown("info@example.com", "example")
        w.now = parts.clock() - 60
        _, address = await w.shown("info@example.com", "example")
        assert address == f"p1@{DOMAIN}"
        method, (holder, earlier) = await self.shares(parts, address)
        assert (method, holder > 0.99) == ("pool/2", True)
        parts.intake.learn(Delays.of([float(age) for age in range(-2000, 12 * 3600, 60)]))  # as much at any time
        method, (holder, earlier) = await self.shares(parts, address)
        assert (method, round(earlier / holder, 1)) == ("pool/3", 1.0)
        parts.intake.learn(NO_DELAYS)
        assert (await self.shares(parts, address))[0] == "pool/2"
