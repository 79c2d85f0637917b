"""Attributing a stored message anew: what was mended is found, and what was found and forgotten since is not lost."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from relay.core.address import parse
from relay.core.attribution import ENOUGH_DELAYS, Delays
from relay.core.model import Method
from relay.store import retention, sites
from relay.store.attribution import Evidence
from relay.store.post import PostJob
from relay.store.schema import deliveries, events, visits
from tests.post_fixtures import ALL, asking, claim, event_rows
from tests.store_fixtures import (
    DAY,
    LEASE,
    OTHER,
    SHOP,
    TRACK,
    World,
    everything,
    hook,
    pool_target,
    site,
    static,
    target_of,
    world,
)
from webapi import replays

CARD, BASE = f"card@{TRACK}", f"help@{TRACK}"
THEIRS = "other1@track.other.example"
CHANGED = "attribution.changed"


@pytest.fixture
async def w(tmp_path: Path) -> AsyncIterator[World]:
    """Both sites' webhooks ask for everything."""
    shop, other = replace(SHOP, webhooks=(asking(),)), replace(OTHER, webhooks=(asking(url="https://other/"),))
    async with world(tmp_path, shop, other) as found:
        yield found


async def letter(w: World, *addresses: str, **changes: Any) -> int:
    """A letter that was read; its id."""
    number = len(await w.rows(select(deliveries.c.id)))
    unique = {"body": b"%d" % number, "message_id": f"{number}@x"}
    message_id = (await w.accept(*addresses, **unique | changes)).message_id
    await w.extract(message_id)
    return message_id


async def again(w: World, message_id: int, *names: str, evidence: Evidence | None = None) -> int:
    """Attribute it anew at these sites (all)."""
    allowed = [w.site(name).id for name in names] or None
    w.store.routes.forget_all()
    return await replays.reattribute(w.store, message_id, evidence or Evidence(DAY), w.now, allowed)


async def found(w: World, message_id: int) -> list[tuple[str, str, str | None]]:
    """(attribution, method, visit number) of the message's deliveries."""
    return await w.rows(
        select(deliveries.c.attribution, deliveries.c.attribution_method, visits.c.number)
        .outerjoin(visits, visits.c.id == deliveries.c.visit_id)
        .where(deliveries.c.message_id == message_id)
        .order_by(deliveries.c.id)
    )


async def told(w: World) -> list[PostJob]:
    """The posts that say that an attribution has changed."""
    return [job for job in await claim(w, most=1000) if job.extras is not None and job.extras.event == CHANGED]


async def sql(w: World, statement: str, *values: object) -> None:
    await w.store.write(lambda tx: tx.sql(statement, list(values)))


async def two_holders(w: World, shown: str = "sales@example.com") -> tuple[str, str, str]:
    """(first, second, address): two visits that held one pool address within a day, the second holds it now."""
    held = [await w.shown(shown) for _ in range(2)]
    w.pass_time(2 * LEASE)
    second, address = await w.shown(shown)
    (first,) = (visit for visit, leased in held if leased == address)
    return first, second, address


async def withdraw(w: World, number: str) -> None:
    """Take a visit's bindings away, as if it had never held an address."""
    await sql(w, "DELETE FROM bindings WHERE visit_id = (SELECT id FROM visits WHERE number = ?)", number)


