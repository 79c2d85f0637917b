"""Conditions judged by what the database knows: blocked senders, first letters, recipients and addresses."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Table

from relay.config.fields import blocked_sender
from relay.store import blocked, events
from relay.store.blocked import TooMany
from relay.store.engine import Statement, Tx
from relay.store.events import SENDER_REACH
from relay.store.schema import deliveries, messages
from tests.post_fixtures import asking, event_rows, post_rows
from tests.store_fixtures import DAY, NOW, OTHER, SHOP, TRACK, World, hook, world

CARD, THEIRS = f"card@{TRACK}", "other1@track.other.example"
BLOCKED = ("withheld", "blocked sender")
POSTED = ("posted", None)


@pytest.fixture
async def w(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path, SHOP, OTHER) as found:
        yield found


async def judged(w: World, *addresses: str, **changes: Any) -> tuple[str, str | None]:
    """(state, reason) of the newest event of a new letter."""
    number = len(await event_rows(w))
    accepted = await w.accept(*(addresses or (CARD,)), **{"body": b"%d" % number} | changes)
    await w.extract(accepted.message_id)
    state, reason = (await event_rows(w, "state", "reason"))[-1]
    return state, reason


async def block(w: World, sender: str, name: str = "shop") -> None:
    site = w.site(name).id
    await w.store.write(lambda tx: blocked.block(tx, site, sender, w.now))


async def asked(w_path: Path, **conditions: Any) -> Any:
    return world(w_path, replace(SHOP, webhooks=(asking("message.received", conditions=conditions),)), OTHER)


async def copied(w: World, message_id: int, times: int) -> None:
    """So many further letters like this one."""

    def columns(table: Table, *but: str) -> str:
        return ", ".join(f'"{column.name}"' for column in table.c if column.name not in but)

    letter, delivery = columns(messages, "id"), columns(deliveries, "id", "message_id")

    def copy(tx: Tx) -> None:
        ((last,),) = tx.sql("SELECT max(id) FROM messages")
        numbers = f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {times})"
        tx.sql(
            f"INSERT INTO messages (id, {letter}) {numbers} SELECT {last} + i, {letter} FROM n, messages "
            f"WHERE id = {message_id}"
        )
        tx.sql(
            f"INSERT INTO deliveries (message_id, {delivery}) {numbers} SELECT {last} + i, {delivery} "
            f"FROM n, deliveries WHERE message_id = {message_id}"
        )

    await w.store.write(copy)


async def instructions(w: World) -> int:
    """What SQLite does to find the sender's letter before a new one, in its own instructions."""

    def count(tx: Tx) -> int:
        done = 0

        def tick() -> None:
            nonlocal done
            done += 1

        tx._connection.set_progress_handler(tick, 1)
        tx.one(events._PREVIOUS, sender="ann@example.org", message=1 << 40, site=site, reach=events.SENDER_REACH)
        tx._connection.set_progress_handler(None, 0)
        return done

    site = w.site().id
    return await w.store.write(count)


