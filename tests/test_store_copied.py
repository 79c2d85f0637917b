"""A database that goes on in its original's place, which has gone on as well since the copy was made."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from sqlalchemy import func, select

from relay.store import clock, copied, figures, migrate
from relay.store.copied import LEAP, as_copy, is_copy, take_place
from relay.store.engine import Tx
from relay.store.routes import NOBODY
from relay.store.schema import bindings, deliveries, messages, visits
from relay.store.store import DATABASE
from tests.file_fixtures import attachments, of_one_file, stored
from tests.store_fixtures import DAY, LEASE, NOW, TRACK, World, fresh_database, opened, world
from tests.webapi_fixtures import serving

HOUR = 3600.0
CARD = f"card@{TRACK}"
Backup = Callable[[World], Path]


@pytest.fixture
async def w(tmp_path: Path) -> AsyncIterator[World]:
    (tmp_path / "original").mkdir()
    async with world(tmp_path / "original") as found:
        yield found


@pytest.fixture
def backup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Backup:
    """A copy of a world's database as it is now, in a directory of its own."""

    def made(w: World) -> Path:
        directory = tmp_path / "copy"
        directory.mkdir()
        monkeypatch.setattr(migrate, "time", SimpleNamespace(time=lambda: w.now))
        migrate.backup(w.store.path, directory / DATABASE)
        return directory

    return made


@contextlib.asynccontextmanager
async def restored(directory: Path, now: float) -> AsyncIterator[World]:
    async with opened(directory, now) as store:
        yield World(store, now)


def numbered(directory: Path) -> dict[str, int]:
    with contextlib.closing(sqlite3.connect(directory / DATABASE)) as connection:
        return dict(connection.execute("SELECT name, seq FROM sqlite_sequence"))


class TestNumbers:
    async def test_no_letter_has_the_number_of_one_that_the_original_took_since(self, w: World, backup: Backup) -> None:
        await w.accept(CARD)
        directory = backup(w)
        since = await w.accept(CARD, body=b"since")
        async with restored(directory, w.now) as again:
            later = await again.accept(CARD, body=b"later")
            assert later.message_id > since.message_id + LEAP / 2
            assert await again.rows(select(func.max(deliveries.c.id))) > [(LEAP,)]
            assert await again.rows(select(messages.c.id).order_by(messages.c.id)) == [(1,), (later.message_id,)]

    async def test_a_link_to_what_the_original_took_since_opens_nothing(self, tmp_path: Path, backup: Backup) -> None:
        (tmp_path / "original").mkdir()
        async with serving(tmp_path / "original") as api:
            directory = backup(api.w)
            message, part = of_one_file(b"of Ann")
            (of_ann,) = await attachments(api, await stored(api, message, attachments=[part]))
            path = of_ann["url"].removeprefix(api.url)
            assert (await api.request("GET", path))[1] == b"of Ann"
        async with serving(directory) as api:
            message, part = of_one_file(b"of Bob")
            (of_bob,) = await attachments(api, await stored(api, message, attachments=[part]))
            response, octets = await api.request("GET", path)
            assert response.status == 410
            assert b"of Bob" not in octets
            response, octets = await api.request("GET", of_bob["url"].removeprefix(api.url))
            assert octets == b"of Bob"

    def test_a_copy_of_an_empty_table_leaves_numbers_to_the_original_as_well(self, tmp_path: Path) -> None:
        path = fresh_database(tmp_path)
        before = numbered(tmp_path)
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
            as_copy(connection, NOW)
        assert not before.keys() & set(copied.NUMBERED)
        assert numbered(tmp_path) == before | dict.fromkeys(copied.NUMBERED, LEAP)

    async def test_one_that_is_put_in_place_twice_does_not_give_the_same_numbers_again(
        self, w: World, backup: Backup
    ) -> None:
        kept = (backup(w) / DATABASE).read_bytes()
        ids = []
        for hours in (1, 2):
            directory = w.store.path.parent.with_name(f"restored-{hours}")
            directory.mkdir()
            (directory / DATABASE).write_bytes(kept)
            async with restored(directory, w.now + hours * HOUR) as again:
                ids += [(await again.accept(CARD, body=b"%d" % number)).message_id for number in range(3)]
        assert len(set(ids)) == 6


