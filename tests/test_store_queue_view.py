"""Reading the queue: what is listed and counted, page by page, and by which index."""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.sql import ClauseElement

from relay.core.model import DeliveryState, OutcomeKind
from relay.store import queue_view, reader
from relay.store.queue_view import QueueFilter
from relay.store.schema import deliveries
from tests.store_fixtures import NOW, OTHER, SHOP, TRACK, World, template, world

CARD, HELP = f"card@{TRACK}", f"help@{TRACK}"
WAITING = frozenset((DeliveryState.QUEUED, DeliveryState.DEFERRED))
HELD = frozenset((DeliveryState.FAILED,))
NOBODY = frozenset({99})
NUMBERS = itertools.count()  # the same bytes again would be a mail sent again, and not forwarded twice


@pytest.fixture
async def w(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path, SHOP, OTHER) as found:
        yield found


async def letters(w: World, count: int, to: str = CARD) -> list[int]:
    """Letters that wait, a second between them; the ids of their deliveries."""
    found = []
    for _ in range(count):
        (job,) = (await w.accept(to, body=b"%d" % next(NUMBERS))).jobs
        await w.finish(job, OutcomeKind.TEMPORARY)
        found.append(job.delivery_id)
        w.pass_time(1)
    return found


class TestList:
    async def test_it_shows_what_waits_or_is_held_and_nothing_twice(self, w: World) -> None:
        _, mine = await w.shown()
        _, theirs = await w.shown(name="other")
        await w.accept(mine, theirs)  # the second is carried by the first, and not listed
        (held,) = (await w.accept(HELP)).jobs
        await w.finish(held, OutcomeKind.PERMANENT)
        (done,) = (await w.accept(CARD)).jobs
        await w.finish(done)
        listed = await queue_view.listed(w.store.reader, QueueFilter(), 10)
        assert [(row["recipient"], row["state"], row["site"]) for row in listed] == [
            (mine, "queued", "shop"),
            (HELP, "failed", "shop"),
        ]
        assert (listed[1]["code"], listed[1]["answer"], listed[1]["finished_at"]) == (550, "it is permanent", NOW)

    async def test_one_that_is_carried_is_there_for_who_does_not_see_its_carrier(self, w: World) -> None:
        _, mine = await w.shown()
        _, theirs = await w.shown(name="other")
        await w.accept(mine, theirs)
        (carrier, carried) = [row[0] for row in await w.rows(select(deliveries.c.id).order_by(deliveries.c.id))]
        shop, other = w.site().id, w.site("other").id
        for sites, expected in (
            (None, {carrier: carrier}),
            (frozenset({shop}), {carrier: carrier}),
            (frozenset({other}), {carried: carrier}),
            (frozenset({shop, other}), {carrier: carrier}),
            (NOBODY, {}),
        ):
            assert await queue_view.ids(w.store.reader, QueueFilter(sites)) == expected, sites
            assert (await queue_view.summary(w.store.reader, False, QueueFilter(sites))).count == len(expected)
        (row,) = await queue_view.listed(w.store.reader, QueueFilter(frozenset({other})), 1)
        assert (row["recipient"], row["next_at"], row["attempts"]) == (theirs, NOW, 1)
        found = await queue_view.summary(w.store.reader, False, QueueFilter(frozenset({other})))
        assert (found.next_at, [one.next_at for one in found.destinations]) == (None, [None])

    @pytest.mark.parametrize("newest", [False, True])
    async def test_pages_go_on_where_the_last_one_ended(self, w: World, newest: bool) -> None:
        first = await letters(w, 3)
        w.now = NOW  # and two that are due at the same time as others
        second = await letters(w, 2)
        ids = [first[0], second[0], first[1], second[1], first[2]]
        seen: list[int] = []
        after = None
        for _ in range(3):
            rows = await queue_view.listed(w.store.reader, QueueFilter(), 2, after, newest=newest)
            seen += [row["id"] for row in rows]
            after = rows[-1]["place"], rows[-1]["id"]
        assert seen == (ids[::-1] if newest else ids)

    async def test_every_filter_alone(self, w: World) -> None:
        (card,) = await letters(w, 1)
        _, theirs = await w.shown(name="other")
        (other,) = await letters(w, 1, theirs)
        (operator,) = await letters(w, 1, "postmaster@mx.example")
        (queued,) = (await w.accept(HELP, sender="bob@example.org", body=b"q")).jobs
        (failed,) = (await w.accept(HELP, body=b"f")).jobs
        await w.finish(failed, OutcomeKind.PERMANENT)
        held = failed.delivery_id
        for wanted, expected in (
            (QueueFilter(), {card, other, operator, queued.delivery_id, held}),
            (QueueFilter(states=WAITING), {card, other, operator, queued.delivery_id}),
            (QueueFilter(states=HELD), {held}),
            (QueueFilter(states=frozenset((DeliveryState.DEFERRED,))), {card, other, operator}),
            (QueueFilter(states=frozenset((DeliveryState.QUEUED,))), {queued.delivery_id}),
            (QueueFilter(sites=frozenset({w.site("other").id})), {other}),
            (QueueFilter(sites=NOBODY), set()),
            (QueueFilter(destination="example.net"), {operator}),
            (QueueFilter(destination="example.org"), set()),
            (QueueFilter(sender="bob@example.org"), {queued.delivery_id}),
            (QueueFilter(ids=(card, held, 999)), {card, held}),
            (QueueFilter(frozenset({w.site().id}), ids=(card, other)), {card}),
        ):
            assert set(await queue_view.ids(w.store.reader, wanted)) == expected, wanted
            listed = await queue_view.listed(w.store.reader, wanted, 10)
            assert {row["id"] for row in listed} == expected, wanted


