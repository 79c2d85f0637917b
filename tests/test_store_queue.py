"""The forwarding queue: claims are fenced, results settle the message, what an operator does by hand."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from relay.core.model import WORST_FIRST, DeliveryState, OutcomeKind
from relay.store import queue, queue_by_hand
from relay.store.engine import Statement
from relay.store.messages import Job
from relay.store.post import CLAIM
from relay.store.queue_view import QueueFilter
from relay.store.schema import attempts, deliveries, messages
from relay.store.store import DATABASE
from tests.store_fixtures import BODY, DAY, NOW, OTHER, SHOP, TRACK, World, pool_target, site, static, world
from webapi import requeue

CARD, HELP = f"card@{TRACK}", f"help@{TRACK}"
_LATER = Statement(update(deliveries).where(deliveries.c.joined_id.is_(None)).values(expires_at=NOW + 9 * DAY))


@pytest.fixture
async def w(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path, SHOP, OTHER) as found:
        yield found


async def row(w: World, job: Job, *names: str) -> tuple[Any, ...]:
    (found,) = await w.rows(select(*(deliveries.c[name] for name in names)).where(deliveries.c.id == job.delivery_id))
    return found


async def message_states(w: World) -> list[str]:
    return [state for (state,) in await w.rows(select(messages.c.state).order_by(messages.c.id))]


def many(connection: sqlite3.Connection, count: int, now: float) -> None:
    """Make it ``count`` deliveries that wait for the first one's destination."""
    columns = ", ".join(column.name for column in deliveries.c if column.name not in ("id", "next_at"))
    connection.execute(
        f"WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < :count) "
        f"INSERT INTO deliveries (next_at, {columns}) SELECT :now - n, {columns} FROM deliveries, n "
        f"WHERE id = 1 AND n > (SELECT count(*) FROM deliveries WHERE destination = 'example.com')",
        {"count": count, "now": now},
    )
    connection.commit()


def steps(connection: sqlite3.Connection, sql: str, parameters: dict[str, Any]) -> int:
    """How many instructions SQLite's machine needs for a query."""
    ticks = itertools.count()
    connection.set_progress_handler(lambda: next(ticks) < 0, 1)
    connection.execute(sql, parameters).fetchall()
    connection.set_progress_handler(None, 1)
    return next(ticks)


async def claim(w: World, who: str = "me", most: int = 10, destination: str = "example.com") -> list[Job]:
    return await w.store.write(lambda tx: queue.claim_due(tx, {destination: most}, who, w.now))


