"""What the page of addresses asks of the store: states, holders, last letters, figures, free names."""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import ClauseElement, update
from sqlalchemy.dialects import sqlite

from relay.core.address import parse
from relay.store import addresses
from relay.store.addresses import Row, State
from relay.store.engine import Statement
from relay.store.schema import routes, visits
from relay.store.sites import add_to_pool, grow_pool, retire_substitute
from tests.store_fixtures import DAY, LEASE, OTHER, SHOP, TRACK, World, address, pool_target, site, template, world

SALES, HELP, JOBS = "sales@example.com", "help@example.com", "jobs@example.com"
INFO1, INFO2, CARD = f"info1@{TRACK}", f"info2@{TRACK}", f"card@{TRACK}"


@pytest.fixture
async def w(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path, SHOP, OTHER) as found:
        yield found


async def listed(w: World, state: State | None = None, text: str = "", **options: int) -> dict[str, Row]:
    rows = await addresses.page(w.store.reader, w.target().id, w.now, state, text, **options)
    return {row.address: row for row in rows}


async def grow(w: World, count: int) -> None:
    shop, target = w.site().id, w.target().id
    await w.store.redefine(lambda tx: grow_pool(tx, shop, target, "sales", TRACK, count, w.now))


async def retire(w: World, text: str) -> None:
    shop = w.site().id
    assert await w.store.redefine(lambda tx: retire_substitute(tx, shop, parse(text), w.now))


class TestStates:
    async def test_an_address_is_unused_then_leased_then_free(self, w: World) -> None:
        assert {name: row.state for name, row in (await listed(w)).items()} == {
            INFO1: State.UNUSED,
            INFO2: State.UNUSED,
            CARD: State.STATIC,
        }
        began = w.now
        visit, _ = await w.shown(SALES)
        row = (await listed(w))[INFO1]
        assert (row.state, row.holder, row.held_since, row.until) == (State.LEASED, visit, began, began + LEASE)
        w.pass_time(LEASE)
        row = (await listed(w))[INFO1]
        assert (row.state, row.holder, row.until) == (State.FREE, visit, began + LEASE)
        assert (await listed(w))[INFO2].until is None

    async def test_a_static_address_has_its_label_and_says_that_it_is_declared(self, w: World) -> None:
        row = (await listed(w))[CARD]
        assert (row.kind, row.label, row.declared, row.holder) == ("static", "card", True, None)

    async def test_a_retired_address_says_since_when(self, w: World) -> None:
        await grow(w, 1)
        await w.shown(SALES)
        w.pass_time(60)
        await retire(w, f"sales1@{TRACK}")
        row = (await listed(w))[f"sales1@{TRACK}"]
        assert (row.state, row.retired_at, row.kind) == (State.RETIRED, w.now, "pool")

    async def test_what_another_site_had_rests(self, w: World) -> None:
        taking = site("other", pool_target(SALES, INFO2, domain=None))
        less = site("shop", pool_target(SALES, INFO1))
        await w.declare(less, taking)
        old, row = await addresses.page(w.store.reader, w.target(name="other").id, w.now)
        assert (row.address, row.state, row.holder, row.until) == (INFO2, State.RESTING, None, w.now + DAY)
        assert old.state is State.RETIRED

    async def test_an_erased_or_forgotten_visit_has_no_number(self, w: World) -> None:
        visit, _ = await w.shown(SALES)
        erase = Statement(update(visits).where(visits.c.number == visit).values(erased_at=1.0))
        await w.store.write(lambda tx: tx.run(erase))
        row = (await listed(w))[INFO1]
        assert (row.holder, row.erased, row.state) == (None, True, State.LEASED)
        await w.store.write(lambda tx: tx.sql("DELETE FROM visits"))
        row = (await listed(w))[INFO1]
        assert (row.holder, row.erased, row.state) == (None, False, State.LEASED)

    async def test_unique_and_base_addresses_are_not_listed(self, w: World) -> None:
        await w.bind()
        for target in (HELP, JOBS):
            assert await addresses.page(w.store.reader, w.target(target).id, w.now) == []
            assert await addresses.counts(w.store.reader, w.target(target).id, w.now) == {}


