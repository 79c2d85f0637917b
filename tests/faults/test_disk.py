"""A full disk puts mail off and loses none; a failing one is never believed to have written anything."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.faults.injection import injecting, require_strace
from tests.faults.test_kill import settled
from tests.faults.volume import disk_of, fill, tmpfs
from tests.ledger import SOAK, Ledger, seeded
from tests.scenarios.world import DOMAIN, World, letter, unique_letter, world
from tests.smtp_client import Answer, SmtpClient
from tests.smtp_sink import Hang, SinkSession, SmtpSink

pytestmark = pytest.mark.fault

BASE = f"plus@{DOMAIN}"
MIB = 1 << 20
#: Times the disk is filled up and freed.
ROUNDS = 20 if SOAK else 2
#: Seconds within which mail is taken again once there is room: the goal, and a hundred times what it takes.
RESUMED = 5.0
LARGE = letter("large", "A line of text that is not so very long.\r\n" * 50_000)


def bodies(relay: World) -> list[Path]:
    return list((relay.daemon.data_dir / "bodies").iterdir())


async def mail_answer(relay: World) -> Answer:
    """What the daemon says to MAIL."""
    async with await SmtpClient.hello(relay.daemon.smtp_port) as client:
        return await client.command("MAIL FROM:<ann@customer.test>")


async def test_a_nearly_full_disk_puts_new_mail_off_while_all_else_goes_on_and_ends_by_itself(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", 64 * MIB, "a nearly full disk") as disk:
        settings = {"data_dir": str(disk / "data"), "smtp": {"min_free": 16 * MIB}}
        sink = SmtpSink(script={"rcpt": ["450 4.2.1 later"]})
        async with world(tmp_path, settings, sink=sink, start=False) as relay:
            await asyncio.to_thread(relay.daemon.start)
            content = unique_letter()
            waiting = await relay.mail(BASE, content)
            await relay.forwarded(waiting, "deferred")
            filler = fill(disk, 8 * MIB)
            await relay.until(lambda: mail_answer(relay), lambda answer: answer.short == "452 4.3.1")
            await relay.retry_all()
            await relay.arrived(content)
            assert (await relay.bind("sales@example.test"))["addresses"] == {}
            await relay.call("GET", "/v1/messages")
            filler.unlink()
            await relay.until(lambda: mail_answer(relay), lambda answer: answer.code == 250)
            assert (await relay.bind("sales@example.test"))["addresses"]
            relay.daemon.kill()


async def test_a_full_disk_puts_mail_off_and_what_was_acknowledged_before_and_after_is_all_there(
    tmp_path: Path,
) -> None:
    size = (64 + 8 * ROUNDS) * MIB  # what is accepted stays there
    with volume(tmp_path, size) as disk:
        chance = seeded("full disk")
        ledger = Ledger(chance.randrange(10**6))
        settings = {"data_dir": str(disk / "data"), "smtp": {"min_free": 0}}
        async with world(tmp_path, settings, start=False) as relay:
            await asyncio.to_thread(relay.daemon.start)
            resumed = []
            async with asyncio.TaskGroup() as group:
                group.create_task(ledger.send(lambda: relay.daemon.smtp_port))
                for _ in range(ROUNDS):
                    await ledger.wait_for(chance.randrange(5, 30))
                    filler = await asyncio.to_thread(fill, disk, 0)
                    refusals = ledger.put_off.total()
                    await put_off(ledger, relay, refusals + 20)
                    await asyncio.to_thread(filler.unlink)
                    freed = time.monotonic()
                    await ledger.wait_for(1)
                    resumed.append(time.monotonic() - freed)
                ledger.stop()
            again = f"mail taken again {max(resumed):.2f} s at most after there was room"
            print(f"{ROUNDS} times full: {dict(ledger.put_off)}, {again}, {await settled(relay, ledger, Counter())}")
            assert set(ledger.put_off) == {"452 4.3.1"}
            assert max(resumed) < RESUMED
            relay.daemon.kill()


@contextlib.contextmanager
def volume(directory: Path, size: int) -> Iterator[Path]:
    """A disk of so many octets: in the soak a real file system, which keeps a journal and room of its own."""
    if not SOAK:
        with tmpfs(directory / "disk", size, "a full disk") as path:
            yield path
        return
    with disk_of("ext4", directory, "a full disk", size) as disk:
        yield disk.path


async def put_off(ledger: Ledger, relay: World, total: int) -> None:
    """Until the sender has been put off so often in all."""

    async def read() -> int:
        return ledger.put_off.total()

    await relay.until(read, lambda found: found >= total)


async def test_a_large_message_that_fills_the_disk_gets_452_and_leaves_nothing(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", 32 * MIB, "a disk that a message fills") as disk:
        async with world(tmp_path, {"data_dir": str(disk / "data")}, start=False) as relay:
            await asyncio.to_thread(relay.daemon.start)
            await relay.mail(BASE, unique_letter())
            filler = fill(disk, MIB)
            assert (await relay.answer(LARGE, BASE)).short == "452 4.3.1"
            await relay.until(lambda: asyncio.to_thread(bodies, relay), lambda found: not found)
            filler.unlink()
            message = await relay.mail(BASE, LARGE)
            assert await relay.octets("GET", f"/v1/messages/{message}/raw") == LARGE
            relay.daemon.kill()


@pytest.mark.parametrize(
    ("rule", "content"),
    [
        ("fdatasync:error=EIO", b""),
        ("pwrite64:error=ENOSPC", b""),
        ("fsync:error=EIO", LARGE),
        ("fsync:error=EIO:when=2", LARGE),
        ("openat:error=EMFILE", LARGE),
    ],
    ids=["the store's sync", "the store's write", "a large body's sync", "its folder's sync", "a large body's file"],
)
async def test_what_could_not_be_written_for_sure_is_not_acknowledged_and_the_next_try_is(
    rule: str, content: bytes, tmp_path: Path
) -> None:
    require_strace(rule)
    content = content or unique_letter()
    async with world(tmp_path) as relay:
        await relay.mail(BASE, unique_letter())
        async with injecting(relay.daemon.pid, rule):
            answer = await relay.answer(content, BASE)
        assert answer.code // 100 == 4, answer
        assert await relay.rows("SELECT count(*) FROM messages") == [(1,)]
        message = await relay.mail(BASE, content)
        (received,) = await relay.arrived(content)
        assert received.content.endswith(content)
        assert await relay.octets("GET", f"/v1/messages/{message}/raw") == content
        await relay.until(lambda: asyncio.to_thread(bodies, relay), lambda found: len(found) == (content is LARGE))


async def test_an_outcome_that_cannot_be_recorded_at_once_is_recorded_later_and_the_mail_not_sent_again(
    tmp_path: Path,
) -> None:
    require_strace("an outcome that cannot be recorded")
    sessions: list[SinkSession] = []

    def keeps_waiting(session: SinkSession, line: str) -> Hang:
        sessions.append(session)
        return Hang()

    async with world(tmp_path, sink=SmtpSink(script={"dot": keeps_waiting})) as relay:
        message = await relay.mail(BASE, unique_letter())
        await relay.sink.wait(lambda sink: bool(sessions))
        async with injecting(relay.daemon.pid, "fdatasync:error=EIO"):
            sessions[0].say("250 2.0.0 taken")
            await relay.daemon.logged("outcome not recorded")
        await relay.forwarded(message)
        assert len(relay.sink.messages) == 1
        assert await relay.rows("SELECT state, attempts, possibly_repeated FROM deliveries") == [("forwarded", 1, 0)]


async def test_a_foreign_lock_on_the_database_puts_mail_off_until_it_is_gone(tmp_path: Path) -> None:
    async with world(tmp_path) as relay:
        with closing(sqlite3.connect(relay.daemon.data_dir / "relay.db", isolation_level=None)) as foreign:
            foreign.execute("BEGIN EXCLUSIVE")
            assert (await relay.answer(unique_letter(), BASE)).short == "451 4.3.2"
            foreign.execute("ROLLBACK")
        content = unique_letter()
        await relay.mail(BASE, content)
        await relay.arrived(content)