class TestFound:
    async def test_a_number_that_became_known_later_is_exact(self, w: World) -> None:
        message_id = await letter(w, f"help+4242@{TRACK}")
        assert await found(w, message_id) == [("claimed", "plus/1", None)]
        await w.bind("shop", "help@example.com", number="4242")
        assert await again(w, message_id) == 1
        assert await found(w, message_id) == [("exact", "plus/1", "4242")]
        assert await w.rows(select(deliveries.c.claimed_number)) == [(None,)]

    async def test_a_number_that_only_another_site_knows_stays_claimed(self, w: World) -> None:
        message_id = await letter(w, f"help+4242@{TRACK}")
        await w.bind("other", asked=(), number="4242")
        assert await again(w, message_id) == 0

    async def test_a_mended_binding_is_found(self, w: World) -> None:
        visit, leased = await w.shown()
        bindings = "(SELECT id FROM visits WHERE number = ?)"
        await sql(w, f"UPDATE bindings SET started_at = started_at + 9e8 WHERE visit_id = {bindings}", visit)
        message_id = await letter(w, leased)
        assert await found(w, message_id) == [("likely", "pool/2", None)]  # a clock was wrong
        await sql(w, f"UPDATE bindings SET started_at = started_at - 9e8 WHERE visit_id = {bindings}", visit)
        assert await again(w, message_id) == 1
        assert await found(w, message_id) == [("exact", "pool/2", visit)]

    async def test_likely_becomes_exact_when_the_other_holder_never_was_one(self, w: World) -> None:
        first, second, leased = await two_holders(w)
        message_id = await letter(w, leased)
        assert await found(w, message_id) == [("likely", "pool/2", None)]
        await withdraw(w, first)
        assert await again(w, message_id) == 1
        assert await found(w, message_id) == [("exact", "pool/2", second)]
        assert await w.rows(select(deliveries.c.candidates)) == [(None,)]

    async def test_delays_that_were_learned_since_weigh_anew(self, w: World) -> None:
        _, _, leased = await two_holders(w)
        message_id = await letter(w, leased)
        learned = Evidence(DAY, delays=Delays.of([0.0] * ENOUGH_DELAYS))
        assert await again(w, message_id, evidence=learned) == 1
        assert await found(w, message_id) == [("likely", "pool/3", None)]
        assert await again(w, message_id, evidence=learned) == 0

    async def test_holders_that_came_after_the_letter_say_nothing_of_it(self, w: World) -> None:
        _, leased = await w.shown()
        message_id = await letter(w, leased)
        for _ in range(4):
            w.pass_time(2 * LEASE)
            await w.shown()
        assert await again(w, message_id) == 0

    async def test_mail_that_came_while_tracking_was_off_is_found_once_it_is_on(self, w: World) -> None:
        visit, leased = await w.shown()
        shop = w.site().id
        await w.store.redefine(lambda tx: sites.switch(tx, shop, tracking=False, send_to_crm=True))
        message_id = await letter(w, leased)
        await w.store.redefine(lambda tx: sites.switch(tx, shop, tracking=True, send_to_crm=True))
        assert await again(w, message_id) == 1
        assert await found(w, message_id) == [("exact", "pool/2", visit)]

    async def test_the_recipient_is_the_best_attributed_one(self, tmp_path: Path) -> None:
        """Two substitutes of one mailbox: the delivery names the one that says whose visit it was."""
        shop = site("shop", pool_target(), statics=(static(CARD),), webhooks=(hook(),))
        async with world(tmp_path, shop) as w:
            first, second, leased = await two_holders(w)
            message_id = await letter(w, leased, CARD)
            assert await found(w, message_id) == [("exact", "static/1", None)]
            await withdraw(w, first)
            assert await again(w, message_id) == 1  # both are certain now: the first one wins
            assert await found(w, message_id) == [("exact", "pool/2", second)]
            columns = (deliveries.c.recipient, deliveries.c.route_id, deliveries.c.label)
            route = (await w.recipient(leased)).route
            assert route is not None
            assert await w.rows(select(*columns)) == [(leased, route.id, None)]
            (job,) = await claim(w)
            assert (job.message.email_to, job.visit and job.visit.number) == (leased, second)


class TestSeveral:
    """A letter to the addresses of visits of different people."""

    async def test_it_becomes_certain_when_one_never_held_its_address(self, w: World) -> None:
        visit, plus = await w.shown("help@example.com")
        other, leased = await w.shown()
        message_id = await letter(w, plus, leased)
        assert await found(w, message_id) == [("likely", "several/1", None)] * 2
        assert await again(w, message_id) == 0
        await withdraw(w, other)
        assert await again(w, message_id) == 2
        assert (await found(w, message_id))[0] == ("exact", "plus/1", visit)

    async def test_two_that_became_known_later_are_candidates(self, w: World) -> None:
        message_id = await letter(w, f"help+4242@{TRACK}", f"help+4343@{TRACK}")
        for number in ("4242", "4343"):
            await w.bind("shop", "help@example.com", number=number)
        assert await again(w, message_id) == 1
        assert await found(w, message_id) == [("likely", "several/1", None)]
        assert await again(w, message_id) == 0

    @pytest.mark.parametrize(
        "targets", [("sales@example.com", "sales@example.com"), ("help@example.com", "sales@example.com")]
    )
    async def test_an_address_that_was_retired_since_makes_nobody_certain(
        self, w: World, targets: tuple[str, str]
    ) -> None:
        addresses = [(await w.shown(target))[1] for target in targets]
        message_id = await letter(w, *addresses)
        before = await found(w, message_id)
        assert {method for _, method, _ in before} == {"several/1"}
        await sql(w, "UPDATE routes SET retired_at = ? WHERE local = ?", w.now, parse(addresses[1]).local)
        assert await again(w, message_id) == 0
        assert await found(w, message_id) == before


