"""Visits of one browser: which one a page view belongs to, what they remember of each other, what is stored."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from relay.clockwatch import ClockWatch
from relay.core.channel import Channel, Source
from relay.core.model import Method
from relay.store import clock, retention
from relay.store.attribution import Evidence
from relay.store.schema import bindings, deliveries, visits
from relay.store.visits import Visitor
from tests.store_fixtures import DAY, LEASE, NOW, OTHER, SHOP, TRACK, World, pool_target, site, target_of, world
from webapi import replays

HOME = "https://www.shop.example/"
SEARCHED = "https://www.google.com/"
#: A site with two domains, one of them with all its subdomains.
TWO_DOMAINS = replace(SHOP, origins=("https://www.shop.example", "https://blog.example", "https://*.blog.example"))


@pytest.fixture
async def w(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path, TWO_DOMAINS, OTHER) as found:
        yield found


async def view(w: World, number: str | None = None, page: str = HOME, **changes: Any) -> str:
    """The number of the visit that a page view without addresses belongs to."""
    return (await w.bind(number=number, page=page, asked=(), **changes)).visit


async def row(w: World, number: str, *names: str) -> tuple[Any, ...]:
    (found,) = await w.rows(select(*(visits.c[name] for name in names)).where(visits.c.number == number))
    return found


async def touches(w: World) -> list[tuple[int, int | None, int | None]]:
    """(visit, first, last that was not direct) by order of beginning; the visits are numbered from 1."""
    found = await w.rows(select(visits.c.id, visits.c.first_id, visits.c.touch_id).order_by(visits.c.id))
    return [(visit, first, touch) for visit, first, touch in found]


DIRECT, ADS, MAIL = HOME, f"{HOME}?rs=ads_1", f"{HOME}?utm_source=news&utm_medium=email"


class TestTouches:
    @pytest.mark.parametrize(
        ("pages", "expected"),
        [
            pytest.param([DIRECT], [(None, None)], id="a first direct visit knows no other"),
            pytest.param([ADS], [(None, None)], id="nor does a first campaign"),
            pytest.param([ADS, DIRECT], [(None, None), (1, 1)], id="direct after a campaign keeps it"),
            pytest.param([ADS, DIRECT, DIRECT], [(None, None), (1, 1), (1, 1)], id="however often"),
            pytest.param([DIRECT, DIRECT], [(None, None), (1, None)], id="direct only: none"),
            pytest.param([DIRECT, ADS, DIRECT], [(None, None), (1, None), (1, 2)], id="a direct first is not the last"),
            pytest.param([ADS, MAIL, DIRECT], [(None, None), (1, None), (1, 2)], id="a second campaign takes over"),
            pytest.param(
                [ADS, DIRECT, MAIL, DIRECT], [(None, None), (1, 1), (1, None), (1, 3)], id="also after a direct visit"
            ),
        ],
    )
    async def test_each_visit_knows_the_first_and_the_last_that_was_not_direct(
        self, w: World, pages: list[str], expected: list[tuple[int | None, int | None]]
    ) -> None:
        number = None
        for page in pages:
            w.pass_time(15 * DAY)
            number = await view(w, number, page)
        assert [found[1:] for found in await touches(w)] == expected
        assert len({await row(w, *seen, "first_visit") for seen in await w.rows(select(visits.c.number))}) == 1

    async def test_a_reload_of_a_later_visit_changes_nothing(self, w: World) -> None:
        first = await view(w, page=ADS)
        second = await view(w, first, MAIL)
        before = await touches(w)
        assert await view(w, second, MAIL) == second
        assert await touches(w) == before

    async def test_with_the_first_visits_cookie_alone_that_one_is_known(self, w: World) -> None:
        first = await view(w, page=ADS)
        second = await view(w, None, first_visit=first)
        assert await row(w, second, "first_visit") == (first,)
        assert (await touches(w))[1][1:] == (1, 1)

    async def test_a_first_visit_that_nobody_knows_is_kept_as_a_number(self, w: World) -> None:
        number = await view(w, None, first_visit="1001")
        assert await row(w, number, "first_visit", "first_id", "touch_id") == ("1001", None, None)

    async def test_a_tab_with_an_earlier_visit_goes_on_from_the_latest_of_the_browser(self, w: World) -> None:
        first = await view(w)
        await view(w, first, ADS)  # in another tab
        w.pass_time(15 * DAY)
        await view(w, first)
        assert (await touches(w))[2] == (3, 1, 2)

    async def test_another_counters_new_number_goes_on_from_our_own_visits(self, w: World) -> None:
        own = await view(w, page=ADS)
        assert await view(w, "9001", first_visit=own) == "9001"
        assert await row(w, "9001", "own", "first_visit") == (0, own)
        assert (await touches(w))[1][1:] == (1, 1)

    async def test_another_counters_number_that_comes_while_the_page_is_open_came_from_where_the_page_did(
        self, w: World
    ) -> None:
        own = await view(w, page=ADS, referrer=SEARCHED)
        assert await view(w, "9001", ADS, referrer=SEARCHED, first_visit=own) == "9001"
        names = "mark", "marker", "channel", "referrer", "landing_page", "first_visit"
        assert await row(w, "9001", *names) == await row(w, own, *names)
        assert await row(w, "9001", "mark") == ("ads_1",)

    async def test_another_counters_new_number_goes_on_from_its_own_last(self, w: World) -> None:
        await view(w, "9001", page=ADS)
        await view(w, "9002", first_visit="9001")
        await view(w, "9003", first_visit="9001", page=MAIL)
        assert [found[1:] for found in await touches(w)] == [(None, None), (1, 1), (1, None)]
        assert await row(w, "9003", "first_visit") == ("9001",)

    async def test_what_is_no_number_is_no_first_visit(self, w: World) -> None:
        await view(w, page=ADS)
        await view(w, "9001", first_visit="no number")
        assert (await touches(w))[1][1:] == (None, None)

    async def test_visits_of_another_site_are_no_touches(self, w: World) -> None:
        elsewhere = (await w.bind("other", asked=(), page="https://www.other.example/?rs=x")).visit
        await view(w, "9001", first_visit=elsewhere)
        assert (await touches(w))[1][1:] == (None, None)
        assert await row(w, "9001", "first_visit") == (elsewhere,)  # only as a number

    async def test_a_visit_from_before_there_were_channels_is_a_touch(self, w: World) -> None:
        old = await view(w)
        await w.store.write(lambda tx: tx.sql("UPDATE visits SET channel = NULL"))
        w.pass_time(15 * DAY)
        await view(w, old)
        assert (await touches(w))[1][1:] == (1, 1)


class TestHandOver:
    BLOG = "https://blog.example/post"

    async def on_the_blog(self, w: World) -> str:
        return await view(w, page=self.BLOG, referrer=SEARCHED)

    async def test_a_link_between_the_sites_domains_goes_on_with_the_visit(self, w: World) -> None:
        visit = await self.on_the_blog(w)
        w.pass_time(600)
        assert await view(w, page=f"{HOME}?roistat_visit={visit}", referrer=self.BLOG) == visit
        assert await row(w, visit, "landing_page", "referrer", "last_seen_at") == (
            "blog.example/post",
            "www.google.com",
            w.now,
        )

    async def test_from_a_subdomain_of_a_wildcard_too(self, w: World) -> None:
        visit = await self.on_the_blog(w)
        page = f"{HOME}?roistat_visit={visit}"
        assert await view(w, page=page, referrer="https://m.blog.example/") == visit

    async def test_it_replaces_the_visit_that_the_other_domains_cookie_names(self, w: World) -> None:
        stale = await view(w)
        visit = await self.on_the_blog(w)
        assert await view(w, stale, page=f"{HOME}?roistat_visit={visit}", referrer=self.BLOG) == visit
        assert len(await touches(w)) == 2

    async def test_it_gets_the_address_of_its_visit(self, w: World) -> None:
        visit, shown = await w.shown(page=self.BLOG)
        assert await w.shown(page=f"{HOME}?roistat_visit={visit}", referrer=self.BLOG) == (visit, shown)

    async def test_a_reload_of_that_page_is_still_the_same_visit_however_late(self, w: World) -> None:
        visit = await self.on_the_blog(w)
        page = f"{HOME}?roistat_visit={visit}"
        await view(w, page=page, referrer=self.BLOG)
        w.pass_time(DAY)
        assert await view(w, visit, page=page, referrer=self.BLOG) == visit

    async def test_a_shared_link_names_nobody(self, w: World) -> None:
        visit = await self.on_the_blog(w)
        page = f"{HOME}?roistat_visit={visit}"
        assert await view(w, page=page, referrer="https://forum.example/") != visit
        w.pass_time(301)
        assert await view(w, page=page) != visit
        w.pass_time(1500)
        assert await view(w, page=page, referrer=self.BLOG) != visit

    async def test_a_shared_link_does_not_begin_a_visit_for_who_has_one(self, w: World) -> None:
        visit = await self.on_the_blog(w)
        w.pass_time(DAY)
        mine = await view(w)
        assert await view(w, mine, page=f"{HOME}?roistat_visit={visit}") == mine

    async def test_another_counters_number_comes_over_before_its_visit_was_seen_here(self, w: World) -> None:
        assert await view(w, page=f"{HOME}?roistat_visit=4711", referrer=self.BLOG) == "4711"
        assert await row(w, "4711", "own") == (0,)

    async def test_a_new_campaign_in_such_a_link_begins_a_visit_of_the_same_browser(self, w: World) -> None:
        visit = await self.on_the_blog(w)
        second = await view(w, page=f"{HOME}?roistat_visit={visit}&rs=banner", referrer=self.BLOG)
        assert second != visit
        assert (await touches(w))[1][1:] == (1, None)


class TestMarks:
    async def test_a_visit_from_search_goes_on_over_reloads_and_inner_pages(self, w: World) -> None:
        """Its marker is the referrer's, which no later page view repeats as a mark."""
        visit = await view(w, referrer=SEARCHED)
        assert await row(w, visit, "mark", "marker", "channel") == (None, "search_google", "search")
        for page, referrer in ((HOME, SEARCHED), (f"{HOME}about", HOME), (f"{HOME}about", None), (HOME, SEARCHED)):
            assert await view(w, visit, page, referrer=referrer) == visit
        assert len(await touches(w)) == 1

    async def test_a_visit_named_by_a_rule_or_a_cookie_goes_on_too(self, w: World) -> None:
        source = Source("partner_acme", Channel.REFERRAL)
        visit = await view(w, source=source)
        assert await row(w, visit, "mark", "marker") == (None, "partner_acme")
        assert await view(w, visit, source=source) == visit

    async def test_a_rule_over_a_marked_page_keeps_the_pages_own_mark(self, w: World) -> None:
        source = Source("agency_spring", Channel.ADS)
        visit = await view(w, page=ADS, source=source)
        assert await row(w, visit, "mark", "marker", "channel") == ("ads_1", "agency_spring", "ads")
        w.pass_time(15 * DAY)
        assert await view(w, visit, page=ADS, source=source) == visit

    async def test_no_override_leaves_the_visit_as_it_is(self, w: World) -> None:
        visit = await view(w, page=ADS)
        back = "https://www.shop.example/paid?utm_source=bank&utm_nooverride=1"
        assert await view(w, visit, page=back, referrer="https://bank.example/") == visit
        assert await row(w, visit, "marker", "utm_source", "referrer") == ("ads_1", None, None)
        w.pass_time(15 * DAY)
        assert await view(w, visit, page=back, referrer="https://bank.example/") != visit

    async def test_nothing_of_a_visit_is_ever_overwritten(self, w: World) -> None:
        names = tuple(column.name for column in visits.c if column.name != "last_seen_at")
        visit = await view(w, page=ADS, referrer=SEARCHED, google_client_id="1.2")
        before = await row(w, visit, *names)
        for changes in (
            {
                "google_client_id": "9.9",
                "ym_uid": "9",
                "params": {"1": "x"},
                "visitor": Visitor("198.51.100.1", "Rome"),
            },
            {"source": Source("else", Channel.EMAIL)},
            {"first_visit": "42"},
        ):
            assert await view(w, visit, **changes) == visit
        assert await row(w, visit, *names) == before


