"""The list of messages: every filter alone and for readers who see only some sites, and by which index it is read."""

from __future__ import annotations

import contextlib
import itertools
import re
import sqlite3
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import and_, select
from sqlalchemy.sql import ClauseElement

from relay.store import deals, history, history_pages, queue, reader, retention, search
from relay.store.engine import Tx
from relay.store.history import Filter
from relay.store.history_filter import Span, all_messages, candidates, conditions
from relay.store.schema import messages
from tests.post_fixtures import claim
from tests.store_fixtures import (
    DAY,
    NOW,
    OTHER,
    SHOP,
    TRACK,
    World,
    hook,
    opened,
    pool_target,
    site,
    static,
    template,
    world,
)

NOBODY = frozenset({99})


@pytest.mark.parametrize(
    "wanted",
    [
        {},
        {"query": "brass"},
        {"state": "queued"},
        {"sender": "alice@example.org"},
        {"visit": "VISIT"},
        {"since": 0.0, "until": 1e12},
    ],
    ids=str,
)
async def test_a_filter_finds_the_same_for_all_and_for_the_site_and_nothing_for_strangers(
    tmp_path: Path, wanted: dict[str, object]
) -> None:
    async with world(tmp_path) as w:
        bound = await w.bind()
        accepted = await w.accept(bound.substitutes[w.target().id])
        await w.extract(accepted.message_id, text="brass lamps")
        await w.store.write(search.index)
        if "sender" in wanted:
            ((wanted["sender"],),) = await w.store.reader.all(select(messages.c.sender))
        if "visit" in wanted:
            wanted = {"visit": bound.visit}
        for sites, expected in ((None, [1]), (frozenset({1}), [1]), (NOBODY, [])):
            found = await history.page(w.store.reader, Filter(sites=sites, **wanted), 10)  # type: ignore[arg-type]
            assert [row.id for row in found] == expected, (sites, wanted)


def plan(statement: ClauseElement) -> list[str]:
    compiled = statement.compile(dialect=reader._DIALECT, compile_kwargs={"render_postcompile": True})
    with contextlib.closing(sqlite3.connect(f"{template().as_uri()}?mode=ro", uri=True)) as database:
        return [row[3] for row in database.execute(f"EXPLAIN QUERY PLAN {compiled}", compiled.params)]


SITES = [None, frozenset({1}), frozenset({1, 2})]


@pytest.mark.parametrize("oldest", [False, True])
@pytest.mark.parametrize("sites", SITES)
@pytest.mark.parametrize(
    ("wanted", "index"),
    [
        ({"state": "failed"}, "ix_messages_unfinished"),
        ({"state": "dropped"}, "ix_messages_unfinished"),
        ({"sender": "ann@example.org"}, "ix_messages_sender"),
        ({"deal": True}, "ix_events_dealt"),
        ({"visit": "1"}, "ix_deliveries_visit_id"),
        ({}, "ix_deliveries_site_id_message_id"),
        ({"state": "forwarded"}, "ix_deliveries_site_id_message_id"),
        ({"source": "google", "deal": False}, "ix_deliveries_site_id_message_id"),
    ],
    ids=str,
)
def test_candidates_come_from_an_index_in_order(
    sites: frozenset[int] | None, wanted: dict[str, Any], index: str, oldest: bool
) -> None:
    ways = candidates(Filter(sites=sites, **wanted))
    span = Span(5, 99, oldest)
    if sites is None and index == "ix_deliveries_site_id_message_id":  # nothing else would narrow it down
        assert ways == []
        steps = plan(all_messages(span, 10))
        assert steps == ["SEARCH messages USING INTEGER PRIMARY KEY (rowid>? AND rowid<?)"]
        return
    steps = plan(ways[0](span, 10))
    assert any(index in step for step in steps), steps
    assert [step for step in steps if re.match("SCAN (messages|deliveries|events|visits)", step)] == []
    sorts = [step for step in steps if "TEMP B-TREE" in step]
    # Several lists are merged: at most so many of each, or all of a visit's.
    assert not sorts or sites == frozenset({1, 2}) or "visit" in wanted or "state" in wanted, steps


@pytest.mark.parametrize("sites", SITES)
@pytest.mark.parametrize(
    "wanted",
    [
        {"state": "failed"},
        {"deal": True},
        {"deal": False},
        {"visit": "1"},
        {"source": "google"},
        {"sender": "a@b.example", "since": 1.0, "until": 2.0},
    ],
    ids=str,
)
def test_each_candidate_is_looked_at_by_its_own_rows(sites: frozenset[int] | None, wanted: dict[str, Any]) -> None:
    drawn = all_messages(Span(0, 99), 10).subquery()
    own = and_(*conditions(Filter(sites=sites, **wanted)))
    steps = plan(select(drawn.c.id, own).outerjoin(messages, messages.c.id == drawn.c.id))
    scans = [step for step in steps if re.match("SCAN [a-z]", step)]
    assert set(scans) <= {"SCAN anon_1", "SCAN sites USING COVERING INDEX sqlite_autoindex_sites_1"}, steps
    assert all("message_id=?" in step or "rowid=?" in step for step in steps if re.match("SEARCH (deliv|event)", step))


