"""Binding: which visit a page view belongs to, and which substitutes are its until the lease ends."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from sqlalchemy import func, select

from relay.core.channel import Channel, Source
from relay.core.model import Method
from relay.core.source import PageMarks
from relay.core.substitute import RANDOM_OCTETS, is_valid
from relay.core.visit import visit_number
from relay.store.bindings import Asked, BindRequest, bind
from relay.store.connection import connect
from relay.store.engine import Tx
from relay.store.routes import AddressTaken
from relay.store.schema import bindings, counters, routes, visits
from relay.store.sites import add_to_pool, declare_all
from tests.store_fixtures import (
    DAY,
    LEASE,
    NOW,
    TRACK,
    World,
    address,
    pool_target,
    site,
    static,
    target_of,
    template,
    world,
)

FIRST, SECOND = f"info1@{TRACK}", f"info2@{TRACK}"


@pytest.fixture
async def w(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path) as found:
        yield found


async def visit_row(w: World, number: str, *names: str) -> tuple[Any, ...]:
    (row,) = await w.rows(select(*(visits.c[name] for name in names)).where(visits.c.number == number))
    return row


class TestLease:
    async def test_a_visit_keeps_its_address_and_each_page_view_renews_the_lease(self, w: World) -> None:
        visit, shown = await w.shown()
        for _ in range(5):
            w.pass_time(LEASE - 1)
            assert await w.shown(number=visit) == (visit, shown)
        assert await w.rows(select(bindings.c.started_at, bindings.c.ended_at)) == [(NOW, w.now + LEASE)]

    async def test_it_keeps_it_after_the_lease_as_long_as_nobody_else_was_given_it(self, w: World) -> None:
        visit, shown = await w.shown()
        w.pass_time(10 * LEASE)
        assert await w.shown(number=visit) == (visit, shown)
        assert len(await w.rows(select(bindings.c.id))) == 1

    async def test_it_is_bound_anew_when_its_address_has_gone_to_another_visit(self, w: World) -> None:
        visit, shown = await w.shown()
        w.pass_time(LEASE)
        taken = {(await w.shown())[1] for _ in range(2)}
        assert shown in taken
        w.pass_time(LEASE)
        assert (await w.shown(number=visit))[0] == visit
        assert len(await w.rows(select(bindings.c.id))) == 4

    async def test_two_visits_hold_two_addresses(self, w: World) -> None:
        assert {(await w.shown())[1] for _ in range(2)} == {FIRST, SECOND}

    async def test_the_least_recently_used_address_is_given_first(self, w: World) -> None:
        first, _ = await w.shown()
        w.pass_time(10)
        second, _ = await w.shown()
        w.pass_time(10)
        await w.shown(number=first)  # renewed: now the second's lease ends before the first's
        w.pass_time(2 * LEASE)
        assert [(await w.shown())[1] for _ in range(2)] == [SECOND, FIRST]
        assert second != first

    async def test_a_new_address_of_the_pool_is_given_before_used_ones(self, w: World) -> None:
        await w.shown()
        shop, target = w.site().id, w.target().id
        await w.store.write(lambda tx: add_to_pool(tx, shop, target, [address("info3")], w.now))
        w.pass_time(2 * LEASE)
        assert [(await w.shown())[1] for _ in range(3)] == [SECOND, f"info3@{TRACK}", FIRST]

    async def test_the_lease_ends_at_its_last_moment(self, w: World) -> None:
        await w.shown()
        await w.shown()
        w.pass_time(LEASE)
        assert (await w.shown())[1] == FIRST

    async def test_retired_addresses_are_not_given(self, w: World) -> None:
        await w.declare(site("shop", pool_target("sales@example.com", SECOND)))
        assert (await w.shown())[1] == SECOND

    async def test_a_retired_address_is_not_renewed(self, w: World) -> None:
        visit, shown = await w.shown()
        assert shown == FIRST
        await w.declare(site("shop", pool_target("sales@example.com", SECOND)))
        assert await w.shown(number=visit) == (visit, SECOND)

    async def test_an_address_that_has_moved_to_another_target_is_not_renewed(self, tmp_path: Path) -> None:
        """The mail to it goes to the other target's mailbox."""
        sales, help_ = pool_target("sales@example.com", FIRST), pool_target("help@example.com", SECOND)
        async with world(tmp_path, site("shop", sales, help_)) as w:
            visit, shown = await w.shown()
            assert shown == FIRST
            await w.declare(site("shop", replace(sales, pool=help_.pool), replace(help_, pool=sales.pool)))
            assert await w.shown(number=visit) == (visit, SECOND)

    async def test_an_address_that_has_become_static_is_not_renewed(self, tmp_path: Path) -> None:
        """The mail to it is stated as its label's, of no visit."""
        async with world(tmp_path, site("shop", pool_target())) as w:
            visit, shown = await w.shown()
            assert shown == FIRST
            left = pool_target("sales@example.com", SECOND)
            await w.declare(site("shop", left, statics=(static(FIRST),)))
            assert await w.shown(number=visit) == (visit, SECOND)


