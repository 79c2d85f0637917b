"""From an extracted message to its posts: conditions, claims, what an attempt changes, replay."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from relay.core.attribution import Fill
from relay.core.hook import HookSettings
from relay.core.model import AttributionState
from relay.core.payload import build
from relay.core.site import SiteSettings, Touch
from relay.store import deals, events, queue, replay, sites
from relay.store import posts as post_verbs
from relay.store import webhooks as webhook_verbs
from relay.store.events import SEARCHED
from relay.store.post import ANSWER_KEPT, CLAIM, PostJob, PostResult
from relay.store.post_jobs import find_job
from relay.store.retention import erase_visit
from relay.store.schema import events as event_table
from relay.store.schema import messages, post_attempts, posts, texts, visits, webhooks
from relay.store.visits import Visitor
from tests.store_fixtures import (
    DAY,
    LEASE,
    NOW,
    OTHER,
    SHOP,
    TRACK,
    World,
    hook,
    part,
    pool_target,
    site,
    static,
    world,
)

CARD = f"card@{TRACK}"
PAGE = (
    "https://www.shop.example/new?utm_source=fb&utm_medium=cpc&utm_campaign=windows&utm_term=oak&utm_content=top"
    "&roistat_param_1=one&roistat_param_5=five"
)


@pytest.fixture
async def w(tmp_path: Path) -> AsyncIterator[World]:
    async with world(tmp_path, SHOP, OTHER) as found:
        yield found


async def posted(w: World, *addresses: str, claim: str | None = "poster", **changes: Any) -> list[PostJob]:
    """The jobs of a new message, extracted."""
    accepted = await w.accept(*(addresses or (CARD,)), **changes)
    return await w.extract(accepted.message_id, claim)


async def claim(w: World, who: str = "poster", most: int = 10) -> list[PostJob]:
    due = await w.store.reader.run(post_verbs.DUE_WEBHOOKS, now=w.now)
    return await w.store.write(lambda tx: post_verbs.claim_posts(tx, {webhook: most for (webhook,) in due}, who, w.now))


async def finish(w: World, job: PostJob, state: str = "delivered", **changes: Any) -> bool:
    result = PostResult(job, state, w.now + 5, 200 if state == "delivered" else 503, "answer", w.now, 0.25)
    return await w.store.write(lambda tx: post_verbs.finish_post(tx, replace(result, **changes), w.now))


async def post_states(w: World, *names: str) -> list[tuple[Any, ...]]:
    return await w.rows(select(*(posts.c[name] for name in names or ("state",))).order_by(posts.c.id))


async def event_states(w: World) -> list[tuple[str, str | None]]:
    rows = await w.rows(select(event_table.c.state, event_table.c.reason).order_by(event_table.c.id))
    return [(state, reason) for state, reason in rows]


class TestExtracted:
    async def test_it_records_what_the_message_says(self, w: World) -> None:
        accepted = await w.accept(CARD)
        long = "a" * SEARCHED + "rest"
        await w.extract(accepted.message_id, subject="Привет", text=long, attachments=[part()], partial=True)
        rows = await w.rows(select(messages.c.subject, messages.c.extraction))
        assert rows == [("Привет", "partial")]
        columns = (texts.c.subject, texts.c.addresses, texts.c.head, texts.c.rest, texts.c.indexed)
        assert await w.rows(select(*columns)) == [
            ("Привет", f"ann@example.org ann@example.org {CARD}", "a" * SEARCHED, "rest", 0)
        ]

    async def test_a_message_without_text_or_subject_is_recorded(self, w: World) -> None:
        accepted = await w.accept(f"postmaster@{TRACK}", mail_from="", sender="")
        assert await w.extract(accepted.message_id, subject=None, text=None) == []
        assert await w.rows(select(texts.c.subject, texts.c.head, texts.c.rest)) == [("", "", None)]

    async def test_posts_of_one_event_share_what_they_say_and_have_their_own_webhook(self, w: World) -> None:
        hooks = (
            hook(),
            hook("https://crm.example/b"),
            hook("https://crm.example/c", settings=HookSettings(extras=True)),
        )
        await w.declare(replace(SHOP, webhooks=hooks))
        accepted = await w.accept(CARD)
        first, second, extended = await w.extract(accepted.message_id, "me")
        assert first.message is second.message
        assert (second.hook.url, second.post_id) == ("https://crm.example/b", first.post_id + 1)
        assert (first.extras, second.extras) == (None, None)
        assert extended.extras is not None
        for job in (first, second, extended):
            assert await w.store.write(lambda tx, job=job: find_job(tx, job.post_id, "me")) == job  # type: ignore[misc]

    async def test_webhooks_that_are_passed_over_have_a_post_that_nobody_claims(self, w: World) -> None:
        await w.declare(replace(SHOP, webhooks=(hook(), hook("https://crm.example/b"))))
        accepted = await w.accept(CARD)
        ((number,),) = await w.rows(select(webhooks.c.id).where(webhooks.c.url == "https://crm.example/b"))
        (job,) = await w.extract(accepted.message_id, "me", passed_over=[number])
        assert job.hook.id != number
        assert await w.rows(select(posts.c.webhook_id, posts.c.claim, posts.c.attempts).order_by(posts.c.id)) == [
            (job.hook.id, "me", 1),
            (number, None, 0),
        ]
        only = await w.accept(CARD, body=b"2")
        assert await w.extract(only.message_id, "me", passed_over=[number, job.hook.id]) == []
        assert (await event_states(w))[-1] == ("posted", None)

    async def test_it_happens_once(self, w: World) -> None:
        accepted = await w.accept(CARD)
        assert len(await w.extract(accepted.message_id, "a")) == 1
        assert await w.extract(accepted.message_id, "b") == []
        assert len(await post_states(w)) == 1

    async def test_a_message_erased_meanwhile_is_no_error(self, w: World) -> None:
        assert await w.extract(4711) == []

    async def test_what_waits_is_found_oldest_first(self, w: World) -> None:
        ids = [(await w.accept(CARD, body=b"%d" % i)).message_id for i in range(3)]
        big = (await w.accept(CARD, data=None, file="abc", digest=b"x")).message_id
        await w.extract(ids[0])
        found = await w.store.write(lambda tx: events.unextracted(tx, 0, 2))
        assert found == [(ids[1], b"1", None), (ids[2], b"2", None)]
        assert await w.store.write(lambda tx: events.unextracted(tx, ids[2], 9)) == [(big, None, "abc")]


class TestConditions:
    async def test_what_has_a_visit_is_posted(self, w: World) -> None:
        _, leased = await w.shown()
        assert len(await posted(w, leased)) == 1
        assert await event_states(w) == [("posted", None)]

    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"bounce": True}, "bounce"),
            ({"mail_from": ""}, "bounce"),
            ({"automatic": "list"}, "automatic mail (list)"),
        ],
    )
    async def test_what_fails_a_condition_is_withheld_with_the_reason(
        self, w: World, changes: dict[str, Any], reason: str
    ) -> None:
        assert await posted(w, CARD, **changes) == []
        assert await event_states(w) == [("withheld", reason)]
        assert await post_states(w, "state", "answer", "attempts") == [("withheld", reason, 0)]

    async def test_without_a_visit_it_is_withheld(self, w: World) -> None:
        await posted(w, f"help@{TRACK}")
        assert await event_states(w) == [("withheld", "no visit")]

    async def test_a_site_may_ask_for_less(self, tmp_path: Path) -> None:
        lenient = {"require_visit": False, "refuse_bounces": False, "refuse_automatic": False}
        async with world(tmp_path, replace(SHOP, conditions=lenient)) as w:
            assert len(await posted(w, f"help@{TRACK}", bounce=True, automatic="list")) == 1

    async def test_with_send_to_crm_off_nothing_is_posted(self, w: World) -> None:
        shop = w.site().id
        await w.store.redefine(lambda tx: sites.switch(tx, shop, tracking=True, send_to_crm=False))
        await posted(w)
        assert await event_states(w) == [("withheld", "Send to CRM is off")]

    async def test_without_a_webhook_it_says_so(self, tmp_path: Path) -> None:
        async with world(tmp_path, replace(SHOP, webhooks=(hook(enabled=False),))) as w:
            await posted(w)
            assert await event_states(w) == [("withheld", "no webhook")]

    async def test_each_site_posts_to_its_own_webhooks(self, w: World) -> None:
        _, mine = await w.shown()
        _, theirs = await w.shown(name="other")
        jobs = await posted(w, mine, theirs)
        assert [(job.hook.url, job.message.email_to) for job in jobs] == [
            ("https://crm.example/hook", mine),
            ("https://crm.other.example/hook", theirs),
        ]

    async def test_every_webhook_of_a_site_gets_the_event_under_one_id(self, tmp_path: Path) -> None:
        two = replace(SHOP, webhooks=(hook(), hook("https://bi.example/hook")))
        async with world(tmp_path, two) as w:
            one, other = await posted(w)
            assert one.uid == other.uid
            assert (one.hook.url, other.hook.url) == ("https://crm.example/hook", "https://bi.example/hook")


class TestJob:
    async def test_it_holds_the_message_and_the_stated_visit(self, w: World) -> None:
        bound = await w.bind(page=PAGE, referrer="https://fb.com/", google_client_id="GA1.2", params={"2": "two"})
        leased = bound.substitutes[w.target().id]
        accepted = await w.accept(leased)
        (job,) = await w.extract(accepted.message_id, "poster", text="x" * SEARCHED + "y", attachments=[part()])
        assert (job.claim, job.attempts, job.hook.secret, job.created_at) == ("poster", 1, "sealed", NOW)
        assert job.parts == (part(),)
        assert build(job.message, job.visit, job.attribution) == {
            "id": str(accepted.message_id),
            "email_id": str(accepted.message_id),
            "visit_id": bound.visit,
            "subject": "Hi",
            "text": "x" * SEARCHED + "y",
            "email_from": "ann@example.org",
            "email_to": leased,
            "attachments": [],
            "referrer": "fb.com",
            "marker": "fb_cpc_windows",
            "city": None,
            "country": None,
            "ip": "192.0.2.7",
            "first_visit": bound.visit,
            "domain": "www.shop.example",
            "landing_page": PAGE.removeprefix("https://"),
            "utm_source": "fb",
            "utm_medium": "cpc",
            "utm_campaign": "windows",
            "utm_term": "oak",
            "utm_content": "top",
            "roistat_param_1": "one",
            "roistat_param_2": "two",
            "roistat_param_3": None,
            "roistat_param_4": None,
            "roistat_param_5": "five",
            "google_client_id": "GA1.2",
            "source_level_1": "fb",
            "source_level_2": "cpc_windows",
        }

    async def test_a_static_substitute_states_its_label(self, w: World) -> None:
        (job,) = await posted(w)
        assert job.visit is not None
        assert (job.visit.number, job.visit.marker) == ("", "card")

    async def test_a_claimed_number_states_no_visit(self, w: World) -> None:
        (job,) = await posted(w, f"help+4242@{TRACK}")
        assert (job.visit, job.attribution.state, job.attribution.number) == (None, AttributionState.CLAIMED, "4242")

    @pytest.mark.parametrize(("fill", "stated"), [("exact", False), ("inferred", False), ("likely", True)])
    async def test_a_likely_visit_is_stated_only_where_the_webhook_asks_for_it(
        self, tmp_path: Path, fill: Fill, stated: bool
    ) -> None:
        shop = site("shop", pool_target("sales@example.com", CARD), webhooks=(hook(fill=fill),))
        async with world(tmp_path, shop) as w:
            await w.shown()
            w.pass_time(LEASE + 600)
            latest, leased = await w.shown()
            (job,) = await posted(w, leased)
            assert job.attribution.state is AttributionState.LIKELY
            assert sum(candidate.probability for candidate in job.attribution.candidates) == pytest.approx(1, abs=1e-3)
            assert (job.visit.number if job.visit else None) == (latest if stated else None)

    async def test_the_job_from_the_store_is_the_job_from_memory(self, w: World) -> None:
        bound = await w.bind(page=PAGE)
        (job,) = await posted(w, bound.substitutes[w.target().id])
        await w.store.write(lambda tx: post_verbs.release_posts(tx, [job]))
        assert await claim(w) == [job]


class TestTouch:
    """Whose source is stated, of the visits of one browser: the site's setting says."""

    EXTENDED = replace(SHOP, webhooks=(hook(settings=HookSettings(extras=True)),))
    SOURCE = (
        *("marker", "utm_source", "referrer", "landing_page", "roistat_param_1", "source_level_1", "source_level_2"),
        "channel",
    )
    FIRST = (
        "ads_google",
        "g",
        "news.example/a",
        "www.shop.example/one?rs=ads_google&utm_source=g",
        "1",
        "ads",
        "google",
        "campaign",
    )
    SECOND = (
        *("mail_x_y", "m", None, "www.shop.example/two?rs=mail_x_y&utm_source=m&utm_medium=email", "2", "mail", "x_y"),
        "email",
    )
    THIRD = (None, None, None, "www.shop.example/three", None, None, None, "direct")

    async def three_visits(self, w: World) -> tuple[int, str, str]:
        """A campaign, another one, and a direct visit that writes: (message, first number, last number)."""
        first = last = None
        for page, param, place in (
            ("one?rs=ads_google&utm_source=g", {"1": "1"}, ("192.0.2.1", "Rome")),
            ("two?rs=mail_x_y&utm_source=m&utm_medium=email", {"1": "2"}, ("192.0.2.2", "Oslo")),
            ("three", {}, ("192.0.2.3", "Riga")),
        ):
            w.pass_time(15 * DAY)
            last, leased = await w.shown(
                number=last,
                page=f"https://www.shop.example/{page}",
                referrer="https://news.example/a" if first is None else None,
                params=param,
                google_client_id=place[1],
                visitor=Visitor(*place),
            )
            first = first or last
        assert first is not None
        assert last is not None
        accepted = await w.accept(leased)
        return accepted.message_id, first, last

    async def payload(self, w: World, message_id: int) -> dict[str, object]:
        (job,) = await w.extract(message_id, "poster")
        assert job.extras is not None
        return build(job.message, job.visit, job.attribution) | {"channel": job.extras.channel}

    @pytest.mark.parametrize(
        ("touch", "expected"), [(Touch.FIRST, FIRST), (Touch.LAST_NON_DIRECT, SECOND), (Touch.LAST, THIRD)]
    )
    async def test_the_source_is_of_the_touch_and_the_rest_of_the_visit_itself(
        self, tmp_path: Path, touch: Touch, expected: tuple[str | None, ...]
    ) -> None:
        async with world(tmp_path, replace(self.EXTENDED, settings=SiteSettings(touch=touch))) as w:
            message_id, first, last = await self.three_visits(w)
            payload = await self.payload(w, message_id)
            assert tuple(payload[name] for name in self.SOURCE) == expected
            own = ("visit_id", "first_visit", "ip", "city", "google_client_id", "domain")
            assert tuple(payload[name] for name in own) == (
                last,
                first,
                "192.0.2.3",
                "Riga",
                "Riga",
                "www.shop.example",
            )

    @pytest.mark.parametrize("touch", [Touch.FIRST, Touch.LAST_NON_DIRECT])
    @pytest.mark.parametrize("how", ["erased", "gone by age"])
    async def test_where_that_visit_is_known_no_more_the_stated_one_says_its_own(
        self, tmp_path: Path, touch: Touch, how: str
    ) -> None:
        async with world(tmp_path, replace(self.EXTENDED, settings=SiteSettings(touch=touch))) as w:
            message_id, _, _ = await self.three_visits(w)
            shop = w.site().id
            for (number,) in await w.rows(select(visits.c.number).order_by(visits.c.id).limit(2)):
                if how == "erased":
                    await w.store.write(lambda tx: erase_visit(tx, shop, number, w.now, browser=False))  # noqa: B023
                else:
                    await w.store.write(lambda tx: tx.sql("DELETE FROM visits WHERE number = ?", [number]))  # noqa: B023
            payload = await self.payload(w, message_id)
            assert tuple(payload[name] for name in self.SOURCE) == self.THIRD

    async def test_a_first_visit_that_is_known_no_more_is_nobodys_first_touch(self, tmp_path: Path) -> None:
        """Nor is the visit that came next, of which the one behind it goes on."""
        async with world(tmp_path, self.EXTENDED) as w:
            number = None
            for page in ("?rs=ads_1", "?rs=mail_2"):
                first = "1001" if number is None else None
                number, leased = await w.shown(
                    number=number, first_visit=first, page=f"https://www.shop.example/{page}"
                )
                (job,) = await w.extract((await w.accept(leased)).message_id, "poster")
                assert (job.visit and job.visit.number, job.visit and job.visit.first_visit) == (number, "1001")
                assert job.extras is not None
                assert job.extras.first_touch is None

    async def test_the_first_touch_is_the_first_visits_whatever_the_sites_touch(self, tmp_path: Path) -> None:
        async with world(tmp_path, self.EXTENDED) as w:
            message_id, first, _ = await self.three_visits(w)
            (job,) = await w.extract(message_id, "poster")
            assert job.extras is not None
            assert job.extras.first_touch is not None
            assert (job.extras.first_touch.number, job.extras.first_touch.marker) == (first, "ads_google")

    @pytest.mark.parametrize("touch", list(Touch))
    async def test_a_first_visit_is_its_own_touch(self, tmp_path: Path, touch: Touch) -> None:
        async with world(tmp_path, replace(self.EXTENDED, settings=SiteSettings(touch=touch))) as w:
            _, leased = await w.shown(page="https://www.shop.example/?rs=ads_1")
            payload = await self.payload(w, (await w.accept(leased)).message_id)
            assert payload["marker"] == "ads_1"

    async def test_a_static_substitute_states_its_label_whatever_the_touch(self, tmp_path: Path) -> None:
        async with world(tmp_path, replace(self.EXTENDED, settings=SiteSettings(touch=Touch.FIRST))) as w:
            assert (await self.payload(w, (await w.accept(CARD)).message_id))["marker"] == "card"


