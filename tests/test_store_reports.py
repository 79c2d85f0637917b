"""What each source brought: letters, enquiries, deals and delays by source, over a real store."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text

from relay.core.site import Touch
from relay.store import deals, reports, retention
from relay.store.engine import TooLong
from relay.store.reader import Reader
from relay.store.reports import By, Figures, Interval, Order, Wanted
from relay.store.schema import deliveries, routes, visits
from relay.store.store import DATABASE
from tests.ledger import SOAK
from tests.store_fixtures import DAY, LEASE, NOW, OTHER, SHOP, TRACK, World, static, world

CARD, BASE = f"card@{TRACK}", f"help@{TRACK}"
HOUR = 3600.0


@pytest.fixture
async def w(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path, SHOP, OTHER) as found:
        yield found


async def letter(w: World, *addresses: str, extract: bool = False, **changes: Any) -> int:
    """The id of a new letter from somebody nobody knows."""
    number = len(await w.rows(select(deliveries.c.id)))
    sender = changes.pop("sender", f"stranger{number}@example.org")
    unique = {"body": b"%d" % number, "message_id": f"{number}@x", "mail_from": sender, "sender": sender}
    accepted = await w.accept(*addresses, **unique | changes)
    if extract:
        await w.extract(accepted.message_id)
    return accepted.message_id


async def report(w: World, name: str = "shop", **changes: Any) -> list[Figures]:
    wanted = Wanted({w.site(name).id}, NOW - 365 * DAY, NOW + 365 * DAY)
    return await reports.sources(w.store.reports, dataclasses.replace(wanted, **changes))


async def counted(w: World, *names: str, **changes: Any) -> dict[Any, tuple[Any, ...]]:
    """These figures by key; what no source is known of is under ..."""
    rows = await report(w, **changes)
    found = {row.key if row.known else ...: tuple(getattr(row, name) for name in names) for row in rows}
    assert len(found) == len(rows)
    return found


def page(marker: str | None = None, path: str = "", **more: str) -> str:
    parameters = ({"rs": marker} if marker else {}) | more
    query = "&".join(f"{name}={value}" for name, value in parameters.items())
    return f"https://www.shop.example/{path}" + (f"?{query}" if query else "")


async def shared(w: World, *markers: str | None) -> str:
    """A pool address that visits with these markers held, one after another, within the hour."""
    addresses = set()
    for number, marker in enumerate(markers):
        for other in range(2):  # the pool is of two: every second visit gets the other address
            _, address = await w.shown(
                page=page(marker if not other else "filler"), number=str(10 * number + other + 1)
            )
            addresses.add(address) if not other else None
        w.pass_time(LEASE + 1)
    (only,) = addresses
    return only


class TestWhatCounts:
    async def test_nothing_is_nothing(self, w: World) -> None:
        assert await report(w) == []
        assert await report(w, by=By.TOTAL, interval=Interval.DAY) == []

    async def test_a_letter_counts_for_its_visits_marker(self, w: World) -> None:
        _, plus = await w.shown("help@example.com", page=page("fb_new"))
        await letter(w, plus)
        await w.shown("help@example.com", page=page("fb_new"))
        await w.shown("help@example.com", page=page())
        assert await counted(w, "visits", "messages", "enquiries", "unknown", by=By.MARKER) == {
            "fb_new": (2, 1, 1, 0),
            None: (1, 0, 0, 0),
        }

    async def test_several_substitutes_of_a_site_are_one_letter_and_count_by_the_best(self, w: World) -> None:
        address = await shared(w, "a", "b")
        ((holder,),) = await w.rows(select(visits.c.number).where(visits.c.marker == "b"))
        _, unique = await w.shown("jobs@example.com", page=page("c"), first_visit=holder)  # the same browser
        await letter(w, address, unique)
        found = await counted(w, "messages", "likely")
        assert {key: row for key, row in found.items() if row != (0, 0.0)} == {"c": (1, 0.0)}
        assert await counted(w, "messages", by=By.TARGET) == {"jobs@example.com": (1,)}

    async def test_a_letter_to_two_sites_is_one_of_each(self, w: World) -> None:
        _, shop = await w.shown(page=page("a"))
        _, other = await w.shown("sales@example.com", "other", page="https://www.other.example/?rs=b")
        await letter(w, shop, other)
        assert await counted(w, "messages") == {"a": (1,)}
        assert await counted(w, "messages", name="other") == {"b": (1,)}
        both = frozenset({w.site().id, w.site("other").id})
        assert await counted(w, "messages", sites=both) == {"a": (1,), "b": (1,)}

    async def test_what_is_inferred_counts_as_stated(self, w: World) -> None:
        _, plus = await w.shown("help@example.com", page=page("fb"))
        await letter(w, plus, sender="ann@x.org")
        await letter(w, BASE, sender="ann@x.org")
        assert await counted(w, "messages", "enquiries", "timed") == {"fb": (2, 2, 1)}

    async def test_a_claimed_number_and_no_visit_are_of_an_unknown_source(self, w: World) -> None:
        await letter(w, f"help+424242@{TRACK}")
        await letter(w, BASE)
        assert {row[0] for row in await w.rows(select(deliveries.c.attribution))} == {"claimed", "none"}
        assert await counted(w, "messages", "enquiries", "unknown") == {...: (2, 2, 2)}
        assert await counted(w, "messages", unknown=False) == {}
        assert await counted(w, "enquiries", "unknown", by=By.TARGET) == {"help@example.com": (2, 2)}

    async def test_a_static_substitute_is_a_source_by_its_label(self, w: World) -> None:
        await letter(w, CARD)
        assert await counted(w, "visits", "messages", "unknown", "timed") == {"card": (0, 1, 0, 0)}
        assert await counted(w, "messages", by=By.CAMPAIGN) == {None: (1,)}

    async def test_a_letter_counts_under_the_label_that_it_came_under(self, w: World) -> None:
        await letter(w, CARD)
        await w.declare(dataclasses.replace(SHOP, statics=(static(CARD, label="fair"),)), OTHER)
        await letter(w, CARD)
        await w.declare(dataclasses.replace(SHOP, statics=()), OTHER)
        await w.sweep(routes=w.now + 1)
        assert await w.rows(select(routes.c.id).where(routes.c.kind == "static")) == []
        assert await counted(w, "messages", "unknown") == {"card": (1, 0), "fair": (1, 0)}
        assert await counted(w, "messages", source="fair") == {"fair": (1,)}

    @pytest.mark.parametrize("changes", [{"automatic": "auto-replied"}, {"bounce": True}, {"looped": True}])
    async def test_what_no_person_wrote_is_a_letter_and_no_enquiry(self, w: World, changes: dict[str, Any]) -> None:
        _, plus = await w.shown("help@example.com", page=page("fb"))
        await letter(w, plus, **changes)
        assert await counted(w, "messages", "enquiries", "timed") == {"fb": (1, 0, 0)}

    async def test_a_thread_is_one_enquiry_and_one_deal(self, w: World) -> None:
        _, plus = await w.shown("help@example.com", page=page("fb"))
        first = await letter(w, plus, extract=True, message_id="1@x")
        await w.store.write(lambda tx: deals.set_deal(tx, first, "D", None))
        await letter(w, plus, extract=True, message_id="2@x", in_reply_to="1@x", references=("1@x",))
        assert await counted(w, "messages", "enquiries", "deals") == {"fb": (2, 1, 1)}

    async def test_a_deal_is_its_enquirys_wherever_and_whenever_its_thread_goes_on(self, w: World) -> None:
        w.now = day("2027-01-10")
        _, plus = await w.shown("help@example.com", page=page("fb"))
        first = await letter(w, plus, extract=True, message_id="1@x")
        await w.store.write(lambda tx: deals.set_deal(tx, first, "D", None))
        w.pass_time(40 * DAY)
        _, plus = await w.shown("help@example.com", page=page("google_cpc"))
        await letter(w, plus, extract=True, message_id="2@x", in_reply_to="1@x", references=("1@x",))
        names, year = ("messages", "enquiries", "deals"), {"since": 0.0, "until": day("2028-01-01")}
        assert await counted(w, *names, **year) == {"fb": (1, 1, 1), "google_cpc": (1, 0, 0)}
        months = await report(w, by=By.TOTAL, interval=Interval.MONTH, **year)
        assert [(row.start, row.enquiries, row.deals) for row in months] == [
            (day("2027-01-01"), 1, 1),
            (day("2027-02-01"), 0, 0),
        ]
        assert await counted(w, *names, by=By.TOTAL, since=day("2027-02-01")) == {None: (1, 0, 0)}

    async def test_a_deal_that_a_later_letter_was_given_is_of_that_letter(self, w: World) -> None:
        _, plus = await w.shown("help@example.com", page=page("fb"))
        await letter(w, plus, extract=True, message_id="1@x")
        for marker, number in (("vk", "2"), ("ads", "3")):
            _, plus = await w.shown("help@example.com", page=page(marker))
            answer = await letter(w, plus, extract=True, message_id=f"{number}@x", references=("1@x",))
            if marker == "vk":
                await w.store.write(lambda tx: deals.set_deal(tx, answer, "D", None))  # noqa: B023
        assert await counted(w, "deals") == {"fb": (0,), "vk": (1,), "ads": (0,)}

    async def test_two_sites_deals_of_one_number_are_two(self, w: World) -> None:
        _, shop = await w.shown(page=page("a"))
        _, other = await w.shown("sales@example.com", "other", page="https://www.other.example/?rs=a")
        message = await letter(w, shop, other)
        await w.store.write(lambda tx: deals.set_deal(tx, message, "7", None))
        both = frozenset({w.site().id, w.site("other").id})
        assert await counted(w, "deals", sites=both) == {"a": (2,)}

    async def test_robots_and_erased_visits_are_no_visits(self, w: World) -> None:
        await w.shown(page=page("fb"))
        await w.store.write(lambda tx: tx.sql("UPDATE visits SET device = 'bot'"))
        visit, address = await w.shown(page=page("fb"), number="77")
        await letter(w, address)
        await w.store.write(lambda tx: retention.erase_visit(tx, w.site().id, visit, w.now, browser=False))
        assert await counted(w, "visits", "messages", "unknown") == {...: (0, 1, 1)}


class TestLikely:
    async def test_it_is_shared_out_by_probability_and_never_stated(self, w: World) -> None:
        await letter(w, await shared(w, "a", "b"))
        found = await counted(w, "messages", "enquiries", "deals", "likely")
        assert {row[:3] for row in found.values()} == {(0, 0, 0)}
        shares = {key: row[3] for key, row in found.items() if row[3]}
        assert set(shares) == {"a", "b"}
        assert sum(shares.values()) == pytest.approx(1, abs=0.001)
        assert 0 < shares["a"] < shares["b"] < 1

    async def test_candidates_of_one_source_make_a_whole(self, w: World) -> None:
        await letter(w, await shared(w, "a_1", "a_2"))
        found = await counted(w, "likely", by=By.SOURCE)
        assert found["a"] == (pytest.approx(1, abs=0.001),)

    async def test_what_a_forgotten_candidate_had_is_unknown(self, w: World) -> None:
        await letter(w, await shared(w, "a", "b"))
        await w.store.write(lambda tx: retention.erase_visit(tx, w.site().id, "1", w.now, browser=False))
        found = await counted(w, "likely", "unknown")
        assert 0 < found[...][0] < 0.5
        assert found[...][1] == 0
        assert found["b"][0] + found[...][0] == pytest.approx(1, abs=0.001)

    async def test_a_target_and_the_total_have_it_whole(self, w: World) -> None:
        message = await letter(w, await shared(w, "a", "b"))
        await w.store.write(lambda tx: deals.set_deal(tx, message, "D", None))
        names = ("messages", "enquiries", "unknown", "likely", "deals", "likely_deals")
        whole = (0, 0, 0, 1.0, 0, 1.0)
        assert await counted(w, *names, by=By.TARGET) == {"sales@example.com": whole}
        assert await counted(w, *names, by=By.TOTAL) == {None: whole}
        assert (await counted(w, "likely", by=By.TOTAL, source="a"))[None][0] < 0.5

    async def test_a_deal_is_likely_or_stated_as_its_first_letter_is_and_never_both(self, w: World) -> None:
        first = await letter(w, await shared(w, "a", "b"), extract=True, message_id="1@x")
        await w.store.write(lambda tx: deals.set_deal(tx, first, "D", None))
        _, plus = await w.shown("help@example.com", page=page("c"))
        await letter(w, plus, extract=True, message_id="2@x", in_reply_to="1@x", references=("1@x",))
        assert await counted(w, "messages", "likely", "deals", "likely_deals", by=By.TOTAL) == {None: (1, 1.0, 0, 1.0)}
        found = await counted(w, "deals", "likely_deals")
        assert found["c"] == (0, 0.0)
        assert found["a"][1] + found["b"][1] == pytest.approx(1, abs=0.001)

        third = await letter(w, plus, extract=True, message_id="3@x")
        await w.store.write(lambda tx: deals.set_deal(tx, third, "E", None))
        await letter(w, await shared(w, "a", "b"), extract=True, message_id="4@x", references=("3@x",))
        assert await counted(w, "deals", "likely_deals", by=By.TOTAL) == {None: (1, 1.0)}

    async def test_automatic_mail_is_not_likely_an_enquiry(self, w: World) -> None:
        await letter(w, await shared(w, "a", "b"), automatic="list")
        assert set((await counted(w, "likely")).values()) == {(0.0,)}


class TestBy:
    async def test_levels_are_split_at_the_first_underscore(self, w: World) -> None:
        for number, marker in enumerate(("fb_new_2", "fb_old", "fb", "_x", "vk_")):
            _, plus = await w.shown("help@example.com", page=page(marker), number=str(number + 1))
            await letter(w, plus)
        assert await counted(w, "messages", by=By.SOURCE) == {"fb": (3,), None: (1,), "vk": (1,)}
        assert await counted(w, "messages", by=By.MARKER, source="fb") == {"fb_new_2": (1,), "fb_old": (1,), "fb": (1,)}

    async def test_campaign_and_landing_page_are_the_visits(self, w: World) -> None:
        address = page(path="new/", utm_source="fb", utm_medium="cpc", utm_campaign="spring")
        _, plus = await w.shown("help@example.com", page=address)
        await letter(w, plus)
        assert await counted(w, "visits", "messages", by=By.CAMPAIGN) == {"spring": (1, 1)}
        assert await counted(w, "visits", "messages", by=By.LANDING_PAGE) == {"www.shop.example/new/": (1, 1)}
        assert await counted(w, "visits", "messages", by=By.SOURCE) == {"fb": (1, 1)}

    async def test_visits_are_not_counted_by_target(self, w: World) -> None:
        _, address = await w.shown(page=page("a"))
        await letter(w, address)
        assert await counted(w, "visits", "messages", by=By.TARGET) == {"sales@example.com": (None, 1)}

    async def test_a_source_alone(self, w: World) -> None:
        for number, marker in enumerate(("fb_new", "vk_new")):
            _, plus = await w.shown("help@example.com", page=page(marker), number=str(number + 1))
            await letter(w, plus)
        await letter(w, BASE)
        for by, key in ((By.TOTAL, None), (By.SOURCE, "fb"), (By.CAMPAIGN, None)):
            assert await counted(w, "visits", "messages", by=by, source="fb") == {key: (1, 1)}
        assert await counted(w, "messages", by=By.TARGET, source="fb") == {"help@example.com": (1,)}

    async def test_order_and_limit(self, w: World) -> None:
        for marker, letters, seen in (("a", 1, 3), ("b", 2, 1)):
            for _ in range(seen):
                _, plus = await w.shown("help@example.com", page=page(marker))
            for _ in range(letters):
                await letter(w, plus)
        assert [row.key for row in await report(w)] == ["b", "a"]
        assert [row.key for row in await report(w, order=Order.VISITS)] == ["a", "b"]
        assert [row.key for row in await report(w, limit=1)] == ["b"]


class TestTouch:
    async def journey(self, w: World) -> str:
        """A browser that came by an advertisement, then by a search, then by itself; the number of its last visit."""
        number: str | None = None
        for marker in ("ads_1", "search_2", None):
            bound = await w.bind("shop", "help@example.com", page=page(marker), first_visit="1" if number else None)
            number, plus = bound.visit, bound.substitutes[w.target("help@example.com").id]
            if marker == "ads_1":
                await w.store.write(lambda tx: tx.sql("UPDATE visits SET number = '1', own = 0"))
            w.pass_time(20 * DAY)
        await letter(w, plus)
        assert number is not None
        return number

    @pytest.mark.parametrize(
        ("touch", "source"), [(Touch.LAST, None), (Touch.FIRST, "ads"), (Touch.LAST_NON_DIRECT, "search")]
    )
    async def test_first_last_and_last_non_direct(self, w: World, touch: Touch, source: str | None) -> None:
        await self.journey(w)
        found = await counted(w, "messages", by=By.SOURCE, touch=touch)
        assert {key: row for key, row in found.items() if row[0]} == {source: (1,)}

    async def test_visits_count_where_their_letters_would(self, w: World) -> None:
        await self.journey(w)
        assert await counted(w, "visits", by=By.SOURCE, touch=Touch.FIRST) == {"ads": (3,)}
        assert await counted(w, "visits", by=By.SOURCE, touch=Touch.LAST_NON_DIRECT) == {"ads": (1,), "search": (2,)}

    @pytest.mark.parametrize("gone", ["erased", "deleted"])
    async def test_the_visits_own_source_counts_where_the_touched_one_is_gone(self, w: World, gone: str) -> None:
        await self.journey(w)
        shop, now = w.site().id, w.now
        if gone == "erased":
            await w.store.write(lambda tx: retention.erase_visit(tx, shop, "1", now, browser=False))
        else:
            await w.store.write(lambda tx: tx.sql("DELETE FROM visits WHERE number = '1'"))
        found = await counted(w, "messages", by=By.SOURCE, touch=Touch.FIRST)
        assert {key: row for key, row in found.items() if row[0]} == {None: (1,)}

    async def test_a_candidates_touch_counts_too(self, w: World) -> None:
        await letter(w, await shared(w, "a", "b"))
        await w.store.write(
            lambda tx: tx.sql("UPDATE visits SET first_id = (SELECT min(id) FROM visits) WHERE marker = 'b'")
        )
        found = await counted(w, "likely", touch=Touch.FIRST)
        assert found["a"] == (pytest.approx(1, abs=0.001),)


class TestDelay:
    async def written(self, w: World, *delays: float, marker: str = "fb") -> None:
        for delay in delays:
            _, plus = await w.shown("help@example.com", page=page(marker))
            await letter(w, plus, written_at=w.now + delay, received_at=w.now + 10 * DAY)

    async def test_is_from_the_beginning_of_the_visit_to_the_writing(self, w: World) -> None:
        _, plus = await w.shown("help@example.com", page=page("fb"))
        w.pass_time(HOUR)
        await letter(w, plus, written_at=w.now - 60)
        (row,) = await report(w)
        assert (row.timed, row.median, row.within) == (1, HOUR - 60, (0, 1, 1, 1))

    @pytest.mark.parametrize(
        ("delays", "median"),
        [((60.0,), 60.0), ((60.0, 120.0), 90.0), ((7200.0, 60.0, 120.0), 120.0), ((1.0, 2.0, 3.0, 100.0), 2.5)],
    )
    async def test_median(self, w: World, delays: tuple[float, ...], median: float) -> None:
        for number, delay in enumerate(delays):
            _, plus = await w.shown("help@example.com", page=page("fb"), number=str(number + 1))
            w.pass_time(delay)
            await letter(w, plus)
        (row,) = await report(w)
        assert (row.timed, row.median) == (len(delays), median)

    async def test_each_source_has_its_own(self, w: World) -> None:
        for marker, delay in (("a", 60.0), ("b", 600.0), ("b", 601.0)):
            _, plus = await w.shown("help@example.com", page=page(marker))
            w.pass_time(delay)
            await letter(w, plus)
        assert await counted(w, "median", "within") == {"a": (60.0, (1, 1, 1, 1)), "b": (600.5, (1, 2, 2, 2))}
        assert await counted(w, "median", by=By.TOTAL) == {None: (600.0,)}

    async def test_a_clock_that_is_behind_wrote_at_once(self, w: World) -> None:
        _, plus = await w.shown("help@example.com", page=page("fb"))
        await letter(w, plus, written_at=w.now - HOUR)
        assert await counted(w, "median") == {"fb": (0.0,)}

    async def test_what_is_inferred_has_none(self, w: World) -> None:
        _, plus = await w.shown("help@example.com", page=page("fb"))
        await letter(w, plus, sender="ann@x.org")
        w.pass_time(DAY)
        await letter(w, BASE, sender="ann@x.org")
        assert await counted(w, "timed", "median") == {"fb": (1, 0.0)}


def day(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


class TestIntervals:
    async def at(self, w: World, *moments: str) -> None:
        for moment in moments:
            w.now = day(moment)
            _, plus = await w.shown("help@example.com", page=page("fb"))
            await letter(w, plus)

    async def starts(self, w: World, interval: Interval, **changes: Any) -> list[tuple[str, int, int]]:
        wide: dict[str, Any] = {"since": 0.0, "until": day("2030-01-01"), "by": By.TOTAL}
        rows = await report(w, interval=interval, **wide | changes)
        return [
            (f"{datetime.fromtimestamp(row.start or 0, UTC):%Y-%m-%d}", row.visits or 0, row.messages) for row in rows
        ]

    async def test_days_weeks_from_monday_and_months(self, w: World) -> None:
        await self.at(w, "2027-01-31T23:59:59", "2027-02-01T00:00:00", "2027-02-07T23:59:59", "2027-02-08")
        assert await self.starts(w, Interval.DAY) == [
            ("2027-01-31", 1, 1),
            ("2027-02-01", 1, 1),
            ("2027-02-07", 1, 1),
            ("2027-02-08", 1, 1),
        ]
        assert await self.starts(w, Interval.WEEK) == [("2027-01-25", 1, 1), ("2027-02-01", 2, 2), ("2027-02-08", 1, 1)]
        assert await self.starts(w, Interval.MONTH) == [("2027-01-01", 1, 1), ("2027-02-01", 3, 3)]

    async def test_a_week_over_new_year_begins_in_the_old_one(self, w: World) -> None:
        await self.at(w, "2027-12-31", "2028-01-02T23:59:59", "2028-01-03")
        assert await self.starts(w, Interval.WEEK) == [("2027-12-27", 2, 2), ("2028-01-03", 1, 1)]

    async def test_the_period_is_from_until_before(self, w: World) -> None:
        await self.at(w, "2027-01-01", "2027-01-02", "2027-01-03")
        period = {"since": day("2027-01-02"), "until": day("2027-01-03")}
        assert await self.starts(w, Interval.DAY, **period) == [("2027-01-02", 1, 1)]

    async def test_a_clock_that_was_set_back_hides_nothing(self, w: World) -> None:
        await self.at(w, "2027-01-02", "2027-01-05", "2027-01-03", "2027-01-01")
        period = {"since": day("2027-01-02"), "until": day("2027-01-04")}
        assert await self.starts(w, Interval.DAY, **period) == [("2027-01-02", 1, 1), ("2027-01-03", 1, 1)]

    async def test_sources_in_each_interval(self, w: World) -> None:
        for moment, marker in (("2027-01-01", "a"), ("2027-01-01", "b"), ("2027-02-01", "a")):
            w.now = day(moment)
            _, plus = await w.shown("help@example.com", page=page(marker))
            await letter(w, plus)
        rows = await report(w, since=0.0, until=day("2030-01-01"), interval=Interval.MONTH)
        assert [(row.start, row.key, row.messages) for row in rows] == [
            (day("2027-01-01"), "a", 1),
            (day("2027-01-01"), "b", 1),
            (day("2027-02-01"), "a", 1),
        ]


def pairs_of(every: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Fewer, in which any two values are together that are together in ``every``: each is compiled for itself."""
    missed = {pair for each in every for pair in itertools.combinations(enumerate(each), 2)}
    found = []
    while missed:
        best = max(every, key=lambda each: len(missed.intersection(itertools.combinations(enumerate(each), 2))))
        missed.difference_update(itertools.combinations(enumerate(best), 2))
        found.append(best)
    return found


