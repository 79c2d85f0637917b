"""kill -9 over the steps of a delivery: nothing acknowledged is lost, and what came twice says so.

Ten kills in the suite (120 in the soak) strike at any moment of a stream of mail, twelve (110) at exactly the N-th of
some system call while one mail goes all its way. Two stops by SIGTERM (10) in such a stream have not even anything come
twice.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from tests.faults.injection import ended, injecting, is_dead, require_strace
from tests.ledger import SOAK, Account, Ledger, Visitors, is_drained, numbers_under_way, seeded
from tests.scenarios.world import DOMAIN, World, unique_letter, world
from tests.smtp_sink import Hang, Slow, SmtpSink
from tests.webhook_receiver import Post

pytestmark = pytest.mark.fault

KILLS = 120 if SOAK else 10
STOPS = 10 if SOAK else 2
#: (system call, the how-manyth of a thread): the syncs and writes of the store, those of a large body's file, and all
#: that is said to the sender, the next hop and the CRM.
POINTS = [
    (call, when)
    for call, numbers in {
        "fdatasync": range(1, 4) if SOAK else (1, 2),
        "fsync": range(1, 3) if SOAK else (1, 2),
        "pwrite64": range(1, 91) if SOAK else (9, 34, 55, 62),
        "write": range(1, 16) if SOAK else (5, 7, 9, 12),
    }.items()
    for when in numbers
]
#: Seconds within which one mail goes all its way, slowed down by strace.
A_WAY = 60.0


async def drained(relay: World) -> None:
    await relay.until(lambda: asyncio.to_thread(is_drained, relay.daemon), bool)


async def killed(relay: World, under_way: Counter[int]) -> None:
    """The daemon is dead or dies now; note what was under way, and start it again."""
    await asyncio.to_thread(relay.daemon.kill)
    under_way.update(await asyncio.to_thread(numbers_under_way, relay.daemon))
    await asyncio.to_thread(relay.daemon.start)


async def settled(relay: World, ledger: Ledger, under_way: Counter[int]) -> str:
    """Wait for the end of all work, draw up the account, and say in one line what it came to."""
    account = await balanced(relay, ledger, under_way)
    return f"{told(ledger, account)}, {under_way.total()} under way at a kill"


async def balanced(relay: World, ledger: Ledger, under_way: Counter[int]) -> Account:
    await drained(relay)
    account = await asyncio.to_thread(Account.of, relay.daemon, relay.sink.accepted, relay.crm.posts)
    account.must_balance(ledger, under_way)
    assert await relay.row("PRAGMA integrity_check") == ("ok",)
    return account


def told(ledger: Ledger, account: Account) -> str:
    return (
        f"{len(ledger.acknowledged)} letters acknowledged, {ledger.resent} sent again by their sender, "
        f"{account.repeats} came twice, {account.reposts} were posted twice"
    )


async def test_kills_at_any_moment_lose_nothing(tmp_path: Path) -> None:
    chance = seeded("kills at any moment")
    ledger, under_way = Ledger(chance.randrange(10**6)), Counter[int]()
    async with world(tmp_path, start=False) as relay:
        await asyncio.to_thread(relay.daemon.start)
        visitors = Visitors(relay)
        async with asyncio.TaskGroup() as group:
            group.create_task(ledger.send(lambda: relay.daemon.smtp_port))
            views = group.create_task(visitors.come(ledger))
            for _ in range(KILLS):
                await ledger.wait_for(chance.randrange(1, 60))
                await asyncio.sleep(chance.random() / 50)  # to strike between two answers, too
                await killed(relay, under_way)
                await visitors.must_be_known()
            ledger.stop()
            views.cancel()
        print(f"{KILLS} kills: {await settled(relay, ledger, under_way)}, {len(visitors.shown)} page views")
        assert under_way.total() > 0, "no kill struck anything"
        assert visitors.shown


async def test_stops_while_mail_comes_in_thick_lose_nothing_and_repeat_nothing(tmp_path: Path) -> None:
    """Next hop and CRM take their time, so each stop finds something under way."""
    chance = seeded("stops")
    ledger, left = Ledger(chance.randrange(10**6)), 0
    sink = SmtpSink(script={"dot": lambda session, line: Slow(chance.random() / 5, "250 2.0.0 ok")})

    async def thinks(post: Post) -> int:
        await asyncio.sleep(chance.random() / 20)
        return 200

    async with world(tmp_path, sink=sink, crm=thinks, start=False) as relay:
        await asyncio.to_thread(relay.daemon.start)
        async with asyncio.TaskGroup() as group:
            group.create_task(ledger.send(lambda: relay.daemon.smtp_port))
            for _ in range(STOPS):
                await ledger.wait_for(chance.randrange(20, 60))
                assert await asyncio.to_thread(relay.daemon.stop) == 0
                left += (await relay.row("SELECT count(*) FROM posts WHERE state = 'waiting'"))[0]
                await asyncio.to_thread(relay.daemon.start)
            ledger.stop()
        account = await balanced(relay, ledger, Counter())
        print(f"{STOPS} stops, {left} posts left to the next start: {told(ledger, account)}")
        assert ledger.resent > 0, "no stop turned anybody away"
        assert (account.reposts, account.flagged, relay.daemon.errors) == (0, set(), [])


async def test_kills_at_exact_system_calls_lose_nothing(tmp_path: Path) -> None:
    require_strace("kills at exact points")
    ledger, under_way = Ledger(1, lambda number: POINTS[number][0] == "fsync"), Counter[int]()
    missed: list[tuple[str, int]] = []
    async with world(tmp_path, start=False) as relay:
        await asyncio.to_thread(relay.daemon.start)
        for number, (call, when) in enumerate(POINTS):
            async with asyncio.TaskGroup() as group:
                async with injecting(relay.daemon.pid, f"{call}:signal=SIGKILL:when={when}"):
                    group.create_task(ledger.send(lambda: relay.daemon.smtp_port, 1, most=1))
                    strikes = group.create_task(ended(relay.daemon.pid, A_WAY))
                    arrives = group.create_task(posted(relay, f"letter {number}"))
                    await asyncio.wait([strikes, arrives], return_when=asyncio.FIRST_COMPLETED)
                if is_dead(relay.daemon.pid):
                    await killed(relay, under_way)
                else:
                    missed.append((call, when))  # the letter's way needs no more than that of them
                strikes.cancel()
            await drained(relay)
        struck = len(POINTS) - len(missed)
        print(f"\n{struck} kills at exact points (never reached: {missed}): {await settled(relay, ledger, under_way)}")
    assert struck > len(POINTS) / 2


async def posted(relay: World, subject: str) -> None:
    """Until the CRM has had a post about this letter, whose way is almost over then."""

    async def found() -> bool:
        return any(post.json["subject"] == subject for post in relay.crm.posts)

    await relay.until(found, bool)


async def test_a_kill_after_the_final_dot_repeats_the_mail_once_under_one_id_and_history_says_so(
    tmp_path: Path,
) -> None:
    async with world(tmp_path, sink=SmtpSink(script={"dot": [Hang()]}), start=False) as relay:
        await asyncio.to_thread(relay.daemon.start)
        content = unique_letter()
        message = await relay.mail(f"plus+1@{DOMAIN}", content)
        await relay.sink.wait(lambda sink: len(sink.messages) == 1)
        await asyncio.to_thread(relay.daemon.kill)
        await asyncio.to_thread(relay.daemon.start)
        await relay.forwarded(message)
        copies = [one.content for one in relay.sink.messages if one.content.endswith(content)]
        assert len(copies) == 2
        assert copies[0] == copies[1]
        (delivery,) = (await relay.call("GET", f"/v1/messages/{message}"))["deliveries"]
        assert delivery["possibly_repeated"] is True
        assert delivery["attempts"] == 2


async def test_a_kill_while_the_crm_thinks_posts_the_event_again_under_its_id(tmp_path: Path) -> None:
    release = asyncio.Event()

    async def thinks(post: Post) -> int:
        await release.wait()
        return 200

    async with world(tmp_path, crm=thinks, start=False) as relay:
        await asyncio.to_thread(relay.daemon.start)
        message = await relay.mail(f"plus+1@{DOMAIN}", unique_letter())
        first = (await relay.crm.wait_for(1))[0]
        await asyncio.to_thread(relay.daemon.kill)
        release.set()
        await asyncio.to_thread(relay.daemon.start)
        second = (await relay.crm.wait_for(2))[1]
        assert first.headers["webhook-id"] == second.headers["webhook-id"] == await relay.event(message)
        assert first.body == second.body
        await drained(relay)
        assert len(relay.crm.posts) == 2