class TestClaim:
    async def test_without_a_claim_posts_wait_for_whoever_polls(self, w: World) -> None:
        assert await posted(w, claim=None) == []
        (job,) = await claim(w)
        assert job.attempts == 1
        assert await claim(w, "other") == []

    async def test_it_takes_what_is_due_in_order_up_to_the_capacity(self, w: World) -> None:
        for i in range(5):
            await posted(w, claim=None, body=b"%d" % i)
        first = await claim(w, most=3)
        assert [job.post_id for job in first + await claim(w, most=3)] == [1, 2, 3, 4, 5]

    async def test_nothing_is_due_before_its_time(self, w: World) -> None:
        (job,) = await posted(w)
        await finish(w, job, "waiting", next_at=NOW + 300)
        assert await w.store.reader.run(post_verbs.NEXT_POST, now=w.now) == [(NOW + 300,)]
        w.pass_time(299)
        assert await w.store.reader.run(post_verbs.DUE_WEBHOOKS, now=w.now) == []
        w.pass_time(1)
        (again,) = await claim(w)
        assert (again.attempts, again.uid) == (2, job.uid)

    async def test_the_next_post_is_nothing_when_nothing_waits(self, w: World) -> None:
        assert await w.store.reader.run(post_verbs.NEXT_POST, now=w.now) == [(None,)]

    async def test_a_claim_that_ended_is_taken_over(self, w: World) -> None:
        (job,) = await posted(w)
        w.pass_time(CLAIM + 1)
        (taken,) = await claim(w, "other")
        assert (taken.post_id, taken.attempts) == (job.post_id, 2)

    async def test_a_start_voids_the_claims_that_a_crash_left(self, w: World) -> None:
        (job,) = await posted(w)
        assert await w.store.write(lambda tx: post_verbs.void_post_claims(tx, w.now)) == 1
        (again,) = await claim(w, "after")
        assert (again.uid, again.attempts) == (job.uid, 1)  # nobody knows whether the receiver heard of it
        assert not await finish(w, job)

    async def test_what_was_planned_by_a_wrong_clock_is_due_soon_and_not_all_at_once(self, w: World) -> None:
        for number in range(3):
            (job,) = await posted(w, body=b"%d" % number)
            await finish(w, job, "waiting", next_at=NOW + 365 * DAY)
        await w.store.write(lambda tx: post_verbs.void_post_claims(tx, w.now))
        due = [row[0] - w.now for row in await post_states(w, "next_at")]
        assert len(set(due)) == 3
        assert all(0 <= one < post_verbs.SPREAD / post_verbs.PACE for one in due)

    async def test_what_waits_for_its_first_attempt_is_not_hastened(self, w: World) -> None:
        """A replay that is planned for later began between the two looks."""
        (job,) = await posted(w)
        await w.store.write(lambda tx: post_verbs.release_posts(tx, [job]))
        await w.store.write(lambda tx: tx.sql("UPDATE posts SET next_at = ?", (NOW + 50,)))
        await w.store.write(lambda tx: post_verbs.hasten(tx, [job.post_id], NOW, NOW))
        assert await post_states(w, "attempts", "next_at") == [(0, NOW + 50)]

    async def test_a_released_claim_was_no_attempt(self, w: World) -> None:
        (job,) = await posted(w)
        await w.store.write(lambda tx: post_verbs.release_posts(tx, [replace(job, claim="thief")]))
        assert await claim(w, "other") == []
        await w.store.write(lambda tx: post_verbs.release_posts(tx, [job]))
        (again,) = await claim(w, "other")
        assert again.attempts == 1


