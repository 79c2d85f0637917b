"""Posting again: one message, a time, all failures; what is withheld, under way or another site's stays as it is."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from relay.core.model import OutcomeKind
from relay.store import attribution, deals, events, post_log, replay, sites
from relay.store import posts as post_verbs
from relay.store import webhooks as webhook_verbs
from relay.store.engine import Statement, Tx
from relay.store.post import CLAIM, PostJob
from relay.store.replay import PACE, OutOfUse, Selection
from relay.store.schema import posts, webhooks
from relay.store.webhooks import WebhookDefinition
from tests.post_fixtures import asking, claim, event_rows, finish, post_rows
from tests.store_fixtures import NOW, OTHER, SHOP, TRACK, World, hook, world

CARD, BASE = f"card@{TRACK}", f"help@{TRACK}"
EVERYTHING, FAILURES = Selection(), Selection(failed=True)


@pytest.fixture
async def w(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path, SHOP, OTHER) as found:
        yield found


async def letter(w: World, *addresses: str, claim: str | None = "poster") -> list[PostJob]:
    """The posts of a new letter."""
    number = len(await event_rows(w))
    accepted = await w.accept(*(addresses or (CARD,)), body=b"%d" % number, message_id=f"{number}@x")
    return await w.extract(accepted.message_id, claim)


async def delivered(w: World, many: int = 1) -> list[PostJob]:
    """Letters that have been posted, a second apart."""
    jobs = []
    for _ in range(many):
        (job,) = await letter(w)
        await finish(w, job)
        jobs.append(job)
        w.pass_time(1)
    return jobs


async def webhook_of(w: World, name: str = "shop") -> int:
    query = select(webhooks.c.id).where(webhooks.c.site_id == w.site(name).id, webhooks.c.removed_at.is_(None))
    return (await w.rows(query.order_by(webhooks.c.id.desc())))[0][0]


async def added(w: World, definition: WebhookDefinition) -> int:
    shop = w.site().id
    return await w.store.write(lambda tx: webhook_verbs.add(tx, shop, definition, w.now))


async def selected(w: World, wanted: Selection, webhook: int | None = None, name: str = "shop") -> list[int]:
    webhook = webhook or await webhook_of(w, name)
    last = await replay.newest(w.store.reader)
    return await replay.selected(w.store.reader, webhook, w.site(name).id, wanted, 0, last)


async def again(w: World, ids: Sequence[int], webhook: int | None = None, *, forced: bool = False) -> int:
    webhook = webhook or await webhook_of(w)
    return await w.store.write(lambda tx: replay.replay_to(tx, webhook, ids, w.now, w.now, forced=forced))


class TestOne:
    async def replay(self, w: World, message_id: int) -> int:
        return await w.store.write(lambda tx: replay.replay(tx, message_id, None, w.now))

    async def test_only_webhooks_that_take_receipts_get_it(self, w: World) -> None:
        (job,) = await delivered(w)
        await added(w, asking("message.failed", url="https://bi.example/"))
        assert await self.replay(w, job.message_id) == 1
        assert [found.hook.id for found in await claim(w)] == [job.hook.id]

    async def test_a_webhook_out_of_use_gets_nothing(self, w: World) -> None:
        (job,) = await delivered(w)
        await w.store.write(lambda tx: webhook_verbs.switch_off(tx, job.hook.id, "why", w.now))
        assert await self.replay(w, job.message_id) == 0
        assert await post_rows(w) == [("delivered",)]

    async def test_what_waits_for_its_next_attempt_is_due_now_with_all_attempts_before_it(self, w: World) -> None:
        (job,) = await letter(w)
        await finish(w, job, "waiting", next_at=NOW + 3600)
        assert await self.replay(w, job.message_id) == 1
        assert await post_rows(w, "state", "attempts", "next_at") == [("waiting", 0, NOW)]

    async def test_other_events_of_the_message_are_not_replayed_with_it(self, tmp_path: Path) -> None:
        async with world(tmp_path, replace(SHOP, webhooks=(asking(),))) as w:
            accepted = await w.accept(CARD)
            await w.extract(accepted.message_id)
            await w.finish(accepted.jobs[0], OutcomeKind.PERMANENT)
            for job in await claim(w):
                await finish(w, job)
            assert await self.replay(w, accepted.message_id) == 1
            assert await post_rows(w) == [("waiting",), ("delivered",)]


class TestSelection:
    async def test_a_time_has_its_beginning_and_not_its_end(self, w: World) -> None:
        await delivered(w, 4)  # received at NOW, NOW + 1, …
        assert await selected(w, EVERYTHING) == [1, 2, 3, 4]
        assert await selected(w, Selection(since=NOW + 1, until=NOW + 3)) == [2, 3]
        assert await selected(w, Selection(since=NOW + 3)) == [4]
        assert await selected(w, Selection(until=NOW)) == []
        assert await selected(w, Selection(since=NOW + 2, until=NOW + 2)) == []

    async def test_another_sites_events_are_not_among_them(self, w: World) -> None:
        _, mine = await w.shown()
        _, theirs = await w.shown(name="other")
        await letter(w, mine, theirs)
        await letter(w, theirs)
        assert await selected(w, EVERYTHING) == [1]
        assert await selected(w, EVERYTHING, name="other") == [2, 3]

    async def test_neither_loops_nor_what_is_not_read_yet_are_among_them(self, w: World) -> None:
        looped = await w.accept(CARD, looped=True)
        await w.extract(looped.message_id)
        await w.accept(CARD, body=b"not read")
        await delivered(w)
        assert await selected(w, EVERYTHING) == [3]

    async def test_all_failures_are_what_failed_and_what_waits_after_an_attempt(self, w: World) -> None:
        (fine, lost, late, fresh) = [(await letter(w))[0] for _ in range(4)]
        await finish(w, fine)
        await finish(w, lost, "failed")
        await finish(w, late, "waiting")
        await letter(w, BASE)  # withheld
        await letter(w, claim=None)  # nobody has tried yet
        assert await selected(w, FAILURES) == [2, 3, 4]  # the fourth is under way
        assert await again(w, [2, 3, 4]) == 2
        assert (await finish(w, fresh), await post_rows(w)) == (
            True,
            [("delivered",), ("waiting",), ("waiting",), ("delivered",), ("withheld",), ("waiting",)],
        )

    @pytest.mark.parametrize("others", [(), ("https://bi.example/",)])
    async def test_what_came_while_a_410_had_disabled_the_webhook_has_failed_for_it(
        self, w: World, others: tuple[str, ...]
    ) -> None:
        for url in others:
            await added(w, hook(url))
        gone, *_ = await letter(w)
        await finish(w, gone, "failed", disable_webhook="410")
        later = [job.hook.id for job in await letter(w)]
        await letter(w, BASE)  # withheld
        await w.store.redefine(lambda tx: webhook_verbs.enable(tx, gone.hook.id))
        assert (len(later), gone.hook.id in later) == (len(others), False)
        assert await selected(w, FAILURES, gone.hook.id) == [1, 2]
        assert await again(w, [1, 2], gone.hook.id) == 2
        w.pass_time(1)
        assert [job.message_id for job in await claim(w) if job.hook.id == gone.hook.id] == [1, 2]
        assert (await event_rows(w, "state"))[:2] == [("posted",)] * 2

    @pytest.mark.parametrize("gone", [False, True])
    async def test_what_came_while_it_was_switched_off_was_not_meant_for_it(self, w: World, gone: bool) -> None:
        (job,) = await letter(w)
        await finish(w, job, "failed", disable_webhook="410" if gone else None)
        await w.store.write(lambda tx: webhook_verbs.switch_off(tx, job.hook.id, webhook_verbs.BY_HAND, w.now))
        await letter(w)
        await w.store.write(lambda tx: webhook_verbs.enable(tx, job.hook.id))
        assert await selected(w, FAILURES) == [1]
        assert await selected(w, EVERYTHING) == [1, 2]

    async def test_a_410_changes_nothing_for_one_that_somebody_has_switched_off(self, w: World) -> None:
        (job,) = await letter(w)
        await w.store.write(lambda tx: webhook_verbs.switch_off(tx, job.hook.id, webhook_verbs.BY_HAND, w.now))
        await finish(w, job, "failed", disable_webhook="410")
        reason = select(webhooks.c.disabled_reason).where(webhooks.c.enabled == 0)
        assert await w.rows(reason) == [(webhook_verbs.BY_HAND,)]

    async def test_failures_of_a_time(self, w: World) -> None:
        for _ in range(3):
            (job,) = await letter(w)
            await finish(w, job, "failed")
            w.pass_time(1)
        assert await selected(w, Selection(failed=True, since=NOW + 1, until=NOW + 2)) == [2]

    async def test_failures_of_another_webhook_are_its_own(self, w: World) -> None:
        second = await added(w, hook("https://bi.example/"))
        one, other = await letter(w)
        await finish(w, one, "failed")
        await finish(w, other)
        assert await selected(w, FAILURES, one.hook.id) == [1]
        assert await selected(w, FAILURES, second) == []

    async def test_one_reading_finds_a_page_between_two_events(self, w: World, monkeypatch: pytest.MonkeyPatch) -> None:
        await delivered(w, 5)
        monkeypatch.setattr(replay, "PAGE", 3)
        webhook, shop = await webhook_of(w), w.site().id
        for after, last, expected in ((0, 5, [1, 2, 3]), (1, 5, [2, 3, 4]), (3, 5, [4, 5]), (3, 4, [4]), (5, 5, [])):
            assert await replay.selected(w.store.reader, webhook, shop, EVERYTHING, after, last) == expected

    async def test_without_events_there_is_nothing_newest(self, w: World) -> None:
        assert await replay.newest(w.store.reader) == 0

    async def test_single_posts_are_found_only_at_their_own_webhook(self, w: World) -> None:
        (job,) = await delivered(w)
        other = await webhook_of(w, "other")
        assert await post_log.events_of(w.store.reader, job.hook.id, [job.post_id, 999]) == [1]
        assert await post_log.events_of(w.store.reader, other, [job.post_id]) == []


class TestReplayTo:
    async def test_it_posts_under_the_same_ids_in_order_at_a_pace(self, w: World) -> None:
        jobs = await delivered(w, 3)
        w.pass_time(60)
        assert await again(w, [1, 2, 3]) == 3
        rows = await post_rows(w, "state", "attempts", "next_at", "finished_at")
        assert rows == [("waiting", 0, w.now + number / PACE, None) for number in range(3)]
        assert [job.uid for job in await claim(w)] == [jobs[0].uid]
        w.pass_time(2 / PACE)
        assert [(job.uid, job.attempts) for job in await claim(w)] == [(job.uid, 1) for job in jobs[1:]]

    async def test_what_waits_anyway_is_never_put_off(self, w: World) -> None:
        """New mail would stand behind a bulk replay that takes it along."""
        await delivered(w, 2)
        await letter(w, claim=None)
        due = w.now
        (late,) = await letter(w)
        await finish(w, late, "waiting", next_at=w.now + 3600)
        assert await again(w, [1, 2, 3, 4]) == 4
        assert (await post_rows(w, "next_at"))[2:] == [(due,), (w.now + 3 / PACE,)]

    async def test_what_is_under_way_is_not_doubled(self, w: World) -> None:
        (job,) = await letter(w)
        assert await again(w, [1], forced=True) == 0
        assert (await claim(w, "other"), await finish(w, job)) == ([], True)
        assert await post_rows(w) == [("delivered",)]

    async def test_what_a_template_had_no_use_for_is_followed_by_what_says_another_visit(self, w: World) -> None:
        await w.shown()
        (job,) = await letter(w)

        def mended(tx: Tx) -> None:
            tx.revise()
            tx.sql("UPDATE deliveries SET visit_id = (SELECT id FROM visits)")

        await w.store.write(mended)
        assert await w.store.write(lambda tx: replay.replay(tx, job.message_id, None, w.now)) == 1
        await finish(w, job, "withheld", status=None)
        assert (await post_rows(w), await event_rows(w, "state")) == ([("waiting",)], [("posted",)])
        (other,) = await claim(w)
        await finish(w, other, "withheld", status=None)  # that is no use to it, either
        assert (await post_rows(w), await event_rows(w, "state")) == ([("withheld",)], [("withheld",)])

    async def test_a_claim_that_ended_is_not_under_way(self, w: World) -> None:
        await letter(w)
        w.pass_time(CLAIM)
        assert await again(w, [1]) == 0
        w.pass_time(1)
        assert await again(w, [1]) == 1

    async def test_it_is_doubled_by_no_second_replay(self, w: World) -> None:
        await delivered(w, 2)
        assert [await again(w, [1, 2]) for _ in range(2)] == [2, 2]
        assert await post_rows(w) == [("waiting",)] * 2

    async def test_a_webhook_added_since_gets_what_it_takes(self, w: World) -> None:
        (job,) = await delivered(w)
        await letter(w, BASE)  # without a visit
        second = await added(w, hook("https://bi.example/"))
        assert await again(w, await selected(w, EVERYTHING, second), second) == 1
        (found,) = await claim(w)
        assert (found.hook.id, found.uid) == (second, job.uid)
        third = await added(w, asking("message.failed", url="https://alarm.example/"))
        assert await again(w, await selected(w, EVERYTHING, third), third) == 0

    async def test_without_a_webhook_then_it_is_posted_now(self, tmp_path: Path) -> None:
        async with world(tmp_path, replace(SHOP, webhooks=())) as w:
            await letter(w)
            assert await event_rows(w, "reason") == [("no webhook",)]
            first = await added(w, hook())
            assert await again(w, [1], first) == 1
            assert await event_rows(w, "state", "reason") == [("posted", None)]

    @pytest.mark.parametrize("how", ["switched off", "removed"])
    async def test_a_webhook_out_of_use_is_refused(self, w: World, how: str) -> None:
        (job,) = await delivered(w)
        if how == "removed":
            await w.store.write(lambda tx: webhook_verbs.remove(tx, job.hook.id, w.now))
        else:
            await w.store.write(lambda tx: webhook_verbs.switch_off(tx, job.hook.id, how, w.now))
        with pytest.raises(OutOfUse):
            await again(w, [1], job.hook.id)
        with pytest.raises(OutOfUse):
            await again(w, [1], 999)
        assert await post_rows(w) == [("delivered",)]

    async def test_another_sites_events_are_passed_over(self, w: World) -> None:
        _, theirs = await w.shown(name="other")
        (job,) = await letter(w, theirs)
        await finish(w, job)
        assert await again(w, [1], forced=True) == 0
        assert await again(w, [999], forced=True) == 0
        assert await post_rows(w) == [("delivered",)]


class TestWithheld:
    async def test_it_stays_so_and_says_why_now(self, w: World) -> None:
        await letter(w, BASE)
        webhook = await webhook_of(w)
        exact = hook(settings=replace(hook().settings, conditions={"require_visit": False, "min_size": 100}))
        await w.store.write(lambda tx: webhook_verbs.change(tx, webhook, exact))
        assert await again(w, [1]) == 0
        assert await post_rows(w, "state", "answer") == [("withheld", "smaller than 100 octets")]
        assert (await event_rows(w, "state")) == [("withheld",)]

    async def test_it_is_posted_once_the_conditions_have_changed(self, w: World) -> None:
        await letter(w, BASE)
        assert await again(w, [1]) == 0
        webhook = await webhook_of(w)
        lenient = hook(settings=replace(hook().settings, conditions={"require_visit": False}))
        await w.store.write(lambda tx: webhook_verbs.change(tx, webhook, lenient))
        assert await again(w, [1]) == 1
        assert await event_rows(w, "state", "reason") == [("posted", None)]
        (job,) = await claim(w)
        assert job.message.email_to == BASE

    async def test_it_is_posted_when_somebody_insists(self, w: World) -> None:
        await letter(w, BASE)
        assert await again(w, [1], forced=True) == 1
        assert len(await claim(w)) == 1

    async def test_while_send_to_crm_is_off_it_stays_so(self, w: World) -> None:
        shop = w.site().id
        await w.store.redefine(lambda tx: sites.switch(tx, shop, tracking=True, send_to_crm=False))
        await letter(w)
        assert await again(w, [1]) == 0
        await w.store.redefine(lambda tx: sites.switch(tx, shop, tracking=True, send_to_crm=True))
        assert await again(w, [1]) == 1

    async def test_what_was_delivered_once_goes_again_whatever_the_conditions_say_now(self, w: World) -> None:
        (job,) = await delivered(w)
        strict = hook(settings=replace(hook().settings, conditions={"min_size": 100}))
        await w.store.write(lambda tx: webhook_verbs.change(tx, job.hook.id, strict))
        assert await again(w, [1]) == 1


async def test_the_order_of_many_bites_goes_on_where_the_last_ended(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the API and the command line do it."""
    from webapi import replays

    monkeypatch.setattr(replays, "BITE", 2)
    await delivered(w, 5)
    webhook, shop = await webhook_of(w), w.site().id
    assert await replays.replay_selected(w.store, webhook, shop, EVERYTHING, w.now) == 5
    dues = [due for (due,) in await w.rows(select(posts.c.next_at).order_by(posts.c.id))]
    assert dues == pytest.approx([w.now + number / PACE for number in range(5)])


