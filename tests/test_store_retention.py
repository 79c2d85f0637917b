"""What goes by age and by hand, and that nothing of it stays behind: index, body files, other people's shares."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Table, select, update

from relay.core.model import OutcomeKind
from relay.store import history, queue, queue_by_hand, reports, retention, search
from relay.store.engine import Statement
from relay.store.post import PostResult
from relay.store.posts import finish_post
from relay.store.retention import BITE, StillOpen, Swept
from relay.store.schema import (
    attempts,
    bindings,
    bodies,
    deliveries,
    events,
    messages,
    paths,
    post_attempts,
    posts,
    routes,
    texts,
    visits,
)
from relay.store.visits import Visitor
from tests.store_fixtures import DAY, LEASE, NOW, OTHER, SHOP, TRACK, World, part, pool_target, site, target_of, world

CARD = f"card@{TRACK}"
OF_A_MESSAGE = (messages, bodies, deliveries, paths, attempts, events, posts, post_attempts, texts)


@pytest.fixture
async def w(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path, SHOP, OTHER) as found:
        yield found


async def whole_life(w: World, *addresses: str, **changes: Any) -> int:
    """A message that was delivered, extracted, indexed and posted: a row in every table there is."""
    accepted = await w.accept(*(addresses or (CARD,)), **changes)
    for job in accepted.jobs:
        await w.finish(job)
    for post in await w.extract(accepted.message_id, "poster", attachments=[part()]):
        result = PostResult(post, "delivered", w.now, 200, "", w.now, 0.1)
        await w.store.write(lambda tx: finish_post(tx, result, w.now))  # noqa: B023
    await w.store.write(search.index)
    return accepted.message_id


async def found_by_search(w: World, word: str) -> list[int]:
    rows = await w.store.write(
        lambda tx: tx.sql("SELECT rowid FROM message_search WHERE message_search MATCH ?", [word])
    )
    return [row[0] for row in rows]


async def count(w: World, table: Table) -> int:
    return len(await w.rows(select(table)))


async def index_is_sound(w: World) -> None:
    """FTS5's own check of the index against the rows it is of; raises when the two differ."""
    await w.store.write(
        lambda tx: tx.sql("INSERT INTO message_search(message_search, rank) VALUES ('integrity-check', 1)")
    )


class TestByAge:
    async def test_bytes_go_first_and_the_message_stays(self, w: World) -> None:
        await whole_life(w)
        await whole_life(w, data=None, file="abc", digest=b"x")
        assert await w.sweep(raw=NOW) == Swept((), False, False)  # not older than that
        assert await w.sweep(raw=NOW + 1) == Swept(("abc",), False, False)
        assert await w.rows(select(messages.c.body_file, messages.c.raw_removed_at)) == [(None, NOW), (None, NOW)]
        assert await count(w, bodies) == 0
        assert await count(w, messages) == 2
        assert await w.sweep(raw=NOW + 1) == Swept((), False, False)

    async def test_the_message_goes_with_everything_about_it(self, w: World) -> None:
        await whole_life(w)
        for table in OF_A_MESSAGE:
            assert await count(w, table) == 1, table.name
        assert await w.sweep(messages=NOW + 1) == Swept((), False, False)
        for table in OF_A_MESSAGE:
            assert await count(w, table) == 0, table.name

    async def test_the_search_forgets_it(self, w: World) -> None:
        old = await whole_life(w)
        w.pass_time(DAY)
        new = await whole_life(w, body=b"new")
        assert await found_by_search(w, "hello") == [old, new]
        await w.sweep(messages=NOW + 1)
        assert await found_by_search(w, "hello") == [new]
        await index_is_sound(w)

    async def test_a_message_not_indexed_yet_goes_too(self, w: World) -> None:
        accepted = await w.accept(CARD)
        await w.finish(accepted.jobs[0])
        await w.extract(accepted.message_id)
        await w.sweep(messages=NOW + 1)
        assert await w.store.write(search.index) == 0
        await index_is_sound(w)

    async def test_its_body_file_is_named_once(self, w: World) -> None:
        await whole_life(w, data=None, file="abc")
        assert await w.sweep(raw=NOW + 1, messages=NOW + 1) == Swept(("abc",), False, False)

    @pytest.mark.parametrize("kind", [None, OutcomeKind.TEMPORARY, OutcomeKind.PERMANENT])
    async def test_what_waits_or_is_held_is_never_deleted_by_age(self, w: World, kind: OutcomeKind | None) -> None:
        accepted = await w.accept(CARD, f"help@{TRACK}")
        await w.extract(accepted.message_id)
        await w.finish(accepted.jobs[0])
        if kind is not None:
            await w.finish(accepted.jobs[1], kind)
        await w.sweep(raw=NOW + 1, messages=NOW + 1)
        assert (await count(w, messages), await count(w, bodies)) == (1, 1)

    async def test_what_is_not_read_yet_is_not_deleted(self, w: World) -> None:
        accepted = await w.accept(CARD)
        await w.finish(accepted.jobs[0])
        await w.sweep(raw=NOW + 1, messages=NOW + 1)
        assert (await count(w, messages), await count(w, bodies)) == (1, 1)

    async def test_what_was_dropped_or_looped_goes(self, w: World) -> None:
        (job,) = (accepted := await w.accept(CARD)).jobs
        await w.finish(job, OutcomeKind.TEMPORARY)
        await w.store.write(lambda tx: queue_by_hand.drop(tx, [job.delivery_id], w.now))
        looped = await w.accept(CARD, body=b"loop", looped=True)
        for message_id in (accepted.message_id, looped.message_id):
            await w.extract(message_id)
        await w.sweep(messages=NOW + 1)
        assert await count(w, messages) == 0

    async def test_a_bite_is_bounded_and_says_that_there_is_more(self, w: World) -> None:
        many = BITE + 1
        for i in range(many):
            await w.bind("shop", "help@example.com", number=str(i + 1))
        assert (await w.sweep(visits=NOW + 1)).more
        assert await count(w, visits) == 1
        assert not (await w.sweep(visits=NOW + 1)).more
        assert await count(w, visits) == 0


