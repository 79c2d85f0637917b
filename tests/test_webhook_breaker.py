"""The breaker of a webhook, its own concurrency, and what its template withholds."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import structlog
from sqlalchemy import select

from relay.core.hook import Access, HookSettings
from relay.secrets import Keys
from relay.store import webhooks as webhook_verbs
from relay.store.schema import events, post_attempts, posts
from tests.poster_fixtures import SECRET, Held, jobs, posting, settled, until, until_recorded
from tests.store_fixtures import SHOP, World, hook
from tests.webhook_receiver import Abort, Post, Receiver, Step, retry_after
from webapi.breaker import FAILING, RESTING, Standing
from webapi.stored_posts import StoredPosts

LOOP = asyncio.new_event_loop  # requests to receivers are made on it (webapi/guard.py)

#: A rest that does not end in a test, and one that nobody notices.
LONG, SHORT = 1000.0, 0.001


def told(logs: list[Any]) -> list[tuple[Any, ...]]:
    """What the breaker logged: (event, failures in a row)."""
    changes = [entry for entry in logs if entry["event"].startswith("webhook ")]
    return [(entry["event"], entry.get("failures", entry.get("after"))) for entry in changes]


class TestBreaker:
    async def test_it_rests_after_so_many_failures_and_one_line_says_so_at_each_change(
        self, w: World, keys: Keys, crm: Receiver
    ) -> None:
        crm.script = 500
        with structlog.testing.capture_logs() as logs:
            async with posting(w, keys, per_webhook=1, rest=LONG) as poster:
                poster.submit(await jobs(w, RESTING + 5, poster.claim))
                await until_recorded(w, RESTING)
                standing = poster.standing(w.site().webhooks[0].id)
                assert standing.failures == RESTING
                assert standing.rests_for is not None
                assert 0 < standing.rests_for <= LONG
                assert poster.standing(999) == Standing()
                await settled()
                assert crm.under_way == 0
            assert len(crm.posts) == RESTING
        assert told(logs) == [("webhook keeps failing", FAILING), ("webhook keeps failing", RESTING)]

    async def test_closing_while_it_rests_gives_back_what_was_not_begun(
        self, w: World, keys: Keys, crm: Receiver
    ) -> None:
        crm.script = 500
        async with posting(w, keys, per_webhook=1, rest=LONG) as poster:
            poster.submit(await jobs(w, RESTING + 2, poster.claim))
            await until_recorded(w, RESTING)
        rows = await w.rows(select(posts.c.state, posts.c.claim, posts.c.attempts).order_by(posts.c.id))
        assert rows == [("waiting", None, 1)] * RESTING + [("waiting", None, 0)] * 2

    async def test_after_a_rest_it_gets_one_attempt_and_after_a_success_all_of_them(
        self, w: World, keys: Keys, crm: Receiver
    ) -> None:
        held = Held()
        answers: list[Step] = [500] * (RESTING + 3)
        crm.script = lambda got: answers.pop() if answers else held(got)
        with structlog.testing.capture_logs() as logs:
            async with posting(w, keys, per_webhook=4, rest=SHORT) as poster:
                poster.submit(await jobs(w, RESTING + 10, poster.claim))
                await crm.wait_for(RESTING + 4)
                await settled()
                assert crm.under_way == 1
                held.open()
                await until_recorded(w, RESTING + 10)
        assert told(logs) == [
            ("webhook keeps failing", FAILING),
            ("webhook keeps failing", RESTING),
            ("webhook answers again", RESTING + 3),
        ]
        texts = [got.json["text"] for got in crm.posts[: RESTING + 4]]
        assert texts == [str(number) for number in range(RESTING + 4)]  # first attempts in order all the same

    async def test_a_success_of_an_attempt_that_was_under_way_ends_its_rest(
        self, w: World, keys: Keys, crm: Receiver
    ) -> None:
        slow = Held()
        crm.script = lambda got: slow(got) if got.json["text"] == "0" else 500 if len(crm.posts) <= RESTING + 1 else 200
        async with posting(w, keys, per_webhook=RESTING + 1, rest=LONG) as poster:
            poster.submit(await jobs(w, RESTING + 1, poster.claim))
            await until_recorded(w, RESTING)
            poster.submit(await jobs(w, 1, poster.claim, text="last"))
            await settled()
            assert len(crm.posts) == RESTING + 1
            slow.open()
            await until_recorded(w, RESTING + 2)
        assert crm.posts[-1].json["text"] == "last"

    @pytest.mark.parametrize("step", [429, 500, 503, 599, Abort()])
    async def test_no_answer_429_and_5xx_say_that_it_is_not_well(
        self, w: World, keys: Keys, crm: Receiver, step: Step
    ) -> None:
        crm.script = step
        async with posting(w, keys, per_webhook=1, rest=LONG) as poster:
            poster.submit(await jobs(w, RESTING + 1, poster.claim))
            await until_recorded(w, RESTING)
            await settled()
            assert crm.under_way == 0
        assert len(await w.rows(select(post_attempts.c.id))) == RESTING

    @pytest.mark.parametrize("status", [307, 400, 404, 422])
    async def test_a_refusal_is_about_its_event_alone(self, w: World, keys: Keys, crm: Receiver, status: int) -> None:
        crm.script = status
        with structlog.testing.capture_logs() as logs:
            async with posting(w, keys, rest=LONG) as poster:
                poster.submit(await jobs(w, RESTING + 2, poster.claim))
                await until_recorded(w, RESTING + 2)
        assert told(logs) == []

    async def test_a_refusal_is_an_answer_so_the_row_begins_anew(self, w: World, keys: Keys, crm: Receiver) -> None:
        crm.script = [*[500] * (RESTING - 1), 400] * 2
        async with posting(w, keys, per_webhook=1, rest=LONG) as poster:
            poster.submit(await jobs(w, 2 * RESTING, poster.claim))
            await until_recorded(w, 2 * RESTING)

    async def test_other_webhooks_go_on_while_one_rests(self, w: World, keys: Keys, crm: Receiver) -> None:
        async with Receiver(500) as ill:
            secret = keys.seal(SECRET)
            await w.declare(replace(SHOP, webhooks=(hook(ill.url, secret=secret), hook(crm.url, secret=secret))))
            async with posting(w, keys, rest=LONG, total=3) as poster:
                poster.submit(await jobs(w, RESTING + 10, poster.claim))
                await until_recorded(w, 2 * RESTING + 10)
            assert (len(ill.posts), len(crm.posts)) == (RESTING, RESTING + 10)

    async def test_what_comes_while_it_rests_waits_in_order(self, w: World, keys: Keys, crm: Receiver) -> None:
        crm.script = [500] * RESTING
        async with posting(w, keys, per_webhook=1, rest=0.05) as poster:
            poster.submit(await jobs(w, RESTING, poster.claim, text="old"))
            await until_recorded(w, RESTING)
            w.pass_time(1)
            for number in range(8):
                poster.submit(await jobs(w, 1, poster.claim, text=str(number)))
            await until_recorded(w, RESTING + 8)
        came = [got.json["text"] for got in crm.posts[RESTING:] if got.json["text"] != "old"]
        assert came == [str(number) for number in range(8)]


class TestWellAgain:
    """What was put off for hours while the receiver was down is tried as soon as it answers again."""

    async def test_ten_failures_are_made_good_within_a_second_of_the_first_answer(
        self, w: World, keys: Keys, crm: Receiver
    ) -> None:
        crm.script = [500] * RESTING
        async with posting(w, keys, per_webhook=1, rest=0.01) as poster:
            poster.submit(await jobs(w, RESTING, poster.claim, text="old"))
            await until_recorded(w, RESTING)
            poster.submit(await jobs(w, 1, poster.claim, text="new"))  # no time passes: the old ones wait for 5 s
            await until(w, select(posts.c.next_at), lambda rows: all(row[0] <= w.now + 1 for row in rows))
            w.pass_time(1)
            poster.wake()
            await until(w, select(posts.c.state), lambda rows: all(row[0] == "delivered" for row in rows))
        assert [got.json["text"] for got in crm.posts[RESTING:]] == ["new", *["old"] * RESTING]
        first, again = crm.posts[:RESTING], crm.posts[RESTING + 1 :]
        assert [got.headers["webhook-id"] for got in again] == [got.headers["webhook-id"] for got in first]

    async def test_but_not_before_the_time_that_a_retry_after_has_named(
        self, w: World, keys: Keys, crm: Receiver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hasten, hastened = StoredPosts.hasten, asyncio.Event()

        async def noted(store: StoredPosts, post_ids: Sequence[int], begin: float, now: float) -> None:
            await hasten(store, post_ids, begin, now)
            hastened.set()

        monkeypatch.setattr(StoredPosts, "hasten", noted)
        crm.script = [retry_after(503, "600")] * RESTING
        async with posting(w, keys, per_webhook=1, rest=0.01) as poster:
            poster.submit(await jobs(w, RESTING, poster.claim))
            await until_recorded(w, RESTING)
            poster.submit(await jobs(w, 1, poster.claim, text="new"))
            await until_recorded(w, RESTING + 1)
            await until(w, select(posts.c.state), lambda rows: ("delivered",) in rows)
            async with asyncio.timeout(30):
                await hastened.wait()
        due = await w.rows(select(posts.c.next_at).where(posts.c.state == "waiting"))
        assert len(due) == RESTING
        assert all(at >= w.now + 600 for (at,) in due)

    async def test_a_retry_after_of_a_second_puts_off_by_a_second_what_the_schedule_puts_off_by_hours(
        self, w: World, keys: Keys, crm: Receiver
    ) -> None:
        crm.script = [retry_after(503, "1")] * RESTING
        async with posting(w, keys, per_webhook=1, rest=0.01) as poster:
            poster.submit([replace(job, attempts=5) for job in await jobs(w, RESTING, poster.claim)])
            await until_recorded(w, RESTING)
            assert all(at > w.now + 3600 for (at,) in await w.rows(select(posts.c.next_at)))
            w.pass_time(2)
            poster.submit(await jobs(w, 1, poster.claim, text="new"))
            await until(w, select(posts.c.next_at), lambda rows: all(row[0] <= w.now + 1 for row in rows))

    async def test_an_outage_is_not_forgotten_at_a_restart_but_for_what_a_retry_after_may_have_put_off(
        self, w: World, keys: Keys, crm: Receiver
    ) -> None:
        crm.script = [500, 503, 400]  # the last is the letter's fault, not an outage
        async with posting(w, keys, per_webhook=1) as poster:
            poster.submit([replace(job, attempts=6) for job in await jobs(w, 3, poster.claim)])
            await until_recorded(w, 3)
        w.pass_time(60)
        rows = select(posts.c.state, posts.c.attempts).order_by(posts.c.id)
        async with posting(w, keys) as poster:
            poster.submit(await jobs(w, 1, poster.claim, text="new"))
            after = [("delivered", 1), ("waiting", 1), ("waiting", 1), ("delivered", 1)]
            await until(w, rows, lambda found: found == after)
        assert [got.json["text"] for got in crm.posts] == ["0", "1", "2", "new", "0"]

    async def test_what_fails_after_the_start_and_before_the_first_answer_keeps_to_the_schedule(
        self, w: World, keys: Keys, crm: Receiver
    ) -> None:
        crm.script = [500, 500, 200]
        async with posting(w, keys, per_webhook=1) as poster:
            poster.submit(await jobs(w, 1, poster.claim, text="old"))
            await until_recorded(w)
        w.pass_time(1)  # less than its next attempt takes
        async with posting(w, keys, per_webhook=1) as poster:
            poster.submit(await jobs(w, 2, poster.claim))
            await until(w, select(posts.c.state), lambda rows: rows.count(("delivered",)) == 2)
        ((stumbled, due),) = await w.rows(select(posts.c.id, posts.c.next_at).where(posts.c.state == "waiting"))
        assert (stumbled, due >= w.now + 5) == (2, True)


class TestGone:
    async def test_after_410_nothing_more_is_posted_and_what_waited_fails_with_the_reason(
        self, w: World, keys: Keys, crm: Receiver
    ) -> None:
        crm.script = [200, 410]
        async with posting(w, keys, per_webhook=1) as poster:
            poster.submit(await jobs(w, 6, poster.claim))
            query = select(posts.c.state, posts.c.attempts, posts.c.answer).order_by(posts.c.id)
            rows = await until(w, query, lambda rows: all(row[0] != "waiting" for row in rows))
        assert len(crm.posts) == 2
        assert rows[:2] == [("delivered", 1, ""), ("failed", 1, "")]
        assert rows[2:] == [("failed", 0, "the receiver answered 410 Gone")] * 4

    async def test_enabled_again_it_is_posted_to_again(self, w: World, keys: Keys, crm: Receiver) -> None:
        crm.script = [410]
        async with posting(w, keys) as poster:
            poster.submit(await jobs(w, 1, poster.claim))
            await until_recorded(w)
            webhook = w.site().webhooks[0].id
            await w.store.redefine(lambda tx: webhook_verbs.enable(tx, webhook))
            w.pass_time(1)
            poster.submit(await jobs(w, 1, poster.claim))
            assert [row[0] for row in await until_recorded(w, 2)] == ["failed", "delivered"]


def template_of(keys: Keys, crm: Receiver, text: str, **changes: Any) -> Any:
    return hook(crm.url, secret=keys.seal(SECRET), settings=HookSettings(template=text, **changes))


class TestNothingSent:
    GA4 = Access(variables={"measurement_id": "G-1234567", "api_secret": "s3cr3ts3cr3t"})

    async def test_what_the_template_does_not_want_is_withheld_with_the_reason(
        self, w: World, keys: Keys, crm: Receiver
    ) -> None:
        webhook = replace(template_of(keys, crm, "ga4"), access=keys.seal(self.GA4.to_json()))
        await w.declare(replace(SHOP, webhooks=(webhook,)))
        async with posting(w, keys) as poster:
            poster.submit(await jobs(w, claim=poster.claim))
            assert await until_recorded(w) == [("withheld", None, "no google_client_id")]
            w.pass_time(30 * 86_400)
            poster.wake()
            await settled()
        assert crm.posts == []
        assert poster.tally.outcomes == {"withheld": 1}
        rows = await w.rows(select(posts.c.finished_at.is_not(None), posts.c.claim, posts.c.attempts))
        assert rows == [(True, None, 1)]
        assert await w.rows(select(events.c.state, events.c.reason)) == [("withheld", "no google_client_id")]
        assert await w.rows(select(post_attempts.c.digest, post_attempts.c.size)) == [(None, None)]

    async def test_a_template_that_fails_is_tried_again_and_says_why(self, w: World, keys: Keys, crm: Receiver) -> None:
        await w.declare(replace(SHOP, webhooks=(template_of(keys, crm, "body = '{{ text }}x'"),)))
        async with posting(w, keys) as poster:
            poster.submit(await jobs(w, claim=poster.claim))
            ((state, status, answer),) = await until_recorded(w)
            assert (state, status) == ("waiting", None)
            assert answer.startswith("the webhook's template fails: body")
            (view,) = w.site().webhooks
            mended = webhook_verbs.definition(
                crm.url, None, "inferred", HookSettings(template="body = '{{ text|tojson }}'"), Access(), keys.seal
            )
            await w.store.redefine(lambda tx: webhook_verbs.change(tx, view.id, mended))
            w.pass_time(10)
            poster.wake()
            assert await until_recorded(w, 2) == [("delivered", 200, "")]
        assert crm.posts[0].body == b'"0"'

    async def test_what_was_never_sent_says_nothing_about_the_receiver(
        self, w: World, keys: Keys, crm: Receiver
    ) -> None:
        """Neither that it is ill, nor that it has recovered."""
        shape = "requires = ['subject']\nbody = '{{ text }}'"
        await w.declare(replace(SHOP, webhooks=(template_of(keys, crm, shape, concurrency=1),)))
        crm.script = 500
        with structlog.testing.capture_logs() as logs:
            async with posting(w, keys, rest=LONG) as poster:
                unmade = await jobs(w, RESTING + 1, poster.claim, text="no JSON")
                poster.submit(unmade)
                await until_recorded(w, RESTING + 1)
                assert told(logs) == []
                count = RESTING + 1
                for number in range(RESTING - 1):
                    poster.submit(await jobs(w, 1, poster.claim, text=str(number)))
                    poster.submit(await jobs(w, 1, poster.claim, text=str(number), subject=""))
                    count += 2
                    await until_recorded(w, count)
                assert told(logs) == [("webhook keeps failing", FAILING)]
                poster.submit(await jobs(w, 1, poster.claim, text="17"))
                await until_recorded(w, count + 1)
        assert told(logs) == [("webhook keeps failing", FAILING), ("webhook keeps failing", RESTING)]


async def test_what_one_template_withholds_is_still_posted_where_another_webhook_gets_it(
    w: World, keys: Keys, crm: Receiver
) -> None:
    picky = replace(template_of(keys, crm, "ga4"), access=keys.seal(TestNothingSent.GA4.to_json()))
    plain = hook(crm.at("/plain"), secret=keys.seal(SECRET))
    await w.declare(replace(SHOP, webhooks=(plain, picky)))
    async with posting(w, keys) as poster:
        poster.submit(await jobs(w, claim=poster.claim))
        await until_recorded(w, 2)
    assert await w.rows(select(posts.c.state).order_by(posts.c.state)) == [("delivered",), ("withheld",)]
    assert await w.rows(select(events.c.state, events.c.reason)) == [("posted", None)]


class TestConcurrency:
    async def concurrent(self, w: World, keys: Keys, crm: Receiver, count: int) -> None:
        webhook = hook(crm.url, secret=keys.seal(SECRET), settings=HookSettings(concurrency=count))
        await w.declare(replace(SHOP, webhooks=(webhook,)))

    async def test_with_one_they_follow_each_other_in_order(self, w: World, keys: Keys, crm: Receiver) -> None:
        await self.concurrent(w, keys, crm, 1)

        async def slowly(post: Post) -> Step:
            await settled()
            return 200

        crm.script = slowly
        async with posting(w, keys) as poster:
            poster.submit(await jobs(w, 20, poster.claim))
            await until_recorded(w, 20)
        assert crm.most_under_way == 1
        assert [got.json["text"] for got in crm.posts] == [str(number) for number in range(20)]

    @pytest.mark.parametrize("count", [2, 12])
    async def test_each_webhook_has_as_many_as_it_says(self, w: World, keys: Keys, crm: Receiver, count: int) -> None:
        await self.concurrent(w, keys, crm, count)
        held = Held()
        crm.script = held
        async with posting(w, keys) as poster:
            poster.submit(await jobs(w, 15, poster.claim))
            await crm.wait_for(count)
            await settled()
            assert crm.under_way == count
            held.open()
            await until_recorded(w, 15)
        assert crm.most_under_way == count

    async def test_a_change_holds_for_what_comes_next(self, w: World, keys: Keys, crm: Receiver) -> None:
        async with posting(w, keys) as poster:
            for count, until_then in ((1, 0), (3, 4)):
                await self.concurrent(w, keys, crm, count)
                held: Held = Held()
                crm.script = held
                w.pass_time(1)
                poster.submit(await jobs(w, 4, poster.claim, subject=str(count)))
                await crm.wait_for(until_then + count)
                await settled()
                assert crm.under_way == count
                held.open()
                await until_recorded(w, until_then + 4)
