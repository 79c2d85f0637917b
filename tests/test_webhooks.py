"""The poster against a real receiver over a real store: the schedule, order, limits, shutdown, a failing store."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

import pytest
import structlog
from sqlalchemy import select

from relay.secrets import Keys
from relay.store import events
from relay.store import posts as post_verbs
from relay.store.engine import StoreUnavailable, Turn
from relay.store.post import CLAIM
from relay.store.schema import post_attempts, posts, webhooks
from tests.poster_fixtures import CARD, SECRET, Held, jobs, posting, settled, until_recorded
from tests.store_fixtures import SHOP, World, extracted, hook
from tests.webhook_receiver import Hang, Receiver, retry_after
from webapi import lane as lane_module
from webapi import webhooks as poster_module

LOOP = asyncio.new_event_loop  # requests to receivers are made on it (webapi/guard.py)


class TestSchedule:
    async def test_what_waits_in_the_store_is_found_at_the_start(self, w: World, keys: Keys, crm: Receiver) -> None:
        await jobs(w, 3)
        async with posting(w, keys):
            await until_recorded(w, 3)
        assert [found.json["text"] for found in crm.posts] == ["0", "1", "2"]

    async def test_a_wake_up_makes_it_look(self, w: World, keys: Keys, crm: Receiver) -> None:
        async with posting(w, keys) as poster:
            await jobs(w)
            poster.wake()
            await crm.wait_for(1)
            await until_recorded(w)

    async def test_a_failed_post_is_tried_again_when_its_time_has_come(
        self, w: World, keys: Keys, crm: Receiver
    ) -> None:
        crm.script = [500, 200]
        async with posting(w, keys) as poster:
            poster.submit(await jobs(w, claim=poster.claim))
            await until_recorded(w)
            w.pass_time(10)
            poster.wake()
            assert await until_recorded(w, 2) == [("delivered", 200, "")]
        first, second = crm.posts
        assert first.headers["webhook-id"] == second.headers["webhook-id"]
        assert first.body == second.body
        assert int(second.headers["webhook-timestamp"]) - int(first.headers["webhook-timestamp"]) == 10

    async def test_it_looks_again_by_itself_when_the_next_one_is_due(self, w: World, keys: Keys, crm: Receiver) -> None:
        crm.script = [retry_after(503, "0"), 200]
        async with posting(w, keys, clock=time.time) as poster:
            w.now = time.time() - 4.9  # so the second attempt, 5 s after it, is nearly due
            (found,) = await jobs(w, claim=poster.claim)
            result = post_verbs.PostResult(found, "waiting", time.time() + 0.1, 503, "", w.now, 0.1)
            await w.store.write(lambda tx: post_verbs.finish_post(tx, result, w.now))
            crm.script = 200
            poster.wake()  # there is nothing due yet: this look only learns when the next one will be
            assert (await until_recorded(w, 2))[0][0] == "delivered"

    async def test_a_crash_between_answer_and_record_repeats_under_the_same_id(
        self, w: World, keys: Keys, crm: Receiver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async with posting(w, keys) as poster:
            lost: list[object] = []
            monkeypatch.setattr(poster, "_note", lost.append)
            poster.submit(await jobs(w, claim=poster.claim))
            await crm.wait_for(1)
        await w.store.write(lambda tx: post_verbs.void_post_claims(tx, w.now))
        async with posting(w, keys):
            await until_recorded(w)
        assert len({found.headers["webhook-id"] for found in crm.posts}) == 1
        assert len(crm.posts) == 2


class TestLimits:
    async def test_a_webhook_has_so_many_attempts_under_way_and_no_more(
        self, w: World, keys: Keys, crm: Receiver
    ) -> None:
        crm.script = held = Held()
        async with posting(w, keys, per_webhook=3) as poster:
            poster.submit(await jobs(w, 8, poster.claim))
            await crm.wait_for(3)
            await settled()
            assert crm.under_way == 3
            held.open()
            await until_recorded(w, 8)
        assert crm.most_under_way == 3

    async def test_there_are_so_many_in_all_and_webhooks_take_turns(self, w: World, keys: Keys, crm: Receiver) -> None:
        crm.script = held = Held()
        secret = keys.seal(SECRET)
        await w.declare(replace(SHOP, webhooks=tuple(hook(crm.at(f"/{name}"), secret=secret) for name in "abc")))
        async with posting(w, keys, per_webhook=2, total=3) as poster:
            found = await jobs(w, 4, poster.claim)
            poster.submit(sorted(found, key=lambda found: found.hook.id))
            await crm.wait_for(3)
            await settled()
            assert sorted(post.path for post in crm.posts) == ["/a", "/b", "/c"]
            held.open()
            await until_recorded(w, 12)
        assert crm.most_under_way == 3

    async def test_slow_webhooks_leave_room_for_one_with_nothing_under_way(
        self, w: World, keys: Keys, crm: Receiver
    ) -> None:
        """They answer, so no breaker slows them down."""
        held = Held()
        async with Receiver(held) as slow:
            secret = keys.seal(SECRET)
            hooks = (*(hook(slow.at(f"/{name}"), secret=secret) for name in "abcde"), hook(crm.url, secret=secret))
            await w.declare(replace(SHOP, webhooks=hooks))
            async with posting(w, keys, per_webhook=3, total=10) as poster:
                for job in sorted(await jobs(w, 8, poster.claim), key=lambda found: found.hook.url == crm.url):
                    poster.submit([job])
                    await settled()
                await crm.wait_for(8)
                assert slow.under_way == 8
                held.open()
                await until_recorded(w, 48)

    async def test_a_dead_webhook_holds_nobody_up(self, w: World, keys: Keys, crm: Receiver) -> None:
        async with Receiver(Hang()) as dead:
            secret = keys.seal(SECRET)
            await w.declare(replace(SHOP, webhooks=(hook(dead.url, secret=secret), hook(crm.url, secret=secret))))
            async with posting(w, keys, grace=0.0, per_webhook=2, total=3) as poster:
                poster.submit(await jobs(w, 10, poster.claim))
                await crm.wait_for(10)
                await until_recorded(w, 10)
                assert len(dead.posts) == 2

    async def test_a_webhook_that_keeps_failing_gets_one_attempt_at_a_time(
        self, w: World, keys: Keys, crm: Receiver
    ) -> None:
        crm.script = 500
        async with posting(w, keys, per_webhook=3) as poster:
            poster.submit(await jobs(w, 3, poster.claim))
            await until_recorded(w, 3)
            first, others = Held(), Held()
            crm.script = lambda got: (first if got.json["text"] == "0" else others)(got)
            poster.submit(await jobs(w, 5, poster.claim, subject="later"))
            await crm.wait_for(4)
            await settled()
            assert crm.under_way == 1
            first.open()
            await crm.wait_for(7)
            assert crm.under_way == 3  # it has recovered
            others.open()
            await until_recorded(w, 8)

    async def test_a_failing_event_holds_nothing_back(self, w: World, keys: Keys, crm: Receiver) -> None:
        crm.script = lambda got: 500 if got.json["text"] == "0" else 200
        async with posting(w, keys, per_webhook=1) as poster:
            poster.submit(await jobs(w, 4, poster.claim))
            rows = await until_recorded(w, 4)
        assert [row[0] for row in rows] == ["waiting", "delivered", "delivered", "delivered"]


class TestOrder:
    async def test_first_attempts_start_in_order(self, w: World, keys: Keys, crm: Receiver) -> None:
        async with posting(w, keys, per_webhook=1) as poster:
            found = await jobs(w, 30, poster.claim)
            for start in range(0, 30, 4):
                poster.submit(found[start : start + 4])
            await until_recorded(w, 30)
        assert [post.json["text"] for post in crm.posts] == [str(i) for i in range(30)]

    async def test_what_is_handed_over_does_not_overtake_what_waits_in_the_store(
        self, w: World, keys: Keys, crm: Receiver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Older posts fill the lane, so newer ones are given back and come through the store."""
        monkeypatch.setattr(lane_module, "AHEAD", 2)
        crm.script = held = Held()
        await jobs(w, 10, text="old")
        async with posting(w, keys, per_webhook=1) as poster:
            w.pass_time(1)
            newer = await jobs(w, 10, poster.claim, text="new")
            poster.submit(newer[:5])
            held.open()
            poster.submit(newer[5:])
            await until_recorded(w, 20)
        assert [post.json["text"] for post in crm.posts] == ["old"] * 10 + ["new"] * 10
        assert await w.rows(select(posts.c.attempts).distinct()) == [(1,)]
        ids = await w.rows(select(post_attempts.c.post_id).order_by(post_attempts.c.id))
        assert ids == sorted(ids)

    async def test_when_the_lane_overflows_the_order_stays(
        self, w: World, keys: Keys, crm: Receiver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(lane_module, "HANDED", 3)
        monkeypatch.setattr(lane_module, "AHEAD", 2)
        monkeypatch.setattr(poster_module, "UNUSED", 2)
        async with posting(w, keys, per_webhook=1) as poster:
            found = await jobs(w, 40, poster.claim)
            for start in range(0, 40, 7):
                poster.submit(found[start : start + 7])
                await settled()
            await until_recorded(w, 40)
        assert [post.json["text"] for post in crm.posts] == [str(i) for i in range(40)]

    async def test_what_is_given_back_while_older_ones_are_released_is_not_overtaken(
        self, w: World, keys: Keys, crm: Receiver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It is not in the store yet when what waits there is claimed."""
        monkeypatch.setattr(lane_module, "HANDED", 1)
        crm.script = held = Held()
        write, claimed = w.store.write, asyncio.Event()
        async with posting(w, keys, per_webhook=1) as poster:
            found = await jobs(w, 5, poster.claim)

            async def releases(work: Any, **options: Any) -> Any:
                w.store.write = claims  # type: ignore[method-assign]
                poster.submit(found[3:4])
                return await write(work, **options)

            async def claims(work: Any, **options: Any) -> Any:
                w.store.write = write  # type: ignore[method-assign]
                result = await write(work, **options)
                claimed.set()
                return result

            for number in range(3):  # under way, waiting, given back
                poster.submit(found[number : number + 1])
            w.store.write = releases  # type: ignore[assignment, method-assign]
            poster.wake()
            await claimed.wait()
            await settled()
            held.open()
            await crm.wait_for(3)
            poster.submit(found[4:])
            await until_recorded(w, 5)
        assert [post.json["text"] for post in crm.posts] == [str(i) for i in range(5)]

    async def test_posts_that_are_not_claimed_because_older_ones_wait_come_behind_them(
        self, w: World, keys: Keys, crm: Receiver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(lane_module, "HANDED", 1)
        crm.script = held = Held()
        async with posting(w, keys, per_webhook=1) as poster:
            passed_over = []
            for number in range(8):
                left = poster.backed_up()
                found = await jobs(w, 1, poster.claim, passed_over=left, subject=str(number))
                poster.submit(found, left)
                passed_over.append(not found)
                await settled()
            held.open()
            await until_recorded(w, 8)
            assert not poster.backed_up()
        assert passed_over == [False] * 2 + [True] * 6  # under way, waiting
        assert [post.json["subject"] for post in crm.posts] == [str(number) for number in range(8)]
        assert await w.rows(select(posts.c.attempts).distinct()) == [(1,)]

    async def test_a_webhook_that_was_free_again_before_a_post_was_left_is_looked_at_again(
        self, w: World, keys: Keys, crm: Receiver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(lane_module, "HANDED", 1)
        crm.script = held = Held()
        async with posting(w, keys, per_webhook=1) as poster:
            poster.submit(await jobs(w, 2, poster.claim))
            left = poster.backed_up()
            held.open()
            await until_recorded(w, 2)
            assert left
            assert not poster.backed_up()
            found = await jobs(w, 1, poster.claim, passed_over=left, subject="left")
            newer = await jobs(w, 1, poster.claim, subject="newer")
            assert not found
            poster.submit(found, left)
            poster.submit(newer)
            await until_recorded(w, 4)
        assert [post.json["subject"] for post in crm.posts][2:] == ["left", "newer"]

    async def test_only_a_webhook_that_has_a_post_in_the_store_falls_behind(
        self, w: World, keys: Keys, crm: Receiver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(lane_module, "HANDED", 1)
        crm.script = Held()
        async with posting(w, keys, grace=0.0, per_webhook=1) as poster:
            poster.submit(await jobs(w, 2, poster.claim))
            over = poster.backed_up()
            other = (await w.accept(CARD, automatic="list")).message_id  # its event is withheld
            result = extracted()
            found, left = await w.store.write(lambda tx: events.extracted(tx, other, result, w.now, poster.claim, over))
            assert (over, found, left) == ({1}, [], set())

    async def test_long_texts_are_bounded_in_memory(
        self, w: World, keys: Keys, crm: Receiver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(poster_module, "MEMORY", 10_000)
        async with posting(w, keys, per_webhook=1) as poster:
            found = await jobs(w, 6, poster.claim, text="x" * 6000)
            poster.submit(found)
            assert sum(lane.memory for lane in poster._lanes.values()) <= 16_000
            await until_recorded(w, 6)
            assert sum(lane.memory for lane in poster._lanes.values()) == 0
        assert len(crm.posts) == 6


class TestClaims:
    async def test_a_job_that_has_waited_for_half_its_claim_is_given_back(
        self, w: World, keys: Keys, crm: Receiver
    ) -> None:
        crm.script = held = Held()
        async with posting(w, keys, per_webhook=1) as poster:
            poster.submit(await jobs(w, 2, poster.claim))
            await crm.wait_for(1)
            w.pass_time(CLAIM / 2 + 1)
            held.open()
            await until_recorded(w, 2)
        assert [post.json["text"] for post in crm.posts] == ["0", "1"]
        assert await w.rows(select(posts.c.attempts).distinct()) == [(1,)]

    async def test_closing_gives_back_what_was_not_begun(self, w: World, keys: Keys, crm: Receiver) -> None:
        crm.script = held = Held()
        async with posting(w, keys, per_webhook=1) as poster:
            poster.submit(await jobs(w, 3, poster.claim))
            await crm.wait_for(1)
            closing = asyncio.create_task(poster.close(30))
            await settled()
            held.open()
            await closing
            rows = await w.rows(select(posts.c.state, posts.c.claim, posts.c.attempts).order_by(posts.c.id))
            assert rows == [("delivered", None, 1), ("waiting", None, 0), ("waiting", None, 0)]
            poster.submit([])
        assert len(crm.posts) == 1

    async def test_what_is_handed_over_while_it_closes_is_given_back(self, w: World, keys: Keys, crm: Receiver) -> None:
        crm.script = held = Held()
        async with posting(w, keys) as poster:
            one, two = await jobs(w, 2, poster.claim)
            poster.submit([one])
            await crm.wait_for(1)
            closing = asyncio.create_task(poster.close(30))
            await settled()
            poster.submit([two])
            held.open()
            await closing
        rows = await w.rows(select(posts.c.state, posts.c.claim).order_by(posts.c.id))
        assert rows == [("delivered", None), ("waiting", None)]

    async def test_what_outlasts_the_grace_is_posted_again_at_the_next_start(
        self, w: World, keys: Keys, crm: Receiver
    ) -> None:
        crm.script = Held()
        async with posting(w, keys, grace=0.01) as poster:
            poster.submit(await jobs(w, claim=poster.claim))
            await crm.wait_for(1)
        assert await w.rows(select(posts.c.state, posts.c.claim)) == [("waiting", poster.claim)]
        crm.script = 200
        await w.store.write(lambda tx: post_verbs.void_post_claims(tx, w.now))
        async with posting(w, keys):
            await until_recorded(w)
        first, second = crm.posts
        assert first.headers["webhook-id"] == second.headers["webhook-id"]


class Failing:
    """The store's ``write`` while it is not there, and afterwards."""

    def __init__(self, w: World, times: int) -> None:
        self._write = w.store.write
        self.left = times
        self.failed = asyncio.Event()

    async def __call__(self, verb: Any, *, turn: Turn = Turn.NEXT) -> Any:
        if self.left:
            self.left -= 1
            self.failed.set()
            raise StoreUnavailable("disk I/O error")
        return await self._write(verb, turn=turn)


async def test_large_letters_that_wait_for_a_dead_webhook_leave_memory_to_the_others(
    w: World, keys: Keys, crm: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lane_module, "SHARE", 300)
    monkeypatch.setattr(poster_module, "MEMORY", 1000)
    async with Receiver(Hang()) as dead:
        secret = keys.seal(SECRET)
        hooks = tuple(hook(dead.at(f"/{name}"), secret=secret) for name in "abcd")
        await w.declare(replace(SHOP, webhooks=(*hooks, hook(crm.url, secret=secret))))
        async with posting(w, keys, grace=0.0, per_webhook=1, total=10) as poster:
            for number in range(20):
                poster.submit(await jobs(w, 1, poster.claim, text=f"{number}" * 100))
            await crm.wait_for(20)
            assert len(dead.posts) == 4


async def test_an_attempt_that_cannot_be_judged_is_due_again_when_its_claim_ends(
    w: World, keys: Keys, crm: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        monkeypatch.undo()
        raise ZeroDivisionError

    async with posting(w, keys) as poster:
        monkeypatch.setattr(poster_module, "settle", broken)
        poster.submit(await jobs(w, 1, poster.claim))
        await crm.wait_for(1)
        await settled()
        w.pass_time(CLAIM + 1)
        poster.wake()
        assert await until_recorded(w) == [("delivered", 200, "")]


class TestRecording:
    async def test_results_that_come_together_are_one_transaction(self, w: World, keys: Keys, crm: Receiver) -> None:
        async with posting(w, keys) as poster:
            found = await jobs(w, 10, poster.claim)
            await settled()
            before = w.store.writer.stats.batches
            poster.submit(found)
            await until_recorded(w, 10)
            assert w.store.writer.stats.batches - before < 10


class TestStoreTrouble:
    async def test_a_result_is_kept_until_it_can_be_recorded(
        self, w: World, keys: Keys, crm: Receiver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(poster_module, "RECORD_AGAIN", 0.0)
        async with posting(w, keys) as poster:
            found = await jobs(w, claim=poster.claim)
            monkeypatch.setattr(w.store, "write", Failing(w, 3))
            poster.submit(found)
            assert await until_recorded(w) == [("delivered", 200, "")]
        assert len(crm.posts) == 1

    async def test_closing_without_a_store_says_what_is_repeated(
        self, w: World, keys: Keys, crm: Receiver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        crm.script = held = Held()
        with structlog.testing.capture_logs() as logs:
            async with posting(w, keys, per_webhook=1) as poster:
                poster.submit(await jobs(w, 2, poster.claim))
                await crm.wait_for(1)
                monkeypatch.setattr(w.store, "write", Failing(w, 99))
                held.open()
        entries = [entry["event"] for entry in logs if entry["log_level"] == "error"]
        assert entries == ["results not recorded, these are posted again", "claims not given back"]

    async def test_looking_goes_on_when_the_store_is_back(
        self, w: World, keys: Keys, crm: Receiver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await jobs(w)
        failing = Failing(w, 1)
        monkeypatch.setattr(w.store, "write", failing)
        monkeypatch.setattr(poster_module, "RECORD_AGAIN", 0.0)
        with structlog.testing.capture_logs() as logs:
            async with posting(w, keys) as poster:
                assert failing.failed.is_set()
                poster.wake()
                await until_recorded(w)
        assert "posting waits for the store" in [entry["event"] for entry in logs]

    async def test_a_result_that_cannot_be_written_costs_nobody_else_his(
        self, w: World, keys: Keys, crm: Receiver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        crm.script = held = Held()
        finish = post_verbs.finish_post

        def broken(tx: Any, result: post_verbs.PostResult, now: float) -> bool:
            if result.job.message.text == "1":
                raise ValueError("this one cannot be written")
            return finish(tx, result, now)

        monkeypatch.setattr(post_verbs, "finish_post", broken)
        with structlog.testing.capture_logs() as logs:
            async with posting(w, keys) as poster:
                poster.submit(await jobs(w, 3, poster.claim))
                await crm.wait_for(3)
                held.open()
                await until_recorded(w, 2)
        states = await w.rows(select(posts.c.state).order_by(posts.c.id))
        assert states == [("delivered",), ("waiting",), ("delivered",)]
        assert "result not recorded" in [entry["event"] for entry in logs]


async def test_one_entry_an_attempt_says_what_happened_and_no_secret(w: World, keys: Keys, crm: Receiver) -> None:
    crm.script = [500, 200]
    await w.declare(replace(SHOP, webhooks=(hook(crm.at("/hook?key=hunter2"), secret=keys.seal(SECRET)),)))
    with structlog.testing.capture_logs() as logs:
        async with posting(w, keys) as poster:
            (found,) = await jobs(w, claim=poster.claim, text="the body")
            poster.submit([found])
            await until_recorded(w)
            w.pass_time(10)
            poster.wake()
            await until_recorded(w, 2)
            assert poster.tally.outcomes == {"waiting": 1, "delivered": 1}
    entries = [entry for entry in logs if entry["event"] == "post"]
    assert [(entry["log_level"], entry["status"], entry["attempt"], entry["state"]) for entry in entries] == [
        ("warning", 500, 1, "waiting"),
        ("info", 200, 2, "delivered"),
    ]
    ((webhook,),) = await w.rows(select(webhooks.c.id).where(webhooks.c.removed_at.is_(None)))
    assert all(entry["webhook"] == webhook and entry["uid"] == found.uid for entry in entries)
    assert all(secret not in str(logs) for secret in (SECRET, "hunter2", "the body", crm.url))