class TestVisits:
    async def test_a_visit_goes_with_its_bindings_when_it_was_last_seen_before(self, w: World) -> None:
        visit, _ = await w.shown()
        w.pass_time(DAY)
        await w.shown(number=visit)
        assert not (await w.sweep(visits=NOW + 1)).routes
        assert await count(w, visits) == 1
        await w.sweep(visits=w.now + 1)
        assert (await count(w, visits), await count(w, bindings)) == (0, 0)

    async def test_its_unique_address_goes_on_forwarding_without_attribution(self, w: World) -> None:
        _, address = await w.shown("jobs@example.com")
        (job,) = (await w.accept(address)).jobs
        assert job.visit is not None
        swept = await w.sweep(visits=NOW + 1)
        assert swept.routes  # whoever caches routes has to forget them
        w.store.routes.forget_all()
        (job,) = (await w.accept(address, body=b"late")).jobs
        assert (job.forward_to, job.visit) == ("jobs@example.com", None)

    async def test_messages_outlive_their_visit(self, w: World) -> None:
        _, leased = await w.shown()
        await w.accept(leased)
        await w.sweep(visits=NOW + 1)
        assert await w.rows(select(deliveries.c.attribution, deliveries.c.visit_id)) == [("exact", None)]

    async def test_its_pool_address_can_be_given_to_the_next(self, w: World) -> None:
        await w.shown()
        await w.sweep(visits=NOW + 1)
        w.pass_time(10 * DAY)
        for _ in range(2):
            _, leased = await w.shown()
        (job,) = (await w.accept(leased)).jobs
        assert job.visit is not None


#: Of a visit about which everything is known that can be.
FULL: dict[str, Any] = {
    "page": "https://www.shop.example/?rs=ads_1&utm_source=a&utm_medium=b&utm_campaign=c&utm_term=d&utm_content=e",
    "referrer": "https://news.example/",
    "params": {"1": "one"},
    "google_client_id": "1.2",
    "ym_uid": "17",
    "visitor": Visitor("192.0.2.7", "New York", "USA", "Mozilla/5.0", "mobile", "Firefox", "Android"),
}


async def all_of(w: World, visit_id: int) -> dict[str, Any]:
    """Every column of a visit."""
    (row,) = await w.rows(select(visits).where(visits.c.id == visit_id))
    return dict(zip(visits.c.keys(), row, strict=True))