class TestExhaustion:
    async def test_it_falls_back_to_a_unique_address_and_is_counted(self, w: World) -> None:
        await w.shown()
        await w.shown()
        visit, shown = await w.shown()
        assert is_valid(shown.partition("@")[0])
        assert shown.endswith(f"@{TRACK}")
        assert await w.rows(select(counters.c.name, counters.c.day, counters.c["count"])) == [
            ("pool_exhausted", "2027-01-15", 1)
        ]
        assert await w.shown(number=visit) == (visit, shown)  # and is its own from now on
        (recipient,) = [await w.recipient(shown)]
        assert recipient.forward_to == "sales@example.com"

    async def test_without_a_domain_the_target_is_missing_and_counted(self, tmp_path: Path) -> None:
        async with world(tmp_path, site("shop", pool_target("sales@example.com", FIRST, domain=None))) as w:
            await w.shown()
            for _ in range(2):
                assert (await w.bind()).substitutes == {}
            assert await w.rows(select(counters.c["count"])) == [(2,)]

    async def test_every_day_and_site_counts_for_itself(self, w: World) -> None:
        for day in range(2):
            for _ in range(4):
                await w.bind("shop", "sales@example.com")
            w.pass_time(DAY)
            assert len(await w.rows(select(counters.c.day))) == day + 1
        assert await w.rows(select(func.sum(counters.c["count"]))) == [(4,)]


class TestMethods:
    async def test_all_targets_of_a_page_are_answered_in_one_transaction(self, w: World) -> None:
        bound = await w.bind()
        shown = {bound.substitutes[w.target(name).id] for name in ("sales@example.com", "help@example.com")}
        assert shown == {FIRST, f"help+{bound.visit}@{TRACK}"}
        assert len(bound.substitutes) == 3

    async def test_a_plus_address_needs_no_lease(self, w: World) -> None:
        visit, shown = await w.shown("help@example.com")
        assert shown == f"help+{visit}@{TRACK}"
        assert await w.rows(select(bindings.c.id)) == []

    async def test_a_unique_address_is_minted_once_a_visit_and_announced(self, w: World) -> None:
        bound = await w.bind("shop", "jobs@example.com")
        (shown,) = bound.substitutes.values()
        assert bound.created == ((TRACK, shown.partition("@")[0]),)
        again = await w.bind("shop", "jobs@example.com", number=bound.visit)
        assert (again.substitutes, again.created) == (bound.substitutes, ())
        other = await w.bind("shop", "jobs@example.com")
        assert other.substitutes != bound.substitutes

    async def test_a_unique_name_that_is_taken_is_not_given_again(self, w: World) -> None:
        octets = iter([b"\1" * RANDOM_OCTETS, b"\1" * RANDOM_OCTETS, b"\2" * RANDOM_OCTETS])

        def random(size: int) -> bytes:
            return next(octets) if size == RANDOM_OCTETS else b"\7" * (size - 1) + bytes([len(numbers)])

        numbers: list[str] = []
        for _ in range(2):
            request = w.request("shop", "jobs@example.com")
            bound = await w.store.write(lambda tx: bind(tx, request, w.now, random))  # noqa: B023
            numbers.append(bound.visit)
        assert len(await w.rows(select(routes.c.id).where(routes.c.kind == "unique"))) == 2

    async def test_an_automated_browser_is_counted_as_a_visit_and_gets_no_address(self, w: World) -> None:
        bound = await w.bind(leasable=False)
        assert bound.substitutes == {}
        assert await visit_row(w, bound.visit, "own") == (1,)

    async def test_with_tracking_off_visits_are_counted_and_nothing_is_substituted(self, w: World) -> None:
        bound = await w.bind(tracking=False)
        assert bound.substitutes == {}
        assert len(await w.rows(select(visits.c.id))) == 1