class TestFinish:
    async def test_success_is_recorded_with_its_attempt(self, w: World) -> None:
        (job,) = await posted(w)
        w.pass_time(1)
        assert await finish(w, job, answer="x" * (ANSWER_KEPT + 1))
        assert await post_states(w, "state", "status", "finished_at", "claim") == [("delivered", 200, NOW + 1, None)]
        columns = (post_attempts.c.started_at, post_attempts.c.duration, post_attempts.c.status, post_attempts.c.answer)
        assert await w.rows(select(*columns)) == [(NOW + 1, 0.25, 200, "x" * ANSWER_KEPT)]

    async def test_a_lost_claim_changes_nothing(self, w: World) -> None:
        (job,) = await posted(w)
        w.pass_time(CLAIM + 1)
        await claim(w, "other")
        assert not await finish(w, job, deal=("17", None))
        assert await post_states(w, "state", "claim") == [("waiting", "other")]
        assert await w.rows(select(event_table.c.deal_id)) == [(None,)]
        assert await w.rows(select(post_attempts.c.id)) == []

    async def test_the_answers_deal_becomes_the_messages(self, w: World) -> None:
        (job,) = await posted(w)
        await finish(w, job, deal=("17", "https://crm.example/17"))
        assert await w.rows(select(event_table.c.deal_id, event_table.c.deal_url)) == [("17", "https://crm.example/17")]
        assert await w.store.write(lambda tx: deals.set_deal(tx, job.message_id, "18", None)) == 1
        assert await w.rows(select(event_table.c.deal_id, event_table.c.deal_url)) == [("18", None)]
        assert not await w.store.write(lambda tx: deals.set_deal(tx, 999, "18", None))

    async def test_a_failing_event_holds_nothing_back(self, w: World) -> None:
        (failing,) = await posted(w)
        await posted(w, body=b"next", claim=None)
        await finish(w, failing, "waiting", next_at=NOW + 3600)
        (other,) = await claim(w)
        assert other.post_id != failing.post_id


