"""What changes while posts wait in memory: what was erased, switched off or mended is not posted as it was.

One attempt is held under way, so that the other letters wait behind it, claimed and read.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from relay.core.hook import Access, HookSettings
from relay.core.site import SiteSettings, Touch
from relay.secrets import Keys
from relay.store import deals, replay, retention, webhooks
from relay.store.attribution import Evidence
from relay.store.engine import Tx
from relay.store.post import PostJob
from relay.store.schema import events, messages, posts
from tests.poster_fixtures import CARD, LOOK, SECRET, Held, posting, until
from tests.store_fixtures import DAY, SHOP, World, hook, world
from tests.webhook_receiver import Post, Receiver, Script, Step, deal
from webapi import replays
from webapi.post import Client, Reply
from webapi.webhooks import Poster

LOOP = asyncio.new_event_loop  # requests to receivers are made on it (webapi/guard.py)

OTHER_SECRET = "whsec_" + "b3RoZXIgc2VjcmV0IG90aGVyIHNlY3JldCBvdGhlciE="


class Waiting:
    """A webhook that takes one letter at a time: the first is under way until :meth:`go_on`, two wait behind it."""

    def __init__(self, w: World, crm: Receiver, keys: Keys, poster: Poster, held: Held) -> None:
        self.w, self.crm, self.keys, self.poster, self._held = w, crm, keys, poster, held
        self.visit = self._address = ""
        self.letters: list[int] = []

    async def begin(self) -> None:
        self.visit, self._address = await self.w.shown()
        self.letters = [await self.letter(str(number)) for number in range(3)]
        await self.crm.wait_for(1)

    async def letter(self, text: str) -> int:
        """A letter that was read and handed over; its id."""
        accepted = await self.w.accept(self._address, body=text.encode(), message_id=f"{text}@x")
        self.poster.submit(await self.w.extract(accepted.message_id, self.poster.claim, text=text))
        return accepted.message_id

    @property
    def hook_id(self) -> int:
        return self.w.site().webhooks[0].id

    async def write(self, verb: Callable[[Tx], Any]) -> None:
        await self.w.store.write(verb)

    async def redefine(self, verb: Callable[[Tx], Any]) -> None:
        await self.w.store.redefine(verb)

    def close_old_place(self) -> None:
        """What is under way is answered 410, everything else 200."""

        async def script(post: Post) -> Step:
            if post.path == "/hook":
                await self._held(post)
                return 410
            return 200

        self._held.step = 410
        self.crm.script = script

    async def go_on(self) -> list[Post]:
        """Everything that is posted from now on."""
        self._held.open()
        await all_posted(self.w)
        return self.crm.posts[1:]


@contextlib.asynccontextmanager
async def shop(
    directory: Path, keys: Keys, script: Script = 200, **settings: Any
) -> AsyncIterator[tuple[World, Receiver]]:
    """A site and the receiver of its webhook."""
    async with Receiver(script) as crm:
        webhook = hook(crm.url, secret=keys.seal(SECRET), settings=HookSettings(**settings))
        async with world(directory, replace(SHOP, webhooks=(webhook,))) as w:
            w.now = time.time()
            yield w, crm


async def all_posted(w: World) -> None:
    await until(w, select(posts.c.id).where(posts.c.state == "waiting"), lambda rows: not rows)


@pytest.fixture
async def waiting(tmp_path: Path, keys: Keys) -> AsyncIterator[Waiting]:
    held = Held()
    async with shop(tmp_path, keys, held, concurrency=1, extras=True) as (w, crm), posting(w, keys) as poster:
        found = Waiting(w, crm, keys, poster, held)
        await found.begin()
        yield found


def texts(found: list[Post]) -> list[str]:
    return [post.json["text"] for post in found]


async def test_without_a_change_they_are_posted_from_memory_in_order(waiting: Waiting) -> None:
    found = await waiting.go_on()
    assert texts(found) == ["1", "2"]
    assert {post.json["visit_id"] for post in found} == {waiting.visit}


class TestErased:
    @pytest.fixture(autouse=True)
    async def forwarded(self, waiting: Waiting) -> None:
        await waiting.write(lambda tx: tx.sql("UPDATE deliveries SET state = 'sent'"))

    async def test_a_letter(self, waiting: Waiting) -> None:
        await waiting.write(lambda tx: retention.erase_message(tx, waiting.letters[1], [waiting.w.site().id]))
        assert texts(await waiting.go_on()) == ["2"]

    async def test_a_sender(self, waiting: Waiting) -> None:
        ((sender,),) = await waiting.w.rows(select(messages.c.sender).distinct())
        await waiting.write(lambda tx: retention.erase_sender(tx, sender))
        await waiting.letter("later")
        assert texts(await waiting.go_on()) == ["later"]

    @pytest.mark.parametrize("browser", [False, True])
    async def test_a_visit(self, waiting: Waiting, browser: bool) -> None:
        shop = waiting.w.site().id
        await waiting.write(lambda tx: retention.erase_visit(tx, shop, waiting.visit, waiting.w.now, browser=browser))
        found = await waiting.go_on()
        assert texts(found) == ["1", "2"]
        assert waiting.visit not in "".join(post.body.decode() for post in found)


class TestOutOfUse:
    async def failed(self, waiting: Waiting, reason: str) -> None:
        assert await waiting.go_on() == []
        rows = await waiting.w.rows(select(posts.c.state, posts.c.answer).order_by(posts.c.id))
        assert rows == [("delivered", ""), ("failed", reason), ("failed", reason)]

    async def test_switched_off(self, waiting: Waiting) -> None:
        hook_id, now = waiting.hook_id, waiting.w.now
        await waiting.redefine(lambda tx: webhooks.switch_off(tx, hook_id, webhooks.BY_HAND, now))
        await self.failed(waiting, webhooks.BY_HAND)

    async def test_removed(self, waiting: Waiting) -> None:
        hook_id, now = waiting.hook_id, waiting.w.now
        await waiting.redefine(lambda tx: webhooks.remove(tx, hook_id, now))
        rows_of = select(posts.c.answer).where(posts.c.state == "failed").distinct()
        assert await waiting.go_on() == []
        assert len(await waiting.w.rows(rows_of)) == 1


class TestChanged:
    async def change(self, waiting: Waiting, url: str, **settings: Any) -> None:
        hook_id = waiting.hook_id
        wanted = webhooks.definition(url, None, "exact", HookSettings(**settings), Access(), waiting.keys.seal)
        await waiting.redefine(lambda tx: webhooks.change(tx, hook_id, wanted))

    async def test_another_url(self, waiting: Waiting) -> None:
        await self.change(waiting, waiting.crm.at("/elsewhere"))
        assert [(post.path, post.json["text"]) for post in await waiting.go_on()] == [
            ("/elsewhere", "1"),
            ("/elsewhere", "2"),
        ]

    async def test_fewer_fields(self, waiting: Waiting) -> None:
        await self.change(waiting, waiting.crm.url, extras=False)
        assert all("attribution" not in post.json for post in await waiting.go_on())
        assert "attribution" in waiting.crm.posts[0].json

    async def test_a_secret_that_was_rotated(self, waiting: Waiting) -> None:
        hook_id, sealed = waiting.hook_id, waiting.keys.seal(OTHER_SECRET)
        await waiting.redefine(lambda tx: webhooks.rotate(tx, hook_id, sealed, waiting.w.now))
        found = await waiting.go_on()
        assert len(found) == 2
        for post in found:
            post.verify(OTHER_SECRET)

    async def test_the_sites_touch(self, waiting: Waiting) -> None:
        """Which visit's source is stated is a setting of the site."""
        await waiting.write(lambda tx: tx.sql("UPDATE visits SET marker = 'changed'"))
        same = hook(waiting.crm.url, secret=waiting.keys.seal(SECRET))
        await waiting.w.declare(replace(SHOP, settings=SiteSettings(touch=Touch.FIRST), webhooks=(same,)))
        assert {post.json["marker"] for post in await waiting.go_on()} == {"changed"}

    async def test_an_attribution_that_was_mended(self, waiting: Waiting, monkeypatch: pytest.MonkeyPatch) -> None:
        """The letter under way goes once more, under the same id: whoever looked again was told that it is posted."""
        monkeypatch.setattr("webapi.webhooks.POLL", LOOK)
        w = waiting.w
        number, _ = await w.shown()
        await w.store.write(
            lambda tx: tx.sql("UPDATE bindings SET visit_id = (SELECT id FROM visits WHERE number = ?)", (number,))
        )
        for letter in waiting.letters:
            await replays.reattribute(w.store, letter, Evidence(DAY), w.now, None)
        first = waiting.letters[0]
        assert await w.store.write(lambda tx: replay.replay(tx, first, None, w.now)) == 1
        found = await waiting.go_on()
        assert sorted(texts(found)) == ["0", "1", "2"]
        assert {post.json["visit_id"] for post in found} == {number}
        before = waiting.crm.posts[0]
        assert before.json["visit_id"] == waiting.visit
        assert before.headers["webhook-id"] in {post.headers["webhook-id"] for post in found}

    async def test_the_deals_number(self, waiting: Waiting) -> None:
        last = waiting.letters[-1]
        await waiting.write(lambda tx: deals.set_deal(tx, last, "17", None))
        assert [post.json["deal"]["id"] for post in await waiting.go_on()] == [None, "17"]