class TestSummary:
    async def test_it_counts_by_destination_with_one_of_the_latest_answers(self, w: World) -> None:
        await letters(w, 3)
        await letters(w, 1, "postmaster@mx.example")
        (held,) = (await w.accept(HELP)).jobs
        await w.finish(held, OutcomeKind.PERMANENT)
        waiting = await queue_view.summary(w.store.reader, False, QueueFilter())
        assert (waiting.count, waiting.next_at, waiting.others) == (4, NOW + 60, 0)
        assert [(one.name, one.count, one.code) for one in waiting.destinations] == [
            ("example.com", 3, 450),
            ("example.net", 1, 450),
        ]
        given_up = await queue_view.summary(w.store.reader, True, QueueFilter())
        assert [(one.name, one.count, one.answer) for one in given_up.destinations] == [
            ("example.com", 1, "it is permanent")
        ]
        assert (await queue_view.summary(w.store.reader, False, QueueFilter(NOBODY))).count == 0

    async def test_of_very_many_destinations_the_fullest_are_named(
        self, w: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(queue_view, "MOST_DESTINATIONS", 1)
        await letters(w, 1)
        await letters(w, 2, "postmaster@mx.example")
        found = await queue_view.summary(w.store.reader, False, QueueFilter())
        assert ([one.name for one in found.destinations], found.others, found.count) == (["example.net"], 1, 3)

    async def test_posts_that_wait_are_counted_by_webhook(self, w: World) -> None:
        for number in range(2):
            accepted = await w.accept(CARD, body=b"%d" % number)
            await w.extract(accepted.message_id)
        shop, other = w.site().webhooks[0].id, w.site("other").webhooks[0].id
        assert await queue_view.posts_waiting(w.store.reader, [shop, other]) == {shop: (2, NOW)}
        assert await queue_view.posts_waiting(w.store.reader, []) == {}


def plan(statement: ClauseElement) -> list[str]:
    compiled = statement.compile(dialect=reader._DIALECT, compile_kwargs={"render_postcompile": True})
    with contextlib.closing(sqlite3.connect(f"{template().as_uri()}?mode=ro", uri=True)) as database:
        return [row[3] for row in database.execute(f"EXPLAIN QUERY PLAN {compiled}", compiled.params)]


@pytest.mark.parametrize(
    ("sites", "destination", "after"),
    list(itertools.product((None, frozenset({1})), (None, "example.com"), (None, (NOW, 1)))),
)
def test_only_the_rows_of_a_page_are_read(
    sites: frozenset[int] | None, destination: str | None, after: tuple[float, int] | None
) -> None:
    wanted = QueueFilter(sites=sites, destination=destination)
    steps = plan(queue_view.listing(wanted, 50, after))
    of_deliveries = [step for step in steps if " deliveries " in step]
    covered = [step for step in of_deliveries if "COVERING INDEX ix_deliveries_" in step]
    assert {name for step in covered for name in ("open", "held") if f"deliveries_{name}" in step} == {"open", "held"}
    assert set(of_deliveries) - set(covered) == {"SEARCH deliveries USING INTEGER PRIMARY KEY (rowid=?)"}, steps
