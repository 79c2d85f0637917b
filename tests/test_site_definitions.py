"""The editions of definitions: the same in memory and in the database, another after every change."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from relay.core.address import parse
from relay.store import hook_edition, sites
from relay.store.site_definitions import EditionPassed, difference, edition, expect, of_view, stored
from relay.store.sites import SiteDefinition, StaticDefinition
from tests.store_fixtures import SHOP, World, world


async def read(w: World, name: str = "shop") -> SiteDefinition:
    site = w.site(name)
    return of_view(site, {target.id: await w.store.sites.substitutes(target.id) for target in site.targets})


async def test_memory_and_database_say_the_same(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        for site in w.store.sites.by_id.values():
            found = await w.store.write(lambda tx, site=site: stored(tx, site.id))  # type: ignore[misc]
            assert found == await read(w, site.name)


async def test_a_verb_that_expects_another_edition_changes_nothing(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        shop, before = w.site().id, await read(w)
        await w.store.write(lambda tx: expect(tx, shop, edition(before)))
        target = w.target("sales@example.com").id
        await w.store.redefine(lambda tx: sites.add_to_pool(tx, shop, target, [parse("new@track.example.net")], w.now))
        with pytest.raises(EditionPassed):
            await w.store.write(lambda tx: expect(tx, shop, edition(before)))
        with pytest.raises(EditionPassed):
            await w.store.write(lambda tx: expect(tx, 999, edition(before)))


def test_a_difference_names_what_became_another() -> None:
    (target, *others) = SHOP.targets
    card = StaticDefinition(parse("card@track.example.net"), str(target.address), "card")
    before = replace(SHOP, statics=(card,))
    after = replace(
        before,
        tracking=not before.tracking,
        origins=(*before.origins, "https://new.example"),
        targets=(replace(target, forward_to="box@example.com", next_hop="sealed"), *others),
        statics=(replace(card, label="fair"),),
    )
    assert difference(before, before) == {}
    assert difference(before, after) == {
        "tracking": {"before": before.tracking, "after": after.tracking},
        "origins": {"added": ["https://new.example"]},
        f"{target.address}.forward_to": {"before": target.forward_to, "after": "box@example.com"},
        f"{target.address}.next_hop": "changed",
        "card@track.example.net.label": {"before": "card", "after": "fair"},
    }
    many = replace(before, origins=tuple(f"https://{number}.example" for number in range(40)))
    told = difference(before, many)["origins"]["added"]
    assert (len(told), told[-1]) == (11, "and 30 more")


async def test_a_verb_that_expects_another_edition_of_a_webhook_changes_nothing_either(tmp_path: Path) -> None:
    async with world(tmp_path) as w:
        before = w.site().webhooks[0]
        await w.store.write(lambda tx: hook_edition.expect(tx, before.id, hook_edition.edition(before)))
        rename = "UPDATE webhooks SET url = 'https://crm.example/renamed' WHERE id = ?"
        await w.store.redefine(lambda tx: tx.sql(rename, (before.id,)))
        with pytest.raises(EditionPassed):
            await w.store.write(lambda tx: hook_edition.expect(tx, before.id, hook_edition.edition(before)))
        after = w.site().webhooks[0]
        await w.store.write(lambda tx: hook_edition.expect(tx, before.id, hook_edition.edition(after)))
        with pytest.raises(EditionPassed):
            await w.store.write(lambda tx: hook_edition.expect(tx, 999, hook_edition.edition(after)))
