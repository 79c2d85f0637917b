"""The CRM's number for an enquiry: each site has its own, and a thread is one deal."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from relay.core.model import OutcomeKind
from relay.store import deals, history, reports, retention
from relay.store.attribution import THREAD_REACH
from relay.store.engine import Statement, Tx
from relay.store.schema import deliveries, events, messages
from tests.post_fixtures import asking, claim, finish
from tests.store_fixtures import NOW, OTHER, SHOP, TRACK, World, world

CARD = f"card@{TRACK}"
Deal = tuple[str | None, str | None]
D17: Deal = ("17", "https://crm.example/17")


@pytest.fixture
async def w(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path, SHOP, OTHER) as found:
        yield found


async def accepted(w: World, number: int, *addresses: str, answers: str | None = None, **changes: Any) -> int:
    """A letter with the Message-ID ``number@x`` that is not read yet; its id."""
    unique = {"body": b"%d" % number, "message_id": f"{number}@x", "in_reply_to": answers}
    return (await w.accept(*(addresses or (CARD,)), **unique | changes)).message_id


async def letter(w: World, number: int, *addresses: str, answers: str | None = None, **changes: Any) -> int:
    """The same, read."""
    message_id = await accepted(w, number, *addresses, answers=answers, **changes)
    await w.extract(message_id)
    return message_id


async def give(w: World, message_id: int, deal: Deal = D17, *sites: str) -> int:
    """PUT …/deal, by a caller that may see these sites (all)."""
    allowed = {w.site(name).id for name in sites} or None
    return await w.store.write(lambda tx: deals.set_deal(tx, message_id, *deal, allowed))


async def deal_of(w: World, message_id: int, name: str = "shop") -> Deal:
    query = select(events.c.deal_id, events.c.deal_url).where(
        events.c.message_id == message_id, events.c.site_id == w.site(name).id, events.c.type == "message.received"
    )
    ((deal_id, url),) = await w.rows(query)
    return deal_id, url


async def thread(w: World, message_id: int) -> int | None:
    ((found,),) = await w.rows(select(messages.c.thread_id).where(messages.c.id == message_id))
    return found


async def both(w: World) -> tuple[str, str]:
    """A substitute of each site."""
    _, mine = await w.shown()
    _, theirs = await w.shown(name="other")
    return mine, theirs


class TestSites:
    async def test_each_sites_answer_is_its_own_deal(self, w: World) -> None:
        message_id = await letter(w, 1, *await both(w))
        for job in await claim(w):
            number = "1" if "crm.example" in job.hook.url else "2"
            await finish(w, job, deal=(number, None))
        assert (await deal_of(w, message_id), await deal_of(w, message_id, "other")) == (("1", None), ("2", None))

    async def test_a_caller_sees_the_deals_of_its_own_sites(self, w: World) -> None:
        message_id = await letter(w, 1, *await both(w))
        await give(w, message_id, ("2", None), "other")
        for seen, expected in ((None, ("2", None)), ("shop", (None, None)), ("other", ("2", None))):
            sites = None if seen is None else frozenset({w.site(seen).id})
            (row,) = await history.page(w.store.reader, history.Filter(sites=sites), 10)
            assert row.deal_at(None) == expected

    async def test_put_on_one_site_is_of_that_site(self, w: World) -> None:
        mine, theirs = await both(w)
        message_id = await letter(w, 1, mine, theirs)
        later = await letter(w, 2, mine, theirs, answers="1@x")
        assert await give(w, message_id, D17, "other") == 1
        assert [await deal_of(w, one) for one in (message_id, later)] == [(None, None)] * 2
        assert [await deal_of(w, one, "other") for one in (message_id, later)] == [D17] * 2

    async def test_put_on_a_site_that_has_nothing_of_it_changes_nothing(self, w: World) -> None:
        message_id = await letter(w, 1)
        assert await give(w, message_id, D17, "other") == 0
        assert await give(w, 999) == 0
        assert await deal_of(w, message_id) == (None, None)

    async def test_a_thread_carries_each_sites_deal_to_that_site_alone(self, w: World) -> None:
        mine, theirs = await both(w)
        first = await letter(w, 1, mine, theirs)
        await give(w, first, ("1", None), "shop")
        later = await letter(w, 2, mine, theirs, answers="1@x")
        assert (await deal_of(w, later), await deal_of(w, later, "other")) == (("1", None), (None, None))

    async def test_another_sites_letter_of_that_message_id_says_nothing(self, w: World) -> None:
        mine, theirs = await both(w)
        first = await letter(w, 1, theirs)
        await give(w, first)
        later = await letter(w, 2, mine, answers="1@x")
        assert (await deal_of(w, later), await thread(w, later)) == ((None, None), None)

    async def test_a_letter_that_came_to_each_site_by_itself_is_a_thread_at_each(self, w: World) -> None:
        """The sender's server delivers per domain: two messages, one Message-ID."""
        mine, theirs = await both(w)
        there = await letter(w, 1, theirs)
        here = await letter(w, 1, mine)
        await give(w, there, ("2", None))
        await give(w, here, ("1", None))
        later = await letter(w, 2, mine, answers="1@x")
        assert (await thread(w, later), await deal_of(w, later)) == (here, ("1", None))


