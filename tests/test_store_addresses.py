"""Whose an address is: substitutes and base addresses between targets, sites and the hands that add them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import select

from relay.core.address import parse
from relay.core.model import Method
from relay.store import figures
from relay.store.routes import NOBODY, AddressTaken
from relay.store.schema import deliveries, routes, visits
from relay.store.sites import (
    SiteDefinition,
    TargetDefinition,
    add_to_pool,
    define,
    grow_pool,
)
from tests.store_fixtures import (
    DAY,
    SHOP,
    TRACK,
    World,
    address,
    everything,
    live,
    opened,
    owner,
    pool_target,
    site,
    static,
    target_of,
)

CARD = f"card@{TRACK}"


@pytest.fixture
async def w(tmp_path: Path) -> AsyncIterator[World]:
    async with opened(tmp_path) as store:
        yield World(store)


class TestSubstitutes:
    async def test_an_address_taken_off_the_list_is_retired_and_can_come_back(self, w: World) -> None:
        await w.declare(SHOP)
        fewer = replace(SHOP, targets=(pool_target("sales@example.com", f"info1@{TRACK}"), *SHOP.targets[1:]))
        await w.declare(fewer)
        assert await owner(w, f"info2@{TRACK}") == ("shop", "sales@example.com", False)
        await w.declare(SHOP)
        assert await owner(w, f"info2@{TRACK}") == ("shop", "sales@example.com", True)

    async def test_pool_additions_by_hand_survive_the_file(self, w: World) -> None:
        await w.declare(SHOP)
        shop, target = w.site().id, w.target().id
        await w.store.redefine(lambda tx: add_to_pool(tx, shop, target, [address("extra")], w.now))
        await w.declare(SHOP)
        assert (await live(w))[f"extra@{TRACK}"] == "pool"
        await w.declare(replace(SHOP, targets=(pool_target("sales@example.com", f"extra@{TRACK}"),), statics=()))
        await w.declare(replace(SHOP, targets=(pool_target("sales@example.com", f"info1@{TRACK}"),), statics=()))
        assert f"extra@{TRACK}" not in await live(w)  # it was named in the file, and is no more

    async def test_naming_a_defined_address_by_hand_does_not_make_it_an_addition(self, w: World) -> None:
        await w.declare(SHOP)
        shop, target = w.site().id, w.target().id
        await w.store.redefine(lambda tx: add_to_pool(tx, shop, target, [address("info2")], w.now))
        await w.declare(replace(SHOP, targets=(pool_target("sales@example.com", f"info1@{TRACK}"),), statics=()))
        assert f"info2@{TRACK}" not in await live(w)

    async def test_minted_addresses_survive_the_file(self, w: World) -> None:
        await w.declare(SHOP)
        _, unique = await w.shown("jobs@example.com")
        await w.declare(replace(SHOP, visit_timeout=1.0))
        assert await owner(w, unique) == ("shop", "jobs@example.com", True)

    async def test_a_label_or_kind_follows_the_file(self, w: World) -> None:
        await w.declare(SHOP)
        await w.declare(replace(SHOP, statics=(static(CARD, label="fair"),)))
        assert (await w.recipient(CARD)).route.label == "fair"  # type: ignore[union-attr]
        await w.declare(replace(SHOP, statics=(), targets=(pool_target("sales@example.com", CARD),)))
        assert (await live(w))[CARD] == "pool"
        assert (await w.recipient(CARD)).route.label is None  # type: ignore[union-attr]

    @pytest.mark.parametrize("order", [1, -1])
    async def test_an_address_moves_between_targets_in_one_step(self, w: World, order: int) -> None:
        def shop(sales: str, help_: str) -> SiteDefinition:
            both = (pool_target("sales@example.com", sales), pool_target("help@example.com", help_))
            return site("shop", *both[::order])

        await w.declare(shop(f"a@{TRACK}", f"b@{TRACK}"))
        await w.declare(shop(f"b@{TRACK}", f"a@{TRACK}"))
        assert await owner(w, f"a@{TRACK}") == ("shop", "help@example.com", True)
        assert await owner(w, f"b@{TRACK}") == ("shop", "sales@example.com", True)

    async def test_an_address_compares_without_case(self, w: World) -> None:
        await w.declare(site("shop", pool_target("Sales@example.com", f"Info1@{TRACK}")))
        assert await owner(w, f"INFO1@{TRACK}") == ("shop", "Sales@example.com", True)
        await w.declare(site("shop", pool_target("Sales@example.com", f"iNFO1@{TRACK}")))
        assert (await live(w))[f"info1@{TRACK}"] == "pool"

    async def test_a_unique_address_never_becomes_anything_else(self, w: World) -> None:
        await w.declare(SHOP)
        _, unique = await w.shown("jobs@example.com")
        with pytest.raises(AddressTaken):
            await w.declare(replace(SHOP, targets=(*SHOP.targets[:2], pool_target("jobs@example.com", unique))))
        assert (await live(w))[unique] == "unique"


class TestTwoSites:
    TWO = site("two", pool_target("sales@two.example", CARD, domain="track.two.example"))

    async def test_an_address_belongs_to_one_and_the_file_is_refused_as_a_whole(self, w: World) -> None:
        await w.declare(SHOP)
        before = await everything(w)
        with pytest.raises(AddressTaken, match=CARD):
            await w.declare(SHOP, self.TWO)
        assert await everything(w) == before
        assert list(w.store.sites.by_name) == ["shop"]

    @pytest.mark.parametrize("order", [1, -1])
    async def test_the_file_can_move_an_address_to_another_site(self, w: World, order: int) -> None:
        await w.declare(SHOP)
        await w.declare(*(replace(SHOP, statics=()), self.TWO)[::order])
        assert await owner(w, CARD) == ("two", "sales@two.example", True)

    async def test_a_site_that_is_renamed_keeps_its_addresses(self, w: World) -> None:
        await w.declare(SHOP)
        before = await live(w)
        await w.declare(replace(SHOP, name="store"))
        assert await live(w) == before
        assert await owner(w, CARD) == ("store", "sales@example.com", True)

    async def test_what_the_old_site_knew_of_an_address_stays_behind(self, w: World) -> None:
        """Late mail to a visitor of the old site must not be stated as a visit to the new one."""
        await w.declare(SHOP)
        _, leased = await w.shown()
        await w.declare(replace(SHOP, name="store"))
        (job,) = (await w.accept(leased)).jobs
        assert job.visit is None

    async def test_what_keeps_that_somebody_held_an_address_is_no_visit_in_the_advice_on_pools(self, w: World) -> None:
        shop = site("shop", pool_target())
        await w.declare(shop)
        _, leased = await w.shown()
        (left,) = {f"info1@{TRACK}", f"info2@{TRACK}"} - {leased}
        elsewhere = site("two", pool_target("sales@two.example", leased))
        await w.declare(replace(shop, targets=(pool_target("sales@example.com", left),)), elsewhere)
        assert await w.rows(select(visits.c.id).where(visits.c.number.like(f"{NOBODY}%"))) != []
        assert len(await figures.stays(w.store.reader, w.site("shop").id, w.now - DAY, 10)) == 1

    async def test_late_mail_to_an_address_that_another_site_had_is_nobodys_for_certain(self, w: World) -> None:
        """Whoever held it there may have written as well as who holds it here."""
        await w.declare(SHOP)
        _, leased = await w.shown()
        await w.declare(replace(SHOP, name="store"))
        w.pass_time(DAY + 3600)
        held = {(await w.shown(name="store"))[1] for _ in range(2)}
        assert leased in held
        w.pass_time(5 * 3600)
        await w.accept(leased)
        assert await w.rows(select(deliveries.c.attribution)) == [("likely",)]

    async def test_mail_that_was_written_before_an_address_went_to_another_site_has_no_visit(self, w: World) -> None:
        await w.declare(SHOP)
        _, leased = await w.shown()
        written_at = w.now + 60
        w.pass_time(3600)
        await w.declare(replace(SHOP, name="store"))
        await w.accept(leased, written_at=written_at)
        assert await w.rows(select(deliveries.c.attribution, deliveries.c.visit_id)) == [("none", None)]

    async def test_one_that_a_visitor_holds_is_nobodys_at_the_site_it_moves_to(self, w: World) -> None:
        """Neither is it shown to somebody new, nor does its mail tell the new site of the former one's visitor."""

        def sites(first: str, second: str) -> tuple[SiteDefinition, ...]:
            one = pool_target("sales@one.example", f"{first}@{TRACK}", domain=None)
            two = pool_target("sales@two.example", f"{second}@{TRACK}", domain=None)
            return site("one", one), site("two", two)

        await w.declare(*sites("moved", "spare"))
        _, moved = await w.shown("sales@one.example", "one")
        await w.declare(*sites("fresh", "moved"))
        assert (await w.bind("two")).substitutes == {}
        await w.accept(moved)
        assert await w.rows(select(deliveries.c.attribution, deliveries.c.visit_id)) == [("none", None)]

    async def test_once_nobody_else_can_have_written_the_visit_that_holds_it_is_certain(self, w: World) -> None:
        await w.declare(SHOP)
        _, leased = await w.shown()
        await w.declare(replace(SHOP, name="store"))
        w.pass_time(11 * DAY)
        assert leased in {(await w.shown(name="store"))[1] for _ in range(2)}
        await w.accept(leased)
        assert await w.rows(select(deliveries.c.attribution)) == [("exact",)]

    @pytest.mark.parametrize("name", ["shop", "store"])
    async def test_late_mail_to_an_address_that_was_static_is_nobodys_for_certain(self, w: World, name: str) -> None:
        """Who has the card may have written as well, the second time it was one, too."""
        card, address = replace(SHOP, statics=(static(f"was@{TRACK}"),)), f"was@{TRACK}"
        pool = replace(SHOP, name=name, targets=(pool_target("sales@example.com", address), *SHOP.targets[1:]))
        await w.declare(card)
        await w.declare(pool)
        for definition in (replace(card, name=name), pool):
            w.pass_time(3600)
            await w.declare(definition)
        w.pass_time(DAY + 1)
        _, leased = await w.shown(name=name)
        assert leased == address
        w.pass_time(5 * 60)
        await w.accept(leased, written_at=w.now - DAY - 3600)
        assert await w.rows(select(deliveries.c.attribution)) == [("likely",)]

    @pytest.mark.parametrize(
        ("days", "state", "label", "share"),
        [(0, "likely", None, 0.5), (4, "likely", None, 0), (6, "exact", "card", None)],
    )
    async def test_mail_to_an_address_that_has_become_static_may_be_its_last_visitors(
        self, w: World, days: float, state: str, label: str | None, share: float | None
    ) -> None:
        await w.declare(SHOP)
        _, leased = await w.shown()
        w.pass_time(300)
        left = pool_target("sales@example.com", f"info2@{TRACK}")
        await w.declare(replace(SHOP, targets=(left, *SHOP.targets[1:]), statics=(static(leased),)))
        w.pass_time(days * DAY + 120)
        await w.accept(leased)
        said = select(deliveries.c.attribution, deliveries.c.label, deliveries.c.candidates)
        ((found, stated, candidates),) = await w.rows(said)
        assert (found, stated) == (state, label)
        shares = dict(json.loads(candidates or "[]"))
        ((holder,),) = await w.rows(select(visits.c.id).where(visits.c.erased_at.is_(None)))
        assert shares.get(holder) == (None if share is None else pytest.approx(share, abs=0.01))
        assert len(shares) == (0 if share is None else 2)  # the other is nobody's

    async def test_nor_is_it_the_labels_for_certain_where_the_pool_was_another_sites(self, w: World) -> None:
        await w.declare(SHOP)
        _, leased = await w.shown()
        w.pass_time(300)
        left = pool_target("sales@example.com", f"info2@{TRACK}")
        store = replace(SHOP, name="store", targets=(left, *SHOP.targets[1:]), statics=(static(leased),))
        await w.declare(store)
        w.pass_time(120)
        await w.accept(leased)
        assert await w.rows(select(deliveries.c.attribution, deliveries.c.label)) == [("likely", None)]

    async def test_whose_an_address_was_before_it_was_a_pools_is_unknown_and_not_erased(self, w: World) -> None:
        await w.declare(SHOP)
        pool = pool_target("sales@example.com", CARD)
        await w.declare(replace(SHOP, targets=(pool, *SHOP.targets[1:]), statics=()))
        w.pass_time(60)
        await w.accept(CARD)
        said = select(deliveries.c.attribution, deliveries.c.attribution_method)
        assert await w.rows(said) == [("none", "unknown/1")]

    async def test_a_plus_address_whose_base_went_into_a_pool_is_still_its_visits(self, w: World) -> None:
        await w.declare(site("shop", target_of(Method.PLUS, "info@example.com")))
        visit, shown = await w.shown("info@example.com")
        await w.declare(site("shop", pool_target("info@example.com", f"info@{TRACK}")))
        assert (await w.shown("info@example.com"))[1] == f"info@{TRACK}"
        (job,) = (await w.accept(shown)).jobs
        assert job.visit == visit

    async def test_only_the_file_may_take_over_a_retired_address(self, w: World) -> None:
        """Or a manager of one site could collect the late mail of another."""
        await w.declare(SHOP)
        await w.declare(replace(SHOP, statics=()))
        with pytest.raises(AddressTaken):
            await w.store.redefine(lambda tx: define(tx, self.TWO, w.now))
        assert await owner(w, CARD) == ("shop", "sales@example.com", False)

    async def test_an_addition_by_hand_cannot_take_one_either(self, w: World) -> None:
        two = site("two", pool_target("sales@two.example", "p@track.two.example", domain=None))
        await w.declare(replace(SHOP, statics=()), two)
        where, target = w.site("two").id, w.target("sales@two.example", "two").id
        for taken in (f"info1@{TRACK}", f"help@{TRACK}"):
            with pytest.raises(AddressTaken):
                await w.store.redefine(lambda tx, taken=taken: add_to_pool(tx, where, target, [parse(taken)], w.now))  # type: ignore[misc]