class TestVisitorIp:
    async def test_ip_and_user_agent_go_and_nothing_else(self, w: World) -> None:
        await w.bind(asked=(), **FULL)
        before = await all_of(w, 1)
        assert not (await w.sweep(visitor_ip=NOW + 1)).more
        assert await all_of(w, 1) == before | {"ip": None, "user_agent": None}

    async def test_a_visit_that_was_seen_since_keeps_its_own(self, w: World) -> None:
        visit = (await w.bind(asked=())).visit
        w.pass_time(DAY)
        await w.bind(asked=(), number=visit)
        await w.sweep(visitor_ip=NOW + 1)
        assert (await all_of(w, 1))["ip"] == "192.0.2.7"

    async def test_where_no_ip_is_kept_the_user_agent_goes_all_the_same(self, w: World) -> None:
        """[privacy] visitor_ip = "none"."""
        await w.bind(asked=(), visitor=Visitor(user_agent="Mozilla/5.0"))
        await w.sweep(visitor_ip=NOW + 1)
        assert (await all_of(w, 1))["user_agent"] is None

    async def test_a_bite_is_bounded_and_says_that_there_is_more(self, w: World) -> None:
        for i in range(BITE + 1):
            await w.bind(asked=(), number=str(i + 1))
        assert (await w.sweep(visitor_ip=NOW + 1)).more
        assert not (await w.sweep(visitor_ip=NOW + 1)).more
        assert await w.rows(select(visits.c.id).where(visits.c.ip.is_not(None))) == []


