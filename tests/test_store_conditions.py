"""Conditions judged by what the database knows: blocked senders, first letters, recipients and addresses."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from relay.store import blocked
from relay.store.blocked import TooMany
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