class TestBaseAddress:
    """Every target with a domain has its own local part there; only plus targets show it."""

    PLUS = target_of(Method.PLUS, "sales@plus.example")
    UNIQUE = target_of(Method.UNIQUE, "sales@unique.example")

    async def test_it_is_accepted_with_and_without_a_tag(self, w: World) -> None:
        await w.declare(site("shop", self.PLUS))
        for substitute in (f"sales@{TRACK}", f"sales+1@{TRACK}", f"sales+a+b@{TRACK}"):
            assert await owner(w, substitute) == ("shop", "sales@plus.example", True)

    @pytest.mark.parametrize("apart", [False, True])
    @pytest.mark.parametrize("order", [1, -1])
    async def test_a_plus_target_has_it_whoever_came_first(self, w: World, order: int, apart: bool) -> None:
        both = (self.UNIQUE, self.PLUS)[::order]
        if apart:
            await w.declare(site("one", both[0]), site("two", both[1]))
        else:
            await w.declare(site("shop", *both))
        found = await owner(w, f"sales@{TRACK}")
        assert found is not None
        assert found[1:] == ("sales@plus.example", True)

    @pytest.mark.parametrize("declared", [False, True], ids=["elsewhere", "in the file"])
    @pytest.mark.parametrize("kind", ["static", "pool", "plus"])
    async def test_only_the_file_gives_a_sites_base_to_another(self, w: World, kind: str, declared: bool) -> None:
        theirs = site("theirs", self.UNIQUE)
        if declared:
            await w.declare(theirs)
        else:
            await w.store.redefine(lambda tx: define(tx, theirs, w.now))
        mine = {
            "static": site(
                "mine", pool_target("me@mine.example"), statics=(static(f"sales@{TRACK}", "me@mine.example"),)
            ),
            "pool": site("mine", pool_target("me@mine.example", f"sales@{TRACK}")),
            "plus": site("mine", target_of(Method.PLUS, "sales@mine.example")),
        }[kind]
        before = await everything(w)
        with pytest.raises(AddressTaken, match=f"sales@{TRACK}"):
            await w.store.redefine(lambda tx: define(tx, mine, w.now))
        assert await everything(w) == before
        for tag in ("", "+anything"):
            assert await owner(w, f"sales{tag}@{TRACK}") == ("theirs", "sales@unique.example", True)
        await w.declare(*([theirs] if declared else []), mine)
        found = await owner(w, f"sales@{TRACK}")
        assert found is not None
        assert found[0] == "mine"

    async def test_a_base_stays_its_sites_when_another_site_is_changed(self, w: World) -> None:
        plain = site("mine", pool_target("me@mine.example"))
        for made in (site("theirs", self.UNIQUE), plain):
            await w.store.redefine(lambda tx: define(tx, made, w.now))  # noqa: B023
        before = await everything(w)
        taking = replace(plain, statics=(static(f"sales@{TRACK}", "me@mine.example"),))
        with pytest.raises(AddressTaken, match=f"sales@{TRACK}"):
            await w.store.redefine(lambda tx: define(tx, taking, w.now))
        assert await everything(w) == before

    async def test_among_others_the_first_keeps_it(self, w: World) -> None:
        other = pool_target("sales@pool.example")
        await w.declare(site("one", self.UNIQUE), site("two", other))
        assert await owner(w, f"sales@{TRACK}") == ("one", "sales@unique.example", True)
        await w.declare(site("one", self.UNIQUE), site("two", other))
        assert await owner(w, f"sales@{TRACK}") == ("one", "sales@unique.example", True)

    async def test_two_plus_targets_cannot_share_it(self, w: World) -> None:
        with pytest.raises(AddressTaken, match=f"sales@{TRACK}"):
            await w.declare(site("one", self.PLUS), site("two", target_of(Method.PLUS, "sales@other.example")))

    @pytest.mark.parametrize("order", [1, -1])
    async def test_an_address_that_is_listed_has_precedence_over_a_base_nobody_was_shown(
        self, w: World, order: int
    ) -> None:
        listed = pool_target("info@example.com", f"sales@{TRACK}")
        await w.declare(site("shop", *(self.UNIQUE, listed)[::order]))
        assert await owner(w, f"sales@{TRACK}") == ("shop", "info@example.com", True)
        assert (await live(w))[f"sales@{TRACK}"] == "pool"

    async def test_a_listed_address_cannot_be_a_plus_targets_base(self, w: World) -> None:
        with pytest.raises(AddressTaken):
            await w.declare(site("shop", self.PLUS, pool_target("info@example.com", f"sales@{TRACK}")))

    async def test_a_target_may_list_its_own_base(self, w: World) -> None:
        await w.declare(site("shop", pool_target("sales@example.com", f"sales@{TRACK}")))
        assert await live(w) == {f"sales@{TRACK}": "pool"}

    async def test_when_its_owner_goes_the_next_one_gets_it(self, w: World) -> None:
        other = pool_target("sales@pool.example")
        await w.declare(site("one", self.UNIQUE), site("two", other))
        await w.declare(site("two", other))
        assert await owner(w, f"sales@{TRACK}") == ("two", "sales@pool.example", True)

    async def test_a_site_made_elsewhere_goes_without_a_base_that_another_site_has_given_up(self, w: World) -> None:
        await w.declare(site("one", self.UNIQUE))
        await w.declare()
        await w.store.redefine(lambda tx: define(tx, site("two", pool_target("sales@pool.example")), w.now))
        assert await owner(w, f"sales@{TRACK}") == ("gone", "sales@unique.example", False)


