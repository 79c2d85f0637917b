"""The advice for a pool: what it rests on, how long it is kept."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from relay.core import sizing
from relay.core.sizing import recommend
from relay.store import figures
from tests.store_fixtures import LEASE, World, world
from webapi import advisor
from webapi.advisor import ATTENDANCE, KEPT, Advisor, Attendance


@pytest.fixture
async def w(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as found:
        yield found


async def asked(w: World, who: Advisor, lease: float = LEASE) -> Attendance:
    return await who.attendance(w.store.reader, w.site().id, lease, w.now)


async def test_it_says_what_the_api_says_with_the_hours_before_now(w: World) -> None:
    for _ in range(3):
        await w.bind()
    w.pass_time(3600)
    await w.bind()
    found = await asked(w, Advisor())
    stays = await figures.stays(w.store.reader, w.site().id, w.now - ATTENDANCE, 10)
    assert found.advice.recommendation == recommend(stays, LEASE)
    assert (found.advice.visits, found.cut) == (4, False)
    assert (len(found.busy), found.busy[-3:]) == (72, (0, 0, 3))  # the last visit began with the hour to come


async def test_it_is_kept_for_a_minute(w: World) -> None:
    who = Advisor()
    first = await asked(w, who)
    await w.bind()
    assert await asked(w, who) is first
    assert (await asked(w, who, lease=60.0)).advice.visits == 1
    w.pass_time(KEPT)
    assert (await asked(w, who)).advice.visits == 1


async def test_a_clock_that_was_set_back_does_not_keep_it_for_ever(w: World) -> None:
    who = Advisor()
    first = await asked(w, who)
    w.pass_time(-1)
    assert await asked(w, who) is not first


async def test_many_who_ask_at_once_let_it_be_worked_out_once(w: World) -> None:
    who = Advisor()
    found = await asyncio.gather(*(asked(w, who) for _ in range(5)))
    assert all(one is found[0] for one in found)


async def test_how_much_room_there_is_is_worked_out_in_a_thread(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def headroom(size: int, needed: int) -> float:
        seen.append(threading.current_thread())
        return size / needed

    monkeypatch.setattr(sizing, "headroom", headroom)
    assert await Advisor().room(30, 10) == 3.0
    assert seen != [threading.main_thread()]


async def test_what_is_left_out_is_said(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advisor, "MOST_VISITS", 2)
    for _ in range(3):
        await w.bind()
    found = await asked(w, Advisor())
    assert (found.cut, found.advice.visits) == (True, 2)