async def ids(w: World, **wanted: Any) -> list[int]:
    return [row.id for row in await history.page(w.store.reader, Filter(**wanted), 100)]


async def pages(w: World, limit: int, **wanted: Any) -> tuple[list[int], int]:
    """The ids of all pages, and the number of pages."""
    found: list[int] = []
    count, cursor = 0, None
    while count == 0 or cursor is not None:
        one = await history.browse(w.store.reader, Filter(**wanted, cursor=cursor), limit)
        assert len(one.rows) <= limit
        found += [row.id for row in one.rows]
        count, cursor = count + 1, one.next
    return found, count


class TestFilters:
    async def test_by_source_is_its_marker_or_its_first_level(self, tmp_path: Path) -> None:
        async with world(tmp_path) as w:
            letters = {}
            marks = ("utm_source=google&utm_medium=ads", "utm_source=google", "utm_source=googlier", "rs=google_ads_x")
            for mark in marks:
                _, substitute = await w.shown("jobs@example.com", page=f"https://www.shop.example/?{mark}")
                letters[mark] = (await w.accept(substitute, body=mark.encode())).message_id
            card = (await w.accept(f"card@{TRACK}", body=b"card")).message_id
            ads, plain, other, deeper = letters.values()
            for sites in (None, frozenset({1})):
                assert await ids(w, sites=sites, source="google") == [deeper, plain, ads]
                assert await ids(w, sites=sites, source="google_ads") == [ads]  # a marker, and no first level
                assert await ids(w, sites=sites, source="google_") == []
                assert await ids(w, sites=sites, source="googlier") == [other]
                assert await ids(w, sites=sites, source="card") == [card]
                assert await ids(w, sites=sites, source="goo") == []
            assert await ids(w, sites=NOBODY, source="google") == []

    async def test_an_address_that_has_become_static_states_its_label_for_later_letters_only(
        self, tmp_path: Path
    ) -> None:
        leased = f"info1@{TRACK}"
        shop = site("shop", pool_target(), webhooks=(hook(),))
        async with world(tmp_path, shop) as w:
            visit, shown = await w.shown()
            assert shown == leased
            await w.extract((await w.accept(leased, claim=None)).message_id)
            site_id = w.site().id
            await w.store.write(lambda tx: retention.erase_visit(tx, site_id, visit, w.now, browser=False))
            left = pool_target("sales@example.com", f"info2@{TRACK}")
            await w.declare(replace(shop, targets=(left,), statics=(static(leased, label="fair"),)))
            (row,) = await history.page(w.store.reader, Filter(), 10)
            assert [delivery.source for delivery in row.deliveries] == [None]
            assert [job.visit for job in await claim(w)] == [None]
            jobs = await w.store.write(lambda tx: queue.claim_due(tx, {"example.com": 9}, "forwarder", w.now))
            assert [job.source for job in jobs] == [None]
            w.pass_time(6 * DAY)  # until then it may be its last visitor's
            later = (await w.accept(leased, body=b"later")).message_id
            assert await ids(w, source="fair") == [later]

    @pytest.mark.parametrize("labels", [["fair"], []], ids=["relabelled", "deleted"])
    async def test_a_letter_keeps_the_label_that_it_came_under(self, tmp_path: Path, labels: list[str]) -> None:
        """Whoever tells its source: the list, the filter, the post and what is forwarded."""
        card = f"card@{TRACK}"
        async with world(tmp_path) as w:
            before = (await w.accept(card, claim=None)).message_id
            await w.extract(before)
            await w.declare(replace(SHOP, statics=tuple(static(card, label=label) for label in labels)))
            await w.sweep(routes=w.now + 1)
            w.store.routes.forget_all()
            assert [recipient.route.label for recipient in [await w.recipient(card)] if recipient.route] == labels
            w.pass_time(1)
            later = [(await w.accept(card, body=b"later", claim=None)).message_id for _ in labels]
            assert await ids(w, source="card") == [before]
            assert await ids(w, source="fair") == later
            found = await history.one(w.store.reader, before, None)
            assert found is not None
            assert [delivery.source for delivery in found.deliveries] == ["card"]
            assert [job.visit and job.visit.marker for job in await claim(w)] == ["card"]
            jobs = await w.store.write(lambda tx: queue.claim_due(tx, {"example.com": 9}, "forwarder", w.now))
            assert [job.source for job in jobs] == ["card", *labels]

    async def test_by_deal_as_far_as_one_sees_it(self, tmp_path: Path) -> None:
        async with world(tmp_path, SHOP, OTHER) as w:
            _, to_shop = await w.shown("help@example.com")
            _, to_other = await w.shown("sales@example.com", "other")
            both = (await w.accept(to_shop, to_other, body=b"both")).message_id
            none = (await w.accept(to_shop, body=b"none")).message_id
            shop, other = frozenset({w.site().id}), frozenset({w.site("other").id})
            await w.store.write(lambda tx: deals.set_deal(tx, both, "D-1", None, shop))
            assert await ids(w, deal=True) == await ids(w, deal=True, sites=shop) == [both]
            assert await ids(w, deal=True, sites=other) == []
            assert await ids(w, deal=False) == await ids(w, deal=False, sites=shop) == [none]
            assert await ids(w, deal=False, sites=other) == [both]

    async def test_a_clock_that_was_set_back_hides_nothing(self, tmp_path: Path) -> None:
        async with world(tmp_path) as w:
            found = []
            for second in (0, 100, 50, 150):
                w.now = NOW + second
                found.append((await w.accept(f"card@{TRACK}", body=b"%d" % second)).message_id)
            first, ahead, back, last = found
            assert await ids(w, since=NOW + 40) == [last, back, ahead]
            assert await ids(w, until=NOW + 60) == [back, first]
            assert await ids(w, since=NOW + 60, until=NOW + 120) == [ahead]
            assert await ids(w, since=NOW + 60, until=NOW + 61) == await ids(w, since=NOW + 999) == []
            assert await ids(w, until=NOW) == []


