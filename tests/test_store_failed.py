"""message.failed: a delivery is held, and whoever asks for it is told why."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import select

from relay.core.model import OutcomeKind
from relay.store import queue, queue_by_hand, sites
from relay.store.messages import Accepted
from relay.store.schema import deliveries
from tests.post_fixtures import asking, claim, event_rows, post_rows
from tests.store_fixtures import DAY, NOW, OTHER, SHOP, TRACK, World, hook, world

CARD, THEIRS = f"card@{TRACK}", "other1@track.other.example"
FAILED = "message.failed"
FAILURE = {
    "recipient": CARD,
    "forward_to": "sales@example.com",
    "code": 550,
    "answer": "it is permanent",
    "host": "mx.example.com[192.0.2.1]:25",
}


@pytest.fixture
async def w(tmp_path: Path) -> AsyncIterator[World]:
    async with world(
        tmp_path, replace(SHOP, webhooks=(asking(),)), replace(OTHER, webhooks=(hook("https://o/"),))
    ) as w:
        yield w


async def held(w: World, *addresses: str, body: bytes = b"held") -> Accepted:
    """A letter that was read and whose deliveries all failed for good."""
    accepted = await w.accept(*(addresses or (CARD,)), body=body)
    await w.extract(accepted.message_id)
    for job in accepted.jobs:
        await w.finish(job, OutcomeKind.PERMANENT)
    return accepted


async def failures(w: World) -> list[tuple[str, str, str | None]]:
    return await event_rows(w, "uid", "state", "reason", kind=FAILED)


async def test_it_says_which_delivery_failed_and_what_the_next_hop_said(w: World) -> None:
    accepted = await held(w)
    received, failed = await claim(w)
    assert received.extras is None
    assert failed.extras is not None
    assert (failed.extras.event, failed.extras.data) == (FAILED, {"failure": FAILURE})
    assert (failed.message_id, failed.created_at) == (accepted.message_id, NOW)
    assert failed.uid != received.uid


@pytest.mark.parametrize("kind", [OutcomeKind.DELIVERED, OutcomeKind.TEMPORARY, OutcomeKind.AMBIGUOUS])
async def test_what_is_not_held_has_not_failed(w: World, kind: OutcomeKind) -> None:
    (job,) = (await w.accept(CARD)).jobs
    await w.finish(job, kind)
    assert await failures(w) == []


async def test_a_lost_claim_tells_nobody(w: World) -> None:
    (job,) = (await w.accept(CARD)).jobs
    assert not await w.finish(replace(job, claim="thief"), OutcomeKind.PERMANENT)
    assert await failures(w) == []


async def test_where_nobody_asks_there_is_no_event(w: World) -> None:
    await held(w, THEIRS)
    assert await failures(w) == []


async def test_only_webhooks_that_ask_get_it(tmp_path: Path) -> None:
    shop = replace(SHOP, webhooks=(hook(), asking(FAILED, url="https://alarm.example/")))
    async with world(tmp_path, shop) as w:
        await held(w)
        found = {(job.hook.url, job.extras.event if job.extras else None) for job in await claim(w)}
        assert found == {("https://crm.example/hook", None), ("https://alarm.example/", FAILED)}


async def test_it_waits_until_the_letter_is_read(w: World) -> None:
    accepted = await w.accept(CARD)
    await w.finish(accepted.jobs[0], OutcomeKind.PERMANENT)
    assert [state for _, state, _ in await failures(w)] == ["waiting"]
    assert await claim(w) == []
    jobs = await w.extract(accepted.message_id, "poster", subject="Read")
    assert [job.extras.event if job.extras else None for job in jobs] == [None, FAILED]
    assert {job.message.subject for job in jobs} == {"Read"}


async def test_both_sites_of_one_delivery_are_told_their_own(tmp_path: Path) -> None:
    """The second site's delivery is carried by the first's, and fails with it."""
    other = replace(OTHER, webhooks=(asking(url="https://other/"),))
    async with world(tmp_path, replace(SHOP, webhooks=(asking(),)), other) as w:
        accepted = await w.accept(CARD, THEIRS)
        (job,) = accepted.jobs
        await w.extract(accepted.message_id)
        await w.finish(job, OutcomeKind.PERMANENT)
        told = {job.hook.url: job.extras.data for job in await claim(w) if job.extras}
        assert told == {
            "https://crm.example/hook": {"failure": FAILURE},
            "https://other/": {"failure": FAILURE | {"recipient": THEIRS}},
        }
        assert len({uid for uid, _, _ in await failures(w)}) == 2


async def test_failing_twice_is_two_events_with_ids_of_their_own(w: World) -> None:
    await held(w)
    w.pass_time(DAY)
    ids = [row[0] for row in await w.rows(select(deliveries.c.id))]
    await w.store.write(lambda tx: queue_by_hand.retry(tx, ids, w.now, w.now + DAY))
    (job,) = await w.store.write(lambda tx: queue.claim_due(tx, {"example.com": 1}, "again", w.now))
    await w.finish(job, OutcomeKind.PERMANENT)
    found = await event_rows(w, "uid", "created_at", kind=FAILED)
    assert [created for _, created in found] == [NOW, NOW + DAY]
    assert len({uid for uid, _ in await event_rows(w, "uid", "type")}) == 3


async def test_each_delivery_that_fails_is_an_event(w: World) -> None:
    await held(w, CARD, f"help+4242@{TRACK}")
    told = [json.loads(data)["failure"]["recipient"] for (data,) in await event_rows(w, "data", kind=FAILED)]
    assert told == [CARD, f"help+4242@{TRACK}"]


async def test_of_the_operators_mail_no_site_is_told(w: World) -> None:
    await held(w, f"postmaster@{TRACK}")
    assert await event_rows(w) == []
    assert await post_rows(w) == []


async def test_no_condition_keeps_it_back(tmp_path: Path) -> None:
    """Nobody asked for a deal: somebody asked to know that a letter did not arrive."""
    strict = asking(FAILED, conditions={"min_size": 10_000, "subject": "never"})
    async with world(tmp_path, replace(SHOP, webhooks=(strict,))) as w:
        await held(w, f"help@{TRACK}")
        assert [state for _, state, _ in await failures(w)] == ["posted"]


async def test_with_send_to_crm_off_it_is_withheld(w: World) -> None:
    shop = w.site().id
    await w.store.redefine(lambda tx: sites.switch(tx, shop, tracking=True, send_to_crm=False))
    await held(w)
    assert [(state, reason) for _, state, reason in await failures(w)] == [("withheld", "Send to CRM is off")]
