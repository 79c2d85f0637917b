"""What goes by age and by hand, and that nothing of it stays behind: index, body files, other people's shares."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Table, select, update

from relay.core.model import OutcomeKind
from relay.store import queue, retention, search
from relay.store.engine import Statement
from relay.store.events import PostResult, finish_post
from relay.store.retention import BITE, Cut, StillOpen, Swept
from relay.store.schema import (
    attempts,
    bindings,
    bodies,
    deliveries,
    events,
    messages,
    paths,
    post_attempts,
    posts,
    routes,
    texts,
    visits,
)
from tests.store_fixtures import DAY, NOW, OTHER, SHOP, TRACK, World, part, pool_target, site, target_of, world

CARD = f"card@{TRACK}"
NEVER = Cut(raw=0.0, messages=0.0, visits=0.0, routes=0.0)
OF_A_MESSAGE = (messages, bodies, deliveries, paths, attempts, events, posts, post_attempts, texts)


@pytest.fixture
async def w(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path, SHOP, OTHER) as found:
        yield found


async def sweep(w: World, **changes: float) -> Swept:
    return await w.store.write(lambda tx: retention.sweep(tx, replace(NEVER, **changes), w.now))


async def whole_life(w: World, *addresses: str, **changes: Any) -> int:
    """A message that was delivered, extracted, indexed and posted: a row in every table there is."""
    accepted = await w.accept(*(addresses or (CARD,)), **changes)
    for job in accepted.jobs:
        await w.finish(job)
    for post in await w.extract(accepted.message_id, "poster", attachments=[part()]):
        result = PostResult(post, "delivered", w.now, 200, "", w.now, 0.1)
        await w.store.write(lambda tx: finish_post(tx, result, w.now))  # noqa: B023
    await w.store.write(search.index)
    return accepted.message_id


async def found_by_search(w: World, word: str) -> list[int]:
    rows = await w.store.write(
        lambda tx: tx.sql("SELECT rowid FROM message_search WHERE message_search MATCH ?", [word])
    )
    return [row[0] for row in rows]


async def count(w: World, table: Table) -> int:
    return len(await w.rows(select(table)))


async def index_is_sound(w: World) -> None:
    """FTS5's own check of the index against the rows it is of; raises when the two differ."""
    await w.store.write(
        lambda tx: tx.sql("INSERT INTO message_search(message_search, rank) VALUES ('integrity-check', 1)")
    )


class TestByAge:
    async def test_bytes_go_first_and_the_message_stays(self, w: World) -> None:
        await whole_life(w)
        await whole_life(w, data=None, file="abc", digest=b"x")
        assert await sweep(w, raw=NOW) == Swept((), False, False)  # not older than that
        assert await sweep(w, raw=NOW + 1) == Swept(("abc",), False, False)
        assert await w.rows(select(messages.c.body_file, messages.c.raw_removed_at)) == [(None, NOW), (None, NOW)]
        assert await count(w, bodies) == 0
        assert await count(w, messages) == 2
        assert await sweep(w, raw=NOW + 1) == Swept((), False, False)

    async def test_the_message_goes_with_everything_about_it(self, w: World) -> None:
        await whole_life(w)
        for table in OF_A_MESSAGE:
            assert await count(w, table) == 1, table.name
        assert await sweep(w, messages=NOW + 1) == Swept((), False, False)
        for table in OF_A_MESSAGE:
            assert await count(w, table) == 0, table.name

    async def test_the_search_forgets_it(self, w: World) -> None:
        old = await whole_life(w)
        w.pass_time(DAY)
        new = await whole_life(w, body=b"new")
        assert await found_by_search(w, "hello") == [old, new]
        await sweep(w, messages=NOW + 1)
        assert await found_by_search(w, "hello") == [new]
        await index_is_sound(w)

    async def test_a_message_not_indexed_yet_goes_too(self, w: World) -> None:
        accepted = await w.accept(CARD)
        await w.finish(accepted.jobs[0])
        await w.extract(accepted.message_id)
        await sweep(w, messages=NOW + 1)
        assert await w.store.write(search.index) == 0
        await index_is_sound(w)

    async def test_its_body_file_is_named_once(self, w: World) -> None:
        await whole_life(w, data=None, file="abc")
        assert await sweep(w, raw=NOW + 1, messages=NOW + 1) == Swept(("abc",), False, False)

    @pytest.mark.parametrize("kind", [None, OutcomeKind.TEMPORARY, OutcomeKind.PERMANENT])
    async def test_what_waits_or_is_held_is_never_deleted_by_age(self, w: World, kind: OutcomeKind | None) -> None:
        accepted = await w.accept(CARD, f"help@{TRACK}")
        await w.extract(accepted.message_id)
        await w.finish(accepted.jobs[0])
        if kind is not None:
            await w.finish(accepted.jobs[1], kind)
        await sweep(w, raw=NOW + 1, messages=NOW + 1)
        assert (await count(w, messages), await count(w, bodies)) == (1, 1)

    async def test_what_is_not_read_yet_is_not_deleted(self, w: World) -> None:
        accepted = await w.accept(CARD)
        await w.finish(accepted.jobs[0])
        await sweep(w, raw=NOW + 1, messages=NOW + 1)
        assert (await count(w, messages), await count(w, bodies)) == (1, 1)

    async def test_what_was_dropped_or_looped_goes(self, w: World) -> None:
        (job,) = (accepted := await w.accept(CARD)).jobs
        await w.finish(job, OutcomeKind.TEMPORARY)
        await w.store.write(lambda tx: queue.drop(tx, [job.delivery_id], w.now))
        looped = await w.accept(CARD, body=b"loop", looped=True)
        for message_id in (accepted.message_id, looped.message_id):
            await w.extract(message_id)
        await sweep(w, messages=NOW + 1)
        assert await count(w, messages) == 0

    async def test_a_bite_is_bounded_and_says_that_there_is_more(self, w: World) -> None:
        many = BITE + 1
        for i in range(many):
            await w.bind("shop", "help@example.com", number=str(i + 1))
        assert (await sweep(w, visits=NOW + 1)).more
        assert await count(w, visits) == 1
        assert not (await sweep(w, visits=NOW + 1)).more
        assert await count(w, visits) == 0