class TestChoosing:
    async def test_counts_and_lists_agree_for_every_state(self, w: World) -> None:
        await grow(w, 20)
        for _ in range(5):
            await w.shown(SALES)
        w.pass_time(LEASE)
        for _ in range(3):
            await w.shown(SALES)
        await retire(w, f"sales1@{TRACK}")
        found = await addresses.counts(w.store.reader, w.target().id, w.now)
        assert found == {State.LEASED: 3, State.FREE: 4, State.UNUSED: 14, State.STATIC: 1, State.RETIRED: 1}
        for state in State:
            rows = await listed(w, state)
            assert {row.state for row in rows.values()} <= {state}
            assert len(rows) == found.get(state, 0)
            assert await addresses.count(w.store.reader, w.target().id, w.now, state) == len(rows)

    async def test_pages_follow_each_other_without_a_gap(self, w: World) -> None:
        await grow(w, 40)
        whole = list(await listed(w, most=1000))
        assert len(whole) == 43
        pages = [list(await listed(w, first=first, most=10)) for first in range(0, 60, 10)]
        assert [name for found in pages for name in found] == whole
        assert [len(found) for found in pages] == [10, 10, 10, 10, 3, 0]

    @pytest.mark.parametrize(
        ("text", "found"),
        [
            ("info", [INFO1, INFO2]),
            ("INFO2", [INFO2]),
            (INFO2, [INFO2]),
            ("fo1@TRACK", [INFO1]),
            ("info1@other", []),
            ("info@", []),
            ("%", []),
            ("_nfo", []),
            ("\\", []),
            ("' OR 1=1 --", []),
            ("@track.example.com", [INFO1, INFO2, CARD]),
        ],
    )
    async def test_a_part_of_an_address_finds_it(self, w: World, text: str, found: list[str]) -> None:
        assert list(await listed(w, text=text)) == found
        assert await addresses.count(w.store.reader, w.target().id, w.now, None, text) == len(found)


class TestLetters:
    async def routes(self, w: World) -> dict[str, int]:
        return {name: row.id for name, row in (await listed(w)).items()}

    async def test_the_last_one_and_how_many_there_are(self, w: World) -> None:
        await w.shown(SALES)
        await w.accept(INFO1)
        w.pass_time(60)
        last = await w.accept(INFO1, body=b"From: b@example.org\r\n\r\n2\r\n")
        routes = await self.routes(w)
        latest = await addresses.latest(w.store.reader, w.site().id)
        assert (latest.walked, latest.older) == (2, False)
        found = await addresses.last_letters(w.store.reader, latest.by_route, routes.values())
        assert set(found) == {routes[INFO1]}
        letter = found[routes[INFO1]]
        assert (letter.message_id, letter.received_at, letter.attribution, letter.count) == (
            last.message_id,
            w.now,
            "exact",
            2,
        )
        found = await addresses.last_letters(w.store.reader, latest.by_target, [w.target().id])
        assert found[w.target().id] == letter

    async def test_another_sites_letters_are_not_seen(self, w: World) -> None:
        await w.accept(INFO1)
        routes = await self.routes(w)
        other, own = [await addresses.latest(w.store.reader, w.site(name).id) for name in ("other", "shop")]
        assert (other.walked, other.by_route, other.older) == (0, {}, False)
        assert await addresses.last_letters(w.store.reader, other.by_route, routes.values()) == {}
        assert await addresses.last_letters(w.store.reader, own.by_route, []) == {}

    async def test_a_letter_that_is_gone_since_is_left_out(self, w: World) -> None:
        await w.accept(INFO1)
        latest = await addresses.latest(w.store.reader, w.site().id)
        await w.store.write(lambda tx: tx.sql("DELETE FROM messages"))
        assert await addresses.last_letters(w.store.reader, latest.by_target, [w.target().id]) == {}

    async def test_only_the_latest_are_looked_through(self, w: World, monkeypatch: pytest.MonkeyPatch) -> None:
        await w.accept(CARD)
        await w.accept(INFO1, body=b"From: b@example.org\r\n\r\n2\r\n")
        monkeypatch.setattr(addresses, "LATEST", 1)
        routes = await self.routes(w)
        latest = await addresses.latest(w.store.reader, w.site().id)
        assert (latest.walked, latest.older, set(latest.by_route)) == (1, True, {routes[INFO1]})