class TestErasingVisits:
    #: What may be left of a visit whose pool address somebody else may have written to as well.
    LEFT = frozenset({"id", "site_id", "number", "own", "started_at", "last_seen_at", "erased_at"})

    async def erase(self, w: World, number: str, *, browser: bool = False, name: str = "shop") -> int:
        site_id = w.site(name).id
        erased = await w.store.write(lambda tx: retention.erase_visit(tx, site_id, number, w.now, browser=browser))
        w.store.routes.forget_all()
        return erased

    async def numbers(self, w: World) -> set[str]:
        return {number for (number,) in await w.rows(select(visits.c.number))}

    async def delivery(self, w: World, *names: str) -> tuple[Any, ...]:
        """Of the newest delivery."""
        columns = (deliveries.c[name] for name in names)
        return (await w.rows(select(*columns).order_by(deliveries.c.id.desc()).limit(1)))[0]

    async def test_without_an_address_nothing_is_left(self, w: World) -> None:
        visit = (await w.bind(asked=(), **FULL)).visit
        assert await self.erase(w, visit) == 1
        assert await count(w, visits) == 0
        assert await self.erase(w, visit) == 0

    async def test_a_plus_address_holds_nothing(self, w: World) -> None:
        visit, plus = await w.shown("help@example.com")
        await w.accept(plus)
        assert await self.erase(w, visit) == 1
        assert await count(w, visits) == 0
        assert await self.delivery(w, "visit_id", "attribution") == (None, "exact")

    async def test_of_a_visit_that_held_an_address_only_the_holding_is_left(self, w: World) -> None:
        """Every column is either known to say nothing of anybody, or empty: a new one has to be judged here."""
        before = (await w.bind(asked=(), page="https://www.shop.example/?rs=mail_1")).visit
        visit = (await w.bind("shop", "sales@example.com", number=before, **FULL)).visit
        full = await all_of(w, 2)
        assert [name for name, value in full.items() if value is None] == ["touch_id", "erased_at"]  # it was not direct
        await w.store.write(lambda tx: tx.sql("UPDATE visits SET touch_id = first_id WHERE id = 2"))
        w.pass_time(60)
        assert await self.erase(w, visit) == 1
        left = await all_of(w, 2)
        assert {name for name, value in left.items() if value is not None} == self.LEFT
        assert {left[name] for name in ("number", "own", "erased_at")} == {"-2", 0, w.now}
        assert visit not in str(left)
        assert (await count(w, bindings), await self.erase(w, visit)) == (1, 0)

    async def test_the_other_holders_of_its_address_are_as_uncertain_as_before(self, w: World) -> None:
        """Without the erased holding their mail would be stated as theirs for certain."""
        held = [await w.shown() for _ in range(2)]
        w.pass_time(2 * LEASE)
        erased, leased = await w.shown()
        (other,) = (visit for visit, shown in held if shown == leased)
        await self.erase(w, erased)
        await w.accept(leased, sender="", mail_from="")
        state, visit_id, candidates = await self.delivery(w, "attribution", "visit_id", "candidates")
        assert (state, visit_id) == ("likely", None)
        assert len(json.loads(candidates)) == 2
        (shown,) = await history.page(w.store.reader, history.Filter(), 10)
        ((number, share),) = shown.deliveries[0].candidates
        assert number == other
        assert share < 0.5

    async def test_candidates_that_were_erased_since_are_not_shown(self, w: World) -> None:
        held = [await w.shown() for _ in range(2)]
        w.pass_time(2 * LEASE)
        second, leased = await w.shown()
        (first,) = (visit for visit, shown in held if shown == leased)
        await w.accept(leased)
        for erased, left in ((second, [first]), (first, [])):
            await self.erase(w, erased)
            (shown,) = await history.page(w.store.reader, history.Filter(), 10)
            assert [number for number, _ in shown.deliveries[0].candidates] == left

    async def test_mail_to_its_own_address_is_nobodys(self, w: World) -> None:
        visit, leased = await w.shown()
        await self.erase(w, visit)
        await w.accept(leased)
        assert await self.delivery(w, "attribution", "attribution_method", "visit_id") == ("none", "erased/1", None)

    async def test_mail_to_its_own_address_may_be_inferred_from_another_visit(self, w: World) -> None:
        visit, leased = await w.shown()
        other, plus = await w.shown("help@example.com", page="https://www.shop.example/?rs=b")
        await w.accept(plus, body=b"known sender")
        await self.erase(w, visit)
        (job,) = (await w.accept(leased)).jobs
        assert job.visit == other
        assert await self.delivery(w, "attribution", "attribution_method") == ("inferred", "sender/1")

    async def test_neither_its_threads_nor_its_senders_are_known_any_more(self, w: World) -> None:
        for target in ("sales@example.com", "help@example.com"):
            visit, shown = await w.shown(target)
            await w.accept(shown, body=target.encode(), message_id="q@x")
            await self.erase(w, visit)
            await w.accept(f"help@{TRACK}", body=b"answer to " + target.encode(), in_reply_to="q@x")
            assert await self.delivery(w, "attribution", "visit_id") == ("none", None)

    async def test_its_messages_stay_without_it(self, w: World) -> None:
        visit, leased = await w.shown(**FULL)
        message_id = await whole_life(w, leased)
        await self.erase(w, visit)
        (shown,) = await history.page(w.store.reader, history.Filter(), 10)
        assert (shown.id, shown.deliveries[0].visit, shown.deliveries[0].attribution) == (message_id, None, "exact")
        assert await history.page(w.store.reader, history.Filter(visit=visit), 10) == []
        assert await history.visit(w.store.reader, visit, None) == []

    async def test_the_place_that_it_leaves_is_not_a_visit_to_anybody(self, w: World) -> None:
        visit, _ = await w.shown()
        await self.erase(w, visit)
        (left,) = await self.numbers(w)
        assert await history.visit(w.store.reader, left, None) == []
        assert await self.erase(w, left) == 0

    async def test_what_waits_for_the_crm_states_it_no_more(self, w: World) -> None:
        visit, leased = await w.shown(**FULL)
        accepted = await w.accept(leased)
        await self.erase(w, visit)
        (job,) = await w.extract(accepted.message_id, "poster")
        assert job.visit is None

    async def test_its_unique_address_is_retired_and_goes_on_forwarding(self, w: World) -> None:
        visit, unique = await w.shown("jobs@example.com")
        await self.erase(w, visit)
        (job,) = (await w.accept(unique)).jobs
        assert (job.forward_to, job.visit) == ("jobs@example.com", None)
        assert await self.delivery(w, "attribution", "attribution_method") == ("none", "retired/1")

    async def test_its_pool_address_goes_to_the_next(self, w: World) -> None:
        visit, leased = await w.shown()
        await self.erase(w, visit)
        w.pass_time(2 * LEASE)
        assert leased in {(await w.shown())[1] for _ in range(2)}

    async def test_a_browser_that_still_says_its_number_begins_anew(self, w: World) -> None:
        visit, _ = await w.shown(**FULL)
        await self.erase(w, visit)
        again = await w.bind(number=visit)
        assert (again.fresh, again.visit) == (True, visit)
        assert (await all_of(w, 2))["marker"] is None

    async def browsers(self, w: World) -> tuple[list[str], str]:
        """The numbers of three visits of one browser, and that of another's."""
        mine: list[str] = []
        for page in ("?rs=a", "?rs=b", "?rs=c"):
            last = mine[-1] if mine else None
            address = f"https://www.shop.example/{page}"
            mine.append((await w.bind("shop", "help@example.com", number=last, page=address)).visit)
        return mine, (await w.bind(asked=())).visit

    @pytest.mark.parametrize("which", [0, 1, 2])
    async def test_with_its_browser_all_visits_of_that_go_and_no_others(self, w: World, which: int) -> None:
        mine, other = await self.browsers(w)
        assert await self.erase(w, mine[which], browser=True) == 3
        assert await self.numbers(w) == {other}

    async def test_without_its_browser_it_goes_alone(self, w: World) -> None:
        mine, other = await self.browsers(w)
        assert await self.erase(w, mine[0]) == 1
        assert await self.numbers(w) == {*mine[1:], other}

    async def test_the_browsers_other_visits_go_after_its_first_is_gone(self, w: World) -> None:
        mine, other = await self.browsers(w)
        await self.erase(w, mine[0])
        assert await self.erase(w, mine[2], browser=True) == 2
        assert await self.numbers(w) == {other}

    async def test_what_was_erased_before_is_not_erased_again(self, w: World) -> None:
        first, _ = await w.shown()
        second, _ = await w.shown(number=first, page="https://www.shop.example/?rs=b")
        await self.erase(w, first)
        erased_at = (await all_of(w, 1))["erased_at"]
        w.pass_time(60)
        assert await self.erase(w, second, browser=True) == 1
        assert (await all_of(w, 1))["erased_at"] == erased_at

    async def test_another_sites_visit_of_the_same_number_stays(self, w: World) -> None:
        for name in ("shop", "other"):
            await w.bind(name, asked=(), number="777")
        assert await self.erase(w, "777", name="other") == 1
        assert await w.rows(select(visits.c.site_id)) == [(w.site().id,)]

    async def test_it_counts_in_no_report_and_goes_by_age(self, w: World) -> None:
        visit, _ = await w.shown(**FULL)
        await self.erase(w, visit)
        assert await reports.sources(w.store.reports, reports.Wanted({w.site().id}, 0, NOW + DAY)) == []
        await w.sweep(visits=NOW + 1)
        assert (await count(w, visits), await count(w, bindings)) == (0, 0)