class TestPages:
    @pytest.fixture
    async def w(self, tmp_path: Path) -> AsyncIterator[World]:
        """Thirty letters, every tenth from Bob; each says "lamp", Bob's also "brass"."""
        async with world(tmp_path) as found:
            for number in range(30):
                bob = number % 10 == 0
                sender = "bob@example.org" if bob else "ann@example.org"
                letter = await found.accept(f"card@{TRACK}", body=b"%d" % number, sender=sender)
                await found.extract(letter.message_id, text="a brass lamp" if bob else "lamplight, a lamp")
            await found.store.write(search.index)
            yield found

    @pytest.mark.parametrize("most", [history_pages.MOST, 4])
    async def test_pages_are_complete_in_their_order_and_overlap_nowhere(
        self, w: World, monkeypatch: pytest.MonkeyPatch, most: int
    ) -> None:
        monkeypatch.setattr(history_pages, "MOST", most)
        monkeypatch.setattr(history_pages, "STEP", min(most, history_pages.STEP))
        lists: list[tuple[dict[str, Any], list[int]]] = [
            ({}, list(range(1, 31))),
            ({"query": "lamp"}, list(range(1, 31))),
            ({"query": "brass lam"}, [1, 11, 21]),
            ({"query": "lamp", "sender": "bob@example.org"}, [1, 11, 21]),
            ({"source": "card"}, list(range(1, 31))),
            ({"source": "nowhere"}, []),
            ({"deal": False, "sender": "bob@example.org"}, [1, 11, 21]),
        ]
        for wanted, expected in lists:
            for sites, oldest in itertools.product((None, frozenset({1})), (False, True)):
                found, count = await pages(w, 3, sites=sites, oldest=oldest, **wanted)
                assert found == (expected if oldest else expected[::-1]), (wanted, sites)
                assert count >= len(expected) / 3

    async def test_a_page_ends_early_where_little_is_found_among_much(
        self, w: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(history_pages, "MOST", 8)
        monkeypatch.setattr(history_pages, "STEP", 4)
        one = await history.browse(w.store.reader, Filter(source="nowhere"), 3)
        assert (one.rows, one.next) == ((), 23)
        assert await history.page(w.store.reader, Filter(source="nowhere"), 3) == []

    async def test_of_two_filters_the_narrower_one_leads(self, w: World, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(history_pages, "MOST", 5)
        monkeypatch.setattr(history_pages, "STEP", 5)
        wanted = Filter(sites=frozenset({1}), sender="bob@example.org")
        one = await history.browse(w.store.reader, wanted, 5)
        assert ([row.id for row in one.rows], one.next) == ([21, 11, 1], None)

    async def test_a_last_word_that_too_many_begin_with_is_searched_as_it_stands(
        self, w: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert await ids(w, query="lampl") == await ids(w, query="lamplight")
        monkeypatch.setattr(search, "MERGED", -1)
        one = await history.browse(w.store.reader, Filter(query="lampl"), 3)
        assert (one.rows, one.next, one.narrowed) == ((), None, True)
        assert len(await ids(w, query="lamplight")) == 27

    async def test_one_or_two_letters_are_a_whole_word(self, w: World) -> None:
        assert await ids(w, query="la") == []
        assert await ids(w, query="lam") == await ids(w, query="a") == list(range(30, 0, -1))


async def test_what_a_words_list_takes_is_known_from_the_index(tmp_path: Path) -> None:
    """The estimate reads FTS5's own tables."""
    async with opened(tmp_path) as store:

        def fill(tx: Tx) -> None:
            for number in range(1, 8001):
                words = f"common w{number}" if number % 8 else f"common rare w{number}"
                tx.sql(
                    "INSERT INTO message_search(rowid, subject, addresses, head) VALUES (?, ?, '', '')", (number, words)
                )
            tx.sql("INSERT INTO message_search(message_search) VALUES ('optimize')")

        await store.write(fill)
        pages = {word: await search._pages(store.reader, word) for word in ("com", "rar", "w17", "w", "")}
        assert 3 <= pages["com"] <= 16
        assert pages["rar"] <= 3
        assert pages["w17"] == 0
        assert 10 < pages["w"] < pages[""]
        assert await search._pages(store.reader, "w7999") <= 1  # the last one


class TestWordsThatRarelyMeet:
    """A word is in all of 9000 letters, "left" in the even ones, "right" in the odd ones and in each thousandth."""

    ALL = 9000
    BOTH = range(1000, ALL + 1, 1000)

    @pytest.fixture
    async def w(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
        async with world(tmp_path) as found:
            first = (await found.accept(f"card@{TRACK}")).message_id
            assert first == 1
            columns = [
                name for _, name, *_ in await found.store.write(lambda tx: tx.sql("PRAGMA table_info(messages)"))
            ]
            others = ", ".join(f'"{name}"' for name in columns if name != "id")

            def fill(tx: Tx) -> None:
                tx.sql(
                    "WITH RECURSIVE n(id) AS (SELECT 2 UNION ALL SELECT id + 1 FROM n WHERE id < ?) "
                    f"INSERT INTO messages (id, {others}) SELECT n.id, {others} "
                    "FROM n, messages WHERE messages.id = 1",
                    (self.ALL,),
                )
                for number in range(1, self.ALL + 1):
                    said = ["everywhere", "right" if number % 2 else "left"] + ["right"] * (number in self.BOTH)
                    tx.sql(
                        "INSERT INTO message_search(rowid, subject, addresses, head) VALUES (?, ?, '', '')",
                        (number, " ".join(said + ["rare"] * (number % 3000 == 0))),
                    )
                tx.sql("INSERT INTO message_search(message_search) VALUES ('optimize')")

            await found.store.write(fill)
            monkeypatch.setattr(search, "WALKED", 2)
            monkeypatch.setattr(search, "MERGED", 0)
            monkeypatch.setattr(search, "JUMPS", 10)
            monkeypatch.setattr(history_pages, "MOST", 1000)
            yield found

    @pytest.fixture
    def walked(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """How many ids wide each look into the lists was: SQLite's own steps are blind to what FTS5 does in one."""
        widths: list[int] = []

        def noted(words: search.Search, span: Span, most: int) -> Any:
            widths.append(min(span.high, self.ALL + 1) - max(span.low, 0) - 1)
            return by_words(words, span, most)

        by_words = history_pages._by_words
        monkeypatch.setattr(history_pages, "_by_words", noted)
        return widths

    @pytest.mark.parametrize("query", ["left right", "everywhere left right"])
    @pytest.mark.parametrize("oldest", [False, True])
    async def test_they_are_searched_part_by_part_and_all_are_found(
        self, w: World, walked: list[int], query: str, oldest: bool
    ) -> None:
        found, count = await pages(w, 50, query=query, oldest=oldest)
        assert found == sorted(self.BOTH, reverse=not oldest)
        assert len(walked) == count > 2
        assert max(walked) < self.ALL / 2
        assert sum(walked) <= self.ALL

    async def test_a_rare_word_is_found_at_once_beside_any(self, w: World, walked: list[int]) -> None:
        assert await pages(w, 50, query="everywhere left rare") == ([9000, 6000, 3000], 1)
        assert await pages(w, 50, query="everywhere rare") == ([9000, 6000, 3000], 1)
        assert await pages(w, 50, query="everywhere nowhere") == ([], 1)
        assert walked == [self.ALL] * 3

    async def test_lists_that_are_short_are_walked_to_the_end(
        self, w: World, walked: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(search, "WALKED", 100)
        assert await pages(w, 50, query="left right") == ([*reversed(self.BOTH)], 1)
        assert walked == [self.ALL]


def test_an_estimate_is_of_the_word_as_the_index_has_it() -> None:
    assert search._plain("Zäune") == "zaune"