class TestThread:
    async def test_an_answer_carries_the_deal(self, w: World) -> None:
        first = await letter(w, 1)
        await give(w, first)
        later = await letter(w, 2, answers="1@x")
        assert (await deal_of(w, later), await thread(w, later), await thread(w, first)) == (D17, first, None)

    async def test_the_post_of_an_answer_says_the_deal(self, tmp_path: Path) -> None:
        async with world(tmp_path, replace(SHOP, webhooks=(asking(extras=True),))) as w:
            await give(w, await letter(w, 1))
            await letter(w, 2, answers="1@x")
            found = {job.uid: job.extras for job in await claim(w)}
            assert [(one.deal_id, one.deal_url) for one in found.values() if one] == [D17, D17]

    @pytest.mark.parametrize("place", [0, 1, 2])
    async def test_any_reference_will_do(self, w: World, place: int) -> None:
        await give(w, await letter(w, 1))
        references = ["a@elsewhere.example", "b@elsewhere.example"]
        references.insert(place, "1@x")
        assert await deal_of(w, await letter(w, 2, references=tuple(references))) == D17

    async def test_references_further_back_than_attribution_looks_are_not_looked_up(self, w: World) -> None:
        await give(w, await letter(w, 1))
        far = tuple(f"{number}@elsewhere.example" for number in range(THREAD_REACH))
        assert await deal_of(w, await letter(w, 2, references=("1@x", *far[1:]))) == D17
        assert await deal_of(w, await letter(w, 3, references=("1@x", *far))) == (None, None)

    async def test_a_chain_is_one_thread(self, w: World) -> None:
        ids = [await letter(w, 1)]
        await give(w, ids[0])
        ids += [await letter(w, number, answers=f"{number - 1}@x") for number in (2, 3, 4)]
        assert [await thread(w, one) for one in ids] == [None, *[ids[0]] * 3]
        assert [await deal_of(w, one) for one in ids] == [D17] * 4

    async def test_the_latest_deal_of_the_thread_counts(self, w: World) -> None:
        await give(w, await letter(w, 1))
        await give(w, await letter(w, 2, answers="1@x"), ("18", None))
        assert await deal_of(w, await letter(w, 3, answers="1@x")) == ("18", None)  # the link was of the other number

    async def test_where_it_refers_to_two_threads_the_nearest_with_a_deal_counts(self, w: World) -> None:
        await letter(w, 1)
        await give(w, await letter(w, 2))
        assert await deal_of(w, await letter(w, 3, references=("1@x", "2@x"))) == D17
        await give(w, await letter(w, 4), ("18", None))
        assert await deal_of(w, await letter(w, 5, answers="2@x", references=("4@x",))) == D17
        assert await deal_of(w, await letter(w, 6, references=("2@x", "4@x"))) == ("18", None)

    @pytest.mark.parametrize("changes", [{"answers": "unknown@x"}, {"references": ("u@x", "v@x")}, {}])
    async def test_what_refers_to_nothing_known_stands_alone(self, w: World, changes: dict[str, Any]) -> None:
        await give(w, await letter(w, 1))
        later = await letter(w, 2, **changes)
        assert (await deal_of(w, later), await thread(w, later)) == ((None, None), None)

    @pytest.mark.parametrize("changes", [{"answers": "1@x"}, {"references": ("1@x", "1@x")}])
    async def test_a_letter_that_refers_to_itself_stands_alone(self, w: World, changes: dict[str, Any]) -> None:
        only = await letter(w, 1, **changes)
        await give(w, only)
        assert (await deal_of(w, only), await thread(w, only)) == (D17, None)

    async def test_letters_that_answer_each_other_end_at_the_first(self, w: World) -> None:
        first = await accepted(w, 1, answers="2@x")
        second = await accepted(w, 2, answers="1@x")
        for one in (first, second, await accepted(w, 3, answers="2@x", references=("1@x", "2@x", "3@x"))):
            await w.extract(one)
        assert [await thread(w, one) for one in (first, second)] == [None, first]
        await give(w, second)
        assert await deal_of(w, first) == (None, None)

    async def test_mail_to_the_operator_has_no_thread(self, w: World) -> None:
        await letter(w, 1)
        assert await thread(w, await letter(w, 2, f"postmaster@{TRACK}", answers="1@x")) is None

    async def test_an_erased_first_letter_ends_nothing(self, w: World) -> None:
        first = await letter(w, 1)
        second = await letter(w, 2, answers="1@x")
        await give(w, second)
        await w.store.write(lambda tx: tx.sql("UPDATE deliveries SET state = 'forwarded'"))
        await w.store.write(lambda tx: retention.erase_message(tx, first))
        assert await deal_of(w, await letter(w, 3, answers="2@x")) == D17
        assert await deal_of(w, await letter(w, 4, answers="1@x")) == (None, None)