class TestGone:
    REASON = "the receiver answered 410 Gone"

    async def test_it_disables_the_webhook_and_fails_what_waits_for_it(self, w: World) -> None:
        (job,) = await posted(w)
        await posted(w, body=b"next", claim=None)
        await finish(w, job, "failed", disable_webhook=self.REASON)
        query = select(webhooks.c.enabled, webhooks.c.disabled_reason).where(webhooks.c.id == job.hook.id)
        assert await w.rows(query) == [(0, self.REASON)]
        assert await post_states(w, "state", "answer") == [("failed", "answer"), ("failed", self.REASON)]

    async def test_what_comes_later_fails_for_it_and_others_get_it(self, w: World) -> None:
        (gone,) = await posted(w)
        await finish(w, gone, "failed", disable_webhook=self.REASON)
        assert await posted(w, body=b"later") == []
        assert (await event_states(w))[-1] == ("withheld", self.REASON)
        assert (await post_states(w, "state", "answer", "attempts"))[-1] == ("failed", self.REASON, 0)
        await posted(w, f"help@{TRACK}", body=b"no visit")
        assert (await post_states(w, "state", "answer"))[-1] == ("withheld", "no visit")
        shop = w.site().id
        await w.store.redefine(lambda tx: webhook_verbs.add(tx, shop, hook("https://bi.example/"), w.now))
        (other,) = await posted(w, body=b"both")
        assert (await event_states(w))[-1] == ("posted", None)
        assert (await post_states(w, "webhook_id", "state"))[-2:] == [
            (gone.hook.id, "failed"),
            (other.hook.id, "waiting"),
        ]

    async def test_what_is_under_way_then_comes_to_its_own_end(self, w: World) -> None:
        (gone,) = await posted(w)
        (fine,) = await posted(w, body=b"1")
        (unlucky,) = await posted(w, body=b"2")
        await finish(w, gone, "failed", disable_webhook=self.REASON)
        assert await finish(w, fine)
        assert await finish(w, unlucky, "waiting")
        assert await post_states(w) == [("failed",), ("delivered",), ("failed",)]

    async def test_what_was_given_back_after_it_is_not_posted(self, w: World) -> None:
        (gone,) = await posted(w)
        (other,) = await posted(w, body=b"1")
        await finish(w, gone, "failed", disable_webhook=self.REASON)
        await w.store.write(lambda tx: post_verbs.release_posts(tx, [other]))
        assert await claim(w) == []
        assert await post_states(w, "state", "answer") == [("failed", "answer"), ("failed", self.REASON)]

    async def test_other_webhooks_go_on(self, w: World) -> None:
        _, mine = await w.shown()
        _, theirs = await w.shown(name="other")
        gone, other = await posted(w, mine, theirs)
        await finish(w, gone, "failed", disable_webhook=self.REASON)
        assert await finish(w, other, "waiting")
        w.pass_time(5)
        assert [job.post_id for job in await claim(w)] == [other.post_id]


