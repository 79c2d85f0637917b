"""Sites as they are declared, changed, removed and declared again, and what is kept in memory of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from relay.core.model import Method, RouteKind
from relay.store import posts as post_verbs
from relay.store import webhooks as webhook_verbs
from relay.store.errors import StoreUnavailable
from relay.store.reader import Reader
from relay.store.routes import create
from relay.store.schema import targets, webhooks
from relay.store.sites import (
    DeclaredElsewhere,
    NameTaken,
    add_to_pool,
    declare_all,
    define,
    remove,
    switch,
)
from relay.store.webhooks import SWITCHED_OFF
from tests.store_fixtures import (
    NOW,
    SHOP,
    TRACK,
    World,
    address,
    everything,
    hook,
    live,
    opened,
    owner,
    site,
    world,
)

CARD = f"card@{TRACK}"


@pytest.fixture
async def w(tmp_path: Path) -> AsyncIterator[World]:
    async with opened(tmp_path) as store:
        yield World(store)


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

    async def test_one_that_could_not_be_read_after_it_was_set_is_with_the_next_write(
        self, w: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def fail(*_: object) -> None:
            raise StoreUnavailable("disk I/O error")

        await w.declare(SHOP)
        shop = w.site().id
        with monkeypatch.context() as patch:
            patch.setattr(Reader, "run", fail)
            with pytest.raises(StoreUnavailable):
                await w.store.redefine(lambda tx: switch(tx, shop, tracking=False))
            assert w.site().tracking
            await w.store.write(lambda tx: switch(tx, shop, send_to_crm=False))  # goes its way all the same
        assert w.site().tracking
        await w.store.write(lambda tx: None)
        assert (w.site().tracking, w.site().send_to_crm) == (False, False)

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

    async def test_who_declares_learns_which_sites_are_gone(self, w: World) -> None:
        await w.declare(SHOP, site("two"))
        assert await w.store.redefine(lambda tx: declare_all(tx, [SHOP], w.now)) == ["two"]
        assert await w.store.redefine(lambda tx: declare_all(tx, [SHOP], w.now)) == []

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
        result = post_verbs.PostResult(job, "failed", NOW, 410, "", NOW, 0.1, disable_webhook="410 Gone")
        await w.store.redefine(lambda tx: post_verbs.finish_post(tx, result, NOW))
        for enabled in (True, False, True):
            await w.declare(replace(SHOP, webhooks=(hook(enabled=enabled),)))
        assert await hooks(w, "enabled", "disabled_reason") == [(0, "410 Gone")]
        assert w.site().webhooks[0].disabled_reason == "410 Gone"

    async def test_one_that_is_gone_from_the_file_is_out_of_use_and_its_log_stays(self, w: World) -> None:
        await w.declare(SHOP)
        await w.declare(replace(SHOP, webhooks=()))
        assert await hooks(w, "enabled", "removed_at", "disabled_reason") == [(0, NOW, "the webhook was removed")]
        assert w.site().webhooks == ()
        assert await w.store.write(lambda tx: webhook_verbs.remove(tx, 1, w.now)) is False

    async def test_one_added_by_hand_survives_the_file(self, w: World) -> None:
        await w.declare(SHOP)
        shop = w.site().id
        await w.store.redefine(lambda tx: webhook_verbs.add(tx, shop, hook("https://bi.example/"), w.now))
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
        await w.store.redefine(lambda tx: webhook_verbs.remove(tx, 1, w.now))
        assert w.site().webhooks == ()