async def test_what_is_known_of_the_visitor_is_stored(w: World) -> None:
    known = {
        "ip": "192.0.2.0",
        "city": "New York",
        "country": "USA",
        "user_agent": "Mozilla/5.0",
        "device": "mobile",
        "browser": "Chrome Mobile",
        "os": "Android",
    }
    visit = await view(w, visitor=Visitor(**known), ym_uid="1700", google_client_id="1.2")
    assert await row(w, visit, *known, "ym_uid", "google_client_id") == (*known.values(), "1700", "1.2")


async def test_a_visit_of_which_nothing_is_known_stores_nothing(w: World) -> None:
    visit = await view(w, visitor=Visitor())
    empty = {"city", "ip", "user_agent", "device", "browser", "os", "ym_uid", "mark", "marker", "params", "erased_at"}
    assert set(await row(w, visit, *empty)) == {None}
    assert await row(w, visit, "channel", "first_visit") == ("direct", visit)


class TestOurOwnCookie:
    async def test_the_last_visit_is_found_by_the_first_when_the_visits_cookie_has_run_out(self, w: World) -> None:
        """It lives as long as the time-out, so who comes back later has nothing but the first visit's number."""
        first = await view(w, page=ADS)
        w.pass_time(DAY)
        await view(w, first, MAIL, first_visit=first)
        w.pass_time(15 * DAY)
        await view(w, None, DIRECT, first_visit=first)
        assert (await touches(w))[2] == (3, 1, 2)

    async def test_a_number_that_was_erased_is_not_taken_for_another_counters(self, w: World) -> None:
        erased = await view(w, page=ADS)
        await w.store.write(lambda tx: retention.erase_visit(tx, w.site().id, erased, w.now, browser=True))
        again = await view(w, erased, first_visit=erased, ours=True)
        assert again != erased
        assert await row(w, again, "own") == (1,)

    async def test_a_number_of_a_counter_that_is_gone_ends_like_our_own(self, w: World) -> None:
        await view(w, "9001", page=ADS)
        assert await view(w, "9001", ADS, ours=True) == "9001"
        assert await view(w, "9001", MAIL, ours=True) != "9001"

    async def test_while_the_other_counter_has_a_cookie_it_decides(self, w: World) -> None:
        await view(w, "9001", page=ADS)
        assert await view(w, "9001", MAIL) == "9001"