class TestReplay:
    async def replay(self, w: World, message_id: int, allowed: list[int] | None = None) -> int:
        return await w.store.write(lambda tx: replay.replay(tx, message_id, allowed, w.now))

    async def test_it_posts_again_under_the_same_id(self, w: World) -> None:
        (job,) = await posted(w)
        await finish(w, job)
        w.pass_time(3600)
        assert await self.replay(w, job.message_id) == 1
        (again,) = await claim(w)
        assert (again.uid, again.attempts, again.post_id) == (job.uid, 1, job.post_id)

    async def test_it_posts_what_the_conditions_had_withheld(self, w: World) -> None:
        accepted = await w.accept(f"help@{TRACK}")
        await w.extract(accepted.message_id)
        assert await event_states(w) == [("withheld", "no visit")]
        assert await self.replay(w, accepted.message_id) == 1
        assert await event_states(w) == [("posted", None)]
        assert len(await claim(w)) == 1

    async def test_what_is_under_way_is_not_posted_twice(self, w: World) -> None:
        (job,) = await posted(w)
        assert await self.replay(w, job.message_id) == 1
        assert await claim(w, "other") == []
        assert await finish(w, job)

    async def test_only_the_sites_that_the_caller_may_see_are_replayed(self, w: World) -> None:
        _, mine = await w.shown()
        _, theirs = await w.shown(name="other")
        jobs = await posted(w, mine, theirs)
        for job in jobs:
            await finish(w, job)
        assert await self.replay(w, jobs[0].message_id, [w.site("other").id]) == 1
        assert [job.message.email_to for job in await claim(w)] == [theirs]
        assert await self.replay(w, jobs[0].message_id, []) == 0

    async def test_a_message_not_read_yet_or_unknown_has_nothing_to_replay(self, w: World) -> None:
        accepted = await w.accept(CARD)
        assert await self.replay(w, accepted.message_id) == 0
        assert await self.replay(w, 999) == 0

    async def test_a_webhook_added_since_gets_it_too(self, w: World) -> None:
        (job,) = await posted(w)
        await finish(w, job)
        shop = w.site().id
        await w.store.write(lambda tx: webhook_verbs.add(tx, shop, hook("https://new.example/"), w.now))
        assert await self.replay(w, job.message_id) == 2
        assert {found.hook.url for found in await claim(w)} == {"https://crm.example/hook", "https://new.example/"}