@pytest.mark.parametrize("kind", ["static", "pool"])
async def test_what_a_unique_address_may_be_misheard_as_goes_to_its_visitors_target(w: World, kind: str) -> None:
    await w.declare(SHOP)
    _, minted = await w.shown("jobs@example.com")
    misheard = minted.replace("-", "", 1)
    mine = {
        "static": site(
            "mine", pool_target("me@mine.example", f"me1@{TRACK}"), statics=(static(misheard, "me@mine.example"),)
        ),
        "pool": site("mine", pool_target("me@mine.example", misheard)),
    }[kind]
    with pytest.raises(AddressTaken, match=misheard):
        await w.store.redefine(lambda tx: define(tx, mine, w.now))


class TestGeneratedPool:
    TARGET = TargetDefinition(parse("info@example.com"), Method.POOL, TRACK, (), 900.0, generate=3)

    async def test_names_are_made_up_and_stay_the_same(self, w: World) -> None:
        await w.declare(site("shop", self.TARGET))
        expected = {f"info{i}@{TRACK}" for i in (1, 2, 3)}
        assert {name for name, kind in (await live(w)).items() if kind == "pool"} == expected
        await w.declare(site("shop", self.TARGET))
        assert {name for name, kind in (await live(w)).items() if kind == "pool"} == expected

    async def test_a_larger_pool_grows_and_a_smaller_one_keeps_what_it_has(self, w: World) -> None:
        for size, expected in ((3, 3), (5, 5), (2, 5)):
            await w.declare(site("shop", replace(self.TARGET, generate=size)))
            assert list((await live(w)).values()).count("pool") == expected

    async def test_names_that_anybody_has_are_passed_over(self, w: World) -> None:
        await w.declare(site("other", pool_target("x@other.example", f"info2@{TRACK}")), site("shop", self.TARGET))
        shop = w.target("info@example.com").id
        names = await w.rows(select(routes.c.local).where(routes.c.target_id == shop, routes.c.kind == "pool"))
        assert sorted(names) == [("info1",), ("info3",), ("info4",)]

    async def test_it_needs_a_domain(self, w: World) -> None:
        await w.declare(SHOP)
        shop, target = w.site().id, w.target().id
        with pytest.raises(ValueError, match="no domain"):
            await w.store.redefine(lambda tx: grow_pool(tx, shop, target, "info", None, 2, w.now))