class TestReading:
    async def test_every_combination_is_answered(self, w: World) -> None:
        await letter(w, await shared(w, "a", "b"))
        await letter(w, CARD, BASE)
        every = list(itertools.product(By, Touch, (None, *Interval), (None, "a")))
        for by, touch, interval, source in every if SOAK else pairs_of(every):
            await report(w, by=by, touch=touch, interval=interval, source=source)

    @pytest.mark.parametrize("by", By)
    @pytest.mark.parametrize("touch", Touch)
    async def test_it_reads_no_table_as_a_whole(self, w: World, by: By, touch: Touch) -> None:
        statement = reports._statement(reports._shape(Wanted({1}, 0, NOW, by, touch, Interval.DAY, "a")))
        (connection,) = w.store.reports._all
        values = dict.fromkeys(re.findall(r":(\w+)", statement.sql), 1)
        found = await connection.execute_fetchall(f"EXPLAIN QUERY PLAN {statement.sql}", values)
        steps = [row[3] for row in found]
        tables = {"messages", "letter", "deliveries", "best", "events", "visits", "visit", "touched"}
        assert not [step for step in steps if step.startswith("SCAN") and step.split()[1] in tables], steps
        period = "ix_deliveries_site_id_message_id (site_id=? AND message_id>? AND message_id<?)"
        assert sum("ix_deliveries_site_id_message_id" in step for step in steps) == 2, steps
        assert sum(period in step for step in steps) == 2, steps
        assert sum("COVERING INDEX ix_events_deal (site_id=? AND deal_id=?)" in step for step in steps) == 2, steps

    async def test_a_report_that_takes_too_long_is_broken_off_and_the_next_one_works(self, tmp_path: Path) -> None:
        async with world(tmp_path):
            reader = Reader(tmp_path / DATABASE, size=1, patience=0.01)
            await reader.start()
            endless = text("WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n")
            with pytest.raises(TooLong):
                await reader.all(endless)
            reader.patience = 60.0
            assert await reader.all(select(visits.c.id)) == []
            task = asyncio.create_task(reader.all(endless))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await reader.all(select(visits.c.id)) == []
            await reader.close()

    async def test_nobody_else_waits_for_a_report(self, w: World) -> None:
        async with w.store.reports._lent():
            waiting = asyncio.create_task(report(w))
            assert await w.rows(select(visits.c.id)) == []
            assert not waiting.done()
        assert await waiting == []