class TestOrderOfReading:
    async def test_letters_read_in_the_reverse_order_are_one_thread_all_the_same(self, w: World) -> None:
        ids = [await accepted(w, 0)]
        ids += [await accepted(w, number, answers=f"{number - 1}@x") for number in (1, 2, 3)]
        await give(w, ids[0])
        for one in reversed(ids):
            await w.extract(one)
        assert [await thread(w, one) for one in ids] == [None, *[ids[0]] * 3]
        assert [await deal_of(w, one) for one in ids] == [D17] * 4

    async def test_a_late_deal_reaches_them_too(self, w: World) -> None:
        ids = [await accepted(w, 0)]
        ids += [await accepted(w, number, answers=f"{number - 1}@x") for number in (1, 2)]
        for one in reversed(ids):
            await w.extract(one)
        await give(w, ids[0])
        assert [await deal_of(w, one) for one in ids] == [D17] * 3

    async def test_a_letter_read_late_takes_no_deal_of_a_later_one(self, w: World) -> None:
        await letter(w, 0)
        earlier = await accepted(w, 1, answers="0@x")
        later = await letter(w, 2, answers="0@x")
        await give(w, later)
        await w.extract(earlier)
        assert await deal_of(w, earlier) == (None, None)


class TestLateDeal:
    async def test_it_reaches_the_later_letters(self, w: World) -> None:
        ids = [await letter(w, 1), await letter(w, 2, answers="1@x"), await letter(w, 3, answers="2@x")]
        (first, *_) = await claim(w)
        assert first.message_id == ids[0]
        await finish(w, first, deal=D17)
        assert [await deal_of(w, one) for one in ids] == [D17] * 3

    async def test_it_never_overwrites_a_deal_that_they_have(self, w: World) -> None:
        first, second = await letter(w, 1), await letter(w, 2, answers="1@x")
        third = await letter(w, 3, answers="2@x")
        await give(w, second, ("18", None))
        await give(w, first)
        assert [await deal_of(w, one) for one in (first, second, third)] == [D17, ("18", None), ("18", None)]

    async def test_it_never_reaches_earlier_letters(self, w: World) -> None:
        first, second = await letter(w, 1), await letter(w, 2, answers="1@x")
        await give(w, second)
        assert (await deal_of(w, first), await deal_of(w, second)) == ((None, None), D17)

    async def test_other_threads_are_left_alone(self, w: World) -> None:
        first, stranger = await letter(w, 1), await letter(w, 2)
        await letter(w, 3, answers="1@x")
        await give(w, first)
        assert await deal_of(w, stranger) == (None, None)

    async def test_an_address_without_a_number_is_the_letters_own(self, w: World) -> None:
        first, second = await letter(w, 1), await letter(w, 2, answers="1@x")
        await give(w, first, (None, D17[1]))
        assert (await deal_of(w, first), await deal_of(w, second)) == ((None, D17[1]), (None, None))
        await give(w, first, D17)  # the number comes: the whole deal goes on
        assert await deal_of(w, second) == D17

    async def test_a_number_that_was_mended_is_mended_in_the_whole_thread(self, w: World) -> None:
        first, second = await letter(w, 1), await letter(w, 2, answers="1@x")
        await give(w, first)
        third = await letter(w, 3, answers="2@x")
        await give(w, first, ("18", None))
        assert [await deal_of(w, one) for one in (first, second, third)] == [("18", None)] * 3
        assert await deal_of(w, await letter(w, 4, answers="1@x")) == ("18", None)

    async def test_a_letter_with_another_number_keeps_it(self, w: World) -> None:
        first, second = await letter(w, 1), await letter(w, 2, answers="1@x")
        await give(w, first)
        await give(w, second, ("99", None))
        await give(w, first, ("18", None))
        assert await deal_of(w, second) == ("99", None)

    @pytest.mark.parametrize(
        ("then", "becomes"),
        [
            (("17", None), D17),  # the same number again says nothing of its link
            (("18", None), ("18", None)),
            (("18", "https://crm/18"), ("18", "https://crm/18")),
            ((None, "https://crm/new"), ("17", "https://crm/new")),
        ],
    )
    async def test_a_link_stays_with_its_number(
        self, w: World, then: tuple[str | None, str | None], becomes: tuple[str, str | None]
    ) -> None:
        only = await letter(w, 1)
        await give(w, only)
        await give(w, only, then)
        assert await deal_of(w, only) == becomes