class TestKept:
    @pytest.mark.parametrize("how", ["erased", "by age"])
    @pytest.mark.parametrize("target", ["sales@example.com", "help@example.com", "jobs@example.com"])
    async def test_what_is_stated_of_a_forgotten_visit_stays(self, w: World, target: str, how: str) -> None:
        visit, shown = await w.shown(target)
        message_id = await letter(w, shown)
        ((state, method, number),) = await found(w, message_id)
        assert (state, number) == ("exact", visit)
        shop = w.site().id
        if how == "erased":
            await w.store.write(lambda tx: retention.erase_visit(tx, shop, visit, w.now, browser=False))
        else:
            await sql(w, "DELETE FROM visits")
        assert await again(w, message_id) == 0
        assert await found(w, message_id) == [("exact", method, None)]

    @pytest.mark.parametrize("how", ["erased", "by age"])
    async def test_candidates_of_which_one_is_forgotten_stay(self, w: World, how: str) -> None:
        """The one that is left would be stated as certain."""
        first, _, leased = await two_holders(w)
        message_id = await letter(w, leased)
        before = await w.rows(select(deliveries.c.candidates))
        shop = w.site().id
        if how == "erased":
            await w.store.write(lambda tx: retention.erase_visit(tx, shop, first, w.now, browser=False))
        else:
            await sql(w, "DELETE FROM visits WHERE number = ?", first)
        assert await again(w, message_id) == 0
        assert await w.rows(select(deliveries.c.candidates)) == before

    async def test_an_inferred_visit_that_is_forgotten_stays_so(self, w: World) -> None:
        visit, plus = await w.shown("help@example.com")
        await letter(w, plus)
        message_id = await letter(w, BASE)
        assert await found(w, message_id) == [("inferred", "sender/1", visit)]
        await sql(w, "DELETE FROM visits")
        assert await again(w, message_id) == 0
        assert await found(w, message_id) == [("inferred", "sender/1", None)]

    async def test_a_static_substitute_stays(self, w: World) -> None:
        message_id = await letter(w, CARD)
        assert await again(w, message_id) == 0
        assert await found(w, message_id) == [("exact", "static/1", None)]

    async def test_of_an_address_that_has_another_label_now_the_one_that_it_came_under_stays(self, w: World) -> None:
        message_id = await letter(w, CARD)
        await sql(w, "UPDATE routes SET label = 'fair' WHERE local = 'card'")
        assert await again(w, message_id) == 0
        assert await w.rows(select(deliveries.c.label)) == [("card",)]

    async def test_an_address_that_was_retired_since_keeps_what_it_said(self, w: World) -> None:
        visit, plus = await w.shown("help@example.com")
        card, helped = await letter(w, CARD), await letter(w, plus)
        await w.declare(site("shop", pool_target(), webhooks=(asking(),)), OTHER)
        assert (await again(w, card), await again(w, helped)) == (0, 0)
        assert await found(w, card) == [("exact", "static/1", None)]
        assert await found(w, helped) == [("exact", "plus/1", visit)]

    async def test_an_address_that_has_become_static_keeps_what_it_said(self, tmp_path: Path) -> None:
        shop = site("shop", pool_target(), webhooks=(asking(),))
        async with world(tmp_path, shop) as w:
            first, _, leased = await two_holders(w)
            likely = await letter(w, leased, sender="n@x", mail_from="n@x")
            await withdraw(w, first)
            certain = await letter(w, leased)
            before = [await found(w, likely), await found(w, certain)]
            assert [state for ((state, _, _),) in before] == ["likely", "exact"]
            (left,) = {f"info1@{TRACK}", f"info2@{TRACK}"} - {leased}
            await w.declare(replace(shop, targets=(pool_target("sales@example.com", left),), statics=(static(leased),)))
            assert (await again(w, likely), await again(w, certain)) == (0, 0)
            assert [await found(w, likely), await found(w, certain)] == before
            assert await told(w) == []

    async def test_an_address_that_has_become_static_keeps_whose_letter_was_inferred(self, tmp_path: Path) -> None:
        plus = target_of(Method.PLUS, "help@example.com")
        shop = site("shop", pool_target(), plus, webhooks=(asking(),))
        async with world(tmp_path, shop) as w:
            visit, helped = await w.shown("help@example.com")
            await letter(w, helped)
            message_id = await letter(w, f"info1@{TRACK}")
            assert await found(w, message_id) == [("inferred", "sender/1", visit)]
            left = pool_target("sales@example.com", f"info2@{TRACK}")
            await w.declare(replace(shop, targets=(left, plus), statics=(static(f"info1@{TRACK}"),)))
            assert await again(w, message_id) == 0
            assert await found(w, message_id) == [("inferred", "sender/1", visit)]

    async def test_a_static_address_that_is_leased_now_keeps_what_it_said(self, tmp_path: Path) -> None:
        shop = site("shop", pool_target(), statics=(static(CARD),), webhooks=(asking(),))
        async with world(tmp_path, shop) as w:
            message_id = await letter(w, CARD)
            await w.declare(replace(shop, targets=(pool_target("sales@example.com", CARD),), statics=()))
            assert await again(w, message_id) == 0
            assert await found(w, message_id) == [("exact", "static/1", None)]

    async def test_an_address_that_another_site_had_meanwhile_keeps_what_it_said(self, tmp_path: Path) -> None:
        shop = site("shop", pool_target(), webhooks=(asking(),))
        async with world(tmp_path, shop) as w:
            visit, leased = await w.shown()
            message_id = await letter(w, leased)
            elsewhere = site("two", pool_target("sales@two.example", leased))
            await w.declare(replace(shop, targets=()), elsewhere)
            await w.declare(shop, replace(elsewhere, targets=()))
            assert (await w.recipient(leased)).route is not None
            assert await again(w, message_id) == 0
            assert await found(w, message_id) == [("exact", "pool/2", visit)]

    async def test_nothing_was_said_before_an_address_was_given_its_label(self, tmp_path: Path) -> None:
        """An address that was printed, and declared for the pool by mistake."""
        shop = site("shop", pool_target(), webhooks=(asking(),))
        async with world(tmp_path, shop) as w:
            message_id = await letter(w, f"info1@{TRACK}")
            left = pool_target("sales@example.com", f"info2@{TRACK}")
            await w.declare(replace(shop, targets=(left,), statics=(static(f"info1@{TRACK}"),)))
            assert await again(w, message_id) == 1
            assert await found(w, message_id) == [("exact", "static/1", None)]
            assert await w.rows(select(deliveries.c.label)) == [("card",)]

    async def test_while_tracking_is_off_everything_stays(self, w: World) -> None:
        visit, leased = await w.shown()
        message_id = await letter(w, leased)
        shop = w.site().id
        await w.store.redefine(lambda tx: sites.switch(tx, shop, tracking=False, send_to_crm=True))
        assert await again(w, message_id) == 0
        assert await found(w, message_id) == [("exact", "pool/2", visit)]

    async def test_of_two_addresses_the_retired_one_that_was_certain_still_counts(self, tmp_path: Path) -> None:
        shop = site("shop", pool_target(), statics=(static(CARD),), webhooks=(hook(),))
        async with world(tmp_path, shop) as w:
            message_id = await letter(w, f"info1@{TRACK}", CARD)
            await w.declare(replace(shop, statics=()))
            assert await again(w, message_id) == 0
            assert await found(w, message_id) == [("exact", "static/1", None)]

    async def test_an_address_that_leads_nowhere_any_more_keeps_what_it_said(self, w: World) -> None:
        message_id = await letter(w, CARD)
        await sql(w, "DELETE FROM routes WHERE local = 'card'")
        assert await again(w, message_id) == 0
        assert await found(w, message_id) == [("exact", "static/1", None)]

    async def test_an_equal_result_changes_nothing_at_all(self, w: World) -> None:
        _, plus = await w.shown("help@example.com")
        _, _, leased = await two_holders(w)
        for addresses in ((plus, leased), (leased, CARD, BASE), (BASE,), (f"help+4242@{TRACK}",), (THEIRS, CARD)):
            await letter(w, *addresses)
        before = await everything(w)
        ids = {message_id for (message_id,) in await w.rows(select(deliveries.c.message_id))}
        assert [await again(w, message_id) for message_id in ids] == [0] * 5
        assert await everything(w) == before

    async def test_unknown_messages_and_the_operators_mail_are_no_error(self, w: World) -> None:
        assert await again(w, 999) == 0
        assert await again(w, await letter(w, f"postmaster@{TRACK}")) == 0