class TestVisit:
    async def test_our_numbers_are_fifteen_random_digits(self, w: World) -> None:
        numbers = {(await w.bind()).visit for _ in range(20)}
        assert len(numbers) == 20
        assert all(len(number) == 15 and number.isdigit() for number in numbers)

    async def test_a_number_that_is_taken_is_not_given_again(self, w: World) -> None:
        draws: list[int] = []

        def random(size: int) -> bytes:
            draws.append(size)
            return bytes([7 if len(draws) < 4 else 8]) * size

        request = w.request("shop", "help@example.com")
        first = await w.store.write(lambda tx: bind(tx, request, w.now, random))
        second = await w.store.write(lambda tx: bind(tx, request, w.now, random))
        assert first.visit != second.visit
        assert len(draws) == 4

    async def test_when_every_number_is_taken_it_gives_up(self, w: World) -> None:
        request = w.request("shop", "help@example.com")
        await w.store.write(lambda tx: bind(tx, request, w.now, lambda size: b"\1" * size))
        with pytest.raises(RuntimeError, match="no free visit number"):
            await w.store.write(lambda tx: bind(tx, request, w.now, lambda size: b"\1" * size))

    async def test_an_unknown_number_is_another_counters_and_becomes_the_sites_visit(self, w: World) -> None:
        bound = await w.bind(number="123456")
        assert (bound.visit, bound.first_visit) == ("123456", "123456")
        assert await visit_row(w, "123456", "own", "first_visit") == (0, "123456")
        assert (await w.bind(number="123456")).visit == "123456"

    async def test_another_counters_number_may_stand_for_a_visit_at_each_site(self, tmp_path: Path) -> None:
        two = site("two", target_of(Method.PLUS, "help@two.example", "track.two.example"))
        async with world(tmp_path, site("shop", pool_target()), two) as w:
            await w.bind("shop", number="5")
            await w.bind("two", number="5")
            assert await w.rows(select(visits.c.number, visits.c.own)) == [("5", 0), ("5", 0)]

    async def test_our_own_number_sent_to_another_site_is_a_foreign_one_there(self, tmp_path: Path) -> None:
        two = site("two", target_of(Method.PLUS, "help@two.example", "track.two.example"))
        async with world(tmp_path, site("shop", pool_target()), two) as w:
            visit = (await w.bind("shop")).visit
            assert (await w.bind("two", number=visit)).visit == visit
            assert await w.rows(select(visits.c.own).order_by(visits.c.id)) == [(1,), (0,)]

    async def test_our_own_numbers_avoid_those_of_another_counter_at_the_site(self, w: World) -> None:
        foreign = visit_number(int.from_bytes(b"\1" * 16, "big"))
        await w.bind(number=foreign)
        draws = iter([b"\1" * 16, b"\2" * 16])
        request = w.request("shop", "help@example.com")
        bound = await w.store.write(lambda tx: bind(tx, request, w.now, lambda size: next(draws)))
        assert bound.visit != foreign

    @pytest.mark.parametrize("nonsense", ["", "x", "-1", "1.5", "١٢٣", "1" * 21])
    async def test_what_is_no_number_is_ignored(self, w: World, nonsense: str) -> None:
        bound = await w.bind(number=nonsense, first_visit=nonsense)
        assert len(bound.visit) == 15
        assert bound.first_visit == bound.visit

    async def test_the_first_visit_of_the_browser_is_kept(self, w: World) -> None:
        first = (await w.bind()).visit
        second = await w.bind(first_visit=first)
        assert (second.visit != first, second.first_visit) == (True, first)
        w.pass_time(15 * DAY)
        third = await w.bind(number=second.visit)  # timed out
        assert third.visit != second.visit
        assert third.first_visit == first

    async def test_new_marks_start_a_new_visit_and_its_source_is_never_overwritten(self, w: World) -> None:
        page = "https://www.shop.example/?roistat=ads_1&utm_term=oak&roistat_param_2=b"
        one = await w.bind(page=page, referrer="https://www.google.com/", params={"5": "e"})
        assert (await w.bind(number=one.visit, page=page, referrer="https://www.google.com/")).visit == one.visit
        two = await w.bind(number=one.visit, page="https://www.shop.example/?roistat=ads_2")
        assert two.visit != one.visit
        assert two.first_visit == one.visit
        row = await visit_row(w, one.visit, "marker", "utm_term", "referrer", "params", "domain", "landing_page", "ip")
        assert row == (
            "ads_1",
            "oak",
            "www.google.com",
            '{"2": "b", "5": "e"}',
            "www.shop.example",
            "www.shop.example/?roistat=ads_1&utm_term=oak&roistat_param_2=b",
            "192.0.2.7",
        )

    async def test_inner_pages_keep_a_visit_alive(self, w: World) -> None:
        visit = (await w.bind()).visit
        for _ in range(3):
            w.pass_time(13 * DAY)
            bound = await w.bind(number=visit, page="https://www.shop.example/about", referrer="https://shop.example/")
            assert bound.visit == visit
        assert await visit_row(w, visit, "started_at", "last_seen_at") == (NOW, w.now)


