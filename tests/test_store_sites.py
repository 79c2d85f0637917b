"""Sites as they are declared, changed, removed and declared again; whose an address is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from relay.core.address import parse
from relay.core.model import Address, Method, RouteKind
from relay.store import events, sites
from relay.store.routes import AddressTaken, create
from relay.store.schema import metadata, routes, targets, webhooks
from relay.store.sites import (
    SWITCHED_OFF,
    DeclaredElsewhere,
    NameTaken,
    SiteDefinition,
    TargetDefinition,
    add_to_pool,
    add_webhook,
    define,
    grow_pool,
    remove,
    remove_webhook,
    switch,
)
from tests.store_fixtures import (
    NOW,
    SHOP,
    TRACK,
    World,
    address,
    hook,
    opened,
    pool_target,
    site,
    static,
    target_of,
    world,
)

CARD = f"card@{TRACK}"


@pytest.fixture
async def w(tmp_path: Path) -> AsyncIterator[World]:
    async with opened(tmp_path) as store:
        yield World(store)


async def everything(w: World) -> dict[str, list[tuple[Any, ...]]]:
    return {table.name: await w.rows(select(table)) for table in metadata.sorted_tables}


async def owner(w: World, substitute: str) -> tuple[str, str, bool] | None:
    """(site, real address, whether it is attributed) of a substitute; None when it has no route."""
    recipient = await w.recipient(substitute)
    if recipient.route is None:
        return None
    names = {view.id: view.name for view in w.store.sites.by_id.values()}
    return names.get(recipient.route.site_id, "gone"), recipient.forward_to, recipient.route.attributed


async def live(w: World) -> dict[str, str]:
    """The live substitutes and their kinds."""
    query = select(routes.c.local, routes.c.domain, routes.c.kind).where(routes.c.retired_at.is_(None))
    return {str(Address(local, domain)): kind for local, domain, kind in await w.rows(query)}


async def hooks(w: World, *names: str) -> list[tuple[Any, ...]]:
    return await w.rows(select(*(webhooks.c[name] for name in names)).order_by(webhooks.c.id))


class TestDeclared:
    async def test_a_site_has_its_targets_substitutes_and_webhooks(self, w: World) -> None:
        await w.declare(SHOP)
        assert await live(w) == {
            f"sales@{TRACK}": "base",
            f"help@{TRACK}": "base",
            f"jobs@{TRACK}": "base",
            f"info1@{TRACK}": "pool",
            f"info2@{TRACK}": "pool",
            CARD: "static",
        }
        view = w.site()
        assert (view.declared, view.tracking, sorted(view.own_hosts)) == (True, True, ["www.shop.example"])
        assert [(hook.url, hook.enabled, hook.declared) for hook in view.webhooks] == [
            ("https://crm.example/hook", True, True)
        ]
        assert [target.method for target in view.targets] == [Method.POOL, Method.PLUS, Method.UNIQUE]

    async def test_an_unchanged_file_changes_nothing(self, w: World) -> None:
        await w.declare(SHOP)
        before = await everything(w)
        w.pass_time(3600)
        await w.declare(SHOP)
        assert await everything(w) == before

    async def test_the_directory_lists_a_targets_substitutes_with_their_leases(self, w: World) -> None:
        await w.declare(SHOP)
        await w.shown()
        listed = await w.store.sites.substitutes(w.target().id)
        assert [(row["address"], row["kind"], row["label"], row["leased_until"]) for row in listed] == [
            (f"info1@{TRACK}", "pool", None, NOW + 900),
            (f"info2@{TRACK}", "pool", None, None),
            (CARD, "static", "card", None),
        ]

    async def test_a_site_of_the_file_cannot_be_defined_or_removed_elsewhere(self, w: World) -> None:
        await w.declare(SHOP)
        before = await everything(w)
        with pytest.raises(DeclaredElsewhere):
            await w.store.redefine(lambda tx: define(tx, replace(SHOP, targets=()), w.now))
        with pytest.raises(DeclaredElsewhere):
            await w.store.redefine(lambda tx: remove(tx, "shop", w.now))
        assert await everything(w) == before

    async def test_a_site_made_elsewhere_can_be_declared_and_is_the_files_from_then_on(self, w: World) -> None:
        made = await w.store.redefine(lambda tx: define(tx, SHOP, w.now))
        assert not w.site().declared
        await w.declare(SHOP)
        assert (w.site().id, w.site().declared) == (made, True)
        await w.declare()
        assert w.store.sites.by_name == {}

    async def test_a_site_made_elsewhere_is_none_of_the_files_business(self, w: World) -> None:
        await w.store.redefine(lambda tx: define(tx, SHOP, w.now))
        await w.declare()
        assert list(w.store.sites.by_name) == ["shop"]

    async def test_a_key_belongs_to_one_site(self, w: World) -> None:
        await w.declare(SHOP)
        with pytest.raises(NameTaken) as caught:
            await w.store.redefine(lambda tx: define(tx, site("two", key="pk_shop"), w.now))
        assert caught.value.field == "key"
        assert list(w.store.sites.by_name) == ["shop"]


class TestSwitches:
    async def flip(self, w: World) -> None:
        shop = w.site().id
        await w.store.redefine(lambda tx: switch(tx, shop, tracking=False, send_to_crm=False))

    async def test_they_survive_a_restart_with_an_unchanged_file(self, w: World) -> None:
        await w.declare(SHOP)
        await self.flip(w)
        await w.declare(replace(SHOP, bots="lease"))  # something else was changed
        assert (w.site().tracking, w.site().send_to_crm, w.site().bots) == (False, False, "lease")

    async def test_a_switch_changed_in_the_file_applies(self, w: World) -> None:
        await w.declare(SHOP)
        await self.flip(w)
        await w.declare(replace(SHOP, send_to_crm=False))
        assert (w.site().tracking, w.site().send_to_crm) == (True, False)
        await self.flip(w)
        await w.declare(replace(SHOP, send_to_crm=False))
        assert not w.site().tracking

    async def test_a_site_that_comes_back_begins_with_the_files_switches(self, w: World) -> None:
        await w.declare(SHOP)
        await self.flip(w)
        await w.declare()
        await w.declare(SHOP)
        assert w.site().tracking


class TestRemoval:
    async def test_its_routes_go_on_forwarding_without_attribution(self, w: World) -> None:
        await w.declare(SHOP)
        before = set(await live(w))
        await w.declare()
        assert w.store.sites.by_name == {}
        assert await live(w) == {}
        for substitute in before:
            found = await owner(w, substitute)
            assert found is not None
            assert found[2] is False

    async def test_its_name_and_key_are_free_for_another(self, w: World) -> None:
        await w.declare(SHOP)
        await w.declare()
        await w.declare(site("shop"))
        assert w.site().targets == ()

    async def test_declared_again_it_has_its_addresses_back(self, w: World) -> None:
        await w.declare(SHOP)
        before = await live(w)
        await w.declare()
        await w.declare(SHOP)
        assert await live(w) == before
        assert await owner(w, CARD) == ("shop", "sales@example.com", True)

    async def test_there_is_nothing_to_remove_twice(self, w: World) -> None:
        await w.store.redefine(lambda tx: define(tx, SHOP, w.now))
        assert await w.store.redefine(lambda tx: remove(tx, "shop", w.now)) is True
        assert await w.store.redefine(lambda tx: remove(tx, "shop", w.now)) is False

    async def test_a_target_that_is_gone_retires_its_substitutes_alone(self, w: World) -> None:
        await w.declare(SHOP)
        await w.declare(replace(SHOP, targets=SHOP.targets[1:], statics=()))
        assert await owner(w, CARD) == ("shop", "sales@example.com", False)
        assert await owner(w, f"info1@{TRACK}") == ("shop", "sales@example.com", False)
        assert await owner(w, f"help@{TRACK}") == ("shop", "help@example.com", True)

    async def test_a_target_that_comes_back_has_its_substitutes_back(self, w: World) -> None:
        await w.declare(SHOP)
        await w.declare(replace(SHOP, targets=SHOP.targets[1:], statics=()))
        await w.declare(SHOP)
        assert await owner(w, CARD) == ("shop", "sales@example.com", True)
        assert len(await w.rows(select(targets.c.id).where(targets.c.removed_at.is_(None)))) == 3


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


class TestWebhooks:
    async def test_it_is_found_again_by_its_url_and_keeps_its_id(self, w: World) -> None:
        await w.declare(SHOP)
        await w.declare(replace(SHOP, webhooks=(hook(fill="exact", secret="new"), hook("https://bi.example/"))))
        assert await hooks(w, "id", "url", "fill", "secret") == [
            (1, "https://crm.example/hook", "exact", "new"),
            (2, "https://bi.example/", "inferred", "sealed"),
        ]

    async def test_without_a_secret_it_keeps_its_own(self, w: World) -> None:
        await w.declare(replace(SHOP, webhooks=(hook(secret="mine"),)))
        await w.declare(replace(SHOP, webhooks=(hook(secret=None),)))
        assert await hooks(w, "secret") == [("mine",)]

    async def test_a_new_one_needs_a_secret(self, w: World) -> None:
        with pytest.raises(ValueError, match="secret"):
            await w.declare(replace(SHOP, webhooks=(hook(secret=None),)))

    async def test_the_file_switches_it_off_and_on(self, w: World) -> None:
        for enabled, expected in ((True, (1, None)), (False, (0, SWITCHED_OFF)), (True, (1, None))):
            await w.declare(replace(SHOP, webhooks=(hook(enabled=enabled),)))
            assert await hooks(w, "enabled", "disabled_reason") == [expected]

    async def test_one_that_its_receiver_disabled_stays_disabled(self, w: World) -> None:
        await w.declare(SHOP)
        (job,) = await w.extract((await w.accept(CARD)).message_id, "poster")
        result = events.PostResult(job, "failed", NOW, 410, "", NOW, 0.1, disable_webhook="410 Gone")
        await w.store.redefine(lambda tx: events.finish_post(tx, result, NOW))
        for enabled in (True, False, True):
            await w.declare(replace(SHOP, webhooks=(hook(enabled=enabled),)))
        assert await hooks(w, "enabled", "disabled_reason") == [(0, "410 Gone")]
        assert w.site().webhooks[0].disabled_reason == "410 Gone"

    async def test_one_that_is_gone_from_the_file_is_out_of_use_and_its_log_stays(self, w: World) -> None:
        await w.declare(SHOP)
        await w.declare(replace(SHOP, webhooks=()))
        assert await hooks(w, "enabled", "removed_at") == [(0, NOW)]
        assert w.site().webhooks == ()
        assert await w.store.write(lambda tx: remove_webhook(tx, 1, w.now)) is False

    async def test_one_added_by_hand_survives_the_file(self, w: World) -> None:
        await w.declare(SHOP)
        shop = w.site().id
        await w.store.redefine(lambda tx: add_webhook(tx, shop, hook("https://bi.example/"), w.now))
        await w.declare(SHOP)
        assert [found.url for found in w.site().webhooks] == ["https://crm.example/hook", "https://bi.example/"]

    async def test_a_site_defined_again_elsewhere_has_each_webhook_once(self, w: World) -> None:
        for _ in range(2):
            await w.store.redefine(lambda tx: define(tx, SHOP, w.now))
        assert await hooks(w, "url") == [("https://crm.example/hook",)]


class TestRouteCache:
    async def test_it_knows_of_every_change_that_the_store_makes(self, w: World) -> None:
        await w.declare(SHOP)
        assert await owner(w, f"new@{TRACK}") is None
        shop, target = w.site().id, w.target().id
        await w.store.redefine(lambda tx: add_to_pool(tx, shop, target, [address("new")], w.now))
        assert await owner(w, f"new@{TRACK}") == ("shop", "sales@example.com", True)

    async def test_a_new_route_is_found_once_the_cache_is_told(self, w: World) -> None:
        await w.declare(SHOP)
        cache, new = w.store.routes, address("late")
        shop, target = w.site().id, w.target().id
        assert await cache.find([(TRACK, "late", None)]) is None
        await w.store.write(lambda tx: create(tx, new, RouteKind.UNIQUE, shop, target, w.now))
        assert await cache.find([(TRACK, "late", None)]) is None  # that there is none is remembered, too
        cache.forget([new.key])
        assert await cache.find([(TRACK, "late", None)]) is not None

    async def test_what_is_read_while_something_changes_is_not_remembered(self, w: World) -> None:
        await w.declare(SHOP)
        cache, new = w.store.routes, address("late")
        shop, target = w.site().id, w.target().id
        looking = asyncio.create_task(cache.find([(TRACK, "late", None)]))
        await asyncio.sleep(0)  # it reads now, and may still see the state before
        cache.forget([new.key])
        assert await looking is None
        await w.store.write(lambda tx: create(tx, new, RouteKind.UNIQUE, shop, target, w.now))
        assert await cache.find([(TRACK, "late", None)]) is not None

    async def test_domains_are_those_that_have_a_route(self, w: World) -> None:
        await w.declare(SHOP)
        cache = w.store.routes
        assert await cache.domains() == {TRACK}
        shop, target = w.site().id, w.target().id
        new = address("x", "new.example.com")
        await w.store.write(lambda tx: create(tx, new, RouteKind.UNIQUE, shop, target, w.now))
        assert await cache.domains() == {TRACK}
        cache.forget([new.key])
        assert await cache.domains() == {TRACK, "new.example.com"}
        await w.declare()
        assert await cache.domains() == {TRACK, "new.example.com"}  # retired routes forward, too

    async def test_the_first_key_with_a_route_wins(self, w: World) -> None:
        await w.declare(SHOP)
        found = await w.store.routes.find([(TRACK, "nobody", None), (TRACK, "help", "77"), (TRACK, "card", None)])
        assert found is not None
        assert (found[0].local, found[1]) == ("help", "77")


async def test_the_sites_survive_a_restart(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        before = w.site()
    async with opened(tmp_path) as store:
        assert store.sites.by_key["pk_shop"] == before
        assert store.sites.by_id[before.id] == before


async def test_a_removed_webhook_and_site_leave_the_directory(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        await w.store.redefine(lambda tx: sites.remove_webhook(tx, 1, w.now))
        assert w.site().webhooks == ()