class TestSites:
    async def two(self, w: World) -> int:
        """A letter to both sites that is likely at both, and exact once looked at again."""
        first, _, leased = await two_holders(w)
        theirs = [await w.shown(name="other")]
        w.pass_time(2 * LEASE)
        theirs.append(await w.shown(name="other"))
        assert theirs[0][1] == theirs[1][1] == THEIRS
        message_id = await letter(w, leased, THEIRS, sender="new@example.org", mail_from="new@example.org")
        assert {state for state, _, _ in await found(w, message_id)} == {"likely"}
        for number in (first, theirs[0][0]):
            await withdraw(w, number)
        return message_id

    async def test_a_caller_changes_its_own_sites_share(self, w: World) -> None:
        message_id = await self.two(w)
        await claim(w)
        assert await again(w, message_id, "shop") == 1
        assert [state for state, _, _ in await found(w, message_id)] == ["exact", "likely"]
        assert [job.hook.url for job in await told(w)] == ["https://crm.example/hook"]

    async def test_without_a_caller_both_change(self, w: World) -> None:
        message_id = await self.two(w)
        assert await again(w, message_id) == 2
        assert [job.hook.url for job in await told(w)] == ["https://crm.example/hook", "https://other/"]

    async def test_a_caller_without_a_share_changes_nothing(self, w: World) -> None:
        _, _, leased = await two_holders(w)
        message_id = await letter(w, leased)
        await sql(w, "DELETE FROM bindings WHERE id = 1")
        assert await again(w, message_id, "other") == 0