class TestClaim:
    async def test_the_job_from_the_store_is_the_job_from_memory(self, w: World) -> None:
        visit, address = await w.shown("help@example.com", page="https://www.shop.example/?roistat=ads")
        (handed,) = (await w.accept(address, cut=((0, 5),), tls="TLSv1.3", esmtp=False)).jobs
        await w.store.write(lambda tx: queue.release(tx, [handed]))
        (found,) = await claim(w, "forwarder")
        assert (handed.visit, handed.source) == (visit, "ads")
        for name in Job.__slots__:
            if name != "joined":
                assert getattr(found, name) == getattr(handed, name), name

    async def test_a_number_that_the_sender_only_claims_is_no_visit(self, w: World) -> None:
        (handed,) = (await w.accept(f"help+424242@{TRACK}")).jobs
        await w.store.write(lambda tx: queue.release(tx, [handed]))
        (found,) = await claim(w)
        assert (handed.visit, found.visit) == (None, None)

    async def test_a_job_of_the_store_knows_label_body_file_and_next_hop(self, tmp_path: Path) -> None:
        shop = site("shop", pool_target(next_hop="smtp://10.0.0.1"), statics=(static(CARD),))
        async with world(tmp_path, shop) as w:
            await w.accept(CARD, claim=None, data=None, file="abc")
            (job,) = await claim(w)
            assert (job.data, job.file, job.source, job.next_hop) == (None, "abc", "card", "smtp://10.0.0.1")

    async def test_it_takes_what_is_due_oldest_first_up_to_the_capacity(self, w: World) -> None:
        for i in range(4):
            await w.accept(CARD, claim=None, body=b"%d" % i)
            w.pass_time(1)
        assert [job.data for job in await claim(w, most=3)] == [b"0", b"1", b"2"]
        assert [job.data for job in await claim(w, most=3)] == [b"3"]
        assert await claim(w) == []

    async def test_to_one_that_is_down_goes_what_was_tried_least(self, w: World) -> None:
        for body in (b"oldest", b"second", b"third"):
            await w.accept(CARD, claim=None, body=body)
            w.pass_time(1)
        tried = []
        for _ in range(4):
            (job,) = await w.store.write(
                lambda tx: queue.claim_due(tx, {"example.com": 1}, "me", w.now, down={"example.com"})
            )
            tried.append(job.data)
            await w.finish(job, OutcomeKind.TEMPORARY)
            w.pass_time(3600)
        assert tried == [b"oldest", b"second", b"third", b"oldest"]

    async def test_each_destination_has_its_own_capacity(self, w: World) -> None:
        await w.accept(CARD, claim=None)
        await w.accept(f"postmaster@{TRACK}", claim=None)
        waiting = await w.store.reader.run(queue.WAITING, now=w.now)
        assert waiting == [("example.com", 1, None), ("example.net", 1, None)]
        jobs = await w.store.write(
            lambda tx: queue.claim_due(tx, {"example.net": 1, "example.com": 0, "elsewhere": 5}, "me", w.now)
        )
        assert [job.destination for job in jobs] == ["example.net"]

    async def test_nothing_is_claimed_before_its_time_or_twice(self, w: World) -> None:
        (job,) = (await w.accept(CARD)).jobs
        assert await claim(w, "other") == []
        await w.finish(job, OutcomeKind.TEMPORARY)
        assert await w.store.reader.run(queue.WAITING, now=w.now) == [("example.com", 0, NOW + 60)]
        w.pass_time(59)
        assert await claim(w) == []
        w.pass_time(1)
        (again,) = await claim(w)
        assert again.attempts == 2

    async def test_to_look_and_to_claim_cost_the_same_however_much_waits_for_one_destination(
        self, w: World, tmp_path: Path
    ) -> None:
        await w.accept(CARD, claim=None)
        await w.accept(f"postmaster@{TRACK}", claim=None)
        asked = [
            (queue.WAITING, {"now": w.now}),
            (queue._DUE_AT, {"destination": "example.com", "now": w.now, "most": 1}),
            (queue._DUE_AT, {"destination": "example.net", "now": w.now, "most": 80}),
        ]
        cost = {}
        with closing(sqlite3.connect(tmp_path / DATABASE)) as connection:
            for backlog in (100, 3000):
                many(connection, backlog, w.now)
                cost[backlog] = [steps(connection, statement.sql, parameters) for statement, parameters in asked]
        assert all(later <= before for later, before in zip(cost[3000], cost[100], strict=True)), cost

    async def test_the_attempt_is_counted_when_it_is_claimed(self, w: World) -> None:
        (job,) = (await w.accept(CARD)).jobs
        assert await row(w, job, "attempts") == (1,)
        w.pass_time(CLAIM + 1)
        (again,) = await claim(w)
        assert (again.attempts, await row(w, job, "attempts")) == (2, (2,))

    async def test_a_claim_that_ended_without_a_result_may_mean_a_repeat(self, w: World) -> None:
        (job,) = (await w.accept(CARD)).jobs
        w.pass_time(CLAIM + 1)
        await claim(w)
        assert await row(w, job, "possibly_repeated") == (1,)

    async def test_a_renewed_claim_lasts(self, w: World) -> None:
        (job,) = (await w.accept(CARD)).jobs
        w.pass_time(CLAIM - 1)
        claims = [(job.delivery_id, job.claim), (job.delivery_id, "somebody else")]
        await w.store.write(lambda tx: queue.renew(tx, claims, w.now + CLAIM))
        w.pass_time(CLAIM - 1)
        assert await claim(w, "other") == []

    async def test_only_the_holder_can_renew(self, w: World) -> None:
        (job,) = (await w.accept(CARD)).jobs
        await w.store.write(lambda tx: queue.renew(tx, [(job.delivery_id, "thief")], w.now + 1e6))
        assert await row(w, job, "claimed_until") == (NOW + CLAIM,)

    async def test_a_released_claim_was_no_attempt(self, w: World) -> None:
        (job,) = (await w.accept(CARD)).jobs
        await w.store.write(lambda tx: queue.release(tx, [job]))
        assert await row(w, job, "attempts", "claim", "possibly_repeated") == (0, None, 0)
        (again,) = await claim(w)
        assert again.attempts == 1
        await w.store.write(lambda tx: queue.release(tx, [job]))  # no longer its own
        assert await row(w, job, "claim", "possibly_repeated") == ("me", 0)

    async def test_a_start_voids_claims_and_flags_what_was_under_way(self, w: World) -> None:
        (job,) = (await w.accept(CARD)).jobs
        (other,) = (await w.accept(HELP)).jobs
        await w.finish(other)
        assert await w.store.write(queue.void_claims) == 1
        assert await row(w, job, "claim", "possibly_repeated", "attempts") == (None, 1, 1)
        assert await row(w, other, "possibly_repeated") == (0,)
        assert [found.delivery_id for found in await claim(w, "after")] == [job.delivery_id]