async def test_the_answer_to_another_event_is_the_messages_deal(tmp_path: Path) -> None:
    """A receiver may make the deal when it hears that the mail failed; the page and the next letter show it."""
    async with world(tmp_path, replace(SHOP, webhooks=(asking("message.failed"),))) as w:
        message = await w.accept(CARD)
        await w.extract(message.message_id)
        await w.finish(message.jobs[0], OutcomeKind.PERMANENT)
        (job,) = await claim(w)
        await finish(w, job, deal=D17)
        assert await deal_of(w, message.message_id) == D17
        (row,) = await history.page(w.store.reader, history.Filter(), 10)
        assert row.deal_at(None) == D17


async def test_a_further_event_says_the_messages_deal(tmp_path: Path) -> None:
    async with world(tmp_path, replace(SHOP, webhooks=(asking(),))) as w:
        message = await w.accept(CARD)
        await w.extract(message.message_id)
        await give(w, message.message_id)
        await w.finish(message.jobs[0], OutcomeKind.PERMANENT)
        found = {job.extras.event: (job.extras.deal_id, job.extras.deal_url) for job in await claim(w) if job.extras}
        assert found == {"message.failed": D17}


async def test_a_report_counts_a_thread_as_one_deal(w: World) -> None:
    _, plus = await w.shown("help@example.com")
    await give(w, await letter(w, 1, plus))
    await letter(w, 2, plus, answers="1@x")
    shop = w.site().id
    (source,) = await reports.sources(w.store.reports, reports.Wanted({shop}, NOW - 1, NOW + 1))
    assert (source.messages, source.deals) == (2, 1)


