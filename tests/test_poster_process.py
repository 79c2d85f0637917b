"""The poster in its process: a real store, a real process, a real receiver."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import socket
import struct
import termios
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import pytest
import structlog
from sqlalchemy import select

from relay.child import Child, popen
from relay.core.backoff import WEBHOOK_DELAYS
from relay.pace import Pace
from relay.secrets import Keys
from relay.store.edition import Edition
from relay.store.engine import StoreUnavailable
from relay.store.posts import UNREADABLE
from relay.store.schema import posts
from tests.poster_fixtures import SECRET, Held, jobs, until, until_recorded
from tests.poster_fixtures import posting as here
from tests.store_fixtures import DAY, SHOP, World, hook
from tests.webhook_receiver import Receiver
from webapi import poster_process as module
from webapi.breaker import FAILING, Standing
from webapi.poster_frames import Answered, Ask, Settings
from webapi.poster_process import PosterProcess
from webapi.stored_posts import StoredPosts

LOOP = asyncio.new_event_loop  # requests to receivers are made on it (webapi/guard.py)

#: Seconds for anything that should happen soon. Reached only when a test fails.
PATIENCE = 30.0
LOOK = 0.01


def made(w: World, keys: Keys, pace: Pace | None = None) -> PosterProcess:
    settings = Settings(keys, "https://relay.example/", DAY, True, ("error", "json"))
    return PosterProcess(w.store, settings, time.time, pace)


@contextlib.asynccontextmanager
async def posting(w: World, keys: Keys) -> AsyncIterator[PosterProcess]:
    poster = made(w, keys)
    await poster.start()
    try:
        await seen(lambda: poster.claim is not None)
        yield poster
    finally:
        await poster.close(PATIENCE)


async def seen(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not done():
            await asyncio.sleep(LOOK)


async def handed(w: World, poster: PosterProcess, count: int, subject: str = "") -> None:
    """As extraction does it, ``count`` letters."""
    poster.submit(await jobs(w, count, poster.claim, subject=subject))


async def test_what_is_handed_over_is_posted_in_order_and_recorded_but_for_jobs_of_a_run_that_is_over(
    w: World, keys: Keys, crm: Receiver
) -> None:
    async with posting(w, keys) as poster:
        poster.submit(await jobs(w, 1, "an earlier run"))
        await handed(w, poster, 5)
        rows = await until_recorded(w, 5)
        await seen(lambda: poster.tally.outcomes == {"delivered": 5})
    assert rows == [("waiting", None, None)] + [("delivered", 200, "")] * 5
    assert [post.json["text"] for post in crm.posts] == [str(number) for number in range(5)]


async def test_what_waits_in_the_store_is_found_at_the_start_and_after_a_wake_up(
    w: World, keys: Keys, crm: Receiver
) -> None:
    await jobs(w, 2)
    async with posting(w, keys) as poster:
        await until_recorded(w, 2)
        await jobs(w, subject="later")
        poster.wake()
        await until_recorded(w, 3)


async def test_until_it_has_looked_nothing_is_claimed_for_it_and_newer_posts_follow_older_ones(
    w: World, keys: Keys, crm: Receiver
) -> None:
    poster = made(w, keys)
    assert poster.claim is None
    webhook = w.site().webhooks[0].id
    await jobs(w, 2)
    poster.submit([], {webhook})  # as extraction tells of posts that it left in the store
    poster.wake()
    await poster.start()
    await seen(lambda: poster.claim is not None)
    await handed(w, poster, 2, "later")
    await until_recorded(w, 4)
    await poster.close(PATIENCE)
    assert [post.json["text"] for post in crm.posts] == ["0", "1"] * 2


async def test_a_killed_process_is_replaced_and_what_was_under_way_is_posted_again_under_its_id(
    w: World, keys: Keys, crm: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAUSE", 0.01)
    crm.script = held = Held()
    with structlog.testing.capture_logs() as logs:
        async with posting(w, keys) as poster:
            await handed(w, poster, 1)
            await crm.wait_for(1)
            first = poster.pid
            assert first is not None
            os.kill(first, signal.SIGKILL)
            await seen(lambda: poster.claim is None)
            held.open()
            assert await until_recorded(w) == [("delivered", 200, "")]
            assert poster.pid not in (None, first)
    assert len({post.headers["webhook-id"] for post in crm.posts}) == 1
    assert len(crm.posts) == 2
    assert await w.rows(select(posts.c.attempts)) == [(1,)]  # what nobody knows of is not counted
    assert "the poster's process ended" in [entry["event"] for entry in logs]


async def test_a_process_that_hangs_is_replaced(
    w: World, keys: Keys, crm: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAUSE", 0.01)
    async with posting(w, keys) as poster:
        monkeypatch.setattr(module, "PATIENCE", 1.0)
        await handed(w, poster, 1)  # from what it says of that on it has a second
        await until_recorded(w, 1)
        first = poster.pid
        assert first is not None
        os.kill(first, signal.SIGSTOP)
        await handed(w, poster, 1, "later")  # lost with it, so found again in the store
        await seen(lambda: poster.claim is None)
        monkeypatch.setattr(module, "PATIENCE", PATIENCE)
        await until_recorded(w, 2)
        assert poster.pid not in (None, first)


async def test_a_daemon_that_stood_still_reads_what_was_said_meanwhile_and_kills_nobody(
    w: World, keys: Keys, crm: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with posting(w, keys) as poster:
        first, found = poster.pid, await jobs(w, 2, poster.claim)
        monkeypatch.setattr(module, "PATIENCE", 2.0)
        poster.submit(found[:1])  # from what it says of that on it has so long
        await seen(lambda: poster.tally.outcomes == {"delivered": 1})
        monkeypatch.setattr(module, "PATIENCE", PATIENCE)
        poster.submit(found[1:])
        time.sleep(2.5)  # nothing here goes on, as after SIGSTOP
        await until_recorded(w, 2)
        assert poster.pid == first
    assert len(crm.posts) == 2


async def test_its_state_is_told(w: World, keys: Keys, crm: Receiver) -> None:
    webhook = w.site().webhooks[0].id
    crm.script = 500
    async with posting(w, keys) as poster:
        assert poster.standing(webhook) == Standing()
        await handed(w, poster, FAILING)
        await seen(lambda: poster.standing(webhook) == Standing(FAILING))
        crm.script = held = Held()
        await handed(w, poster, 1, "later")
        poster.submit([], {webhook})
        await seen(lambda: webhook in poster.backed_up())
        held.open()


async def test_a_copy_that_was_changed_since_is_read_again(w: World, keys: Keys, crm: Receiver) -> None:
    async with posting(w, keys) as poster:
        found = await jobs(w, 1, poster.claim)
        await w.store.redefine(lambda tx: tx.sql("UPDATE webhooks SET url = ?", (crm.at("/moved"),)))
        poster.submit(found)
        await until_recorded(w)
    assert [post.path for post in crm.posts] == ["/moved"]


def unread(poster: PosterProcess) -> int:
    """Octets that the process has not read yet of what it was told."""
    assert poster._child is not None
    descriptor = poster._child.writer.get_extra_info("socket").fileno()
    octets: int = struct.unpack("i", fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4)))[0]
    return octets


async def test_closing_gives_back_what_was_not_begun_and_the_process_ends(w: World, keys: Keys, crm: Receiver) -> None:
    await w.store.redefine(lambda tx: tx.sql("""UPDATE webhooks SET settings = '{"concurrency": 1}'"""))
    crm.script = held = Held()
    async with posting(w, keys) as poster:
        await handed(w, poster, 3)
        await crm.wait_for(1)
        pid = poster.pid
        closing = asyncio.create_task(poster.close(PATIENCE))
        await asyncio.sleep(LOOK)
        assert poster.claim is not None  # extraction is closed before
        while unread(poster):
            await asyncio.sleep(LOOK)
        await asyncio.sleep(10 * LOOK)
        held.open()
        await closing
    rows = await w.rows(select(posts.c.state, posts.c.claim).order_by(posts.c.id))
    assert rows == [("delivered", None), ("waiting", None), ("waiting", None)]
    assert not Path(f"/proc/{pid}").exists()


async def test_closing_while_it_starts_waits_for_nothing(w: World, keys: Keys) -> None:
    poster = made(w, keys)
    await poster.start()
    await seen(lambda: poster.pid is not None)
    pid = poster.pid
    await poster.close(1e6)
    assert not Path(f"/proc/{pid}").exists()


async def test_it_ends_when_the_daemon_is_gone(w: World, keys: Keys) -> None:
    async with posting(w, keys) as poster:
        assert poster._child is not None
        process = poster._child.process
        poster._closing = True
        poster._child.writer.transport.abort()
        async with asyncio.timeout(PATIENCE):
            await asyncio.to_thread(process.wait)


async def test_a_store_that_is_not_there_is_waited_for(
    w: World, keys: Keys, crm: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with posting(w, keys) as poster:
        found = await jobs(w, 1, poster.claim)
        write, failures = w.store.write, [1, 2]

        async def failing(verb: Callable[..., object]) -> object:
            if failures:
                failures.pop()
                raise StoreUnavailable("disk I/O error")
            return await write(verb)

        monkeypatch.setattr(w.store, "write", failing)
        poster.submit(found)
        assert await until_recorded(w) == [("delivered", 200, "")]
    assert len(crm.posts) == 1


async def test_a_verb_that_fails_costs_nothing_else(
    w: World, keys: Keys, crm: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = module.StoredPosts.finish

    async def failing(self: StoredPosts, results: list[object], now: float) -> None:
        if len(results) > 1 or crm.posts[0].headers["webhook-id"] == results[0].job.uid:  # type: ignore[attr-defined]
            raise ValueError("this one cannot be written")
        await finish(self, results, now)  # type: ignore[arg-type]

    monkeypatch.setattr(StoredPosts, "finish", failing)
    with structlog.testing.capture_logs() as logs:
        async with posting(w, keys) as poster:
            await handed(w, poster, 3)
            await until(w, select(posts.c.state), lambda rows: rows.count(("delivered",)) == 2)
            await seen(lambda: sum(poster.tally.outcomes.values()) == 3)
    assert "the poster asked in vain" in [entry["event"] for entry in logs]


async def test_it_may_ask_for_nothing_else(w: World, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    poster = made(w, keys)
    told: list[Answered] = []
    monkeypatch.setattr(poster, "_send", lambda child, message: told.append(message))
    await poster._answer(cast(Child, None), StoredPosts(w.store), Ask(1, "__init__", ()))
    assert told == [Answered(1, failed="ValueError: no method '__init__'")]


async def test_posts_are_left_in_the_store_while_it_reads_nothing(
    w: World, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WAITING", -1)
    poster = made(w, keys)
    await poster.start()
    await seen(lambda: poster._claim is not None)
    assert poster.claim is None
    await poster.close(PATIENCE)


class TestLull:
    async def test_claims_and_results_wait_for_a_good_moment_but_not_a_deal(self, w: World, keys: Keys) -> None:
        lulls: list[str] = []

        async def lull() -> None:
            lulls.append("")

        store = StoredPosts(w.store, lull=lull)
        await jobs(w, 2)
        webhook = w.site().webhooks[0].id
        found = await store.take({webhook: 10}, w.now, ())
        assert (len(found), len(lulls)) == (2, 1)
        result = module.posts.PostResult(found[0], "delivered", w.now, 200, "", w.now, 0.1)
        await store.finish([result], w.now)
        assert len(lulls) == 2
        await store.finish([replace(result, job=found[1], deal=("17", None))], w.now)
        assert len(lulls) == 2


def test_an_edition_is_seen_by_whoever_has_its_descriptor() -> None:
    edition = Edition.new()
    other = Edition(os.dup(edition.descriptor))
    assert other.number == 0
    edition.advance()
    assert (edition.number, other.number) == (1, 1)


async def test_a_process_that_cannot_be_started_is_tried_again(
    w: World, keys: Keys, crm: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAUSE", 0.01)
    start, failures = PosterProcess._popen, [1, 2]

    def failing(self: PosterProcess, channel: int) -> object:
        if failures:
            failures.pop()
            raise OSError("out of memory")
        return start(self, channel)

    monkeypatch.setattr(PosterProcess, "_popen", failing)
    await jobs(w, 1)
    with structlog.testing.capture_logs() as logs:
        async with posting(w, keys):
            await until_recorded(w)
    assert [entry["event"] for entry in logs].count("the poster's process can't be started") == 2


async def test_what_cannot_be_told_ends_the_process_and_is_found_again(
    w: World, keys: Keys, crm: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAUSE", 0.01)
    with structlog.testing.capture_logs() as logs:
        async with posting(w, keys) as poster:
            found = await jobs(w, 1, poster.claim)
            with monkeypatch.context() as patch:
                patch.setattr("webapi.poster_frames.MOST", 10)
                poster.submit(found)
            assert await until_recorded(w) == [("delivered", 200, "")]
    assert "the poster's process was not told" in [entry["event"] for entry in logs]


async def test_what_waits_is_claimed_before_newer_posts_though_the_store_is_away_at_first(
    w: World, keys: Keys, crm: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    await jobs(w, 3)
    take, failures = StoredPosts.take, [1]

    async def failing(self: StoredPosts, *arguments: Any) -> Any:
        if failures:
            failures.pop()
            raise StoreUnavailable("database is locked")
        return await take(self, *arguments)

    monkeypatch.setattr(StoredPosts, "take", failing)
    async with posting(w, keys) as poster:
        await handed(w, poster, 1, "later")
        await until_recorded(w, 4)
    assert [post.json["text"] for post in crm.posts] == ["0", "1", "2", "0"]
    assert not failures


async def test_answers_that_were_told_are_recorded_though_the_process_dies(
    w: World, keys: Keys, crm: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAUSE", 0.01)
    finish, told, go = StoredPosts.finish, asyncio.Event(), asyncio.Event()

    async def slow(self: StoredPosts, *arguments: Any) -> None:
        told.set()
        await go.wait()
        await finish(self, *arguments)

    monkeypatch.setattr(StoredPosts, "finish", slow)
    async with posting(w, keys) as poster:
        await handed(w, poster, 1)
        await told.wait()
        assert poster.pid is not None
        os.kill(poster.pid, signal.SIGKILL)
        await seen(lambda: poster.claim is None)
        go.set()
        await until_recorded(w)
        await seen(lambda: poster.claim is not None)
    assert len(crm.posts) == 1


async def test_many_letters_are_claimed_in_bites(
    w: World, keys: Keys, crm: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("webapi.webhooks.TAKEN", 2)
    sizes: list[int] = []
    take = StoredPosts.take

    async def noting(self: StoredPosts, *arguments: Any) -> Any:
        found = await take(self, *arguments)
        sizes.append(len(found))
        return found

    monkeypatch.setattr(StoredPosts, "take", noting)
    await jobs(w, 7)
    async with here(w, keys, grace=PATIENCE, per_webhook=1):
        await until_recorded(w, 7)
    assert max(sizes) == 2
    assert [post.json["text"] for post in crm.posts] == [str(number) for number in range(7)]


def test_a_module_path_of_ours_goes_before_what_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = popen("relay.store.edition", theirs.fileno(), [], os.environ)
        assert process.wait(PATIENCE) == 0


async def test_its_log_goes_by_the_level_that_is_set(
    w: World, keys: Keys, crm: Receiver, capfd: pytest.CaptureFixture[str]
) -> None:
    async with posting(w, keys) as poster:
        await handed(w, poster, 1)
        await until_recorded(w)
        assert '"event":"post"' not in capfd.readouterr().err
        poster.set_log_level("info")
        await handed(w, poster, 1, "later")
        await until_recorded(w, 2)
    assert capfd.readouterr().err.count('"event":"post"') == 1
    assert poster._settings.log == ("info", "json")  # for the next process


async def test_a_letter_that_cannot_be_read_fails_by_its_schedule_and_holds_no_other_up(
    w: World, keys: Keys, crm: Receiver
) -> None:
    await jobs(w, 3)
    await w.store.write(lambda tx: tx.sql("UPDATE messages SET attachments = '[{' WHERE id = 1"))
    await w.store.write(lambda tx: tx.sql("UPDATE texts SET head = CAST(x'ff' AS TEXT) WHERE message_id = 2"))
    with structlog.testing.capture_logs() as logs:
        async with here(w, keys):
            rows = await until_recorded(w, 3)
    assert [(state, status) for state, status, _ in rows] == [("waiting", None)] * 2 + [("delivered", 200)]
    assert rows[0][2] == "what it says cannot be read: JSONDecodeError"
    assert [post.json["text"] for post in crm.posts] == ["2"]
    assert [(entry["event"], entry["post"]) for entry in logs if "read" in entry["event"]] == [
        ("post can't be read", 1),
        ("post can't be read", 2),
    ]
    assert not [entry for entry in logs if "not claimed" in entry["event"]]
    while rows[0][0] == "waiting":  # to the end of its schedule
        ((w.now,),) = await w.rows(select(posts.c.next_at).where(posts.c.id == 1))
        await StoredPosts(w.store).take({w.site().webhooks[0].id: 1}, w.now, ())
        rows = await w.rows(select(posts.c.state, posts.c.attempts).where(posts.c.id == 1))
    assert rows == [("failed", len(WEBHOOK_DELAYS))]


async def test_a_webhook_that_cannot_be_read_waits_and_the_others_go_on(w: World, keys: Keys, crm: Receiver) -> None:
    secret = keys.seal(SECRET)
    await w.declare(replace(SHOP, webhooks=(hook(crm.at("/ill"), secret=secret), hook(crm.url, secret=secret))))
    await jobs(w, 2)
    (ill,) = (webhook.id for webhook in w.site().webhooks if webhook.url == crm.at("/ill"))
    damage = "UPDATE webhooks SET settings = '{' WHERE id = ?"
    await w.store.write(lambda tx: tx.sql(damage, (ill,)))
    with structlog.testing.capture_logs() as logs:
        async with here(w, keys):
            await until_recorded(w, 2)
            waiting = select(posts.c.next_at, posts.c.attempts, posts.c.claim).where(posts.c.webhook_id == ill)
            rows = await w.rows(waiting)
    assert all(next_at > time.time() + UNREADABLE / 2 for next_at, _, _ in rows)
    assert [row[1:] for row in rows] == [(0, None)] * 2  # it keeps its schedule for when it is mended
    assert [entry["event"] for entry in logs if "read" in entry["event"]] == ["webhook can't be read"]
    assert [post.path for post in crm.posts] == [urlsplit(crm.url).path] * 2


async def test_what_cannot_be_read_at_the_start_keeps_nobody_from_posting(
    w: World, keys: Keys, crm: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    take, failures = StoredPosts.take, [1]

    async def failing(self: StoredPosts, *arguments: Any) -> Any:
        if failures:
            failures.pop()
            raise ValueError("a row that nobody can read")
        return await take(self, *arguments)

    monkeypatch.setattr(StoredPosts, "take", failing)
    await jobs(w, 1)
    with structlog.testing.capture_logs() as logs:
        async with posting(w, keys):
            await until_recorded(w)
    assert "the poster asked in vain" in [entry["event"] for entry in logs]
    assert not failures