async def test_send_to_crm_off_ends_what_is_to_come_and_not_what_waits(w: World) -> None:
    (waits,) = await posted(w)
    await finish(w, waits, "waiting", next_at=w.now)
    shop = w.site().id
    await w.store.redefine(lambda tx: sites.switch(tx, shop, tracking=True, send_to_crm=False))
    await posted(w, body=b"later")
    assert [job.post_id for job in await claim(w)] == [waits.post_id]


async def test_what_was_given_back_after_its_webhook_was_removed_fails_for_that(w: World) -> None:
    (job,) = await posted(w)
    await w.store.redefine(lambda tx: webhook_verbs.remove(tx, job.hook.id, w.now))
    await w.store.write(lambda tx: post_verbs.release_posts(tx, [job]))
    assert await claim(w) == []
    assert await post_states(w, "state", "answer") == [("failed", "the webhook was removed")]


async def test_a_removed_site_posts_nothing_more(w: World) -> None:
    (job,) = await posted(w)
    await posted(w, body=b"1", claim=None)
    await w.declare(OTHER)
    assert await post_states(w, "state", "answer") == [("waiting", None), ("failed", "the webhook was removed")]
    assert await finish(w, job, "waiting")
    assert (await post_states(w))[0] == ("failed",)
    await posted(w, body=b"2")
    assert (await event_states(w))[-1][0] == "withheld"


async def test_a_retired_card_states_nothing(tmp_path: Path) -> None:
    """It forwards without attribution, so neither the CRM nor the mailbox is told of a source."""
    lenient = site(
        "shop",
        pool_target(),
        statics=(static(CARD),),
        conditions={"require_visit": False, "refuse_bounces": True, "refuse_automatic": True},
        webhooks=(hook(),),
    )
    async with world(tmp_path, lenient) as w:
        await w.declare(replace(lenient, statics=()))
        (job,) = await posted(w)
        assert job.attribution.state is AttributionState.NONE
        assert job.visit is None
        assert (await w.accept(CARD, body=b"1")).jobs[0].source is None
        await w.accept(CARD, body=b"2", claim=None)
        (found,) = await w.store.write(lambda tx: queue.claim_due(tx, {"example.com": 1}, "me", w.now))
        assert found.source is None