class TestFinish:
    async def test_a_lost_claim_changes_nothing(self, w: World) -> None:
        (job,) = (await w.accept(CARD)).jobs
        w.pass_time(CLAIM + 1)
        (taken,) = await claim(w, "other")
        assert not await w.finish(job, OutcomeKind.PERMANENT)
        assert await row(w, job, "state", "claim", "code") == ("queued", "other", None)
        assert await message_states(w) == ["queued"]
        assert await w.rows(select(attempts.c.id)) == []
        assert await w.finish(taken)
        assert not await w.finish(taken)  # and a claim is good for one result
        assert len(await w.rows(select(attempts.c.id))) == 1

    async def test_a_delivered_message_is_forwarded_and_its_attempt_recorded(self, w: World) -> None:
        (job,) = (await w.accept(CARD)).jobs
        w.pass_time(2)
        assert await w.finish(job)
        host = "mx.example.com[192.0.2.1]:25"
        assert await row(w, job, "state", "code", "answer", "host", "finished_at", "claim") == (
            "forwarded",
            250,
            "it is delivered",
            host,
            NOW + 2,
            None,
        )
        columns = (attempts.c.started_at, attempts.c.finished_at, attempts.c.outcome, attempts.c.code, attempts.c.host)
        assert await w.rows(select(*columns)) == [(NOW + 1, NOW + 2, "delivered", 250, host)]
        assert await message_states(w) == ["forwarded"]

    async def test_a_temporary_failure_is_deferred(self, w: World) -> None:
        (job,) = (await w.accept(CARD)).jobs
        await w.finish(job, OutcomeKind.TEMPORARY)
        assert await row(w, job, "state", "next_at", "finished_at") == ("deferred", NOW + 60, None)
        assert await message_states(w) == ["deferred"]

    async def test_an_answer_lost_after_the_dot_is_flagged_for_good(self, w: World) -> None:
        (job,) = (await w.accept(CARD)).jobs
        await w.finish(job, OutcomeKind.AMBIGUOUS)
        w.pass_time(60)
        (again,) = await claim(w)
        await w.finish(again)
        assert await row(w, job, "state", "possibly_repeated") == ("forwarded", 1)

    async def test_a_messages_state_is_its_worst_deliverys(self, w: World) -> None:
        sales, help_ = (await w.accept(CARD, HELP)).jobs
        await w.finish(sales)
        assert await message_states(w) == ["queued"]
        await w.finish(help_, OutcomeKind.TEMPORARY)
        assert await message_states(w) == ["deferred"]
        w.pass_time(60)
        (again,) = await claim(w)
        await w.finish(again, OutcomeKind.PERMANENT)
        assert await message_states(w) == ["failed"]

    @pytest.mark.parametrize("worse", range(len(WORST_FIRST) - 1))
    async def test_every_state_outweighs_the_next(self, w: World, worse: int) -> None:
        accepted = await w.accept(CARD, HELP)
        for job, state in zip(accepted.jobs, WORST_FIRST[worse : worse + 2], strict=True):
            await w.store.write(
                lambda tx, job=job, state=state: tx.run(  # type: ignore[misc]
                    Statement(update(deliveries).where(deliveries.c.id == job.delivery_id).values(state=state.value))
                )
            )
        await w.store.write(lambda tx: queue.settle_message(tx, accepted.message_id))
        assert await message_states(w) == [WORST_FIRST[worse].value]

    @pytest.mark.parametrize("from_store", [False, True])
    async def test_a_joined_delivery_shares_what_became_of_its_carrier(self, w: World, from_store: bool) -> None:
        _, mine = await w.shown()
        _, theirs = await w.shown(name="other")
        accepted = await w.accept(mine, theirs, claim=None if from_store else "me")
        (job,) = await claim(w) if from_store else accepted.jobs
        await w.finish(job, OutcomeKind.AMBIGUOUS)
        columns = ("state", "code", "answer", "host", "finished_at", "possibly_repeated")
        states = await w.rows(select(*(deliveries.c[name] for name in columns)).order_by(deliveries.c.id))
        assert states[0] == states[1]
        assert states[1][0] == "deferred"
        w.pass_time(60)
        (again,) = await claim(w)
        assert again.delivery_id == job.delivery_id
        await w.finish(again)
        states = await w.rows(select(*(deliveries.c[name] for name in columns)).order_by(deliveries.c.id))
        assert states[0] == states[1]
        assert states[1][0] == "forwarded"
        assert await message_states(w) == ["forwarded"]