class TestVisits:
    async def test_a_visit_goes_with_its_bindings_when_it_was_last_seen_before(self, w: World) -> None:
        visit, _ = await w.shown()
        w.pass_time(DAY)
        await w.shown(number=visit)
        assert not (await sweep(w, visits=NOW + 1)).routes
        assert await count(w, visits) == 1
        await sweep(w, visits=w.now + 1)
        assert (await count(w, visits), await count(w, bindings)) == (0, 0)

    async def test_its_unique_address_goes_on_forwarding_without_attribution(self, w: World) -> None:
        _, address = await w.shown("jobs@example.com")
        (job,) = (await w.accept(address)).jobs
        assert job.visit is not None
        swept = await sweep(w, visits=NOW + 1)
        assert swept.routes  # whoever caches routes has to forget them
        w.store.routes.forget_all()
        (job,) = (await w.accept(address, body=b"late")).jobs
        assert (job.forward_to, job.visit) == ("jobs@example.com", None)

    async def test_messages_outlive_their_visit(self, w: World) -> None:
        _, leased = await w.shown()
        await w.accept(leased)
        await sweep(w, visits=NOW + 1)
        assert await w.rows(select(deliveries.c.attribution, deliveries.c.visit_id)) == [("exact", None)]

    async def test_its_pool_address_can_be_given_to_the_next(self, w: World) -> None:
        await w.shown()
        await sweep(w, visits=NOW + 1)
        w.pass_time(10 * DAY)
        for _ in range(2):
            _, leased = await w.shown()
        (job,) = (await w.accept(leased)).jobs
        assert job.visit is not None


class TestRoutes:
    async def test_a_retired_route_ends_after_its_time(self, w: World) -> None:
        _, leased = await w.shown()
        await w.accept(leased)
        await w.declare(site("shop", target_of(SHOP.targets[1].method, "help@example.com")))
        w.pass_time(400 * DAY)
        assert not (await sweep(w, routes=NOW)).routes
        assert (await sweep(w, routes=NOW + 1)).routes
        assert await w.rows(select(routes.c.id).where(routes.c.retired_at.is_not(None))) == []
        w.store.routes.forget_all()
        assert (await w.recipient(leased)).route is None
        assert await count(w, deliveries) == 1

    async def test_live_routes_never_end(self, w: World) -> None:
        before = await count(w, routes)
        await sweep(w, routes=NOW + 1e9)
        assert await count(w, routes) == before


