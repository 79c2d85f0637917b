"""What 250 promises is written in one transaction: message, deliveries, paths, events, with the attribution frozen."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from relay.core.model import AttributionState, Method, OutcomeKind
from relay.store import sites
from relay.store.engine import Statement
from relay.store.messages import COLLECTED, NEVER, Evidence, Recipient, accept
from relay.store.schema import bodies, deliveries, events, messages, paths, visits
from tests.store_fixtures import (
    BODY,
    DAY,
    LEASE,
    NOW,
    OTHER,
    SHOP,
    TRACK,
    World,
    incoming,
    pool_target,
    site,
    static,
    target_of,
    world,
)

CARD = f"card@{TRACK}"
#: States of a delivery that nobody has given up. One that looped would only loop again.
ALIVE = ("queued", "deferred", "forwarded", "looped")


@pytest.fixture
async def w(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path, SHOP, OTHER) as found:
        yield found


async def delivery_rows(w: World, *names: str) -> list[tuple[Any, ...]]:
    return await w.rows(select(*(deliveries.c[name] for name in names)).order_by(deliveries.c.id))


async def attributions(w: World) -> list[tuple[str, str]]:
    found = await delivery_rows(w, "attribution", "attribution_method")
    return [(state, method) for state, method in found]


async def test_a_message_its_body_delivery_path_and_event_are_written_together(w: World) -> None:
    accepted = await w.accept(CARD)
    ((state, extraction, size),) = await w.rows(select(messages.c.state, messages.c.extraction, messages.c.size))
    assert (state, extraction, size) == ("queued", "waiting", len(BODY))
    assert await w.rows(select(bodies.c.data)) == [(BODY,)]
    assert await delivery_rows(w, "recipient", "forward_to", "state") == [(CARD, "sales@example.com", "queued")]
    assert await w.rows(select(paths.c.recipient, paths.c.kind)) == [(CARD, "first")]
    assert await w.rows(select(events.c.state, events.c.type)) == [("waiting", "message.received")]
    assert not accepted.repeated


async def test_the_job_in_memory_is_the_claimed_delivery(w: World) -> None:
    accepted = await w.accept(CARD, claim="me", cut=((0, 5),), tls="TLSv1.3")
    (job,) = accepted.jobs
    assert (job.claim, job.attempts, job.recipient, job.forward_to) == ("me", 1, CARD, "sales@example.com")
    assert (job.data, job.cut, job.tls, job.joined) == (BODY, ((0, 5),), "TLSv1.3", False)
    assert (job.visit, job.source) == (None, "card")
    rows = await delivery_rows(w, "id", "claim", "claimed_until", "attempts", "next_at", "expires_at")
    assert rows == [(job.delivery_id, "me", NOW + 600, 1, NOW, NOW + 5 * DAY)]


async def test_without_a_claim_the_delivery_waits_for_whoever_polls(w: World) -> None:
    accepted = await w.accept(CARD, claim=None)
    assert accepted.jobs == ()
    assert await delivery_rows(w, "claim", "claimed_until", "attempts", "next_at") == [(None, 0.0, 0, NOW)]


async def test_a_large_body_is_named_and_not_stored_twice(w: World) -> None:
    (job,) = (await w.accept(CARD, data=None, file="abc", size=900_000, stored_size=900_100)).jobs
    assert (job.data, job.file, job.stored_size) == (None, "abc", 900_100)
    assert await w.rows(select(bodies.c.message_id)) == []
    assert await w.rows(select(messages.c.body_file)) == [("abc",)]


async def test_substitutes_of_one_real_address_are_one_delivery(w: World) -> None:
    _, leased = await w.shown()
    accepted = await w.accept(CARD, leased)
    assert [job.recipient for job in accepted.jobs] == [CARD]
    assert await w.rows(select(paths.c.recipient).order_by(paths.c.id)) == [(CARD,), (leased,)]


async def test_real_addresses_are_a_delivery_each_and_one_event(w: World) -> None:
    accepted = await w.accept(f"help@{TRACK}", CARD)
    assert [job.forward_to for job in accepted.jobs] == ["help@example.com", "sales@example.com"]
    assert len(await w.rows(select(events.c.id))) == 1


async def test_the_best_attributed_substitute_carries_delivery_and_event(w: World) -> None:
    visit, leased = await w.shown()
    accepted = await w.accept(f"sales+77@{TRACK}", leased)
    (job,) = accepted.jobs
    assert (job.recipient, job.visit) == (leased, visit)
    assert await w.rows(select(deliveries.c.recipient).join(events, events.c.delivery_id == deliveries.c.id)) == [
        (leased,)
    ]


@pytest.mark.parametrize("addresses", [("help+5", "card", "sales+7"), ("card", "help+5", "sales+7")])
async def test_the_event_is_about_the_best_of_all_real_addresses(w: World, addresses: tuple[str, ...]) -> None:
    await w.accept(*(f"{local}@{TRACK}" for local in addresses))
    rows = await w.rows(select(deliveries.c.recipient).join(events, events.c.delivery_id == deliveries.c.id))
    assert rows == [(CARD,)]


async def test_on_a_tie_the_first_recipient_is_the_events_even_across_real_addresses(w: World) -> None:
    """The first mailbox's best substitute comes third here, so the second mailbox's, which comes second, is first."""
    visit, _ = await w.shown("help@example.com")
    await w.accept(f"sales+7@{TRACK}", f"help+{visit}@{TRACK}", CARD)
    assert await attributions(w) == [("exact", "static/1"), ("exact", "plus/1")]
    rows = await w.rows(select(deliveries.c.recipient).join(events, events.c.delivery_id == deliveries.c.id))
    assert rows == [(f"help+{visit}@{TRACK}",)]


async def test_each_site_has_its_own_event_and_delivery_and_the_second_is_carried(w: World) -> None:
    _, mine = await w.shown()
    _, theirs = await w.shown(name="other")
    accepted = await w.accept(mine, theirs)
    (job,) = accepted.jobs
    assert (job.recipient, job.joined) == (mine, True)
    rows = await delivery_rows(w, "recipient", "joined_id", "next_at", "claim")
    assert rows == [(mine, None, NOW, "forwarder"), (theirs, job.delivery_id, NEVER, None)]
    of_events = await w.rows(
        select(events.c.site_id, deliveries.c.recipient)
        .join(deliveries, deliveries.c.id == events.c.delivery_id)
        .order_by(events.c.id)
    )
    assert of_events == [(w.site().id, mine), (w.site("other").id, theirs)]
    uids = await w.rows(select(events.c.uid))
    assert len(set(uids)) == 2


async def test_mail_to_the_operator_has_no_site_and_no_event(w: World) -> None:
    accepted = await w.accept(f"postmaster@{TRACK}")
    assert [job.forward_to for job in accepted.jobs] == ["operator@example.net"]
    assert await delivery_rows(w, "site_id", "route_id", "attribution") == [(None, None, "none")]
    assert await w.rows(select(events.c.id)) == []


async def test_what_goes_nowhere_is_collected(w: World) -> None:
    """A return to an address of our own making: History shows it, nothing forwards it."""
    recipient = Recipient("srs0=x@mx.example.com", None, None, "", None, "")
    accepted = await w.store.write(
        lambda tx: accept(tx, incoming(), [recipient], claim="me", expires_at=NOW, evidence=Evidence(DAY))
    )
    assert accepted.jobs == ()
    assert await w.rows(select(messages.c.state)) == [(COLLECTED,)]
    assert await w.rows(select(paths.c.kind, paths.c.delivery_id)) == [("collected", None)]
    assert await delivery_rows(w, "id") == []


async def test_our_own_copy_is_kept_and_neither_forwarded_nor_posted(w: World) -> None:
    accepted = await w.accept(CARD, looped=True)
    assert accepted.jobs == ()
    assert await w.rows(select(messages.c.state)) == [("looped",)]
    assert await delivery_rows(w, "state", "claim") == [("looped", None)]
    assert await w.rows(select(events.c.state, events.c.reason)) == [("withheld", "loop")]
    assert await w.rows(select(paths.c.kind)) == [("loop",)]


class TestResent:
    async def test_a_mail_sent_again_is_a_further_path_and_nothing_else(self, w: World) -> None:
        first = await w.accept(CARD)
        again = await w.accept(CARD)
        assert (again.repeated, again.jobs, again.message_id) == (True, (), first.message_id)
        kinds = await w.rows(select(paths.c.kind, paths.c.delivery_id).order_by(paths.c.id))
        assert kinds == [("first", first.jobs[0].delivery_id), ("repeat", first.jobs[0].delivery_id)]
        for table in (messages, deliveries, events, bodies):
            assert len(await w.rows(select(table))) == 1

    async def test_a_recipient_that_had_no_250_is_delivered(self, w: World) -> None:
        first = await w.accept(CARD)
        again = await w.accept(CARD, f"help@{TRACK}")
        assert not again.repeated
        assert [job.recipient for job in again.jobs] == [f"help@{TRACK}"]
        assert await w.rows(select(paths.c.message_id, paths.c.kind).order_by(paths.c.id)) == [
            (first.message_id, "first"),
            (first.message_id, "repeat"),
            (again.message_id, "first"),
        ]
        third = await w.accept(CARD, f"help@{TRACK}")
        assert third.repeated
        assert len(await w.rows(select(messages.c.id))) == 2

    async def test_another_sender_or_body_or_day_is_another_mail(self, w: World) -> None:
        await w.accept(CARD)
        assert not (await w.accept(CARD, mail_from="bob@example.org")).repeated
        assert not (await w.accept(CARD, body=BODY + b"x")).repeated
        w.pass_time(DAY - 1)
        assert (await w.accept(CARD)).repeated
        w.pass_time(2)
        assert not (await w.accept(CARD)).repeated

    @pytest.mark.parametrize(
        ("state", "repeated"), [*((state, True) for state in ALIVE), ("failed", False), ("dropped", False)]
    )
    async def test_only_a_mail_that_was_not_given_up_is_taken_for_resent(
        self, w: World, state: str, repeated: bool
    ) -> None:
        first = await w.accept(CARD)
        await w.store.write(lambda tx: tx.run(Statement(update(deliveries).values(state=state))))
        again = await w.accept(CARD)
        assert again.repeated == repeated
        assert (again.message_id == first.message_id) == repeated
        assert [job.recipient for job in again.jobs] == ([] if repeated else [CARD])
        assert await delivery_rows(w, "state") == ([(state,)] if repeated else [(state,), ("queued",)])

    async def test_a_mail_that_was_queued_anew_is_taken_for_resent_in_its_turn(self, w: World) -> None:
        both = (CARD, f"help@{TRACK}")
        first = await w.accept(*both)
        await w.finish(first.jobs[0], OutcomeKind.DELIVERED)
        await w.finish(first.jobs[1], OutcomeKind.PERMANENT)
        second = await w.accept(*both)
        assert [job.recipient for job in second.jobs] == [both[1]]
        for addresses, expected in (((both[1],), second), ((CARD,), first)):
            again = await w.accept(*addresses)
            assert (again.repeated, again.message_id) == (True, expected.message_id)

    async def test_a_collected_return_is_not_collected_again(self, w: World) -> None:
        recipient = Recipient("srs0=x@mx.example.com", None, None, "", None, "")
        answers = [
            await w.store.write(
                lambda tx: accept(tx, incoming(), [recipient], claim=None, expires_at=NOW, evidence=Evidence(DAY))
            )
            for _ in range(2)
        ]
        assert [accepted.repeated for accepted in answers] == [False, True]

    async def test_equal_mails_that_nothing_identifies_are_one_for_ten_minutes_only(self, w: World) -> None:
        first = await w.accept(CARD, identified=False)
        w.pass_time(599)
        assert (await w.accept(CARD, identified=False)).repeated
        w.pass_time(2)
        second = await w.accept(CARD, identified=False)
        assert not second.repeated
        assert second.message_id != first.message_id
        assert [job.recipient for job in second.jobs] == [CARD]

    async def test_the_same_recipient_twice_in_one_transaction_is_one_delivery(self, w: World) -> None:
        accepted = await w.accept(CARD, CARD)
        assert len(accepted.jobs) == 1
        assert (await w.accept(CARD, CARD)).repeated


class TestAttribution:
    async def test_a_leased_address_is_its_visits(self, w: World) -> None:
        visit, leased = await w.shown(page="https://www.shop.example/?roistat=ads_1")
        w.pass_time(60)
        (job,) = (await w.accept(leased)).jobs
        assert (job.visit, job.source) == (visit, "ads_1")
        assert await attributions(w) == [("exact", "pool/2")]

    async def test_two_visits_within_a_day_are_candidates_that_sum_to_one(self, w: World) -> None:
        _, leased = await w.shown()
        await w.shown()  # the other address of the pool
        w.pass_time(LEASE + 600)
        _, again = await w.shown()
        assert again == leased
        w.pass_time(60)
        await w.accept(leased)
        ((state, visit_id, candidates),) = await delivery_rows(w, "attribution", "visit_id", "candidates")
        assert (state, visit_id) == ("likely", None)
        shares = [share for _, share in json.loads(candidates)]
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) == pytest.approx(1, abs=1e-3)

    async def test_a_candidate_is_never_certain_nor_impossible(self, w: World) -> None:
        _, leased = await w.shown()
        await w.shown()  # the other address of the pool
        w.pass_time(16 * 3600)
        _, again = await w.shown()
        assert again == leased
        w.pass_time(60)
        await w.accept(leased)
        ((state, candidates),) = await delivery_rows(w, "attribution", "candidates")
        shares = [share for _, share in json.loads(candidates)]
        assert (state, len(shares)) == ("likely", 2)
        assert all(0 < share < 1 for share in shares)
        assert sum(shares) == pytest.approx(1)

    async def test_a_holder_of_days_ago_counts_however_many_had_it_since(self, tmp_path: Path) -> None:
        """Leases of five minutes: 2,880 holders in ten days."""
        target = pool_target("sales@example.com", f"only@{TRACK}", domain=None, lease=300.0)
        async with world(tmp_path, site("shop", target)) as w:
            writer, leased = await w.shown()
            written = w.now + 60
            for _ in range(1200):
                w.pass_time(300)
                await w.shown()
            await w.accept(leased, written_at=written)
            ((state, candidates),) = await delivery_rows(w, "attribution", "candidates")
            (first,) = await w.rows(select(visits.c.id).where(visits.c.number == writer))
            assert state == "likely"
            assert json.loads(candidates)[0][0] == first[0]

    async def test_a_mail_of_many_days_later_is_not_the_last_holders_alone(self, w: World) -> None:
        _, leased = await w.shown()
        await w.shown()  # the other address of the pool
        w.pass_time(LEASE + 60)
        _, again = await w.shown()
        assert again == leased
        w.pass_time(6 * DAY)
        await w.accept(leased)
        ((state, candidates),) = await delivery_rows(w, "attribution", "candidates")
        assert (state, len(json.loads(candidates))) == ("likely", 2)

    @pytest.mark.parametrize(("kept", "state"), [(400 * DAY, "exact"), (10 * DAY, "likely")])
    async def test_nor_is_it_where_an_earlier_holder_may_have_been_deleted(
        self, w: World, kept: float, state: str
    ) -> None:
        _, leased = await w.shown()
        w.pass_time(6 * DAY)
        recipient, late, evidence = await w.recipient(leased), incoming(w.now), Evidence(DAY, kept=kept)
        await w.store.write(lambda tx: accept(tx, late, [recipient], claim=None, expires_at=w.now, evidence=evidence))
        assert [found for found, _ in await attributions(w)] == [state]

    async def test_it_is_resolved_for_the_time_the_mail_was_written(self, w: World) -> None:
        visit, leased = await w.shown()
        written = w.now + 60
        w.pass_time(2 * DAY)
        (job,) = (await w.accept(leased, written_at=written)).jobs
        assert job.visit == visit
        assert await attributions(w) == [("exact", "pool/2")]

    async def test_a_plus_tag_that_we_issued_is_exact_and_any_other_number_claimed(self, w: World) -> None:
        visit, address = await w.shown("help@example.com")
        assert address == f"help+{visit}@{TRACK}"
        await w.accept(address)
        (job,) = (await w.accept(f"help+424242@{TRACK}")).jobs
        assert job.visit is None
        for stranger, to in (("bob", f"help+offer@{TRACK}"), ("eve", f"help@{TRACK}")):
            await w.accept(to, sender=f"{stranger}@example.org", body=to.encode())
        rows = await delivery_rows(w, "attribution", "claimed_number")
        assert rows == [("exact", None), ("claimed", "424242"), ("none", None), ("none", None)]

    async def test_a_plus_number_of_another_counter_is_exact_once_the_site_gave_it(self, w: World) -> None:
        await w.bind("shop", "help@example.com", number="31337")
        (job,) = (await w.accept(f"help+31337@{TRACK}")).jobs
        assert job.visit == "31337"
        assert await attributions(w) == [("exact", "plus/1")]

    async def test_a_plus_number_of_another_site_is_only_claimed(self, w: World) -> None:
        visit, _ = await w.shown(name="other")
        await w.accept(f"help+{visit}@{TRACK}")
        assert await attributions(w) == [("claimed", "plus/1")]

    @pytest.mark.parametrize("target", ["sales@example.com", "help@example.com", "jobs@example.com"])
    async def test_addresses_of_different_visitors_make_nobody_certain(self, w: World, target: str) -> None:
        (_, mine), (_, theirs) = await w.shown(target), await w.shown(target)
        (job,) = (await w.accept(mine, theirs)).jobs
        assert (job.visit, job.source) == (None, None)
        assert await attributions(w) == [("likely", "several/1")]
        ((visit, candidates),) = await delivery_rows(w, "visit_id", "candidates")
        assert (visit, json.loads(candidates)) == (None, [[1, 0.5], [2, 0.5]])

    async def test_so_do_those_of_different_targets_and_no_sender_is_known_then(self, w: World) -> None:
        await w.accept((await w.shown("jobs@example.com"))[1])
        (_, mine), (_, theirs) = await w.shown("help@example.com"), await w.shown()
        await w.accept(mine, theirs, f"jobs+x@{TRACK}", CARD, body=b"again")
        assert (await attributions(w))[1:] == [
            ("likely", "several/1"),
            ("exact", "static/1"),  # the card, which is the same mailbox's as theirs
            ("likely", "several/1"),
        ]

    async def test_of_a_whole_pool_nobody_is_certain_and_few_are_named(self, tmp_path: Path) -> None:
        pool = pool_target("sales@example.com", *(f"a{i}@{TRACK}" for i in range(60)), domain=None)
        async with world(tmp_path, site("shop", pool)) as w:
            shown = [(await w.shown())[1] for _ in range(60)]
            await w.accept(*shown)
            ((state, candidates),) = await delivery_rows(w, "attribution", "candidates")
            assert (state, len(json.loads(candidates))) == ("likely", 20)
            assert sum(share for _, share in json.loads(candidates)) == pytest.approx(1)

    async def test_one_that_is_certain_makes_no_other_so(self, w: World) -> None:
        """Who writes to an address that others had, too, and to one of a third has harvested one of them."""
        for _ in range(2):
            _, leased = await w.shown()
            w.pass_time(2 * LEASE)
        _, leased = await w.shown()
        _, plus = await w.shown("help@example.com")
        await w.accept(plus, leased)
        assert await attributions(w) == [("likely", "several/1")] * 2

    async def test_visits_of_one_browser_contradict_each_other_in_nothing(self, w: World) -> None:
        first, earlier = await w.shown("jobs@example.com")
        visit, later = await w.shown("help@example.com", first_visit=first)
        assert visit != first
        assert [job.visit for job in (await w.accept(later, earlier)).jobs] == [visit, first]

    async def test_visits_of_two_sites_contradict_each_other_in_nothing(self, w: World) -> None:
        (_, mine), (_, theirs) = await w.shown(), await w.shown(name="other")
        await w.accept(mine, theirs)
        assert await attributions(w) == [("exact", "pool/2")] * 2

    async def test_a_number_that_nobody_issued_contradicts_nothing(self, w: World) -> None:
        _, plus = await w.shown("help@example.com")
        await w.accept(plus, f"help+7@{TRACK}")
        assert await attributions(w) == [("exact", "plus/1")]

    async def test_a_unique_address_is_its_visits_for_ever(self, w: World) -> None:
        visit, address = await w.shown("jobs@example.com")
        w.pass_time(300 * DAY)
        (job,) = (await w.accept(address)).jobs
        assert job.visit == visit
        assert await attributions(w) == [("exact", "unique/1")]

    async def test_a_static_substitute_is_exact_by_its_label_without_a_visit(self, w: World) -> None:
        await w.accept(CARD)
        columns = ("attribution", "attribution_method", "visit_id", "label")
        assert await delivery_rows(w, *columns) == [("exact", "static/1", None, "card")]

    async def test_a_retired_route_forwards_without_attribution(self, w: World) -> None:
        _, leased = await w.shown()
        await w.declare(site("shop", target_of(Method.PLUS, "help@example.com")), OTHER)
        (job,) = (await w.accept(leased)).jobs
        assert (job.forward_to, job.visit) == ("sales@example.com", None)
        assert await attributions(w) == [("none", "retired/1")]

    async def test_with_tracking_off_mail_is_forwarded_without_attribution(self, w: World) -> None:
        _, leased = await w.shown()
        shop = w.site().id
        await w.store.redefine(lambda tx: sites.switch(tx, shop, tracking=False, send_to_crm=True))
        (job,) = (await w.accept(leased)).jobs
        assert job.forward_to == "sales@example.com"
        assert (await attributions(w))[0][0] == AttributionState.NONE
        await w.store.redefine(lambda tx: sites.switch(tx, shop, tracking=True, send_to_crm=True))
        await w.accept(leased, body=b"again")
        assert (await attributions(w))[1][0] == AttributionState.EXACT

    async def test_it_is_frozen_when_the_message_is_accepted(self, w: World) -> None:
        visit, leased = await w.shown()
        await w.accept(leased)
        await w.shown()
        w.pass_time(LEASE + 1)
        other, again = await w.shown()
        assert again == leased
        assert other != visit
        assert await attributions(w) == [("exact", "pool/2")]


async def test_mail_goes_to_forward_to_with_the_targets_own_next_hop(tmp_path: Path) -> None:
    moved = site(
        "shop", pool_target(forward_to="inbox@mail.example.com", next_hop="smtp://10.0.0.1"), statics=(static(CARD),)
    )
    async with world(tmp_path, moved) as w:
        (job,) = (await w.accept(CARD)).jobs
        assert (job.forward_to, job.next_hop) == ("inbox@mail.example.com", "smtp://10.0.0.1")


async def test_a_failing_accept_leaves_nothing_behind(w: World) -> None:
    """The site is unknown, which comes out after message, body and path of it were written."""
    recipient = await w.recipient(CARD)
    assert recipient.route is not None
    broken = replace(recipient, route=replace(recipient.route, site_id=999))
    with pytest.raises(sqlite3.IntegrityError, match="FOREIGN KEY"):
        await w.store.write(
            lambda tx: accept(tx, incoming(), [broken], claim="me", expires_at=NOW, evidence=Evidence(DAY))
        )
    for table in (messages, bodies, deliveries, paths, events):
        assert await w.rows(select(table)) == []