class TestHoldings:
    """Who was shown a pool address since the copy was made is not known to it."""

    async def states(self, w: World) -> list[str]:
        found = await w.rows(select(deliveries.c.attribution).order_by(deliveries.c.id))
        return [state for (state,) in found]

    async def test_a_letter_of_the_gap_is_not_stated_as_an_earlier_holders(self, w: World, backup: Backup) -> None:
        _, address = await w.shown()
        w.pass_time(LEASE)
        directory = backup(w)
        async with restored(directory, w.now + 15 * HOUR) as again:
            await again.accept(address, written_at=w.now + 14 * HOUR)
            assert await self.states(again) == ["likely"]
        async with restored(directory, w.now + 16 * HOUR) as again:  # the same is still so after another start
            await again.accept(address, body=b"2", written_at=w.now + 14 * HOUR)
            assert await self.states(again) == ["likely", "likely"]

    async def test_nor_as_the_next_holders(self, w: World, backup: Backup) -> None:
        directory = backup(w)
        async with restored(directory, w.now + 15 * HOUR) as again:
            _, address = await again.shown()
            again.pass_time(60)
            await again.accept(address, written_at=w.now + 14 * HOUR)
            assert await self.states(again) == ["likely"]

    async def test_nor_where_the_clock_was_behind_the_copy_at_the_start(self, w: World, backup: Backup) -> None:
        _, address = await w.shown()
        w.pass_time(LEASE)
        directory = backup(w)
        wrong, right = 0.0, w.now + 15 * HOUR
        async with restored(directory, wrong) as again:
            began = await again.store.write(lambda tx: clock.began(tx, wrong))
            again.now = right
            await again.store.write(lambda tx: clock.was_set(tx, right - wrong, right, began.moved))
            await again.accept(address, written_at=w.now + 14 * HOUR)
            assert await self.states(again) == ["likely"]

    async def test_a_day_after_the_start_an_address_is_its_holders_again(self, w: World, backup: Backup) -> None:
        directory = backup(w)
        async with restored(directory, w.now + 15 * HOUR) as again:
            again.pass_time(DAY + 60)
            _, address = await again.shown()
            await again.accept(address)
            assert await self.states(again) == ["exact"]

    async def test_of_each_pool_address_it_is_put_down_once(self, w: World, backup: Backup) -> None:
        directory = backup(w)
        gap = select(bindings.c.started_at, bindings.c.ended_at).join(visits).where(visits.c.number.like(f"{NOBODY}%"))
        for now in (w.now + HOUR, w.now + 2 * HOUR):
            async with restored(directory, now) as again:
                assert not await is_copy(again.store.reader)
                assert await again.rows(gap) == [(w.now - w.now % 60, w.now + HOUR)] * 2

    async def test_it_is_no_visit_by_which_the_script_was_seen(self, w: World, backup: Backup) -> None:
        await w.shown()
        seen = w.now
        w.pass_time(HOUR)
        directory = backup(w)
        async with restored(directory, w.now + HOUR) as again:
            assert await figures.last_seen(again.store.reader, again.site().id) == seen

    async def test_a_start_that_does_not_get_through_leaves_it_to_the_next(self, tmp_path: Path) -> None:
        def killed(tx: Tx) -> None:
            take_place(tx, NOW)
            raise LookupError

        async with world(tmp_path) as w:
            await w.store.write(lambda tx: tx.sql("PRAGMA user_version = 1"))
            with pytest.raises(LookupError):
                await w.store.write(killed)
            assert await is_copy(w.store.reader)
            assert await w.rows(select(visits.c.id)) == []

    async def test_a_copy_of_a_copy_is_as_old_as_that(self, w: World, backup: Backup) -> None:
        directory = backup(w)
        with contextlib.closing(sqlite3.connect(directory / DATABASE, isolation_level=None)) as connection:
            as_copy(connection, w.now + DAY)
            assert connection.execute("PRAGMA user_version").fetchone() == (w.now // 60,)
