"""What came before a letter (relay/store/journey.py)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from relay.store import history
from relay.store.journey import Seen, journeys
from tests.store_fixtures import DAY, LEASE, NOW, World, pool_target, site, world


@pytest.fixture
async def w(tmp_path: Path) -> AsyncIterator[World]:
    """A pool of one, so that a visit gets the same address again."""
    async with world(tmp_path, site("shop", pool_target("sales@example.com", "info@track.example.com"))) as found:
        yield found


async def seen_by(w: World, visit: str, address: str, written_at: float) -> Seen:
    """What is told of a visit on the page of a letter that comes now."""
    accepted = await w.accept(address, written_at=written_at)
    row = await history.one(w.store.reader, accepted.message_id, None)
    assert row is not None
    (found,) = (await journeys(w.store.reader, row)).values()
    told = [found.visit] if found.visit else found.candidates
    (seen,) = (one for one in told if one.visit["number"] == visit)
    return seen


async def twice(w: World) -> tuple[str, str]:
    """(number, address) of a visit that gets the address now and, after another had it, once more in two days."""
    visit, address = await w.shown()
    w.pass_time(DAY)
    assert (await w.shown())[1] == address
    w.pass_time(DAY)
    assert await w.shown(number=visit) == (visit, address)
    w.pass_time(DAY)
    return visit, address


async def test_of_two_holdings_the_last_before_writing_counts(w: World) -> None:
    visit, address = await twice(w)
    seen = await seen_by(w, visit, address, NOW + 2 * DAY + 60)
    assert (seen.shown_at, seen.held_until) == (NOW + 2 * DAY, NOW + 2 * DAY + LEASE)


async def test_a_letter_that_was_long_on_its_way_came_of_what_was_shown_before_it_was_written(w: World) -> None:
    visit, address = await twice(w)
    seen = await seen_by(w, visit, address, NOW + 60)
    assert (seen.shown_at, seen.held_until) == (NOW, NOW + LEASE)


async def test_of_holdings_that_all_began_after_writing_the_first_counts(w: World) -> None:
    visit, address = await twice(w)
    seen = await seen_by(w, visit, address, NOW - 60)
    assert seen.shown_at == NOW
