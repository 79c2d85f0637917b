"""Mail that no binding explains: whose visit it is by what it answers, or by who sent it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from relay.core.payload import build
from relay.store import messages, sites
from relay.store.attribution import SENDER_REACH, THREAD_REACH, Evidence
from relay.store.schema import deliveries, visits
from tests.store_fixtures import DAY, LEASE, NOW, OTHER, SHOP, TRACK, World, hook, incoming, world

CARD, BASE = f"card@{TRACK}", f"help@{TRACK}"
NONE = ("none", "plus/1", None)
KNOWN = 90 * DAY


@pytest.fixture
async def w(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path, SHOP, OTHER) as found:
        yield found


async def letter(w: World, *addresses: str, **changes: Any) -> list[tuple[str, str, str | None]]:
    """(attribution, method, visit number) of the deliveries of a new letter from a sender nobody knows."""
    number = len(await w.rows(select(deliveries.c.id)))
    sender = changes.pop("sender", f"stranger{number}@example.org")
    unique = {"body": b"%d" % number, "message_id": f"own{number}@example.org", "mail_from": sender, "sender": sender}
    accepted = await w.accept(*addresses, **unique | changes)
    return await w.rows(
        select(deliveries.c.attribution, deliveries.c.attribution_method, visits.c.number)
        .outerjoin(visits, visits.c.id == deliveries.c.visit_id)
        .where(deliveries.c.message_id == accepted.message_id)
        .order_by(deliveries.c.id)
    )


async def visit_of(w: World, message_id: str = "q@example.org", sender: str = "ann@example.org") -> str:
    """The number of a visit that has written one exact letter, which has this Message-ID."""
    number, plus = await w.shown("help@example.com")
    assert await letter(w, plus, message_id=message_id, sender=sender) == [("exact", "plus/1", number)]
    return number


class TestThread:
    async def test_an_answer_is_of_the_visit_of_what_it_answers(self, w: World) -> None:
        visit = await visit_of(w)
        assert await letter(w, BASE, in_reply_to="q@example.org") == [("inferred", "thread/1", visit)]

    @pytest.mark.parametrize("behind", [0, 1, THREAD_REACH - 1])
    async def test_any_of_the_last_references_will_do(self, w: World, behind: int) -> None:
        visit = await visit_of(w)
        references = ("q@example.org", *(f"{number}@elsewhere.example" for number in range(behind)))
        assert await letter(w, BASE, references=references) == [("inferred", "thread/1", visit)]

    async def test_references_further_back_are_not_looked_up(self, w: World) -> None:
        await visit_of(w)
        references = ("q@example.org", *(f"{number}@elsewhere.example" for number in range(THREAD_REACH)))
        assert await letter(w, BASE, references=references) == [NONE]
        assert await letter(w, BASE, references=references, in_reply_to="x@elsewhere.example") == [NONE]

    async def test_what_it_answers_counts_before_the_rest_of_the_thread(self, w: World) -> None:
        first, second = await visit_of(w, "q1@x", "ann@x.org"), await visit_of(w, "q2@x", "bob@x.org")
        assert await letter(w, BASE, in_reply_to="q1@x", references=("q1@x", "q2@x")) == [
            ("inferred", "thread/1", first)
        ]
        assert await letter(w, BASE, references=("q1@x", "q2@x")) == [("inferred", "thread/1", second)]

    async def test_a_thread_goes_on_from_answer_to_answer_however_late(self, w: World) -> None:
        visit = await visit_of(w, "0@x")
        for number in range(3):
            w.pass_time(KNOWN + DAY)
            answer = {"in_reply_to": f"{number}@x", "message_id": f"{number + 1}@x"}
            assert await letter(w, BASE, **answer) == [("inferred", "thread/1", visit)]

    async def test_a_thread_of_another_site_says_nothing(self, w: World) -> None:
        await visit_of(w)
        ((_, method, visit),) = await letter(w, "other1@track.other.example", in_reply_to="q@example.org")
        assert (method, visit) == ("pool/2", None)

    async def test_each_site_infers_from_its_own_share_of_the_thread(self, w: World) -> None:
        visit = await visit_of(w)
        found = await letter(w, BASE, "other1@track.other.example", in_reply_to="q@example.org")
        assert found == [("inferred", "thread/1", visit), ("none", "pool/2", None)]

    async def test_an_unattributed_thread_says_nothing(self, w: World) -> None:
        await letter(w, BASE, message_id="q@example.org")
        await letter(w, CARD, message_id="q@example.org")  # exact, and without a visit
        assert await letter(w, BASE, in_reply_to="q@example.org", references=("q@example.org",)) == [NONE]

    @pytest.mark.parametrize(
        "changes", [{"bounce": True}, {"mail_from": ""}, {"sender": ""}, {"automatic": "auto-submitted"}]
    )
    async def test_a_bounce_is_known_by_its_thread(self, w: World, changes: dict[str, Any]) -> None:
        visit = await visit_of(w)
        assert await letter(w, BASE, in_reply_to="q@example.org", **changes) == [("inferred", "thread/1", visit)]


class TestKnownSender:
    @pytest.mark.parametrize(("seconds", "known"), [(0.0, True), (KNOWN - 1, True), (KNOWN, False), (KNOWN + 1, False)])
    async def test_a_sender_is_known_for_ninety_days(self, w: World, seconds: float, known: bool) -> None:
        visit = await visit_of(w)
        w.pass_time(seconds)
        expected = ("inferred", "sender/1", visit) if known else NONE
        assert await letter(w, BASE, sender="ann@example.org") == [expected]

    async def test_an_automatic_sender_is_nobody_in_particular(self, w: World) -> None:
        """A form mailer writes for many people under one address."""
        await visit_of(w)
        assert await letter(w, BASE, sender="ann@example.org", automatic="auto-submitted") == [NONE]

    async def test_for_no_time_at_all_is_never(self, w: World) -> None:
        await visit_of(w)
        recipient, letter = await w.recipient(BASE), incoming(NOW, b"again")
        evidence = Evidence(DAY, known_sender=0.0)
        await w.store.write(
            lambda tx: messages.accept(tx, letter, [recipient], claim=None, expires_at=NOW, evidence=evidence)
        )
        assert (await w.rows(select(deliveries.c.attribution).order_by(deliveries.c.id)))[-1] == ("none",)

    async def test_what_was_inferred_does_not_make_it_longer(self, w: World) -> None:
        visit = await visit_of(w)
        w.pass_time(KNOWN - DAY)
        assert await letter(w, BASE, sender="ann@example.org") == [("inferred", "sender/1", visit)]
        w.pass_time(2 * DAY)
        assert await letter(w, BASE, sender="ann@example.org") == [NONE]

    async def test_the_last_exact_visit_counts(self, w: World) -> None:
        await visit_of(w)
        second = await visit_of(w)
        assert await letter(w, BASE, sender="ann@example.org") == [("inferred", "sender/1", second)]

    async def test_only_the_latest_letters_of_a_sender_are_looked_at(self, w: World) -> None:
        visit = await visit_of(w)
        for _ in range(SENDER_REACH - 1):
            await letter(w, CARD, sender="ann@example.org")
        assert await letter(w, BASE, sender="ann@example.org") == [("inferred", "sender/1", visit)]
        assert await letter(w, BASE, sender="ann@example.org") == [NONE]

    async def test_another_sender_and_another_site_know_nothing(self, w: World) -> None:
        await visit_of(w)
        assert await letter(w, BASE, sender="bob@example.org") == [NONE]
        ((state, _, _),) = await letter(w, "other1@track.other.example", sender="ann@example.org")
        assert state == "none"

    @pytest.mark.parametrize("changes", [{"bounce": True}, {"mail_from": ""}])
    async def test_a_bounce_names_no_person(self, w: World, changes: dict[str, Any]) -> None:
        await visit_of(w)
        assert await letter(w, BASE, sender="ann@example.org", **changes) == [NONE]

    async def test_letters_without_a_sender_are_not_one_persons(self, w: World) -> None:
        _, plus = await w.shown("help@example.com")
        await letter(w, plus, sender="", mail_from="x@example.org")
        assert await letter(w, BASE, sender="", mail_from="x@example.org") == [NONE]

    async def test_the_thread_counts_before_the_sender(self, w: World) -> None:
        first, _ = await visit_of(w, "q1@x", "ann@x.org"), await visit_of(w, "q2@x", "bob@x.org")
        assert await letter(w, BASE, sender="bob@x.org", in_reply_to="q1@x") == [("inferred", "thread/1", first)]


class TestUntouched:
    """Whatever a substitute says itself is never replaced by what a thread or a sender would say."""

    @pytest.fixture
    async def answer(self, w: World) -> dict[str, Any]:
        """Of a letter that both the thread and the sender would explain."""
        await visit_of(w)
        return {"in_reply_to": "q@example.org", "sender": "ann@example.org"}

    async def test_static(self, w: World, answer: dict[str, Any]) -> None:
        assert await letter(w, CARD, **answer) == [("exact", "static/1", None)]

    async def test_claimed(self, w: World, answer: dict[str, Any]) -> None:
        assert await letter(w, f"help+424242@{TRACK}", **answer) == [("claimed", "plus/1", None)]

    async def test_exact(self, w: World, answer: dict[str, Any]) -> None:
        visit, leased = await w.shown()
        assert await letter(w, leased, **answer) == [("exact", "pool/2", visit)]

    async def test_likely(self, w: World, answer: dict[str, Any]) -> None:
        for _ in range(3):
            _, leased = await w.shown()
            w.pass_time(LEASE)
        assert await letter(w, leased, **answer) == [("likely", "pool/2", None)]

    async def test_what_nobody_ever_held_is_inferred(self, w: World, answer: dict[str, Any]) -> None:
        ((state, method, visit),) = await letter(w, f"info2@{TRACK}", **answer)
        assert (state, method) == ("inferred", "thread/1")
        assert visit is not None

    async def test_a_retired_address_is_not_attributed(self, w: World, answer: dict[str, Any]) -> None:
        await w.declare(replace(SHOP, targets=(SHOP.targets[0], SHOP.targets[2])), OTHER)
        assert await letter(w, BASE, **answer) == [("none", "retired/1", None)]

    async def test_while_tracking_is_off_nothing_is_attributed(self, w: World, answer: dict[str, Any]) -> None:
        shop = w.site().id
        await w.store.redefine(lambda tx: sites.switch(tx, shop, tracking=False, send_to_crm=True))
        w.store.routes.forget_all()
        assert await letter(w, BASE, **answer) == [("none", "off/1", None)]

    async def test_the_operators_mail_is_not_attributed(self, w: World, answer: dict[str, Any]) -> None:
        assert await letter(w, f"postmaster@{TRACK}", **answer) == [("none", "operator/1", None)]


async def shown_later(w: World, days: float = 2) -> tuple[str, str, str]:
    """(visit, later visit, the pool address that both were shown): Ann wrote to it as the first, exactly."""
    first, leased = await w.shown()
    assert await letter(w, leased, message_id="q@x", sender="ann@x.org") == [("exact", "pool/2", first)]
    w.pass_time(days * DAY)
    await w.shown()  # the other address of the pool
    second, again = await w.shown()
    assert again == leased
    return first, second, leased


class TestAgain:
    """An address that its writer has in a sent letter, or in an address book, and somebody else on a page by now."""

    @pytest.mark.parametrize("age", [0.0, LEASE + 2 * 3600.0])
    @pytest.mark.parametrize("known", [{"in_reply_to": "q@x"}, {"references": ("q@x", "z@x")}, {"sender": "ann@x.org"}])
    async def test_nobody_is_certain_and_who_wrote_before_is_likeliest(
        self, w: World, known: dict[str, Any], age: float
    ) -> None:
        """``age``: since the later visit was shown the address; alone for a day, then one of the last five days'."""
        first, second, leased = await shown_later(w)
        w.pass_time(age)
        assert await letter(w, leased, **known) == [("likely", "again/1", None)]
        (*_, (candidates,)) = await w.rows(select(deliveries.c.candidates).order_by(deliveries.c.id))
        numbers = dict(await w.rows(select(visits.c.id, visits.c.number)))
        assert {numbers[visit]: share for visit, share in json.loads(candidates)} == {first: 0.9, second: 0.1}

    @pytest.mark.parametrize(
        "changes",
        [
            {"sender": "bob@x.org", "in_reply_to": "z@x"},
            {"sender": "ann@x.org", "bounce": True},
            {"sender": "ann@x.org", "mail_from": ""},
            {"sender": "ann@x.org", "automatic": "auto-submitted"},
        ],
    )
    async def test_who_did_not_write_before_is_certain(self, w: World, changes: dict[str, Any]) -> None:
        _, second, leased = await shown_later(w)
        assert await letter(w, leased, **changes) == [("exact", "pool/2", second)]

    async def test_so_is_a_later_visit_of_the_same_browser(self, w: World) -> None:
        first, leased = await w.shown()
        await letter(w, leased, message_id="q@x", sender="ann@x.org")
        w.pass_time(2 * DAY)
        await w.shown()  # the other address of the pool
        second, again = await w.shown(first_visit=first)
        assert (again == leased, second == first) == (True, False)
        assert await letter(w, leased, in_reply_to="q@x", sender="ann@x.org") == [("exact", "pool/2", second)]

    async def test_so_is_a_sender_who_wrote_longer_ago_than_senders_are_known(self, w: World) -> None:
        _, second, leased = await shown_later(w, days=90)
        assert await letter(w, leased, sender="ann@x.org") == [("exact", "pool/2", second)]
        assert await letter(w, leased, in_reply_to="q@x") == [("likely", "again/1", None)]

    async def test_what_was_not_certain_the_first_time_is_not_the_second(self, w: World) -> None:
        _, _, leased = await shown_later(w)
        for _ in range(2):
            assert await letter(w, leased, sender="ann@x.org") == [("likely", "again/1", None)]


class TestFill:
    @pytest.mark.parametrize(("fill", "stated"), [("exact", False), ("inferred", True), ("likely", True)])
    async def test_a_webhook_states_an_inferred_visit_where_it_asks_for_it(
        self, tmp_path: Path, fill: str, stated: bool
    ) -> None:
        async with world(tmp_path, replace(SHOP, webhooks=(hook(fill=fill),))) as w:
            visit = await visit_of(w)
            accepted = await w.accept(BASE, body=b"answer", in_reply_to="q@example.org")
            (job,) = await w.extract(accepted.message_id, "poster")
            payload = build(job.message, job.visit, job.attribution)
            assert payload["visit_id"] == (visit if stated else None)
            assert payload["domain"] == ("www.shop.example" if stated else None)

    async def test_the_forwarder_is_told_of_it(self, w: World) -> None:
        visit = await visit_of(w)
        (job,) = (await w.accept(BASE, body=b"answer", in_reply_to="q@example.org")).jobs
        assert job.visit == visit