class TestReserve:
    """A pool of two, of which the last free address is kept from page views that nobody may be looking at."""

    async def seen(self, w: World, **changes: Any) -> tuple[str, str | None]:
        """(visit number, the address it was given) of a page view of the pool target."""
        request = w.request("shop", "sales@example.com", **changes)
        (asked,) = request.asked
        request = replace(request, asked=(replace(asked, reserve=1),))
        bound = await w.store.write(lambda tx: bind(tx, request, w.now))
        return bound.visit, bound.substitutes.get(asked.target_id)

    @pytest.fixture
    async def w(self, tmp_path: Path) -> AsyncIterator[World]:
        async with world(tmp_path, site("shop", pool_target("sales@example.com", FIRST, SECOND, domain=None))) as found:
            yield found

    async def test_a_first_page_view_without_a_sign_of_a_person_leaves_the_last_address(self, w: World) -> None:
        assert (await self.seen(w))[1] == FIRST
        assert (await self.seen(w))[1] is None
        counted = await w.rows(select(counters.c.name, counters.c["count"]))
        assert counted == [("pool_reserved", 1)]

    async def test_it_is_told_that_there_is_one_for_whoever_interacts(self, w: World) -> None:
        requests = [w.request("shop", "sales@example.com", **changes) for changes in ({}, {}, {"interacted": True})]
        found = []
        for request in requests:
            (asked,) = request.asked
            kept = replace(request, asked=(replace(asked, reserve=1),))
            found.append((await w.store.write(lambda tx: bind(tx, kept, w.now))).reserved)  # noqa: B023
        assert found == [False, True, False]

    async def test_a_person_gets_the_last_address(self, w: World) -> None:
        await self.seen(w)
        assert (await self.seen(w, interacted=True))[1] == SECOND
        assert await w.rows(select(counters.c.name)) == []

    async def test_who_comes_back_gets_the_last_address(self, w: World) -> None:
        await self.seen(w)
        visit, nothing = await self.seen(w)
        assert nothing is None
        assert await self.seen(w, number=visit) == (visit, SECOND)

    async def test_who_holds_an_address_keeps_it(self, w: World) -> None:
        visit, shown = await self.seen(w)
        await self.seen(w, interacted=True)
        assert await self.seen(w, number=visit) == (visit, shown)

    async def test_an_exhausted_pool_is_counted_as_exhausted(self, w: World) -> None:
        for _ in range(2):
            await self.seen(w, interacted=True)
        assert (await self.seen(w))[1] is None
        assert await w.rows(select(counters.c.name)) == [("pool_exhausted",)]

    async def test_where_the_target_has_a_domain_it_gets_a_unique_address_instead(self, tmp_path: Path) -> None:
        async with world(tmp_path, site("shop", pool_target())) as w:
            await self.seen(w)
            _, shown = await self.seen(w)
            assert shown is not None
            assert is_valid(shown.partition("@")[0])
            assert await w.rows(select(counters.c.name)) == [("pool_reserved",)]
            assert (await self.seen(w, interacted=True))[1] == SECOND

    async def test_without_a_reserve_the_first_page_view_gets_the_last_address(self, w: World) -> None:
        assert {(await w.shown())[1] for _ in range(2)} == {FIRST, SECOND}


