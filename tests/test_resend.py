"""Sending a letter again: in the store (relay/store/resend.py) and over HTTP (webapi/resend.py)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from relay.config import Forward
from relay.core.model import DeliveryState, OutcomeKind
from relay.store import queue, queue_by_hand, retention
from relay.store.engine import Statement
from relay.store.messages import Job
from relay.store.resend import NotAgain, resend
from relay.store.schema import attempts, deliveries, events, messages
from tests.store_fixtures import BODY, DAY, NOW, OTHER, SHOP, TRACK, World, world
from tests.webapi_fixtures import serving

CARD = f"card@{TRACK}"


@pytest.fixture
async def w(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path, SHOP, OTHER) as found:
        yield found


async def again(w: World, delivery_id: int, attempts: int | None = None, sites: set[int] | None = None) -> None:
    await w.store.write(lambda tx: resend(tx, delivery_id, attempts, w.now, w.now + DAY, sites))


async def columns(w: World, *names: str) -> list[tuple[Any, ...]]:
    return await w.rows(select(*(deliveries.c[name] for name in names)).order_by(deliveries.c.id))


async def claimed(w: World) -> list[Job]:
    return await w.store.write(lambda tx: queue.claim_due(tx, {"example.com": 10}, "me", w.now))


async def set_state(w: World, state: DeliveryState) -> None:
    change = Statement(update(deliveries).values(state=state.value))
    await w.store.write(lambda tx: tx.run(change))


async def test_what_was_forwarded_is_sent_again_and_flagged(w: World) -> None:
    (job,) = (await w.accept(CARD)).jobs
    await w.finish(job)
    w.pass_time(30 * DAY)
    await again(w, job.delivery_id)
    assert await columns(w, "state", "next_at", "expires_at", "finished_at", "possibly_repeated") == [
        ("queued", w.now, w.now + DAY, None, 1)
    ]
    assert await w.rows(select(messages.c.state)) == [("queued",)]
    (second,) = await claimed(w)
    assert (second.data, second.attempts) == (BODY, 2)
    await w.finish(second)
    assert await w.rows(select(messages.c.state)) == [("forwarded",)]
    assert len(await w.rows(select(attempts))) == 2


@pytest.mark.parametrize("state", [DeliveryState.FAILED, DeliveryState.DROPPED])
async def test_what_was_held_or_given_up_is_tried_again_and_not_flagged(w: World, state: DeliveryState) -> None:
    (job,) = (await w.accept(CARD)).jobs
    await w.finish(job, OutcomeKind.PERMANENT)
    if state is DeliveryState.DROPPED:
        await w.store.write(lambda tx: queue_by_hand.drop(tx, [job.delivery_id], w.now))
    await again(w, job.delivery_id)
    assert await columns(w, "state", "possibly_repeated", "expires_at") == [("queued", 0, NOW + 5 * DAY)]
    assert len(await claimed(w)) == 1


@pytest.mark.parametrize(
    "state", [DeliveryState.QUEUED, DeliveryState.DEFERRED, DeliveryState.LOOPED, DeliveryState.QUARANTINED]
)
async def test_in_no_other_state_it_is_sent_again(w: World, state: DeliveryState) -> None:
    (job,) = (await w.accept(CARD)).jobs
    await set_state(w, state)
    with pytest.raises(NotAgain):
        await again(w, job.delivery_id)
    assert await columns(w, "state") == [(state.value,)]


async def test_a_click_that_comes_twice_sends_one_copy(w: World) -> None:
    (job,) = (await w.accept(CARD)).jobs
    await w.finish(job)
    await again(w, job.delivery_id, 1)
    (second,) = await claimed(w)
    await w.finish(second)
    with pytest.raises(NotAgain, match="meanwhile"):
        await again(w, job.delivery_id, 1)
    await again(w, job.delivery_id, 2)


@pytest.mark.parametrize("in_file", [False, True])
async def test_without_its_bytes_nothing_is_sent(w: World, in_file: bool) -> None:
    (job,) = (await w.accept(CARD, **({"data": None, "file": "abc"} if in_file else {}))).jobs
    await w.finish(job)
    await again(w, job.delivery_id)
    (second,) = await claimed(w)
    await w.finish(second)
    await w.extract(job.message_id)
    cut = retention.Cut(raw=w.now + 1, messages=0, visits=0, routes=0, visitor_ip=0)
    await w.store.write(lambda tx: retention.sweep(tx, cut, w.now))
    with pytest.raises(NotAgain, match="bytes"):
        await again(w, job.delivery_id)


async def test_there_must_be_such_a_delivery(w: World) -> None:
    with pytest.raises(LookupError):
        await again(w, 999)


async def to_two_sites(w: World, kind: OutcomeKind) -> tuple[int, int]:
    """A letter to one real address by way of two sites: the second's delivery is carried by the first's."""
    _, mine = await w.shown()
    _, theirs = await w.shown(name="other")
    (job,) = (await w.accept(mine, theirs)).jobs
    await w.finish(job, kind)
    return job.delivery_id, (await columns(w, "id"))[1][0]


async def test_a_second_copy_is_one_sites_affair(w: World) -> None:
    carrier, carried = await to_two_sites(w, OutcomeKind.DELIVERED)
    await again(w, carrier)
    assert await columns(w, "state", "possibly_repeated") == [("queued", 1), ("forwarded", 0)]
    (job,) = await claimed(w)
    await w.finish(job, OutcomeKind.PERMANENT)
    assert await columns(w, "state") == [("failed",), ("forwarded",)]
    other = w.site("other").id
    told = await w.rows(select(events.c.type).where(events.c.site_id == other, events.c.type == "delivery.failed"))
    assert told == []
    await again(w, carried)
    assert await columns(w, "state") == [("failed",), ("queued",)]


async def test_what_another_site_carries_with_it_shares_the_new_try(w: World) -> None:
    carrier, _ = await to_two_sites(w, OutcomeKind.PERMANENT)
    await again(w, carrier)
    assert await columns(w, "state") == [("queued",), ("queued",)]
    (job,) = await claimed(w)
    await w.finish(job)
    assert await columns(w, "state") == [("forwarded",), ("forwarded",)]


@pytest.mark.parametrize("state", [DeliveryState.FAILED, DeliveryState.DROPPED])
async def test_what_it_carries_of_others_stays_as_it_is(w: World, state: DeliveryState) -> None:
    carrier, carried = await to_two_sites(w, OutcomeKind.PERMANENT)
    if state is DeliveryState.DROPPED:
        await w.store.write(lambda tx: queue_by_hand.drop(tx, [carrier], w.now))
    own, both = {w.site().id}, {w.site().id, w.site("other").id}
    await again(w, carrier, sites=own)
    assert await columns(w, "state", "joined_id") == [("queued", None), (state.value, None)]
    (job,) = await claimed(w)
    await w.finish(job)
    assert await columns(w, "state") == [("forwarded",), (state.value,)]
    await again(w, carried, sites=both)
    assert await columns(w, "state") == [("forwarded",), ("queued",)]


async def test_of_all_that_are_ones_own_it_is_sent_again_for_all(w: World) -> None:
    carrier, _ = await to_two_sites(w, OutcomeKind.PERMANENT)
    await again(w, carrier, sites={w.site().id, w.site("other").id})
    assert await columns(w, "state", "joined_id") == [("queued", None), ("queued", carrier)]


async def test_what_was_carried_stands_for_itself(w: World) -> None:
    _, carried = await to_two_sites(w, OutcomeKind.DELIVERED)
    await again(w, carried)
    assert await columns(w, "state") == [("forwarded",), ("queued",)]
    (job,) = await claimed(w)
    assert (job.delivery_id, job.data) == (carried, BODY)
    await w.finish(job)
    assert await columns(w, "state", "joined_id") == [("forwarded", None), ("forwarded", None)]


async def test_a_second_click_on_what_was_carried_sends_no_second_copy(w: World) -> None:
    """Its attempts are shown as its carrier's, and go on from there once it stands for itself."""
    _, carried = await to_two_sites(w, OutcomeKind.DELIVERED)
    await again(w, carried, attempts=1)
    (job,) = await claimed(w)
    await w.finish(job)
    with pytest.raises(NotAgain, match="meanwhile"):
        await again(w, carried, attempts=1)
    await again(w, carried, attempts=2)