class TestBlocked:
    @pytest.mark.parametrize("entry", ["ann@example.org", "@example.org"])
    async def test_an_address_or_its_domain_is_no_deal(self, w: World, entry: str) -> None:
        await block(w, entry)
        assert await judged(w) == BLOCKED
        assert await post_rows(w, "state", "answer") == [BLOCKED]

    @pytest.mark.parametrize(
        "entry", ["bob@example.org", "@org", "@ample.org", "@sub.example.org", "example.org", "an@example.org"]
    )
    async def test_neither_a_part_of_it_nor_another_is_meant(self, w: World, entry: str) -> None:
        await block(w, entry)
        assert await judged(w) == POSTED

    async def test_a_subdomain_is_another_domain(self, w: World) -> None:
        await block(w, "@example.org")
        assert await judged(w, sender="ann@sub.example.org", mail_from="ann@sub.example.org") == POSTED

    @pytest.mark.parametrize("entry", ["bounce@list.example", "@list.example"])
    async def test_the_reverse_path_counts_too_whatever_its_case(self, w: World, entry: str) -> None:
        await block(w, entry)
        assert await judged(w, mail_from="Bounce@List.example") == BLOCKED

    @pytest.mark.parametrize("domain", ["bücher.example", "Bücher.example", "xn--bcher-kva.example"])
    @pytest.mark.parametrize("entry", ["ann@bücher.example", "ann@xn--bcher-kva.example", "@bücher.example"])
    async def test_a_domain_is_the_same_in_either_form(self, w: World, entry: str, domain: str) -> None:
        await block(w, blocked_sender(entry))
        assert await judged(w, sender=f"ann@{domain}", mail_from="x@y.example") == BLOCKED
        assert await judged(w, sender="x@y.example", mail_from=f"ann@{domain}") == BLOCKED

    @pytest.mark.parametrize("local", ["a..b.", '"a..b."', "A..b."])
    @pytest.mark.parametrize("entry", ["a..b.@bücher.example", '"a..b."@xn--bcher-kva.example'])
    async def test_odd_dots_are_the_same_with_quotes_and_without(self, w: World, entry: str, local: str) -> None:
        await block(w, blocked_sender(entry))
        assert await judged(w, sender=f"{local}@xn--bcher-kva.example", mail_from="x@y.example") == BLOCKED

    async def test_the_case_of_no_script_counts(self, w: World) -> None:
        """Senders are folded in ASCII alone (RFC 6531 leaves the rest to the receiver), entries altogether."""
        await block(w, "анна@example.org")
        assert await judged(w, sender="Анна@example.org", mail_from="x@y.example") == BLOCKED

    @pytest.mark.parametrize("changes", [{"sender": "", "mail_from": ""}, {"sender": "nobody", "mail_from": ""}])
    async def test_a_sender_without_an_address_is_nobody_that_is_blocked(self, tmp_path: Path, changes: Any) -> None:
        async with await asked(tmp_path, refuse_bounces=False) as w:
            await block(w, "@example.org")
            assert await judged(w, **changes) == POSTED

    async def test_another_site_hears_of_it_all_the_same(self, w: World) -> None:
        _, theirs = await w.shown(name="other")
        await block(w, "ann@example.org")
        assert await judged(w, CARD, theirs) == POSTED  # the event of the second site
        assert await event_rows(w, "state", "reason") == [BLOCKED, POSTED]
        assert await blocked.listing(w.store.reader, w.site("other").id) == []

    async def test_a_webhook_may_take_them(self, tmp_path: Path) -> None:
        async with await asked(tmp_path, refuse_blocked=False) as w:
            await block(w, "ann@example.org")
            assert await judged(w) == POSTED

    async def test_they_are_listed_sorted_and_once(self, w: World) -> None:
        for sender in ("b@x", "@a", "b@x"):
            await block(w, sender)
        assert await blocked.listing(w.store.reader, w.site().id) == ["@a", "b@x"]

    async def test_unblocked_is_unblocked(self, w: World) -> None:
        await block(w, "ann@example.org")
        shop, other = w.site().id, w.site("other").id
        assert not await w.store.write(lambda tx: blocked.unblock(tx, other, "ann@example.org"))
        assert await w.store.write(lambda tx: blocked.unblock(tx, shop, "ann@example.org"))
        assert not await w.store.write(lambda tx: blocked.unblock(tx, shop, "ann@example.org"))
        assert await judged(w) == POSTED

    async def test_a_site_has_a_most_of_its_own(self, w: World, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(blocked, "MOST", 2)
        await block(w, "a@x")
        await block(w, "b@x")
        await block(w, "b@x")  # is there already
        with pytest.raises(TooMany, match="a site can block 2 senders: block a whole domain instead"):
            await block(w, "c@x")
        await block(w, "c@x", "other")

    async def test_a_removed_sites_webhooks_are_not_asked(self, w: World) -> None:
        await block(w, "ann@example.org")
        await w.declare(OTHER)
        assert (await judged(w))[1] == "no webhook"


class TestFirstLetter:
    REFUSED = ("withheld", "not the sender's first letter in 30 days")

    @pytest.mark.parametrize(("days", "expected"), [(0, REFUSED), (29, REFUSED), (30, POSTED), (31, POSTED)])
    async def test_a_second_letter_within_the_time_is_no_deal(
        self, tmp_path: Path, days: int, expected: tuple[str, str | None]
    ) -> None:
        async with await asked(tmp_path, first_letter=30 * DAY) as w:
            assert await judged(w) == POSTED
            w.pass_time(days * DAY)
            assert await judged(w) == expected

    async def test_it_counts_from_the_last_letter(self, tmp_path: Path) -> None:
        async with await asked(tmp_path, first_letter=30 * DAY) as w:
            await judged(w)
            for _ in range(2):
                w.pass_time(20 * DAY)
                assert await judged(w) == self.REFUSED

    @pytest.mark.parametrize("before", [{"sender": "bob@x"}, {"automatic": "list"}, {"bounce": True}])
    async def test_other_senders_and_automatic_mail_are_no_first_letter(self, tmp_path: Path, before: Any) -> None:
        async with await asked(tmp_path, first_letter=30 * DAY) as w:
            await judged(w, **before)
            assert await judged(w) == POSTED

    async def test_a_letter_to_another_site_is_no_first_letter_here(self, tmp_path: Path) -> None:
        async with await asked(tmp_path, first_letter=30 * DAY) as w:
            await judged(w, THEIRS)
            assert await judged(w) == POSTED

    async def test_any_number_of_letters_to_other_sites_hides_none(self, tmp_path: Path) -> None:
        async with await asked(tmp_path, first_letter=30 * DAY) as w:
            await judged(w)
            await copied(w, (await w.accept(THEIRS)).message_id, 100_000)
            assert await instructions(w) < 1000
            assert await judged(w) == self.REFUSED

    async def test_any_number_of_letters_of_others_hides_none(self, tmp_path: Path) -> None:
        async with await asked(tmp_path, first_letter=30 * DAY) as w:
            await judged(w)
            await copied(w, (await w.accept(CARD, sender="bob@x")).message_id, 10_000)
            assert await instructions(w) < 1000
            assert await judged(w) == self.REFUSED

    async def test_it_is_found_among_letters_to_both_sites_and_automatic_ones(self, tmp_path: Path) -> None:
        async with await asked(tmp_path, first_letter=30 * DAY) as w:
            await judged(w)
            for turn in range(3):
                await judged(w, THEIRS)
                await judged(w, sender="bob@x", mail_from="bob@x")
                await judged(w, automatic="list", body=b"auto %d" % turn)
            assert await judged(w) == self.REFUSED
            w.pass_time(30 * DAY)
            assert await judged(w) == POSTED

    @pytest.mark.parametrize(("automatic", "expected"), [(2, REFUSED), (3, POSTED)])
    async def test_it_is_looked_for_no_farther_than_its_reach(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, automatic: int, expected: tuple[str, str | None]
    ) -> None:
        monkeypatch.setattr(events, "SENDER_REACH", 3)
        async with await asked(tmp_path, first_letter=30 * DAY) as w:
            await judged(w)
            await copied(w, (await w.accept(CARD, body=b"x", automatic="list")).message_id, automatic - 1)
            assert await judged(w) == expected

    async def test_a_flood_of_automatic_mail_costs_no_more_than_its_reach(self, tmp_path: Path) -> None:
        async with await asked(tmp_path, first_letter=30 * DAY) as w:
            await judged(w)
            flood = (await w.accept(CARD, body=b"x", automatic="list")).message_id
            await copied(w, flood, SENDER_REACH)
            some = await instructions(w)
            await copied(w, flood, 10 * SENDER_REACH)
            assert await instructions(w) == pytest.approx(some, rel=0.02)
            assert await judged(w) == POSTED

    async def test_however_many_webhooks_ask_it_is_looked_for_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hooks = [
            replace(asking("message.received", conditions={"first_letter": days * DAY}), url=f"https://{days}.example/")
            for days in (1, 3, 5)
        ]
        asked_for = []
        one = Tx.one

        def noted(tx: Tx, statement: Statement, **params: Any) -> Any:
            asked_for.append(statement)
            return one(tx, statement, **params)

        async with world(tmp_path, replace(SHOP, webhooks=tuple(hooks))) as w:
            await judged(w)
            w.pass_time(2 * DAY)
            monkeypatch.setattr(Tx, "one", noted)
            assert (await judged(w))[0] == "posted"
            assert [state for (state,) in await post_rows(w)][-3:] == ["waiting", "withheld", "withheld"]
            assert asked_for.count(events._PREVIOUS) == 1

    async def test_a_later_letter_that_was_read_before_does_not_count(self, tmp_path: Path) -> None:
        async with await asked(tmp_path, first_letter=30 * DAY) as w:
            first, second = [await w.accept(CARD, body=body) for body in (b"1", b"2")]
            await w.extract(second.message_id)
            await w.extract(first.message_id)
            assert await event_rows(w, "state", "reason") == [POSTED, self.REFUSED]


class TestRecipients:
    async def test_all_that_it_was_sent_to_here_are_counted(self, tmp_path: Path) -> None:
        async with await asked(tmp_path, max_recipients=2) as w:
            assert await judged(w, CARD, f"help@{TRACK}") == POSTED
            await judged(w, CARD, f"help@{TRACK}", THEIRS)
            assert ("withheld", "more than 2 recipients") in await event_rows(w, "state", "reason")

    @pytest.mark.parametrize(
        ("listed", "expected"),
        [
            (CARD, POSTED),
            ("sales@example.com", POSTED),
            ("help@example.com", ("withheld", "sent to other addresses")),
            (THEIRS, ("withheld", "sent to other addresses")),
        ],
    )
    async def test_a_substitute_or_the_real_address_is_meant(
        self, tmp_path: Path, listed: str, expected: tuple[str, str | None]
    ) -> None:
        async with await asked(tmp_path, addresses=[listed]) as w:
            await judged(w, CARD, THEIRS)
            assert (await event_rows(w, "state", "reason"))[0] == expected

    async def test_another_substitute_of_the_same_delivery_is_meant_too(self, tmp_path: Path) -> None:
        async with await asked(tmp_path, addresses=[f"info1@{TRACK}"]) as w:
            assert await judged(w, CARD, f"INFO1@{TRACK}") == POSTED


class TestWebhooks:
    async def test_each_is_judged_by_its_own(self, tmp_path: Path) -> None:
        two = (
            asking("message.received", conditions={"subject": "order"}),
            asking("message.received", url="https://bi/", conditions={"require_visit": True, "max_size": 5}),
            hook("https://all/"),
        )
        async with world(tmp_path, replace(SHOP, webhooks=two, conditions={"require_visit": False})) as w:
            accepted = await w.accept(f"help@{TRACK}", body=b"123456")
            await w.extract(accepted.message_id, subject="Hello")
            assert await post_rows(w, "state", "answer") == [
                ("withheld", "the subject does not match"),
                ("withheld", "no visit"),
                ("waiting", None),
            ]
            assert await event_rows(w, "state", "reason") == [POSTED]

    async def test_where_none_takes_it_every_reason_is_said_once(self, tmp_path: Path) -> None:
        three = tuple(
            asking("message.received", url=f"https://{number}/", conditions=conditions)
            for number, conditions in enumerate(({"subject": "order"}, {"min_size": 100}, {"min_size": 100}))
        )
        async with world(tmp_path, replace(SHOP, webhooks=three)) as w:
            assert await judged(w) == ("withheld", "the subject does not match; smaller than 100 octets")

    async def test_a_subject_is_judged_as_it_was_read(self, tmp_path: Path) -> None:
        async with await asked(tmp_path, subject="^заявка") as w:
            accepted = await w.accept(CARD, subject="=?utf-8?b?0JfQsNGP0LLQutCw?=")
            await w.extract(accepted.message_id, subject="Заявка")
            assert await event_rows(w, "state", "created_at") == [("posted", NOW)]