class TestNoNewLeases:
    """A network that has had its share of addresses."""

    async def test_a_new_visit_is_counted_and_gets_what_costs_nothing(self, w: World) -> None:
        bound = await w.bind(new_leases=False)
        assert bound.fresh
        assert bound.substitutes == {w.target("help@example.com").id: f"help+{bound.visit}@{TRACK}"}
        assert (bound.created, await w.rows(select(bindings.c.id))) == ((), [])
        assert await w.rows(select(counters.c.name)) == []  # nor is the pool exhausted

    async def test_a_visit_that_holds_addresses_keeps_them_and_renews_its_lease(self, w: World) -> None:
        before = await w.bind()
        w.pass_time(LEASE - 1)
        again = await w.bind(number=before.visit, new_leases=False)
        assert (again.fresh, again.substitutes) == (False, before.substitutes)
        ends = await w.rows(select(bindings.c.ended_at))
        assert ends == [(w.now + LEASE,)] * 2

    async def test_what_went_to_another_visit_meanwhile_is_not_replaced(self, w: World) -> None:
        visit, _ = await w.shown()
        w.pass_time(LEASE)
        for _ in range(2):
            await w.shown()
        w.pass_time(LEASE)
        assert (await w.bind("shop", "sales@example.com", number=visit, new_leases=False)).substitutes == {}


class TestMails:
    async def mails(self, w: World, number: str | None = None) -> int | None:
        return (await w.bind(number=number, count_mails=True)).mails

    async def test_only_who_asks_is_told(self, w: World) -> None:
        assert (await w.bind()).mails is None
        assert await self.mails(w) == 0

    async def test_each_letter_of_the_visit_counts_once(self, w: World) -> None:
        bound = await w.bind()
        await w.accept(*bound.substitutes.values())  # one letter to three of its addresses
        assert await self.mails(w, bound.visit) == 1
        await w.accept(*bound.substitutes.values(), body=b"another")
        await w.accept(*bound.substitutes.values(), body=b"another")  # sent again
        assert await self.mails(w, bound.visit) == 2

    async def test_what_is_only_likely_or_inferred_or_anothers_does_not_count(self, w: World) -> None:
        first, shown = await w.shown()
        w.pass_time(2 * LEASE)
        second, _ = await w.shown()
        third, again = await w.shown()
        assert again == shown
        await w.accept(shown, body=b"likely")
        _, theirs = await w.shown("help@example.com", number=second)
        await w.accept(theirs, body=b"exact")
        await w.accept(f"help@{TRACK}", body=b"inferred")
        assert [await self.mails(w, number) for number in (first, second, third)] == [0, 1, 0]

    async def test_it_is_told_where_no_address_is(self, w: World) -> None:
        bound = await w.bind()
        await w.accept(*bound.substitutes.values())
        again = await w.bind(number=bound.visit, count_mails=True, tracking=False)
        assert (again.substitutes, again.mails) == ({}, 1)