@pytest.mark.parametrize("given_up", [False, True])
async def test_over_http_it_takes_an_admin_where_a_retry_would(tmp_path: Path, given_up: bool) -> None:
    async with serving(tmp_path) as api:
        (job,) = (await api.letter(CARD, claim="me")).jobs
        await api.w.finish(job, OutcomeKind.PERMANENT)
        if given_up:
            await api.w.store.write(lambda tx: queue_by_hand.drop(tx, [job.delivery_id], api.w.now))
        before = await columns(api.w, "state")
        path = f"/v1/queue/{job.delivery_id}/resend"
        status, problem = await api.call("POST", path, token=await api.token("manager"))
        why = "it was given up" if given_up else "it is held"
        assert (status, problem["detail"]) == (403, f"{why}: to send it again takes the role admin")
        assert (await columns(api.w, "state"), api.woken) == (before, [])
        assert (await api.call("POST", path, token=await api.token("admin")))[0] == 204
        assert await columns(api.w, "state") == [("queued",)]


async def test_over_http_it_takes_a_manager_of_the_site(tmp_path: Path) -> None:
    async with serving(tmp_path, forward=Forward(retry_for="2d")) as api:
        (job,) = (await api.letter(CARD, claim="me")).jobs
        await api.w.finish(job)
        path = f"/v1/queue/{job.delivery_id}/resend"
        for role, sites, status in (("viewer", (), 403), ("manager", ("other",), 404), ("manager", ("shop",), 204)):
            assert (await api.call("POST", path, token=await api.token(role, *sites)))[0] == status
        assert api.woken == ["deliveries"]
        manager = await api.token("manager")
        status, problem = await api.call("POST", path, token=manager)
        assert (status, problem["detail"]) == (409, "it waits to be forwarded")
        for wrong, expected in (
            ("/v1/queue/999/resend", 404),
            ("/v1/queue/x/resend", 404),
            (f"{path}?attempts=x", 400),
        ):
            assert (await api.call("POST", wrong, token=manager))[0] == expected


@pytest.mark.parametrize(("sites", "expected"), [(("shop",), "failed"), ((), "queued")])
async def test_over_http_it_is_sent_again_for_the_callers_sites(
    tmp_path: Path, sites: tuple[str, ...], expected: str
) -> None:
    async with serving(tmp_path) as api:
        carrier, _ = await to_two_sites(api.w, OutcomeKind.PERMANENT)
        token = await api.token("admin", *sites)
        assert (await api.call("POST", f"/v1/queue/{carrier}/resend?attempts=1", token=token))[0] == 204
        assert await columns(api.w, "state") == [("queued",), (expected,)]