class TestInferred:
    async def test_neither_itself_nor_later_letters_explain_a_letter(self, w: World) -> None:
        message_id = await letter(w, BASE, message_id="q@x", in_reply_to="q@x")
        _, plus = await w.shown("help@example.com")
        await letter(w, plus, message_id="q@x")  # the same sender and Message-ID, later and certain
        assert await again(w, message_id) == 0
        assert await found(w, message_id) == [("none", "plus/1", None)]

    async def test_what_it_says_itself_explains_nothing_of_its_other_deliveries(self, w: World) -> None:
        visit, leased = await w.shown()
        message_id = await letter(w, leased, BASE)
        before = await found(w, message_id)
        assert before == [("exact", "pool/2", visit), ("none", "plus/1", None)]
        assert await again(w, message_id) == 0

    @pytest.mark.parametrize(("changes", "method"), [({}, "sender/1"), ({"in_reply_to": "q@x"}, "thread/1")])
    async def test_an_earlier_letter_that_was_mended_explains_the_later_ones(
        self, w: World, changes: dict[str, Any], method: str
    ) -> None:
        first = await letter(w, f"help+4242@{TRACK}", message_id="q@x")
        later = await letter(w, BASE, **changes)
        await w.bind("shop", "help@example.com", number="4242")
        assert await again(w, later) == 0
        assert (await again(w, first), await again(w, later)) == (1, 1)
        assert await found(w, later) == [("inferred", method, "4242")]

    async def test_the_time_of_the_letter_counts_and_not_todays(self, w: World) -> None:
        first = await letter(w, f"help+4242@{TRACK}")
        later = await letter(w, BASE)
        w.pass_time(200 * DAY)
        await w.bind("shop", "help@example.com", number="4242")
        assert (await again(w, first), await again(w, later)) == (1, 1)


