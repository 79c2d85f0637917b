"""Senders, next hops and the machine itself giving up at the worst moment."""

from __future__ import annotations

import asyncio
import resource
import time
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from benchmarks.processes import cpu_seconds
from relay.accepting import PAUSE
from relay.core.wire import stuff
from tests.scenarios.world import DOMAIN, World, letter, site, target, unique_letter, world
from tests.smtp_client import SmtpClient
from tests.smtp_sink import Close, SmtpSink, Stall

pytestmark = pytest.mark.fault

BASE = f"plus@{DOMAIN}"
SMALL = letter("small", "x" * 70 + "\r\n")
LARGE = letter("large", "A line of text that is not so very long.\r\n" * 50_000)
#: Seconds that the daemon is watched without descriptors.
STARVING = 2.0


@pytest.mark.parametrize("content", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("reset", [False, True], ids=["closes", "resets"])
async def test_a_sender_that_dies_in_the_middle_of_a_message_leaves_nothing_behind(
    content: bytes, reset: bool, tmp_path: Path
) -> None:
    async with world(tmp_path) as relay:
        async with await SmtpClient.hello(relay.daemon.smtp_port) as client:
            assert (await client.start(f"<{BASE}>")).code == 354
            await client.send(content[: len(content) - 20])
            if content is LARGE:  # part of it is on disk by now
                await relay.until(lambda: asyncio.to_thread(files, relay), bool)
            if reset:
                client.reset()
        await relay.daemon.logged("SMTP session", messages=0, helo="client.test")
        assert await relay.rows("SELECT id FROM messages") == []
        await relay.until(lambda: asyncio.to_thread(files, relay), lambda found: not found)
        await relay.mail(BASE, content)
        await relay.arrived(content)


def files(relay: World) -> list[Path]:
    return list((relay.daemon.data_dir / "bodies").iterdir())


async def test_a_sender_that_is_gone_before_its_250_and_sends_again_is_not_forwarded_twice(tmp_path: Path) -> None:
    async with world(tmp_path) as relay:
        for content in (SMALL, LARGE):
            async with await SmtpClient.hello(relay.daemon.smtp_port) as client:
                assert (await client.start(f"<{BASE}>", sender="<ann@customer.test>")).code == 354
                await client.send(content + b".\r\n")
            await relay.daemon.logged("message", size=len(content), resent=False)
            message = await relay.mail(BASE, content)
            await relay.forwarded(message)
        last = unique_letter()
        await relay.mail(BASE, last)
        await relay.arrived(last)
        assert [len(await relay.arrived(content)) for content in (SMALL, LARGE)] == [1, 1]
        assert len(files(relay)) == 1
        assert await relay.rows("SELECT kind FROM paths ORDER BY id LIMIT 4") == [("first",), ("repeat",)] * 2


async def test_a_next_hop_that_dies_before_the_dot_gets_the_mail_again_and_nothing_is_flagged(tmp_path: Path) -> None:
    # What fits into one write leaves with its dot, so nobody can know that it was not taken; the large one does not.
    sink = SmtpSink(script={"data": [Close("421 4.3.2 going down")], "content": [Close()]})
    async with world(tmp_path, sink=sink) as relay:
        contents = [unique_letter(), LARGE]
        for content in contents:
            await relay.forwarded(await relay.mail(BASE, content), "deferred")
        await relay.retry_all()
        for content in contents:
            assert len(await relay.arrived(content)) == 1
        assert await relay.rows("SELECT DISTINCT possibly_repeated FROM deliveries") == [(0,)]


async def test_a_next_hop_that_stops_reading_does_not_hold_up_the_others(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        stuck = await stack.enter_async_context(SmtpSink(script={"content": lambda session, line: Stall()}))
        sites = [
            site(
                target("stuck@example.test", "plus", next_hop=f"smtp://{stuck.address}"),
                target("plus@example.test", "plus"),
            )
        ]
        relay = await stack.enter_async_context(world(tmp_path, sites=sites))
        for number in range(30):
            await relay.mail(f"stuck+{number}@{DOMAIN}", LARGE)
        content = unique_letter()
        await relay.mail(BASE, content)
        await relay.arrived(content)
        assert stuck.accepted == []
        relay.daemon.kill()  # a stop would give the attempts their grace


async def test_more_connections_than_file_descriptors_leave_the_daemon_alive_and_the_mail_safe(
    tmp_path: Path,
) -> None:
    async with world(tmp_path) as relay:
        pid = relay.daemon.pid
        await relay.mail(BASE, unique_letter())
        async with relay.http.get(f"{relay.daemon.url}/healthz") as response:
            assert response.status == 200
        used = len(list(Path(f"/proc/{pid}/fd").iterdir()))
        _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + 20, hard))
        since = time.monotonic()
        async with AsyncExitStack() as stack:
            clients = [
                await stack.enter_async_context(await SmtpClient.connect(relay.daemon.smtp_port)) for _ in range(60)
            ]
            served = await asyncio.gather(*map(greeted, clients))
            assert 0 < sum(served) < 60
            before = cpu_seconds(pid)
            await asyncio.sleep(STARVING)
            assert cpu_seconds(pid) - before < STARVING / 2, "it spins while it waits for descriptors"
            complaints = sum("out of system resource" in str(entry) for entry in relay.daemon.log)
            turns = 1 + time.monotonic() - since
            assert 0 < complaints <= turns / PAUSE * 2, "each of the two listeners tries again after its pause"
            # Who is in goes on being served: with what there is no descriptor for he is put off.
            inside = next(client for client, answered in zip(clients, served, strict=True) if answered)
            await inside.command("EHLO client.test")
            starving = {
                content: (await inside.mail(stuff(content) + b".\r\n", f"<{BASE}>")).code
                for content in (unique_letter(), LARGE)
            }
            assert set(starving.values()) <= {250, 451, 452}, starving
            async with relay.http.get(f"{relay.daemon.url}/healthz") as response:  # on the connection of before
                assert response.status == 200
        content = unique_letter()
        await relay.until(lambda: taken(relay, content), bool)
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (hard, hard))
        await relay.retry_all()
        for accepted in (content, *(one for one, code in starving.items() if code == 250)):
            assert len(await relay.arrived(accepted)) == 1
        assert await relay.call("GET", "/v1/queue") == {"items": [], "next": None}


async def greeted(client: SmtpClient) -> bool:
    try:
        async with asyncio.timeout(0.5):
            return (await client.answer()).code == 220
    except (TimeoutError, OSError, asyncio.IncompleteReadError):
        return False


async def taken(relay: World, content: bytes) -> bool:
    try:
        return (await relay.answer(content, BASE)).code == 250
    except (OSError, asyncio.IncompleteReadError):
        return False