class TestErasure:
    async def erase(self, w: World, message_id: int, *names: str) -> tuple[str, ...] | None:
        sites = [w.site(name).id for name in names] or None
        return await w.store.write(lambda tx: retention.erase_message(tx, message_id, sites))

    async def test_nothing_of_an_erased_message_stays(self, w: World) -> None:
        message_id = await whole_life(w, data=None, file="abc")
        assert await self.erase(w, message_id) == ("abc",)
        for table in OF_A_MESSAGE:
            assert await count(w, table) == 0, table.name
        assert await found_by_search(w, "hello") == []
        await index_is_sound(w)
        assert await self.erase(w, message_id) is None

    async def test_a_small_body_names_no_file(self, w: World) -> None:
        assert await self.erase(w, await whole_life(w)) == ()

    async def test_what_is_still_being_forwarded_is_refused(self, w: World) -> None:
        accepted = await w.accept(CARD)
        with pytest.raises(StillOpen):
            await self.erase(w, accepted.message_id)
        assert await count(w, messages) == 1

    async def test_what_is_held_can_be_erased_by_hand(self, w: World) -> None:
        accepted = await w.accept(CARD)
        await w.finish(accepted.jobs[0], OutcomeKind.PERMANENT)
        assert await self.erase(w, accepted.message_id) == ()

    async def test_a_site_erases_its_share_and_no_other(self, w: World) -> None:
        _, mine = await w.shown()
        _, theirs = await w.shown(name="other")
        message_id = await whole_life(w, mine, theirs, data=None, file="abc")
        assert await self.erase(w, message_id, "shop") == ()
        for table in (deliveries, paths, events, posts, post_attempts):
            assert await count(w, table) == 1, table.name
        assert await w.rows(select(paths.c.recipient)) == [(theirs,)]
        assert await w.rows(select(events.c.site_id)) == [(w.site("other").id,)]
        assert await self.erase(w, message_id, "shop") is None
        assert await self.erase(w, message_id, "other") == ("abc",)
        for table in OF_A_MESSAGE:
            assert await count(w, table) == 0, table.name

    async def test_what_the_erased_share_carried_can_still_be_retried(self, w: World) -> None:
        _, mine = await w.shown()
        _, theirs = await w.shown(name="other")
        accepted = await w.accept(mine, theirs)
        await w.finish(accepted.jobs[0], OutcomeKind.PERMANENT)
        assert await self.erase(w, accepted.message_id, "shop") == ()
        ((left,),) = await w.rows(select(deliveries.c.id))
        assert await w.store.write(lambda tx: queue.retry(tx, None, w.now, w.now + DAY)) == [left]
        (job,) = await w.store.write(lambda tx: queue.claim_due(tx, {"example.com": 9}, "me", w.now))
        assert job.recipient == theirs

    async def test_a_share_that_is_still_being_forwarded_is_refused(self, w: World) -> None:
        accepted = await w.accept(CARD)
        with pytest.raises(StillOpen):
            await self.erase(w, accepted.message_id, "shop")
        assert await self.erase(w, accepted.message_id, "other") is None

    async def test_a_senders_messages_go_and_what_is_under_way_is_counted(self, w: World) -> None:
        await whole_life(w, data=None, file="abc")
        await whole_life(w, body=b"2")
        await w.accept(CARD, body=b"3")
        await whole_life(w, sender="bob@example.org", mail_from="bob@example.org")
        result = await w.store.write(lambda tx: retention.erase_sender(tx, "ann@example.org"))
        assert result == (2, 1, ("abc",))
        assert await w.rows(select(messages.c.sender).order_by(messages.c.id)) == [
            ("ann@example.org",),
            ("bob@example.org",),
        ]

    async def test_a_site_erases_its_share_of_a_sender(self, w: World) -> None:
        _, mine = await w.shown()
        _, theirs = await w.shown(name="other")
        await whole_life(w, mine, theirs)
        await whole_life(w, mine, body=b"2")
        await w.accept(mine, body=b"3")
        shop = w.site().id
        result = await w.store.write(lambda tx: retention.erase_sender(tx, "ann@example.org", [shop]))
        assert result == (2, 1, ())
        assert await w.rows(select(deliveries.c.recipient)) == [(theirs,), (mine,)]


async def test_orphans_are_the_files_that_no_message_names(w: World) -> None:
    await w.accept(CARD, data=None, file="mine")
    found = await w.store.write(lambda tx: retention.orphans(tx, ["mine", "a", "b"]))
    assert found == ["a", "b"]


async def test_the_bigger_the_history_the_same_the_work(w: World) -> None:
    """No step of the retention reads a whole table, cascades included: SQLite's program for it opens an index each."""
    every = (messages, deliveries, events, posts, visits, routes)
    for table in every:
        plan = await w.store.write(
            lambda tx: tx.sql(f"EXPLAIN QUERY PLAN DELETE FROM {table.name} WHERE id = 1")  # noqa: B023
        )
        assert not [row[3] for row in plan if row[3].startswith("SCAN")], table.name


async def test_a_swept_pool_with_no_domain_still_answers(tmp_path: Path) -> None:
    async with world(tmp_path, site("shop", pool_target("sales@example.com", CARD, domain=None))) as w:
        await w.shown()
        gone = Statement(update(visits).values(last_seen_at=0.0, started_at=0.0))
        await w.store.write(lambda tx: tx.run(gone))
        await sweep(w, visits=1.0)
        w.pass_time(DAY)
        assert (await w.shown())[1] == CARD