class TestOrder:
    async def test_a_letter_that_comes_after_the_change_does_not_overtake(self, waiting: Waiting) -> None:
        first = waiting.letters[0]
        await waiting.write(lambda tx: deals.set_deal(tx, first, "17", None))
        await waiting.write(lambda tx: tx.revise())
        await waiting.letter("3")
        assert texts(await waiting.go_on()) == ["1", "2", "3"]

    async def test_whatever_changes_meanwhile_first_attempts_start_in_order(
        self, tmp_path: Path, keys: Keys, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Letters wait in the store, others are handed over, and everything is revised again and again."""
        begun: list[int] = []
        posts_it = Client.post

        async def noting(client: Client, job: PostJob, now: float) -> Reply:
            begun.append(int(job.message.text or ""))
            return await posts_it(client, job, now)

        monkeypatch.setattr(Client, "post", noting)
        async with shop(tmp_path, keys, concurrency=4) as (w, _):

            async def letter(number: int, claim: str | None) -> list[PostJob]:
                accepted = await w.accept(CARD, body=b"%d" % number, message_id=f"{number}@x")
                return await w.extract(accepted.message_id, claim, text=str(number))

            for number in range(60):
                await letter(number, None)
            async with posting(w, keys) as poster:
                for number in range(60, 120):
                    poster.submit(await letter(number, poster.claim))
                    if number % 3 == 0:
                        await w.store.write(lambda tx: tx.revise())
                await all_posted(w)
        assert begun == list(range(120))


async def test_a_reply_that_waits_in_memory_says_the_deal_that_the_answer_to_its_thread_named(
    tmp_path: Path, keys: Keys
) -> None:
    held = Held(deal("D-1", "https://crm.example/D-1"))
    async with shop(tmp_path, keys, held, concurrency=1, extras=True) as (w, crm), posting(w, keys) as poster:
        for number, answers in ((0, None), (1, "0@x")):
            accepted = await w.accept(CARD, body=b"%d" % number, message_id=f"{number}@x", in_reply_to=answers)
            poster.submit(await w.extract(accepted.message_id, poster.claim, text=str(number)))
        await crm.wait_for(1)
        held.open()
        await all_posted(w)
    assert [(post.json["text"], post.json["deal"]["id"]) for post in crm.posts] == [("0", None), ("1", "D-1")]


async def test_a_410_from_where_the_webhook_was_does_not_end_it_where_it_is_now(waiting: Waiting) -> None:
    waiting.close_old_place()
    await TestChanged().change(waiting, waiting.crm.at("/new"), concurrency=1)
    found = await waiting.go_on()
    assert [post.path for post in waiting.crm.posts[:1]] == ["/hook"]
    assert sorted(texts(found)) == ["0", "1", "2"]
    assert {post.path for post in found} == {"/new"}
    assert waiting.w.site().webhooks[0].enabled


async def test_what_is_read_again_was_no_attempt(waiting: Waiting) -> None:
    await TestChanged().change(waiting, waiting.crm.at("/elsewhere"))
    await waiting.go_on()
    assert await waiting.w.rows(select(posts.c.attempts, events.c.state).join(events)) == [(1, "posted")] * 3