class TestFigures:
    async def test_minted_addresses_of_a_day(self, w: World) -> None:
        unique = w.target(JOBS).id
        assert await addresses.minted(w.store.reader, unique, w.now) == addresses.Minted(0, None, False)
        await w.shown(JOBS)
        w.pass_time(DAY)
        await w.shown(JOBS)
        await w.shown(JOBS)
        assert await addresses.minted(w.store.reader, unique, w.now) == addresses.Minted(2, w.now, False)
        assert (await addresses.minted(w.store.reader, w.target().id, w.now)).count == 0

    async def test_an_exhausted_pool_is_counted_by_day(self, w: World) -> None:
        for _ in range(5):
            await w.shown(SALES)
        assert await addresses.exhausted(w.store.reader, w.site().id, w.now) == 3
        assert await addresses.exhausted(w.store.reader, w.site().id, w.now + DAY) == 0
        assert await addresses.exhausted(w.store.reader, w.site("other").id, w.now) == 0


class TestFreeNames:
    async def test_they_are_those_that_a_growing_pool_would_get(self, w: World) -> None:
        shop, target = w.site().id, w.target().id
        added = [address("sales2"), address("SALES5"), address("sales-7"), address("sales10x")]
        await w.store.redefine(lambda tx: add_to_pool(tx, shop, target, added, w.now))
        free = await addresses.free_names(w.store.reader, "sales", TRACK, 5)
        assert [name.local for name in free] == ["sales1", "sales3", "sales4", "sales6", "sales7"]
        made = await w.store.redefine(lambda tx: grow_pool(tx, shop, target, "sales", TRACK, 5, w.now))
        assert made == free

    async def test_a_mailbox_is_not_free(self, w: World) -> None:
        besides = [parse("sales1@shop.example"), parse("sales2@elsewhere.example")]
        free = await addresses.free_names(w.store.reader, "sales", "shop.example", 2, besides)
        assert [str(name) for name in free] == ["sales2@shop.example", "sales3@shop.example"]

    async def test_a_stem_that_is_no_plain_name_has_none(self, w: World) -> None:
        with pytest.raises(ValueError, match="plain"):
            await addresses.free_names(w.store.reader, "a+b", TRACK, 1)


@pytest.mark.parametrize(
    ("query", "index"),
    [
        (addresses._chosen(1, 1.0, State.FREE, "x").order_by(routes.c.id), "ix_routes_listed (target_id=?)"),
        (addresses._LATEST._statement, "ix_deliveries_site_id_message_id (site_id=?)"),
        (addresses._OLDER._statement, "ix_deliveries_site_id_message_id (site_id=? AND message_id<?)"),
        (addresses._COUNTS._statement, "ix_routes_listed (target_id=?)"),
    ],
)
def test_a_list_reads_no_more_than_it_needs(query: ClauseElement, index: str) -> None:
    compiled = query.compile(dialect=sqlite.dialect(paramstyle="named"), compile_kwargs={"render_postcompile": True})
    values = dict.fromkeys(re.findall(r":(\w+)", str(compiled)), 1)
    with contextlib.closing(sqlite3.connect(f"{template().as_uri()}?mode=ro", uri=True)) as database:
        steps = [row[3] for row in database.execute(f"EXPLAIN QUERY PLAN {compiled}", values)]
    assert any(step.endswith(f" INDEX {index}") for step in steps), steps
    assert [step for step in steps if step.startswith("SCAN ") and " anon_" not in step] == []