@pytest.mark.parametrize("wanted", [EVERYTHING, FAILURES])
async def test_what_one_reading_does_not_find_the_next_one_does_once(
    w: World, monkeypatch: pytest.MonkeyPatch, wanted: Selection
) -> None:
    from webapi import replays

    monkeypatch.setattr(replay, "PAGE", 3)
    monkeypatch.setattr(replays, "BITE", 2)
    for _ in range(7):
        (job,) = await letter(w)
        await finish(w, job, "failed")
    webhook, shop = await webhook_of(w), w.site().id
    assert await replays.replay_selected(w.store, webhook, shop, wanted, w.now) == 7
    assert await post_rows(w, "state", "attempts") == [("waiting", 0)] * 7
    dues = [due for (due,) in await w.rows(select(posts.c.next_at).order_by(posts.c.id))]
    assert dues == pytest.approx([w.now + number / PACE for number in range(7)])


async def test_what_comes_in_during_a_replay_is_no_part_of_it(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else one that goes slower than the mail would never end."""
    from webapi import replays

    monkeypatch.setattr(replay, "PAGE", 1)
    await delivered(w, 2)
    read, came = replay.selected, 0

    async def busy(*args: Any) -> list[int]:
        nonlocal came
        found: list[int] = await read(*args)
        if came < 5:
            came += 1
            await delivered(w)
        return found

    monkeypatch.setattr(replay, "selected", busy)
    assert await replays.replay_selected(w.store, await webhook_of(w), w.site().id, EVERYTHING, w.now) == 2


class TestPlans:
    """What runs in the writer's transactions costs the same however long the history of a webhook or a site is."""

    @pytest.mark.parametrize(
        ("statement", "index"),
        [
            (replay._POST, "ix_posts_event_id_webhook_id"),
            (post_verbs.TRIED, "ix_posts_waiting"),
            (post_verbs.TRIED_BEFORE, "ix_posts_waiting"),
            (post_verbs._GIVE_UP, "ix_posts_waiting"),
            (deals._KNOWN, "ix_messages_message_id"),
            (events._PREVIOUS, "ix_messages_sender"),
            (attribution.FIND_ANSWERED, "ix_messages_message_id"),
            (attribution.FIND_ANSWERED_HERE, "ix_messages_message_id"),
            (attribution.FIND_SENDER_HERE, "ix_messages_sender"),
        ],
    )
    async def test_it_looks_up_and_never_walks_over_all_of_a_webhook_or_site(
        self, w: World, statement: Statement, index: str
    ) -> None:
        names = dict.fromkeys(re.findall(r":(\w+)", statement.sql), 1)

        def explain(tx: Tx) -> list[str]:
            return [row[3] for row in tx._connection.execute(f"EXPLAIN QUERY PLAN {statement.sql}", names)]

        steps = await w.store.write(explain)
        assert any(index in step for step in steps), steps
        assert not any(step.endswith(("(webhook_id=?)", "(site_id=?)")) and "waiting" not in step for step in steps), (
            steps
        )
        own = ("SCAN walk", "SCAN CONSTANT ROW")  # of a recursion that counts its steps
        assert not any(step.startswith("SCAN") and step not in own for step in steps), steps