class TestEvent:
    async def stated(self, w: World, message_id: int) -> list[tuple[Any, ...]]:
        query = select(events.c.delivery_id).where(events.c.message_id == message_id, events.c.type != CHANGED)
        return await w.rows(query)

    async def test_it_follows_the_best_attributed_delivery(self, w: World) -> None:
        message_id = await letter(w, f"info1@{TRACK}", f"help+4242@{TRACK}", BASE)
        assert await self.stated(w, message_id) == [((await self.ids(w, message_id))[1],)]
        message_id = await letter(w, f"info2@{TRACK}", f"help+4242@{TRACK}", sender="n@x", mail_from="n@x")
        await w.bind("shop", "help@example.com", number="4242")
        await again(w, message_id)
        best = await w.rows(select(deliveries.c.id).where(deliveries.c.attribution == "exact"))
        assert await self.stated(w, message_id) == best

    async def ids(self, w: World, message_id: int) -> list[int]:
        return [row[0] for row in await w.rows(select(deliveries.c.id).where(deliveries.c.message_id == message_id))]

    async def test_what_was_stated_wins_a_tie(self, w: World) -> None:
        """Else a second certain delivery would take the statement over."""
        first, second, leased = await two_holders(w)
        message_id = await letter(w, leased, f"help+4242@{TRACK}", sender="n@x", mail_from="n@x")
        await w.bind("shop", "help@example.com", number="4242", first_visit=second)  # the same browser
        assert await again(w, message_id) == 1
        stated = await self.stated(w, message_id)
        assert stated == [((await self.ids(w, message_id))[1],)]
        await withdraw(w, first)
        assert await again(w, message_id) == 1
        assert {state for state, _, _ in await found(w, message_id)} == {"exact"}
        assert await self.stated(w, message_id) == stated
        assert len(await told(w)) == 1

    async def test_a_replay_states_what_was_found(self, w: World) -> None:
        message_id = await letter(w, f"help+4242@{TRACK}")
        await w.bind("shop", "help@example.com", number="4242")
        await again(w, message_id)
        received, _ = await claim(w)
        assert received.visit is not None
        assert received.visit.number == "4242"