async def test_a_link_hands_no_visit_over_to_another_browser(w: World) -> None:
    """The number of a visit in a link on the site's own forum: whoever follows it is somebody else."""
    number = await view(w, page=ADS)
    link = {"page": f"https://blog.example/?roistat_visit={number}", "referrer": HOME}
    stranger = Visitor(user_agent="Mozilla/5.0 (another)")
    assert await view(w, None, **link, visitor=stranger) != number
    assert await view(w, None, **link) == number


async def test_mail_to_what_was_shown_while_the_clock_ran_ahead_is_its_holders(w: World) -> None:
    earlier, address = await w.shown()
    w.pass_time(9 * DAY)
    right = w.now
    w.now = right + 3600.0  # the clock leaps, and the pool's other address is leased first
    await w.shown()
    holder, again = await w.shown()
    assert again == address
    await w.store.write(lambda tx: clock.was_set(tx, -3600.0, right))
    w.now = right + 10
    await w.accept(address)
    (stated,) = await w.rows(select(visits.c.number).join(deliveries, deliveries.c.visit_id == visits.c.id))
    assert stated == (holder,) != (earlier,)


class TestHeldUnderAClockThatRanAhead:
    """One held the address at ten, another at what the clock called one and was eleven; it is set right then."""

    AHEAD = 7200.0

    @pytest.fixture
    async def one(self, tmp_path: Path) -> AsyncIterator[World]:
        shop = site(
            "shop", pool_target("sales@example.com", f"info1@{TRACK}"), target_of(Method.UNIQUE, "jobs@example.com")
        )
        async with world(tmp_path, shop) as found:
            yield found

    async def held(self, w: World) -> tuple[str, str]:
        """The two visits that held the one address of the pool; it is half past eleven, right."""
        earlier, _ = await w.shown()
        w.pass_time(3600.0 + self.AHEAD)
        holder, _ = await w.shown()
        w.pass_time(1800.0 - self.AHEAD)
        return earlier, holder

    async def attributed(self, w: World, address: str = f"info1@{TRACK}", **changes: Any) -> tuple[str, list[str]]:
        """(state, the visits that it names, the likeliest first) of a letter that comes now."""
        message_id = (await w.accept(address, **changes)).message_id
        return await self.said(w, message_id)

    async def said(self, w: World, message_id: int) -> tuple[str, list[str]]:
        query = select(deliveries.c.attribution, deliveries.c.visit_id, deliveries.c.candidates)
        ((state, visit, candidates),) = await w.rows(query.where(deliveries.c.message_id == message_id))
        numbers = dict(await w.rows(select(visits.c.id, visits.c.number)))
        named = [visit] if visit is not None else [one for one, _ in json.loads(candidates or "[]")]
        return state, [numbers[one] for one in named]

    async def test_what_was_held_meanwhile_is_moved_though_its_lease_is_over(self, one: World) -> None:
        earlier, holder = await self.held(one)
        await one.store.write(lambda tx: clock.was_set(tx, -self.AHEAD, one.now))
        assert await one.rows(select(bindings.c.started_at).order_by(bindings.c.id)) == [(NOW,), (NOW + 3600.0,)]
        one.pass_time(300.0)
        assert await self.attributed(one) == ("likely", [holder, earlier])
        assert (await one.shown())[1] == f"info1@{TRACK}"  # free again

    async def test_nobody_is_stated_as_fact_before_it_is_moved(self, one: World) -> None:
        earlier, holder = await self.held(one)
        assert await self.attributed(one) == ("likely", [holder, earlier])
        one.pass_time(9.0 * DAY)  # it lies in the past by then, two hours behind the other: so late it is either's
        assert await self.attributed(one, body=b"again") == ("likely", [holder, earlier])

    async def test_nor_when_it_is_attributed_anew(self, one: World) -> None:
        earlier, holder = await self.held(one)
        message_id = (await one.accept(f"info1@{TRACK}")).message_id
        for _ in range(2):
            await replays.reattribute(one.store, message_id, Evidence(DAY), one.now, None)
            assert await self.said(one, message_id) == ("likely", [holder, earlier])
            one.pass_time(60.0)

    async def test_who_alone_ever_held_it_is_likely(self, one: World) -> None:
        one.now += self.AHEAD
        holder, _ = await one.shown()
        one.now -= self.AHEAD
        assert await self.attributed(one) == ("likely", [holder])

    async def test_a_page_view_of_this_moment_is_no_wrong_clock(self, one: World) -> None:
        visit, _ = await one.shown()
        one.pass_time(LEASE + 5.0)
        await one.shown()
        one.now -= 5.0
        assert await self.attributed(one) == ("exact", [visit])

    async def test_a_unique_address_is_its_visits_whenever_it_was_shown(self, one: World) -> None:
        one.now += self.AHEAD
        visit, address = await one.shown("jobs@example.com")
        one.now -= self.AHEAD
        assert await self.attributed(one, address) == ("exact", [visit])

    async def test_a_start_finds_what_was_set_while_no_daemon_ran(self, one: World) -> None:
        earlier, holder = await self.held(one)
        began = await one.store.write(lambda tx: clock.began(tx, one.now))
        assert began.moved is not None
        assert await one.rows(select(bindings.c.started_at).order_by(bindings.c.id)) == [(NOW,), (one.now,)]
        assert await one.store.write(lambda tx: clock.began(tx, one.now)) == clock.Began(0.0)
        one.pass_time(60.0)
        assert await self.attributed(one) == ("likely", [holder, earlier])
        one.pass_time(LEASE)
        assert (await one.shown())[1] == f"info1@{TRACK}"

    @pytest.mark.parametrize("noticed", [False, True], ids=["at the start", "while it ran"])
    async def test_a_clock_that_was_set_back_by_mistake_takes_nothing_out_of_the_window(
        self, one: World, noticed: bool
    ) -> None:
        """Else who held the address an hour ago would be gone for good, and the next holder certain."""
        first, _ = await one.shown()
        one.pass_time(LEASE)
        before = await one.rows(select(bindings.c.started_at, bindings.c.ended_at))
        right = one.now
        told: list[float] = []
        watch = ClockWatch(one.store, lambda: one.now, told.append)
        one.now = 0.0  # a board without a clock of its own
        if noticed:
            await watch.look()
        else:
            watch = ClockWatch(one.store, lambda: one.now, told.append)
            await watch.begin()
        assert (await one.rows(select(bindings.c.started_at)))[0][0] <= 0.0
        one.now = right
        await watch.look()
        ((started, ended),) = before
        ((start, end),) = await one.rows(select(bindings.c.started_at, bindings.c.ended_at))
        assert (start, end) == pytest.approx((started, ended), abs=LEASE + 1)
        second, _ = await one.shown()
        one.pass_time(60.0)
        assert await self.attributed(one) == ("likely", [second, first])