async def test_pool_additions_by_hand_must_be_new(w: World) -> None:
    shop, target, other = w.site().id, w.target().id, w.target("help@example.com").id
    with pytest.raises(AddressTaken, match=FIRST):
        await w.store.write(lambda tx: add_to_pool(tx, shop, other, [address("info1")], w.now))
    with pytest.raises(AddressTaken):
        await w.store.write(lambda tx: add_to_pool(tx, shop, target, [address("card")], w.now))
    await w.store.write(lambda tx: add_to_pool(tx, shop, target, [address("INFO1")], w.now))  # has it already
    assert len(await w.rows(select(routes.c.id).where(routes.c.kind == "pool"))) == 2


class PoolOfThree(RuleBasedStateMachine):
    """Page views at random times against a model of who holds which of three addresses until when."""

    def __init__(self) -> None:
        super().__init__()
        self.connection = connect(template())
        self.connection.execute("BEGIN")
        self.tx = Tx(self.connection)
        names = [f"p{i}@{TRACK}" for i in range(3)]
        declare_all(self.tx, [site("shop", pool_target("sales@example.com", *names, domain=None))], NOW)
        ((self.site, self.target),) = self.tx.sql("SELECT site_id, id FROM targets")
        self.now = NOW
        self.visits: list[str] = []
        self.holder: dict[str, tuple[str, float]] = dict.fromkeys(names, ("", 0.0))

    def teardown(self) -> None:
        self.connection.rollback()
        self.connection.close()

    @rule(seconds=st.sampled_from([0.0, 1.0, LEASE / 3, LEASE - 1, LEASE, 3 * LEASE]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(which=st.integers(0, 5), moved=st.booleans())
    def page_is_seen(self, which: int, moved: bool) -> None:
        number = self.visits[which] if which < len(self.visits) else None
        request = BindRequest(
            site_id=self.site,
            tracking=True,
            visit_timeout=1e9,
            own_hosts=(),
            number=number,
            first_visit=None,
            marks=PageMarks(),
            source=Source(None, Channel.DIRECT),
            referrer=None,
            params={},
            google_client_id=None,
            asked=(Asked(self.target, Method.POOL, "sales", None, LEASE, reserve=1),),
            interacted=moved,
        )
        bound = bind(self.tx, request, self.now)
        if number is None:
            self.visits.append(bound.visit)
        mine = [name for name, (visit, _) in self.holder.items() if visit == bound.visit]
        free = [name for name, (_, until) in self.holder.items() if until <= self.now]
        if mine:
            expected = mine
        else:
            oldest = min((self.holder[name][1] for name in free), default=0.0)
            expected = [name for name in free if self.holder[name][1] == oldest]
        if not mine and number is None and not moved and len(free) == 1:
            expected = []  # the reserve
        given = bound.substitutes.get(self.target)
        assert (given in expected) if expected else given is None
        if given is not None:
            self.holder[given] = (bound.visit, self.now + LEASE)

    @invariant()
    def no_two_visits_hold_one_address_at_the_same_moment(self) -> None:
        overlapping = self.tx.sql(
            "SELECT a.route_id FROM bindings a JOIN bindings b ON a.route_id = b.route_id AND a.id < b.id "
            "WHERE a.started_at < b.ended_at AND b.started_at < a.ended_at"
        )
        assert overlapping == []


TestPoolOfThree = PoolOfThree.TestCase
TestPoolOfThree.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