class TestChanged:
    async def change(self, w: World, **changes: Any) -> int:
        """A letter that was likely and is exact now."""
        first, _, leased = await two_holders(w)
        message_id = await letter(w, leased, **changes)
        await withdraw(w, first)
        await again(w, message_id)
        return message_id

    async def test_it_says_what_is_now_and_what_was_before(self, w: World) -> None:
        message_id = await self.change(w)
        (job,) = await told(w)
        assert job.extras is not None
        assert job.extras.data == {"previous": {"state": "likely", "method": "pool/2", "visit_id": None}}
        assert (job.message_id, job.attribution.state, job.extras.candidates) == (message_id, "exact", ())
        assert job.visit is not None

    async def test_the_visit_before_is_told_by_its_number_as_long_as_it_is_known(self, w: World) -> None:
        first, leased = await w.shown()
        message_id = await letter(w, leased)
        second, _ = await w.shown()
        await sql(w, "UPDATE bindings SET visit_id = (SELECT id FROM visits WHERE number = ?)", second)
        await again(w, message_id)
        (job,) = await told(w)
        assert job.extras is not None
        assert job.extras.data["previous"]["visit_id"] == first
        assert job.visit is not None
        assert job.visit.number == second
        shop = w.site().id
        await w.store.write(lambda tx: retention.erase_visit(tx, shop, first, w.now, browser=False))
        assert first not in str(await w.rows(select(events.c.data)))
        w.pass_time(3600)
        (job,) = await told(w)
        assert job.extras is not None
        assert job.extras.data["previous"]["visit_id"] is None

    async def test_a_claimed_number_before_is_told_and_forgotten_with_its_visit(self, w: World) -> None:
        message_id = await letter(w, f"help+4242@{TRACK}")
        await w.bind("shop", "help@example.com", number="4242")
        await again(w, message_id)
        (job,) = await told(w)
        assert job.extras is not None
        assert job.extras.data == {"previous": {"state": "claimed", "method": "plus/1", "visit_id": "4242"}}
        shop = w.site().id
        await w.store.write(lambda tx: retention.erase_visit(tx, shop, "4242", w.now, browser=False))
        assert "4242" not in str(await w.rows(select(events.c.data)))

    async def test_it_is_only_for_webhooks_that_ask_for_it(self, tmp_path: Path) -> None:
        two = replace(SHOP, webhooks=(hook(), asking(CHANGED, url="https://bi.example/")))
        async with world(tmp_path, two) as w:
            await self.change(w)
            jobs = {(job.hook.url, job.uid) for job in await claim(w)}
            assert {url for url, _ in jobs} == {"https://crm.example/hook", "https://bi.example/"}
            assert await event_rows(w) == [("message.received", "posted", None), (CHANGED, "posted", None)]

    async def test_where_nobody_asks_there_is_no_event(self, tmp_path: Path) -> None:
        async with world(tmp_path, replace(SHOP, webhooks=(hook(),))) as w:
            await self.change(w)
            assert await event_rows(w) == [("message.received", "posted", None)]

    @pytest.mark.parametrize(
        ("changes", "reason"), [({"automatic": "list"}, "automatic mail (list)"), ({"bounce": True}, "bounce")]
    )
    async def test_the_conditions_apply(self, w: World, changes: dict[str, Any], reason: str) -> None:
        await self.change(w, **changes)
        assert (await event_rows(w))[-1] == (CHANGED, "withheld", reason)
        assert await told(w) == []

    async def test_they_judge_what_was_found(self, tmp_path: Path) -> None:
        strict = asking(*ALL, conditions={"attribution": "exact"})
        async with world(tmp_path, replace(SHOP, webhooks=(strict,))) as w:
            await self.change(w)
            assert await event_rows(w) == [
                ("message.received", "withheld", "the attribution is likely, not exact"),
                (CHANGED, "posted", None),
            ]

    @pytest.mark.parametrize("asked", [{}, {"attribution": "exact"}])
    async def test_who_was_told_is_told_when_it_is_taken_back(self, tmp_path: Path, asked: dict[str, Any]) -> None:
        """The CRM has a visit that the letter does not come from: its conditions must not keep that from it."""
        async with world(tmp_path, replace(SHOP, webhooks=(asking(*ALL, conditions=asked),))) as w:
            first, leased = await w.shown()
            message_id = await letter(w, leased)
            await withdraw(w, first)
            assert await again(w, message_id) == 1
            assert [state for state, *_ in await found(w, message_id)] == ["none"]
            assert await event_rows(w) == [("message.received", "posted", None), (CHANGED, "posted", None)]
            (job,) = await told(w)
            assert (job.visit, job.extras is not None and job.extras.data["previous"]["visit_id"]) == (None, first)

    async def test_who_was_told_neither_before_nor_now_is_not_told_of_the_change(self, tmp_path: Path) -> None:
        strict = asking(*ALL, conditions={"attribution": "exact"})
        async with world(tmp_path, replace(SHOP, webhooks=(strict,))) as w:
            first, second, leased = await two_holders(w)
            message_id = await letter(w, leased)
            await withdraw(w, first)
            await withdraw(w, second)
            assert await again(w, message_id) == 1
            why = "the attribution is likely, not exact"
            assert await event_rows(w) == [("message.received", "withheld", why), (CHANGED, "withheld", "no visit")]

    async def test_twice_is_two_events_with_ids_of_their_own(self, w: World) -> None:
        first, _, leased = await two_holders(w)
        message_id = await letter(w, leased)
        backup = await w.rows(select(deliveries.c.candidates))
        await sql(w, "UPDATE bindings SET ended_at = ended_at + 5")
        assert await again(w, message_id) == 1
        await withdraw(w, first)
        assert await again(w, message_id) == 1
        assert await w.rows(select(deliveries.c.candidates)) != backup
        uids = await event_rows(w, "uid")
        assert (len(uids), len(set(uids))) == (3, 3)
        previous = [json.loads(data)["previous"]["state"] for (data,) in await event_rows(w, "data", kind=CHANGED)]
        assert previous == ["likely", "likely"]

    async def test_a_letter_not_read_yet_is_told_of_when_it_is(self, w: World) -> None:
        message = await w.accept(f"help+4242@{TRACK}")
        await w.bind("shop", "help@example.com", number="4242")
        await again(w, message.message_id)
        assert await event_rows(w, "state") == [("waiting",), ("waiting",)]
        jobs = await w.extract(message.message_id, "poster")
        assert [job.extras and job.extras.event for job in jobs] == [
            None,
            CHANGED,
        ]  # the receipt says no more than asked

    async def test_of_a_loop_nobody_is_told(self, w: World) -> None:
        looped = await w.accept(f"help+4242@{TRACK}", looped=True)
        await w.extract(looped.message_id)
        await w.bind("shop", "help@example.com", number="4242")
        assert await again(w, looped.message_id) == 1
        assert await event_rows(w) == [("message.received", "withheld", "loop")]