async def test_whoever_repeats_a_message_id_takes_nobody_into_another_thread(w: World) -> None:
    evil = await letter(w, 1, sender="mallory@evil.example", mail_from="mallory@evil.example")
    await give(w, evil, ("EVIL", None))
    victim = await letter(w, 2)
    await give(w, victim, ("VICTIM", None))
    await letter(w, 3, message_id="2@x", answers="1@x", sender="mallory@evil.example", mail_from="m@evil.example")
    later = await letter(w, 4, answers="2@x")
    assert await deal_of(w, later) == ("VICTIM", None)


class TestFlood:
    """A thread of many letters: each looks at a bounded number of them."""

    @pytest.mark.parametrize("statement", [deals._OF_THREAD, deals._FOLLOWERS])
    async def test_it_walks_along_the_index_as_far_as_it_reaches(self, w: World, statement: Statement) -> None:
        assert f"LIMIT {deals.REACH}" in statement.sql
        names = dict.fromkeys(re.findall(r":(\w+)", statement.sql), 1)
        steps = await w.store.write(lambda tx: tx._connection.execute(f"EXPLAIN QUERY PLAN {statement.sql}", names))
        found = [row[3] for row in steps.fetchall()]
        order = "<" if statement is deals._OF_THREAD else ">"
        walk = f"SEARCH messages USING COVERING INDEX ix_messages_thread_id (thread_id=? AND rowid{order}?)"
        assert [step for step in found if "messages" in step] == [
            walk
        ]  # and so no sorting of what the index has sorted
        assert {step for step in found if "events" in step} == {
            "SEARCH events USING INDEX ix_events_message_id (message_id=?)"
        }

    async def flooded(self, w: World, *ids: int) -> None:
        """Letters with these ids, each with the event of its own, in the thread of letter 1."""

        def fill(tx: Tx) -> None:
            for table, key in ((messages, "id"), (deliveries, "message_id"), (events, "message_id")):
                new = {"id": "?1", key: "?1", "delivery_id": "?1", "uid": "'evt' || ?1"}
                names = [column.name for column in table.c]
                values = [new.get(name, f'"{name}"') for name in names]
                quoted = ", ".join(f'"{name}"' for name in names)
                tx._connection.executemany(
                    f"INSERT INTO {table.name} ({quoted}) SELECT {', '.join(values)} FROM {table.name} WHERE {key} = 2",
                    [(number,) for number in ids],
                )

        await letter(w, 1)
        await letter(w, 2, answers="1@x")
        await w.store.write(fill)

    async def test_a_late_deal_reaches_the_next_thousand(self, w: World) -> None:
        await self.flooded(w, *range(3, deals.REACH + 4))
        await give(w, 1)
        assert await deal_of(w, deals.REACH + 1) == D17
        assert await deal_of(w, deals.REACH + 2) == (None, None)

    async def test_a_letter_takes_the_deal_of_the_latest_thousand_or_of_the_first(self, w: World) -> None:
        await self.flooded(w, *range(3, deals.REACH + 4))
        site, before = w.site().id, deals.REACH + 4
        for known, expected in ((1, ("1", None)), (3, ("1", None)), (4, ("4", None))):
            await w.store.write(lambda tx: tx.sql(f"UPDATE events SET deal_id = '{known}' WHERE id = {known}"))  # noqa: B023
            found = await w.store.write(lambda tx: tx.one(deals._OF_THREAD, thread=1, site=site, before=before))
            assert found == expected