class TestByHand:
    async def test_what_is_held_is_tried_again(self, w: World) -> None:
        (job,) = (await w.accept(CARD)).jobs
        await w.finish(job, OutcomeKind.PERMANENT)
        w.pass_time(10 * DAY)
        changed = await w.store.write(lambda tx: queue_by_hand.retry(tx, [job.delivery_id], w.now, w.now + DAY))
        assert changed == [job.delivery_id]
        assert await row(w, job, "state", "next_at", "expires_at", "finished_at") == (
            "queued",
            w.now,
            w.now + DAY,
            None,
        )
        assert await message_states(w) == ["queued"]
        (again,) = await claim(w)
        assert again.data == BODY

    async def test_a_retry_never_shortens_what_is_left(self, w: World) -> None:
        (job,) = (await w.accept(CARD)).jobs
        await w.finish(job, OutcomeKind.TEMPORARY)
        await w.store.write(lambda tx: queue_by_hand.retry(tx, [job.delivery_id], w.now, w.now + 1))
        assert await row(w, job, "expires_at") == (NOW + 5 * DAY,)

    async def test_everything_deferred_or_held_is_retried_without_a_list(
        self, w: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(requeue, "STEP", 1)
        jobs = [(await w.accept(CARD, body=b"%d" % i)).jobs[0] for i in range(4)]
        kinds = (OutcomeKind.TEMPORARY, OutcomeKind.PERMANENT, OutcomeKind.DELIVERED)
        for job, kind in zip(jobs, kinds, strict=False):
            await w.finish(job, kind)
        changed = await requeue.retry_all(
            w.store.reader, w.store.write, QueueFilter(states=requeue.AGAIN), w.now, w.now + DAY
        )
        assert changed == [jobs[0].delivery_id, jobs[1].delivery_id]

    async def test_a_retry_does_not_disturb_an_attempt_under_way(self, w: World) -> None:
        (job,) = (await w.accept(CARD)).jobs
        await w.store.write(lambda tx: queue_by_hand.retry(tx, [job.delivery_id], w.now, w.now + DAY))
        assert await claim(w, "other") == []
        assert await w.finish(job)

    @pytest.mark.parametrize("kind", [OutcomeKind.TEMPORARY, OutcomeKind.AMBIGUOUS])
    @pytest.mark.parametrize("state", [DeliveryState.DEFERRED, DeliveryState.FAILED])
    async def test_an_attempt_under_way_does_not_undo_a_retry(
        self, w: World, kind: OutcomeKind, state: DeliveryState
    ) -> None:
        (job,) = (await w.accept(CARD)).jobs
        w.pass_time(5)
        asked = w.now
        await w.store.write(lambda tx: queue_by_hand.retry(tx, [job.delivery_id], asked, asked + 9 * DAY))
        w.pass_time(5)
        end = await w.finish(job, kind, state=state)
        assert end is not None
        assert (end.state, end.next_at) == (DeliveryState.DEFERRED, asked)
        assert await row(w, job, "state", "next_at", "expires_at", "finished_at", "code") == (
            "deferred",
            asked,
            asked + 9 * DAY,
            None,
            end.outcome.code,
        )
        assert await message_states(w) == ["deferred"]
        (again,) = await claim(w)
        end = await w.finish(again, kind, state=state)
        assert end is not None
        assert (end.state, end.next_at) == (state, w.now + 60)

    async def test_what_is_refused_for_good_is_held_though_somebody_asked_for_a_retry(self, w: World) -> None:
        (job,) = (await w.accept(CARD)).jobs
        w.pass_time(5)
        await w.store.write(lambda tx: queue_by_hand.retry(tx, [job.delivery_id], w.now, w.now + DAY))
        await w.finish(job, OutcomeKind.PERMANENT)
        assert await row(w, job, "state") == ("failed",)

    async def test_what_is_given_up_is_dropped(self, w: World) -> None:
        (job,) = (await w.accept(CARD)).jobs
        await w.finish(job, OutcomeKind.TEMPORARY)
        assert await w.store.write(lambda tx: queue_by_hand.drop(tx, [job.delivery_id], w.now)) == [job.delivery_id]
        assert await row(w, job, "state", "answer") == ("dropped", "dropped by the operator")
        assert await message_states(w) == ["dropped"]
        w.pass_time(DAY)
        assert await claim(w) == []
        assert await w.store.write(lambda tx: queue_by_hand.retry(tx, [job.delivery_id], w.now, w.now)) == []

    async def test_an_attempt_under_way_cannot_be_dropped(self, w: World) -> None:
        (job,) = (await w.accept(CARD)).jobs
        assert await w.store.write(lambda tx: queue_by_hand.drop(tx, [job.delivery_id], w.now)) == []
        await w.finish(job)
        assert await w.store.write(lambda tx: queue_by_hand.drop(tx, [job.delivery_id, 999], w.now)) == []
        assert await message_states(w) == ["forwarded"]

    @pytest.mark.parametrize("by_hand", ["retry", "drop"])
    async def test_a_joined_delivery_follows_its_carrier(self, w: World, by_hand: str) -> None:
        _, mine = await w.shown()
        _, theirs = await w.shown(name="other")
        (job,) = (await w.accept(mine, theirs)).jobs
        await w.finish(job, OutcomeKind.PERMANENT)
        if by_hand == "retry":
            await w.store.write(lambda tx: queue_by_hand.retry(tx, [job.delivery_id], w.now, w.now))
        else:
            await w.store.write(lambda tx: queue_by_hand.drop(tx, [job.delivery_id], w.now))
        expected = "queued" if by_hand == "retry" else "dropped"
        assert await w.rows(select(deliveries.c.state)) == [(expected,), (expected,)]
        assert await message_states(w) == [expected]

    @pytest.mark.parametrize("kind", [OutcomeKind.TEMPORARY, OutcomeKind.PERMANENT])
    async def test_what_a_dropped_one_carries_of_others_goes_on(self, tmp_path: Path, kind: OutcomeKind) -> None:
        names = ("shop", "own", "theirs", "more")
        async with world(
            tmp_path, *(site(name, pool_target("sales@example.com", f"{name}@{TRACK}")) for name in names)
        ) as w:
            shown = [(await w.shown(name=name))[1] for name in names]
            (job,) = (await w.accept(*shown)).jobs
            await w.finish(job, kind)
            await w.store.write(lambda tx: tx.run(_LATER))
            own = {w.site("shop").id, w.site("own").id}
            assert await w.store.write(lambda tx: queue_by_hand.drop(tx, [job.delivery_id], w.now, own)) == [
                job.delivery_id
            ]
            kept = "deferred" if kind is OutcomeKind.TEMPORARY else "failed"
            columns = ("id", "state", "joined_id", "attempts", "next_at", "expires_at", "answer")
            found = await w.rows(select(*(deliveries.c[name] for name in columns)).order_by(deliveries.c.id))
            (_, *first), (_, *second), (third, *rest), (_, *fourth) = found
            assert (first[0], second[:2]) == ("dropped", ["dropped", job.delivery_id])
            assert rest == [kept, None, 1, NOW + 60, NOW + 9 * DAY, f"it is {kind.value}"]
            assert fourth[:2] == [kept, third]
            assert await message_states(w) == [kept]
            await w.store.write(lambda tx: queue_by_hand.retry(tx, [third], w.now, w.now))
            (again,) = await claim(w)
            assert (again.delivery_id, again.attempts, again.recipient, again.data) == (third, 2, shown[2], BODY)
            await w.finish(again)
            states = [state for (state,) in await w.rows(select(deliveries.c.state).order_by(deliveries.c.id))]
            assert states == ["dropped", "dropped", "forwarded", "forwarded"]

    async def test_an_attempt_without_a_result_is_known_of_what_goes_on(self, w: World) -> None:
        _, mine = await w.shown()
        _, theirs = await w.shown(name="other")
        (job,) = (await w.accept(mine, theirs)).jobs
        w.pass_time(CLAIM + 1)
        await w.store.write(lambda tx: queue_by_hand.drop(tx, [job.delivery_id], w.now, {w.site().id}))
        found = await w.rows(select(deliveries.c.state, deliveries.c.possibly_repeated).order_by(deliveries.c.id))
        assert found == [("dropped", 0), ("queued", 1)]
        (again,) = await claim(w)
        assert again.recipient == theirs