class TestOverview:
    @pytest.mark.parametrize("by", [by for by in By if by is not By.TOTAL])
    @pytest.mark.parametrize("source", [None, "a"])
    async def test_it_says_what_three_reports_say(self, w: World, by: By, source: str | None) -> None:
        await letter(w, await shared(w, "a_1", "b_2"))
        await letter(w, CARD, BASE)
        for marker in ("a_1", "b_1"):
            w.pass_time(DAY)
            _, plus = await w.shown("help@example.com", page=page(marker, utm_campaign="x"))
            w.pass_time(60)
            await letter(w, plus)
        wanted = Wanted({w.site().id}, NOW - DAY, NOW + 9 * DAY, by, interval=Interval.DAY, source=source)
        found = await reports.overview(w.store.reports, wanted)
        (total,) = await report(w, by=By.TOTAL, source=source)
        assert rounded(found.total) == rounded(total)
        series = await report(w, by=By.TOTAL, source=source, interval=Interval.DAY)
        assert [rounded(row) for row in found.series] == [rounded(row) for row in series]
        rows = await report(w, by=by, source=source)
        assert [rounded(row) for row in found.rows] == [rounded(row) for row in rows]

    async def test_nothing_is_a_total_of_noughts(self, w: World) -> None:
        found = await reports.overview(w.store.reports, Wanted({1}, 0, NOW, interval=Interval.DAY))
        assert (found.total.messages, found.total.visits, found.total.median) == (0, 0, None)
        assert (found.series, found.rows) == ([], [])


def rounded(figures: Figures) -> Figures:
    """Shares of candidates are stored to four digits, so all of one letter need not be quite 1."""
    return dataclasses.replace(figures, likely=round(figures.likely, 2), likely_deals=round(figures.likely_deals, 2))