class TestRoutes:
    async def test_a_retired_route_ends_after_its_time(self, w: World) -> None:
        _, leased = await w.shown()
        await w.accept(leased)
        await w.declare(site("shop", target_of(SHOP.targets[1].method, "help@example.com")))
        w.pass_time(400 * DAY)
        assert not (await w.sweep(routes=NOW)).routes
        assert (await w.sweep(routes=NOW + 1)).routes
        assert await w.rows(select(routes.c.id).where(routes.c.retired_at.is_not(None))) == []
        w.store.routes.forget_all()
        assert (await w.recipient(leased)).route is None
        assert await count(w, deliveries) == 1

    async def test_live_routes_never_end(self, w: World) -> None:
        before = await count(w, routes)
        await w.sweep(routes=NOW + 1e9)
        assert await count(w, routes) == before


class TestErasure:
    async def erase(self, w: World, message_id: int, *names: str) -> tuple[str, ...] | None:
        sites = [w.site(name).id for name in names] or None
        return await w.store.write(lambda tx: retention.erase_message(tx, message_id, sites))

    async def test_nothing_of_an_erased_message_stays(self, w: World) -> None:
        message_id = await whole_life(w, data=None, file="abc")
        assert await self.erase(w, message_id) == ("abc",)
        for table in OF_A_MESSAGE:
            assert await count(w, table) == 0, table.name
        assert await found_by_search(w, "hello") == []
        await index_is_sound(w)
        assert await self.erase(w, message_id) is None

    async def test_a_small_body_names_no_file(self, w: World) -> None:
        assert await self.erase(w, await whole_life(w)) == ()

    async def test_what_is_still_being_forwarded_is_refused(self, w: World) -> None:
        accepted = await w.accept(CARD)
        with pytest.raises(StillOpen):
            await self.erase(w, accepted.message_id)
        assert await count(w, messages) == 1

    async def test_what_is_held_can_be_erased_by_hand(self, w: World) -> None:
        accepted = await w.accept(CARD)
        await w.finish(accepted.jobs[0], OutcomeKind.PERMANENT)
        assert await self.erase(w, accepted.message_id) == ()

    async def test_a_site_erases_its_share_and_no_other(self, w: World) -> None:
        _, mine = await w.shown()
        _, theirs = await w.shown(name="other")
        message_id = await whole_life(w, mine, theirs, data=None, file="abc")
        assert await self.erase(w, message_id, "shop") == ()
        for table in (deliveries, paths, events, posts, post_attempts):
            assert await count(w, table) == 1, table.name
        assert await w.rows(select(paths.c.recipient)) == [(theirs,)]
        assert await w.rows(select(events.c.site_id)) == [(w.site("other").id,)]
        assert await self.erase(w, message_id, "shop") is None
        assert await self.erase(w, message_id, "other") == ("abc",)
        for table in OF_A_MESSAGE:
            assert await count(w, table) == 0, table.name

    async def test_what_the_erased_share_carried_can_still_be_retried(self, w: World) -> None:
        _, mine = await w.shown()
        _, theirs = await w.shown(name="other")
        accepted = await w.accept(mine, theirs)
        await w.finish(accepted.jobs[0], OutcomeKind.PERMANENT)
        assert await self.erase(w, accepted.message_id, "shop") == ()
        ((left,),) = await w.rows(select(deliveries.c.id))
        assert await w.store.write(lambda tx: queue_by_hand.retry(tx, [left], w.now, w.now + DAY)) == [left]
        (job,) = await w.store.write(lambda tx: queue.claim_due(tx, {"example.com": 9}, "me", w.now))
        assert job.recipient == theirs

    async def test_a_share_that_is_still_being_forwarded_is_refused(self, w: World) -> None:
        accepted = await w.accept(CARD)
        with pytest.raises(StillOpen):
            await self.erase(w, accepted.message_id, "shop")
        assert await self.erase(w, accepted.message_id, "other") is None

    async def test_a_senders_messages_go_and_what_is_under_way_is_counted(self, w: World) -> None:
        await whole_life(w, data=None, file="abc")
        await whole_life(w, body=b"2")
        await w.accept(CARD, body=b"3")
        await whole_life(w, sender="bob@example.org", mail_from="bob@example.org")
        result = await w.store.write(lambda tx: retention.erase_sender(tx, "ann@example.org"))
        assert result == retention.ErasedSender(2, 1, ("abc",), unblocked=False)
        assert await w.rows(select(messages.c.sender).order_by(messages.c.id)) == [
            ("ann@example.org",),
            ("bob@example.org",),
        ]

    async def test_a_site_erases_its_share_of_a_sender(self, w: World) -> None:
        _, mine = await w.shown()
        _, theirs = await w.shown(name="other")
        await whole_life(w, mine, theirs)
        await whole_life(w, mine, body=b"2")
        await w.accept(mine, body=b"3")
        shop = w.site().id
        result = await w.store.write(lambda tx: retention.erase_sender(tx, "ann@example.org", [shop]))
        assert result == retention.ErasedSender(2, 1, (), unblocked=False)
        assert await w.rows(select(deliveries.c.recipient)) == [(theirs,), (mine,)]

    async def test_a_bite_is_one_for_all_sites_together(self, w: World, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(retention, "BITE", 4)
        names = ("shop", "other")
        shown = [(await w.shown(name=name))[1] for name in names]
        for number in range(8):
            await whole_life(w, shown[number % 2], body=str(number).encode())
        await w.accept(shown[1], body=b"waits")
        ids = [w.site(name).id for name in names]
        bites = [await w.store.write(lambda tx: retention.erase_sender(tx, "ann@example.org", ids)) for _ in range(3)]
        assert [(bite.deleted, bite.left) for bite in bites] == [(4, 1), (4, 1), (0, 1)]


async def test_orphans_are_the_files_that_no_message_names(w: World) -> None:
    await w.accept(CARD, data=None, file="mine")
    found = await w.store.write(lambda tx: retention.orphans(tx, ["mine", "a", "b"]))
    assert found == ["a", "b"]


async def test_the_bigger_the_history_the_same_the_work(w: World) -> None:
    """No step of the retention reads a whole table, cascades included: SQLite's program for it opens an index each."""
    every = (messages, deliveries, events, posts, visits, routes)
    for table in every:
        plan = await w.store.write(
            lambda tx: tx.sql(f"EXPLAIN QUERY PLAN DELETE FROM {table.name} WHERE id = 1")  # noqa: B023
        )
        assert not [row[3] for row in plan if row[3].startswith("SCAN")], table.name


async def test_a_swept_pool_with_no_domain_still_answers(tmp_path: Path) -> None:
    async with world(tmp_path, site("shop", pool_target("sales@example.com", CARD, domain=None))) as w:
        await w.shown()
        gone = Statement(update(visits).values(last_seen_at=0.0, started_at=0.0))
        await w.store.write(lambda tx: tx.run(gone))
        await w.sweep(visits=1.0)
        w.pass_time(DAY)
        assert (await w.shown())[1] == CARD
